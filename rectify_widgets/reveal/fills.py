"""What a masked region of one picture can be filled with.  Imports torch, scipy, scikit-image.

Pictures are float64 arrays ``C × H × W``, masks boolean ``H × W``.  Each connected region (diagonal
neighbours belong together) is filled by itself, within its bounding box and some surroundings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

Picture: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Fill: TypeAlias = Callable[[Picture, Mask], Picture]

AROUND = np.ones((3, 3), dtype=bool)
"""The eight neighbours of a pixel and itself."""
LARGE = 20_000
"""Pixels of a region above which the biharmonic equation is solved at a lower resolution."""
HALVINGS = 100
"""Regions that are halved at most to be filled with texture, which bounds the time."""


def ring(picture: Picture, mask: Mask) -> Picture:
    """The mean of the pixels around each region, channel by channel."""
    filled = picture.copy()
    for region in regions(mask):
        around = surroundings(region, mask, 1)
        filled[:, region] = picture[:, around].mean(axis=1, keepdims=True)
    return filled


def blur(picture: Picture, mask: Mask) -> Picture:
    """A Gaussian mean of the known pixels, as wide as the region is deep.

    It is a normalised convolution (Knutsson and Westin 1993) in which masked pixels weigh nothing.
    """
    filled, known = picture.copy(), (~mask).astype(np.float64)
    for region in regions(mask):
        depth = float(ndimage.distance_transform_edt(np.pad(region, 1)).max())
        sigma = max(depth / 2, 1.0)
        box = _box(region, math.ceil(6 * sigma), mask.shape)
        weight = known[box]
        total = ndimage.gaussian_filter(weight, sigma, truncate=6.0)
        for channel in range(len(picture)):
            seen = ndimage.gaussian_filter(picture[channel][box] * weight, sigma, truncate=6.0)
            inside = region[box]
            filled[channel][box][inside] = seen[inside] / total[inside].clip(min=1e-300)
    return filled


def biharmonic(picture: Picture, mask: Mask) -> Picture:
    """The smoothest surface through the surroundings (biharmonic inpainting, scikit-image).

    Regions above `LARGE` pixels are solved at a lower resolution and scaled up.
    """
    filled = picture.copy()
    for region in regions(mask):
        factor = math.ceil(math.sqrt(int(region.sum()) / LARGE))
        box = _box(region, 4 * factor, mask.shape)
        part, inside = picture[(slice(None), *box)], region[box]
        solved = _coarsely(part, mask[box], factor) if factor > 1 else _smooth(part, mask[box])
        filled[(slice(None), *box)][:, inside] = solved[:, inside]
    return filled


def _smooth(picture: Picture, mask: Mask) -> Picture:
    from skimage.restoration import inpaint_biharmonic

    solved: Picture = inpaint_biharmonic(picture, mask, channel_axis=0)
    return solved


def _coarsely(picture: Picture, mask: Mask, factor: int) -> Picture:
    """The biharmonic surface of the picture made so many times smaller, over the known pixels."""
    known = torch.from_numpy(~mask).double()[None]
    weight, seen = (
        functional.avg_pool2d(one, factor, ceil_mode=True, count_include_pad=False)
        for one in (known, torch.from_numpy(picture) * known)
    )
    small = _smooth((seen / weight.clamp_min(1e-12)).numpy(), (weight[0] == 0).numpy())
    large = functional.interpolate(
        torch.from_numpy(small)[None], scale_factor=factor, mode="bilinear"
    )
    solved: Picture = large[0, :, : mask.shape[0], : mask.shape[1]].numpy()
    return solved


def texture(picture: Picture, mask: Mask) -> Picture:
    """A piece of the same picture, from where its surroundings match those of the region best.

    A region for which no piece of the picture is large enough is filled in halves, the first of
    which belongs to the surroundings of the second.  What is open after `HALVINGS` of them gets the
    biharmonic fill: where so little of a picture is left there is no texture.
    """
    filled, open_ = picture.copy(), mask.copy()
    waiting, halvings = list(regions(mask))[::-1], 0
    while waiting and halvings < HALVINGS:
        region = waiting.pop()
        shift = _best_shift(filled, region, known=~mask, done=~open_)
        if shift is None:
            waiting += _halves(region)[::-1]
            halvings += 1
            continue
        rows, columns = np.nonzero(region)
        filled[:, rows, columns] = picture[:, rows + shift[0], columns + shift[1]]
        open_ &= ~region
    return biharmonic(filled, open_)


FILLS: dict[str, Fill] = {"texture": texture, "biharmonic": biharmonic, "blur": blur, "ring": ring}
"""Fills that need nothing but the picture, by name, in the order in which they are preferred."""


def regions(mask: Mask) -> Iterator[Mask]:
    """The connected regions of a mask, ``H × W`` each."""
    labels, count = ndimage.label(mask, structure=AROUND)
    for number in range(1, count + 1):
        yield labels == number


def surroundings(region: Mask, mask: Mask, width: int) -> Mask:
    """Pixels outside of ``mask`` that are at most ``width`` away from the region."""
    found: Mask = ndimage.binary_dilation(region, AROUND, iterations=width) & ~mask
    return found


def grown(mask: Mask, pixels: int) -> Mask:
    """The mask with so many pixels more on every side."""
    wider: Mask = ndimage.binary_dilation(mask, AROUND, iterations=pixels) if pixels else mask
    return wider


def _box(region: Mask, margin: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of the region and so many around it, cut off at the border."""
    rows, columns = ndimage.find_objects(region.astype(np.int8))[0]
    return (
        slice(max(rows.start - margin, 0), min(rows.stop + margin, shape[0])),
        slice(max(columns.start - margin, 0), min(columns.stop + margin, shape[1])),
    )


def _best_shift(
    picture: Picture, region: Mask, *, known: Mask, done: Mask
) -> tuple[int, int] | None:
    """Where to copy the region from, or None where it fits nowhere.

    The source holds only pixels that are ``known``.  Of the places where this is so, the one with
    the smallest mean squared difference over the surroundings wins, those of which are compared
    that are ``done`` here and ``known`` there; at least half of them must be, or of a region of one
    pixel, which cannot be cut further, as many as there are anywhere.
    """
    from scipy import signal

    width = max(2, round(math.sqrt(int(region.sum())) / 4))
    around = surroundings(region, ~done, width) & ~region
    rows, columns = _box(region, 0, region.shape)
    box = (
        slice(rows.start, rows.stop + 2 * width),
        slice(columns.start, columns.stop + 2 * width),
    )
    inside, ring_, source = (np.pad(one, width) for one in (region, around, known))
    padded = np.pad(picture, ((0, 0), (width, width), (width, width)))
    inside, ring_ = inside[box].astype(np.float64), ring_[box].astype(np.float64)
    target, weight = padded[(slice(None), *box)], source.astype(np.float64)
    unusable = signal.correlate(1.0 - weight, inside, "valid")
    compared = signal.correlate(weight, ring_, "valid")
    fits = unusable < 0.5
    usable = fits & (compared > 0.5 * ring_.sum() - 0.25)
    if not usable.any():
        if region.sum() > 1:
            return None
        usable = fits & (compared > compared[fits].max() - 0.25)
    error = np.zeros_like(compared)
    for own, other in zip(target, padded, strict=True):
        masked = other * weight
        error += signal.correlate(weight, ring_ * own**2, "valid")
        error -= 2 * signal.correlate(masked, ring_ * own, "valid")
        error += signal.correlate(masked * other, ring_, "valid")
    error = np.where(usable, error / compared.clip(min=0.5), np.inf)
    top, left = divmod(int(error.argmin()), error.shape[1])
    return top - rows.start, left - columns.start


def _halves(region: Mask) -> list[Mask]:
    """The region cut across its longer side."""
    rows, columns = _box(region, 0, region.shape)
    first = np.zeros_like(region)
    if rows.stop - rows.start >= columns.stop - columns.start:
        first[: (rows.start + rows.stop) // 2] = True
    else:
        first[:, : (columns.start + columns.stop) // 2] = True
    return [half for half in (region & first, region & ~first) if half.any()]
