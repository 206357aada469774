"""Small patches that each pair has at a place of its own.  Imports torch only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.engine.data.corruption import (
    SMALL,
    Corruption,
    common_opacity,
    covered,
    touched,
)
from rectify_widgets.engine.data.forms import PlacedPatches
from rectify_widgets.engine.data.pairs import SamplePairs

MOST = 4
"""Patches in an input at most."""
GAP = 2
"""Distance in pixels up to which changed pixels belong to one patch."""
FAINT = 0.05
"""Opacity below which there is no patch to see."""

Box = tuple[int, int, int, int]
"""First row, first column, height and width."""


def fit_patches(
    pairs: SamplePairs,
    low: Tensor,
    high: Tensor,
    like: Corruption | None = None,
    seed: int = 0,
) -> PlacedPatches | None:
    """The patches that the pairs show, to be put anywhere; None where there are none.

    One pair shows opaque patches.  Several pairs must show the same ones, not all in one place; from
    them comes the opacity as well.

    Args:
        pairs: ``N`` pairs of ``C × H × W``.
        low, high: least and greatest value of the data, shaped to broadcast over a sample.
        like: patches of more pairs; then it does not matter that fewer lie in one place.
        seed: of the places.
    """
    if float(covered(pairs).max()) > SMALL:
        return None
    boxes = [_boxes(changed) for changed in (pairs.corrupted != pairs.clean).any(dim=1)]
    number, room = len(boxes[0]), pairs.clean.shape[-2:]
    if number > MOST or any(len(own) != number for own in boxes):
        return None
    if any(2 * box[2] > room[0] or 2 * box[3] > room[1] for own in boxes for box in own):
        return None
    if like is None and len(pairs) > 1 and all(own == boxes[0] for own in boxes):
        return None
    patches, masks, opacities = [], [], []
    for index in range(number):
        crops = _aligned(pairs, [own[index] for own in boxes])
        if crops is None:
            return None
        opacity = common_opacity(crops)
        if opacity is None:
            opacity = 1.0
        if opacity < FAINT:
            return None
        content = crops.clean + (crops.corrupted - crops.clean) / opacity
        patches.append(torch.minimum(torch.maximum(content.mean(dim=0), low), high))
        masks.append(touched(crops).any(dim=1).any(dim=0).expand_as(patches[-1]))
        opacities.append(opacity)
    opacity = sum(opacities) / number
    return PlacedPatches(tuple(patches), tuple(masks), opacity, low, high, seed)


def placed_as_in(corruption: PlacedPatches, pairs: SamplePairs) -> Tensor:
    """The pairs' clean inputs with the patches where they come closest to the corrupted ones."""
    result = pairs.clean.clone()
    for row in range(len(pairs)):
        for patch, mask in zip(corruption.patches, corruption.masks, strict=True):
            top, left = _place(patch, mask, corruption.opacity, result[row], pairs.corrupted[row])
            area = result[row, :, top : top + patch.shape[1], left : left + patch.shape[2]]
            area.copy_(torch.where(mask, area + corruption.opacity * (patch - area), area))
    return result


def _place(
    patch: Tensor, mask: Tensor, opacity: float, clean: Tensor, corrupted: Tensor
) -> tuple[int, int]:
    """Where a patch, laid over ``clean``, lowers the squared error to ``corrupted`` most."""
    change = corrupted - clean
    # (a t − y)² − change² with y = a x + change, summed over the mask, as correlations.
    y, weight = opacity * clean + change, mask.to(clean)
    cross = F.conv2d(y[None], (opacity * patch * weight)[None])
    own = F.conv2d((y * y - change * change)[None], weight[None])
    place = int((own - 2 * cross)[0, 0].argmin())
    return divmod(place, cross.shape[-1])


def _aligned(pairs: SamplePairs, boxes: list[Box]) -> SamplePairs | None:
    """Each pair's cut-out of one patch, all of the size of the largest; None where one shows another."""
    largest = max(range(len(boxes)), key=lambda i: boxes[i][2] * boxes[i][3])
    top, left, height, width = boxes[largest]
    patch = pairs.corrupted[largest, :, top : top + height, left : left + width]
    cuts = []
    for row, box in enumerate(boxes):
        where = box[:2]
        if box[2:] != (height, width):  # a part of it looks like what it lies on
            everywhere = torch.ones_like(patch, dtype=torch.bool)
            where = _place(patch, everywhere, 1.0, pairs.clean[row], pairs.corrupted[row])
        cuts.append((row, slice(where[0], where[0] + height), slice(where[1], where[1] + width)))
    corrupted, clean = (
        torch.stack([images[row, :, rows, columns] for row, rows, columns in cuts])
        for images in (pairs.corrupted, pairs.clean)
    )
    if bool((corrupted == clean).flatten(1).all(dim=1).any()):
        return None
    return SamplePairs(corrupted, clean)


def _boxes(changed: Tensor) -> list[Box]:
    """Boxes of the groups of changed pixels ``H × W``, from the top."""
    labels = torch.arange(1, changed.numel() + 1, device=changed.device, dtype=torch.float64)
    labels = labels.reshape(changed.shape) * changed
    while True:
        spread = (
            F.max_pool2d(labels[None, None], 2 * GAP + 1, stride=1, padding=GAP)[0, 0] * changed
        )
        if torch.equal(spread, labels):
            break
        labels = spread
    boxes = []
    for label in labels[changed].unique().tolist():
        pixels = (labels == label).nonzero()
        first, last = pixels.amin(dim=0).tolist(), pixels.amax(dim=0).tolist()
        boxes.append((first[0], first[1], last[0] - first[0] + 1, last[1] - first[1] + 1))
        if len(boxes) > MOST:
            break
    return sorted(boxes)
