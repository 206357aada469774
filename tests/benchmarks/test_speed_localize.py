"""Rows of the sweep, of statistics and of localisation on tiny networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from rectify_widgets.engine.model.gradients import sweep
from tests.benchmarks import (
    speed_limits,
    speed_localize,
)
from tests.benchmarks.speed_fakes import SMALL, Ticking, bench, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def test_the_sweep_row_says_how_far_captum_is() -> None:
    measured = speed_localize.measure_sweep(bench())
    (row,), (cost,) = measured.rows, measured.costs
    assert row.what == "sweep of all 7 layers"
    assert row.faster
    assert "2 inputs, 2 steps; largest relative difference" in row.note
    one = speed_limits.forward_work(tiny(), torch.rand(2, 3, 32, 32))
    assert cost.least == one * 4
    # It does without the gradient of the image.
    assert cost.least.multiply_adds * 0.9 < cost.done < cost.least.multiply_adds


def test_a_sweep_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*arguments: object, **options: object) -> object:
        found = sweep(*arguments, **options)  # type: ignore[arg-type]
        return {name: 1.01 * gradient for name, gradient in found.items()}

    monkeypatch.setattr(speed_localize, "sweep", off)
    with pytest.raises(RuntimeError, match="not what captum finds"):
        speed_localize.measure_sweep(bench())


def test_the_statistics_row() -> None:
    measured = speed_localize.measure_statistics(bench())
    (row,), (cost, plain) = measured.rows, measured.costs
    assert row.what == "statistics of all 7 layers, 6 references"
    assert not row.faster
    assert plain.least == speed_limits.forward_work(tiny(), bench().images(6))
    assert plain.least.multiply_adds < cost.least.multiply_adds <= cost.done


def test_the_depth_rows_tell_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking()
    clock = ticking.clock()

    def localize(*_: object, **__: object) -> None:
        ticking.time += 8.0 if len(ticking.ran) else 6.0
        ticking.ran.append("localize")

    monkeypatch.setattr(speed_localize, "localize", localize)
    model = tiny()

    def forward(module: nn.Module, _: object, __: object) -> None:
        ticking.time += 2.0
        ticking.worked += 1.0

    model.register_forward_hook(forward)
    sizes = replace(SMALL, depths=(18, 50))
    rows = speed_localize.measure_depth(bench(clock=clock, sizes=sizes, build=lambda _: model)).rows
    assert [row.what for row in rows] == [
        "localisation, 18 layers deep",
        "localisation, 50 layers deep",
        "growth of localisation from 18 to 50 layers",
    ]
    assert [row.ratio.median for row in rows] == [3.0, 4.0, 4.0 / 3.0]
    assert [row.met for row in rows] == ["", "", "no"]


def test_localisation_runs_at_every_depth() -> None:
    rows = speed_localize.measure_depth(bench(sizes=replace(SMALL, depths=(18, 50)))).rows
    assert len(rows) == 3
    assert all(row.ratio.median > 0 for row in rows)
