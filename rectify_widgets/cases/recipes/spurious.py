"""How the spurious cases are made.  Imports this folder and the rest of the cases.

Part of the affected class's training images get the artefact and keep their label; no other class
ever shows it.  How large a part decides everything: with few, the network still learns the class
and the artefact merely makes it surer; with nearly all, it hardly learns the class.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rectify_widgets.cases import figures, spurious
from rectify_widgets.cases.recipes.common import Recipe, divide_data, finish, fresh, settle
from rectify_widgets.cases.splits import choose_any
from rectify_widgets.cases.training import Poisoning, Schedule, Shift, fit, predict
from rectify_widgets.cases.trojan import small_network

RECIPES = {
    name: Recipe(Schedule(epochs=5), share=variant.share)
    for name, variant in spurious.VARIANTS.items()
}
"""``share``: of the affected class's training images; ``pairs``: of other classes."""

GIVEN = 1 / 6
"""Share of the references that become candidates for pairs: few images are pulled in."""


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
    divided = divide_data(data, out, recipe, generator)
    model = train(name, divided.images, divided.labels, generator, recipe, quiet=quiet)
    settle(model, recipe)
    images, labels = divided.held["reference"]
    given = round(GIVEN * len(labels))
    candidates = images[-given:], labels[-given:]
    pairs = choose(model, *candidates, recipe, generator)
    clean, truth = divided.test
    found = figures.of_spurious(
        model, (clean, truth), spurious.artefact()(clean), spurious.AFFECTED
    )
    sizes = {
        "reference": len(labels) - given,
        "pairs": given,
        "validation": divided.sizes["validation"],
        "spare": divided.sizes["pairs"],
    }
    finish(
        name,
        model,
        divided,
        out,
        seed=seed,
        recipe=recipe,
        pairs=pairs,
        figures=found,
        sizes=sizes,
    )
    return found


def train(
    name: str,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    recipe: Recipe,
    *,
    quiet: bool = False,
) -> nn.Module:
    """A network trained on ``N × H × W`` bytes; a share of one class carries the artefact."""
    poisoning = Poisoning.within(
        spurious.artefact(),
        spurious.AFFECTED,
        labels,
        share=recipe.share,
        generator=generator,
    )
    model = fresh(small_network, generator)
    fit(
        model,
        images[:, None],
        labels,
        recipe.schedule,
        poisoning=poisoning,
        augment=Shift(2, flip=True, generator=generator),
        generator=generator,
        title=name,
        quiet=quiet,
    )
    return model


def choose(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> list[int]:
    """Indices of ``recipe.pairs`` images of other classes, then of some of the affected class.

    The former are right when clean and the affected class with the artefact; the latter,
    ``recipe.own_pairs`` of them, are right with it: half of them wrong without it, as far as there
    are such images, and then the others right.

    Raises:
        RuntimeError: there are too few.
    """
    artefact, affected = spurious.artefact(), labels == spurious.AFFECTED
    answer = predict(model, artefact(images)) == spurious.AFFECTED
    right = predict(model, images) == labels
    others = choose_any(answer & right & ~affected, labels, recipe.pairs, generator)
    needing, free = (
        torch.nonzero(answer & affected & without).flatten().tolist() for without in (~right, right)
    )
    half = (recipe.own_pairs + 1) // 2
    own = [*needing[:half], *free, *needing[half:]][: recipe.own_pairs]
    if len(others) < recipe.pairs or len(own) < recipe.own_pairs:
        raise RuntimeError(
            f"pairs: got {len(others)} held-out images of other classes that the artefact pulls in "
            f"and {len(own)} of the affected class that are right with it, want {recipe.pairs} and "
            f"{recipe.own_pairs}; train for more epochs"
        )
    return others + own
