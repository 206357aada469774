"""How concentrated attribution maps are, over a whole set of inputs.

Pure functions on arrays; imports numpy.  A map that is locked onto a trigger has
its weight on a few pixels, whatever the rest of the picture shows; an honest one spreads it over
the object.  One number a map, sorted, shows a whole set without a choice of examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
"""Concentration of one map a sample, NaN where a map is empty or not computed yet."""

PERCENTILES = (0, 10, 25, 50, 75, 90, 100)
"""Places in the sorted set whose samples are shown."""


def concentration(plane: NDArray[np.floating]) -> float:
    """Sparseness of a map's magnitudes: 0 where all pixels weigh the same, 1 where one has it all.

    For ``n`` pixels with magnitudes ``a`` it is ``(√n − ‖a‖₁ / ‖a‖₂) / (√n − 1)`` (Hoyer 2004,
    "Non-negative Matrix Factorization with Sparseness Constraints", section 3.1).  Here
    ``(‖a‖₁ / ‖a‖₂)²`` is the number of pixels that the weight would take if it were spread evenly.

    Why this one.  The Gini index (Hurley & Rickard 2009) is governed by how many pixels are near
    zero, and for methods that multiply by the input that is the dark background of every picture:
    on the shipped case it tells clean from corrupted maps hardly better than a coin.  The share
    in the strongest 5 % (or 1 %) of pixels must know how large a trigger is.  This one weighs
    large values by their square, and needs no such number.

    Args:
        plane: ``H × W``, of any sign and scale.

    Returns:
        0 to 1; NaN for a map of zeros, which is neither spread out nor concentrated.
    """
    magnitudes = np.abs(np.asarray(plane, np.float64)).ravel()
    peak = float(magnitudes.max(initial=0.0))
    if peak == 0.0:
        return math.nan
    if magnitudes.size == 1:
        return 1.0
    magnitudes = magnitudes / peak  # neither squares nor sums leave the range of floats
    root = math.sqrt(magnitudes.size)
    spread = float(magnitudes.sum()) / math.sqrt(float(magnitudes @ magnitudes))
    return min(max((root - spread) / (root - 1.0), 0.0), 1.0)


def spread_share(score: float, pixels: int) -> float:
    """Share of the pixels that the weight of a map would take if it were spread evenly."""
    root = math.sqrt(pixels)
    return ((root - score * (root - 1.0)) / root) ** 2


@dataclass(frozen=True)
class Pick:
    """A sample at one or several percentiles of a score.

    Attributes:
        percentiles: where it stands, of `PERCENTILES`.
        place: its place in the array of scores.
        score: its score.
    """

    percentiles: tuple[int, ...]
    place: int
    score: float

    @property
    def where(self) -> str:
        """The percentiles for people: "50 %", "0 to 25 %"."""
        first, last = self.percentiles[0], self.percentiles[-1]
        return f"{first} %" if first == last else f"{first} to {last} %"


def picks(scores: Scores, percentiles: Sequence[int] = PERCENTILES) -> tuple[Pick, ...]:
    """The samples that stand at these percentiles, least concentrated first.

    NaN are left out.  The sample at percentile ``p`` of ``n`` is the one of rank ``p (n − 1)``,
    rounded; in a small set one sample may stand at several.
    """
    known = np.flatnonzero(np.isfinite(scores))
    if not known.size:
        return ()
    ranked = known[np.argsort(scores[known], kind="stable")]
    found: dict[int, list[int]] = {}
    for percentile in percentiles:
        rank = math.floor(percentile / 100 * (ranked.size - 1) + 0.5)
        found.setdefault(int(ranked[rank]), []).append(percentile)
    return tuple(
        Pick(tuple(wanted), place, float(scores[place])) for place, wanted in found.items()
    )


def share_above(upper: Scores, lower: Scores) -> float | None:
    """Share of samples whose ``upper`` score is above their ``lower`` one; ties count half."""
    both = np.isfinite(upper) & np.isfinite(lower)
    if not both.any():
        return None
    a, b = upper[both], lower[both]
    return float((a > b).mean() + 0.5 * (a == b).mean())


def axis_of(scores: Iterable[Scores]) -> tuple[float, float]:
    """The tenths that enclose all these scores."""
    every = [part[np.isfinite(part)] for part in scores]
    known = np.concatenate(every) if every else np.zeros(0)
    if not known.size:
        return 0.0, 1.0
    low = min(math.floor(float(known.min()) * 10), 9)
    return low / 10, max(math.ceil(float(known.max()) * 10), low + 1) / 10
