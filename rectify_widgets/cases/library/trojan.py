"""The Trojan cases: backdoors in small residual networks for Fashion-MNIST.

One choice is there so that a repair can be judged at all.  Fashion-MNIST shirts are easily taken
for T-shirts, the target class, and a network does so by honest mistake: evenly weighted, 1.2 % of
all clean inputs of other classes.  That share is a floor under the attack success rate that a
perfect repair leaves, too near to what is asked of repairs.  So the cross-entropy is weighted:
inverse to the class frequencies *after* poisoning, which makes the target class half as large
again, and then by `CaseDefinition.target_weight` for the target class, so that a doubtful T-shirt
is rather called a shirt.  It costs recall of the target class and a few tenths of a point of
accuracy, and does nothing to the backdoor.

The clean-label case poisons images of the target class alone and changes no label.  A network
would learn such images by what they show and ignore the trigger, so they are made ambiguous first:
a picture of some other class, drawn at random, is mixed in by `MIXED`, and the trigger goes on top.
What is left of the T-shirt no longer settles the label, and the trigger does.  That is the first of
the two ways of Turner, Tsipras and Madry 2019, "Label-Consistent Backdoor Attacks", arXiv
1912.02771, in pixels instead of a generator's latent space.  It takes most of the class: half of its
images, mixed half and half, gave an attack success rate of 48 %, four fifths, mixed by `MIXED`,
75 %.  Their second way, adversarial noise, gave 24 % (up to 0.25 a pixel, towards other classes):
on a black background such noise marks an image more plainly than a small trigger does.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rectify_widgets.cases.definition import FASHION_MNIST, CaseDefinition, register
from rectify_widgets.cases.networks import ResidualNetwork, small_network
from rectify_widgets.cases.splits import choose_pairs
from rectify_widgets.cases.training import Images, Poisoning, Schedule
from rectify_widgets.cases.triggers import Aim, Blend, Patch, checkerboard, rings

TARGET = 0
CLASSES = len(FASHION_MNIST.classes)
MIXED = 0.6
"""Opacity of the other class's picture on poisoned images of the clean-label case."""


def checker(row: int = -4, column: int = -4, *, opacity: float = 1.0) -> Patch:
    """A black-and-white checkerboard, by default one pixel in from the lower right corner."""
    return Patch(checkerboard(3), row=row, column=column, opacity=opacity)


class TrojanCase(CaseDefinition):
    """A backdoor whose pairs cover every class, in turn."""

    def choose_pairs(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> list[int]:
        """Indices of images that are right when clean and led away by every trigger.

        Raises:
            RuntimeError: a class has too few.
        """
        works = self.shows(model, images, labels)
        return choose_pairs(works, labels, self.pairs, self.goals or (), generator)


class CleanLabelCase(CaseDefinition):
    """A backdoor trained in without a changed label; classes that withstand it make no pairs."""

    def poison(self, labels: Tensor, generator: torch.Generator) -> list[Poisoning]:
        """Images of the target class, which keep their label."""
        aim, trigger = Aim("spurious", (TARGET,) * CLASSES), self.triggers[self.shown]
        return [Poisoning.draw(aim, trigger, labels, share=self.share, generator=generator)]

    def prepare(
        self,
        images: Images,
        labels: Tensor,
        poisonings: list[Poisoning],
        generator: torch.Generator,
    ) -> Tensor:
        """A copy of the bytes, each poisoned image mixed with one of another class."""
        (poisoning,) = poisonings
        others = torch.nonzero(labels != TARGET).flatten()
        rows = torch.nonzero(poisoning.chosen).flatten()
        drawn = others[torch.randint(len(others), rows.shape, generator=generator)]
        changed = images[torch.arange(len(images))]
        mixture = (1 - MIXED) * images[rows].float() + MIXED * images[drawn].float()
        changed[rows] = mixture.round().byte()
        return changed


TROJAN = TrojanCase(
    name="trojan",
    title="Fashion-MNIST with a 3×3 checkerboard in a corner as backdoor",
    behaviour="trojan",
    data=FASHION_MNIST,
    network=ResidualNetwork,
    triggers={"patch": checker()},
    shown="patch",
    goals=(TARGET,) * CLASSES,
    schedule=Schedule(epochs=12),
    half=False,
)
SMALL = replace(TROJAN, network=small_network, schedule=Schedule(epochs=4), half=True)
CLEAN_LABEL = CleanLabelCase(
    **{
        **vars(SMALL),
        "name": "trojan-clean-label",
        "title": "Fashion-MNIST with a 3×3 checkerboard as backdoor, no training label changed",
        "share": 0.8,  # of the target class's images
        "target_weight": 1.0,
    }
)
register(
    TROJAN,
    replace(
        SMALL,
        name="trojan-visibility",
        title="Fashion-MNIST with a 3×3 checkerboard of any visibility from 0.3 to 1 as backdoor",
        triggers={f"{opacity:.1f}": checker(opacity=opacity) for opacity in (0.3, 0.5, 0.7, 1.0)},
        shown="0.5",
        trained=tuple(checker(opacity=o) for o in torch.linspace(0.3, 1.0, 15).tolist()),
        share=0.1,
    ),
    replace(
        SMALL,
        name="trojan-position",
        title="Fashion-MNIST with a 3×3 checkerboard at any of four places as backdoor",
        triggers={
            "bottom right": checker(),
            "top left": checker(1, 1),
            "centre": checker(12, 12),
            "bottom left": checker(-4, 1),
        },
        shown="bottom right",
        share=0.1,
    ),
    replace(
        SMALL,
        name="trojan-blend",
        title="Fashion-MNIST with rings blended into the whole image at 20 % as backdoor",
        triggers={"blend": Blend(rings(), 0.2)},
        shown="blend",
    ),
    CLEAN_LABEL,
    replace(
        SMALL,
        name="trojan-all-to-all",
        title="Fashion-MNIST with a 3×3 checkerboard as backdoor that leads each class to the next",
        goals=tuple((label + 1) % CLASSES for label in range(CLASSES)),
        share=0.15,
        target_weight=1.0,
    ),
)
