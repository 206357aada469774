"""Intervals of figures that are counted or averaged over samples.  Imports torch only.

Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference", for shares: it does
not shrink to a point where all samples agree.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

RESAMPLES = 1000
DRAWN = 1_000_000
"""Values drawn at once: as many resamples at a time as that allows."""


def interval(values: Tensor, *, confidence: float, seed: int) -> tuple[float, float]:
    """Interval of the mean of ``N`` values: Wilson's of zeros and ones, a bootstrap of others."""
    if bool(((values == 0) | (values == 1)).all()):
        return wilson(int(values.sum()), len(values), confidence)
    return bootstrap(values, confidence=confidence, seed=seed)


def wilson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share, ``hits`` of ``count``, from 0 to 1."""
    if not count:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    reach = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (0.0 if hits == 0 else middle - reach), (1.0 if hits == count else middle + reach)


def bootstrap(values: Tensor, *, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; 1,000 resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    means = torch.cat(
        [
            values[torch.randint(count, (len(rows), count), generator=generator)].mean(dim=1)
            for rows in torch.arange(RESAMPLES).split(max(DRAWN // count, 1))
        ]
    )
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means.double(), torch.tensor([tail, 1 - tail]).double())
    return float(low), float(high)
