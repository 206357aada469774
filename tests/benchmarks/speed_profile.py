"""Where the time goes: operators by their own time, in statistics, sweep, solving and rectification.

Imports torch's profiler, the engine and this folder's speed modules.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.solver import DenseSolver
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.gradients import sweep
from rectify_widgets.engine.model.running import eval_mode
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks.speed_bench import Bench
from tests.benchmarks.speed_limits import BATCH
from tests.benchmarks.speed_timing import three_digits
from tests.benchmarks.tables import Cell

SHOWN = 6
"""Operators of each task; the others make one row."""
ROUNDS = 2
"""Of the rectification; the others are like the second."""
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


def _statistics(bench: Bench) -> Callable[[], object]:
    model, images = bench.network(), bench.images(bench.sizes.collected)
    return lambda: KeyStatistics.collect(model, images, batch_size=BATCH)


def _sweep(bench: Bench) -> Callable[[], object]:
    model, start, end = bench.network(), bench.images(32, seed=1), bench.images(32, seed=2)
    layers = editable_layers(model, end[:1]).editable
    labels = torch.zeros(32, dtype=torch.long, device=end.device)

    def run() -> None:
        with eval_mode(model) as module:
            sweep(module, layers, start, end, labels, labels + 1, steps=8, monitor=Monitor())

    return run


def _solving(bench: Bench) -> Callable[[], object]:
    """Two directions of every layer at every ridge, from the second moments."""
    model = bench.network()
    known = KeyStatistics.collect(model, bench.images(BATCH))

    def run() -> None:
        for name in known:
            moment = known[name].moment
            right = moment[:, :2].contiguous()
            solver = DenseSolver(name, moment)
            for ridge in RIDGES:
                solver.solve(right, ridge)

    return run


def _rectify(bench: Bench) -> Callable[[], object]:
    trojan = bench.trojan()
    references = trojan.references[: bench.sizes.repaired]
    return lambda: rectify(trojan.model, trojan.pairs[0], reference=references, max_rounds=ROUNDS)


PROFILES: dict[str, Callable[[Bench], Callable[[], object]]] = {
    "statistics": _statistics,
    "sweep": _sweep,
    "solving": _solving,
    "rectify": _rectify,
}


def profile(name: str, bench: Bench) -> list[dict[str, Cell]]:
    """The operators that take most of a task's time, and what is left."""
    task = PROFILES[name](bench)
    cuda = bench.clock.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities, acc_events=True) as seen:
        whole = bench.clock.span(task).seconds

    events = seen.key_averages()

    def own(event: object) -> float:
        field = "self_device_time_total" if cuda else "self_cpu_time_total"
        return float(getattr(event, field)) / 1e6

    ranked = sorted(events, key=own, reverse=True)
    total = sum(own(event) for event in ranked)
    rows: list[dict[str, Cell]] = [
        _row(name, event.key, event.count, own(event), total) for event in ranked[:SHOWN]
    ]
    rest = ranked[SHOWN:]
    rows.append(_row(name, "all others", sum(e.count for e in rest), sum(map(own, rest)), total))
    outside = max(whole - total, 0.0)
    rows.append(_row(name, "outside of operators", "", outside, whole))
    return rows


def _row(
    task: str, operator: str, calls: int | str, seconds: float, total: float
) -> dict[str, Cell]:
    return {
        "row": "profile",
        "task": task,
        "operator": operator.removeprefix("aten::"),
        "calls": calls,
        "own seconds": three_digits(seconds),
        "share, %": three_digits(100 * seconds / total) if total else "",
    }
