"""Trojans removed from one pair: ablations, other networks, detection, time.

Imports the engine, the cases, `training` and `tables`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pandas import DataFrame
from torch import Tensor, nn

from rectify_widgets import cases
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.closed_form import DIRECTIONS
from rectify_widgets.engine.find.candidates import RIDGES
from rectify_widgets.engine.find.corrupted import find_corrupted
from rectify_widgets.engine.measure.metrics import Report, evaluate
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.training import CELLS, train_trojan

PER_CENT = 100.0
ABLATION_TEST = 2000
NETWORKS_TEST = 4000
"""Test inputs in tables of many repairs."""
CHOICES = [
    (directions, ridges)
    for directions in (DIRECTIONS, ("contrast",), ("key",))
    for ridges in (RIDGES, (1e-3,), (1e-1,))
]
"""Directions and ridges of the ablation: all, or one alone."""
SHARES = (0.0, 0.01, 0.05, 0.10)


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
        clean, corrupted = (
            (images[:limit], labels[:limit]) for images, labels in (self.clean, self.corrupted)
        )
        return evaluate(model, clean=clean, corrupted=corrupted, target=self.target)

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


def repair_each(
    subject: Subject,
    pairs: int,
    before: Report,
    limit: int,
    references: Tensor | None = None,
    **options: Any,
) -> DataFrame:
    """Rectify from one pair after the other: figures in per cent, a row each."""
    rows = []
    known = subject.references if references is None else references
    for pair in range(pairs):
        start = time.perf_counter()
        result = rectify(subject.model, subject.pairs[pair], reference=known, seed=pair, **options)
        seconds = time.perf_counter() - start
        after = subject.report(result.model, limit)
        rows.append(
            {
                "ASR": PER_CENT * (after.attack_success_rate or 0.0),
                "OA_lost": PER_CENT * (before.overall_accuracy - after.overall_accuracy),
                "corrupted_accuracy": PER_CENT * (after.corrupted_accuracy or 0.0),
                "edits": len(result.edits),
                "seconds": seconds,
            }
        )
    return DataFrame(rows)


def measure_ablation(subject: Subject, pairs: int, progress: Monitor) -> Table:
    """Direction × ridge × layer method × static and dynamic, on part of the test set."""
    before = subject.report(subject.model, ABLATION_TEST)
    table = Table(
        "ablation",
        f"{subject.name}: n = 1, means over {pairs} pairs on {ABLATION_TEST} test inputs, per cent "
        "and points.  'all' lets the loop choose.",
    )
    everything = [("dynamic", "edit-attribution", *choice) for choice in CHOICES]
    everything += [("dynamic", method, DIRECTIONS, RIDGES) for method in ("projection", "trial")]
    everything += [("static", "edit-attribution", *choice) for choice in CHOICES]
    for number, (strategy, method, directions, ridges) in enumerate(everything):
        progress.report(number / len(everything), f"{strategy}, {method}")
        repairs = repair_each(
            subject, pairs, before, ABLATION_TEST, strategy=strategy, method=method,
            directions=directions, ridges=ridges,
        )  # fmt: skip
        table.add(
            strategy=strategy,
            method=method if strategy == "dynamic" else "last convolution",
            direction="all" if len(directions) > 1 else directions[0],
            ridge="all" if len(ridges) > 1 else f"{ridges[0]:g}",
            ASR=spread(repairs["ASR"]),
            OA_lost=spread(repairs["OA_lost"]),
            corrupted_accuracy=spread(repairs["corrupted_accuracy"]),
            edits=spread(repairs["edits"], digits=1),
        )
    return table


def measure_networks(
    data: Path,
    cache: Path | None,
    pairs: int,
    seed: int,
    progress: Monitor,
    *,
    only: str | None = None,
    budget: float = 0.01,
) -> Table:
    """Networks and triggers that nothing was tuned on, with clean and contaminated references."""
    chosen = [one for one in CELLS if only in {None, " ".join(one)}]
    if not chosen:
        known = ", ".join(repr(" ".join(one)) for one in CELLS)
        raise SystemExit(f"only: got {only!r}, want one of {known}")
    table = Table(
        "networks",
        f"Dynamic, n = 1, degradation budget {budget:g}, mean ± deviation (worst) over {pairs} pairs, "
        f"per cent and points, on {NETWORKS_TEST} test inputs.  Contaminated: a tenth of the "
        "references carries the trigger, unmarked.",
    )
    for number, (network, trigger) in enumerate(chosen):
        subject = trained(network, trigger, data, cache, seed)
        before = subject.report(subject.model, NETWORKS_TEST)
        for share in (0.0, 0.1):
            progress.report((number + share) / len(chosen), f"{network}, {trigger}")
            references, _ = subject.contaminated(share, seed)
            repairs = repair_each(
                subject, pairs, before, NETWORKS_TEST, references, max_degradation=budget
            )
            worst = {
                name: f"{spread(repairs[name])} ({repairs[name].max():.2f})"
                for name in ("ASR", "OA_lost")
            }
            table.add(
                network=network,
                trigger=trigger,
                contaminated="a tenth" if share else "no",
                before=f"{PER_CENT * before.overall_accuracy:.2f} / "
                f"{PER_CENT * (before.attack_success_rate or 0):.2f}",
                **worst,
                corrupted_accuracy=spread(repairs["corrupted_accuracy"]),
                edits=spread(repairs["edits"], digits=1),
                seconds=spread(repairs["seconds"], digits=1),
            )
    return table


def measure_detection(subject: Subject, pairs: int, progress: Monitor) -> Table:
    """Precision and recall of `find_corrupted` at several shares of corrupted references."""
    table = Table(
        "detection",
        f"{subject.name}: references that carry the trigger, found from one pair; means over "
        f"{pairs} pairs among {len(subject.references)} references.",
    )
    for number, share in enumerate(SHARES):
        precision, recall, false = [], [], []
        for pair in range(pairs):
            progress.report((number + pair / pairs) / len(SHARES), f"{share:.0%} corrupted")
            mixed, marked = subject.contaminated(share, pair)
            flagged = find_corrupted(subject.model, subject.pairs[pair], mixed, seed=pair).flagged
            hits = int((flagged & marked).sum())
            precision.append(hits / int(flagged.sum()) if bool(flagged.any()) else 1.0)
            recall.append(hits / int(marked.sum()) if bool(marked.any()) else 1.0)
            false.append(float((flagged & ~marked).sum()))
        table.add(
            corrupted=f"{share:.0%}",
            precision=spread(precision, PER_CENT),
            recall=spread(recall, PER_CENT),
            false_alarms=spread(false, digits=1),
        )
    return table


def measure_seconds(subject: Subject, pairs: int, progress: Monitor) -> Table:
    """How the time of a rectification splits between its stages."""
    table = Table(
        "seconds",
        f"{subject.name}: seconds of `rectify`, n = 1, by stage, on this machine; "
        "'processor' is the time of all cores together.",
    )
    for pair in range(pairs):
        progress.report(pair / pairs, f"pair {pair + 1} of {pairs}")
        start, processor = time.perf_counter(), time.process_time()
        result = rectify(
            subject.model, subject.pairs[pair], reference=subject.references, seed=pair
        )
        total, processor = time.perf_counter() - start, time.process_time() - processor
        stages = {stage: float(seconds) for stage, seconds in result.seconds.items()}
        table.add(pair=pair, total=total, processor=processor, **stages)
    return table
