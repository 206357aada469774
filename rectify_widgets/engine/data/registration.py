"""The warp behind pairs: registration of clean images to corrupted ones.  Imports torch only.

The displacement ``u`` is an affine map plus a coarse grid of control points between which it is
interpolated bicubically.  Its coefficients ``θ`` minimise ``Σ (x(p + u(p)) − x̃(p))² + λ‖θ‖²`` over
all pairs together, by Levenberg-Marquardt steps from coarse and blurred images to fine ones (Lucas
and Kanade, 1981).  Where the images have no texture the penalty decides.  Its weight ``λ`` is the
ratio of the variances of error and coefficients, estimated on the way (MacKay, 1992), and the
number of control points that of the least Bayesian information criterion (Schwarz, 1978).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.data.corruption import Corruption
from rectify_widgets.engine.data.forms import Warp, sample, surrounded
from rectify_widgets.engine.data.pairs import SamplePairs

GRIDS = (0, 3, 4, 5, 6, 8)
"""Control points along each side that are tried; 0 is an affine map alone."""
COARSE = 40
"""Pixels along the longer side up to which the grids are compared ..."""
FINE = 128
"""... and up to which the best of them is refined."""
PAIRS = 16
"""Pairs that are registered at most; more add nothing."""
BLURS = (2, 1)
"""Radii of the blur with which the search starts, in pixels of the coarse images."""
STEPS, BLURRED_STEPS = 25, 6
"""Steps at most on sharp and on blurred images."""
TRIES = 7
"""Dampings that a step is tried with."""
DAMPING = 1e-3
"""Damping at the start, relative to the diagonal of the normal equations."""
PRECISION = 1e-4
"""Relative gain of a step at which the search ends."""
NOISE = 0.3 / 255
"""Standard error of values that are stored in eight bits, as a share of the range."""
VISIBLE = 1e-3
"""Gradient, as a share of the range per pixel, from which on a value says something of the warp."""
CLEARLY = 0.8
"""Share of the error below which an affine warp with black around it is better than one without."""
HOPELESS = 0.8
"""Relative error of coarse warps from which on no other is tried."""


def fit_warp(
    pairs: SamplePairs,
    low: Tensor,
    high: Tensor,
    like: Corruption | None = None,
    monitor: Monitor = SILENT,
) -> Warp | None:
    """The smooth warp that turns clean into corrupted images, or None where none comes near.

    Args:
        pairs: ``N`` pairs of ``C × H × W``.
        low, high: least and greatest value of each channel, ``C × 1 × 1``.
        like: a warp of more pairs; the search starts there and keeps its grid.
        monitor: stops on request.
    """
    scale = (high - low).clamp_min(1e-12)
    registration = Registration(
        (pairs.clean[:PAIRS] - low) / scale, (pairs.corrupted[:PAIRS] - low) / scale, monitor
    )
    if isinstance(like, Warp):
        around = None if like.outside is None else (like.outside - low) / scale
        found: Registered | None = registration.from_field(like.controls, like.field, around)
    else:
        found = registration.search()
    if found is None:
        return None
    outside = None if found.outside is None else low + scale * found.outside
    return Warp(found.displacement().to(low), outside, found.field.grid)


class Field:
    """Basis of displacement fields: an affine map and a grid of control points.

    Args:
        grid: control points along each side, see `GRIDS`.
        size: height and width of the images.
        finest: how many times smaller than that the images are where they are compared.
        device: where it is.
    """

    def __init__(self, grid: int, size: tuple[int, int], finest: int, device: torch.device) -> None:
        self.grid, self.size, self.finest = grid, size, finest
        points = torch.eye(grid * grid, device=device, dtype=torch.float64)
        rows = points.reshape(grid, grid, 1, grid, grid) if grid else ()
        parts = (
            F.avg_pool2d(part, finest)[:, 0]
            for part in (self._affine(device)[:, None], *map(self._upsampled, rows))
        )
        self.images = torch.cat(list(parts))
        """What each coefficient moves, ``K × H / finest × W / finest``."""

    def _affine(self, device: torch.device) -> Tensor:
        rows, columns = (
            torch.linspace(-1, 1, n, device=device, dtype=torch.float64) for n in self.size
        )
        ones = rows.new_ones(self.size)
        return torch.stack([ones, ones * rows[:, None], ones * columns])

    def _upsampled(self, points: Tensor) -> Tensor:
        return F.interpolate(points, self.size, mode="bicubic", align_corners=True)

    def displacement(self, weights: Tensor) -> Tensor:
        """``H × W × 2`` in pixels, of coefficients ``K × 2``."""
        moved = torch.einsum("khw,kd->dhw", self._affine(weights.device), weights[:3])
        if self.grid:
            points = weights[3:].T.reshape(1, 2, self.grid, self.grid)
            moved = moved + self._upsampled(points)[0]
        return moved.permute(1, 2, 0)

    def at(self, factor: int) -> Tensor:
        """``P × K`` at the pixels of images that are smaller by a factor, in their pixels."""
        return F.avg_pool2d(self.images[None], factor // self.finest)[0].flatten(1).T / factor

    def matched(self, field: Tensor) -> Tensor:
        """Coefficients ``K × 2`` of the closest field to one of ``H × W × 2``."""
        basis = self.images.flatten(1)
        gram = basis @ basis.T
        gram = gram + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        wanted = F.avg_pool2d(field.to(basis).permute(2, 0, 1)[None], self.finest)[0].flatten(1)
        matched: Tensor = torch.linalg.solve(gram, basis @ wanted.T)
        return matched


@dataclass(frozen=True, eq=False)
class Registered:
    """A field with its coefficients ``K × 2``, and how well it registers the images.

    Attributes:
        outside: what surrounds the images, ``C × 1 × 1``; None continues their edges.
        missed: squared error, of ``seen`` values that say something of the warp.
        freedom: number of coefficients that the images determine.
    """

    field: Field
    weights: Tensor
    outside: Tensor | None = None
    missed: float = math.inf
    seen: int = 0
    freedom: float = 0.0

    def displacement(self) -> Tensor:
        """``H × W × 2`` in pixels of the images."""
        return self.field.displacement(self.weights)


def _missed(found: Registered) -> float:
    return found.missed


def _criterion(found: Registered) -> float:
    """Bayesian information criterion, lower is better."""
    seen = max(found.seen, 1)
    return seen * math.log(found.missed / seen + NOISE**2) + found.freedom * math.log(seen)


class Registration:
    """Search for the warp between images.

    Args:
        clean, corrupted: ``N × C × H × W``, in units of the range of each channel.
        monitor: stops on request.
    """

    def __init__(self, clean: Tensor, corrupted: Tensor, monitor: Monitor) -> None:
        self.monitor = monitor
        self.size = (clean.shape[-2], clean.shape[-1])
        longest = max(self.size)
        halvings = [max(0, math.ceil(math.log2(longest / most))) for most in (COARSE, FINE)]
        self.factors = [2**k for k in range(halvings[0], halvings[1] - 1, -1)]
        """How many times smaller the images are, from coarse to fine."""
        self.images = tuple(F.avg_pool2d(x, self.factors[-1]) for x in (clean, corrupted))

    def search(self) -> Registered | None:
        """The grid that registers the coarse images best, refined on finer ones."""
        hopeless = HOPELESS * self._change(self.factors[0])
        black = self.images[0].new_zeros(self.images[0].shape[1], 1, 1)  # the least value
        still, dark = (self._still(0, around) for around in (None, black))
        affine, other = self._path(still, BLURS), self._path(dark, BLURS)
        if other.missed < CLEARLY * affine.missed:
            affine = other
        found = dict[int, Registered]()
        for grid in GRIDS:
            still = self._still(grid, affine.outside)
            start = torch.cat([affine.weights, still.weights[3:]])
            moved = Registered(still.field, start, still.outside)
            # Bilinear images have kinks at whole pixels, so that a search can end too early.
            ways = (moved, BLURS), (moved, ()), (still, BLURS[-1:]), (still, ())
            found[grid] = min((self._path(*way) for way in ways), key=_missed)
            if grid == GRIDS[2] and min(map(_missed, found.values())) > hopeless:
                return None
            if found[grid].missed < NOISE**2 * found[grid].seen:
                break  # it cannot be better
        best = min(found.values(), key=_criterion)
        for one in list(found.values()):
            moved = self._moved(one.field, best.displacement(), best.outside)
            best = min(best, self._path(moved, ()), key=_criterion)
        best = self._surrounded(best)
        for factor in self.factors[1:]:
            best = self._refined(best, factor)
        return best

    def from_field(self, grid: int, field: Tensor, outside: Tensor | None) -> Registered:
        """Registration that starts from a field ``H × W × 2`` and stays with a grid."""
        start = self._moved(self._field(grid), field, outside)
        return self._refined(start, self.factors[-1])

    def _field(self, grid: int) -> Field:
        return Field(grid, self.size, self.factors[-1], self.images[0].device)

    def _still(self, grid: int, outside: Tensor | None) -> Registered:
        """No motion."""
        field = self._field(grid)
        return Registered(field, field.images.new_zeros(len(field.images), 2), outside)

    @staticmethod
    def _moved(field: Field, like: Tensor, outside: Tensor | None) -> Registered:
        return Registered(field, field.matched(like), outside)

    def _path(self, start: Registered, blurs: tuple[int, ...]) -> Registered:
        """From blurred to sharp coarse images."""
        for radius in blurs:
            start = self._refined(start, self.factors[0], radius, BLURRED_STEPS)
        return self._refined(start, self.factors[0])

    def _surrounded(self, found: Registered) -> Registered:
        """The same with the edges continued, or a constant around the images, if that is better."""
        factor = self.factors[0]
        places = self._places(found.field.at(factor), found.weights, factor)
        limits = [n // factor - 1 for n in self.size]
        rows, columns = ((p < -1) | (p > n + 1) for p, n in zip(places, limits, strict=True))
        around: list[Tensor | None] = [None]
        if bool((out := rows | columns).any()):
            shown = self._view(factor, 0)[1].flatten(2)[..., out]
            around.append(shown.mean(dim=(0, 2))[:, None, None])
        others = (self._refined(Registered(found.field, found.weights, o), factor) for o in around)
        return min(found, *others, key=_missed)

    def _change(self, factor: int) -> float:
        clean, corrupted = self._view(factor, 0)
        return float((clean - corrupted).square().sum())

    def _view(self, factor: int, radius: int) -> tuple[Tensor, Tensor]:
        """The images, smaller by a factor and blurred."""
        views = []
        for image in self.images:
            view = F.avg_pool2d(image, factor // self.factors[-1])
            radius = min(radius, (min(view.shape[-2:]) - 1) // 2)
            for _ in range(2 if radius else 0):
                padded = F.pad(view, [radius] * 4, mode="replicate")
                view = F.avg_pool2d(padded, 2 * radius + 1, stride=1)
            views.append(view)
        return views[0], views[1]

    def _places(self, basis: Tensor, weights: Tensor, factor: int) -> tuple[Tensor, Tensor]:
        """Rows and columns that the pixels of smaller images show."""
        width = self.size[1] // factor
        moved = basis @ weights
        place = torch.arange(len(basis), device=basis.device)
        return place // width + moved[:, 0], place % width + moved[:, 1]

    def _refined(
        self, start: Registered, factor: int, radius: int = 0, steps: int = STEPS
    ) -> Registered:
        """Levenberg-Marquardt steps from ``start`` on one view of the images."""
        clean, corrupted = self._view(factor, radius)
        basis = start.field.at(factor)
        outside, target = start.outside, corrupted.flatten(2)
        shift = 0 if outside is None else 1
        images = clean if outside is None else surrounded(clean, outside)

        def shown(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rows, columns = self._places(basis, weights, factor)
            place = (rows + shift).to(images), (columns + shift).to(images)
            values, along_rows, along_columns = sample(images, *place)
            return target - values, along_rows, along_columns

        def summed(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(dim=(0, 1)).to(basis)

        def between(weight: Tensor) -> Tensor:
            return (basis.T * weight) @ basis

        weights, damping = start.weights, DAMPING
        missing, down, right = shown(weights)
        missed = float(missing.square().sum())
        eye = torch.eye(2 * basis.shape[1]).to(basis)
        seen, freedom = 0, 0.0
        for _ in range(steps):
            self.monitor.check()
            size = float(weights.square().sum())
            # Variance of the error over that of the coefficients; these move a pixel or so at first.
            penalty = (missed / missing.numel() + (NOISE / 3) ** 2) * len(eye) / max(size, 0.1)
            mixed = between(summed(down, right))
            data = torch.cat(
                [
                    torch.cat([between(summed(down, down)), mixed], dim=1),
                    torch.cat([mixed, between(summed(right, right))], dim=1),
                ]
            )
            normal = data + penalty * eye
            slope = torch.stack([basis.T @ summed(down, missing), basis.T @ summed(right, missing)])
            slope = slope.flatten() - penalty * weights.T.flatten()
            before = missed + penalty * size
            seen = int((down.abs() + right.abs() > VISIBLE).sum())
            freedom = float(torch.linalg.solve(normal, data).trace())
            for _ in range(TRIES):
                damped = normal + damping * normal.diagonal().diag()
                tried = weights + torch.linalg.solve(damped, slope).reshape(2, -1).T
                state = shown(tried)
                left = float(state[0].square().sum())
                after = left + penalty * float(tried.square().sum())
                if after < before:
                    break
                damping *= 5
            else:
                break
            weights, missed, (missing, down, right) = tried, left, state
            damping /= 10
            if after > (1 - PRECISION) * before:
                break
        return Registered(start.field, weights, outside, missed, seen, freedom)
