"""The speed benchmark: its tables, its command, rectification, rounds, profiles and references."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks import __main__ as command
from tests.benchmarks import fakes, speed, speed_tasks
from tests.benchmarks import speed_timing as timing
from tests.benchmarks.memory import Job, Spent
from tests.benchmarks.speed_fakes import Ticking, options, spans
from tests.benchmarks.speed_tasks import Measurements, SpeedOptions
from tests.benchmarks.speed_timing import Comparison, Cost, Ratio, Span, Work
from tests.benchmarks.tables import Cell, Table

pytestmark = pytest.mark.usefixtures("one_thread")


def measured(what: str, ratio: float) -> Callable[[SpeedOptions], Measurements]:
    def found(_: SpeedOptions) -> Measurements:
        yield Comparison(what, "b", Ratio.of(spans(ratio), spans(1.0)), 3.0, faster=True)
        yield Cost(what, 1.0, Work(1.0, 1.0))

    return found


def run(*arguments: str) -> list[Table]:
    """The tables that the command would print."""
    parsed = command._parser().parse_args(["speed", "--threads", "1", *arguments])
    return speed.measure_speed(parsed, Monitor())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up rows, and no measurement of the machine."""
    monkeypatch.setattr(speed, "TASKS", {"sweep": measured("s", 1.0), "edit": measured("e", 2.0)})
    monkeypatch.setattr(timing, "best_rates", lambda _: Work(1.0, 1.0))


@pytest.mark.usefixtures("quick")
def test_rows_are_measured_by_name_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ratios(only: str) -> list[str]:
        tables = run("--only", only, "--out", str(tmp_path))
        assert [table.name for table in tables] == ["speed", "speed limits"]
        return [f"{one['what']} {one['ratio']}" for one in tables[0].rows]

    assert ratios("edit") == ["e 2 × faster"]
    assert ratios("sweep") == ["s 1 × faster", "e 2 × faster"]
    monkeypatch.setattr(speed, "TASKS", {"edit": measured("e", 7.0)})
    assert ratios("edit") == ["s 1 × faster", "e 7 × faster"]
    assert "7 × faster" in (tmp_path / "speed.md").read_text(encoding="utf-8")
    monkeypatch.setattr(timing, "describe", lambda _: "another machine")
    assert ratios("edit") == ["e 7 × faster"]


@pytest.mark.usefixtures("quick")
def test_nothing_is_written_without_a_folder(tmp_path: Path) -> None:
    assert [len(table.rows) for table in run("--only", "sweep")] == [1, 1]
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
    one, other = run("--only", "profile", "references", "--out", str(tmp_path))
    assert (one.name, other.name) == ("speed references", "speed profile")
    assert [row["task"] for row in other.rows] == ["early", "late"]


def test_an_unknown_row_is_named() -> None:
    with pytest.raises(ValueError, match=r"only: got 'swep'.*sweep"):
        run("--only", "swep")


@pytest.mark.usefixtures("quick")
def test_options_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[SpeedOptions] = []

    def found(given: SpeedOptions) -> Measurements:
        seen.append(given)
        assert torch.get_num_threads() == given.threads
        return measured("s", 1.0)(given)

    monkeypatch.setattr(speed, "TASKS", {"sweep": found})
    command.main(
        ["speed", "--only", "sweep", "--repeats", "5", "--threads", "1", "--whole",
         "--device", "cpu", "--cache", str(tmp_path / "c"), "--out", str(tmp_path)]
    )  # fmt: skip
    run("--only", "sweep")
    wanted = SpeedOptions(
        torch.device("cpu"), repeats=5, threads=1, whole_epoch=True, cache=tmp_path / "c"
    )
    assert seen[0] == wanted
    assert seen[1].repeats == speed.REPEATS
    names = {"speed.md", "speed.csv", "speed-limits.md", "speed-limits.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_growth_with_references() -> None:
    jobs: list[Job] = []

    def run(job: Job) -> Spent:
        jobs.append(job)
        return Spent(Span(9.0, 0.5 * job.references), 10**8 + job.references * 10**5, 1)

    rows = speed.measure_references(options(workers=3, streamed=10), run)
    assert [job.references for job in jobs] == [10, 40, 160]
    assert {(job.workers, job.threads, job.call) for job in jobs} == {(3, 1, "collect")}
    assert [row["processor, times"] for row in rows] == ["1×", "4×", "16×"]
    assert [row["peak MB"] for row in rows] == ["101", "104", "116"]
    assert [row["peak, times"] for row in rows] == ["1×", "1.03×", "1.15×"]
    assert {row["processor ms a reference"] for row in rows} == {"500"}
    assert {row["seconds"] for row in rows} == {"9"}


@pytest.mark.parametrize("name", ["statistics", "sweep", "solving"])
def test_profiles_name_operators_and_add_up(name: str) -> None:
    rows = speed.profile(name, options())
    assert len(rows) == speed.SHOWN + 2
    assert {row["task"] for row in rows} == {name}
    assert sum(float(row["share, %"]) for row in rows[:-1]) == pytest.approx(100, abs=1)
    assert not any(str(row["operator"]).startswith("aten::") for row in rows)


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy case in place of the Trojaned ResNet-18."""
    case = fakes.case()
    monkeypatch.setattr(speed_tasks, "speed_trojan", lambda *_, **__: case)
    images, labels = case.clean
    monkeypatch.setattr(speed, "speed_images", lambda: ((255 * images).byte(), labels))


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("whole", [True, False])
def test_the_rectification_row_estimates_the_epoch(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned: list[int] = []
    ticking = Ticking()
    rectify = speed.rectify

    def fit(model: nn.Module, images: Tensor, *_: object, **__: object) -> None:
        tuned.append(len(images))
        with torch.no_grad():  # it may do with its copy what it likes
            next(model.parameters()).zero_()
        ticking.time += 4.0
        ticking.worked += 8.0

    def timed(*arguments: Any, **given: Any) -> object:
        ticking.time += 1.0
        ticking.worked += 1.0
        return rectify(*arguments, **given, max_rounds=1)

    monkeypatch.setattr(speed, "fit", fit)
    monkeypatch.setattr(speed, "rectify", timed)
    monkeypatch.setattr(Span, "now", ticking)
    row, cost = speed.measure_rectify(options(whole_epoch=whole))
    assert isinstance(row, Comparison)
    assert isinstance(cost, Cost)
    assert tuned == [300 if whole else 128]
    scale = 1.0 if whole else 128 / 300
    assert row.ratio == Ratio([0.25 * scale], [0.125 * scale])
    assert ("estimated from 128" in row.against) is not whole
    share = r"\d+\.\d to \d+\.\d %"
    wanted = rf"ASR {share}, OA {share}, \d edits in \d+ trials; statistics"
    assert re.match(wanted, row.note)
    assert cost.least.multiply_adds > 0


@pytest.mark.usefixtures("toys")
def test_the_rounds_row_takes_the_first_round_as_its_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "rectify", partial(speed.rectify, refine_steps=0))
    (row,) = speed.measure_rounds(options())
    assert isinstance(row, Comparison)
    assert 1 <= len(row.ratio.seconds) <= 2
    assert row.note.startswith("pair 0: ")
    assert ", edited " in row.note


def test_rounds_are_known_by_what_the_loop_says(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking()
    monkeypatch.setattr(Span, "now", ticking)
    times = speed.RoundTimes()
    for message, seconds in (
        ("looking", 7.0), ("collecting keys", 1.0), ("collecting keys", 2.0),
        ("round 1: trying stem", 3.0), ("round 1: done", 4.0), ("collecting keys", 0.5),
        ("round 2: done", 0.0),
    ):  # fmt: skip
        times(0.0, message)
        ticking.time += seconds
    assert [span.seconds for span in times.spans] == [6.0, 4.5]
