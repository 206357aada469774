"""Cost of collecting statistics against the number of references.  Imports `memory` and the tables."""

from __future__ import annotations

from collections.abc import Callable

from tests.benchmarks.memory import MEGA, Job, Spent, in_process
from tests.benchmarks.speed_bench import Bench
from tests.benchmarks.speed_timing import three_digits
from tests.benchmarks.tables import Cell

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
                "seconds": three_digits(spent.span.seconds),
                "processor seconds": three_digits(spent.span.processor),
                "processor, times": f"{three_digits(spent.span.processor / base.span.processor)}×",
                "processor ms a reference": three_digits(1000 * spent.span.processor / count),
                "peak MB": three_digits(spent.bytes / MEGA),
                "peak, times": f"{three_digits(spent.bytes / base.bytes)}×",
            }
        )
    return rows
