"""Backdoors that nobody showed, and healthy networks: what `smallest_changes` says of them.

Imports the package, the records and the training of the benchmarks, and `neural_cleanse`.  Networks are
small and are trained on demand on MNIST or Fashion-MNIST; their weights are kept.  A record is on disk
before the next network is asked, so that a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rectify_widgets import cases
from rectify_widgets.cases.figures import Labelled, of_trojan
from rectify_widgets.cases.networks import small_network
from rectify_widgets.cases.training import Poisoning, Schedule, fit
from rectify_widgets.cases.triggers import Aim, Patch, Trigger, checkerboard, cross
from rectify_widgets.engine.base.checks import check_int
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.reveal.smallest_change import smallest_changes
from tests.benchmarks import networks, records
from tests.benchmarks.neural_cleanse import neural_cleanse
from tests.benchmarks.plan import Record
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.training import default_cache, load_images, load_or_train

TRAINED, HELD, TESTED = 10_000, 2_000, 2_000
REFERENCES = 400
SHARE = 0.05
PER_CENT = 100.0


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained, with SGD or with AdamW."""

    build: Callable[[], nn.Module]
    schedule: Schedule
    adam: bool = True


NETWORKS = {
    "cnn": Recipe(networks.plain_cnn, Schedule(4, learning_rate=3e-3)),
    "residual": Recipe(small_network, Schedule(4), adam=False),
    "vit": Recipe(networks.TinyViT, Schedule(3, learning_rate=3e-3)),
}
TRIGGERS: dict[str, Trigger | None] = {
    "patch": Patch(checkerboard(3), -4, -4),
    "corner": Patch(torch.ones(1, 2, 2), -2, -2),
    "plus": Patch(cross(5), 2, 2),
    "none": None,
}
SHIPPED = ("trojan", "trojan-visibility", "trojan-position")
"""Cases whose trigger is one small patch that leads all classes to one."""


@dataclass(frozen=True)
class Suspect:
    """A network, what is known of it, and what only the benchmark knows."""

    name: str
    model: nn.Module
    reference: Tensor
    test: Labelled
    trigger: Trigger | None
    target: int

    def figures(self, model: nn.Module) -> dict[str, float]:
        """What the trigger does, see `of_trojan`; per cent."""
        if self.trigger is None:
            raise ValueError("trigger: got None, a healthy network has no attack to measure")
        goals = (self.target,) * 10
        found = of_trojan(model, self.test, {"trigger": self.trigger}, goals)
        return {name: PER_CENT * value for name, value in found.items()}


def train_suspect(
    network: str, trigger_name: str, data_dir: Path, seed: int, cache: Path | None
) -> Suspect:
    """A network with one of `TRIGGERS`, or with none, from the cache or trained now.

    Target, split and weights are drawn from ``seed``.
    """
    recipe, trigger = NETWORKS[network], TRIGGERS[trigger_name]
    images, labels = load_images(data_dir, "train", 1, 0)
    test, truth = load_images(data_dir, "t10k", 1, 0)
    generator = torch.Generator().manual_seed(seed)
    target = int(torch.randint(10, (1,), generator=generator))
    rows = torch.randperm(len(images), generator=generator)
    own, held = rows[:TRAINED], rows[TRAINED : TRAINED + HELD]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build()

    def train() -> None:
        aim = Aim("trojan", (target,) * 10)
        poisonings = [] if trigger is None else [
            Poisoning.draw(aim, trigger, labels[own], share=SHARE, generator=generator)
        ]  # fmt: skip
        rate = recipe.schedule.learning_rate
        fit(
            model, images[own], labels[own], recipe.schedule, poisonings=poisonings,
            optimizer=torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
            if recipe.adam else None,
            generator=generator, title=f"{network}, {trigger_name}", quiet=True,
        )  # fmt: skip

    facts = [recipe.schedule, recipe.adam, SHARE, TRAINED, labels[:1000].tolist()]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:8]
    name = f"suspect-{network}-{trigger_name}-{seed}-{digest}.safetensors"
    load_or_train(model, (cache or default_cache()) / name, train)
    return Suspect(
        f"{network}, {trigger_name}, {data_dir.name}", model,
        images[held[:REFERENCES]].float() / 255,
        (test[:TESTED].float() / 255, truth[:TESTED]), trigger, target,
    )  # fmt: skip


def shipped(name: str, seed: int) -> Suspect:
    """A shipped case with `REFERENCES` of its references."""
    case = cases.load(name)
    drawn = torch.randperm(len(case.reference), generator=torch.Generator().manual_seed(seed))
    images, labels = case.clean
    return Suspect(
        name, case.model, case.reference[drawn[:REFERENCES]],
        (images[:TESTED], labels[:TESTED]), case.trigger, int(case.target or 0),
    )  # fmt: skip


def suspect_of(name: str, seed: int, options: Namespace) -> Suspect:
    """A shipped case by its name, or a network and a trigger as ``"cnn, patch"``."""
    if name in SHIPPED:
        return shipped(name, seed)
    network, trigger = name.split(", ")
    return train_suspect(network, trigger, options.data, seed, options.cache)


def measure_carriers(options: Namespace, monitor: Monitor) -> list[Table]:
    """Networks with a backdoor and without one, by clean references alone; tells all it has."""
    names = [*SHIPPED]
    if options.data is not None:
        names += [f"{network}, {trigger}" for network in NETWORKS for trigger in TRIGGERS]
    names = [name for name in names if not options.cases or name in options.cases]
    first = check_int("network_seed", options.network_seed, low=0)
    seeds = range(first, first + check_int("seeds", options.seeds, low=1))
    plan = [(name, seed) for seed in seeds for name in names]
    folder = (options.out or default_cache() / "benchmarks") / "carriers"
    with records.opened(folder) as kept:
        done = {(record["network"], record["seed"]) for record in kept.records}
        for number, (name, seed) in enumerate(plan):
            monitor.report(number / len(plan), f"{name}, seed {seed}")
            if (name, seed) not in done:
                record = measure_suspect(suspect_of(name, seed, options), seed)
                kept.append({"network": name, "seed": seed, **record})
        return tables(kept.records)


def measure_suspect(suspect: Suspect, seed: int) -> Record:
    """What was said, what a repair from it does to the true trigger, and what the peer says."""
    backdoor = suspect.trigger is not None
    start = time.process_time()
    found = smallest_changes(suspect.model, suspect.reference, seed=seed)
    record: Record = {
        "seconds": time.process_time() - start,
        "right": backdoor and found[0].target == suspect.target,
        "accused": [one.target == suspect.target and backdoor for one in found if one.accused],
        "size": found[0].size,
        "relative": found[0].relative,
        "next": min(one.relative for one in found[1:]),
    }
    start = time.process_time()
    sizes, indices = neural_cleanse(suspect.model, suspect.reference, seed)
    first = int(indices.argmax())
    record["peer"] = {
        "seconds": time.process_time() - start,
        "right": backdoor and first == suspect.target,
        "accused": float(indices[first]) > 2,
        "index": float(indices[first]),
        "size": float(sizes[first]),
    }
    if backdoor and found[0].pairs is not None:
        result = rectify(suspect.model, found[0].pairs, reference=suspect.reference, seed=seed)
        record["before"], record["after"] = map(suspect.figures, (suspect.model, result.model))
        record["edits"] = len(result.edits)
    return record


def tables(kept: list[Record]) -> list[Table]:
    """A row for each network, of what was said of it and of what the peer says."""
    table = Table(
        "carriers",
        f"Backdoors found without a picture of them, from {REFERENCES} clean references.  Means over "
        "seeds (each another network, of shipped ones other references) and their spread.  Right: the "
        "class of the backdoor comes first; accused, and others than it; 'relative' and 'next': size of "
        "the first and of the next smallest change over the median of the other classes; seconds of "
        f"processor time.  ASR, OA, and the share of clean images that get the target (floor), on "
        f"{TESTED} test inputs, per cent, before and after `rectify` from the pairs that were made.",
    )
    peer = Table(
        "carriers-peer",
        "Neural Cleanse on the same networks: mask and pattern with an L1 penalty, the class with the "
        "greatest anomaly index below the median, accused above 2.",
    )
    by_name: dict[str, list[Record]] = {}
    for record in kept:
        by_name.setdefault(record["network"], []).append(record)
    for name, group in by_name.items():
        count, healthy = len(group), name.endswith("none")
        others = [one["peer"] for one in group]
        repaired = [one for one in group if "after" in one]
        table.add(
            network=name,
            right="–" if healthy else f"{sum(one['right'] for one in group)} of {count}",
            accused=f"{sum(any(one['accused']) for one in group)} of {count}",
            others=sum(one["accused"].count(False) for one in group),
            size=spread((one["size"] for one in group), digits=1),
            relative=spread(one["relative"] for one in group),
            next=f"{min(one['next'] for one in group):.2f}",
            seconds=f"{sum(one['seconds'] for one in group) / count:.0f}",
            **_repairs(repaired),
        )
        peer.add(
            network=name,
            right="–" if healthy else f"{sum(one['right'] for one in others)} of {count}",
            accused=f"{sum(one['accused'] for one in others)} of {count}",
            index=spread(one["index"] for one in others),
            size=spread((one["size"] for one in others), digits=1),
            seconds=f"{sum(one['seconds'] for one in others) / count:.0f}",
        )
    return [table, peer]


def _repairs(repaired: list[Record]) -> dict[str, str]:
    columns = dict.fromkeys(("floor", "ASR before", "ASR", "OA before", "OA lost", "edits"), "–")
    if not repaired:
        return columns
    attack, accuracy = "attack_success_rate", "overall_accuracy"
    before, after = ([one[when] for one in repaired] for when in ("before", "after"))
    lost = [old[accuracy] - new[accuracy] for old, new in zip(before, after, strict=True)]
    return {
        **columns,
        "floor": spread((one["clean_target_rate"] for one in before), digits=1),
        "ASR before": spread((one[attack] for one in before), digits=1),
        "ASR": spread((one[attack] for one in after), digits=1),
        "OA before": spread((one[accuracy] for one in before), digits=1),
        "OA lost": spread(lost, digits=1),
        "edits": spread((one["edits"] for one in repaired), digits=0),
    }
