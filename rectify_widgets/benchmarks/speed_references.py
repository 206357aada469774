"""Cost of collecting statistics against the number of references.  Imports `memory` and the tables."""

from __future__ import annotations

from collections.abc import Callable

from rectify_widgets.benchmarks.memory import MEGA, Job, Spent, in_process
from rectify_widgets.benchmarks.speed_bench import Bench
from rectify_widgets.benchmarks.speed_timing import number
from rectify_widgets.benchmarks.tables import Cell

TIMES = (1, 4, 16)


def measure_references(
    bench: Bench, run: Callable[[Job], Spent] = in_process
) -> list[dict[str, Cell]]:
    """Seconds and peak memory for 1, 4 and 16 times as many references, each in a fresh process."""
    rows: list[dict[str, Cell]] = []
    base: Spent | None = None
    for times in TIMES:
        count = times * bench.sizes.streamed
        spent = run(
            Job(
                "resnet18-cifar",
                "collect",
                count,
                workers=bench.workers,
                device=str(bench.clock.device),
                threads=bench.threads,
            )
        )
        base = base or spent
        rows.append(
            {
                "row": "references",
                "references": count,
                "times": f"{times}×",
                "seconds": number(spent.seconds),
                "processor seconds": number(spent.processor),
                "processor, times": f"{number(spent.processor / base.processor)}×",
                "processor ms a reference": number(1000 * spent.processor / count),
                "peak MB": number(spent.bytes / MEGA),
                "peak, times": f"{number(spent.bytes / base.bytes)}×",
            }
        )
    return rows
