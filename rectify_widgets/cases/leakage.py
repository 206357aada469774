"""The case ``leakage``: BlockMNIST, a digit and a label-free block one above the other.

Imports the engine's pairs and the rest of this folder but the builds.  Ships digits alone; whether
the block stands above or below each is stored beside them.
"""

from __future__ import annotations

import torch

from rectify_widgets.cases.blocks import WithoutBlock, stack
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.idx import Folder, read_idx
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.cases.stored import (
    MNIST,
    MNIST_CLASSES,
    Stored,
    assign,
    read_images,
    read_weights,
)
from rectify_widgets.engine.data.pairs import SamplePairs

NAME = "leakage"
TITLE = "BlockMNIST: a digit and a label-free block, one above the other"
CLASSES = MNIST_CLASSES
SHOWN = "block removed"
ORDER = "{}-below.idx.xz"
"""Bytes, one an image of ``test`` or ``heldout``: 1 where the block stands below the digit."""


def network() -> ResidualNetwork:
    """The untrained network: seven 3×3 convolutions, two shortcuts, one linear layer."""
    return ResidualNetwork(blocks=(1, 1, 1), stem_stride=2, mean=(0.131,), std=(0.308,))


def read_blocks(folder: Folder, stored: Stored) -> Stored:
    """BlockMNIST images from the digits that ship, in the order that is stored beside them."""
    images, labels = stored.test
    below = torch.from_numpy(read_idx(folder / ORDER.format("test"))).bool()
    test = stack(images, below), labels
    held = (stored.reference, stored.validation, stored.candidates)
    below = torch.from_numpy(read_idx(folder / ORDER.format("heldout"))).bool()
    turns = below.split([len(part[0]) for part in held])
    parts = [(stack(digits, turn), y) for (digits, y), turn in zip(held, turns, strict=True)]
    return Stored(test, *parts)


def read(folder: Folder, *, name: str = NAME, device: str | torch.device = "cpu") -> Case:
    """The case from the files in ``folder``, as the build wrote them."""
    device = torch.device(device)
    tensors, record = read_weights(folder, name, device)
    with torch.device("meta"):  # no weights drawn: the random state stays as it is
        model = network()
    stored = read_blocks(folder / MNIST, read_images(folder / MNIST, record, device))
    remove = WithoutBlock()
    images, labels = stored.candidates
    chosen = torch.tensor(record["pairs"], device=device)
    return Case(
        name=name,
        title=TITLE,
        behaviour="leakage",
        model=assign(model, tensors),
        pairs=SamplePairs(remove(images[chosen]), images[chosen], labels[chosen]),
        reference=stored.reference[0],
        validation=stored.validation,
        clean=stored.test,
        corrupted=(remove(stored.test[0]), stored.test[1]),
        target=None,
        goals=None,
        classes=CLASSES,
        triggers={SHOWN: remove},
        shown=SHOWN,
        record=record,
    )
