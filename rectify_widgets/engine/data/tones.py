"""The tone curve behind pairs.  Imports torch only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rectify_widgets.engine.data.forms import ToneCurve
from rectify_widgets.engine.data.pairs import SamplePairs

LEVELS = 256
"""Values at which a tone curve is given: those of eight bits."""
SHARED = 0.002
"""Relative error up to which all channels share one curve."""
ENDS = 8
"""Levels that say how a curve goes on where the pairs show no values."""


def fit_tone_curve(pairs: SamplePairs, low: Tensor, high: Tensor) -> ToneCurve:
    """Monotone map from clean to corrupted values, by isotonic regression.

    One curve for all channels, in units of each channel's range, where that fits as well as one for
    each.  Rising or falling, whichever fits better.  Between the values that the pairs show it is
    linear, outside them it goes on as at its ends.

    Args:
        pairs: ``N`` pairs of ``C × H × W``.
        low, high: least and greatest value of each channel, ``C × 1 × 1``.
    """
    scale = (high - low).clamp_min(1e-12)
    given, wanted = (
        ((x - low) / scale).movedim(1, 0).flatten(1).double()
        for x in (pairs.clean, pairs.corrupted)
    )
    shared, missed = _curve(given.flatten(), wanted.flatten())
    change = (given - wanted).square().sum()
    if len(given) == 1 or bool(missed <= SHARED * change):
        levels = shared.expand(len(given), -1)
    else:
        levels = torch.stack([_curve(*one)[0] for one in zip(given, wanted, strict=True)])
    levels = low[:, 0] + scale[:, 0] * levels.clamp(0, 1)
    return ToneCurve(levels.to(low), low, high)


def _curve(given: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """A curve at `LEVELS` levels, and the squared error that it leaves; all in 0..1."""
    place = given * (LEVELS - 1)
    index = place.round().long().clamp(0, LEVELS - 1)
    count = torch.bincount(index, minlength=LEVELS)
    met = count > 0
    weight = count[met].double()
    at = torch.bincount(index, place, minlength=LEVELS)[met] / weight
    mean = torch.bincount(index, wanted, minlength=LEVELS)[met] / weight
    curves = isotonic(mean, weight), -isotonic(-mean, weight)
    best = min(curves, key=lambda curve: float((weight * (curve - mean).square()).sum()))
    levels = _interpolated(at, best)
    below = place.floor().clamp(0, LEVELS - 2)
    start = levels[below.long()]
    fitted = start + (place - below) * (levels[below.long() + 1] - start)
    return levels, (fitted - wanted).square().sum()


def isotonic(values: Tensor, weights: Tensor) -> Tensor:
    """Non-decreasing sequence closest to ``values`` in weighted least squares.

    By the minimax formula of isotonic regression (Robertson, Wright and Dykstra, 1988): the greatest
    over beginnings up to ``i``, of the least over ends from ``i`` on, of the mean between them.
    """
    total = torch.cat([weights.new_zeros(1), weights.cumsum(0)])
    summed = torch.cat([weights.new_zeros(1), (weights * values).cumsum(0)])
    means = (summed[1:] - summed[:-1, None]) / (total[1:] - total[:-1, None])
    number = torch.arange(len(values), device=values.device)
    before = number[:, None] <= number
    means = means.masked_fill(~before, math.inf)
    least = means.flip(1).cummin(dim=1).values.flip(1)
    return least.masked_fill(~before, -math.inf).amax(dim=0)


def _interpolated(at: Tensor, curve: Tensor) -> Tensor:
    """The curve at every level, given at some (rising) places."""
    level = torch.arange(LEVELS, device=at.device, dtype=at.dtype)
    if len(at) == 1:
        return curve.expand(LEVELS)
    first, last = min(ENDS, len(at)) - 1, -min(ENDS, len(at))
    start = (curve[first] - curve[0]) / (at[first] - at[0])
    end = (curve[-1] - curve[last]) / (at[-1] - at[last])
    left = (torch.searchsorted(at, level, right=True) - 1).clamp(0, len(at) - 2)
    share = (level - at[left]) / (at[left + 1] - at[left])
    inside = curve[left] + share * (curve[left + 1] - curve[left])
    below, above = curve[0] + (level - at[0]) * start, curve[-1] + (level - at[-1]) * end
    return torch.where(level < at[0], below, torch.where(level > at[-1], above, inside))
