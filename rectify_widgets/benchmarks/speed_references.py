"""Cost of collecting statistics against the number of references.  Imports `memory` and the tables."""

from __future__ import annotations

from collections.abc import Callable

from rectify_widgets.benchmarks.memory import MEGA, Job, Peak, in_process
from rectify_widgets.benchmarks.speed_bench import Bench
from rectify_widgets.benchmarks.speed_timing import number
from rectify_widgets.benchmarks.tables import Cell

TIMES = (1, 4, 16)


def measure_references(
    bench: Bench, run: Callable[[Job], Peak] = in_process
) -> list[dict[str, Cell]]:
    """Seconds and peak memory for 1, 4 and 16 times as many references, each in a fresh process."""
    rows: list[dict[str, Cell]] = []
    base: Peak | None = None
    for times in TIMES:
        count = times * bench.sizes.streamed
        peak = run(
            Job(
                "resnet18-cifar",
                "collect",
                count,
                workers=bench.workers,
                device=str(bench.clock.device),
                threads=bench.threads,
            )
        )
        base = base or peak
        rows.append(
            {
                "row": "references",
                "references": count,
                "times": f"{times}×",
                "seconds": number(peak.seconds),
                "processor seconds": number(peak.processor),
                "processor, times": f"{number(peak.processor / base.processor)}×",
                "processor ms a reference": number(1000 * peak.processor / count),
                "peak MB": number(peak.bytes / MEGA),
                "peak, times": f"{number(peak.bytes / base.bytes)}×",
            }
        )
    return rows
