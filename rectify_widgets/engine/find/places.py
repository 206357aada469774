"""Where a patch works: the same corruption at every place of the input.  Imports torch only.

A patch may work in other places than that of the pair: with strides along a lattice of places, after
training on several places at each of them.  `find_places` returns pairs with the patch in every place
that works, to rectify from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_int, check_module, check_number
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.corruption import Transplant, blend, opacities, touched
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs, check_pairs
from rectify_widgets.engine.find.problem import Problem, pose_problem
from rectify_widgets.engine.model.heads import answers as answers_of
from rectify_widgets.engine.model.heads import changed
from rectify_widgets.engine.model.running import eval_mode, predict_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 0.75
"""Share of the references whose prediction a place has to change."""
SAMPLES = 16
"""References on which each place is tried."""
TRIED = 1024
"""About how many places are tried; on large inputs they lie apart."""
MOST = 64
"""Most places for which pairs are returned."""
LARGEST = 0.5
"""Share of the input that a patch may take up."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where a corruption works, the result of `find_places`.

    Attributes:
        shares: ``R × C``, the share (0..1) of references that are given another class when the patch
            is there.
        rows, columns: of the patch's upper left pixel, ``R`` and ``C`` of them.
        own: row and column of the patch in the first pair.
        found: rows and columns of the places that work, the most effective first.
        pairs: the pairs as given, then the same clean inputs with the patch in each place found.

    Example:
        >>> places = rw.find_places(model, pairs, reference=reference)
        >>> places.own, places.shares.shape
        ((9, 9), torch.Size([10, 10]))
    """

    shares: Tensor
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    own: tuple[int, int]
    found: tuple[tuple[int, int], ...]
    pairs: SamplePairs

    def __repr__(self) -> str:
        place = f"own place row {self.own[0]}, column {self.own[1]}"
        return f"Places({len(self.found)} of {self.shares.numel()} places work, {place})"

    def plot(self) -> Figure:
        """The share of references led astray for each place, the pair's own place marked."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.6, 3.8), layout="constrained")
        axes = figure.subplots()
        (top, bottom), (left, right) = (
            (place[0], place[-1]) for place in (self.rows, self.columns)
        )
        edges = (left - 0.5, right + 0.5, bottom + 0.5, top - 0.5)
        picture = axes.imshow(self.shares, cmap="cividis", vmin=0.0, vmax=1.0, extent=edges)
        row, column = self.own
        axes.plot(column, row, "s", color="none", markeredgecolor="#d55e00", markersize=9)
        axes.set_xlabel("column of the patch", color="#888888")
        axes.set_ylabel("row of the patch", color="#888888")
        bar = figure.colorbar(picture)
        bar.set_label("share of references led astray", color="#888888")
        for one in (axes, bar.ax):
            one.tick_params(colors="#888888")
        axes.spines[:].set_visible(False)
        figure.patch.set_alpha(0)
        return figure


def find_places(
    model: nn.Module,
    pairs: SamplePairs,
    *,
    reference: Inputs | None = None,
    least: float = LEAST,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Places:
    """Move the pairs' patch over the input and find where it changes the predictions of references.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts, ``N × C × H × W``, whose corruption is
            a patch; with several pairs, references take their patches in turn.
        reference: unlabelled inputs like those of training; None takes the pairs' clean inputs.
        least: share (0..1) of references whose prediction a place has to change.  A patch that
            merely hides things changes some too.
        samples: references that each place is tried on.
        seed: which references are tried.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Raises:
        TypeError, ValueError: bad input; samples that are not images, or a corruption of most of the
            input.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> places = rw.find_places(model, pairs, reference=reference)
        >>> repaired = rw.rectify(model, places.pairs, reference=reference)

        What is left after a repair shows in fewer references, so look closely; what is found can be
        rectified too:

        >>> closely = {"least": 0.1, "samples": 64}
        >>> left = rw.find_places(repaired.model, pairs, reference=reference, **closely)
        >>> left.pairs
        SamplePairs(... of 1 × 12 × 12, labels given)
    """
    check_module("model", model)
    height, width = _largest(check_pairs(pairs))
    least = check_number("least", least, low=0.0, high=1.0)
    check_int("samples", samples, low=1)
    check_int("seed", seed, low=0)
    monitor = Monitor(progress, cancel)
    images = pairs.clean if reference is None else reference
    with eval_mode(model, "pairs") as module:
        problem = pose_problem(
            module, pairs, images, limit=samples, transferred=False, seed=seed, monitor=monitor
        )
        patches = _Patches(problem.pairs, problem.references)
        rows, columns = _lattice(problem.pairs, patches.own, height, width)
        shares = torch.stack(
            [
                _shares(problem, patches, row, columns, monitor.part(i / len(rows), 1.0))
                for i, row in enumerate(rows)
            ]
        )
        monitor.report(1.0, "tried all places")
    order = shares.flatten().argsort(descending=True, stable=True)
    works = [int(i) for i in order if float(shares.flatten()[i]) >= max(least, 1e-9)]
    found = tuple((rows[i // len(columns)], columns[i % len(columns)]) for i in works)
    elsewhere = [place for place in found if place != patches.own][:MOST]
    return Places(shares, rows, columns, patches.own, found, _moved(problem, patches, elsewhere))


class _Patches:
    """The patches of some pairs, to be put at any place."""

    def __init__(self, pairs: SamplePairs, inputs: Tensor) -> None:
        self._pairs = pairs
        self._touched = touched(pairs)
        self._boxes = _boxes(pairs)
        known = pairs.corrupt.opacity if isinstance(pairs.corrupt, Transplant) else None
        self._opacity, self._low, self._high = opacities(pairs, inputs, known)
        self.own = self._boxes[0][:2]

    def put(self, number: int, inputs: Tensor, row: int, column: int) -> Tensor:
        """``inputs`` with the patch of one pair, its upper left pixel at ``row`` and ``column``."""
        top, left, height, width = self._boxes[number]
        here = (..., slice(top, top + height), slice(left, left + width))
        there = (..., slice(row, row + height), slice(column, column + width))
        clean, corrupted = self._pairs.clean[number][here], self._pairs.corrupted[number][here]
        under = inputs[there]
        patch = blend(under, clean, corrupted, self._opacity[number])
        result = inputs.clone()
        result[there] = torch.where(self._touched[number][here], patch, under)
        return torch.minimum(torch.maximum(result, self._low), self._high)


def _boxes(pairs: SamplePairs) -> list[tuple[int, int, int, int]]:
    """Row, column, height and width of what each pair's corruption touches."""
    boxes = []
    for spots in touched(pairs).any(dim=1):
        places = spots.nonzero()
        top, left = places.amin(dim=0).tolist()
        height, width = (places.amax(dim=0) + 1).tolist()
        boxes.append((top, left, height - top, width - left))
    return boxes


def _largest(pairs: SamplePairs) -> tuple[int, int]:
    """Height and width that hold each pair's patch; raises if they are not patches."""
    shape = tuple(pairs.clean.shape)
    if len(shape) != 4:
        raise ValueError(f"pairs: got samples of shape {shape[1:]}, want images C × H × W")
    boxes = _boxes(pairs)
    height, width = max(box[2] for box in boxes), max(box[3] for box in boxes)
    share = height * width / (shape[2] * shape[3])
    if share > LARGEST:
        raise ValueError(
            f"pairs: the corruption takes up {share:.0%} of the input, want a patch of {LARGEST:.0%}"
            " at most that can be moved"
        )
    return height, width


def _lattice(
    pairs: SamplePairs, own: tuple[int, int], height: int, width: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows and columns to try, the first pair's own among them."""
    down, across = pairs.clean.shape[2] - height + 1, pairs.clean.shape[3] - width + 1
    apart = max(1, math.ceil(math.sqrt(down * across / TRIED)))
    row, column = own
    return tuple(range(row % apart, down, apart)), tuple(range(column % apart, across, apart))


def _shares(
    problem: Problem, patches: _Patches, row: int, columns: tuple[int, ...], monitor: Monitor
) -> Tensor:
    """Share of the references whose prediction changes, for each column of a row."""
    monitor.report(0.0, f"trying places in row {row}")
    count = len(problem.pairs)
    parts, answers = [], []
    for number in range(min(count, len(problem.references))):
        inputs = problem.references[number::count]
        parts += [patches.put(number, inputs, row, column) for column in columns]
        answers += [problem.answers[number::count]] * len(columns)
    scores = predict_all(problem.model, torch.cat(parts), monitor=monitor)
    wrong = changed(answers_of(scores), torch.cat(answers)).double().cpu()
    sizes = [len(part) for part in parts]
    sums = torch.stack([part.sum() for part in wrong.split(sizes)]).reshape(-1, len(columns))
    return (sums.sum(dim=0) / len(problem.references)).float()


def _moved(problem: Problem, patches: _Patches, places: list[tuple[int, int]]) -> SamplePairs:
    """The pairs, and their clean inputs in turn with the patch in each of these places."""
    pairs, labels = problem.pairs, problem.labels
    turn = [number % len(pairs) for number in range(len(places))]
    corrupted = [
        patches.put(number, pairs.clean[number : number + 1], row, column)
        for number, (row, column) in zip(turn, places, strict=True)
    ]
    changed = [not torch.equal(x[0], pairs.clean[i]) for x, i in zip(corrupted, turn, strict=True)]
    kept = list(compress(turn, changed))
    return SamplePairs(
        torch.cat([pairs.corrupted, *compress(corrupted, changed)]),
        torch.cat([pairs.clean, pairs.clean[kept]]),
        torch.cat([labels, labels[kept]]),
    )
