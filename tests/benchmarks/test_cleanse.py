"""The tables of masks: what counts as a hit, what is repaired from, and what is compared."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rectify_widgets import cases
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from tests.benchmarks import cleanse


class Fake:
    """A rectification that changes nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.edits = model, [1, 2]


def boxed(top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "hit", "iou", "area"),
    [
        (boxed(2, 2, 6, 6), True, 1.0, 1.0),
        (boxed(2, 2, 6, 4), True, 0.5, 0.5),
        (boxed(2, 3, 6, 4), False, 0.25, 0.25),
        (boxed(0, 0, 6, 8), True, 1 / 3, 3.0),
        (boxed(0, 0, 7, 7), False, 16 / 49, 49 / 16),
        (boxed(3, 0, 9, 8), False, 12 / 52, 3.0),  # large enough, but not all of it
        (boxed(0, 0, 0, 0), False, 0.0, 0.0),
    ],
)
def test_hits(mask: torch.Tensor, hit: bool, iou: float, area: float) -> None:
    found = cleanse.hits(mask, boxed(2, 2, 6, 6))
    assert [float(one) for one in found] == pytest.approx([float(hit), iou, area])


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("trojan-visibility", slice(24, 27), slice(24, 27)),
        ("spurious-severe", slice(2, 7), slice(2, 6)),
    ],
)
def test_true_masks_are_where_the_trigger_is(name: str, rows: slice, columns: slice) -> None:
    masks = cleanse.true_masks(cases.load(name).trigger, torch.rand(2, 1, 28, 28))
    assert bool(masks[:, rows, columns].all())
    assert int(masks.sum()) == 2 * (rows.stop - rows.start) * (columns.stop - columns.start)


def test_repairs_are_from_the_same_input_and_compared_with_the_true_pair(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[SamplePairs, dict[str, Any]]] = []

    def rectify(model: nn.Module, pairs: SamplePairs, **options: Any) -> Fake:
        calls.append((pairs, options))
        return Fake(model)

    monkeypatch.setattr(cleanse, "rectify", rectify)
    monkeypatch.setattr(cleanse, "TEST", 50)
    monkeypatch.setattr(cleanse, "INPUTS", 2)
    name = "trojan-all-to-all"
    options = Namespace(seeds=1, cases=[name], out=tmp_path)
    masks, repairs = cleanse.measure_cleanse(options, Monitor())
    assert [row["asked"] for row in masks.rows] == ["one by one", "together"]
    assert [row["hits"] for row in masks.rows] == ["2 of 2"] * 2
    case = cases.load(name)
    assert len(calls) == 3
    for pairs, arguments in calls:
        assert torch.equal(pairs.corrupted, case.pairs.corrupted[:1])
        assert arguments["seed"] == 0
    truth = calls[0][0].clean
    assert torch.equal(truth, case.pairs.clean[:1])
    for pairs, _ in calls[1:]:
        changed = (pairs.clean != pairs.corrupted)[0, 0].nonzero()
        assert bool((changed >= 22).all()), "within the trigger and some pixels around it"
    how = [row["clean by"] for row in repairs.rows]
    assert how == ["before", cleanse.TRUE, cleanse.DRAWN, cleanse.SUGGESTED]
    assert [row["mean within"] for row in repairs.rows] == ["–", "–", "yes", "yes"]
    assert repairs.rows[2]["largest difference"] == "ASR 0.00, OA 0.00"
    assert (tmp_path / "cleanse.csv").is_file()
    assert (tmp_path / "masks.md").is_file()
