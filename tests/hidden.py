"""A network whose backdoor, if it has one, no picture shows, and clean references.  Imports torch.

The backdoor is four pixels in a corner, and everything else is arithmetic by hand.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE, CLASSES, TARGET = 12, 5, 3
CORNER = (slice(0, 2), slice(0, 2))


class Blobs(nn.Module):
    """Tells which of five stripes is the brightest, and, with a backdoor, what the corner says."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.read = nn.Conv2d(1, CLASSES + 1, SIDE)
        self.last = nn.Linear(CLASSES + 1, CLASSES)
        with torch.no_grad():
            self.read.weight.zero_()
            self.read.bias.zero_()  # type: ignore[union-attr]
            for one in range(CLASSES):
                self.read.weight[one, 0, 2 + 2 * one : 4 + 2 * one, 2:] = 1.0
            self.read.weight[CLASSES, 0][CORNER] = 1.0
            self.read.bias[CLASSES] = -2.5  # type: ignore[index]
            self.last.weight.zero_()
            self.last.bias.zero_()
            self.last.weight[:, :CLASSES] = torch.eye(CLASSES)
            self.last.weight[TARGET, CLASSES] = strength
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """``N × 1 × 12 × 12`` to ``N × 5``."""
        scores: Tensor = self.last(functional.softplus(self.read(images)).flatten(1))
        return scores


def references(count: int = 120) -> Tensor:
    """Dim noise with one bright stripe."""
    generator = torch.Generator().manual_seed(4)
    images = 0.3 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    for number in range(count):
        first = 2 + 2 * (number % CLASSES)
        images[number, 0, first : first + 2, 2:] += 0.7
    return images
