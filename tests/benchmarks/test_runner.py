"""Measuring many cells: resumed after a kill, the same on any number of processes, or refused.

Most of it with a made-up measurement in this process; one test starts real processes.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rectify_widgets import cases
from rectify_widgets.cases import build
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.definition import DEFINITIONS, CaseDefinition, read
from tests import test_cases_rebuilt as rebuilt
from tests.benchmarks import fakes, records, runner, sources
from tests.benchmarks.plan import BEFORE, EVERY, Cell, Record, plan
from tests.benchmarks.runner import Times, clock, run
from tests.benchmarks.sources import Source

stripes = rebuilt.tiny

Measured = list[tuple[Cell, Mapping[str, Any] | None]]


def cells(*methods: str, seeds: int = 3) -> list[Cell]:
    return [Cell(fakes.BLEND, one, EVERY, 1, seed) for one in methods for seed in range(seeds)]


def pretended(case: Case, cell: Cell, options: Mapping[str, Any] | None) -> Record:
    """What a cell would give; options are those that `measure` would have been handed."""
    found = fakes.trojan_figures(attack=(cell.seed + 1) / 10)
    chosen = {"layer": f"chosen by seed {cell.seed}"} if options is None else dict(options)
    assert case.name == cell.case
    return {**cell.fields(), "figures": found, "options": chosen, "warnings": [], "took": 1.0}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The cells that are measured, with a toy in place of the case."""
    found: Measured = []

    def measure(case: Case, cell: Cell, options: Mapping[str, Any] | None) -> Record:
        found.append((cell, options))
        return pretended(case, cell, options)

    toy = fakes.case()
    monkeypatch.setattr(Source, "load", lambda _, name: toy)
    monkeypatch.setattr(runner, "measure", measure)
    runner._loaded.cache_clear()
    return found


def lines(folder: Path) -> list[str]:
    return (folder / records.NAME).read_text(encoding="utf-8").splitlines()


# -- what is measured, and what is not ------------------------------------------------------------


def test_peers_take_over_what_seed_0_chose(tmp_path: Path, measured: Measured) -> None:
    run(list(reversed(cells("p_clarc"))), Source(), tmp_path, workers=0)
    chosen = {"layer": "chosen by seed 0"}
    assert [cell.seed for cell, _ in measured] == [0, 2, 1]
    assert [options for _, options in measured] == [None, chosen, chosen]
    assert [json.loads(line)["options"] for line in lines(tmp_path)] == [chosen] * 3


def test_our_own_method_has_nothing_to_choose(tmp_path: Path, measured: Measured) -> None:
    run(cells("dynamic"), Source(), tmp_path, workers=0)
    assert [options for _, options in measured] == [None] * 3


def test_what_is_done_is_not_done_again(tmp_path: Path, measured: Measured) -> None:
    run(cells("p_clarc", seeds=2), Source(), tmp_path, workers=0)
    before = lines(tmp_path)
    found = run(cells("p_clarc", "dynamic"), Source(), tmp_path, workers=0)
    assert lines(tmp_path)[:2] == before
    assert len(lines(tmp_path)) == len(set(lines(tmp_path))) == 6
    assert [Cell.of(one) for one in found] == [Cell.of(json.loads(one)) for one in lines(tmp_path)]
    assert measured[2][1] == {"layer": "chosen by seed 0"}


def test_a_kill_costs_the_cell_under_way(tmp_path: Path, measured: Measured) -> None:
    run(cells("dynamic"), Source(), tmp_path, workers=0)
    whole = (tmp_path / records.NAME).read_bytes()
    for cut in (len(whole) - 1, len(whole) - 40, whole.rindex(b"\n", 0, -1) + 2):
        (tmp_path / records.NAME).write_bytes(whole[:cut])
        measured.clear()
        assert len(records.read(tmp_path)) == 2
        run(cells("dynamic"), Source(), tmp_path, workers=0)
        assert [cell.seed for cell, _ in measured] == [2]
        assert (tmp_path / records.NAME).read_bytes() == whole


def test_other_networks_are_measured_anew(
    tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cells("dynamic"), Source(), tmp_path, workers=0)
    other = fakes.changed(fakes.case())
    monkeypatch.setattr(Source, "load", lambda _, name: other)
    run(cells("dynamic"), Source(), tmp_path, workers=0)
    assert len(measured) == 6
    assert len({record["network"] for record in records.read(tmp_path)}) == 2


def test_a_limit_is_another_cell(tmp_path: Path, measured: Measured) -> None:
    run([Cell(fakes.BLEND, "dynamic", EVERY, 1, 0)], Source(), tmp_path, workers=0)
    run([Cell(fakes.BLEND, "dynamic", EVERY, 1, 0, 9)], Source(), tmp_path, workers=0)
    assert len(measured) == 2


def test_methods_can_be_measured_again(tmp_path: Path, measured: Measured) -> None:
    run(cells("dynamic", "static"), Source(), tmp_path, workers=0)
    kept = [line for line in lines(tmp_path) if '"static"' in line]
    measured.clear()
    run(cells("dynamic", "static"), Source(), tmp_path, workers=0, again=["dynamic"])
    assert [cell for cell, _ in measured] == cells("dynamic")
    assert lines(tmp_path)[:3] == kept
    assert len(lines(tmp_path)) == 6


def test_what_could_not_be_tuned_fails_without_being_tried(
    tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(case: Case, cell: Cell, options: Mapping[str, Any] | None) -> Record:
        measured.append((cell, options))
        return {**cell.fields(), "failure": "ValueError: NaN", "warnings": [], "took": 1.0}

    monkeypatch.setattr(runner, "measure", fails)
    found = run(cells("rr_clarc"), Source(), tmp_path, workers=0)
    assert len(measured) == 1
    assert [one["failure"] for one in found[1:]] == [
        "not tuned, since seed 0 failed: ValueError: NaN"
    ] * 2
    run(cells("rr_clarc"), Source(), tmp_path, workers=0)
    assert len(measured) == 1


def test_an_interruption_can_be_gone_on_with(
    tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(case: Case, cell: Cell, options: Mapping[str, Any] | None) -> Record:
        if cell.seed == 1:
            raise KeyboardInterrupt
        return pretended(case, cell, options)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(cells("dynamic"), Source(), tmp_path, workers=0)
    assert len(lines(tmp_path)) == 1
    run(cells("dynamic"), Source(), tmp_path, workers=0)
    assert [cell.seed for cell, _ in measured] == [1, 2]


# -- what is refused ------------------------------------------------------------------------------


def test_networks_of_two_kinds_are_kept_apart(tmp_path: Path, measured: Measured) -> None:
    run(cells("dynamic"), Source(), tmp_path, workers=0)
    text = (tmp_path / records.NAME).read_text(encoding="utf-8")
    (tmp_path / records.NAME).write_text(text.replace('"shipped"', '"built with seed 3"'))
    with pytest.raises(ValueError, match="built with seed 3, got shipped"):
        run(cells("dynamic"), Source(), tmp_path, workers=0)
    assert len(measured) == 3


def test_a_damaged_line_is_named(tmp_path: Path, measured: Measured) -> None:
    run(cells("dynamic"), Source(), tmp_path, workers=0)
    damaged = [lines(tmp_path)[0], "{", lines(tmp_path)[1]]
    (tmp_path / records.NAME).write_text("\n".join(damaged) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no JSON in line 2"):
        run(cells("dynamic"), Source(), tmp_path, workers=0)
    assert len(lines(tmp_path)) == 3


def test_two_runs_in_one_folder(tmp_path: Path, measured: Measured) -> None:
    pytest.importorskip("fcntl")
    with (
        records.journal(tmp_path),
        pytest.raises(BlockingIOError, match=r"another run has .* open"),
    ):
        run(cells("dynamic"), Source(), tmp_path, workers=0)
    run(cells("dynamic"), Source(), tmp_path, workers=0)
    assert len(measured) == 3


def test_too_few_pairs_are_told_before_anything_is_measured(
    tmp_path: Path, measured: Measured
) -> None:
    wanted = [*cells("dynamic"), Cell(fakes.BLEND, "dynamic", EVERY, 20, 0)]
    with pytest.raises(ValueError, match="n: got 20, want at most 12"):
        run(wanted, Source(), tmp_path, workers=0)
    assert not measured


# -- estimates ------------------------------------------------------------------------------------


def test_the_estimate_goes_by_what_is_most_alike() -> None:
    def took(cell: Cell, seconds: float) -> Record:
        return fakes.record(cell) | {"took": seconds}

    first, second = cells("p_clarc", seeds=2)
    times = Times()
    assert times.left([first], 1) == 0.0
    times.add(took(first, 60.0))
    assert times.left([second], 1) == 60.0
    times.add(took(second, 4.0))
    assert times.left([second, second], 1) == 8.0
    assert times.left([first, second], 2) == 32.0
    elsewhere = Cell("leakage", "p_clarc", EVERY, 5, 1)
    assert times.left([elsewhere, Cell("leakage", "dynamic", EVERY, 5, 1)], 1) == 8.0
    times.add(took(elsewhere, 9.0))
    assert times.left([Cell(fakes.BLEND, "p_clarc", EVERY, 5, 1)], 1) == 4.0
    assert Times([took(first, 6.0)]).left([first], 1) == 6.0


def test_times_for_people() -> None:
    assert [clock(one) for one in (3.2, 89, 95, 3600, 7530)] == [
        "3 s",
        "89 s",
        "2 min",
        "60 min",
        "2 h 06 min",
    ]


# -- other networks -------------------------------------------------------------------------------


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that a pretended build makes, from empty data."""
    found: list[str] = []

    def make(one: CaseDefinition, data: Path, out: Path, **_: object) -> dict[str, float]:
        name = one.name
        found.append(f"{name} from {data.name}")
        assert not (tmp_path / "cache" / name).exists()
        out.mkdir(parents=True)
        shutil.copy(Path(cases.__file__).parent / "data" / f"{name}.safetensors", out)
        return {}

    monkeypatch.setattr(build, "build", make)
    monkeypatch.setattr(sources, "_contents", lambda data: f"of-{data.name}")
    for name in ("fashion-mnist", "mnist"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return found


def test_missing_networks_are_built_once(
    tmp_path: Path, built: list[str], measured: Measured
) -> None:
    source = Source(tmp_path / "data", tmp_path / "cache", seed=4)
    wanted = [*cells("dynamic"), Cell("leakage", BEFORE, EVERY, 0, 0)]

    def load(_: Source, name: str) -> Case:
        return fakes.case(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "load", load)
        for _ in range(2):
            found = run(wanted, source, tmp_path / "out", workers=0)
    assert sorted(built) == ["leakage from mnist", "trojan-blend from fashion-mnist"]
    assert {one["source"] for one in found} == {"built with seed 4"}
    assert len(measured) == 4
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert names == ["leakage-seed-4-of-mnist", "trojan-blend-seed-4-of-fashion-mnist"]


def test_networks_built_from_other_data(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really built, read again, and measured the same way."""
    monkeypatch.setitem(DEFINITIONS, "leakage", rebuilt.small("leakage"))
    source = Source(stripes, tmp_path / "cache", seed=5)
    runner._loaded.cache_clear()
    wanted = plan(["leakage"], seeds=1, counts=[1], methods=["static"])
    before, after = run(wanted, source, tmp_path / "out", workers=0)
    (folder,) = (tmp_path / "cache").iterdir()
    case = read(DEFINITIONS["leakage"], folder)
    assert case.record["seed"] == 5
    assert before["figures"] == case.figures()
    assert before["figures"] != cases.load("leakage").figures(limit=9)
    assert "failure" not in after
    assert after["edits"]
    assert {one["source"] for one in (before, after)} == {"built with seed 5"}
    assert {one["network"] for one in (before, after)} == {sources.fingerprint(case)}
    assert source.missing(["leakage"]) == []
    assert Source(stripes, tmp_path / "cache", seed=6).missing(["leakage"]) == ["leakage"]


def test_a_build_that_fails_leaves_nothing(
    tmp_path: Path, built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(one: CaseDefinition, data: Path, out: Path, **_: object) -> None:
        out.mkdir(parents=True)
        raise RuntimeError(f"pairs: too few in {data.name} for {one.name}")

    monkeypatch.setattr(build, "build", fails)
    source = Source(tmp_path / "data", tmp_path / "cache")
    with pytest.raises(RuntimeError, match="pairs: too few"):
        run(cells("dynamic"), source, tmp_path / "out", workers=0)
    assert not list((tmp_path / "cache").iterdir())
    assert not built


def test_data_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data: .* is no folder"):
        Source(tmp_path / "nowhere").check(["trojan"])
    one = Source(tmp_path)
    one.check(["trojan", "spurious-mild"])
    one.check(["leakage"])
    with pytest.raises(ValueError, match="want a folder with one folder of each name"):
        one.check(["trojan", "leakage"])


# -- real processes -------------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii").split()[2]
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in found.split()]


def soon(happens: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.1)
    return happens()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes as Linux does")
def test_killed_and_gone_on_with_on_several_processes(tmp_path: Path, repository: Path) -> None:
    """Killed after its first cell and gone on with on two, it ends like a run in this process."""
    command = [sys.executable, "-m", "tests.benchmarks", "spurious", "--n", "1"]
    command += [
        "--seeds",
        "1",
        "--limit",
        "40",
        "--methods",
        "static",
        "--out",
        str(tmp_path / "a"),
    ]
    path = tmp_path / "a" / records.NAME
    begun = subprocess.Popen(
        [*command, "--workers", "1"], cwd=repository, stderr=subprocess.DEVNULL
    )
    assert soon(lambda: path.exists() and path.stat().st_size > 0, 120)
    workers = children(begun.pid)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    assert workers
    assert soon(lambda: not any(map(alive, workers)), 20)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"case": "spur')

    done = subprocess.run(
        [*command, "--workers", "2"],
        cwd=repository,
        check=True,
        capture_output=True,
        text=True,
    )
    assert re.search(r": [1-5] of 6 cells are measured", done.stdout)
    several = {Cell.of(one): one for one in records.read(tmp_path / "a")}
    wanted = [cell for cell in several if cell.case == "spurious-severe"]
    assert (len(several), len(wanted)) == (6, 3)
    here = {Cell.of(one): one for one in run(wanted, Source(), tmp_path / "b", workers=0)}
    varying = {"seconds", "memory", "took"}
    for cell in wanted:
        one, two = (
            {k: v for k, v in of[cell].items() if k not in varying} for of in (several, here)
        )
        assert one == two
        assert "failure" not in one
