"""The speed benchmark: its tables and its options, from made-up rows."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks import __main__ as command
from tests.benchmarks import speed, speed_bench, speed_limits
from tests.benchmarks.speed_fakes import CPU, bench, spans
from tests.benchmarks.speed_timing import BestRates, Ratio
from tests.benchmarks.tables import Cell, Table

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


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
    limits = speed.limit_cells("x", cost, BestRates(1e9, 1e9))
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
    monkeypatch.setattr(BestRates, "measure", lambda *_, **__: BestRates(1.0, 1.0))


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
    assert (made.repeats, made.threads, made.whole_epoch, made.clock.device) == (5, 1, True, CPU)
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
    assert made.repeats == speed.REPEATS
    assert made.clock.device == CPU
