"""Models that say what they see, and inputs for them, for the tests of predictions.  No tests here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.widgets.prediction.viewer import PredictionViewer
from rectify_widgets.widgets.session import Session

Make = Callable[..., PredictionViewer]

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
    given = None if labels is None else torch.tensor(labels)
    return SamplePairs(saying(CORRUPTED, 1.0), saying(CLEAN), given)


SWAP = (1, 0, 2, 3)  # what was class 0 is class 1, and the other way round


@contextmanager
def making() -> Iterator[Make]:
    """Makes viewers that do their work at once, and closes them at the end."""
    session = Session(synchronous=True)
    made: list[PredictionViewer] = []

    def build(
        before: nn.Module | None = None, after: nn.Module | None = None, **options: Any
    ) -> PredictionViewer:
        defaults: dict[str, Any] = {"session": session, "classes": NAMES, "inputs": samples()}
        viewer = PredictionViewer(before or Says(), after, **(defaults | options))
        made.append(viewer)
        return viewer

    yield build
    for viewer in made:
        viewer.close()
    session.close()
