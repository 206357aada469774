"""The speed table: ratios measured side by side, distance to the physical limit, profiles.

Imports this folder's speed modules and the tables.  Rows are kept in CSV files as soon as they are
measured, so that a run of some of them (``--only``) leaves the others of the same device as they were.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks.speed_bench import Bench, Cost, Measured, Row
from tests.benchmarks.speed_edit import measure_edit
from tests.benchmarks.speed_localize import (
    measure_depth,
    measure_statistics,
    measure_sweep,
)
from tests.benchmarks.speed_profile import PROFILES, profile
from tests.benchmarks.speed_references import measure_references
from tests.benchmarks.speed_repair import measure_rectify, measure_rounds
from tests.benchmarks.speed_tables import put_rows
from tests.benchmarks.speed_timing import BestRates, Clock, describe, three_digits
from tests.benchmarks.tables import Cell, Table
from tests.benchmarks.training import default_cache

PROFILE, REFERENCES = "profile", "references"
ROWS: dict[str, Callable[[Bench], Measured]] = {
    "sweep": measure_sweep,
    "statistics": measure_statistics,
    "edit": measure_edit,
    "depth": measure_depth,
    "rectify": measure_rectify,
    "rounds": measure_rounds,
}
NAMES = (*ROWS, REFERENCES, PROFILE)
GIGA = 1e9
REPEATS = 3
LIMITS_NOTE = (
    "The least is what the task cannot do without: each layer's products once a pass, its input and "
    "output through memory once; done is what the operators did.  Seconds are those of a machine of "
    "one's own: on a CPU processor time over threads.  The machine's best, measured likewise in the "
    "same run, is that of a product of matrices and of a triad."
)


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
    for place, name in enumerate(names):
        monitor.report(place / len(names), name)
        if name == PROFILE:
            rows: list[dict[str, Cell]] = []
            for task in PROFILES:
                rows += profile(task, bench)
                _put(tables[PROFILE], out, rows)
        elif name == REFERENCES:
            _put(tables[REFERENCES], out, measure_references(bench))
        else:
            _add(tables, out, name, ROWS[name](bench), bench)
    return [table for table in tables.values() if table.rows]


def bench(options: argparse.Namespace) -> Bench:
    """What the command line asks for; sets torch's threads."""
    torch.set_num_threads(options.threads)
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Bench(
        Clock(torch.device(name)),
        repeats=options.repeats or REPEATS,
        threads=options.threads,
        cache=options.cache or default_cache(),
        whole_epoch=options.whole,
    )


def _add(
    tables: dict[str, Table], out: Path | None, name: str, measured: Measured, bench: Bench
) -> None:
    rates = BestRates.measure(bench.clock)
    _put(tables["speed"], out, [speed_cells(name, row) for row in measured.rows])
    _put(tables["limits"], out, [limit_cells(name, cost, rates) for cost in measured.costs])


def speed_cells(name: str, row: Row) -> dict[str, Cell]:
    """A row as the table shows it."""
    target = "" if row.target is None else f"{'≥' if row.faster else '≤'} {row.target:g}×"
    return {
        "row": name,
        "what": row.what,
        "against": row.against,
        "ratio": f"{row.ratio} {'× faster' if row.faster else '× its time'}",
        "of processor time": f"{three_digits(row.ratio.processor)} ×",
        "target": target,
        "met": row.met,
        "note": row.note,
    }


def limit_cells(name: str, cost: Cost, rates: BestRates) -> dict[str, Cell]:
    """How far a task is from what the machine could do."""
    least = rates.least_seconds(cost.least.multiply_adds, cost.least.bytes)
    return {
        "row": name,
        "task": cost.task,
        "seconds": three_digits(cost.seconds),
        "least G multiply-adds": three_digits(cost.least.multiply_adds / GIGA),
        "done": three_digits(cost.done / GIGA) if cost.done else "",
        "least GB": three_digits(cost.least.bytes / GIGA),
        "machine G multiply-adds/s, GB/s": f"{three_digits(rates.multiply_adds / GIGA)}, "
        f"{three_digits(rates.bytes / GIGA)}",
        "least seconds": three_digits(least),
        "share of the limit, %": three_digits(100 * least / cost.seconds),
    }


def _put(table: Table, out: Path | None, rows: Sequence[dict[str, Cell]]) -> None:
    """All rows of one name at once, in the order of `NAMES`."""
    put_rows(table, out, rows, key=["row"], order=lambda row: NAMES.index(str(row["row"])))
