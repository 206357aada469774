"""What the viewer of suspicions prepares: a map of the references, and transplants.  Makes no HTML.

Imports numpy, the engine and `rectify_widgets.reveal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import (
    eval_mode,
    model_device,
    model_dtype,
    predict_all,
    with_head,
)
from rectify_widgets.reveal.latent import LastLayer
from rectify_widgets.reveal.references import check_scores
from rectify_widgets.reveal.suspicions import Suspicion

HEAD = 64
"""References from which the form of the model's answer is guessed."""

TRIED, SHOWN = 64, 8
"""References that the region is put onto, and pictures of a kind that are shown."""


@dataclass(frozen=True, eq=False)
class Landscape:
    """References as points of a plane.

    Attributes:
        points: ``N × 2``, the first two principal components of what goes into the last layer.
        explained: share (0..1) of the variance that they hold.
        predicted: ``N`` classes that the model gives.
    """

    points: NDArray[np.float64]
    explained: float
    predicted: NDArray[np.int64]


def landscape(model: nn.Module, images: Tensor, monitor: Monitor) -> Landscape:
    """Project the activations of ``N × C × H × W`` references; the model is left as it was.

    Raises:
        ValueError: it decides on several labels independently.
    """
    with eval_mode(model, "reference") as plain:
        headed = with_head(plain, images[:HEAD])
        check_scores(predict_all(headed, images[:1]))
        layer = LastLayer.of(headed, images, monitor)
    centred = layer.features - layer.features.mean(axis=0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(images), 2))
    for axis in range(min(2, len(sizes))):
        sign = np.sign(right[axis, np.abs(right[axis]).argmax()]) or 1.0  # the same in every run
        points[:, axis] = sign * sizes[axis] * left[:, axis]
    whole = float((sizes**2).sum())
    explained = float((sizes[:2] ** 2).sum()) / whole if whole > 0 else 1.0
    return Landscape(points, explained, layer.scores.argmax(axis=1).astype(np.int64))


@dataclass(frozen=True, eq=False)
class Transplants:
    """Pictures that a suspicion turns.

    Attributes:
        source: the reference whose region was put onto others, or None where pairs are shown.
        rows: the references that were turned; -1 where it is not known which.
        pictures: ``K × C × H × W``, with what turns them; of pairs, ``K × C × H × 2 W``, the clean
            input on the left.
        before, after: ``K`` classes each.
        tried: how many references it was put onto.
        turned: how many of these went to the suspicion's class; the first are shown.
    """

    source: int | None
    rows: tuple[int, ...]
    pictures: Tensor
    before: tuple[int, ...]
    after: tuple[int, ...]
    tried: int
    turned: int


def transplants(
    model: nn.Module, images: Tensor, predicted: Sequence[int], one: Suspicion, monitor: Monitor
) -> Transplants | None:
    """Put the region of the first carrier onto references of other classes; the model is left as it was.

    Where no region is known, the suspicion's own pairs are shown; None where it has none.
    """
    classes = torch.as_tensor(predicted)
    source: int | None = None
    if len(one.inputs) and len(one.mask):
        source = int(one.inputs[0])
        free = classes != one.target
        free[one.inputs] = False
        rows = free.nonzero().flatten()
        rows = rows[torch.linspace(0, len(rows) - 1, min(TRIED, len(rows))).long()]
        where = one.mask[0].to(images.device)
        mixed = torch.where(where, images[source], images[rows.to(images.device)])
        before, pictures = classes[rows], mixed
    elif one.pairs is not None:
        mixed, rows = one.pairs.corrupted, torch.full((len(one.pairs),), -1)
        pictures = torch.cat([one.pairs.clean, mixed], dim=-1)
        before = _predict(model, one.pairs.clean, monitor)
    else:
        return None
    after = _predict(model, mixed, monitor)
    hits = (after == one.target).nonzero().flatten()
    shown = hits[:SHOWN]
    return Transplants(
        source,
        tuple(rows[shown].tolist()),
        pictures[shown.to(pictures.device)].cpu(),
        tuple(before[shown].tolist()),
        tuple(after[shown].tolist()),
        len(rows),
        len(hits),
    )


def _predict(model: nn.Module, images: Tensor, monitor: Monitor) -> Tensor:
    if not len(images):
        return torch.zeros(0, dtype=torch.long)
    with eval_mode(model) as plain:
        placed = images.to(device=model_device(plain), dtype=model_dtype(plain))
        module = with_head(plain, placed[:HEAD])
        return predict_all(module, placed, monitor=monitor).argmax(dim=1).cpu()
