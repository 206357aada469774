"""Repairs of attacked networks: every attack from one pair, from ten, and with its function given.

Imports the zoo, the engine, the baselines and the benchmarks' records, peaks and tables.  A record is on
disk before the next repair begins, so that a killed run goes on where it was.
"""

from __future__ import annotations

import time
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from pandas import DataFrame
from torch import nn

from rectify_widgets import baselines
from rectify_widgets.baselines import BASELINES
from rectify_widgets.cases.case import Case
from rectify_widgets.engine.base.checks import check_choice, check_int
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks import records
from tests.benchmarks.peaks import peak_memory
from tests.benchmarks.plan import Record
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.training import default_cache
from tests.benchmarks.zoo.all_weights import free_all_weights
from tests.benchmarks.zoo.attacks import ATTACKS
from tests.benchmarks.zoo.training import NETWORKS, train_zoo

DYNAMIC, ALL_WEIGHTS = "dynamic", "all_weights"
ZOO_METHODS = (DYNAMIC, ALL_WEIGHTS, *(
    name for name in BASELINES
    if name in {"fine_tuning", "fine_pruning", "p_clarc", "rr_clarc", "neuron_pruning",
                "sharpness_aware"}
))  # fmt: skip
"""Ours, the bound that `free_all_weights` gives, and others."""
SHOWN = {"1": 1, "10": 10, "function": 1}
"""What a method is given: so many pairs, or one pair with the attack as a function."""
OTHER_NETWORK = 4.0, 1.0, 100.0
TARGETS = {"1": (3.0, 0.7, 8.0), "10": (1.5, 0.5, 5.0), "function": (1.5, 0.5, 5.0)}
"""Points at most: of attack success over the floor, of overall accuracy lost, of corrupted accuracy
below overall accuracy.  `OTHER_NETWORK` holds for networks other than the residual one."""


@dataclass(frozen=True)
class ZooRun:
    """One repair, or (method ``"before"``) none."""

    network: str
    attack: str
    colour: bool
    method: str
    shown: str
    seed: int
    network_seed: int = 0


def plan_zoo(options: Namespace) -> list[ZooRun]:
    """The repairs in the order of their weight: our own first, the residual network first.

    Raises:
        ValueError: an unknown name.
    """
    methods = [check_choice("methods", one, ZOO_METHODS) for one in options.methods or ZOO_METHODS]
    networks = [check_choice("networks", one, NETWORKS) for one in options.networks or NETWORKS]
    attacks = [check_choice("attacks", one, ATTACKS) for one in options.attacks or ATTACKS]
    shown = [check_choice("shown", one, SHOWN) for one in options.shown or SHOWN]
    seeds = check_int("seeds", options.seeds, low=1)
    return [
        ZooRun(network, attack, options.colour, method, kind, seed, options.network_seed)
        for method in methods
        for network in networks
        for kind in shown
        for seed in range(seeds)
        for attack in attacks
    ]


def measure_zoo(options: Namespace, monitor: Monitor) -> list[Table]:
    """Measure what the folder lacks, and tell all that it has."""
    if options.data is None:
        raise SystemExit("--data: the zoo is trained on Fashion-MNIST, give its folder")
    runs = plan_zoo(options)
    folder = (options.out or default_cache() / "benchmarks") / "zoo"
    with records.opened(folder) as kept:
        done = {_run_of(record) for record in kept.records}
        for number, run in enumerate(runs):
            monitor.report(number / len(runs), f"{run.network}, {run.attack}, {run.method}")
            if run not in done:
                kept.append(measure_run(run, options))
        return tables(kept.records)


def _run_of(record: Record) -> ZooRun:
    return ZooRun(**{name: record[name] for name in ZooRun.__dataclass_fields__ if name in record})


@lru_cache(maxsize=2)
def _case(network: str, attack: str, data: Any, cache: Any, seed: int, *, colour: bool) -> Case:
    return train_zoo(network, attack, data, seed, cache, colour=colour, quiet=True)


def measure_run(run: ZooRun, options: Namespace) -> Record:
    """The record of one run; a training or a repair that fails is one that says ``failure``."""
    record: Record = asdict(run)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # no figure depends on how many there are
    try:
        case = _case(
            run.network, run.attack, options.data, options.cache, run.network_seed,
            colour=run.colour,
        )  # fmt: skip
        record["before"] = case.figures()
        with warnings.catch_warnings(), peak_memory() as peak:
            warnings.simplefilter("ignore")
            start = time.process_time()
            model, details = _repaired(case, run)
            record["seconds"] = round(time.process_time() - start, 1)
        record |= {"after": case.figures(model), "memory": peak.bytes, **details}
    except (RuntimeError, ValueError) as error:
        record["failure"] = f"{type(error).__name__}: {error}"
    finally:
        torch.set_num_threads(threads)
    return record


def given_pairs(case: Case, run: ZooRun) -> SamplePairs:
    """The pairs that a run works from; those of one seed are nested."""
    generator = torch.Generator().manual_seed(run.seed)
    pairs = case.pairs[torch.randperm(len(case.pairs), generator=generator)[: SHOWN[run.shown]]]
    if run.shown != "function":
        return pairs
    (attack,) = case.triggers.values()
    return SamplePairs(pairs.corrupted, pairs.clean, pairs.labels, corrupt=attack)


def _repaired(case: Case, run: ZooRun) -> tuple[nn.Module, Record]:
    pairs = given_pairs(case, run)
    if run.method == DYNAMIC:
        result = rectify(case.model, pairs, reference=case.reference, seed=run.seed)
        evidence = result.evidence
        return result.model, {
            "stopped": result.stopped,
            "edits": len(result.edits),
            "layers": len({edit.layer for edit in result.edits}),
            "corruption": "" if evidence is None else evidence.corruption,
            "transferred": evidence is not None and evidence.transferred,
        }
    if run.method == ALL_WEIGHTS:
        model, rate = free_all_weights(case.model, pairs, case.reference, run.seed)
        return model, {"options": {"rate": str(rate)}}
    baseline = baselines.run(
        run.method, case.model, pairs, reference=case.reference, validation=case.validation,
        augmented=run.shown == "function", seed=run.seed,
    )  # fmt: skip
    return baseline.model, {"options": {name: str(one) for name, one in baseline.options.items()}}


def tables(kept: Sequence[Record]) -> list[Table]:
    """One table: a row for each network, attack, method and what was given."""
    table = Table(
        "zoo",
        "Attacks on networks trained on 12,000 images (10 % of them poisoned; 2,000 references, "
        "9,000 test images), repaired with the defaults.  Means over seeds (each another "
        "network or draw of pairs) and their spread, in per cent and points.  ASR: attack success rate; floor: "
        "share of clean images of other classes that get the target class; OA: overall accuracy; "
        "'right': corrupted images that get their true class; 'missed by': distance to the targets, "
        f"{TARGETS} and {OTHER_NETWORK} for other networks than the residual one.",
    )
    whole = [record for record in kept if "after" in record]
    for key, group in (
        DataFrame(_flat(whole)).groupby(["network", "attack", "method", "given"], sort=False)
        if whole
        else ()
    ):
        network, attack, method, given = map(str, key)
        loss, over, under = (group[name].mean() for name in ("OA lost", "over", "under"))
        wanted = TARGETS[given] if network.startswith("residual") else OTHER_NETWORK
        figures = ("ASR over floor", over), ("OA lost", loss), ("right under OA", under)
        missed = [
            f"{name} {value - most:.1f}"
            for (name, value), most in zip(figures, wanted, strict=True)
            if value > most
        ]
        table.add(
            network=network, attack=attack, method=method, given=given, seeds=len(group),
            **{
                "OA / ASR before": f"{group['OA before'].mean():.1f} / {group['ASR before'].mean():.1f}",
                "floor": f"{group['floor'].mean():.1f}", "ASR": spread(group["ASR"], digits=1),
                "OA lost": spread(group["OA lost"], digits=1), "right": spread(group["right"], digits=1),
                "missed by": ", ".join(missed) or "met",
                "corruption": str(group["corruption"].iloc[0]), "edits": spread(group["edits"], digits=0),
                "seconds": f"{group['seconds'].mean():.0f}", "MiB": f"{group['memory'].mean():.0f}",
            },
        )  # fmt: skip
    failed = [record for record in kept if "failure" in record]
    for name, reason in {(f"{one['network']}, {one['attack']}", one["failure"]) for one in failed}:
        table.note += f"  Not measured: {name} ({reason})."
    return [table]


def _flat(whole: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """What the table says of each record, in per cent."""
    for one in whole:
        before, after = one["before"], one["after"]
        accuracy, attack = 100 * after["overall_accuracy"], 100 * after["attack_success_rate"]
        floor, right = 100 * before["clean_target_rate"], 100 * after["corrupted_accuracy"]
        corruption = one.get("corruption", "–")
        yield {
            "network": one["network"] + (", coloured" if one["colour"] else ""),
            "attack": one["attack"], "method": one["method"], "given": one["shown"],
            "OA before": 100 * before["overall_accuracy"],
            "ASR before": 100 * before["attack_success_rate"],
            "floor": floor, "ASR": attack, "over": attack - floor,
            "OA lost": 100 * before["overall_accuracy"] - accuracy,
            "right": right, "under": accuracy - right,
            "corruption": corruption if one.get("transferred", True) else f"{corruption}: pairs alone",
            "edits": one.get("edits", 0), "seconds": one["seconds"],
            "memory": (one["memory"] or 0) / 2**20,
        }  # fmt: skip
