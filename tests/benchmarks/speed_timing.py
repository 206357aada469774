"""Times of tasks side by side, what they need at least, and what the machine gives at best.

Imports torch and the engine.  Cores are shared and clocks drift, so a second here is not a second
there.  Tasks are therefore timed in turns, A, B, A, B ..., and what is quoted is the median of the
ratios of neighbours, with their range.  Processor time is noted beside it: it counts neither
waiting nor other programs.  The least is counted from the shapes of the layers: every layer's
product once for each pass that the task is made of, its input and output through memory once, its
weight once a batch.  What is done is counted while it runs, operator by operator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import benchmark
from torch.utils.flop_counter import FlopCounterMode

from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.gradients import PATH_STEPS
from rectify_widgets.engine.model.running import capturing, eval_mode
from tests.benchmarks.tables import Cell

BATCH = 64
"""Images in one forward pass."""
TRACE_PASSES = 2 * (PATH_STEPS + 1) + 1
"""Passes of one trace of the layers: both ways at each midpoint and at the clean end, and the keys
of the corrupted end."""
MATRIX_SIDE = 1536
"""Rows and columns of the matrices that the machine's best rate is measured with."""
ARRAY_LENGTH = 2**24
"""Numbers in an array of the bandwidth test: 64 MB, more than caches hold."""
GIGA = 1e9
RATE_SECONDS = 1.0
"""Time given to each of the two, of which the best block of runs counts."""


@dataclass(frozen=True)
class Span:
    """How long a task took; processor time is that of all threads together."""

    seconds: float
    processor: float

    @staticmethod
    def now() -> Span:
        """The time since some start; a GPU is waited for."""
        return Span(benchmark.timer(), time.process_time())

    def __sub__(self, start: Span) -> Span:
        return Span(self.seconds - start.seconds, self.processor - start.processor)


def time_once(task: Callable[[], object]) -> Span:
    """What the task takes once."""
    start = Span.now()
    task()
    return Span.now() - start


def take_turns(
    tasks: Sequence[Callable[[], object]], repeats: int, *, warm: bool = True
) -> list[list[Span]]:
    """The times of each task, run in turns ``repeats`` times.

    ``warm`` runs each once beforehand, untimed: the first run of an operator loads and plans.
    """
    if warm:
        for task in tasks:
            task()
    rounds = [[time_once(task) for task in tasks] for _ in range(repeats)]
    return [list(spans) for spans in zip(*rounds, strict=True)]


def undisturbed_seconds(spans: Sequence[Span], device: torch.device) -> float:
    """Seconds of one run with the machine to itself: on a CPU processor time over threads."""
    if device.type == "cuda":
        return median(span.seconds for span in spans)
    return median(span.processor for span in spans) / torch.get_num_threads()


@dataclass(frozen=True)
class Ratio:
    """How many times the time of one task is that of another, one number a repeat."""

    seconds: Sequence[float]
    processor: Sequence[float]

    @classmethod
    def of(cls, above: Sequence[Span], below: Sequence[Span], scale: float = 1.0) -> Ratio:
        """``scale`` times the ratios of neighbours."""
        both = list(zip(above, below, strict=True))
        return cls(
            [scale * high.seconds / low.seconds for high, low in both],
            [scale * high.processor / low.processor for high, low in both],
        )

    def __truediv__(self, base: Ratio) -> Ratio:
        """How the median grew from that of a smaller task."""
        return Ratio(
            [median(self.seconds) / median(base.seconds)],
            [median(self.processor) / median(base.processor)],
        )

    def __str__(self) -> str:
        if len(self.seconds) == 1:
            return three_digits(self.seconds[0])
        middle, *ends = map(three_digits, (f(self.seconds) for f in (median, min, max)))
        return f"{middle} ({' to '.join(ends)})"


def three_digits(value: float) -> str:
    """Three significant digits, or all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Work:
    """Multiply-adds, and bytes through memory; or the rates of both, per second."""

    multiply_adds: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.multiply_adds + other.multiply_adds, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.multiply_adds * times, self.bytes * times)

    def least_seconds(self, rates: Work) -> float:
        """The time that this work takes at least at these rates."""
        return max(self.multiply_adds / rates.multiply_adds, self.bytes / rates.bytes)


def best_rates(
    device: torch.device, *, side: int = MATRIX_SIDE, length: int = ARRAY_LENGTH
) -> Work:
    """Work per second at best: of products of square matrices, and of triads ``a = b + 2 c``."""
    threads = torch.get_num_threads()
    on_cpu = device.type != "cuda"
    names = {name: torch.rand(side, side, device=device) for name in ("x", "y", "z")}
    names |= {name: torch.rand(length, device=device) for name in ("a", "b", "c")}

    def fastest(statement: str) -> float:
        timer = benchmark.Timer(
            statement,
            globals={"torch": torch, **names},
            timer=time.process_time if on_cpu else benchmark.timer,
            num_threads=threads,
        )
        times = timer.blocked_autorange(min_run_time=RATE_SECONDS).times
        return min(times) / (threads if on_cpu else 1)

    product = fastest("torch.mm(x, y, out=z)")
    triad = fastest("torch.add(b, c, alpha=2.0, out=a)")
    return Work(side**3 / product, 3 * names["a"].element_size() * length / triad)


def forward_work(model: nn.Module, inputs: Tensor, batch_size: int = BATCH) -> Work:
    """A forward pass of all ``inputs`` in batches, convolutions and linear layers alone."""
    layers = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    }
    one: list[Work] = []

    def count(name: str, given: Tensor, output: Tensor) -> None:
        products = output.numel() * prod(layers[name].weight.shape[1:])
        one.append(Work(products, (given.numel() + output.numel()) * output.element_size()))

    with eval_mode(model) as module, capturing(layers, count):
        module(inputs[:1])
    weights = sum(part.weight.numel() * part.weight.element_size() for part in layers.values())
    batches = math.ceil(len(inputs) / batch_size)
    return sum(one, Work(0, 0)) * len(inputs) + Work(0, weights * batches)


def moment_work(model: nn.Module, statistics: KeyStatistics) -> Work:
    """Forming one triangle of the second moment of all layers from the positions taken.

    Where neighbouring keys share all their pixels, entries of a convolution's moment that lie the
    same displacement apart sum the same products but for the border: each counts once.
    """
    work = Work(0, 0)
    for name in statistics:
        total = statistics[name].total
        groups, size, _ = total.shape
        conv = model.get_submodule(name)
        distinct = size * (size + 1) / 2
        if (
            statistics.key_space == "patch"
            and isinstance(conv, nn.Conv2d)
            and conv.kernel_size != (1, 1)
            and conv.stride == conv.dilation == (1, 1)
        ):
            height, width = conv.kernel_size
            channels = size // (height * width)
            displacements = ((2 * height - 1) * (2 * width - 1) - 1) / 2
            distinct = displacements * channels**2 + channels * (channels + 1) / 2
        products = groups * statistics[name].positions * distinct
        work += Work(products, total.numel() * total.element_size())
    return work


def factor_work(size: int) -> Work:
    """Cholesky factorisation of a matrix of this size, in float32."""
    return Work(size**3 / 6, 4.0 * size**2)


def executed(task: Callable[[], object]) -> float:
    """Multiply-adds that the task does: products, convolutions, factorisations and their solves."""
    aten: Any = torch.ops.aten
    # Twice the multiply-adds from the shapes of the arguments, which `out_val` follows.
    counts: dict[Any, Callable[..., Any]] = {
        aten.addmm_: lambda _, one, other, **__: 2 * prod(one) * other[-1],
        aten.baddbmm_: lambda _, one, other, **__: 2 * prod(one) * other[-1],
        aten.linalg_cholesky_ex: lambda one, *_, **__: prod(one) * one[-1] // 3,
        aten.cholesky_solve: lambda right, *_, **__: 4 * prod(right) * right[-2],
        aten.linalg_solve_triangular: lambda _, right, **__: 2 * prod(right) * right[-2],
    }
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        task()
    return float(counter.get_total_flops()) / 2


@dataclass(frozen=True)
class Comparison:
    """How the time of a task compares with that of another.

    ``faster``: the ratio says how many times faster the task is, at least the target; otherwise how
    much of the other's time it takes, at most the target.
    """

    what: str
    against: str
    ratio: Ratio
    target: float | None
    faster: bool
    note: str = ""

    def cells(self, name: str) -> dict[str, Cell]:
        """Its row of the speed table."""
        target, met = "", ""
        if self.target is not None:
            target = f"{'≥' if self.faster else '≤'} {self.target:g}×"
            sign = 1 if self.faster else -1
            met = "yes" if sign * median(self.ratio.seconds) >= sign * self.target else "no"
        return {
            "row": name,
            "what": self.what,
            "against": self.against,
            "ratio": f"{self.ratio} {'× faster' if self.faster else '× its time'}",
            "of processor time": f"{three_digits(median(self.ratio.processor))} ×",
            "target": target,
            "met": met,
            "note": self.note,
        }


@dataclass(frozen=True)
class Cost:
    """A task of ours: its seconds with the machine to itself, what it needs at least and does.

    ``done`` are multiply-adds, None where they are not counted.
    """

    task: str
    seconds: float
    least: Work
    done: float | None = None

    def cells(self, name: str, rates: Work) -> dict[str, Cell]:
        """Its row of the table of limits, with the machine's best rates."""
        least = self.least.least_seconds(rates)
        return {
            "row": name,
            "task": self.task,
            "seconds": three_digits(self.seconds),
            "least G multiply-adds": three_digits(self.least.multiply_adds / GIGA),
            "done": "" if self.done is None else three_digits(self.done / GIGA),
            "least GB": three_digits(self.least.bytes / GIGA),
            "machine G multiply-adds/s, GB/s": f"{three_digits(rates.multiply_adds / GIGA)}, "
            f"{three_digits(rates.bytes / GIGA)}",
            "least seconds": three_digits(least),
            "share of the limit, %": three_digits(100 * least / self.seconds),
        }


def describe(device: torch.device) -> str:
    """Device, threads and version, for the notes of the tables."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    processor = f"CPU{named[0] if named else ''}"
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"
