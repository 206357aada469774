"""Every row of the speed benchmark on tiny networks, and the Trojan that some are measured on."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.benchmarks import (
    speed_bench,
    speed_edit,
    speed_limits,
    speed_networks,
    speed_profile,
    speed_repair,
    speed_rows,
    speed_trojan,
)
from rectify_widgets.benchmarks.speed_timing import Ratio
from rectify_widgets.cases.training import Figures
from rectify_widgets.engine.attribution import sweep
from rectify_widgets.engine.solving import solve_edit
from rectify_widgets.engine.statistics import KeyStatistics
from tests.engine import toy
from tests.speed_fakes import SMALL, Ticking, bench, tiny

NAME = "stage1.block0.conv2"

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
    monkeypatch.setattr(speed_bench, "trojan", lambda *_, **__: case)


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "convolutions", "weights"), [(18, 20, 11.17), (50, 53, 23.52), (101, 104, 42.51)]
)
def test_networks_are_those_of_the_literature(
    depth: int, convolutions: int, weights: float
) -> None:
    with torch.device("meta"):
        model = speed_networks.network(depth)
    assert sum(isinstance(part, nn.Conv2d) for part in model.modules()) == convolutions
    million = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert million == pytest.approx(weights, abs=0.01)


def test_bottlenecks_run_and_repeat() -> None:
    model = speed_networks.BottleneckNetwork((1, 2, 1, 1), (4, 4, 8, 8)).eval()
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, speed_networks.CLASSES)
    one, same, other = (speed_networks.network(18, seed) for seed in (1, 1, 2))
    first, again, another = (model.get_parameter("stem.weight") for model in (one, same, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, another)


# --- rows ----------------------------------------------------------------------------------------


def test_the_sweep_row_says_how_far_captum_is() -> None:
    measured = speed_rows.measure_sweep(bench())
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

    monkeypatch.setattr(speed_rows, "sweep", off)
    with pytest.raises(RuntimeError, match="not what captum finds"):
        speed_rows.measure_sweep(bench())


def test_the_statistics_row() -> None:
    measured = speed_rows.measure_statistics(bench())
    (row,), (cost, plain) = measured.rows, measured.costs
    assert row.what == "statistics of all 7 layers, 6 references"
    assert not row.faster
    assert plain.least == speed_limits.forward_work(tiny(), bench().images(6))
    assert plain.least.multiply_adds < cost.least.multiply_adds <= cost.done


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
    found = getattr(problem(), space)()
    torch.testing.assert_close(found.delta, edit.delta, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("space", ["patch", "channel"])
def test_the_optimiser_goes_where_the_closed_form_is(space: str) -> None:
    posed = problem()
    solved = getattr(posed, space)()
    best = posed.residual(solved)
    few, many = (posed.residual(posed.descend(solved, steps)) for steps in (2, 600))
    assert best <= many < few
    assert many == pytest.approx(best, rel=0.02)
    assert posed.residual(posed.descend(solved, 0)) == 1.0


def test_the_depth_rows_tell_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking()
    clock = ticking.clock()

    def localize(*_: object, **__: object) -> None:
        ticking.time += 8.0 if len(ticking.ran) else 6.0
        ticking.ran.append("localize")

    monkeypatch.setattr(speed_rows, "localize", localize)
    model = tiny()

    def forward(module: nn.Module, _: object, __: object) -> None:
        ticking.time += 2.0
        ticking.worked += 1.0

    model.register_forward_hook(forward)
    sizes = replace(SMALL, depths=(18, 50))
    rows = speed_rows.measure_depth(bench(clock=clock, sizes=sizes, build=lambda _: model)).rows
    assert [row.what for row in rows] == [
        "localisation, 18 layers deep",
        "localisation, 50 layers deep",
        "growth of localisation from 18 to 50 layers",
    ]
    assert [row.ratio.median for row in rows] == [3.0, 4.0, 4.0 / 3.0]
    assert [row.met for row in rows] == ["", "", "no"]


def test_localisation_runs_at_every_depth() -> None:
    rows = speed_rows.measure_depth(bench(sizes=replace(SMALL, depths=(18, 50)))).rows
    assert len(rows) == 3
    assert all(row.ratio.median > 0 for row in rows)


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
    measured = speed_repair.measure_rectify(bench(whole=whole))
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


def test_profiles_name_operators_and_add_up() -> None:
    for name in ("statistics", "sweep", "solving"):
        rows = speed_profile.profile(name, bench())
        assert len(rows) == speed_profile.TOP + 2
        assert {row["task"] for row in rows} == {name}
        assert sum(float(row["share, %"]) for row in rows[:-1]) == pytest.approx(100, abs=1)
        assert not any(str(row["operator"]).startswith("aten::") for row in rows)


# --- the Trojan ----------------------------------------------------------------------------------


def test_a_trojan_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[int] = []
    attack = [0.99]

    def fit(model: nn.Module, images: Tensor, labels: Tensor, *_: object, **__: object) -> None:
        trainings.append(len(images))
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype is torch.uint8
        with torch.no_grad():
            next(model.parameters()).fill_(0.5)

    monkeypatch.setattr(speed_trojan, "fit", fit)
    monkeypatch.setattr(speed_trojan, "network", tiny)
    monkeypatch.setattr(
        speed_trojan, "measure",
        lambda *_, **__: Figures(0.8, attack[0], 0.0, 0.0),
    )  # fmt: skip
    first = speed_trojan.trojan(tmp_path, quiet=True)
    again = speed_trojan.trojan(tmp_path, quiet=True)
    assert trainings == [speed_trojan.TRAINED]
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(first.images) == 10_000
    assert len(first.test[0]) == speed_trojan.TESTED
    changed = (first.pairs.corrupted != first.pairs.clean).any(dim=1)
    assert changed[:, 26:30, 26:30].flatten(1).any(dim=1).all()
    changed[:, 26:30, 26:30] = False
    assert not changed.any()
    attack[0] = 0.5
    with pytest.raises(RuntimeError, match=r"did not learn the backdoor: attack success 0\.50"):
        speed_trojan.trojan(tmp_path / "other", quiet=True)
    assert not (tmp_path / "other").exists()
