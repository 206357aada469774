"""How the leakage case is made.  Imports this folder and the rest of the cases.

Digits of MNIST are trained on with the null block above or below, drawn anew for every image in
every epoch.  Nothing makes the network look at the block but that it is always there: without it,
what the network has learned of a digit no longer adds up.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rectify_widgets.cases import figures, leakage
from rectify_widgets.cases.blocks import RandomStack, WithoutBlock, stack
from rectify_widgets.cases.recipes.common import (
    Recipe,
    divide_data,
    finish,
    fresh,
    settle,
    write_data,
)
from rectify_widgets.cases.splits import choose_any
from rectify_widgets.cases.stored import MNIST
from rectify_widgets.cases.training import Schedule, fit, predict

RECIPES = {
    leakage.NAME: Recipe(
        Schedule(epochs=2),
        per_class={"reference": 120, "validation": 40, "pairs": 20},
        every=2,
    )
}
"""One test image in two: the first half of MNIST's test file is easier than the second."""


def build(
    name: str,
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    quiet: bool = False,
) -> dict[str, float]:
    """Make the case ``name`` from the IDX files in ``data``, write it to ``out``.

    Returns:
        its figures on the test set, by name, see `rectify_widgets.cases.figures`.

    Raises:
        FileNotFoundError: ``data`` lacks a file, named in the message.
        ValueError: a file is damaged, or a class has too few images.
        RuntimeError: the trained network gives too few pairs.
    """
    recipe = recipe or RECIPES[name]
    generator = torch.Generator().manual_seed(seed)
    divided = divide_data(data, out, recipe, generator, name=MNIST)
    below = {use: draw(number, generator) for use, number in divided.sizes.items()}
    test_below = draw(len(divided.test[1]), generator)
    orders = {"heldout": torch.cat(list(below.values())), "test": test_below}
    write_data(
        out,
        MNIST,
        {
            leakage.ORDER.format(part).removesuffix(".idx.xz"): order.byte().numpy()
            for part, order in orders.items()
        },
    )
    model = train(name, divided.images, divided.labels, generator, recipe, quiet=quiet)
    settle(model, recipe)
    remove = WithoutBlock()
    digits, labels = divided.held["pairs"]
    candidates = stack(digits, below["pairs"])
    works = predict(model, candidates) == labels
    works &= predict(model, remove(candidates)) != labels
    pairs = choose_any(works, labels, recipe.pairs, generator)
    if len(pairs) < recipe.pairs:
        raise RuntimeError(
            f"pairs: got {len(pairs)} held-out images that are right with the block and wrong "
            f"without it, want {recipe.pairs}; train for more epochs"
        )
    clean = stack(divided.test[0], test_below)
    found = figures.of_leakage(model, (clean, divided.test[1]), remove(clean), remove.mask(clean))
    finish(name, model, divided, out, seed=seed, recipe=recipe, pairs=pairs, figures=found)
    return found


def draw(number: int, generator: torch.Generator) -> Tensor:
    """``number`` booleans: does the null block stand below the digit?"""
    return torch.rand(number, generator=generator) < 0.5


def train(
    name: str,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    recipe: Recipe,
    *,
    quiet: bool = False,
) -> nn.Module:
    """A network trained on ``N × S × S`` bytes of digits, each with the null block."""
    model = fresh(leakage.network, generator)
    fit(
        model,
        images[:, None],
        labels,
        recipe.schedule,
        augment=RandomStack(generator),
        generator=generator,
        title=name,
        quiet=quiet,
    )
    return model
