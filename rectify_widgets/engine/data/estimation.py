"""Which corruptions explain pairs, and how well.  Imports torch only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rectify_widgets.engine.base.checks import check_inputs, check_int
from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.data.corruption import (
    SMALL,
    Corruption,
    Transplant,
    common_opacity,
    covered,
    data_range,
    least_opacity,
)
from rectify_widgets.engine.data.forms import Pattern, PlacedPatches
from rectify_widgets.engine.data.pairs import SamplePairs, check_pairs
from rectify_widgets.engine.data.patches import fit_patches, placed_as_in
from rectify_widgets.engine.data.patterns import fit_pattern
from rectify_widgets.engine.data.registration import fit_warp
from rectify_widgets.engine.data.tones import fit_tone_curve
from rectify_widgets.engine.model.running import working_dtype

FOLDS = 5
"""Times at most that a form is fitted to some pairs and predicts the others."""
EXPLAINS = 0.5
"""Relative error below which a form is worth returning ..."""
GOOD = 0.05
"""... and below which a form of few parameters goes before the values of a single pair."""
SETTLED = 1e-3
"""Relative error from which on no further form is tried."""
TIE = 0.005
"""Difference in error within which a form of few parameters is preferred."""
FORESEEN = 0.5
"""Error in predicting other pairs up to which a form is believed."""
THROUGH = 0.3
"""What is opaque lets nothing of the clean image through; where more of its variation than this is seen
beyond what the opacity lets through, the pair does not show a pattern that is laid over."""
ROOM = 0.1
"""Share of the range within which of its ends values say little of an opacity."""
FEWEST = 16
"""Values of a channel from which on a sample counts as an image."""

Fit = Callable[[SamplePairs, Corruption | None], Corruption | None]
"""Fits a form to pairs; given what was fitted to more pairs, it fits one of the same kind."""


@dataclass(frozen=True)
class Estimate:
    """A corruption fitted to pairs, and how well its form predicts corrupted inputs.

    Attributes:
        corruption: fitted to all pairs.
        error: squared error of the predicted corrupted inputs relative to the squared change,
            ``Σ‖c(x) − x̃‖² / Σ‖x − x̃‖²``, where each pair is predicted from others.  Placed patches
            count at the place that fits best.
        in_sample: there is one pair only, and ``error`` is that on this pair itself.
        structured: the form has few parameters, so that a small error speaks for it even in sample.
            A transplant, a placed patch or a pattern without a form takes its values from the
            pairs: in sample its error says nothing.
        contradicted: a transplant that one pair speaks against, see `THROUGH`.
    """

    corruption: Corruption
    error: float
    in_sample: bool
    structured: bool
    contradicted: bool = False

    @property
    def believable(self) -> bool:
        """Whether the pairs do not speak against it."""
        return not self.contradicted if self.in_sample else self.error <= FORESEEN


def estimate_corruptions(
    pairs: SamplePairs, inputs: Tensor, *, seed: int = 0, monitor: Monitor = SILENT
) -> list[Estimate]:
    """Corruptions that the pairs may show, the best supported first.

    With several pairs, what predicts pairs best from others goes first.  With one pair, forms of few
    parameters that explain it to within 5 % go first, then the transplant and the residual, which
    take its values as they are.  A transplant is always there, other forms only with an error below
    0.5; and none is tried after one that explains the pairs to within 0.1 %.

    Args:
        pairs: what the corruptions are fitted to.
        inputs: ``M × C × H × W`` other inputs, for the range of the data.
        seed: of what is random in a corruption.
        monitor: reports progress and stops on request.

    Raises:
        TypeError, ValueError: no pairs, or inputs of another sample shape.
    """
    check_pairs(pairs)
    check_int("seed", seed, low=0)
    inputs = check_inputs("inputs", inputs, like=pairs.corrupted)
    pairs = pairs.to(pairs.clean.device, working_dtype(pairs.clean.dtype))
    others = inputs.to(pairs.clean)
    low, high = data_range(torch.cat([others, pairs.clean, pairs.corrupted]))

    def transplanted(some: SamplePairs, _: Corruption | None) -> Transplant:
        return Transplant(some, _opacity(some, low, high), seed)

    quiet = monitor.silent()
    fits: list[Fit] = [transplanted, lambda some, like: fit_pattern(some, low, high, like)]
    if pairs.clean.ndim == 4 and pairs.clean[0, 0].numel() >= FEWEST:
        fits.insert(1, lambda some, _: fit_tone_curve(some, low, high))
        fits += [
            lambda some, like: fit_patches(some, low, high, like, seed),
            lambda some, like: fit_warp(some, low, high, like, quiet),
        ]
    found = list[Estimate]()
    for number, fit in enumerate(fits):
        monitor.report(number / len(fits), "estimating what the pairs show as a corruption")
        if any(one.error <= SETTLED and (one.structured or not one.in_sample) for one in found):
            break  # it cannot be explained better
        if (estimate := _judged(fit, pairs, monitor)) is not None:
            found.append(estimate)
    through, opacity = _through(pairs, low, high)
    adds = abs(1 - through) < abs(1 - through - opacity)
    if through > 1 - opacity + THROUGH:
        found = [
            replace(one, contradicted=one.in_sample and isinstance(one.corruption, Transplant))
            for one in found
        ]
    return sorted(found, key=lambda estimate: _rank(estimate, adds=adds))


def _rank(estimate: Estimate, *, adds: bool) -> tuple[int, float]:
    """Sorts estimates; ``adds`` says whether one pair's values look added rather than laid over."""
    if not estimate.in_sample:
        return 0, estimate.error - TIE * estimate.structured
    if estimate.structured:
        return (0 if estimate.error <= GOOD else 4), estimate.error
    if isinstance(estimate.corruption, PlacedPatches):
        return 3, estimate.error
    return (2 if adds == isinstance(estimate.corruption, Transplant) else 1), estimate.error


def _through(pairs: SamplePairs, low: Tensor, high: Tensor) -> tuple[float, float]:
    """Share of the clean images' variation seen through a large corruption, and its opacity.

    What is laid over an image with opacity ``a`` lets ``1 − a`` of its variation through.  Clipping
    at the end of the range looks like opacity 1 at single values, so that the bound on ``a`` from
    the range alone may be far too high.  Each channel varies around its own mean: a hue shows nothing.
    Nothing, and opaque, where there are too few values.
    """
    clipped = (pairs.corrupted <= low) | (pairs.corrupted >= high)
    free = (pairs.corrupted != pairs.clean) & ~clipped
    if float(covered(pairs).mean()) <= SMALL or int(free.sum()) < FEWEST:
        return 0.0, 1.0
    over = [0, *range(2, free.ndim)] if free.ndim > 2 else [0, 1]
    count = free.sum(dim=over, keepdim=True).clamp_min(1)
    clean, corrupted = (
        (x - (x * free).sum(dim=over, keepdim=True) / count)[free]
        for x in (pairs.clean, pairs.corrupted)
    )
    through = float((clean * corrupted).sum() / clean.square().sum().clamp_min(1e-12))
    return through, float(least_opacity(pairs, low, high).mean())


def _opacity(pairs: SamplePairs, low: Tensor, high: Tensor) -> float | None:
    """One opacity for all pairs as `Transplant` estimates it, or None if each has its own.

    The bound from the range leaves out values near its ends: there a range that is estimated a
    little too narrow would raise it much.
    """
    if (shared := common_opacity(pairs)) is not None:
        return shared
    large = covered(pairs) > SMALL
    if not bool(large.any()):
        return 1.0
    if len(pairs) > 1:
        return None
    change, margin = pairs.corrupted - pairs.clean, ROOM * (high - low)
    room = torch.where(change > 0, high - pairs.clean, pairs.clean - low)
    kept = torch.where(room > margin, pairs.corrupted, pairs.clean)
    if bool((kept == pairs.clean).all()):
        return None
    return float(least_opacity(SamplePairs(kept, pairs.clean), low, high))


def _judged(fit: Fit, pairs: SamplePairs, monitor: Monitor) -> Estimate | None:
    """The form fitted to all pairs with its error, or None where it explains too little."""
    corruption = fit(pairs, None)
    if corruption is None:
        return None
    structured = not isinstance(corruption, Transplant | PlacedPatches) and (
        not isinstance(corruption, Pattern) or corruption.frequencies > 0
    )
    needed = isinstance(corruption, Transplant)
    error = _error(corruption, pairs) / _error(None, pairs)
    if error >= EXPLAINS and not needed:
        return None
    if len(pairs) > 1:
        error = _predicted(fit, corruption, pairs, monitor) / _error(None, pairs)
        if error >= EXPLAINS and not needed:
            return None
    return Estimate(corruption, error, len(pairs) == 1, structured)


def _predicted(fit: Fit, like: Corruption, pairs: SamplePairs, monitor: Monitor) -> float:
    """Squared error on each pair of the form fitted to others."""
    fold = torch.arange(len(pairs)) % min(FOLDS, len(pairs))
    total = 0.0
    for number in range(int(fold.max()) + 1):
        monitor.check()
        left_out = pairs[fold == number]
        total += _error(fit(pairs[fold != number], like), left_out)
    return total


def _error(corruption: Corruption | None, pairs: SamplePairs) -> float:
    """Squared error on pairs of a corruption; of none, their squared change."""
    if isinstance(corruption, PlacedPatches):
        predicted = placed_as_in(corruption, pairs)
    else:
        predicted = pairs.clean if corruption is None else corruption(pairs.clean)
    return float((predicted - pairs.corrupted).double().square().sum())
