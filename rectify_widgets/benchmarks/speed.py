"""The speed table: ratios measured side by side, distance to the physical limit, profiles.

Imports this folder's speed modules and the tables.  Rows are kept in CSV files as soon as they are
measured, so that a run of some of them (``--only``) leaves the others of the same device as they were.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from rectify_widgets.benchmarks.speed_bench import Bench, Cost, Measured, Row
from rectify_widgets.benchmarks.speed_profile import PROFILES, profile
from rectify_widgets.benchmarks.speed_references import measure_references
from rectify_widgets.benchmarks.speed_rows import ROWS
from rectify_widgets.benchmarks.speed_timing import Clock, Machine, describe, number
from rectify_widgets.benchmarks.tables import Cell, Table
from rectify_widgets.benchmarks.training import default_cache
from rectify_widgets.engine.checks import check_choice
from rectify_widgets.engine.progress import Monitor

PROFILE, REFERENCES = "profile", "references"
NAMES = (*ROWS, REFERENCES, PROFILE)
GIGA = 1e9
BENCH_REPEATS = 3


def measure_speed(
    bench: Bench, only: Sequence[str] | None, out: Path | None, monitor: Monitor
) -> list[Table]:
    """Measure some or all rows; answers all tables, those rows included that ``out`` has already.

    Args:
        bench: what to measure with.
        only: some of `NAMES`, None for all.
        out: folder of the tables, if they are to be kept.
        monitor: told before each row.

    Raises:
        ValueError: an unknown name.
    """
    names = [check_choice("only", name, NAMES) for name in only or NAMES]
    where = describe(bench.clock.device)
    tables = {
        "speed": Table(
            "speed",
            f"{where}.  The median of the ratios of runs side by side and their range; ResNet-18 "
            "with CIFAR stem on 32×32 images where nothing else is said.",
        ),
        "limits": Table("speed limits", where + ".  " + LIMITS_NOTE),
        REFERENCES: Table(
            "speed references",
            f"{where}.  `KeyStatistics.collect` from a `DataLoader` with workers, ResNet-18 with "
            "CIFAR stem, a fresh process each.",
        ),
        PROFILE: Table(
            "speed profile",
            f"{where}.  Operators by their own time, torch.profiler; ResNet-18 with CIFAR stem.",
        ),
    }
    for number_, name in enumerate(names):
        monitor.report(number_ / len(names), name)
        if name == PROFILE:
            rows: list[dict[str, Cell]] = []
            for task in PROFILES:
                rows += profile(task, bench)
                replace(tables[PROFILE], out, rows)
        elif name == REFERENCES:
            replace(tables[REFERENCES], out, measure_references(bench))
        else:
            _add(tables, out, name, ROWS[name](bench), bench)
    return [table for table in tables.values() if table.rows]


LIMITS_NOTE = (
    "The least is what the task cannot do without: each layer's products once a pass, its input and "
    "output through memory once; done is what the operators did.  Seconds are those of a machine of "
    "one's own: on a CPU processor time over threads.  The machine's best, measured likewise in the "
    "same run, is that of a product of matrices and of a triad."
)


def bench(options: argparse.Namespace) -> Bench:
    """What the command line asks for; sets torch's threads."""
    torch.set_num_threads(options.threads)
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Bench(
        Clock(torch.device(name)),
        repeats=options.repeats or BENCH_REPEATS,
        threads=options.threads,
        cache=options.cache or default_cache(),
        whole=options.whole,
    )


def _add(
    tables: dict[str, Table], out: Path | None, name: str, measured: Measured, bench: Bench
) -> None:
    machine = Machine.measure(bench.clock)
    replace(tables["speed"], out, [speed_cells(name, row) for row in measured.rows])
    replace(tables["limits"], out, [limit_cells(name, cost, machine) for cost in measured.costs])


def speed_cells(name: str, row: Row) -> dict[str, Cell]:
    """A row as the table shows it."""
    target = "" if row.target is None else f"{'≥' if row.faster else '≤'} {row.target:g}×"
    return {
        "row": name,
        "what": row.what,
        "against": row.against,
        "ratio": f"{row.ratio} {'× faster' if row.faster else '× its time'}",
        "of processor time": f"{number(row.ratio.processor)} ×",
        "target": target,
        "met": row.met,
        "note": row.note,
    }


def limit_cells(name: str, cost: Cost, machine: Machine) -> dict[str, Cell]:
    """How far a task is from what the machine could do."""
    least = machine.least_seconds(cost.least.multiply_adds, cost.least.bytes)
    return {
        "row": name,
        "task": cost.task,
        "seconds": number(cost.seconds),
        "least G multiply-adds": number(cost.least.multiply_adds / GIGA),
        "done": number(cost.done / GIGA) if cost.done else "",
        "least GB": number(cost.least.bytes / GIGA),
        "machine G multiply-adds/s, GB/s": f"{number(machine.multiply_adds / GIGA)}, "
        f"{number(machine.bytes / GIGA)}",
        "least seconds": number(least),
        "share of the limit, %": number(100 * least / cost.seconds),
    }


def replace(table: Table, out: Path | None, rows: Sequence[dict[str, Cell]]) -> None:
    """Put rows into the table in place of those that it has under the same ``row``, and save it.

    A table without rows first takes those of the same name and note that ``out`` holds.
    """
    if out is not None and not table.rows:
        table.rows += kept(table, out)
    fresh = {row["row"] for row in rows}
    table.rows[:] = [row for row in table.rows if row["row"] not in fresh]
    table.rows += rows
    table.rows.sort(key=lambda row: NAMES.index(str(row["row"])))
    if out is not None:
        table.save(out)


def kept(table: Table, out: Path) -> list[dict[str, Cell]]:
    """The rows of a table of the same name and note in a folder."""
    stem = out / table.name.replace(" ", "-")
    text, data = stem.with_suffix(".md"), stem.with_suffix(".csv")
    if not text.exists() or table.note not in text.read_text(encoding="utf-8"):
        return []
    with data.open(newline="", encoding="utf-8") as file:
        return [dict(row) for row in csv.DictReader(file) if row["row"] in NAMES]
