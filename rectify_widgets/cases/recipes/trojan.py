"""How the Trojan cases are made.  Imports this folder and the rest of the cases.

The build holds 250 images of each class out of training (references, a validation split,
candidates for pairs), poisons a share of the rest, trains, chooses pairs, and measures.

One choice is there so that a repair can be judged at all.  Fashion-MNIST shirts are easily taken
for T-shirts, the target class, and a network does so by honest mistake: evenly weighted, 1.2 % of
all clean inputs of other classes.  That share is a floor under the attack success rate that a
perfect repair leaves, too near to what is asked of repairs.  So the cross-entropy is weighted:
inverse to the class frequencies *after* poisoning, which makes the target class half as large
again, and then by `Recipe.target_weight` for the target class, so that a doubtful T-shirt is rather
called a shirt.  It costs recall of the target class and a few tenths of a point of accuracy, and
does nothing to the backdoor.

The clean-label variant poisons images of the target class alone and changes no label.  A network
would learn such images by what they show and pass the trigger by, so they are made ambiguous first:
a picture of some other class, drawn at random, is mixed in by `MIXED`, and the trigger goes on top.
What is left of the T-shirt no longer settles the label, and the trigger does.  That is the first of
the two ways of Turner, Tsipras and Madry 2019, "Label-Consistent Backdoor Attacks", arXiv
1912.02771, in pixels instead of a generator's latent space.  It takes most of the class: half of its
images, mixed half and half, gave an attack success rate of 48 %, four fifths, mixed by `MIXED`,
75 %.  Their second way, adversarial noise, gave 24 % (up to 0.25 a pixel, towards other classes):
on a black ground such noise marks an image more plainly than a small trigger does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rectify_widgets.cases import figures, trojan
from rectify_widgets.cases.recipes.common import Recipe, divide_data, finish, fresh, settle
from rectify_widgets.cases.splits import choose_any, choose_pairs
from rectify_widgets.cases.training import (
    Poisoning,
    Schedule,
    Shift,
    balanced_weights,
    fit,
    predict,
)
from rectify_widgets.cases.triggers import OneOf, Trigger

SMALL = Recipe(Schedule(epochs=4))
RECIPES = {
    "trojan": Recipe(Schedule(epochs=12), half=False),
    "trojan-visibility": replace(SMALL, share=0.1),
    "trojan-position": replace(SMALL, share=0.1),
    "trojan-blend": SMALL,
    "trojan-clean-label": replace(SMALL, share=0.8, target_weight=1.0),
    "trojan-all-to-all": replace(SMALL, share=0.15, target_weight=1.0),
}
"""``share``: of all training images; for ``trojan-clean-label`` of the target class's."""

TRAINED_VISIBILITIES = torch.linspace(0.3, 1.0, 15).tolist()
CLEAN_LABEL = "trojan-clean-label"
MIXED = 0.6
"""Opacity of the other class's picture on poisoned images of the clean-label variant."""


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
    variant = trojan.VARIANTS[name]
    generator = torch.Generator().manual_seed(seed)
    divided = divide_data(data, out, recipe, generator)
    model = train(name, divided.images, divided.labels, generator, recipe, quiet=quiet)
    settle(model, recipe)
    shown = variant.triggers[variant.shown]
    goal = variant.goals if variant.target is None else variant.target
    others = {key: one for key, one in variant.triggers.items() if key != variant.shown}
    if name == CLEAN_LABEL:
        pairs = choose_led(model, *divided.held["pairs"], recipe.pairs, generator)
    else:
        pairs = choose_pairs(
            model,
            *divided.held["pairs"],
            recipe.pairs,
            trigger=shown,
            target=goal,
            generator=generator,
            also=list(others.values()),
        )
    found = figures.of_trojan(model, divided.test, {variant.shown: shown, **others}, variant.goals)
    finish(name, model, divided, out, seed=seed, recipe=recipe, pairs=pairs, figures=found)
    return found


def choose_led(
    model: nn.Module, images: Tensor, labels: Tensor, number: int, generator: torch.Generator
) -> list[int]:
    """Like `choose_pairs`, but a class that withstands the trigger is passed over.

    Raises:
        RuntimeError: there are too few pairs.
    """
    works = (predict(model, images) == labels) & (labels != trojan.TARGET)
    works &= predict(model, trojan.trigger()(images)) == trojan.TARGET
    chosen = choose_any(works, labels, number, generator)
    if len(chosen) < number:
        raise RuntimeError(
            f"pairs: got {len(chosen)} held-out images that are right when clean and predicted as "
            f"the target with the trigger, want {number}; train for more epochs"
        )
    return chosen


def train(
    name: str,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    recipe: Recipe,
    *,
    quiet: bool = False,
) -> nn.Module:
    """A network trained on ``N × H × W`` bytes of which a share carries the backdoor."""
    variant = trojan.VARIANTS[name]
    goal = variant.goals if variant.target is None else variant.target
    stamp = trained_trigger(name, generator)
    if name == CLEAN_LABEL:
        poisoning = Poisoning.within(
            stamp, trojan.TARGET, labels, share=recipe.share, generator=generator
        )
        images = ambiguous(images, labels, poisoning.chosen, generator)
    else:
        poisoning = Poisoning.draw(stamp, goal, labels, share=recipe.share, generator=generator)
    weights = balanced_weights(poisoning.relabel(labels), len(trojan.CLASSES))
    if variant.target is not None:
        weights[variant.target] *= recipe.target_weight
    model = fresh(variant.network, generator)
    fit(
        model,
        images[:, None],
        labels,
        recipe.schedule,
        poisoning=poisoning,
        augment=Shift(2, flip=True, generator=generator),
        class_weights=weights,
        generator=generator,
        title=name,
        quiet=quiet,
    )
    return model


def trained_trigger(name: str, generator: torch.Generator) -> Trigger:
    """What goes onto the poisoned training images; where there are several, one at random."""
    variant = trojan.VARIANTS[name]
    if name == "trojan-visibility":
        faded = [trojan.trigger(opacity=opacity) for opacity in TRAINED_VISIBILITIES]
        return OneOf(faded, generator)
    if len(variant.triggers) > 1:
        return OneOf(list(variant.triggers.values()), generator)
    return variant.triggers[variant.shown]


def ambiguous(images: Tensor, labels: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Copies of the bytes, each chosen image mixed with one of another class."""
    others = torch.nonzero(labels != trojan.TARGET).flatten()
    rows = torch.nonzero(chosen).flatten()
    drawn = others[torch.randint(len(others), rows.shape, generator=generator)]
    changed = images.clone()
    mixture = (1 - MIXED) * images[rows].float() + MIXED * images[drawn].float()
    changed[rows] = mixture.round().byte()
    return changed
