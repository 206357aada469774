"""Rows of an edit: the closed form and the iterative optimiser solve the same problem."""

from __future__ import annotations

import pytest
import torch

from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.repair.solving import solve_edit
from tests.benchmarks import (
    speed_edit,
)
from tests.benchmarks.speed_fakes import bench, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


NAME = "stage1.block0.conv2"


def test_the_edit_rows_compare_residuals() -> None:
    measured = speed_edit.measure_edit(bench())
    name = "edit of stage1.block0.conv2"
    assert [row.what for row in measured.rows] == [
        f"{name}, patch keys", f"{name}, channel keys", f"{name}, the whole call",
    ]  # fmt: skip
    assert [cost.task for cost in measured.costs] == [row.what for row in measured.rows]
    assert [row.target for row in measured.rows] == [200.0, 200.0, None]
    assert all(row.faster for row in measured.rows)
    for row in measured.rows[:2]:
        own, other = (float(word.rstrip(";")) for word in row.note.split()[1:4:2])
        assert 0 <= own <= other
    assert "products of keys once" in measured.rows[1].note
    for cost in measured.costs:
        assert 0 < cost.least.multiply_adds < cost.done


def problem() -> speed_edit.Problem:
    made = bench()
    model, name = tiny(), NAME
    known = {
        space: KeyStatistics.collect(model, made.images(4), [name], key_space=space)
        for space in ("patch", "channel")
    }
    return speed_edit.pose(model, made.pair(), known, name)


@pytest.mark.parametrize("space", ["patch", "channel"])
def test_the_edit_from_keys_is_that_of_the_engine(space: str) -> None:
    made, model = bench(), tiny()
    known = KeyStatistics.collect(model, made.images(4), [NAME], key_space=space)
    edit = solve_edit(
        model, made.pair(), layer=NAME, statistics=known, direction="key",
        ridge=speed_edit.RIDGE, key_space=space,
    )  # fmt: skip
    found = getattr(problem(), f"solve_{space}")()
    torch.testing.assert_close(found.delta, edit.delta, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("space", ["patch", "channel"])
def test_the_optimiser_goes_where_the_closed_form_is(space: str) -> None:
    posed = problem()
    solved = getattr(posed, f"solve_{space}")()
    best = posed.residual(solved)
    few, many = (posed.residual(posed.descend(solved, steps)) for steps in (2, 600))
    assert best <= many < few
    assert many == pytest.approx(best, rel=0.02)
    assert posed.residual(posed.descend(solved, 0)) == 1.0
