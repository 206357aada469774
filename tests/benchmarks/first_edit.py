"""Time and memory until the first edit of networks with 224 × 224 pixels, by defaults.

Imports what the memory benchmark imports: each call runs in a fresh process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch

from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks.memory import GIGA, LITE, Job, Spent, in_process, keep_rows
from tests.benchmarks.speed_timing import describe, three_digits
from tests.benchmarks.tables import Row, Table

REFERENCES = 64
TARGETS = {LITE: (2.6, 60), "resnet50": (3.0, 120), "vit_b_16": (3.5, 180)}
"""Networks, and what they may take: GB and seconds."""


def measure_first_edit(
    options: argparse.Namespace, monitor: Monitor, run: Callable[[Job], Spent] = in_process
) -> Table:
    """A row for each network; ``options.only`` names some.

    Rows are kept in ``options.out`` as soon as they are measured.
    """
    names = [check_choice("only", name, TARGETS) for name in options.only or TARGETS]
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    table = Table(
        "first edit",
        f"{describe(torch.device(device))}.  One round of `rectify` in closed form, every layer "
        f"solved, ranked and tried: one pair, {REFERENCES} random references, no `memory_limit`, "
        "each in a fresh process; only EfficientNet-Lite0 is trained.  GB beyond what the process "
        "held before the call.",
    )
    job = Job(
        "", "rectify", REFERENCES, None, device, options.threads,
        round(options.most_memory * GIGA), refine_steps=0,
    )  # fmt: skip
    for place, name in enumerate(names):
        monitor.report(place / len(names), name)
        spent, (most, seconds) = run(replace(job, network=name)), TARGETS[name]
        row: Row = {
            "network": name,
            "GB": three_digits(spent.bytes / GIGA),
            "at most GB": most,
            "seconds": three_digits(spent.span.seconds),
            "processor seconds": three_digits(spent.span.processor),
            "at most seconds": seconds,
        }
        keep_rows(
            table, options.out, [row], key=["network"],
            order=lambda row: list(TARGETS).index(str(row["network"])),
        )  # fmt: skip
    return table
