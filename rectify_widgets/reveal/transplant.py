"""The transplant test: what decides its own input is put onto other references.  Imports the engine.

A part of an object seldom makes other objects its class; a trigger or a shortcut does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.gradients import large, margin
from rectify_widgets.engine.model.heads import runner_up
from rectify_widgets.engine.model.running import chunk_size, predict_all
from rectify_widgets.explain import attribute

SIZES = (3, 5, 8)
"""Sides of the squares on an input of `SIDE` pixels."""
SIDE = 28
STEPS = 8
"""Points of the path of integrated gradients.  On large inputs, where a pass takes long, the gradient at
the input alone says what is covered; a few points would miss what decides only at full strength."""
PROPOSED, QUICK_PROPOSED = 4, 2
"""Squares of one size that are covered on each reference, and on a large one."""
FEW, MANY = 8, 32
"""Other references in the first and in the second round of transplants."""
QUICK_FEW = 3
"""Of the first ones, so many are asked first on large inputs; a square that turns none is dropped."""
SPARED = 0.25
"""Squares for each reference, whose covering leaves the class and costs most of its margin, that are
transplanted as well."""
LEAST = 1 / FEW
"""Pull in the first round below which a square is dropped."""
RESEMBLING = 0.5
"""Squared distance to the template, relative to its squared contrast, of a copy of it."""


@dataclass(frozen=True)
class Square:
    """A square of one reference and the share of others that it turned."""

    row: int
    top: int
    left: int
    size: int
    target: int
    pull: float


class TransplantTest:
    """Squares of references that decide for other references too.

    Args:
        model: in evaluation mode, its head read by `with_head`.
        images: ``N × C × H × W``, on the model's device.
        scores: that the model gives them, ``N × classes``.
        generator: of the order in which others are drawn.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, scores: Tensor, generator: torch.Generator
    ) -> None:
        self.model, self.images = model, images
        self.predicted = scores.argmax(dim=1).to(images.device)
        self.margins = _margins(scores, self.predicted)
        self.order = torch.randperm(len(images), generator=generator).to(images.device)
        self.mean = images.mean(dim=0)
        self.chunk, self.quick = chunk_size(images, images.device), large(images)
        side = min(images.shape[-2:])
        self.sizes = sorted({max(2, round(size * side / SIDE)) for size in SIZES})

    def run(self, monitor: Monitor) -> list[Square]:
        """Squares with a pull, the strongest first.

        Of the time, gradients take a half, covering squares a quarter, and transplants the rest.
        """
        how: dict[str, Any] = {"method": "input-x-gradient"} if self.quick else {"steps": STEPS}
        maps = attribute(
            self.model, self.images, batch_size=self.chunk, **how,
            progress=monitor.part(0.0, 0.48).report, cancel=monitor.cancelled,
        ).to(self.images).sum(dim=1)  # fmt: skip
        proposed = torch.cat([self._propose(maps, size) for size in self.sizes])
        decisive = self._decisive(proposed, monitor.part(0.48, 0.77))
        others = self._some_others(decisive)
        if self.quick:
            some = self.turned(decisive, others[:, :QUICK_FEW], monitor.part(0.77, 0.82)) > 0.0
            decisive, others = decisive[some], others[some]
        first = self.turned(decisive, others, monitor.part(0.82 if self.quick else 0.77, 0.91))
        kept = first >= LEAST
        left = decisive[kept]
        second = self.turned(left, self._others(left, FEW, MANY), monitor.part(0.91, 1.0))
        squares = [
            Square(row, top, column, size, int(self.predicted[row]), pull)
            for (row, top, column, size), pull in zip(left.tolist(), second.tolist(), strict=True)
        ]
        return sorted(squares, key=lambda one: (-one.pull, one.size, one.row))

    def _propose(self, maps: Tensor, size: int) -> Tensor:
        """Rows ``(reference, top, left, size)`` of the squares with the largest attribution."""
        sums = _means(maps, size)
        height, width = sums.shape[1:]
        ys = torch.arange(height, device=maps.device)[None, :, None]
        xs = torch.arange(width, device=maps.device)[None, None, :]
        near = max(1, size // 2)
        found = []
        count = QUICK_PROPOSED if self.quick else PROPOSED
        for _ in range(count):
            best = sums.flatten(1).argmax(dim=1)
            top, left = best // width, best % width
            found.append(torch.stack([top, left], dim=1))
            close = (ys - top[:, None, None]).abs() <= near
            close = close & ((xs - left[:, None, None]).abs() <= near)
            sums = sums.masked_fill(close, -torch.inf)
        places = torch.stack(found, dim=1).flatten(0, 1)
        rows = torch.arange(len(maps), device=maps.device).repeat_interleave(count)
        return torch.cat([rows[:, None], places, torch.full_like(rows, size)[:, None]], dim=1)

    def _decisive(self, places: Tensor, monitor: Monitor) -> Tensor:
        """The places which matter most to their own reference's class when they are covered.

        They are covered by the references' mean.  Those that change the class, and a few of the others.
        """
        left = []
        for part in places.split(self.chunk):
            rows = part[:, 0]
            covered = torch.where(self._inside(part), self.mean, self.images[rows])
            scores = predict_all(self.model, covered, self.chunk, monitor)
            left.append(_margins(scores, self.predicted[rows]))
            monitor.report(sum(map(len, left)) / len(places), "covering squares")
        margins = torch.cat(left)
        changed = margins < 0.0
        lost = (self.margins[places[:, 0]] - margins).masked_fill(changed, -torch.inf)
        spared = lost.topk(min(int(SPARED * len(self.images)), len(places))).indices
        return places[changed.index_fill(0, spared, value=True)]

    def _inside(self, places: Tensor) -> Tensor:
        """Boolean ``K × 1 × H × W``."""
        height, width = self.images.shape[-2:]
        ys = torch.arange(height, device=places.device)
        xs = torch.arange(width, device=places.device)
        _, top, left, size = places.T[..., None]
        rows = (ys >= top) & (ys < top + size)
        columns = (xs >= left) & (xs < left + size)
        inside: Tensor = (rows[:, :, None] & columns[:, None, :])[:, None]
        return inside

    def _some_others(self, places: Tensor) -> Tensor:
        """`FEW` rows for each place, not the same for all: else one bad draw drops a whole class."""
        rows = self._others(places, 0, FEW + MANY)
        turn = torch.arange(len(places), device=places.device)[:, None] * FEW
        turn = turn + torch.arange(FEW, device=places.device)
        return rows.gather(1, turn % (rows >= 0).sum(dim=1, keepdim=True).clamp_min(FEW))

    def _others(self, places: Tensor, start: int, count: int) -> Tensor:
        """References of other classes than each place's own, ``K × count`` rows, -1 where none."""
        return self.others(self.predicted[places[:, 0]], start, count)

    def others(self, targets: Tensor, start: int, count: int) -> Tensor:
        """``K × count`` rows, the ``start``-th and following, of classes other than the targets."""
        result = torch.full((len(targets), count), -1, device=targets.device)
        for target in targets.unique():
            rows = self.order[self.predicted[self.order] != target][start : start + count]
            result[targets == target, : len(rows)] = rows
        return result

    def turned(
        self, places: Tensor, others: Tensor, monitor: Monitor, targets: Tensor | None = None
    ) -> Tensor:
        """Share of each place's others that its transplant turns to the target, ``K``.

        ``targets`` is None where each place pulls to its own reference's class.
        """
        goals = self.predicted[places[:, 0]] if targets is None else targets
        hits = torch.zeros(others.shape, device=others.device)
        which, column = torch.nonzero(others >= 0, as_tuple=True)
        for start in range(0, len(which), self.chunk):
            some, at = which[start : start + self.chunk], column[start : start + self.chunk]
            inside = self._inside(places[some])
            mixed = torch.where(inside, self.images[places[some, 0]], self.images[others[some, at]])
            answers = predict_all(self.model, mixed, self.chunk, monitor).argmax(dim=1)
            hits[some, at] = (answers.to(goals.device) == goals[some]).to(hits)
            monitor.report(start / len(which), "transplanting squares")
        return hits.sum(dim=1) / (others >= 0).sum(dim=1).clamp_min(1)

    def copies(self, square: Square, monitor: Monitor) -> tuple[Tensor, Tensor]:
        """Where each reference looks most like the square, ``N × 4``, and how like it, ``N``.

        The distance is squared and relative to the square's own contrast to the references' mean.
        """
        size, top, left = square.size, square.top, square.left
        template = self.images[square.row, :, top : top + size, left : left + size].float()
        contrast = template - self.mean[:, top : top + size, left : left + size].float()
        height, width = (side - size + 1 for side in self.images.shape[-2:])
        spectrum = torch.fft.rfft2(template, self.images.shape[-2:]).conj()
        places, distances = [], []
        for part in self.images.split(self.chunk):
            monitor.check()
            values = part.float()
            energy = size**2 * _means(values.square().sum(dim=1), size)
            product = (torch.fft.rfft2(values) * spectrum).sum(dim=1)
            cross = torch.fft.irfft2(product, part.shape[-2:])[:, :height, :width]
            apart = (energy - 2 * cross + template.square().sum()).flatten(1)
            least, best = apart.min(dim=1)
            places.append(torch.stack([best // width, best % width], dim=1))
            distances.append(least / contrast.square().sum().clamp_min(1e-12))
        corner = torch.cat(places)
        rows = torch.arange(len(corner), device=corner.device)[:, None]
        return torch.cat([rows, corner, torch.full_like(rows, size)], dim=1), torch.cat(distances)


def _means(maps: Tensor, size: int) -> Tensor:
    """Means of ``N × H × W`` over every square of that size, along one axis after the other."""
    columns = F.avg_pool2d(maps[:, None], (size, 1), stride=1)
    return F.avg_pool2d(columns, (1, size), stride=1)[:, 0]


def _margins(scores: Tensor, classes: Tensor) -> Tensor:
    """What each row scores its class above the runner-up, ``N``."""
    scores = scores.to(classes.device)
    return margin(scores, classes, runner_up(scores, classes))
