"""Comparisons of the sweep, of statistics, of localisation and of edits on tiny networks."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.gradients import sweep
from rectify_widgets.engine.repair.solving import solve_edit
from tests.benchmarks import speed_tasks as tasks
from tests.benchmarks.speed_fakes import Ticking, options, tiny
from tests.benchmarks.speed_timing import Comparison, Cost, Span, forward_work

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "stage1.block0.conv2"


def parts(found: Iterable[Comparison | Cost]) -> tuple[list[Comparison], list[Cost]]:
    both = list(found)
    return (
        [one for one in both if isinstance(one, Comparison)],
        [one for one in both if isinstance(one, Cost)],
    )


def test_the_sweep_row_says_how_far_captum_is() -> None:
    (row,), (cost,) = parts(tasks.measure_sweep(options()))
    assert row.what == cost.task == "sweep of all 7 layers"
    assert row.faster
    assert "2 inputs, 2 steps; largest relative difference" in row.note
    assert cost.least == forward_work(tiny(), torch.rand(2, 3, 32, 32)) * 4
    # It does without the gradient of the image.
    assert cost.done is not None
    assert cost.least.multiply_adds * 0.9 < cost.done < cost.least.multiply_adds


def test_a_sweep_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*arguments: object, **given: object) -> object:
        found = sweep(*arguments, **given)  # type: ignore[arg-type]
        return {name: 1.01 * gradient for name, gradient in found.items()}

    monkeypatch.setattr(tasks, "sweep", off)
    with pytest.raises(RuntimeError, match="not what captum finds"):
        list(tasks.measure_sweep(options()))


def test_the_statistics_row() -> None:
    (row,), (cost, plain) = parts(tasks.measure_statistics(options()))
    assert row.what == "statistics of all 7 layers, 6 references"
    assert not row.faster
    assert plain.least == forward_work(tiny(), options().images(6))
    assert cost.done is not None
    assert plain.least.multiply_adds < cost.least.multiply_adds <= cost.done


@pytest.mark.parametrize("made_up", [True, False])
def test_the_depth_rows_show_growth(made_up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not made_up:
        rows, _ = parts(tasks.measure_depth(options()))
        assert all(row.ratio.seconds[0] > 0 for row in rows)
        assert len(rows) == 3
        return
    ticking = Ticking()
    localize = ticking.task("localize", 6.0, 8.0)
    monkeypatch.setattr(tasks, "localize", lambda *_, **__: localize())
    monkeypatch.setattr(Span, "now", ticking)
    model = tiny()
    forward = ticking.task("forward", *[2.0] * 4)
    model.register_forward_hook(lambda *_: forward())
    rows, _ = parts(tasks.measure_depth(options(build=lambda _: model)))
    assert [row.what for row in rows] == [
        "localisation, 18 layers deep",
        "localisation, 50 layers deep",
        "growth of localisation from 18 to 50 layers",
    ]
    assert [row.ratio.seconds for row in rows] == [[3.0], [4.0], [4.0 / 3.0]]
    assert [row.cells("depth")["met"] for row in rows] == ["", "", "no"]


def test_the_edit_rows_compare_residuals() -> None:
    rows, costs = parts(tasks.measure_edit(options()))
    kinds = ("patch keys", "channel keys", "the whole call")
    assert [row.what for row in rows] == [f"edit of {NAME}, {kind}" for kind in kinds]
    assert [cost.task for cost in costs] == [row.what for row in rows]
    assert [row.target for row in rows] == [200.0, 200.0, None]
    assert all(row.faster for row in rows)
    for row in rows[:2]:
        own, other = (float(word.rstrip(";")) for word in row.note.split()[1:4:2])
        assert 0 <= own <= other
    assert "products of keys once" in rows[1].note
    for cost in costs:
        assert cost.done is not None
        assert 0 < cost.least.multiply_adds < cost.done


def problem(model: nn.Module) -> tasks.EditProblem:
    known = {
        space: KeyStatistics.collect(model, options().images(4), [NAME], key_space=space)
        for space in ("patch", "channel")
    }
    return tasks.EditProblem.of(model, options().pair(), known, NAME)


@pytest.mark.parametrize("space", ["patch", "channel"])
def test_both_sides_solve_the_problem_of_the_engine(space: str) -> None:
    """The edit from keys is the engine's, and the optimiser goes where the closed form is."""
    model = tiny()
    known = KeyStatistics.collect(model, options().images(4), [NAME], key_space=space)
    edit = solve_edit(
        model, options().pair(), layer=NAME, statistics=known, direction="key",
        ridge=tasks.RIDGE, key_space=space,
    )  # fmt: skip
    posed = problem(model)
    left, right = solved = getattr(posed, f"solve_{space}")()
    torch.testing.assert_close(left * right, edit.delta, rtol=1e-3, atol=1e-5)
    best = posed.residual(solved)
    few, many = (posed.residual(posed.descend(solved, steps)) for steps in (2, 600))
    assert best <= many < few
    assert many == pytest.approx(best, rel=0.02)
    assert posed.residual(posed.descend(solved, 0)) == 1.0
