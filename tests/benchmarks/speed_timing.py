"""Times measured side by side, and what the machine can do at best.  Imports torch only.

Cores are shared and clocks drift, so that a second here is not a second there.  Two tasks are
therefore timed in turns, A, B, A, B ..., and what is quoted is the median of the ratios of
neighbours, with their range.  On a CPU the processor time is noted beside it: what other programs
take does not count there, nor does waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

Task = Callable[[], object]

MATRIX_SIDE = 1536
"""Rows and columns of the matrices that the machine's best rate is measured with."""
ARRAY_LENGTH = 2**24
"""Numbers in an array of the bandwidth test: 64 MB, more than caches hold."""
TRIES = 7
"""Runs of each, of which the best counts."""


@dataclass(frozen=True)
class Span:
    """How long a task took."""

    seconds: float
    processor: float
    """Seconds of processor time, of all threads together."""


@dataclass(frozen=True)
class Clock:
    """Times tasks on a device: a GPU is waited for before and after."""

    device: torch.device
    now: Callable[[], float] = time.perf_counter
    busy: Callable[[], float] = time.process_time

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def span(self, task: Task) -> Span:
        """What the task takes once."""
        self.wait()
        busy, began = self.busy(), self.now()
        task()
        self.wait()
        return Span(self.now() - began, self.busy() - busy)

    def turns(self, tasks: Sequence[Task], repeats: int, *, warm: bool = True) -> list[Spans]:
        """What each task takes in turns, ``repeats`` times: one tuple a task.

        ``warm`` runs each once beforehand, untimed: the first run of an operator loads and plans.
        """
        if warm:
            for task in tasks:
                task()
        rounds = [[self.span(task) for task in tasks] for _ in range(repeats)]
        return list(zip(*rounds, strict=True))

    def cost(self, spans: Spans) -> float:
        """Seconds of one run with the machine to itself: on a CPU processor time over threads."""
        if self.device.type == "cuda":
            return median(span.seconds for span in spans)
        return median(span.processor for span in spans) / torch.get_num_threads()


Spans = tuple[Span, ...]


@dataclass(frozen=True)
class Ratio:
    """How many times one task took of another, repeat by repeat; ``scale`` times that."""

    above: Spans
    below: Spans
    scale: float = 1.0

    @property
    def each(self) -> list[float]:
        """One ratio a repeat."""
        return [
            self.scale * high.seconds / low.seconds
            for high, low in zip(self.above, self.below, strict=True)
        ]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.each)

    @property
    def processor(self) -> float:
        """The same of processor time."""
        both = zip(self.above, self.below, strict=True)
        return median(self.scale * high.processor / low.processor for high, low in both)

    def __str__(self) -> str:
        if len(self.each) == 1:
            return three_digits(self.median)
        return f"{three_digits(self.median)} ({three_digits(min(self.each))} to {three_digits(max(self.each))})"


@dataclass(frozen=True)
class Growth:
    """How a ratio compares with another one, that of a smaller task; the medians of both."""

    ratio: Ratio | Growth
    base: Ratio | Growth

    @property
    def median(self) -> float:
        """How many times it is."""
        return self.ratio.median / self.base.median

    @property
    def processor(self) -> float:
        """The same of processor time."""
        return self.ratio.processor / self.base.processor

    def __str__(self) -> str:
        return three_digits(self.median)


def three_digits(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class BestRates:
    """What the machine gives at best: multiply-adds and bytes a second, in float32."""

    multiply_adds: float
    bytes: float

    @classmethod
    def measure(
        cls, clock: Clock, *, side: int = MATRIX_SIDE, length: int = ARRAY_LENGTH
    ) -> BestRates:
        """The best of some products of square matrices, and of some triads ``a = b + 2 c``."""
        one, other = (torch.rand(side, side, device=clock.device) for _ in range(2))
        product = torch.empty_like(one)
        b, c = (torch.rand(length, device=clock.device) for _ in range(2))
        a = torch.empty_like(b)
        products, triads = clock.turns(
            [
                lambda: torch.mm(one, other, out=product),
                lambda: torch.add(b, c, alpha=2.0, out=a),
            ],
            TRIES,
        )
        fastest, moving = (min(clock.cost((span,)) for span in run) for run in (products, triads))
        return cls(side**3 / fastest, 3 * a.element_size() * length / moving)

    def least_seconds(self, multiply_adds: float, moved: float) -> float:
        """The time below which a task with so many multiply-adds and bytes cannot be."""
        return max(multiply_adds / self.multiply_adds, moved / self.bytes)


def describe(device: torch.device) -> str:
    """Device, threads and version, for the notes of the tables."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "CPU"
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU {named[0]}" if named else "CPU"
