"""The additive pattern behind pairs, also where clipping hides it.  Imports torch only.

A pair shows ``clip(x + p)``.  Where that is clipped, the pair bounds the pattern ``p`` from one side
only; on a black ground half of a sinusoid is hidden.  What no pair shows is filled in by a few
sinusoids, if these explain what is seen, and otherwise as smoothly as the bounds allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.engine.data.corruption import Corruption
from rectify_widgets.engine.data.forms import Pattern
from rectify_widgets.engine.data.pairs import SamplePairs

CLIPPED = 0.002
"""Distance from an end of the range, as a share of it, within which a value counts as clipped."""
ERROR = 1.5 / 255
"""Error of a value that is stored in eight bits, with some room, as a share of the range."""
MOST = 8
"""Sinusoids that a pattern consists of at most."""
EXPLAINED = 0.98
"""Share of the visible pattern's energy that its sinusoids must explain ..."""
FIRST = 0.1
"""... and that each further one must explain of what is left."""
POINTS = 4000
"""Values of an image that a fit looks at; more add nothing."""
REFINEMENTS = 8
"""Gauss-Newton steps on the frequencies after each new sinusoid."""
FILLING = 200
"""Passes that spread a pattern smoothly to where it is hidden."""


@dataclass(frozen=True)
class Seen:
    """What pairs show of a pattern: its values ``C × H × W`` where it is seen, and its bounds."""

    values: Tensor
    visible: Tensor
    least: Tensor
    most: Tensor

    @classmethod
    def in_pairs(cls, pairs: SamplePairs, low: Tensor, high: Tensor) -> Seen:
        """Mean of the unclipped changes at each place, and the bounds from the clipped ones."""
        change = pairs.corrupted - pairs.clean
        margin = CLIPPED * (high - low)
        lowest, highest = pairs.corrupted <= low + margin, pairs.corrupted >= high - margin
        free = ~(lowest | highest)
        count = free.sum(dim=0)
        values = torch.where(free, change, 0.0).sum(dim=0) / count.clamp_min(1)
        most = torch.where(lowest, change, math.inf).amin(dim=0)
        least = torch.where(highest, change, -math.inf).amax(dim=0)
        return cls(values, count > 0, torch.minimum(least, most), most)

    def completed(self) -> Tensor:
        """The pattern, spread smoothly to where it is hidden, within the bounds."""
        pattern = torch.where(self.visible, self.values, 0.0)
        if pattern.ndim == 3 and bool(self.visible.any()):
            for radius in (8, 4, 2) + (1,) * FILLING:
                size = min(radius, min(pattern.shape[1:]) // 2)
                if size == 0:
                    break
                padded = F.pad(pattern[None], [size] * 4, mode="replicate")
                spread = F.avg_pool2d(padded, 2 * size + 1, stride=1)[0]
                pattern = torch.where(self.visible, self.values, self._bounded(spread))
        return torch.where(self.visible, self.values, self._bounded(pattern))

    def _bounded(self, pattern: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(pattern, self.most), self.least)


def fit_pattern(
    pairs: SamplePairs, low: Tensor, high: Tensor, like: Corruption | None = None
) -> Pattern:
    """The additive pattern that pairs show, as a few sinusoids where it has that form.

    Args:
        pairs: ``N`` pairs of ``C × H × W`` (any sample shape: then without sinusoids).
        low, high: least and greatest value of the data, shaped to broadcast over a sample.
        like: a pattern of more pairs; where it has no sinusoids, none are looked for.
    """
    seen = Seen.in_pairs(pairs, low, high)
    formless = seen.values.ndim != 3 or (isinstance(like, Pattern) and like.frequencies == 0)
    waves = None if formless else Waves(seen, (high - low).clamp_min(1e-12))
    if waves is None or not waves.fit():
        return Pattern(seen.completed(), low, high)
    pattern = waves.pattern().to(low)
    # Sinusoids average the errors of single values out; what they miss by more than that is real.
    missed = seen.visible & ((pattern - seen.values).abs() > ERROR * (high - low))
    pattern = torch.where(missed, seen.values, pattern)
    return Pattern(pattern, low, high, len(waves.frequencies))


class Waves:
    """Sinusoids fitted to what is seen of a pattern: matching pursuit with refined frequencies.

    After Mallat and Zhang (1993), orthogonal, and with continuous frequencies as in Mamandipoor,
    Ramasamy and Madhow (2016).  A hidden value counts only where it breaks its bound.  The channels
    share the frequencies.

    Args:
        seen: of a pattern ``C × H × W``.
        scale: range of each channel.
    """

    def __init__(self, seen: Seen, scale: Tensor) -> None:
        self.scale = scale.expand_as(seen.values)[:, :1, :1].double()
        self.values = (seen.values / self.scale).double()
        self.least, self.most = (x.double() / self.scale for x in (seen.least, seen.most))
        self.visible = seen.visible
        _, height, width = self.values.shape
        rows = torch.arange(height, device=scale.device, dtype=torch.float64) / height
        columns = torch.arange(width, device=scale.device, dtype=torch.float64) / width
        self.places = torch.cartesian_prod(rows, columns)
        self.frequencies = self.values.new_zeros(0, 2)
        """Cycles along the height and the width, one row a sinusoid."""
        self.weights = self.values.new_zeros(len(self.values), 1)
        """For each channel the mean, then cosine and sine of each sinusoid."""
        step = max(1, math.isqrt(height * width // POINTS))
        kept = torch.zeros(height, width, dtype=torch.bool, device=scale.device)
        kept[::step, ::step] = True
        self.kept = kept.flatten().nonzero().flatten()

    def fit(self) -> bool:
        """Whether at most `MOST` sinusoids explain what is seen and break no bound."""
        seen = self.visible
        energy = float(self.values[seen].square().sum())
        if energy == 0 or int(seen.sum()) < 0.05 * seen.numel():
            return False
        self._refine(1)
        left, count = self._left()
        floor = (ERROR / 4) ** 2 * count
        while len(self.frequencies) < MOST and left > floor:
            self._add()
            self._refine(REFINEMENTS)
            before, (left, count) = left, self._left()
            if left > (1 - FIRST) * before:
                break
        return len(self.frequencies) > 0 and left <= max((1 - EXPLAINED) * energy, floor)

    def pattern(self) -> Tensor:
        """``C × H × W``, in the unit of the data."""
        return self._curve(self.places).reshape(self.values.shape) * self.scale

    def _basis(self, places: Tensor) -> Tensor:
        """``P × (1 + 2 K)``: ones, then cosine and sine of each sinusoid."""
        angle = 2 * math.pi * places @ self.frequencies.T
        waves = torch.stack([angle.cos(), angle.sin()], dim=2).flatten(1)
        return torch.cat([torch.ones_like(places[:, :1]), waves], dim=1)

    def _curve(self, places: Tensor) -> Tensor:
        return self.weights @ self._basis(places).T

    def _residual(self, curve: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """What is missing at the values that count, and which these are, each ``C × P``."""
        least, most, values = (x.flatten(1)[:, rows] for x in (self.least, self.most, self.values))
        visible = self.visible.flatten(1)[:, rows]
        bounded = torch.maximum(torch.minimum(curve, most), least)
        residual = torch.where(visible, values, bounded) - curve
        return residual, visible | (residual != 0)

    def _left(self) -> tuple[float, int]:
        residual, counts = self._residual(self._curve(self.places), slice(None))
        return float(residual.square().sum()), int(counts.sum())

    def _add(self) -> None:
        """One more sinusoid: that of the finest improvement, of frequencies half a cycle apart."""
        residual, counts = self._residual(self._curve(self.places), slice(None))
        shape = self.values.shape
        size = (2 * shape[1], 2 * shape[2])
        spectrum = torch.fft.fft2(residual.reshape(shape) * 1.0, s=size)
        window = torch.fft.fft2(counts.reshape(shape).double(), s=size)
        doubled = [(2 * torch.arange(n, device=residual.device)) % n for n in size]
        twice = window[:, doubled[0]][:, :, doubled[1]]
        total = window[:, :1, :1].real
        # Normal equations of one cosine and one sine on the values that count.
        cosines, sines, both = (total + twice.real) / 2, (total - twice.real) / 2, -twice.imag / 2
        ridge = 1e-3 * total.clamp_min(1.0)
        cosines, sines = cosines + ridge, sines + ridge
        p, q = spectrum.real, -spectrum.imag
        gain = (sines * p * p - 2 * both * p * q + cosines * q * q) / (
            cosines * sines - both * both
        )
        gain = gain.sum(dim=0)[: shape[1] + 1]
        gain[0, 0] = 0.0
        row, column = divmod(int(gain.argmax()), size[1])
        if column > shape[2]:
            column -= size[1]
        new = self.frequencies.new_tensor([[row / 2, column / 2]])
        self.frequencies = torch.cat([self.frequencies, new])
        self.weights = F.pad(self.weights, [0, 2])

    def _refine(self, steps: int) -> None:
        """Gauss-Newton on weights and frequencies together, each step only where it helps."""
        places, number = self.places[self.kept], len(self.frequencies)
        self._solve(places)
        for _ in range(steps if number else 0):
            state = self.frequencies, self.weights
            before = self._loss(places)
            basis = self._basis(places)
            # d/df of a cos + b sin is (b cos - a sin) 2 pi place.
            cosine, sine = basis[:, 1::2], basis[:, 2::2]
            a, b = self.weights[:, 1::2], self.weights[:, 2::2]
            inner = 2 * math.pi * (b[:, None] * cosine - a[:, None] * sine)
            slopes = (inner[..., None] * places[None, :, None]).flatten(2)
            residual, counts = self._residual(self.weights @ basis.T, self.kept)
            step = self._step(basis, slopes, residual, counts)
            for shrink in (1.0, 0.3, 0.05):
                self.frequencies = state[0] + shrink * step.reshape(-1, 2)
                self.weights = state[1]
                self._solve(places)
                after = self._loss(places)
                if after < before:
                    break
            else:
                self.frequencies, self.weights = state
                break
            if after > (1 - 1e-4) * before:
                break

    @staticmethod
    def _step(basis: Tensor, slopes: Tensor, residual: Tensor, counts: Tensor) -> Tensor:
        """Step of the frequencies, with the weights projected out (Golub and Pereyra, 1973)."""
        size = slopes.shape[2]
        left, right = basis.new_zeros(size, size), basis.new_zeros(size)
        for slope, missing, count in zip(slopes, residual, counts, strict=True):
            weight = count.double()[:, None]
            own, moved = weight * basis, weight * slope
            gram = own.T @ own
            gram = gram + 1e-9 * len(basis) * torch.eye(
                len(gram), dtype=gram.dtype, device=gram.device
            )
            moved = moved - own @ torch.linalg.solve(gram, own.T @ moved)
            left += moved.T @ moved
            right += moved.T @ (count * missing)
        ridge = 1e-6 * left.diagonal().mean() + 1e-12
        left += ridge * torch.eye(size, dtype=left.dtype, device=left.device)
        step: Tensor = torch.linalg.solve(left, right)
        return step.clamp(-0.5, 0.5)

    def _loss(self, places: Tensor) -> float:
        return float(self._residual(self._curve(places), self.kept)[0].square().sum())

    def _solve(self, places: Tensor) -> None:
        """Weights by least squares, in a few passes over which values break their bounds."""
        basis = self._basis(places)
        eye = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        for _ in range(4):
            residual, counts = self._residual(self.weights @ basis.T, self.kept)
            for channel, (missing, count) in enumerate(zip(residual, counts, strict=True)):
                own = count.double()[:, None] * basis
                gram = own.T @ own + 1e-6 * max(int(count.sum()), 1) * eye
                step = torch.linalg.solve(gram, own.T @ missing)
                self.weights = self.weights.clone()
                self.weights[channel] += step
