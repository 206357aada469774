"""Trojans removed from one pair: ablations, other networks, detection, time.

Imports the engine, the cases, `training` and `tables`.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from pandas import DataFrame
from torch import Tensor

from rectify_widgets import cases
from rectify_widgets.cases import Case
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.closed_form import DIRECTIONS
from rectify_widgets.engine.find.candidates import RIDGES
from rectify_widgets.engine.find.corrupted import find_corrupted
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.training import TROJANS, train_trojan

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


def contaminated(case: Case, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """References of which a share carries the corruption, and which ones do."""
    count = round(share * len(case.reference))
    generator = torch.Generator().manual_seed(seed)
    marked = torch.zeros(len(case.reference), dtype=torch.bool)
    marked[torch.randperm(len(marked), generator=generator)[:count]] = True
    mixed = case.reference.clone()
    mixed[marked] = case.trigger(mixed[marked])
    return mixed, marked


def repair_each(
    case: Case,
    pairs: int,
    before: Mapping[str, float],
    limit: int,
    reference: Tensor,
    **options: Any,
) -> DataFrame:
    """Rectify from one pair after the other: figures in per cent, a row each."""
    rows = []
    for pair in range(pairs):
        start = time.perf_counter()
        result = rectify(case.model, case.pairs[pair], reference=reference, seed=pair, **options)
        seconds = time.perf_counter() - start
        after = case.figures(result.model, limit=limit)
        rows.append(
            {
                "ASR": PER_CENT * after["attack_success_rate"],
                "OA_lost": PER_CENT * (before["overall_accuracy"] - after["overall_accuracy"]),
                "corrupted_accuracy": PER_CENT * after["corrupted_accuracy"],
                "edits": len(result.edits),
                "seconds": seconds,
            }
        )
    return DataFrame(rows)


def measure_ablation(options: Namespace, monitor: Monitor) -> Table:
    """Direction × ridge × layer method × static and dynamic, on part of the test set."""
    case, pairs = cases.load("trojan"), options.pairs
    before = case.figures(limit=ABLATION_TEST)
    table = Table(
        "ablation",
        f"{case.title}: n = 1, means over {pairs} pairs on {ABLATION_TEST} test inputs, per cent "
        "and points.  'all' lets the loop choose.",
    )
    everything = [("dynamic", "edit-attribution", *choice) for choice in CHOICES]
    everything += [("dynamic", method, DIRECTIONS, RIDGES) for method in ("projection", "trial")]
    everything += [("static", "edit-attribution", *choice) for choice in CHOICES]
    for number, (strategy, method, directions, ridges) in enumerate(everything):
        monitor.report(number / len(everything), f"{strategy}, {method}")
        repairs = repair_each(
            case, pairs, before, ABLATION_TEST, case.reference, strategy=strategy, method=method,
            directions=directions, ridges=ridges,
        )  # fmt: skip
        table.add(
            strategy=strategy,
            method=method if strategy == "dynamic" else "last convolution",
            direction="all" if len(directions) > 1 else directions[0],
            ridge="all" if len(ridges) > 1 else f"{ridges[0]:g}",
            **{name: spread(repairs[name]) for name in ("ASR", "OA_lost", "corrupted_accuracy")},
            edits=spread(repairs["edits"], digits=1),
        )
    return table


def measure_networks(options: Namespace, monitor: Monitor) -> Table:
    """Networks and triggers that nothing was tuned on, with clean and contaminated references."""
    known = {" ".join(one): one for one in TROJANS}
    only = " ".join(options.only or ())
    if options.data is None:
        raise SystemExit("data: got None, want --data DIR, the folder of MNIST's four IDX files")
    if only and only not in known:
        raise SystemExit(f"only: got {only!r}, want one of {', '.join(map(repr, known))}")
    chosen = [known[only]] if only else TROJANS
    table = Table(
        "networks",
        f"Dynamic, n = 1, degradation budget {options.budget:g}, mean ± deviation (worst) over "
        f"{options.pairs} pairs, per cent and points, on {NETWORKS_TEST} test inputs.  Contaminated: "
        "a tenth of the references carries the trigger, unmarked.",
    )
    for number, (network, trigger) in enumerate(chosen):
        case = train_trojan(network, trigger, options.data, options.network_seed, options.cache)
        before = case.figures(limit=NETWORKS_TEST)
        for share in (0.0, 0.1):
            monitor.report((number + share) / len(chosen), case.title)
            references, _ = contaminated(case, share, options.network_seed)
            repairs = repair_each(
                case, options.pairs, before, NETWORKS_TEST, references,
                max_degradation=options.budget,
            )  # fmt: skip
            start = [PER_CENT * before[one] for one in ("overall_accuracy", "attack_success_rate")]
            table.add(
                network=network,
                trigger=trigger,
                contaminated="a tenth" if share else "no",
                before=" / ".join(f"{one:.2f}" for one in start),
                **{
                    name: f"{spread(repairs[name])} ({repairs[name].max():.2f})"
                    for name in ("ASR", "OA_lost")
                },
                corrupted_accuracy=spread(repairs["corrupted_accuracy"]),
                edits=spread(repairs["edits"], digits=1),
                seconds=spread(repairs["seconds"], digits=1),
            )
    return table


def measure_detection(options: Namespace, monitor: Monitor) -> Table:
    """Precision and recall of `find_corrupted` at several shares of corrupted references."""
    case, pairs = cases.load("trojan"), options.pairs
    table = Table(
        "detection",
        f"{case.title}: references that carry the trigger, found from one pair; means over "
        f"{pairs} pairs among {len(case.reference)} references.",
    )
    for number, share in enumerate(SHARES):
        rows = []
        for pair in range(pairs):
            monitor.report((number + pair / pairs) / len(SHARES), f"{share:.0%} corrupted")
            mixed, marked = contaminated(case, share, pair)
            flagged = find_corrupted(case.model, case.pairs[pair], mixed, seed=pair).flagged
            hits = int((flagged & marked).sum())
            found, there = int(flagged.sum()), int(marked.sum())
            rows.append(
                (hits / found if found else 1.0, hits / there if there else 1.0, found - hits)
            )
        precision, recall, false_alarms = zip(*rows, strict=True)
        table.add(
            corrupted=f"{share:.0%}",
            precision=spread(precision, PER_CENT),
            recall=spread(recall, PER_CENT),
            false_alarms=spread(false_alarms, digits=1),
        )
    return table


def measure_seconds(options: Namespace, monitor: Monitor) -> Table:
    """How the time of a rectification splits between its stages."""
    case = cases.load("trojan")
    table = Table(
        "seconds",
        f"{case.title}: seconds of `rectify`, n = 1, by stage, on this machine; "
        "'processor' is the time of all cores together.",
    )
    for pair in range(options.pairs):
        monitor.report(pair / options.pairs, f"pair {pair + 1} of {options.pairs}")
        start, processor = time.perf_counter(), time.process_time()
        result = rectify(case.model, case.pairs[pair], reference=case.reference, seed=pair)
        total, processor = time.perf_counter() - start, time.process_time() - processor
        stages = {stage: float(seconds) for stage, seconds in result.seconds.items()}
        table.add(pair=pair, total=total, processor=processor, **stages)
    return table
