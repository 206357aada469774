"""What the tests of the speed benchmark share: a made-up clock, and a tiny network to measure on.

Imports the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from rectify_widgets.cases.networks import ResidualNetwork
from tests.benchmarks import speed_bench
from tests.benchmarks.speed_timing import Clock, Span

CPU = torch.device("cpu")


class Ticking:
    """A clock that a task moves on by what it is said to take."""

    def __init__(self) -> None:
        self.time, self.worked = 0.0, 0.0
        self.ran: list[str] = []

    def clock(self) -> Clock:
        return Clock(CPU, now=lambda: self.time, busy=lambda: self.worked)

    def task(self, name: str, *seconds: float) -> Callable[[], None]:
        taken: Iterator[float] = iter(seconds)

        def run() -> None:
            self.ran.append(name)
            one = next(taken)
            self.time += one
            self.worked += 3 * one

        return run


def spans(*seconds: float) -> tuple[Span, ...]:
    return tuple(Span(one, 10 * one) for one in seconds)


def tiny(depth: int = 18) -> nn.Module:
    """One block a stage, or more of them for deeper networks."""
    torch.manual_seed(0)
    blocks = {18: (1, 1), 50: (2, 2), 101: (3, 3)}[depth]
    return ResidualNetwork(
        channels=3, widths=(16, 16), blocks=blocks, mean=(0.3,) * 3, std=(0.3,) * 3
    ).eval()


SMALL = speed_bench.Sizes(
    swept=2, steps=2, collected=6, edited=("stage1.block0.conv2",), optimiser_steps=20, repaired=64,
    tuned=300, batches=1, rounds=3, localized=8, streamed=2,
)  # fmt: skip


def bench(**changes: object) -> speed_bench.Bench:
    made = speed_bench.Bench(Clock(CPU), repeats=1, threads=1, sizes=SMALL, build=tiny, quiet=True)
    return replace(made, **changes)  # type: ignore[arg-type]
