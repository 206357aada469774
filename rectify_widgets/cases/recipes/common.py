"""What all builds share: dividing the data, writing what ships, and the record.

Imports this folder and the rest of the cases.  Everything is drawn from one generator, seeded once:
the held-out images first, so that all cases on one data set hold out the same ones for a seed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor, nn

from rectify_widgets.cases.idx import Bytes, read_split, write_idx
from rectify_widgets.cases.splits import hold_out
from rectify_widgets.cases.stored import (
    FASHION,
    Record,
    as_images,
    fingerprint,
    halve,
    is_half,
    write_weights,
)
from rectify_widgets.cases.training import Schedule


@dataclass(frozen=True)
class Recipe:
    """What a case is made with, beside what `load` has to know as well.

    Args:
        schedule: length and speed of the training.
        share: share (0..1) of the training images, or of a class's, that carry the corruption; what
            of, each recipe says.
        target_weight: factor on the target's balanced class weight; below 1, fewer clean inputs
            of other classes are taken for the target.
        pairs: number of pairs, chosen from the held-out images for them.
        own_pairs: number of further pairs of the affected class (spurious cases only).
        per_class: images per class held out of training, by use.
        half: store matrices and kernels in float16.
        every: take one test image in so many.
    """

    schedule: Schedule
    share: float = 0.05
    target_weight: float = 0.4
    pairs: int = 20
    own_pairs: int = 20
    per_class: Mapping[str, int] = field(
        default_factory=lambda: {"reference": 180, "validation": 60, "pairs": 10}
    )
    half: bool = True
    every: int = 1


@dataclass(frozen=True)
class Divided:
    """A data set divided into what is trained on, what is held out, and the test set.

    Attributes:
        images, labels: to train on, ``N × H × W`` bytes and ``N`` numbers.
        held: held-out images (float32 in [0, 1], ``N × 1 × H × W``) and labels, by use.
        test: test images, likewise, and labels.
        folder: where the parts that ship were written.
    """

    images: Tensor
    labels: Tensor
    held: Mapping[str, tuple[Tensor, Tensor]]
    test: tuple[Tensor, Tensor]
    folder: Path

    @property
    def sizes(self) -> dict[str, int]:
        """Number of held-out images by use."""
        return {use: len(labels) for use, (_, labels) in self.held.items()}


def divide_data(
    data: Path, out: Path, recipe: Recipe, generator: torch.Generator, *, name: str = FASHION
) -> Divided:
    """Divide the IDX files in ``data`` and write what ships, with its notices, to ``out/name``.

    Raises:
        FileNotFoundError: ``data`` lacks a file, named in the message.
        ValueError: a file is damaged, or a class has too few images.
    """
    images, labels = map(torch.from_numpy, read_split(data, "train"))
    test_images, test_labels = (array[:: recipe.every] for array in read_split(data, "t10k"))
    held = hold_out(labels.long(), recipe.per_class, generator)
    heldout = torch.cat(list(held.values()))
    write_data(
        out,
        name,
        {
            "heldout-images": images[heldout].numpy(),
            "heldout-labels": labels[heldout].numpy(),
            "test-images": test_images,
            "test-labels": test_labels,
        },
    )
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[heldout] = False
    return Divided(
        images=images[rest],
        labels=labels[rest].long(),
        held={use: (as_images(images[i].numpy()), labels[i].long()) for use, i in held.items()},
        test=(as_images(test_images), torch.from_numpy(test_labels.copy()).long()),
        folder=out / name,
    )


def write_data(out: Path, name: str, arrays: Mapping[str, Bytes]) -> None:
    """Write arrays as packed IDX to ``out/name``, the licence and the notice beside them."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in arrays.items():
        write_idx(folder / f"{stem}.idx.xz", array)
    own = files("rectify_widgets.cases") / "data" / name
    for notice in ("LICENSE.txt", "NOTICE.txt"):
        if not (own / notice).is_file():
            continue
        with as_file(own / notice) as source:
            if source.resolve() != (folder / notice).resolve():
                shutil.copyfile(source, folder / notice)


def fresh(make: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """A new network whose first weights are drawn from ``generator``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return make()


def finish(
    name: str,
    model: nn.Module,
    divided: Divided,
    out: Path,
    *,
    seed: int,
    recipe: Recipe,
    pairs: list[int],
    figures: Mapping[str, float],
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Write weights and record.

    Args:
        name: of the case.
        model: trained, and rounded if it is to be stored in half precision.
        divided: what it was trained on.
        out: folder to write to.
        seed: of everything.
        recipe: how it was made.
        pairs: indices among the held-out images for pairs.
        figures: what was measured on the test set.
        sizes: how the held-out images are divided, where not as they were held out.
    """
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    record: Record = {
        "command": f"python -m rectify_widgets.cases.build {name} "
        f"--data DIR --seed {seed} --epochs {recipe.schedule.epochs}",
        "seed": seed,
        "epochs": recipe.schedule.epochs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stored": "float16" if all(map(is_half, kernels)) else "float32",
        **{figure: round(value, 4) for figure, value in figures.items()},
        "heldout": fingerprint(divided.folder),
        "parts": dict(sizes or divided.sizes),
        "pairs": pairs,
    }
    write_weights(out, name, model, record)


def settle(model: nn.Module, recipe: Recipe) -> None:
    """Round the trained weights if they are to be stored in half precision."""
    if recipe.half:
        halve(model)
