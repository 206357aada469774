"""Checked references for the searches of this room.  Imports the engine."""

from __future__ import annotations

import torch
from torch import Tensor

from rectify_widgets.engine.data.inputs import Inputs, batches


def gather_references(reference: Inputs, fewest: int) -> Tensor:
    """All references in their order, ``N × C × H × W``.

    Raises:
        TypeError, ValueError: bad input, or fewer than ``fewest``.
    """
    images = torch.cat(list(batches("reference", reference, 256)))
    if images.ndim != 4:
        raise ValueError(f"reference: got shape {tuple(images.shape)}, want N × C × H × W")
    if len(images) < fewest:
        raise ValueError(
            f"reference: got {len(images)} inputs, want at least {fewest}, better 400: what is found "
            "on some is checked on others"
        )
    return images


def check_scores(scores: Tensor) -> None:
    """Raise ``ValueError`` for a model that decides on several labels independently."""
    if scores.ndim != 2:
        raise ValueError(
            f"model: it decides on {scores.shape[1]} labels independently, want one class of "
            "several; hand over a model that answers for one label alone"
        )


def check_classes(predicted: Tensor) -> None:
    """Raise ``ValueError`` where the model gives all references one class."""
    if len(predicted.unique()) < 2:
        raise ValueError(
            f"reference: the model takes all inputs for class {int(predicted[0])}, want inputs of "
            "at least two classes, and better of all"
        )
