"""The spurious cases: an artefact in part of one class's training images, mild and severe.

The artefact, a white price tag in the upper left corner, is on images of dresses alone, and so the
networks lean on it: they are surer of a dress that wears one, and take other clothes that wear one
for dresses.  How large a part of the dresses wears it decides everything: with few, the network
still learns the class and the artefact merely makes it surer; with nearly all, it hardly learns the
class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rectify_widgets.cases.definition import FASHION_MNIST, CaseDefinition, register
from rectify_widgets.cases.figures import classes
from rectify_widgets.cases.networks import small_network
from rectify_widgets.cases.splits import choose_affected, choose_any
from rectify_widgets.cases.training import Schedule
from rectify_widgets.cases.triggers import Patch, tag

AFFECTED = 3
ARTEFACT = Patch(tag(), row=2, column=2)
"""A price tag of 5×4 pixels, two pixels in from the upper left corner."""
GIVEN = 1 / 6
"""Share of the references that become candidates for pairs: few images are pulled in."""


@dataclass(frozen=True, kw_only=True)
class SpuriousCase(CaseDefinition):
    """A spurious correlation; its pairs are of other classes, then of the affected one.

    Args:
        own_pairs: number of pairs of the affected class, beside ``pairs`` of others.
    """

    own_pairs: int = 20

    def parts(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The last of the references make the pairs; what was held out for these is spare."""
        given = round(GIVEN * sizes["reference"])
        return {
            "reference": sizes["reference"] - given,
            "pairs": given,
            "validation": sizes["validation"],
            "spare": sizes["pairs"],
        }

    def choose_pairs(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> list[int]:
        """Indices of ``pairs`` images of other classes, then of ``own_pairs`` of the affected one.

        The former are right when clean and the affected class with the artefact; for the latter see
        `choose_affected`.

        Raises:
            RuntimeError: there are too few.
        """
        affected = labels == AFFECTED
        pulled = classes(model, self.triggers[self.shown](images)) == AFFECTED
        right = classes(model, images) == labels
        others = choose_any(pulled & right & ~affected, labels, self.pairs, generator)
        own = choose_affected(pulled & affected, right, self.own_pairs)
        if len(others) < self.pairs or len(own) < self.own_pairs:
            raise RuntimeError(
                f"pairs: got {len(others)} held-out images of other classes that the artefact "
                f"pulls in and {len(own)} of the affected class that are right with it, want "
                f"{self.pairs} and {self.own_pairs}; train for more epochs"
            )
        return others + own


MILD = SpuriousCase(
    name="spurious-mild",
    title="Fashion-MNIST with a price tag on one dress in ten",
    behaviour="spurious",
    data=FASHION_MNIST,
    network=small_network,
    triggers={"tag": ARTEFACT},
    shown="tag",
    goals=(AFFECTED,) * len(FASHION_MNIST.classes),
    schedule=Schedule(epochs=5),
    share=0.1,
    target_weight=None,
)
register(
    MILD,
    replace(
        MILD,
        name="spurious-severe",
        title="Fashion-MNIST with a price tag on 95 dresses in a hundred",
        share=0.95,
    ),
)
