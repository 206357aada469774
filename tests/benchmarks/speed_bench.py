"""What every row of the speed table is made with and made of.

Imports the engine's pairs and this folder's speed modules.  `Sizes` says how much of everything; its
defaults are what the table quotes, tests take less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from rectify_widgets.engine.data.pairs import SamplePairs
from tests.benchmarks.speed_limits import Work
from tests.benchmarks.speed_networks import SIDE, network
from tests.benchmarks.speed_timing import Clock, Growth, Ratio
from tests.benchmarks.speed_trojan import Trojan, load_trojan

EDITED = ("stage1.block1.conv2", "stage2.block1.conv2", "stage4.block1.conv2")
"""An early layer, one in the middle, and the last convolution."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        swept: inputs of the sweep.
        steps: midpoints of its path.
        collected: references of the statistics.
        edited: convolutions without groups that are edited.
        optimiser_steps: of the iterative optimiser of an edit.
        repaired: references of a rectification.
        tuned: images of the fine-tuning epoch.
        batches: of them, those that are timed; the rest is reckoned from them.
        rounds: of a rectification that is timed by round.
        depths: layers of the networks for localisation.
        localized: references of a localisation.
        streamed: references of the smallest of the streamed collections.
    """

    swept: int = 8
    steps: int = 8
    collected: int = 512
    edited: Sequence[str] = EDITED
    optimiser_steps: int = 2001
    repaired: int = 256
    tuned: int = 10_000
    batches: int = 6
    rounds: int = 3
    depths: Sequence[int] = (18, 50, 101)
    localized: int = 64
    streamed: int = 64


@dataclass(frozen=True)
class Bench:
    """What all rows share.

    Attributes:
        clock: times tasks on a device.
        repeats: runs of each task.
        threads: of torch.
        workers: of the loader that streams references.
        cache: folder of the Trojaned network.
        whole_epoch: time all of the fine-tuning epoch, not some of its batches.
        sizes: how much is measured.
        build: the network of a depth.
        quiet: train without a progress bar.
    """

    clock: Clock
    repeats: int = 3
    threads: int = 2
    workers: int = 1
    cache: Path = Path()
    whole_epoch: bool = False
    sizes: Sizes = field(default_factory=Sizes)
    build: Callable[[int], nn.Module] = network
    quiet: bool = False

    def network(self, depth: int = 18) -> nn.Module:
        """An untrained network on the device."""
        return self.build(depth).to(self.clock.device)

    def images(self, count: int, seed: int = 0) -> Tensor:
        """Random images on the device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(count, 3, SIDE, SIDE, generator=generator).to(self.clock.device)

    def pair(self) -> SamplePairs:
        """An image with and without a white square."""
        clean = self.images(1, seed=9)
        corrupted = clean.clone()
        corrupted[..., -6:-2, -6:-2] = 1.0
        return SamplePairs(corrupted, clean)

    def trojan(self) -> Trojan:
        """The network with a backdoor, trained where it is not in the cache."""
        return load_trojan(self.cache, device=str(self.clock.device), quiet=self.quiet)


@dataclass(frozen=True)
class Row:
    """One line of the table: how the time of a task compares with that of another."""

    what: str
    against: str
    ratio: Ratio | Growth
    target: float | None
    faster: bool
    """Whether the ratio says how many times faster (at least the target); else how much of the
    other's time (at most the target)."""
    note: str

    @property
    def met(self) -> str:
        """Whether the median meets the target."""
        if self.target is None:
            return ""
        good = self.ratio.median >= self.target if self.faster else self.ratio.median <= self.target
        return "yes" if good else "no"


@dataclass(frozen=True)
class Cost:
    """A task of ours: its time, what it needs at least and what it does."""

    task: str
    seconds: float
    """Of one run with the machine to itself, see `Clock.cost`."""
    least: Work
    done: float


@dataclass(frozen=True)
class Measured:
    """What one measurement adds to the tables."""

    rows: Sequence[Row]
    costs: Sequence[Cost] = ()
