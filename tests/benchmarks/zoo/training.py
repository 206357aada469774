"""Networks attacked in every way of the zoo, trained once and kept.  Imports the cases.

`train_zoo` trains a network on Fashion-MNIST, MNIST or a coloured version of either with one of
`tests.benchmarks.zoo.attacks.ATTACKS`.  The weights stay in a cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rectify_widgets.cases.case import Case
from rectify_widgets.cases.figures import Labelled, classes, of_trojan
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.cases.splits import choose_pairs, hold_out
from rectify_widgets.cases.training import Poisoning, Schedule, fit, led_to
from rectify_widgets.cases.triggers import Aim, Trigger
from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.data.pairs import SamplePairs
from tests.benchmarks import networks
from tests.benchmarks.training import default_cache, load_images, load_or_train
from tests.benchmarks.zoo import learning
from tests.benchmarks.zoo.attacks import ATTACKS, SIZE, InputAware

TRAINED, TESTED, VALIDATED = 12_000, 9_000, 1_000
"""Images that are trained on, and test images for the figures and, after these, for validation."""
SHARE = 0.1
"""Of the training images, those that are poisoned."""
PER_CLASS = {"reference": 100, "pairs": 30}
MORE = 1_000
"""References beyond those of `PER_CLASS`, of any class."""
PAIRS = 20
LEAST_ACCURACY = 0.75
"""Overall accuracy below which the training has failed."""


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained, with SGD or with AdamW."""

    build: Callable[..., nn.Module]
    schedule: Schedule
    adam: bool = False

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A new one for ``model``."""
        rate = self.schedule.learning_rate
        if self.adam:
            return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        return torch.optim.SGD(
            model.parameters(), lr=rate, momentum=self.schedule.momentum,
            weight_decay=self.schedule.weight_decay, nesterov=True,
        )  # fmt: skip


def residual(*, channels: int = 1, size: int = SIZE) -> nn.Module:
    """The residual network of 16, 32 and 64 channels; of any size."""
    del size
    if channels == 3:
        return ResidualNetwork(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    return ResidualNetwork()


NETWORKS = {
    "residual": Recipe(residual, Schedule(4)),
    "plain-cnn": Recipe(networks.plain_cnn, Schedule(8, learning_rate=3e-3), adam=True),
    "vit": Recipe(networks.TinyViT, Schedule(10, learning_rate=3e-3), adam=True),
}


@dataclass(frozen=True)
class _Site:
    """All that a network of the zoo is trained with but the attack."""

    network: str
    channels: int
    images: Tensor
    labels: Tensor
    test: Labelled
    seed: int
    folder: Path
    quiet: bool

    def new(self) -> nn.Module:
        """An untrained network."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return NETWORKS[self.network].build(channels=self.channels, size=SIZE)

    def schedule(self, name: str) -> Schedule:
        """How long the network is trained with the attack ``name``, or none."""
        schedule = NETWORKS[self.network].schedule
        longer = ATTACKS[name].longer if name in ATTACKS else 1
        return replace(schedule, epochs=longer * schedule.epochs)

    def path(self, name: str, *facts: object) -> Path:
        """Of the weights; changes with the recipe and the data, so that none are stale."""
        recipe = NETWORKS[self.network]
        first = self.labels[:1000].tolist()
        known = [self.schedule(name), recipe.adam, first, len(self.labels), *facts]
        digest = hashlib.sha256(repr(known).encode()).hexdigest()[:8]
        kind = f"{self.network}{'-colour' if self.channels == 3 else ''}"
        return self.folder / f"zoo-{kind}-{name}-{self.seed}-{digest}.safetensors"

    def fit(self, name: str, model: nn.Module, images: Tensor, *poisonings: Poisoning) -> None:
        """Train ``model`` on ``images``, with the labels of the site's own."""
        recipe = NETWORKS[self.network]
        fit(
            model, images, self.labels, self.schedule(name), poisonings=poisonings,
            optimizer=recipe.optimizer(model), generator=self.generator(),
            title=self.network, quiet=self.quiet,
        )  # fmt: skip

    def generator(self) -> torch.Generator:
        """What draws poisoned images and batches."""
        return torch.Generator().manual_seed(self.seed)

    def clean(self) -> nn.Module:
        """The network without an attack, from the cache or trained now."""
        model = self.new()
        load_or_train(model, self.path("clean"), lambda: self.fit("clean", model, self.images))
        return model

    def attacked(self, name: str, trigger: Trigger) -> nn.Module:
        """The network with the attack ``name``, and its trigger's weights if there are any."""
        attack, model = ATTACKS[name], self.new()
        kept = nn.ModuleDict({"network": model})
        facts: tuple[object, ...] = (SHARE, attack.goals)
        if isinstance(trigger, InputAware):
            kept["generator"] = trigger.generator
            facts += (trigger.bound, learning.GENERATOR_RATE, learning.DIVERSITY_WEIGHT)
        else:
            facts += (_fingerprint(trigger, self.channels),)
        if attack.consistent:
            facts += (
                learning.SPOILT_SHARE, learning.SPOILING_BOUND, learning.SPOILING_STEPS,
            )  # fmt: skip

        def train() -> None:
            if isinstance(trigger, InputAware):
                recipe = NETWORKS[self.network]
                learning.fit_input_aware(
                    model, trigger, self.images, self.labels, attack.goals, self.schedule(name),
                    share=SHARE, optimizer=recipe.optimizer(model), generator=self.generator(),
                    title=self.network, quiet=self.quiet,
                )  # fmt: skip
            elif attack.consistent:
                images, poisoning = self.consistent(trigger, attack.goals[0])
                self.fit(name, model, images, poisoning)
            else:
                aim = Aim("trojan", attack.goals)
                poisoning = Poisoning.draw(
                    aim, trigger, self.labels, share=SHARE, generator=self.generator()
                )
                self.fit(name, model, self.images, poisoning)
            found = of_trojan(model, self.test, {name: trigger}, attack.goals)
            if (
                found["overall_accuracy"] < LEAST_ACCURACY
                or found["attack_success_rate"] < attack.least
            ):
                raise RuntimeError(
                    f"{self.network}, {name}: the network did not learn the task or the attack: "
                    f"accuracy {found['overall_accuracy']:.2f}, attack success "
                    f"{found['attack_success_rate']:.2f}"
                )

        load_or_train(kept, self.path(name, *facts), train)
        return model

    def consistent(self, trigger: Trigger, target: int) -> tuple[Tensor, Poisoning]:
        """Training images of which some of the target class are spoilt, and which carry what."""
        rows = torch.nonzero(self.labels == target).flatten()
        drawn = torch.randperm(len(rows), generator=self.generator())
        rows = rows[drawn[: round(learning.SPOILT_SHARE * len(rows))]]
        spoilt = learning.spoil(self.clean(), self.images[rows].float() / 255, self.labels[rows])
        images = self.images.clone()
        images[rows] = (255 * spoilt).round().byte()
        chosen = torch.zeros(len(images), dtype=torch.bool)
        chosen[rows] = True
        return images, Poisoning(trigger, range(10), chosen)


def _fingerprint(trigger: Trigger, channels: int) -> str:
    """Differs where two triggers do anything else to a ramp and to noise; coarse on purpose."""
    ramp = torch.linspace(0, 1, SIZE * SIZE).reshape(1, 1, SIZE, SIZE).expand(1, channels, -1, -1)
    noise = torch.rand(3, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    changed = trigger(torch.cat([ramp, noise]))
    return hashlib.sha256((60 * changed).round().byte().numpy().tobytes()).hexdigest()


def train_zoo(
    network: str,
    attack: str,
    data_dir: Path,
    seed: int = 0,
    cache_dir: Path | None = None,
    *,
    colour: bool = False,
    quiet: bool = False,
) -> Case:
    """An attacked network, and data to repair it and to judge the repair.

    References and pairs were not trained on.  The case's one trigger is the attack as a function.

    Args:
        network: one of `NETWORKS`.
        attack: one of `ATTACKS`.
        data_dir: folder of the four IDX files of MNIST or Fashion-MNIST.
        seed: draws split, colours, trigger, poisoned images and weights.
        cache_dir: where weights are looked for and kept (default: `default_cache`).
        colour: colour the images, ``N × 3 × 28 × 28``.
        quiet: no progress bar.

    Raises:
        ValueError: unknown name, or a damaged file.
        FileNotFoundError: ``data_dir`` lacks a file.
        RuntimeError: the network did not learn the task or the attack.
    """
    check_choice("network", network, NETWORKS)
    what = ATTACKS[check_choice("attack", attack, ATTACKS)]
    channels = 3 if colour else 1
    images, labels = load_images(data_dir, "train", channels, 2 * seed)
    inputs, known = load_images(data_dir, "t10k", channels, 2 * seed + 1)  # other colours
    test = inputs[:TESTED].float() / 255, known[:TESTED]
    later = slice(TESTED, TESTED + VALIDATED)
    aim = Aim("trojan", what.goals)
    trigger = what.make(channels, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    held = hold_out(labels, PER_CLASS, generator)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[torch.cat(list(held.values()))] = False
    free = torch.nonzero(rest).flatten()
    rows, more, _ = free[torch.randperm(len(free), generator=generator)].tensor_split(
        (TRAINED, TRAINED + MORE)
    )
    site = _Site(
        network,
        channels,
        images[rows],
        labels[rows],
        test,
        seed,
        cache_dir or default_cache(),
        quiet,
    )
    model = site.attacked(attack, trigger)

    candidates, truth = images[held["pairs"]].float() / 255, labels[held["pairs"]]
    led = classes(model, trigger(candidates)) == led_to(aim.goals, truth)
    pairs = choose_pairs(
        led & (classes(model, candidates) == truth), truth, PAIRS, aim.goals,
        torch.Generator().manual_seed(seed),
    )  # fmt: skip
    clean = candidates[pairs]
    return Case(
        name="zoo", title=f"{network}, {attack}{', coloured' if colour else ''}",
        behaviour="trojan", model=model,
        pairs=SamplePairs(trigger(clean), clean, truth[pairs]),
        reference=images[torch.cat([held["reference"], more])].float() / 255,
        validation=(inputs[later].float() / 255, known[later]), clean=test,
        corrupted=(trigger(test[0]), test[1]), target=aim.target, goals=aim.goals,
        classes=tuple(map(str, range(10))), triggers={attack: trigger}, shown=attack, record={},
    )  # fmt: skip
