"""The methods that score layers.  A new one is a function and an entry of `RANKING_METHODS` here.

Imports torch only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.solver import DenseSolver
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.candidates import (
    RIDGES,
    Candidate,
    different,
    sweep_probe,
    trying,
)
from rectify_widgets.engine.find.problem import Problem
from rectify_widgets.engine.find.proposals import Measure, Proposals
from rectify_widgets.engine.measure.judge import Judge
from rectify_widgets.engine.model.keys import EditableLayer

MARGIN = 0.25
"""How far below the best trial a prediction may lie and still turn out better: the first layer of the
shipped case closes 0.93 of the gap where 0.65 is predicted from some references."""
VERIFY = 128
"""References on which an edit at the top of the ranking is tried."""

Score: TypeAlias = Callable[[Problem, Proposals, int, Monitor], dict[str, float]]
"""Scores by layer, 0 where the corruption does not reach it, from the candidate edits of all layers.

The number bounds the edits that are tried.  A function that tries edits moves each layer's best one
to the front of its options.
"""


@dataclass(frozen=True)
class RankingMethod:
    """One way to score layers.

    Attributes:
        name: what ``method=`` of `localize` and `rectify` is given.
        unit: what a score is, for people.
        short_unit: the same in two or three words.
        is_share: whether scores are shares of the gap, 0 to 1.
        score: from the candidate edits of all layers.
        measure: what `propose_edits` measures of each layer for ``score``, see `Proposals.measured`.
        by_edit: whether a repair tries edits in the order of their own prediction, or layer by layer
            in the order of the scores.
    """

    name: str
    unit: str
    short_unit: str
    is_share: bool
    score: Score
    measure: Measure | None = None
    by_edit: bool = False


class Trial:
    """Applies an edit, measures on up to ``count`` references (each rank on its own), reverts it."""

    def __init__(self, problem: Problem, count: int, monitor: Monitor) -> None:
        self._model, self._ranks, self._monitor = problem.model, problem.ranks, monitor.silent()
        rows, self._counted = problem.ranks.rows(min(count, len(problem.references)))
        some = problem.only(rows)
        with self._ranks.together():
            self._judge = Judge(
                some.model, some.references, some.carriers, some.origins, monitor=self._monitor,
                room=problem.room,
            )  # fmt: skip
        self._shares = problem.limit is None  # what is cached takes memory
        self._start = self._objective()

    @contextmanager
    def sharing(self, candidates: Iterable[Candidate]) -> Iterator[None]:
        """Try these edits without running again what comes before their layers."""
        layers = [candidate.layer for candidate in candidates] if self._shares else []
        with ExitStack() as stack:
            with self._ranks.together():
                stack.enter_context(self._judge.sharing(self._model, layers, self._monitor))
            yield

    def closed(self, candidate: Candidate) -> float:
        """Share of the gap that the edit closes, less what it disturbs."""
        with trying(candidate):
            after = self._objective(candidate.layer.name)
        return (self._start - after) / max(self._start, 1e-6)

    def _objective(self, edited: str | None = None) -> float:
        with self._ranks.together():
            objective = self._judge.measure(self._model, self._monitor, edited).objective
        return float(self._ranks.mean(torch.tensor(objective, dtype=torch.float64), self._counted))


def score_by_prediction(
    problem: Problem, proposals: Proposals, trials: int, monitor: Monitor
) -> dict[str, float]:
    """Scores from trials, from the top of the predictions until no other edit can be expected to win.

    The sweep follows one rival class and is linear, so that it overrates some edits and underrates
    others.  Predictions that were not tried are scaled down by as much as those that were tried
    turned out too high.  A layer's score is that of its best edit.
    """
    options = proposals.options
    if trials == 0:
        return {name: found[0].score if found else 0.0 for name, found in options.items()}
    trial = Trial(problem, VERIFY, monitor)
    queue = [candidate for found in options.values() for candidate in different(found)]
    scores = {candidate: candidate.score for candidate in queue}
    queue.sort(key=lambda candidate: -candidate.score)
    best, tried = -math.inf, list[Candidate]()
    with trial.sharing(queue[:trials]):
        for number, candidate in enumerate(queue[:trials]):
            if candidate.score + MARGIN < best:
                break
            with problem.ranks.together():
                monitor.report(number / trials, f"trying {candidate.layer.name}")
            scores[candidate] = trial.closed(candidate)
            tried.append(candidate)
            best = max(best, scores[candidate])
    predicted = sum(max(candidate.score, 0.0) for candidate in tried)
    measured = sum(max(scores[candidate], 0.0) for candidate in tried)
    for candidate in queue[len(tried) :]:
        scores[candidate] *= min(measured / max(predicted, 1e-9), 1.0)
    result = {}
    for name, found in options.items():
        ranked = sorted(different(found), key=lambda candidate: -scores[candidate])
        options[name] = [*ranked, *(other for other in found if other not in ranked)]
        result[name] = scores[ranked[0]] if ranked else 0.0
    return result


def score_by_trial(
    problem: Problem, proposals: Proposals, trials: int, monitor: Monitor
) -> dict[str, float]:
    """What the best edit of each layer does when it is applied, on all references."""
    del trials  # every edit is tried
    options = proposals.options
    scores = dict.fromkeys(options, 0.0)
    trial = Trial(problem, len(problem.references), monitor)
    for number, (name, found) in enumerate(options.items()):
        with problem.ranks.together():
            monitor.report(number / len(options), f"trying {name}")
        few = different(found)
        with trial.sharing(few):
            measured = {candidate: trial.closed(candidate) for candidate in few}
        if measured:
            best = max(measured, key=measured.__getitem__)
            scores[name] = measured[best]
            options[name] = [best, *(other for other in found if other is not best)]
    return scores


def measure_projection(
    problem: Problem,
    layers: Mapping[str, EditableLayer],
    statistics: KeyStatistics,
    steps: int,
    monitor: Monitor,
) -> dict[str, float]:
    """``‖Σ_p M_p (C⁻¹ k̃_p)ᵀ‖_F`` with ``M = (v − ṽ) ⊙ Ḡ``, averaged over pairs.

    Yang et al. 2026, the attribution of a layer projected on its edit direction.
    """
    probe = problem.pair_probe()
    probed = sweep_probe(problem.model, layers, probe, steps=steps, monitor=monitor)
    scores = dict.fromkeys(layers, 0.0)
    for name in probed.path_gradients:
        attributions = (probed.clean[name] - probed.corrupted[name]).values()
        attributions = attributions * probed.path_gradients[name]
        try:
            solver = DenseSolver(name, statistics[name].moment)
        except ValueError:  # a layer whose inputs are zero on all references
            continue
        norms = []
        for row in range(len(probe)):
            keys = probed.corrupted[name].rows(slice(row, row + 1))
            summed = keys.gather(attributions[row : row + 1])
            norms.append(solver.solve(summed, RIDGES[0]).norm())
        scores[name] = float(torch.stack(norms).mean())
    return scores


_METHODS = (
    RankingMethod(
        "edit-attribution", "predicted share of the gap", "predicted share", is_share=True,
        score=score_by_prediction, by_edit=True,
    ),
    RankingMethod(
        "projection", "score of the paper, no unit", "no unit", is_share=False,
        score=lambda _, proposals, __, ___: proposals.measured, measure=measure_projection,
    ),
    RankingMethod(
        "trial", "share of the gap, by trial", "share by trial", is_share=True,
        score=score_by_trial,
    ),
)  # fmt: skip
RANKING_METHODS: dict[str, RankingMethod] = {one.name: one for one in _METHODS}
"""Every method by name, the default first."""
