"""Trojans removed from one pair: ablations, other networks, detection, time.

Imports `measure` and `tables`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.closed_form import DIRECTIONS
from rectify_widgets.engine.find.candidates import RIDGES
from rectify_widgets.engine.find.corrupted import find_corrupted
from tests.benchmarks.measure import PER_CENT, Repair, Subject, repair, trained
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.training import CELLS

ABLATION_TEST = 2000
ABLATION_RIDGES = (1e-3, 1e-1)
NETWORKS_TEST = 4000
"""Test inputs in tables of many repairs."""
SHARES = (0.0, 0.01, 0.05, 0.10)


def measure_ablation(subject: Subject, pairs: int, progress: Monitor) -> Table:
    """Direction × ridge × layer method × static and dynamic, on part of the test set."""
    before = subject.report(subject.model, ABLATION_TEST)
    table = Table(
        "ablation",
        f"{subject.name}: n = 1, means over {pairs} pairs on {ABLATION_TEST} test inputs, per cent "
        "and points.  'all' lets the loop choose.",
    )
    everything: list[tuple[str, str, Sequence[str], Sequence[float]]] = [
        ("dynamic", "edit-attribution", directions, ridges)
        for directions in (DIRECTIONS, ("contrast",), ("key",))
        for ridges in (RIDGES, *((ridge,) for ridge in ABLATION_RIDGES))
    ]
    everything += [("dynamic", method, DIRECTIONS, RIDGES) for method in ("projection", "trial")]
    everything += [
        ("static", "edit-attribution", directions, ridges)
        for directions in (DIRECTIONS, ("contrast",), ("key",))
        for ridges in (RIDGES, *((ridge,) for ridge in ABLATION_RIDGES))
    ]
    for number, (strategy, method, directions, ridges) in enumerate(everything):
        progress.report(number / len(everything), f"{strategy}, {method}")
        repairs = [
            repair(
                subject, pair, before, limit=ABLATION_TEST, strategy=strategy, method=method,
                directions=directions, ridges=ridges,
            )
            for pair in range(pairs)
        ]  # fmt: skip
        table.add(
            strategy=strategy,
            method=method if strategy == "dynamic" else "last convolution",
            direction="all" if len(directions) > 1 else directions[0],
            ridge="all" if len(ridges) > 1 else f"{ridges[0]:g}",
            ASR=spread((r.attack for r in repairs), PER_CENT),
            OA_lost=spread((r.lost for r in repairs), PER_CENT),
            corrupted_accuracy=spread((r.restored for r in repairs), PER_CENT),
            edits=spread((float(len(r.result.edits)) for r in repairs), digits=1),
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
    cells = [cell for cell in CELLS if only is None or only == " ".join(cell)]
    if not cells:
        known = ", ".join(repr(" ".join(cell)) for cell in CELLS)
        raise SystemExit(f"only: got {only!r}, want one of {known}")
    table = Table(
        "networks",
        f"Dynamic, n = 1, degradation budget {budget:g}, mean ± deviation (worst) over {pairs} pairs, per cent and points, on "
        f"{NETWORKS_TEST} test inputs.  Contaminated: a tenth of the references carries the trigger, unmarked.",
    )
    for number, (network, trigger) in enumerate(cells):
        subject = trained(network, trigger, data, cache, seed)
        before = subject.report(subject.model, NETWORKS_TEST)
        for share in (0.0, 0.1):
            progress.report((number + share) / len(cells), f"{network}, {trigger}")
            references, _ = subject.contaminated(share, seed)
            repairs = [
                repair(
                    subject, pair, before, references=references, limit=NETWORKS_TEST,
                    max_degradation=budget,
                )
                for pair in range(pairs)
            ]  # fmt: skip
            table.add(
                network=network,
                trigger=trigger,
                contaminated="a tenth" if share else "no",
                before=f"{PER_CENT * before.overall_accuracy:.2f} / "
                f"{PER_CENT * (before.attack_success_rate or 0):.2f}",
                ASR=_worst(repairs, lambda r: r.attack),
                OA_lost=_worst(repairs, lambda r: r.lost),
                corrupted_accuracy=spread((r.restored for r in repairs), PER_CENT),
                edits=spread((float(len(r.result.edits)) for r in repairs), digits=1),
                seconds=spread((r.seconds for r in repairs), digits=1),
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
    before = subject.report(subject.model, 1)
    table = Table(
        "seconds",
        f"{subject.name}: seconds of `rectify`, n = 1, by stage, on this machine; "
        "'processor' is the time of all cores together.",
    )
    for pair in range(pairs):
        progress.report(pair / pairs, f"pair {pair + 1} of {pairs}")
        began = time.process_time()
        done = repair(subject, pair, before, limit=1)
        processor = time.process_time() - began
        stages = {stage: float(seconds) for stage, seconds in done.result.seconds.items()}
        table.add(pair=pair, total=done.seconds, processor=processor, **stages)
    return table


def _worst(repairs: Sequence[Repair], figure: Callable[[Repair], float]) -> str:
    values = [figure(one) for one in repairs]
    return f"{spread(values, PER_CENT)} ({PER_CENT * max(values):.2f})"
