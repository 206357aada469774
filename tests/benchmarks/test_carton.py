"""The table of the carton: one repair a photograph and method, each measured once."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.cases import pretrained
from rectify_widgets.cases.case import Case
from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks import carton
from tests.benchmarks.plan import Record


def test_each_photograph_is_repaired_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def repaired(case: Case, method: str, row: int, others: Tensor) -> tuple[nn.Module, Record]:
        seen.append((method, row))
        assert len(others) == 34
        assert not (others == case.reference[row]).flatten(1).all(dim=1).any()
        return case.model, {"layers": ["stem"] if method == carton.CLOSED_FORM else []}

    def figures(case: Case, boxes: Tensor, model: nn.Module) -> dict[str, float]:
        assert model is case.model
        assert boxes.shape == (40, 3, 224, 224)
        return dict.fromkeys(carton.SHOWN.values(), 0.5)

    monkeypatch.setattr(carton, "_repaired", repaired)
    monkeypatch.setattr(carton, "figures", figures)
    options = Namespace(out=tmp_path, pairs=2, methods=["closed form", "p_clarc"])
    first = carton.measure_carton(options, Monitor(None))
    assert len(set(seen)) == len(seen) == 4
    rows = {str(row["method"]): row for row in first.rows}
    assert list(rows) == ["before", "closed form", "p_clarc"]
    assert rows["closed form"]["layer"] == "stem"
    assert rows["p_clarc"]["right with it"] == "10.0 ± 0.0"
    assert rows["before"]["same answers"] == "17.5"
    assert carton.measure_carton(options, Monitor(None)).rows == first.rows
    assert len(seen) == 4, "nothing is measured twice"


def test_figures_see_an_edit() -> None:
    case, boxes = pretrained.carton(), pretrained.cardboard_boxes(4)
    before = carton.figures(case, boxes, case.model)
    assert (before["same"], before["boxes"]) == (1, 1)
    with torch.no_grad():
        case.model.classifier.bias[case.target] -= 100  # type: ignore[index, union-attr, operator]
    after = carton.figures(case, boxes, case.model)
    assert after["boxes"] == 0
    assert after["logit_rise"] == pytest.approx(before["logit_rise"], abs=1e-3)
