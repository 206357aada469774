"""Corruptions with a form of their own: pattern, tone curve, warp, placed patches.

Imports torch and numpy.  `estimate_corruptions` fits them to pairs.  All return results within the range ``low..high`` of the
data, and compute in float32 or better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rectify_widgets.engine.base.checks import check_inputs
from rectify_widgets.engine.data.corruption import Corruption
from rectify_widgets.engine.model.running import working_dtype


def _checked(inputs: Tensor, *shape: int | None) -> Tensor:
    """Inputs in the type to compute in, if their samples have this shape; None stands for any."""
    inputs = check_inputs("inputs", inputs)
    given = tuple(inputs.shape[1:])
    if len(given) != len(shape) or any(
        want not in {None, got} for got, want in zip(given, shape, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"inputs: got samples of shape {given}, want ({wanted}) as in the pairs")
    return inputs.to(working_dtype(inputs.dtype))


def _limited(result: Tensor, low: Tensor, high: Tensor, like: Tensor) -> Tensor:
    """``result`` within the data range, in the type of ``like``."""
    return torch.minimum(torch.maximum(result, low.to(result)), high.to(result)).to(like.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Pattern(Corruption):
    """Additive pattern: ``r + pattern``, clipped to the data range.

    Args:
        pattern: ``C × H × W`` (any sample shape).
        low, high: least and greatest value of the data, shaped to broadcast over a sample.
        frequencies: number of sinusoids that the pattern consists of; 0 where it has no such form.

    Example:
        >>> wave = 0.2 * torch.sin(torch.arange(12.0)).expand(1, 12, 12)
        >>> pattern = rw.Pattern(wave, low=torch.tensor(0.0), high=torch.tensor(1.0))
        >>> pattern
        Pattern(amplitude 0.200)
        >>> pattern(x[:5]).shape
        torch.Size([5, 1, 12, 12])
    """

    pattern: Tensor
    low: Tensor
    high: Tensor
    frequencies: int = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """``M × C × H × W`` inputs with the pattern added."""
        working = _checked(inputs, *self.pattern.shape)
        return _limited(working + self.pattern.to(working), self.low, self.high, inputs)

    def __repr__(self) -> str:
        kind = f"{self.frequencies} frequenc{'y' if self.frequencies == 1 else 'ies'}, "
        return (
            f"Pattern({kind if self.frequencies else ''}"
            f"amplitude {float(self.pattern.abs().max()):.3f})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class ToneCurve(Corruption):
    """A map of values for each channel, as photo filters and changes of contrast are.

    Args:
        levels: ``C × L``, what ``L`` evenly spaced values from ``low`` to ``high`` become; values
            between them are interpolated linearly.
        low, high: least and greatest value of each channel, ``C × 1 × 1``.

    Example:
        >>> negative = rw.ToneCurve(
        ...     torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
        ... )
        >>> negative
        ToneCurve(0.00 to 1.00, 1 channel)
        >>> torch.allclose(negative(x), 1 - x)
        True
    """

    levels: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """``M × C × H × W`` inputs, each value mapped by its channel's curve."""
        working = _checked(inputs, len(self.levels), None, None)
        low, high, levels = (x.to(working) for x in (self.low, self.high, self.levels))
        last = levels.shape[1] - 1
        place = ((working - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) * last
        below = place.floor().clamp(max=last - 1)
        channel = torch.arange(len(levels), device=levels.device)[:, None, None]
        index = below.long()
        start = levels[channel, index]
        result = start + (place - below) * (levels[channel, index + 1] - start)
        return _limited(result, low, high, inputs)

    def __repr__(self) -> str:
        channels = len(self.levels)
        return (
            f"ToneCurve({float(self.levels.min()):.2f} to {float(self.levels.max()):.2f}, "
            f"{channels} channel{'s' if channels > 1 else ''})"
        )


def sample(images: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images at places between pixels, by bilinear interpolation, and its derivatives.

    Args:
        images: ``N × C × H × W``.
        rows, columns: ``P`` places in pixels; those outside the image count as at its edge.

    Returns:
        Values, derivatives along the rows, and derivatives along the columns, each ``N × C × P``.
    """
    height, width = images.shape[-2:]
    flat = images.flatten(-2)
    r, c = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    top, left = r.floor().clamp(max=max(height - 2, 0)), c.floor().clamp(max=max(width - 2, 0))
    dr, dc = r - top, c - left
    base = (top * width + left).long()
    down, right = (width if height > 1 else 0), (1 if width > 1 else 0)
    a, b = flat[..., base], flat[..., base + right]
    d, e = flat[..., base + down], flat[..., base + down + right]
    upper, lower = a + dc * (b - a), d + dc * (e - d)
    slope = (b - a) + dr * ((e - d) - (b - a))
    along_rows = torch.where(rows == r, lower - upper, 0.0)
    along_columns = torch.where(columns == c, slope, 0.0)
    return upper + dr * (lower - upper), along_rows, along_columns


def surrounded(images: Tensor, outside: Tensor) -> Tensor:
    """``N × C × (H + 2) × (W + 2)``: images with a margin of one value a channel, ``C × 1 × 1``."""
    count, _, height, width = images.shape
    result = outside.to(images).expand(count, -1, height + 2, width + 2).clone()
    result[..., 1:-1, 1:-1] = images
    return result


@dataclass(frozen=True, eq=False, repr=False)
class Warp(Corruption):
    """Moves what an image shows: ``r(p + field(p))``, bilinear.

    Args:
        field: ``H × W × 2``, displacement along rows and columns in pixels.
        outside: what lies around an image, ``C × 1 × 1``; None continues its edge.
        controls: control points along each side that the field was made from; 0 if it is affine.

    Example:
        >>> shift = rw.Warp(torch.tensor([0.0, -1.0]).expand(12, 12, 2))
        >>> shift
        Warp(up to 1.0 pixels)
        >>> torch.allclose(shift(x)[..., 1:], x[..., :-1], atol=1e-5)
        True
    """

    field: Tensor
    outside: Tensor | None = None
    controls: int = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """``M × C × H × W`` inputs, warped."""
        height, width = self.field.shape[:2]
        working = _checked(inputs, None, height, width)
        field = self.field.to(working).flatten(0, 1)
        place = torch.arange(height * width, device=working.device)
        rows, columns = place // width + field[:, 0], place % width + field[:, 1]
        if self.outside is not None:
            working, rows, columns = surrounded(working, self.outside), rows + 1, columns + 1
        return sample(working, rows, columns)[0].reshape(inputs.shape).to(inputs.dtype)

    def __repr__(self) -> str:
        return f"Warp(up to {float(self.field.square().sum(dim=2).max().sqrt()):.1f} pixels)"


@dataclass(frozen=True, eq=False, repr=False)
class PlacedPatches(Corruption):
    """Small patches, each put at a random place of each input: ``r + a (t − r)`` on its mask.

    Args:
        patches: contents ``t``, each ``C × h × w``.
        masks: for each patch which of its values belong to it, ``C × h × w``, bool.
        opacity: ``a``, above 0 and up to 1.
        low, high: least and greatest value of the data, shaped to broadcast over a sample.
        seed: the places of input number i depend on the seed and on i.

    Example:
        >>> patch, low, high = torch.ones(1, 3, 3), torch.tensor(0.0), torch.tensor(1.0)
        >>> patches = rw.PlacedPatches((patch,), (patch > 0,), 1.0, low, high)
        >>> patches
        PlacedPatches(3 × 3 pixels, opacity 1.00)
        >>> (patches(x[:4]) == 1).sum(dim=(1, 2, 3))
        tensor([9, 9, 9, 9])
    """

    patches: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]
    opacity: float
    low: Tensor
    high: Tensor
    seed: int = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """``M × C × H × W`` inputs, each with every patch somewhere."""
        working = _checked(inputs, len(self.patches[0]), None, None).clone()
        sizes = [tuple(patch.shape[-2:]) for patch in self.patches]
        if any(h > working.shape[-2] or w > working.shape[-1] for h, w in sizes):
            raise ValueError(
                f"inputs: got samples of shape {tuple(inputs.shape[1:])}, want some with room for "
                f"patches of {' and '.join(f'{h} × {w}' for h, w in sizes)} pixels"
            )
        for row in range(len(working)):
            shares = np.random.default_rng([self.seed, row]).random((len(self.patches), 2))
            for patch, mask, share in zip(self.patches, self.masks, shares, strict=True):
                height, width = patch.shape[-2:]
                top = int(share[0] * (working.shape[-2] - height + 1))
                left = int(share[1] * (working.shape[-1] - width + 1))
                area = working[row, :, top : top + height, left : left + width]
                patched = area + self.opacity * (patch.to(working) - area)
                area.copy_(torch.where(mask.to(working.device), patched, area))
        return _limited(working, self.low, self.high, inputs)

    def __repr__(self) -> str:
        sizes = " and ".join(f"{p.shape[-2]} × {p.shape[-1]}" for p in self.patches)
        return f"PlacedPatches({sizes} pixels, opacity {self.opacity:.2f})"
