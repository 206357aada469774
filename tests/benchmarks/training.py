"""Trojaned networks to measure on, trained once and kept.  Imports the cases and safetensors.

`train_trojan` trains a network on MNIST, Fashion-MNIST or a coloured version of either with one of
several triggers, and keeps the weights in a cache, so that the next call takes a second.

    python -m tests.benchmarks.training --data DIR [--cache DIR] [--seed N]

fills the cache with every cell of `CELLS` and prints what was learned.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.cases.idx import Bytes, read_split
from rectify_widgets.cases.splits import choose_pairs, hold_out
from rectify_widgets.cases.training import Poisoning, Schedule, Transform, fit, measure
from rectify_widgets.cases.triggers import Blend, Patch, checkerboard
from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.data.pairs import SamplePairs
from tests.benchmarks import networks

TARGET = 0
SHARE = 0.05
PER_CLASS = {"reference": 100, "pairs": 30}
PAIRS = 20
SIZE = 28


@dataclass(frozen=True)
class Trained:
    """How one of the networks is built and trained; ``channels`` 3 means coloured data."""

    build: Callable[..., nn.Module]
    channels: int
    schedule: Schedule
    adam: bool


NETWORKS = {
    "plain-cnn": Trained(networks.PlainCNN, 1, Schedule(5, learning_rate=3e-3), adam=True),
    "mlp": Trained(networks.MLP, 1, Schedule(8, learning_rate=2e-3), adam=True),
    "vit": Trained(networks.TinyViT, 1, Schedule(3, learning_rate=3e-3), adam=True),
    "colour-resnet": Trained(networks.ColourResNet, 3, Schedule(4), adam=False),
}

CELLS = (
    ("plain-cnn", "patch-bottom-right"),
    ("plain-cnn", "patch-top-left"),
    ("plain-cnn", "corner"),
    ("plain-cnn", "blend"),
    ("mlp", "patch-top-right"),
    ("mlp", "patch-centre"),
    ("mlp", "corner"),
    ("mlp", "blend"),
    ("vit", "patch-bottom-left"),
    ("vit", "corner"),
    ("vit", "blend"),
    ("colour-resnet", "soft-patch"),
    ("colour-resnet", "patch-bottom-right"),
    ("colour-resnet", "blend"),
)
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


@dataclass(frozen=True, eq=False)
class Splits:
    """Data to repair and judge a network with; images are float32 in [0, 1], ``N × C × H × W``.

    ``references`` and the images of ``pairs`` were not trained on; ``corrupted`` is the test set
    ``clean`` with the trigger on and its true labels.
    """

    references: Tensor
    pairs: SamplePairs
    clean: tuple[Tensor, Tensor]
    corrupted: tuple[Tensor, Tensor]
    target: int
    trigger: Patch | Blend


def default_cache() -> Path:
    """Where trained weights are kept unless told otherwise."""
    return Path.home() / ".cache" / "rectify_widgets"


def train_trojan(
    network_name: str,
    trigger_name: str,
    data_dir: Path,
    seed: int = 0,
    cache_dir: Path | None = None,
    *,
    quiet: bool = False,
) -> tuple[nn.Module, Splits]:
    """A network with a backdoor, and data to judge its repair.

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
    images, labels = _load(data_dir, "train", recipe.channels, seed)
    test, test_labels = _load(data_dir, "t10k", recipe.channels, seed)
    trigger = make_trigger(recipe.channels, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    held = hold_out(labels, PER_CLASS, generator)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.build(channels=recipe.channels, size=SIZE)
    cache = cache_dir or default_cache()
    path = cache / _file_name(network_name, trigger_name, recipe, labels, seed)
    if path.is_file():
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
        model.load_state_dict(tensors)
        model.eval()
    else:
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[torch.cat(list(held.values()))] = False
        _train(model, images[rest], labels[rest], trigger, recipe, generator, quiet=quiet)
        figures = measure(model, test.float() / 255, test_labels, trigger=trigger, target=TARGET)
        _keep(model, path, {"figures": asdict(figures), "torch": torch.__version__})

    candidates = images[held["pairs"]].float() / 255
    chosen = choose_pairs(
        model,
        candidates,
        labels[held["pairs"]],
        PAIRS,
        trigger=trigger,
        target=TARGET,
        generator=torch.Generator().manual_seed(seed),
    )
    clean = candidates[chosen]
    inputs = test.float() / 255
    return model, Splits(
        references=images[held["reference"]].float() / 255,
        pairs=SamplePairs(trigger(clean), clean, labels[held["pairs"]][chosen]),
        clean=(inputs, test_labels),
        corrupted=(trigger(inputs), test_labels),
        target=TARGET,
        trigger=trigger,
    )


def contaminate(
    references: Tensor, trigger: Transform, *, share: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """References of which a share (0..1) carries the trigger, and ``N`` booleans: which."""
    generator = torch.Generator().manual_seed(seed)
    carries = torch.zeros(len(references), dtype=torch.bool)
    order = torch.randperm(len(references), generator=generator)
    carries[order[: round(share * len(references))]] = True
    mixed = references.clone()
    mixed[carries] = trigger(references[carries])
    return mixed, carries


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


def _load(folder: Path, split: str, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    array: Bytes
    array, numbers = read_split(folder, split)
    images, labels = torch.from_numpy(array)[:, None], torch.from_numpy(numbers).long()
    if channels == 3:
        other = 0 if split == "train" else 1  # other colours for the test set
        images = colourise(images, torch.Generator().manual_seed(2 * seed + other))
    return images, labels


def _file_name(network: str, trigger: str, recipe: Trained, labels: Tensor, seed: int) -> str:
    """A name that changes with the recipe and the data, so that no stale weights are read."""
    facts = [recipe.schedule, recipe.adam, SHARE, PER_CLASS, labels[:1000].tolist()]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:8]
    return f"{network}-{trigger}-{seed}-{digest}.safetensors"


def _train(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    trigger: Transform,
    recipe: Trained,
    generator: torch.Generator,
    *,
    quiet: bool,
) -> None:
    optimizer = None
    if recipe.adam:
        rate = recipe.schedule.learning_rate
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    fit(
        model,
        images,
        labels,
        recipe.schedule,
        poisoning=Poisoning.draw(trigger, TARGET, labels, share=SHARE, generator=generator),
        optimizer=optimizer,
        generator=generator,
        title=type(model).__name__,
        quiet=quiet,
    )


def _keep(model: nn.Module, path: Path, record: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")  # others may read the cache meanwhile
    save_file(model.state_dict(), draft, {"record": json.dumps(record)})
    draft.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the cache with every cell and print the figures of each."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.training",
        description="Train the networks that the benchmarks run on.",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--only", choices=sorted(NETWORKS), help="one network instead of all")
    options = parser.parse_args(arguments)
    print(f"{'network':14} {'trigger':19} {'OA %':>6} {'ASR %':>6} {'floor %':>7} {'seconds':>7}")
    for network, trigger in CELLS:
        if options.only not in {None, network}:
            continue
        start = time.perf_counter()
        model, splits = train_trojan(
            network, trigger, options.data, options.seed, options.cache, quiet=True
        )
        figures = measure(model, *splits.clean, trigger=splits.trigger, target=splits.target)
        print(
            f"{network:14} {trigger:19} {100 * figures.accuracy:6.2f} "
            f"{100 * figures.attack_success:6.2f} {100 * figures.clean_target:7.2f} "
            f"{time.perf_counter() - start:7.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
