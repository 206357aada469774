"""Rows of a rectification and of its rounds, on the engine's toy behaviour."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.cases.training import Figures
from tests.benchmarks import (
    speed_bench,
    speed_repair,
    speed_trojan,
)
from tests.benchmarks.speed_fakes import Ticking, bench
from tests.benchmarks.speed_timing import Ratio
from tests.engine import toy

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


@cache
def trained() -> toy.Toy:
    return toy.train()


class Toys(speed_trojan.Trojan):
    """The engine's toy behaviour in place of the Trojaned ResNet-18."""

    def figures(self, model: nn.Module) -> Figures:
        accuracy, attack = trained().rates(model)
        return Figures(accuracy, attack, 0.0, 0.0)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    known = trained()
    images = (255 * known.x).to(torch.uint8)
    case = Toys(
        copy.deepcopy(known.model),
        known.pairs,
        known.reference,
        images,
        known.y,
        (known.x, known.y),
    )
    monkeypatch.setattr(speed_bench, "load_trojan", lambda *_, **__: case)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("whole", [True, False])
def test_the_rectification_row_reckons_the_epoch(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def fit(model: nn.Module, images: Tensor, *_: object, **__: object) -> None:
        seen.append(len(images))
        with torch.no_grad():  # it may do with its copy what it likes
            next(model.parameters()).zero_()

    monkeypatch.setattr(speed_repair, "fit", fit)
    measured = speed_repair.measure_rectify(bench(whole_epoch=whole))
    (row,), (cost,) = measured.rows, measured.costs
    assert seen == [300 if whole else 128]
    assert isinstance(row.ratio, Ratio)
    assert row.ratio.scale == (1.0 if whole else 128 / 300)
    assert ("reckoned from 128" in row.against) is not whole
    assert "edits in" in row.note
    assert "statistics" in row.note
    assert cost.least.multiply_adds > 0


@pytest.mark.usefixtures("toys")
def test_the_rounds_row_takes_the_first_round_as_its_measure() -> None:
    (row,) = speed_repair.measure_rounds(bench()).rows
    assert isinstance(row.ratio, Ratio)
    assert 1 <= len(row.ratio.each) <= 2
    assert row.note.startswith("pair 0: ")
    assert ", edited " in row.note


def test_rounds_are_told_apart_by_what_the_loop_says() -> None:
    ticking = Ticking()
    times = speed_repair.RoundTimes(ticking.clock())
    for message, seconds in (
        ("looking", 7.0), ("collecting keys", 1.0), ("collecting keys", 2.0),
        ("round 1: trying stem", 3.0), ("round 1: done", 4.0), ("collecting keys", 0.5),
        ("round 2: done", 0.0),
    ):  # fmt: skip
        times(0.0, message)
        ticking.time += seconds
    assert [span.seconds for span in times.spans] == [6.0, 4.5]
