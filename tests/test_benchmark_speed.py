"""The speed benchmark: its arithmetic with made-up clocks, its tables and its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from rectify_widgets.benchmarks import __main__ as command
from rectify_widgets.benchmarks import speed, speed_bench, speed_limits, speed_timing
from rectify_widgets.benchmarks.speed_timing import Clock, Growth, Machine, Ratio, Span
from rectify_widgets.benchmarks.tables import Cell, Table
from rectify_widgets.engine.progress import Monitor
from rectify_widgets.engine.statistics import KeyStatistics
from tests.speed_fakes import CPU, Ticking, bench, spans, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


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


def test_a_disturbed_run_does_not_slow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"product": (Span(0.0, 8.0), Span(0.0, 2.0)), "triad": (Span(0.0, 4.0), Span(0.0, 5.0))}
    monkeypatch.setattr(Clock, "turns", lambda *_, **__: list(runs.values()))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert Machine.measure(Clock(CPU), side=10, length=100) == Machine(1000 / 2.0, 1200 / 4.0)


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
    known = KeyStatistics.collect(model, images, names, positions=5)
    work = speed_limits.moment_work(model, known)
    # Every pair of channels once for each of 13 displacements of a 3×3 kernel, the first being none.
    stem, second = 12 * 3**2 + 6, 12 * 16**2 + 136
    strided, linear = 144 * 145 / 2, 16 * 17 / 2
    assert work.multiply_adds == 10 * (stem + second + strided) + 2 * linear
    assert work.bytes == 4 * (27**2 + 2 * 144**2 + 16**2)
    pixels = KeyStatistics.collect(model, images, ["stem"], positions=5, key_space="channel")
    assert speed_limits.moment_work(model, pixels).multiply_adds == 10 * 6
    assert speed_limits.factor_work([6]) == speed_limits.Work(36.0, 144.0)


def test_what_is_done_is_counted() -> None:
    a, b = torch.eye(6), torch.rand(6, 2)
    assert speed_limits.executed(lambda: a @ b) == 6 * 6 * 2
    assert speed_limits.executed(lambda: torch.zeros(6, 2).addmm_(a, b)) == 6 * 6 * 2
    many = torch.zeros(3, 6, 2).baddbmm_
    assert speed_limits.executed(lambda: many(a.expand(3, 6, 6), b.expand(3, 6, 2))) == 3 * 72
    assert speed_limits.executed(lambda: torch.linalg.cholesky_ex(a)) == 6**3 / 6
    assert speed_limits.executed(lambda: torch.cholesky_solve(b, a)) == 2 * 6 * 6 * 2
    triangular = lambda: torch.linalg.solve_triangular(a, b, upper=False)  # noqa: E731
    assert speed_limits.executed(triangular) == 6 * 6 * 2


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


def test_profiles_and_references_have_tables_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def profile(task: str, _: object) -> list[dict[str, Cell]]:
        if task == "late" and not (tmp_path / "speed-profile.md").exists():
            pytest.fail("what is profiled already is not kept")
        return [{"row": "profile", "task": task}]

    monkeypatch.setattr(speed, "PROFILES", {"early": None, "late": None})
    monkeypatch.setattr(speed, "profile", profile)
    monkeypatch.setattr(speed, "measure_references", lambda _: [{"row": "references", "n": 1}])
    one, other = speed.measure_speed(bench(), ["profile", "references"], tmp_path, Monitor())
    assert (one.name, other.name) == ("speed references", "speed profile")
    assert [row["task"] for row in other.rows] == ["early", "late"]


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


def test_a_bench_asks_for_its_device() -> None:
    options = argparse.Namespace(threads=1, device="cpu", repeats=None, cache=None, whole=False)
    made = speed.bench(options)
    assert made.repeats == speed.BENCH_REPEATS
    assert made.clock.device == CPU
