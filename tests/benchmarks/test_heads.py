"""The benchmark of heads: whose figures they are, and that twins and labels are measured alike."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import pytest
import torch

import rectify_widgets as rw
from rectify_widgets.cases.figures import classes, share
from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks import fakes, heads
from tests.benchmarks.heads import Behaviour, _Told, measure_heads
from tests.benchmarks.tables import spread
from tests.benchmarks.trojan import PER_CENT
from tests.engine.toy import TARGET, odds_of_all


def test_labels_and_their_twins_are_measured_on_the_same_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        heads, "BEHAVIOURS", (Behaviour("adds", "a"), Behaviour("hides", "a", True))
    )
    case = fakes.case()
    monkeypatch.setattr(rw.cases, "load", lambda _: case)
    monkeypatch.setattr(rw, "rectify", partial(rw.rectify, refine_steps=0, max_rounds=1))
    rows = measure_heads(Namespace(seeds=1), Monitor()).rows
    assert [(row["behaviour"], row["head"]) for row in rows] == [
        (behaviour, head) for behaviour in ("adds", "hides") for head in ("all labels", "one label")
    ]
    x, y = case.clean
    odds = odds_of_all(case.model(case.corrupted[0])).detach()
    added = share((odds[:, TARGET] > 0)[y != TARGET])
    own = share((odds.gather(1, y[:, None])[:, 0] <= 0)[y != TARGET])
    right = share(classes(case.model, x) == y)
    for row, wrong in zip(rows[::2], (added, own), strict=True):
        assert row["wrong, before"] == spread([wrong], PER_CENT)
        assert row["right, before"] == spread([right], PER_CENT)
        assert row["not shown, after"] != "–"
    for row in rows:
        before, twin, after = (float(str(row[f"wrong, {k}"]).split()[0])
                               for k in ("before", "twin", "after"))  # fmt: skip
        assert after < 0.5 * before
        assert twin < 0.5 * before
    for row in rows[1::2]:
        assert row["wrong, twin"] == row["wrong, after"]
        assert row["right, twin"] == row["right, after"]
        assert row["not shown, after"] == "–"


def test_figures_by_hand() -> None:
    """Three images of three classes, the last of which the corruption leads to."""
    clean = torch.tensor([[1.0, -1.0, -1.0], [1.0, -0.5, -1.0], [-1.0, -1.0, 1.0]])
    corrupted = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]])
    told = _Told(corrupted, clean, torch.arange(3), target=2)
    assert told.accuracies.tolist() == pytest.approx([2 / 3, 2 / 3, 1.0])
    assert told.wrong([0, 1, 2], False) == 0.5  # the first is told the last label
    assert told.wrong([0, 1], True) == 0.5  # the second is not told its own
    assert told.wrong([0], True) == 0.0
    assert told.right([0, 1, 2]) == pytest.approx(2 / 3)
    assert told.right([2]) == 1.0
