"""How the cases with two behaviours are made.  Imports this folder and the rest of the cases.

The behaviours are trained in together, on images that none of the others is on.  The class weights
are those of the Trojan cases: see `recipes.trojan`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rectify_widgets.cases import figures, several, trojan
from rectify_widgets.cases.recipes.common import Recipe, divide_data, finish, fresh, settle
from rectify_widgets.cases.splits import choose_any
from rectify_widgets.cases.training import (
    Poisoning,
    Schedule,
    Shift,
    balanced_weights,
    fit,
    predict,
)

RECIPES = {name: Recipe(Schedule(epochs=5)) for name in several.VARIANTS}
"""``share``: of all training images, for each Trojan; `several.Part.share` goes before it."""


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
    pairs = choose(name, model, *divided.held["pairs"], recipe, generator)
    variant = several.VARIANTS[name]
    found = figures.of_several(model, divided.test, variant.triggers, variant.aims)
    finish(name, model, divided, out, seed=seed, recipe=recipe, pairs=pairs, figures=found)
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
    """A network trained on ``N × H × W`` bytes of which shares carry the corruptions."""
    poisonings = poison(name, labels, recipe, generator)
    trained = labels
    for one in poisonings:
        trained = one.relabel(trained)
    weights = balanced_weights(trained, len(several.CLASSES))
    weights[trojan.TARGET] *= recipe.target_weight
    model = fresh(trojan.small_network, generator)
    fit(
        model,
        images[:, None],
        labels,
        recipe.schedule,
        poisoning=poisonings,
        augment=Shift(2, flip=True, generator=generator),
        class_weights=weights,
        generator=generator,
        title=name,
        quiet=quiet,
    )
    return model


def poison(
    name: str, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> list[Poisoning]:
    """Which images carry which corruption; none carries two."""
    poisonings: list[Poisoning] = []
    taken = torch.zeros(len(labels), dtype=torch.bool)
    for part in several.VARIANTS[name].parts.values():
        draw = Poisoning.within if part.behaviour == "spurious" else Poisoning.draw
        share = recipe.share if part.share is None else part.share
        one = draw(part.trigger, part.target, labels, share=share, generator=generator, taken=taken)
        poisonings.append(one)
        taken = taken | one.chosen
    return poisonings


def choose(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
) -> list[int]:
    """Indices of images that are right when clean and led away by every corruption.

    Raises:
        RuntimeError: there are too few.
    """
    works = predict(model, images) == labels
    for part in several.VARIANTS[name].parts.values():
        works &= (labels != part.target) & (predict(model, part.trigger(images)) == part.target)
    chosen = choose_any(works, labels, recipe.pairs, generator)
    if len(chosen) < recipe.pairs:
        raise RuntimeError(
            f"pairs: got {len(chosen)} held-out images that are right when clean and led away by "
            f"every corruption, want {recipe.pairs}; train for more epochs"
        )
    return chosen
