"""A toy case for the comparison, and made-up records.  Imports the package, and the engine's toys."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from rectify_widgets.cases.case import Case
from rectify_widgets.engine.data.pairs import SamplePairs
from tests.benchmarks.plan import BEFORE, EVERY, Record, Run
from tests.engine import toy, traces

BLEND = "trojan-blend"
PAIRS = 12


@cache
def _loaded() -> toy.Toy:
    return toy.load()


def case(name: str = BLEND) -> Case:
    """A Trojan on the engine's toy data, called like one that ships."""
    loaded = _loaded()
    clean, labels = toy.samples(2 * PAIRS, seed=8)
    clean, labels = clean[labels != toy.TARGET][:PAIRS], labels[labels != toy.TARGET][:PAIRS]
    return Case(
        name=name,
        title="toy",
        behaviour="trojan",
        model=copy.deepcopy(loaded.model),
        pairs=SamplePairs(toy.stamped(clean), clean, labels),
        reference=loaded.reference,
        validation=toy.samples(60, seed=9),
        clean=(loaded.x, loaded.y),
        corrupted=(toy.stamped(loaded.x), loaded.y),
        target=toy.TARGET,
        goals=(toy.TARGET,) * toy.CLASSES,
        classes=tuple(map(str, range(toy.CLASSES))),
        triggers={"patch": toy.stamped},
        shown="patch",
        record={"heldout": "none"},
    )


def tiny_case() -> Case:
    """Random weights, which peers change all the same, and quickly."""
    clean = traces.images(4, seed=3)
    test = traces.images(40, seed=6)
    labels = torch.arange(40) % 4
    return replace(
        case(),
        model=traces.Tiny(),
        pairs=SamplePairs(traces.corrupted(clean), clean, labels[:4]),
        reference=traces.images(20, seed=5),
        validation=(traces.images(12, seed=4), labels[:12]),
        clean=(test, labels),
        corrupted=(traces.corrupted(test), labels),
        goals=(0,) * 4,
        triggers={"patch": traces.corrupted},
    )


def changed(given: Case) -> Case:
    """The case with another network."""
    state = {key: tensor.clone() for key, tensor in given.model.state_dict().items()}
    given.model.load_state_dict(
        {k: t + 1 if t.is_floating_point() else t for k, t in state.items()}
    )
    return given


def trojan_figures(attack: float = 1.0, accuracy: float = 0.9, floor: float = 0.005) -> Record:
    """Figures of a Trojan with one trigger."""
    return {
        "overall_accuracy": accuracy,
        "attack_success_rate": attack,
        "corrupted_accuracy": 1.0 - attack,
        "clean_target_rate": floor,
    }


def spurious_figures(bias: float, accuracy: float = 0.9, recall: float = 0.5) -> Record:
    """Figures of a spurious correlation."""
    return {
        "overall_accuracy": accuracy,
        "corrupted_accuracy": accuracy,
        "recall_without": recall,
        "recall_with": recall + bias,
        "spurious_bias": bias,
        "pulled_in": 0.04,
        "clean_target_rate": 0.01,
        "worst_group_accuracy": min(recall, 0.4),
    }


def leakage_figures(net: float, accuracy: float = 0.99) -> Record:
    """Figures of leakage."""
    return {
        "overall_accuracy": accuracy,
        "corrupted_accuracy": 0.97,
        "net_attribution": net,
        "attribution_share": 0.5,
        "logit_change": net,
    }


def record(run: Run, *, network: str = "one", source: str = "shipped", **more: Any) -> Record:
    """A record as the runner writes it; ``figures`` or ``failure`` among ``more``."""
    done = {
        "seconds": 2.0,
        "memory": 3_000_000,
        "options": {},
        "edits": [],
        "stopped": None,
        "tried": 0,
    }
    extra = done if "figures" in more and run.method != BEFORE else {}
    return {
        **run.fields(),
        "warnings": [],
        "took": 2.5,
        "source": source,
        "network": network,
        **extra,
        **more,
    }


def before(name: str, figures: Record) -> Record:
    """The record of an unrepaired network."""
    return record(Run(name, BEFORE, EVERY, 0, 0), figures=figures)


def many(
    name: str, method: str, figures: list[Record], *, pool: str = EVERY, n: int = 1, **more: Any
) -> list[Record]:
    """A record for each seed."""
    return [
        record(Run(name, method, pool, n, seed), figures=one, **more)
        for seed, one in enumerate(figures)
    ]
