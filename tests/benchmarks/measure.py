"""What all measurements share: data to repair on, the repair, and its figures.

Imports the engine, the cases and `training`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectify_widgets import cases
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.measure.metrics import Report, evaluate
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from tests.benchmarks.training import train_trojan

PER_CENT = 100.0


@dataclass(frozen=True, eq=False)
class Subject:
    """A network with a behaviour, and the data to repair it and to judge the repair."""

    name: str
    model: nn.Module
    pairs: SamplePairs
    references: Tensor
    clean: tuple[Tensor, Tensor]
    corrupted: tuple[Tensor, Tensor]
    target: int | None
    stamp: Callable[[Tensor], Tensor]

    def report(self, model: nn.Module, limit: int | None = None) -> Report:
        """Figures of ``model`` on the test set, or on its first ``limit`` inputs."""
        rows = slice(limit)
        return evaluate(
            model,
            clean=(self.clean[0][rows], self.clean[1][rows]),
            corrupted=(self.corrupted[0][rows], self.corrupted[1][rows]),
            target=self.target,
        )

    def contaminated(self, share: float, seed: int) -> tuple[Tensor, Tensor]:
        """References of which a share carries the corruption, and which ones do."""
        count = round(share * len(self.references))
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self.references), generator=generator)[:count]
        mixed = self.references.clone()
        mixed[rows] = self.stamp(mixed[rows])
        marked = torch.zeros(len(mixed), dtype=torch.bool)
        marked[rows] = True
        return mixed, marked


def shipped() -> Subject:
    """The case ``trojan``."""
    case = cases.load("trojan")
    return Subject(
        case.title, case.model, case.pairs, case.reference, case.clean, case.corrupted,
        case.target, case.trigger,
    )  # fmt: skip


def trained(network: str, trigger: str, data: Path, cache: Path | None, seed: int) -> Subject:
    """A network of `training.CELLS`, from the cache or trained now."""
    model, splits = train_trojan(network, trigger, data, seed, cache)
    return Subject(
        f"{network}, {trigger}", model, splits.pairs, splits.references, splits.clean,
        splits.corrupted, splits.target, splits.trigger,
    )  # fmt: skip


@dataclass(frozen=True)
class Repair:
    """One rectification with its figures before and after."""

    result: Rectification
    before: Report
    after: Report
    seconds: float

    @property
    def lost(self) -> float:
        """Loss of overall accuracy, a fraction."""
        return self.before.overall_accuracy - self.after.overall_accuracy

    @property
    def attack(self) -> float:
        """Attack success rate after the repair."""
        return self.after.attack_success_rate or 0.0

    @property
    def restored(self) -> float:
        """Corrupted accuracy after the repair."""
        return self.after.corrupted_accuracy or 0.0


def repair(
    subject: Subject,
    pair: int,
    before: Report,
    *,
    references: Tensor | None = None,
    limit: int | None = None,
    **options: Any,
) -> Repair:
    """Rectify from one pair and measure."""
    began = time.perf_counter()
    known = subject.references if references is None else references
    result = rectify(subject.model, subject.pairs[pair], reference=known, seed=pair, **options)
    seconds = time.perf_counter() - began
    return Repair(result, before, subject.report(result.model, limit), seconds)
