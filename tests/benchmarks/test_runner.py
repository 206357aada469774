"""Measuring many runs: resumed after a kill, the same on any number of processes, or refused.

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
from tests.benchmarks.plan import BEFORE, EVERY, Record, Run, plan
from tests.benchmarks.runner import measure_all
from tests.benchmarks.sources import Source

stripes = rebuilt.tiny

Measured = list[tuple[Run, Mapping[str, Any] | None]]


def runs(*methods: str, seeds: int = 3) -> list[Run]:
    return [Run(fakes.BLEND, one, EVERY, 1, seed) for one in methods for seed in range(seeds)]


@pytest.fixture
def fails() -> set[int]:
    """Seeds with which a method fails."""
    return set()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, fails: set[int]) -> Measured:
    """The runs that are measured, with a toy in place of the case, and figures made up."""
    seen: Measured = []

    def measure(case: Case, run: Run, options: Mapping[str, Any] | None) -> Record:
        seen.append((run, options))
        assert case.name == run.case
        record = {**run.fields(), "warnings": [], "took": 1.0}
        if run.seed in fails:
            return record | {"failure": "ValueError: NaN"}
        chosen = {"layer": f"chosen by seed {run.seed}"} if options is None else dict(options)
        figures = fakes.trojan_figures(attack=(run.seed + 1) / 10)
        return record | {"figures": figures, "options": chosen}

    toy = fakes.case()
    monkeypatch.setattr(Source, "load", lambda _, name: toy)
    monkeypatch.setattr(runner, "measure", measure)
    runner._loaded.cache_clear()
    return seen


def lines(folder: Path) -> list[str]:
    return (folder / records.NAME).read_text(encoding="utf-8").splitlines()


# -- what is measured, and what is not ------------------------------------------------------------


def test_peers_take_over_what_seed_0_chose(tmp_path: Path, measured: Measured) -> None:
    measure_all(runs("p_clarc", "a_clarc", "dynamic"), Source(), tmp_path)
    chosen = {"layer": "chosen by seed 0"}
    assert [run for run, _ in measured] == runs("p_clarc", "a_clarc", "dynamic")
    assert [options for _, options in measured] == [None, chosen, chosen] * 2 + [None] * 3
    assert [json.loads(line)["options"] for line in lines(tmp_path)[:6]] == [chosen] * 6


def test_what_is_done_is_not_done_again(tmp_path: Path, measured: Measured) -> None:
    measure_all(runs("p_clarc", seeds=2), Source(), tmp_path)
    before = lines(tmp_path)
    found = measure_all(runs("p_clarc", "dynamic"), Source(), tmp_path)
    assert lines(tmp_path)[:2] == before
    assert len(lines(tmp_path)) == len(set(lines(tmp_path))) == 6
    assert [Run.of(one) for one in found] == [Run.of(json.loads(one)) for one in lines(tmp_path)]
    assert measured[2][1] == {"layer": "chosen by seed 0"}
    measure_all([Run(fakes.BLEND, "dynamic", limit=9)], Source(), tmp_path)
    assert len(measured) == 7, "a limit is another run"


def test_a_kill_costs_the_run_under_way(tmp_path: Path, measured: Measured) -> None:
    measure_all(runs("dynamic"), Source(), tmp_path)
    whole = (tmp_path / records.NAME).read_bytes()
    for cut in (len(whole) - 1, len(whole) - 40, whole.rindex(b"\n", 0, -1) + 2):
        (tmp_path / records.NAME).write_bytes(whole[:cut])
        measured.clear()
        assert len(records.read(tmp_path)) == 2
        measure_all(runs("dynamic"), Source(), tmp_path)
        assert [run.seed for run, _ in measured] == [2]
        assert (tmp_path / records.NAME).read_bytes() == whole


def test_other_networks_are_measured_anew(
    tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_all(runs("dynamic"), Source(), tmp_path)
    other = fakes.changed(fakes.case())
    monkeypatch.setattr(Source, "load", lambda _, name: other)
    measure_all(runs("dynamic"), Source(), tmp_path)
    assert len(measured) == 6
    assert len({record["network"] for record in records.read(tmp_path)}) == 2


def test_methods_can_be_measured_again(tmp_path: Path, measured: Measured) -> None:
    measure_all(runs("dynamic", "static"), Source(), tmp_path)
    kept = [line for line in lines(tmp_path) if '"static"' in line]
    measured.clear()
    measure_all(runs("dynamic", "static"), Source(), tmp_path, again=["dynamic"])
    assert [run for run, _ in measured] == runs("dynamic")
    assert lines(tmp_path)[:3] == kept
    assert len(lines(tmp_path)) == 6


def test_what_could_not_be_tuned_fails_without_being_tried(
    tmp_path: Path, measured: Measured, fails: set[int]
) -> None:
    fails.add(0)
    for _ in range(2):
        found = measure_all(runs("rr_clarc"), Source(), tmp_path)
        assert len(measured) == 1
    assert [one["failure"] for one in found[1:]] == [
        "not tuned, since seed 0 failed: ValueError: NaN"
    ] * 2


def test_an_interruption_can_be_gone_on_with(
    tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = runner.measure

    def interrupted(case: Case, run: Run, options: Mapping[str, Any] | None) -> Record:
        if run.seed == 1:
            raise KeyboardInterrupt
        return measure(case, run, options)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure_all(runs("dynamic"), Source(), tmp_path)
    assert len(lines(tmp_path)) == 1
    measured.clear()
    measure_all(runs("dynamic"), Source(), tmp_path)
    assert [run.seed for run, _ in measured] == [1, 2]


# -- what is refused ------------------------------------------------------------------------------


def test_folders_that_cannot_be_gone_on_with(tmp_path: Path, measured: Measured) -> None:
    measure_all(runs("dynamic"), Source(), tmp_path)
    path = tmp_path / records.NAME
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"shipped"', '"built with seed 3"'), encoding="utf-8")
    with pytest.raises(ValueError, match="built with seed 3, got shipped"):
        measure_all(runs("dynamic"), Source(), tmp_path)
    damaged = "\n".join([text.splitlines()[0], "{", text.splitlines()[1], ""])
    path.write_text(damaged, encoding="utf-8")
    with pytest.raises(ValueError, match="no JSON in line 2"):
        measure_all(runs("dynamic"), Source(), tmp_path)
    assert path.read_text(encoding="utf-8") == damaged
    assert len(measured) == 3


def test_only_one_process_at_a_time_has_a_folder(tmp_path: Path, measured: Measured) -> None:
    pytest.importorskip("fcntl")
    with (
        records.opened(tmp_path),
        pytest.raises(BlockingIOError, match=r"another run has .* open"),
    ):
        measure_all(runs("dynamic"), Source(), tmp_path)
    measure_all(runs("dynamic"), Source(), tmp_path)
    assert len(measured) == 3


def test_too_few_pairs_are_reported_before_anything_is_measured(
    tmp_path: Path, measured: Measured
) -> None:
    with pytest.raises(ValueError, match="n: got 20, want at most 12"):
        measure_all([*runs("dynamic"), Run(fakes.BLEND, "dynamic", n=20)], Source(), tmp_path)
    assert not measured


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
    wanted = [*runs("dynamic"), Run("leakage", BEFORE, n=0)]

    def load(_: Source, name: str) -> Case:
        return fakes.case(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Source, "load", load)
        for _ in range(2):
            found = measure_all(wanted, source, tmp_path / "out")
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
    before, after = measure_all(wanted, source, tmp_path / "out")
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
        measure_all(runs("dynamic"), source, tmp_path / "out")
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


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at processes as Linux does")
@pytest.mark.slow
def test_killed_and_gone_on_with_on_several_processes(tmp_path: Path, repository: Path) -> None:
    """Killed after its first run and gone on with, it ends like a run in this process."""
    line = "spurious --cases spurious-severe --n 1 --seeds 1 --limit 40 --methods static --workers 2 --out"
    command = [sys.executable, "-m", "tests.benchmarks", *line.split(), str(tmp_path / "a")]
    path = tmp_path / "a" / records.NAME
    first = subprocess.Popen(command, cwd=repository, stderr=subprocess.DEVNULL)
    assert soon(lambda: path.exists() and path.stat().st_size > 0, 120)
    workers = children(first.pid)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert workers
    assert soon(lambda: not any(map(alive, workers)), 20)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"case": "spur')

    done = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True)
    assert re.search(r": [12] of 3 runs are measured", done.stdout)
    several = {Run.of(one): one for one in records.read(tmp_path / "a")}
    assert len(several) == 3
    here = {Run.of(one): one for one in measure_all([*several], Source(), tmp_path / "b")}
    varying = dict.fromkeys(("seconds", "memory", "took"))
    for run, record in several.items():
        assert record | varying == here[run] | varying
        assert "failure" not in here[run]
