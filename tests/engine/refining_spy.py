"""Rectifications that refine, and what they refined towards what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn

from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.repair import rounds
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.refining import Factors, Goal, refine
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.engine.repair.rounds import Rounds
from tests.engine.toy import Toy

Refined = Mapping[str, Factors]


class Seen:
    """What a rectification refined, and what it judged."""

    def __init__(self, patch: pytest.MonkeyPatch, enough: float | None) -> None:
        self.starts: list[Refined] = []
        self.goals: list[Goal] = []
        self.options: list[dict[str, Any]] = []
        self.found: list[Refined] = []
        self.loops: list[Rounds] = []
        self.took = 0.0

        def refining(
            model: nn.Module,
            layers: Mapping[str, EditableLayer],
            start: Refined,
            goal: Goal,
            **rest: Any,
        ) -> Refined:
            began = time.perf_counter()
            found = refine(model, layers, start, goal, **rest)
            self.took += time.perf_counter() - began
            self.starts.append(start)
            self.goals.append(goal)
            self.options.append(rest)
            self.found.append(found)
            return found

        class Watched(Rounds):
            def __init__(loop, *args: Any) -> None:  # noqa: N805 - the test is `self`
                super().__init__(*args)
                self.loops.append(loop)

        patch.setattr(rounds, "refine", refining)
        patch.setattr("rectify_widgets.engine.repair.rectification.Rounds", Watched)
        if enough is not None:
            patch.setattr(rounds, "ENOUGH", enough)


def run(toy: Toy, enough: float | None, **options: Any) -> tuple[Rectification, Seen]:
    given: dict[str, Any] = {
        "reference": toy.reference, "max_rounds": 3, "target_gap": 0.0, "refine_steps": 10
    }  # fmt: skip
    given.update(options)
    pairs = given.pop("pairs", toy.pairs[0])
    with pytest.MonkeyPatch.context() as patch:
        spy = Seen(patch, enough)
        return rectify(given.pop("model", toy.model), pairs, **given), spy
