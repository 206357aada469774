"""What the tests of the speed and memory benchmarks share: made-up times, a tiny network, child processes.

Imports the benchmark.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rectify_widgets.cases.networks import ResidualNetwork
from tests.benchmarks import memory, peaks
from tests.benchmarks.memory import Job, Spent
from tests.benchmarks.speed_tasks import SpeedOptions
from tests.benchmarks.speed_timing import Span

CPU = torch.device("cpu")
SPAN = Span(2.0, 1.0)
PIECE = 2**15
"""Bytes; the C library takes small pieces from its heap and returns them to it."""


class Ticking:
    """A clock, in place of `Span.now`, that a task moves on by what it is said to take."""

    def __init__(self) -> None:
        self.time, self.worked = 0.0, 0.0
        self.ran: list[str] = []

    def __call__(self) -> Span:
        return Span(self.time, self.worked)

    def task(self, name: str, *seconds: float) -> Callable[[], None]:
        taken = iter(seconds)

        def run() -> None:
            self.ran.append(name)
            one = next(taken)
            self.time += one
            self.worked += 3 * one

        return run


def spans(*seconds: float) -> list[Span]:
    return [Span(one, 10 * one) for one in seconds]


def tiny(depth: int = 18) -> nn.Module:
    """One block a stage, or more of them for deeper networks."""
    torch.manual_seed(0)
    blocks = {18: (1, 1), 50: (2, 2), 101: (3, 3)}[depth]
    return ResidualNetwork(
        channels=3, widths=(16, 16), blocks=blocks, mean=(0.3,) * 3, std=(0.3,) * 3
    ).eval()


def options(**changes: Any) -> SpeedOptions:
    small = SpeedOptions(
        CPU, repeats=1, threads=1, build=tiny, quiet=True, swept=2, path_steps=2, collected=6,
        edited=("stage1.block0.conv2",), optimiser_steps=20, repaired=64, tuned=300, batches=1,
        depths=(18, 50), localized=8, streamed=2,
    )  # fmt: skip
    return replace(small, **changes)


def pieces(megabytes: int) -> list[Tensor]:
    return [torch.ones(PIECE // 4) for _ in range(megabytes * 2**20 // PIECE)]


def freed(megabytes: int) -> Tensor:
    """Leave a heap that is resident and free: below the piece that is kept, nothing goes back."""
    return pieces(megabytes)[-1]


def taken(job: Job) -> Spent:
    """What a process answers that freed much, and then takes a megabyte for each reference."""
    kept = freed(256)
    with peaks.peak_memory() as peak:
        pieces(job.references)
    assert peak.bytes is not None
    return Spent(SPAN, peak.bytes, kept.nbytes)


def capped(job: Job) -> Spent:
    """What a process answers that takes 16 MB, and then more than its limit; its id is the estimate."""
    assert job.most_memory is not None
    memory.cap(job.most_memory)
    held = torch.ones(4 * 2**20)
    try:
        torch.ones(job.most_memory)
    except RuntimeError:
        return Spent(SPAN, held.nbytes, os.getpid())
    return Spent(SPAN, 0, 0)
