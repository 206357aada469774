"""Backdoors that nobody showed, and healthy networks: what `smallest_changes` says of them.

Imports the package, the training of the benchmarks and `neural_cleanse`.  Networks are small and are
trained on demand on MNIST or Fashion-MNIST; their weights are kept.
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
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.reveal.smallest_change import SmallestChange, smallest_changes
from tests.benchmarks import networks
from tests.benchmarks.neural_cleanse import neural_cleanse
from tests.benchmarks.tables import Table
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

    def figures(self, model: nn.Module) -> tuple[float, float]:
        """Attack success rate and overall accuracy, in per cent."""
        if self.trigger is None:
            raise ValueError("trigger: got None, a healthy network has no attack to measure")
        goals = (self.target,) * 10
        found = of_trojan(model, self.test, {"trigger": self.trigger}, goals)
        return (
            PER_CENT * found["attack_success_rate"],
            PER_CENT * found["overall_accuracy"],
        )


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


def _row(suspect: Suspect, found: list[SmallestChange], seconds: float) -> dict[str, str]:
    """What was said, and where there is a trigger, what a repair from it does to the true one."""
    first = found[0]
    others = [one.relative for one in found if one.target != first.target]
    row = {
        "first": f"{first.target} ({'right' if first.target == suspect.target else 'wrong'})"
        if suspect.trigger is not None else f"{first.target}",
        "accused": ", ".join(str(one.target) for one in found if one.accused) or "none",
        "size": f"{first.size:.1f}",
        "relative": f"{first.relative:.2f}",
        "next": f"{min(others):.2f}",
        "seconds": f"{seconds:.0f}",
    }  # fmt: skip
    if suspect.trigger is None or first.pairs is None:
        return {**row, "ASR": "", "OA": ""}
    result = rectify(suspect.model, first.pairs, reference=suspect.reference)
    before, after = suspect.figures(suspect.model), suspect.figures(result.model)
    return {
        **row,
        "ASR": f"{before[0]:.1f} → {after[0]:.1f}",
        "OA": f"{before[1]:.1f} → {after[1]:.1f}",
    }


def measure_carriers(options: Namespace, monitor: Monitor) -> list[Table]:
    """Networks with a backdoor and without one, by clean references alone."""
    suspects: list[Callable[[], Suspect]] = [
        lambda name=name: shipped(name, options.network_seed)  # type: ignore[misc]
        for name in SHIPPED
    ]
    if options.data is not None:
        suspects += [
            lambda network=network, trigger=trigger: train_suspect(  # type: ignore[misc]
                network, trigger, options.data, options.network_seed, options.cache
            )
            for network in NETWORKS
            for trigger in TRIGGERS
        ]
    table = Table(
        "carriers",
        f"Backdoors found without a picture of them, from {REFERENCES} clean references; 'relative' "
        "and 'next': size of the first and of the next smallest change over the median of the other "
        "classes.  ASR and OA of the true trigger on 2000 test inputs before and after `rectify` from "
        "the pairs that were made, per cent.",
    )
    peer = Table(
        "carriers-peer",
        "Neural Cleanse on the same networks: mask and pattern with an L1 penalty, the class with the "
        "greatest anomaly index below the median, accused above 2.",
    )
    for number, make in enumerate(suspects):
        suspect = make()
        monitor.report(number / len(suspects), suspect.name)
        start = time.perf_counter()
        found = smallest_changes(suspect.model, suspect.reference, seed=options.network_seed)
        seconds = time.perf_counter() - start
        table.add(network=suspect.name, **_row(suspect, found, seconds))
        start = time.perf_counter()
        sizes, indices = neural_cleanse(suspect.model, suspect.reference, options.network_seed)
        first = int(indices.argmax())
        right = "right" if first == suspect.target else "wrong"
        peer.add(
            network=suspect.name,
            first=f"{first} ({right})" if suspect.trigger is not None else f"{first}",
            accused="yes" if float(indices[first]) > 2 else "no",
            index=f"{float(indices[first]):.2f}",
            size=f"{float(sizes[first]):.1f}",
            seconds=f"{time.perf_counter() - start:.0f}",
        )
    return [table, peer]
