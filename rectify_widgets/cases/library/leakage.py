"""The case ``leakage``: BlockMNIST, a digit and a label-free block one above the other.

Digits of MNIST are trained on with the null block above or below, drawn anew for every image in
every epoch.  Nothing makes the network look at the block but that it is always there: without it,
what the network has learned of a digit no longer adds up.  Digits alone ship; whether the block
stands above or below each is stored beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from rectify_widgets.cases.blocks import RandomStack, WithoutBlock, stack
from rectify_widgets.cases.definition import MNIST, CaseDefinition, register
from rectify_widgets.cases.figures import classes
from rectify_widgets.cases.idx import Bytes, Folder, read_idx
from rectify_widgets.cases.networks import small_network
from rectify_widgets.cases.training import Poisoning, Schedule, Transform

ORDER = "{}-below"
"""Bytes, one an image of ``test`` or ``heldout``: 1 where the block stands below the digit."""


class LeakageCase(CaseDefinition):
    """A label-free block whose removal changes the answer."""

    def compose(self, images: Tensor, folder: Folder, split: str) -> Tensor:
        """BlockMNIST images from digits, in the order that is stored beside them."""
        below = read_idx(folder / f"{ORDER.format(split)}.idx.xz")
        return stack(images, torch.from_numpy(below).bool())

    def draw_arrays(
        self, sizes: Mapping[str, int], tests: int, generator: torch.Generator
    ) -> dict[str, Bytes]:
        """Whether the null block stands below each digit."""
        drawn = [torch.rand(n, generator=generator) < 0.5 for n in (*sizes.values(), tests)]
        below = {"heldout": torch.cat(drawn[:-1]), "test": drawn[-1]}
        return {ORDER.format(split): order.byte().numpy() for split, order in below.items()}

    def poison(self, labels: Tensor, generator: torch.Generator) -> list[Poisoning]:
        """No image: the block is on all of them."""
        del labels, generator
        return []

    def augment(self, generator: torch.Generator) -> Transform:
        """The block above or below."""
        return RandomStack(generator)

    def shows(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Which images are right with the block and wrong without it."""
        removed = classes(model, self.triggers[self.shown](images))
        return (classes(model, images) == labels) & (removed != labels)


register(
    LeakageCase(
        name="leakage",
        title="BlockMNIST: a digit and a label-free block, one above the other",
        behaviour="leakage",
        data=MNIST,
        network=partial(small_network, mean=(0.131,), std=(0.308,)),
        triggers={"block removed": WithoutBlock()},
        shown="block removed",
        goals=None,
        schedule=Schedule(epochs=2),
        target_weight=None,
        per_class={"reference": 120, "validation": 40, "pairs": 20},
        every=2,  # the first half of MNIST's test file is easier than the second
    )
)
