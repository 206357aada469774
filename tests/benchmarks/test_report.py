"""Tables, report and command of the comparison, from made-up records."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
from pandas import DataFrame

from tests.benchmarks import __main__ as command
from tests.benchmarks import fakes, plots, records, report, runner
from tests.benchmarks.layers import RANKINGS
from tests.benchmarks.plan import (
    AFFECTED,
    GROUPS,
    LAYERS,
    METHODS,
    OTHERS,
    Record,
    Run,
)
from tests.benchmarks.plots import Axis
from tests.benchmarks.sources import Source
from tests.benchmarks.summary import Results, tables
from tests.benchmarks.tables import Table
from tests.benchmarks.targets import target_table

TROJAN = fakes.trojan_figures


def some() -> list[Record]:
    """Two methods and a failure on one Trojan, and pairs of two kinds on a spurious case."""
    first = Run("trojan", "p_clarc", "all", 1, 0)
    failed = Run("trojan", "rr_clarc", "all", 1, 0)
    return [
        fakes.before("trojan", TROJAN()),
        *fakes.many("trojan", "dynamic", [TROJAN(0.01), TROJAN(0.03)], tried=0),
        *fakes.many("trojan", "dynamic", [TROJAN(0.005)] * 2, n=20),
        fakes.record(first, figures=TROJAN(0.2), seconds=40.0, memory=9e6),
        fakes.record(Run("trojan", "p_clarc", "all", 1, 1), figures=TROJAN(0.4), seconds=3.0),
        fakes.record(failed, failure="RuntimeError: a | b\nc"),
        fakes.before("spurious-mild", fakes.spurious_figures(0.1)),
        *fakes.many("spurious-mild", "dynamic", [fakes.spurious_figures(-0.02)], pool=AFFECTED),
        *fakes.many("spurious-mild", "static", [fakes.spurious_figures(0.06)], pool=OTHERS),
        fakes.before("leakage", fakes.leakage_figures(4.0)),
        *fakes.many("leakage", "static", [fakes.leakage_figures(3.0)]),
        fakes.before("trojan-visibility", TROJAN() | {"attack_success_rate (0.3)": 0.9}
                     | {f"attack_success_rate ({one})": 1.0 for one in ("0.7", "1.0")}),
        *(
            fakes.record(
                Run("trojan", LAYERS, "all", 1, pair),
                layers={
                    name: {"regret": pair / 10, "spearman": 0.5, "layer": f"conv{pair // 2}"}
                    for name in RANKINGS
                },
            )
            for pair in range(3)
        ),
        fakes.record(Run("trojan", LAYERS, "all", 1, 3), failure="ValueError: no layer"),
    ]  # fmt: skip


def rows(made: list[Record], name: str) -> list[dict[str, str]]:
    (table,) = [one for one in tables(Results(made)) if one.name == name]
    return [{key: str(cell) for key, cell in row.items()} for row in table.rows]


# -- tables ---------------------------------------------------------------------------------------


def test_a_table_of_a_trojan() -> None:
    before, own, peer, failed, more = rows(some(), "trojan")
    assert (before["method"], before["OA"], before["ASR"]) == ("before", "90.00", "100.00")
    assert before["remark"] == "clean target rate 0.50"
    assert (own["method"], own["n"], own["seeds"]) == ("dynamic", "1", "2")
    assert own["ASR"] == "2.00 ± 1.41"
    assert own["OA_lost"] == "0.00 ± 0.00"
    assert (own["seconds"], own["tuning_s"], own["peak_MB"]) == ("2.0 ± 0.0", "–", "3 ± 0")
    assert own["remark"] == ""
    assert peer["ASR"] == "30.00 ± 14.14"
    assert (peer["seconds"], peer["tuning_s"], peer["peak_MB"]) == ("3.0", "40.0", "3")
    assert peer["remark"].startswith("dynamic wins: ASR lower by 28.00")
    assert failed["remark"] == "1 of 1 failed: RuntimeError: a / b c"
    assert failed["ASR"] == failed["seconds"] == "–"
    assert (more["method"], more["n"], more["ASR"]) == ("dynamic", "20", "0.50 ± 0.00")


def test_one_row_group_for_each_kind_of_pairs() -> None:
    found = rows(some(), "spurious")
    assert [(row["pairs"], row["method"]) for row in found] == [
        (AFFECTED, "before"),
        (AFFECTED, "dynamic"),
        (OTHERS, "before"),
        (OTHERS, "static"),
    ]
    assert found[1]["bias"] == "-2.00"
    assert found[3]["remark"] == ""  # there is no dynamic to compare with
    assert found[1]["recall_with"] == "48.00"


def test_the_committed_records_make_the_committed_tables(repository: Path) -> None:
    """Every figure, verdict and target of the README, from the runs that were measured."""
    folder = repository / "notebooks" / "results"
    results = Results(records.read(folder))
    made = [*tables(results), target_table(results)]
    assert {table.name for table in made} == {*GROUPS, LAYERS, "targets"}
    for table in made:
        assert table.markdown() == (folder / f"{table.name}.md").read_text(encoding="utf-8")


def test_the_table_of_layers() -> None:
    found = rows(some(), "layers")
    assert len(found) == 2 * len(RANKINGS)
    assert found[0]["case"] == "trojan"
    assert found[0]["regret"] == "10.00 ± 10.00"
    assert found[0]["within_5_points"] == "1 of 3"
    assert found[0]["chosen"] == "conv0 ×2, conv1 ×1"
    assert found[-1]["case"] == "all"
    (table,) = [one for one in tables(Results(some())) if one.name == "layers"]
    assert "Failed: trojan, pair 3: ValueError: no layer" in table.note


def test_the_newest_network_and_the_asked_for_limit_count() -> None:
    old = [fakes.before("trojan", TROJAN(0.5)), *fakes.many("trojan", "static", [TROJAN(0.4)])]
    new = [
        fakes.record(Run("trojan", "before", "all", 0, 0), figures=TROJAN(0.9), network="two"),
        fakes.record(Run("trojan", "static", "all", 1, 0), figures=TROJAN(0.3), network="two"),
        fakes.record(Run("trojan", "static", "all", 1, 0, 9), figures=TROJAN(0.1), network="two"),
    ]
    assert [row["ASR"] for row in rows([*old, *new], "trojan")] == ["90.00", "30.00"]


def test_notes_name_the_command() -> None:
    made = [one | {"source": "built with seed 3"} for one in some()]
    notes = {table.name: table.note for table in tables(Results(made))}
    start = "python -m tests.benchmarks"
    assert f"`{start} trojan --data DIR --network-seed 3 --seeds 2 --n 1 20`" in notes["trojan"]
    assert "from 20 pairs" in notes["trojan"]
    assert "from 20 pairs" not in notes["leakage"]
    assert f"`{start} layers --data DIR --network-seed 3 --pairs 4`" in notes["layers"]
    assert (
        f"`{start} leakage --seeds 1 --n 1`"
        in {table.name: table.note for table in tables(Results(some()))}["leakage"]
    )


# -- charts ---------------------------------------------------------------------------------------

ENDS = {"dynamic": [(1, 0.1, 0.5), (20, 0.0, 0.2)], "static": [(1, -0.2, 40.0), (20, 0.3, 30.0)]}


def points(level: float = 50.0) -> DataFrame:
    """Nine peers that end at one level, and our own methods."""
    peers = {f"peer {one}": [(1, one, level), (20, one, level)] for one in range(9)}
    rows = [(method, *one) for method, line in (ENDS | peers).items() for one in line]
    return DataFrame(rows, columns=["method", "n", "lost", "headline"])


def test_axes_are_spaced_by_the_square_root() -> None:
    axis = Axis(0.0, 100.0, 10.0, 110.0)
    assert [axis(one) for one in (0.0, 25.0, 100.0)] == pytest.approx([10.0, 60.0, 110.0])
    assert axis.ticks()[0] == 0.0
    assert axis.ticks()[-1] == 100.0
    both = Axis(-4.0, 4.0, 0.0, 100.0)
    assert both(0.0) == 50.0
    assert both(-1.0) == 25.0
    places = [axis(one) for one in axis.ticks()]
    assert min(b - a for a, b in pairwise(places)) >= plots.APART


@pytest.mark.parametrize("level", [0.1, 50.0, 99.0])
def test_lines_and_labels(level: float) -> None:
    """Names are apart from each other and in the picture, wherever most lines end."""
    series = points(level)
    tree = ET.fromstring(plots.against_n(series, "ASR", " %", 99.0))  # noqa: S314 - our own
    methods = set(series["method"])
    assert len(tree.findall(".//polyline")) == len(methods)
    assert "dynamic, n = 1: ASR 0.50 %.  dynamic, n = 20: ASR 0.20 %." in tree.attrib["aria-label"]
    texts = {
        text.text: float(text.attrib["y"]) for text in tree.findall("text") if "y" in text.attrib
    }
    heights = sorted(texts[name] for name in methods)
    assert min(b - a for a, b in pairwise(heights)) >= plots.LINE - 1e-6
    assert heights[0] > plots.TOP - 6
    assert heights[-1] < plots.HEIGHT - plots.BOTTOM + 16
    assert {"n = 1", "n = 20", "before"} <= set(texts)
    last = tree.findall(".//polyline")[-1]
    xs, ys = zip(
        *(map(float, one.split(",")) for one in last.attrib["points"].split()), strict=True
    )
    assert last.attrib["class"] != "rw-peer"
    assert xs[0] < xs[1]
    assert ys[0] != ys[1]


def test_marks_of_the_scatter() -> None:
    series = points()
    marks = {str(name): str(place) for place, name in enumerate(series["method"].unique())}
    text = plots.against_loss(series, marks, "ASR", " %", 99.0)
    tree = ET.fromstring(text)  # noqa: S314 - our own
    shown = [str(text.text) for text in tree.findall(".//g/text")]
    assert sorted(shown) == sorted(2 * list(marks.values()))
    circles = tree.findall(".//g/circle")
    assert all(0 < float(one.attrib["cx"]) < plots.WIDTH for one in circles)
    assert "static, n = 1: OA lost -0.20, ASR 40.00 %." in tree.attrib["aria-label"]


# -- the report -----------------------------------------------------------------------------------


def write(folder: Path, made: list[Record]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in made)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / records.NAME).write_text(text, encoding="utf-8")


def publish(folder: Path) -> list[Table]:
    return report.write(Results(records.read(folder)), folder)


def test_the_report_needs_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, some())
    made = publish(tmp_path)
    names = {table.name for table in made}
    assert names == {"trojan", "visibility", "spurious", "leakage", "layers", "targets"}
    for name in names:
        assert (tmp_path / f"{name}.md").read_text(encoding="utf-8").startswith(f"### {name}\n")
        with (tmp_path / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            (table,) = [one for one in made if one.name == name]
            assert len(list(csv.DictReader(file))) == len(table.rows)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == page.count('role="img" aria-label=') == 2 * 4
    assert "Against static and the peers, at the same n, over 1 rows: dynamic wins: 1." in page
    assert "✓ dynamic wins" in page
    assert "✗ no" in page
    # Long targets and long tallies wrap, so that the verdict beside them stays in view.
    assert re.search(r"td\.rw-wrap \{ white-space: normal;", page)
    assert page.count('<td class="rw-wrap">') == page.count('<td class="rw-word rw-wrap">') > 0


def test_the_same_records_in_any_order_make_the_same_report(tmp_path: Path) -> None:
    write(tmp_path / "a", some())
    write(tmp_path / "b", list(reversed(some())))
    for name in ("a", "b"):
        publish(tmp_path / name)
    for path in sorted((tmp_path / "a").iterdir()):
        if path.name != records.NAME:
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_what_records_say_is_escaped(tmp_path: Path) -> None:
    failed = Run("trojan", "rr_clarc", "all", 1, 1)
    write(tmp_path, [*some(), fakes.record(failed, failure="<script>alert(1)</script>")])
    publish(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_every_method_has_a_mark_of_its_own() -> None:
    assert len(set(report.MARKS.values())) == len(report.MARKS)
    assert set(report.MARKS) == set(METHODS)


# -- the command ----------------------------------------------------------------------------------


def test_report_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, some())
    command.main(["report", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "### trojan" in printed
    assert "### targets" in printed
    assert f"written to {tmp_path}" in printed
    assert len(records.read(tmp_path)) == len(some())


def test_groups_are_measured_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[list[Run], Source, Path, int]] = []

    def run(
        runs: list[Run], source: Source, folder: Path, *, workers: int, again: list[str]
    ) -> None:
        asked.append((runs, source, folder, workers))
        assert again == ["dynamic"]
        write(folder, some())

    monkeypatch.setattr(runner, "measure_all", run)
    line = "--n 20 1 --seeds 2 --methods dynamic static --workers 3 --again dynamic --out"
    command.main(["all", *line.split(), str(tmp_path)])
    runs, source, folder, workers = asked[0]
    assert {one.case for one in runs} >= {case for group in GROUPS.values() for case in group}
    assert {one.n for one in runs if one.method == "dynamic"} == {1, 20}
    assert {one.seed for one in runs if one.method == "dynamic"} == {0, 1}
    assert (source, folder, workers) == (Source(), tmp_path, 3)
    capsys.readouterr()
    command.main(["leakage", *line.split(), str(tmp_path)])
    printed = capsys.readouterr().out
    assert "### leakage" in printed
    assert "### trojan" not in printed
    assert {one.case for one in asked[1][0]} == {"leakage"}


def test_folders_of_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Source, Path]] = []

    def run(runs: object, source: Source, folder: Path, **_: object) -> None:
        asked.append((source, folder))
        write(folder, some())

    monkeypatch.setattr(runner, "measure_all", run)
    monkeypatch.setattr(command, "default_cache", lambda: tmp_path)
    for line in ("", "--cache c", "--data d", "--data d --out o", "--data d --out o --cache c"):
        words = line.replace("--out o", f"--out {tmp_path / 'o'}").split()
        command.main(["leakage", "--network-seed", "3", *words])
    other = tmp_path / "benchmarks" / "built-with-seed-3"
    assert asked == [
        *[(Source(), tmp_path / "benchmarks" / "shipped")] * 2,
        (Source(Path("d"), tmp_path / "networks", 3), other),
        (Source(Path("d"), tmp_path / "o" / "networks", 3), tmp_path / "o"),
        (Source(Path("d"), Path("c"), 3), tmp_path / "o"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("report", "holds no runs"),
        ("trojan --methods p-clarc", "did you mean 'p_clarc'"),
        ("trojan --seeds 0", "seeds: got 0"),
        ("leakage --cases leek", "did you mean 'leakage'"),
        ("leakage --data nowhere", "data: nowhere is no folder"),
        ("layers --pairs 0", "pairs: got 0"),
        ("trojan --limit 0", "limit: got 0"),
        ("trojan --workers 0", "workers: got 0"),
    ],
)
def test_what_cannot_be_asked_for(
    tmp_path: Path,
    line: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "measure", None)
    with pytest.raises(SystemExit) as stopped:
        command.main([*line.split(), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "measure_all", run)
    with pytest.raises(SystemExit) as stopped:
        command.main(["leakage", "--out", str(tmp_path)])
    assert stopped.value.code == 130
    assert "the same command goes on" in capsys.readouterr().out
