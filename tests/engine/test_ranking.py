"""The register of ranking methods, and how predictions are verified by trials.

Oracles: a stand-in for trials with made-up results, and the size of each layer's keys.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from torch import nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.base.ranks import ALONE
from rectify_widgets.engine.find import ranking
from rectify_widgets.engine.find.localization import localize
from rectify_widgets.engine.find.proposals import Proposals
from rectify_widgets.engine.find.ranking import RANKING_METHODS, RankingMethod
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.repair.rectification import rectify
from tests.engine.toy import Toy


def test_a_method_that_is_registered_ranks_layers_and_repairs(
    trojan: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = RankingMethod(
        "key size", "numbers of a key", "numbers", is_share=False,
        score=lambda _, proposals, __, ___: proposals.measured,
        measure=lambda _, layers, statistics, __, ___: {
            name: float(statistics[name].moment.shape[-1]) for name in layers
        },
    )  # fmt: skip
    monkeypatch.setitem(RANKING_METHODS, method.name, method)
    given: dict[str, Any] = {"reference": trojan.reference, "method": "key size"}
    found = localize(trojan.model, trojan.pairs, **given)
    layers = editable_layers(trojan.model, trojan.pairs.clean)
    assert found.scores == {layer.name: float(layer.key_size) for layer in layers}
    result = rectify(trojan.model, trojan.pairs, max_rounds=1, **given)
    assert result.steps[0].layer == found.best


class Rated(NamedTuple):
    layer: EditableLayer
    score: float


class Rehearsal:
    """Layers of one edit each: what is predicted of it, and what a trial would measure."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, edits: dict[str, tuple[float, float]]
    ) -> None:
        tried = self.tried = list[str]()

        class Rehearsed:
            def __init__(self, *_: object) -> None:
                pass

            def sharing(self, _: object) -> AbstractContextManager[None]:
                return nullcontext()

            def closed(self, candidate: Any) -> float:
                tried.append(candidate.layer.name)
                return edits[candidate.layer.name][1]

        monkeypatch.setattr(ranking, "Trial", Rehearsed)
        monkeypatch.setattr(ranking, "different", list)
        layers = {name: EditableLayer(name, nn.Linear(1, 1)) for name in edits}
        self.options: Any = {name: [Rated(layers[name], edits[name][0])] for name in edits}

    def scores(self, trials: int) -> dict[str, float]:
        self.tried.clear()
        problem: Any = SimpleNamespace(ranks=ALONE)
        proposals = Proposals(self.options)
        return ranking.score_by_prediction(problem, proposals, trials, Monitor())


def test_trials_go_on_until_no_prediction_can_overtake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Underrated edits are found too."""
    edits = {"last": (0.74, 0.74), "first": (0.70, 0.93), "weak": (0.66, 0.1), "late": (0.5, 0.99)}
    rehearsal = Rehearsal(monkeypatch, edits)
    scores = rehearsal.scores(12)
    assert rehearsal.tried == ["last", "first"], "0.66 and a margin of 0.25 are less than 0.93"
    assert scores == {"last": 0.74, "first": 0.93, "weak": 0.66, "late": 0.5}
    rehearsal.scores(1)
    assert rehearsal.tried == ["last"]


def test_what_was_not_tried_is_taken_to_be_as_overrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blend: no edit holds what it promises; the best one that was tried comes first."""
    edits = {"last": (0.8, 0.3), "first": (0.7, 0.45), "late": (0.6, 0.2), "stem": (-0.2, -0.2)}
    rehearsal = Rehearsal(monkeypatch, edits)
    scores = rehearsal.scores(2)
    assert rehearsal.tried == ["last", "first"]
    held = (0.3 + 0.45) / (0.8 + 0.7)
    wanted = {"last": 0.3, "first": 0.45, "late": 0.6 * held, "stem": -0.2 * held}
    assert scores == pytest.approx(wanted)
