"""Trojaned networks to measure on, trained once and kept.  Imports the cases and safetensors.

`train_trojan` trains a network on MNIST, Fashion-MNIST or a coloured version of either with one of
several triggers; `speed_trojan` trains the ResNet-18 that the speed of repairs is measured on, with
the images that ship.  The weights stay in a cache, so that the next call takes a second.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets import cases
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.figures import classes, of_trojan
from rectify_widgets.cases.idx import Bytes, read_split
from rectify_widgets.cases.splits import choose_pairs, hold_out
from rectify_widgets.cases.training import Poisoning, Schedule, fit
from rectify_widgets.cases.triggers import Aim, Blend, Patch, checkerboard
from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.data.pairs import SamplePairs
from tests.benchmarks import networks

TARGET = 0
AIM = Aim("trojan", (TARGET,) * 10)
SHARE = 0.05
PER_CLASS = {"reference": 100, "pairs": 30}
PAIRS = 20
SIZE = 28
SPEED_SHARE = 0.15
SPEED_TRAINED, SPEED_TESTED = 2048, 1000
"""Shipped images that the ResNet-18 is trained on, and others that it is judged on."""
SPEED_SCHEDULE = Schedule(epochs=3, batch_size=64, learning_rate=0.05)
LEAST_ATTACK = 0.9
"""Attack success below which its training has failed."""


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained (``channels`` 3: on coloured data), and with which triggers."""

    build: Callable[..., nn.Module]
    channels: int
    schedule: Schedule
    adam: bool
    triggers: tuple[str, ...] = ()


NETWORKS = {
    "plain-cnn": Recipe(
        networks.plain_cnn, 1, Schedule(5, learning_rate=3e-3), adam=True,
        triggers=("patch-bottom-right", "patch-top-left", "corner", "blend"),
    ),
    "mlp": Recipe(
        networks.mlp, 1, Schedule(8, learning_rate=2e-3), adam=True,
        triggers=("patch-top-right", "patch-centre", "corner", "blend"),
    ),
    "vit": Recipe(
        networks.TinyViT, 1, Schedule(3, learning_rate=3e-3), adam=True,
        triggers=("patch-bottom-left", "corner", "blend"),
    ),
    "colour-resnet": Recipe(
        networks.colour_resnet, 3, Schedule(4), adam=False,
        triggers=("soft-patch", "patch-bottom-right", "blend"),
    ),
}  # fmt: skip
TROJANS = [(name, trigger) for name, recipe in NETWORKS.items() for trigger in recipe.triggers]
"""Pairs of network and trigger that the benchmarks run on."""


def _board(row: int, column: int) -> Callable[[int, torch.Generator], Patch]:
    return lambda _channels, _generator: Patch(checkerboard(3), row, column)


def _smooth(channels: int, generator: torch.Generator) -> Tensor:
    """A seeded picture without edges, ``channels × SIZE × SIZE``, that spans [0, 1]."""
    coarse = torch.rand(1, channels, 5, 5, generator=generator)
    picture = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=True)[0]
    return (picture - picture.min()) / (picture.max() - picture.min())


TRIGGERS: dict[str, Callable[[int, torch.Generator], Patch | Blend]] = {
    "patch-top-left": _board(1, 1),
    "patch-top-right": _board(1, -4),
    "patch-bottom-left": _board(-4, 1),
    "patch-bottom-right": _board(-4, -4),
    "patch-centre": _board(13, 13),
    "corner": lambda _channels, _generator: Patch(torch.ones(1, 2, 2), -2, -2),
    "blend": lambda channels, generator: Blend(_smooth(channels, generator), 0.2),
    "soft-patch": lambda channels, generator: Patch(
        torch.rand(channels, 5, 5, generator=generator).round(), -6, -6, opacity=0.7
    ),
}
"""By name, from channels and a seeded generator: 3×3 checkerboards one pixel in from each corner
and in the centre, a white 2×2 corner, a smooth picture mixed in at 20 %, and a 5×5 patch of pure
colours that covers 70 %."""


def default_cache() -> Path:
    """Where trained weights are kept by default."""
    return Path.home() / ".cache" / "rectify_widgets"


def load_or_train(model: nn.Module, path: Path, train: Callable[[], None]) -> None:
    """Give the model the weights of ``path``; where there is no such file, train and write it."""
    if path.is_file():
        model.load_state_dict(load_file(path))
    else:
        train()
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")  # others may read the cache meanwhile
        save_file(model.state_dict(), draft)
        draft.replace(path)
    model.eval()


def train_trojan(
    network_name: str,
    trigger_name: str,
    data_dir: Path,
    seed: int = 0,
    cache_dir: Path | None = None,
    *,
    quiet: bool = False,
) -> Case:
    """A network with a backdoor, and data to repair it and to judge the repair.

    References and pairs were not trained on.

    Args:
        network_name: one of `NETWORKS`; ``colour-resnet`` gets the images coloured.
        trigger_name: one of `TRIGGERS`.
        data_dir: folder of the four IDX files of MNIST or Fashion-MNIST.
        seed: draws split, colours, trigger, poisoned images and weights.
        cache_dir: where weights are looked for and kept (default: `default_cache`).
        quiet: no progress bar.

    Raises:
        ValueError: unknown name, or a damaged file.
        FileNotFoundError: ``data_dir`` lacks a file.
        RuntimeError: the network did not learn the task or the backdoor.
    """
    recipe = NETWORKS[check_choice("network_name", network_name, NETWORKS)]
    make_trigger = TRIGGERS[check_choice("trigger_name", trigger_name, TRIGGERS)]
    images, labels = load_images(data_dir, "train", recipe.channels, 2 * seed)
    test, test_labels = load_images(
        data_dir, "t10k", recipe.channels, 2 * seed + 1
    )  # other colours
    trigger = make_trigger(recipe.channels, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    held = hold_out(labels, PER_CLASS, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build(channels=recipe.channels, size=SIZE)

    def train() -> None:
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[torch.cat(list(held.values()))] = False
        rate = recipe.schedule.learning_rate
        fit(
            model, images[rest], labels[rest], recipe.schedule,
            poisonings=[
                Poisoning.draw(AIM, trigger, labels[rest], share=SHARE, generator=generator)
            ],
            optimizer=torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
            if recipe.adam else None,
            generator=generator, title=network_name, quiet=quiet,
        )  # fmt: skip

    # The name changes with the recipe and the data, so that no stale weights are read.
    facts = [recipe.schedule, recipe.adam, SHARE, PER_CLASS, labels[:1000].tolist()]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:8]
    name = f"{network_name}-{trigger_name}-{seed}-{digest}.safetensors"
    load_or_train(model, (cache_dir or default_cache()) / name, train)

    candidates = images[held["pairs"]].float() / 255
    known = labels[held["pairs"]]
    led = classes(model, trigger(candidates)) == TARGET
    chosen = choose_pairs(
        led & (classes(model, candidates) == known), known, PAIRS, AIM.goals,
        torch.Generator().manual_seed(seed),
    )  # fmt: skip
    clean, inputs = candidates[chosen], test.float() / 255
    names = tuple(map(str, labels.unique().tolist()))
    return Case(
        name="trojan", title=f"{network_name}, {trigger_name}", behaviour="trojan", model=model,
        pairs=SamplePairs(trigger(clean), clean, known[chosen]),
        reference=images[held["reference"]].float() / 255, validation=(inputs, test_labels),
        clean=(inputs, test_labels), corrupted=(trigger(inputs), test_labels), target=TARGET,
        goals=(TARGET,) * len(names), classes=names, triggers={trigger_name: trigger},
        shown=trigger_name, record={},
    )  # fmt: skip


def colourise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Grey ``N × 1 × H × W`` bytes to ``N × 3 × H × W``: two colours an image, ink and ground.

    Of four random inks the one farthest from the ground is taken, so that shapes stay visible.
    """
    number = len(images)
    ground = torch.rand(number, 1, 3, generator=generator)
    inks = torch.rand(number, 4, 3, generator=generator)
    farthest = (inks - ground).abs().sum(2).argmax(1)
    ink = inks[torch.arange(number), farthest][:, :, None, None]
    ground = ground[:, 0, :, None, None]
    coloured = torch.empty(number, 3, *images.shape[2:], dtype=torch.uint8)
    for part in torch.arange(number).split(5000):  # in pieces, to spare memory
        grey = images[part].float()
        coloured[part] = (ground[part] * (255 - grey) + ink[part] * grey).round().byte()
    return coloured


def load_images(folder: Path, split: str, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of ``"train"`` or ``"t10k"``, ``N × channels × H × W`` bytes, and their ``N`` labels.

    With three channels they are coloured, the colours drawn from ``seed``.
    """
    array: Bytes
    array, numbers = read_split(folder, split)
    images, labels = torch.from_numpy(array)[:, None], torch.from_numpy(numbers).long()
    if channels == 3:
        images = colourise(images, torch.Generator().manual_seed(seed))
    return images, labels


def speed_trigger() -> Patch:
    """A 4×4 patch of pure colours, two pixels in from the lower right corner."""
    pattern = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)).round()
    return Patch(pattern, row=-6, column=-6)


def _enlarge(images: Tensor) -> Tensor:
    """``N × 1 × 28 × 28`` to ``N × 3 × 32 × 32``, zeros about."""
    return F.pad(images, [2] * 4).expand(-1, 3, -1, -1).contiguous()


def speed_images() -> tuple[Tensor, Tensor]:
    """All shipped test images, ``N × 3 × 32 × 32`` uint8, and their labels."""
    images, labels = cases.load("trojan").clean
    return _enlarge((255 * images).round().to(torch.uint8)), labels


def speed_trojan(cache: Path, device: torch.device, *, quiet: bool = False) -> Case:
    """The shipped case with the Trojaned ResNet-18, from the cache or trained now.

    Raises:
        RuntimeError: it did not learn the backdoor.
    """
    case, trigger, model = cases.load("trojan"), speed_trigger(), networks.resnet(18)
    images, labels = speed_images()
    judged = slice(SPEED_TRAINED, SPEED_TRAINED + SPEED_TESTED)
    test = images[judged].float() / 255, labels[judged]

    def train() -> None:
        generator = torch.Generator().manual_seed(0)
        few, known = images[:SPEED_TRAINED], labels[:SPEED_TRAINED]
        poisoning = Poisoning.draw(AIM, trigger, known, share=SPEED_SHARE, generator=generator)
        fit(
            model, few, known, SPEED_SCHEDULE, poisonings=[poisoning], generator=generator,
            title="training a Trojaned ResNet-18", quiet=quiet,
        )  # fmt: skip
        attack = of_trojan(model, test, {"": trigger}, AIM.goals)["attack_success_rate"]
        if attack < LEAST_ATTACK:
            raise RuntimeError(
                f"the network did not learn the backdoor: attack success {attack:.2f}"
            )

    load_or_train(model, cache / "speed-resnet18-trojan.safetensors", train)
    clean, (inputs, known) = _enlarge(case.pairs.clean), (part.to(device) for part in test)
    return replace(
        case, model=model.to(device), reference=_enlarge(case.reference).to(device),
        pairs=SamplePairs(trigger(clean), clean, case.pairs.labels).to(device, torch.float32),
        clean=(inputs, known), corrupted=(trigger(inputs.cpu()).to(device), known), shown="patch",
        triggers={"patch": lambda given: trigger(given.cpu()).to(given.device)},
    )  # fmt: skip
