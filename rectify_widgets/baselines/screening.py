"""Which layers a costly method should try.  Imports torch and the engine.

Methods that train at a layer cannot try them all.  Projecting the corruption's direction out of a
layer costs no training and says on the validation split how much of the corruption, and of what
else, lies along it.  The layers where that does best are the ones to try.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rectify_widgets.baselines.projective_clarc import project
from rectify_widgets.baselines.task import Task
from rectify_widgets.baselines.tuning import Referee, grid, make
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.closed_form import Unreached

MOST = 5
"""Places, a layer and a space, that are handed on."""


def screened(
    task: Task, layers: Sequence[str], spaces: Sequence[str], monitor: Monitor
) -> list[dict[str, Any]]:
    """Up to five choices of layer and space: the first ones given, then the best by projection.

    Without a validation split there is nothing to judge by, and all are handed on: the first is the
    published default, which is taken then.
    """
    places = grid(space=spaces, layer=layers)
    monitor.report(0.0, "screening layers")
    if task.validation is None or len(places) <= MOST:
        return places
    referee = Referee(task, task.validation)
    scores: list[float] = []
    for number, place in enumerate(places):
        monitor.report(number / len(places), f"screening {place['layer']}")
        try:
            score = referee.score(make(task, project, place, monitor))[2]
        except Unreached:
            score = None
        scores.append(float("-inf") if score is None else score)
    best = sorted(range(1, len(places)), key=lambda row: -scores[row])
    return [places[row] for row in (0, *best[: MOST - 1])]
