"""Models that say what they see, and inputs for them, for the tests of predictions.  No tests here."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from rectify_widgets.engine.pairs import SamplePairs

NAMES = ["ape", "bee", "cat", "<dog>"]


class Says(nn.Module):
    """Answers with the first four pixels, in another order; and counts its calls."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2, 3), seconds: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.order, self.seconds, self.calls = list(order), seconds, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        time.sleep(self.seconds)
        return self.scale * x.flatten(1)[:, :4][:, self.order]


def saying(classes: list[int], mark: float = 0.0) -> Tensor:
    """Images 1 × 3 × 3 that `Says` answers with these classes."""
    images = torch.zeros(len(classes), 1, 3, 3)
    images.flatten(1)[torch.arange(len(classes)), classes] = 1.0
    images[:, :, 2, 2] = mark
    return images


CLEAN = [0, 1, 2, 3, 0, 1, 2, 3]
CORRUPTED = [2, 2, 2, 2, 2, 2, 2, 2]
LABELS = [0, 1, 2, 3, 1, 2, 2, 3]


def samples(labels: list[int] | None = LABELS) -> SamplePairs:
    told = None if labels is None else torch.tensor(labels)
    return SamplePairs(saying(CORRUPTED, 1.0), saying(CLEAN), told)


SWAP = (1, 0, 2, 3)  # what was class 0 is class 1, and the other way round
