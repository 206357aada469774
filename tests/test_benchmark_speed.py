"""The speed benchmark: its arithmetic with made-up clocks, and every row on tiny networks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.benchmarks import __main__ as command
from rectify_widgets.benchmarks import (
    speed,
    speed_bench,
    speed_edit,
    speed_limits,
    speed_networks,
    speed_profile,
    speed_repair,
    speed_rows,
    speed_timing,
    speed_trojan,
)
from rectify_widgets.benchmarks.speed_timing import Clock, Growth, Machine, Ratio, Span
from rectify_widgets.benchmarks.tables import Table
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.cases.training import Figures
from rectify_widgets.engine.attribution import sweep
from rectify_widgets.engine.progress import Monitor
from tests.engine import toy

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


class Ticking:
    """A clock that a task moves on by what it is said to take."""

    def __init__(self) -> None:
        self.time, self.worked = 0.0, 0.0
        self.ran: list[str] = []

    def clock(self) -> Clock:
        return Clock(CPU, now=lambda: self.time, busy=lambda: self.worked)

    def task(self, name: str, *seconds: float) -> Callable[[], None]:
        taken: Iterator[float] = iter(seconds)

        def run() -> None:
            self.ran.append(name)
            one = next(taken)
            self.time += one
            self.worked += 3 * one

        return run


def spans(*seconds: float) -> tuple[Span, ...]:
    return tuple(Span(one, 10 * one) for one in seconds)


def tiny(depth: int = 18) -> nn.Module:
    """One block a stage, or more of them for deeper networks."""
    torch.manual_seed(0)
    blocks = {18: (1, 1), 50: (2, 2), 101: (3, 3)}[depth]
    return ResidualNetwork(
        channels=3, widths=(16, 16), blocks=blocks, mean=(0.3,) * 3, std=(0.3,) * 3
    ).eval()


SMALL = speed_bench.Sizes(
    swept=2, steps=2, references=6, edits=("stage1.block0.conv2",), optimiser_steps=20, repaired=64,
    images=300, batches=1, rounds=3, localized=8, streamed=2,
)  # fmt: skip


def bench(**changes: object) -> speed_bench.Bench:
    made = speed_bench.Bench(Clock(CPU), repeats=1, threads=1, sizes=SMALL, build=tiny, quiet=True)
    return replace(made, **changes)  # type: ignore[arg-type]


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


# --- timing --------------------------------------------------------------------------------------


def test_tasks_take_turns_after_one_untimed_run_of_each() -> None:
    ticking = Ticking()
    ours, theirs = ticking.clock().turns(
        [ticking.task("a", 9.0, 1.0, 2.0), ticking.task("b", 9.0, 4.0, 6.0)], 2
    )
    assert ticking.ran == ["a", "b"] * 3
    assert ours == (Span(1.0, 3.0), Span(2.0, 6.0))
    assert theirs == (Span(4.0, 12.0), Span(6.0, 18.0))


def test_cold_tasks_are_timed_at_once() -> None:
    ticking = Ticking()
    ((span,),) = ticking.clock().turns([ticking.task("a", 5.0)], 1, warm=False)
    assert span.seconds == 5.0


def test_a_ratio_is_the_median_of_the_ratios_of_neighbours() -> None:
    ratio = Ratio(spans(2.0, 9.0, 8.0), spans(1.0, 3.0, 1.0))
    assert ratio.each == [2.0, 3.0, 8.0]
    assert ratio.median == 3.0  # that of the medians would be 8
    assert str(ratio) == "3 (2 to 8)"
    assert str(Ratio(spans(1.0), spans(3.0))) == "0.333"


def test_a_ratio_can_be_reckoned_up_and_knows_processor_time() -> None:
    above, below = (Span(2.0, 8.0),), (Span(1.0, 2.0),)
    assert Ratio(above, below, 0.25).median == 0.5
    assert Ratio(above, below, 0.25).processor == 1.0


def test_growth_divides_two_ratios() -> None:
    growth = Growth(
        Ratio((Span(6.0, 6.0),), (Span(1.0, 1.0),)), Ratio((Span(4.0, 2.0),), (Span(1.0, 1.0),))
    )
    assert (growth.median, growth.processor, str(growth)) == (1.5, 3.0, "1.5")


def test_digits() -> None:
    assert [speed_timing.number(x) for x in (1234.5, 99.44, 0.01234, 0.0)] == [
        "1234", "99.4", "0.0123", "0",
    ]  # fmt: skip


def test_the_machine_is_as_fast_as_its_best_run() -> None:
    time = iter(range(1000))  # one second between two looks
    clock = Clock(CPU, now=lambda: float(next(time)), busy=lambda: 0.25 * next(time))
    machine = Machine.measure(clock, side=10, length=100)
    # Between the two looks at the processor's time lie two at the other one: 3 · 0.25 seconds.
    assert machine == Machine(1000 / 0.75, 3 * 4 * 100 / 0.75)
    assert machine.least_seconds(2 * machine.multiply_adds, machine.bytes) == 2.0
    assert machine.least_seconds(machine.multiply_adds, 3 * machine.bytes) == 3.0


def test_processor_time_is_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert Clock(CPU).cost((Span(9.0, 4.0), Span(9.0, 8.0), Span(9.0, 12.0))) == 2.0


# --- limits --------------------------------------------------------------------------------------


def test_work_of_a_forward_pass() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(80, 2))
    work = speed_limits.forward_work(model, torch.rand(7, 3, 4, 4))
    convolution, linear = 16 * 5 * 27, 80 * 2
    assert work.multiply_adds == 7 * (convolution + linear)
    values = (48 + 80) + (80 + 2)
    assert work.bytes == 4 * (7 * values + 135 + 160)  # the weights once a batch
    several = speed_limits.forward_work(model, torch.rand(7, 3, 4, 4), batch_size=3)
    assert several.bytes == 4 * (7 * values + 3 * (135 + 160))
    assert several.multiply_adds == work.multiply_adds


def test_work_of_second_moments_and_factors() -> None:
    model, images = tiny(), torch.rand(2, 3, 8, 8)
    names = ["stem", "stage2.block0.conv1", "stage2.block0.conv2", "classifier"]
    known = rw.KeyStatistics.collect(model, images, names, positions=5)
    work = speed_limits.moment_work(model, known)
    # Every pair of channels once for each of 13 displacements of a 3×3 kernel, the first being none.
    stem, second = 12 * 3**2 + 6, 12 * 16**2 + 136
    strided, linear = 144 * 145 / 2, 16 * 17 / 2
    assert work.multiply_adds == 10 * (stem + second + strided) + 2 * linear
    assert work.bytes == 4 * (27**2 + 2 * 144**2 + 16**2)
    pixels = rw.KeyStatistics.collect(model, images, ["stem"], positions=5, key_space="channel")
    assert speed_limits.moment_work(model, pixels).multiply_adds == 10 * 6
    assert speed_limits.factor_work([6]) == speed_limits.Work(36.0, 144.0)


def test_what_is_done_is_counted() -> None:
    a, b = torch.eye(6), torch.rand(6, 2)
    assert speed_limits.executed(lambda: a @ b) == 6 * 6 * 2
    assert speed_limits.executed(lambda: torch.linalg.cholesky_ex(a)) == 6**3 / 6
    assert speed_limits.executed(lambda: torch.cholesky_solve(b, a)) == 2 * 6 * 6 * 2
    triangular = lambda: torch.linalg.solve_triangular(a, b, upper=False)  # noqa: E731
    assert speed_limits.executed(triangular) == 6 * 6 * 2


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
    assert cost.least == one * 6
    # It does without the gradient of the image.
    assert cost.least.multiply_adds * 0.9 < cost.done < cost.least.multiply_adds


def test_a_sweep_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*arguments: object, **options: object) -> object:
        found = sweep(*arguments, **options)  # type: ignore[arg-type]
        wrong = {name: 1.01 * gradient for name, gradient in found.gradients.items()}
        return replace(found, gradients=wrong)

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
    assert [row.what for row in measured.rows] == ["edit of stage1.block0.conv2"] * 2
    assert [row.target for row in measured.rows] == [200.0, None]
    own, other = (float(word) for word in measured.rows[0].note.split()[1:4:2])
    assert 0 <= own <= other < 1.0


def test_the_optimiser_goes_where_the_closed_form_is() -> None:
    made = bench()
    model, pair, name = tiny(), made.pair(), "stage1.block0.conv2"
    known = rw.KeyStatistics.collect(model, made.images(4), [name], key_space="channel")
    edit = rw.solve_edit(
        model, pair, layer=name, statistics=known, direction="key", ridge=0.01,
        key_space="channel",
    )  # fmt: skip
    problem = speed_edit.layer_problem(model, pair, edit)
    best = problem.residual(edit.delta)
    few, many = (problem.residual(problem.descend(steps)) for steps in (2, 600))
    assert best <= many < few
    assert many == pytest.approx(best, rel=0.02)
    assert problem.residual(torch.zeros_like(problem.weight)) == 1.0
    found = problem.descend(5).flatten(2).permute(2, 0, 1)
    assert torch.linalg.matrix_rank(found).max() == 1


def test_the_depth_rows_tell_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking()
    clock = ticking.clock()

    def localize(*_: object, **__: object) -> None:
        ticking.time += 8.0 if len(ticking.ran) else 6.0
        ticking.ran.append("localize")

    monkeypatch.setattr(rw, "localize", localize)
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


# --- the table -----------------------------------------------------------------------------------


def row(target: float | None = 3.0, *, faster: bool = True, ratio: float = 4.0) -> speed_bench.Row:
    return speed_bench.Row(
        "a", "b", Ratio(spans(ratio), spans(1.0)), target, faster=faster, note="n"
    )


def test_targets_are_bounds_from_below_or_above() -> None:
    assert row().met == "yes"
    assert row(5.0).met == "no"
    assert row(5.0, faster=False).met == "yes"
    assert row(faster=False).met == "no"
    assert row(None).met == ""
    assert row(4.0).met == row(4.0, faster=False).met == "yes"


def test_cells() -> None:
    assert speed.speed_cells("x", row()) == {
        "row": "x", "what": "a", "against": "b", "ratio": "4 × faster", "of processor time": "4 ×",
        "target": "≥ 3×", "met": "yes", "note": "n",
    }  # fmt: skip
    cells = speed.speed_cells("x", row(None, faster=False))
    assert (cells["ratio"], cells["target"]) == ("4 × its time", "")
    cost = speed_bench.Cost("t", 8.0, speed_limits.Work(2e9, 1e9), 4e9)
    limits = speed.limit_cells("x", cost, Machine(1e9, 1e9))
    assert limits["least seconds"] == "2"
    assert limits["share of the limit, %"] == "25"
    assert limits["done"] == "4"


def measured(what: str, ratio: float) -> Callable[[speed_bench.Bench], speed_bench.Measured]:
    one = replace(row(ratio=ratio), what=what)
    cost = speed_bench.Cost(what, 1.0, speed_limits.Work(1.0, 1.0), 0.0)
    return lambda _: speed_bench.Measured([one], [cost])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up rows, and no measurement of the machine."""
    monkeypatch.setattr(speed, "ROWS", {"sweep": measured("s", 1.0), "edit": measured("e", 2.0)})
    monkeypatch.setattr(Machine, "measure", lambda *_, **__: Machine(1.0, 1.0))


@pytest.mark.usefixtures("quick")
def test_rows_are_measured_by_name_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*only: str) -> list[str]:
        tables = speed.measure_speed(bench(), only, tmp_path, Monitor())
        assert [table.name for table in tables] == ["speed", "speed limits"]
        return [f"{one['what']} {one['ratio']}" for one in tables[0].rows]

    assert run("edit") == ["e 2 × faster"]
    assert run("sweep") == ["s 1 × faster", "e 2 × faster"]
    rows = {"sweep": measured("s", 1.0), "edit": measured("e", 7.0)}
    monkeypatch.setattr(speed, "ROWS", rows)
    assert run("edit") == ["s 1 × faster", "e 7 × faster"]
    assert "7 × faster" in (tmp_path / "speed.md").read_text(encoding="utf-8")
    monkeypatch.setattr(speed, "describe", lambda _: "another machine")
    assert run("sweep") == ["s 1 × faster"]


@pytest.mark.usefixtures("quick")
def test_nothing_is_written_without_a_folder(tmp_path: Path) -> None:
    tables = speed.measure_speed(bench(), ["sweep"], None, Monitor())
    assert [len(table.rows) for table in tables] == [1, 1]
    assert not list(tmp_path.iterdir())


def test_an_unknown_row_is_named() -> None:
    with pytest.raises(ValueError, match=r"only: got 'swep'.*sweep"):
        speed.measure_speed(bench(), ["swep"], None, Monitor())


def test_options_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[speed_bench.Bench, object, object]] = []

    def fake(made: speed_bench.Bench, only: object, out: object, _: Monitor) -> list[Table]:
        seen.append((made, only, out))
        assert torch.get_num_threads() == 1
        return [Table("one", "", [{"a": 1}]), Table("two", "", [{"a": 1}])]

    monkeypatch.setattr(command, "measure_speed", fake)
    command.main(
        ["speed", "--only", "sweep", "edit", "--repeats", "5", "--threads", "1", "--whole",
         "--device", "cpu", "--cache", str(tmp_path / "c"), "--out", str(tmp_path)]
    )  # fmt: skip
    ((made, only, out),) = seen
    assert (made.repeats, made.threads, made.whole, made.clock.device) == (5, 1, True, CPU)
    assert (only, out, made.cache) == (["sweep", "edit"], tmp_path, tmp_path / "c")
    assert {path.name for path in tmp_path.iterdir()} == {"one.md", "one.csv", "two.md", "two.csv"}


def test_one_cell_of_the_networks_may_be_named_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[object] = []

    def fake(*_: object, only: str | None, **__: object) -> Table:
        named.append(only)
        return Table("x", "")

    monkeypatch.setattr(command, "measure_networks", fake)
    for words in (["--only", "vit blend"], ["--only", "vit", "blend"], []):
        command.main(["networks", "--data", ".", *words])
    assert named == ["vit blend", "vit blend", None]


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
