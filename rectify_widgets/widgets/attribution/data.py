"""Attribution maps of samples under a model: computed for a view, or scored for a whole set, and cached.

Imports `explain`, the renderers' arrays and the score; no ipywidgets.  The cache goes by model
*object*: going back and forth between several models computes nothing twice, and the maps of a model
are gone as soon as the model is.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rectify_widgets.engine.model.running import copied, eval_mode, predict_all
from rectify_widgets.explain import attribute
from rectify_widgets.widgets import render
from rectify_widgets.widgets.attribution.concentration import Pick, Scores, concentration, picks
from rectify_widgets.widgets.session import Job

CACHE_BYTES = 64_000_000
"""Most bytes of maps and scores that one widget keeps; what was used longest ago goes first."""

TOGETHER = 8
"""Samples of a set that are computed at a time."""

SET_LIMIT = 1000
"""Most samples of a set that are scored; a larger set is sampled at random."""

REDRAW = 0.7
"""Least seconds between two drawings of scores that are still coming in."""


class Sized(Protocol):
    """Something that knows how many bytes it takes."""

    @property
    def nbytes(self) -> int:
        """Bytes."""


Entry = TypeVar("Entry", bound=Sized)


@dataclass(frozen=True)
class Query:
    """What is asked of a model: a method of `explain.attribute` with its layer and target."""

    method: str
    layer: str | None = None
    target: int | None = None


@dataclass(frozen=True, eq=False)
class SampleMaps:
    """Maps of one sample under one model: an entry for each column (clean, corrupted).

    Attributes:
        signed: sums over channels, ``H × W``, with no side longer than `render.MAX_SIDE`.
        magnitudes: sums of magnitudes over channels; None where there is one channel only.
        explained: the classes that the maps explain.
        scores: concentration of each whole map.
        peaks: row and column of the greatest magnitude in the whole map.
        shape: height and width of the whole map.
        classes: number of classes that the model tells apart.
    """

    signed: tuple[render.Floats, ...]
    magnitudes: tuple[render.Floats, ...] | None
    explained: tuple[int, ...]
    scores: tuple[float, ...]
    peaks: tuple[tuple[int, int], ...]
    shape: tuple[int, int]
    classes: int

    def planes(self, *, signed: bool) -> tuple[render.Floats, ...]:
        """One map a column, with signs or without."""
        if signed:
            return self.signed
        if self.magnitudes is None:
            return tuple(np.abs(plane) for plane in self.signed)
        return self.magnitudes

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        return sum(plane.nbytes for plane in (*self.signed, *(self.magnitudes or ())))


@dataclass(eq=False)
class SetScores:
    """Concentration of the maps of many samples under one model, as far as they are scored.

    Attributes:
        values: ``columns × samples``, NaN where a map is empty or not scored yet.
        done: how many samples, from the first on, are scored.
    """

    values: Scores
    done: int = field(default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the scores."""
        return self.values.nbytes


class MapCache:
    """What was computed, by model object and question, within a bound in bytes.

    Used by the notebook's thread and by the worker.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = CACHE_BYTES if limit is None else limit
        self._kept: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, tuple[int, Any]]] = (
            WeakKeyDictionary()
        )
        self._uses = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        with self._lock:
            return self._size()

    def __len__(self) -> int:
        with self._lock:
            return sum(len(entries) for entries in self._kept.values())

    def get(self, model: nn.Module, key: Hashable, kind: type[Entry]) -> Entry | None:
        """What is kept for this model as it is now, or None."""
        with self._lock:
            entries = self._kept.get(model)
            entry = entries.get(key) if entries is not None else None
            if entries is None or entry is None or not isinstance(entry[1], kind):
                return None
            self._uses += 1
            entries[key] = (self._uses, entry[1])
            entries.move_to_end(key)
            return entry[1]

    def put(self, model: nn.Module, key: Hashable, value: Sized) -> None:
        """Keep something; what was used longest ago gives way."""
        with self._lock:
            self._uses += 1
            entries = self._kept.setdefault(model, OrderedDict())
            entries[key] = (self._uses, value)
            entries.move_to_end(key)
            size = self._size()
            while size > self._limit:
                oldest = min(
                    (kept for kept in self._kept.values() if kept),
                    key=lambda kept: next(iter(kept.values()))[0],
                )
                _, (_, gone) = oldest.popitem(last=False)
                size -= gone.nbytes

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._kept.clear()

    def _size(self) -> int:
        return sum(value.nbytes for entries in self._kept.values() for _, value in entries.values())


def state_of(model: nn.Module) -> int:
    """A number that changes when the model's weights are replaced or edited in place."""
    return hash(
        tuple(
            (id(tensor), 0 if tensor.is_inference() else tensor._version)  # noqa: SLF001 - no other way
            for tensor in (*model.parameters(), *model.buffers())
        )
    )


def maps_of(
    job: Job[Any],
    cache: MapCache,
    model: nn.Module,
    columns: Sequence[Tensor],
    indices: Sequence[int],
    query: Query,
    *,
    run: nn.Module | None = None,
) -> dict[int, SampleMaps]:
    """Maps of these samples of every column: from the cache, or computed a few at a time.

    ``run`` is a copy of the model that does the work, where the model itself may be in use.
    """
    state = state_of(model)
    found: dict[int, SampleMaps] = {}
    for index in indices:
        known = cache.get(model, (state, query, index), SampleMaps)
        if known is not None:
            found[index] = known
    missing = [index for index in indices if index not in found]
    size = _together(query)
    for start in range(0, len(missing), size):
        part = missing[start : start + size]
        for index, maps in _compute(job, run or model, columns, part, query).items():
            found[index] = maps
            cache.put(model, (state, query, index), maps)
    return found


@dataclass(frozen=True)
class SetTask:
    """A set to score, and the maps that are then shown of it.

    Attributes:
        models: by the name of their row.
        columns: ``N × C × H × W`` each, by name.
        order: the samples to score, see `spread_order`.
        query: what is asked.
        scores: what is known already, by row; it grows in place.
        missing: samples still to be scored, by row; none where what is known is to be shown.
        wanted: called with the scores at the end, gives the samples whose maps are shown.
    """

    models: Mapping[str, nn.Module]
    columns: Sequence[Tensor]
    order: Sequence[int]
    query: Query
    scores: Mapping[str, SetScores]
    missing: Mapping[str, int]
    wanted: Callable[[Mapping[str, SetScores]], Sequence[int]]

    @property
    def left(self) -> int:
        """Samples to score, over all models."""
        return sum(self.missing.values())


def set_task(
    cache: MapCache,
    models: Mapping[str, nn.Module],
    columns: Sequence[Tensor],
    order: Sequence[int],
    query: Query,
    wanted: Callable[[Mapping[str, SetScores]], Sequence[int]],
    *,
    finish: bool = True,
) -> SetTask:
    """Go on with what the cache knows of a set; without ``finish`` only show that."""
    scores: dict[str, SetScores] = {}
    for row, model in models.items():
        key = (state_of(model), query, "set")
        known = cache.get(model, key, SetScores)
        if known is None:
            known = SetScores(np.full((len(columns), len(order)), np.nan))
            cache.put(model, key, known)
        scores[row] = known
    missing = {row: len(order) - part.done for row, part in scores.items()} if finish else {}
    return SetTask(models, columns, order, query, scores, missing, wanted)


def score_set(
    job: Job[Any], cache: MapCache, task: SetTask, grown: Callable[[], None]
) -> dict[str, dict[int, SampleMaps]]:
    """Score what is missing; then the maps of the samples that are shown, by row and sample.

    ``grown()`` is called on the notebook's loop now and then, as scores come in.  What is scored
    stays so if the job is cancelled.
    """
    # Whenever a long job asks whether to stop, short ones pass, and they look at the same model:
    # this one works on copies, so that their hooks never meet.
    running = {row: copied(model) if task.left else model for row, model in task.models.items()}
    drawn, behind = time.monotonic(), 0
    for row, count in task.missing.items():
        if not count:
            continue
        for done in _score(job, cache, task, row, running[row], behind):
            behind += done
            if time.monotonic() - drawn >= REDRAW:
                drawn = time.monotonic()
                job.call(grown)
    samples = task.wanted(task.scores)
    return {
        row: maps_of(job, cache, model, task.columns, samples, task.query, run=running[row])
        for row, model in task.models.items()
    }


def _score(
    job: Job[Any], cache: MapCache, task: SetTask, row: str, running: nn.Module, behind: int
) -> Iterator[int]:
    """Score one model's samples on a copy of it; yields how many are done as they are."""
    model, scores = task.models[row], task.scores[row]
    state, total = state_of(model), len(task.order)
    name = f", {row.lower()}" if len(task.models) > 1 else ""
    while scores.done < total:
        job.check()
        start = scores.done
        part = list(task.order[start : start + _together(task.query)])

        def report(fraction: float, _: str) -> None:
            share = (behind + fraction * len(part)) / task.left  # noqa: B023 - called in this turn
            job.progress(share, f"{start} of {total} samples{name}")  # noqa: B023

        found = _compute(job, running, task.columns, part, task.query, report)
        for place, (index, maps) in enumerate(found.items(), start):
            scores.values[:, place] = maps.scores
            if maps.nbytes * total <= CACHE_BYTES // 4:  # small maps are kept for a closer look
                cache.put(model, (state, task.query, index), maps)
        scores.done = start + len(part)
        behind += len(part)
        yield len(part)


def spread_order(count: int) -> NDArray[np.int64]:
    """The samples to score, at most `SET_LIMIT` of ``count``, in a random but fixed order.

    Any beginning of it is a fair draw, so that a set that is scored in part can be read already.
    """
    order: NDArray[np.int64] = np.random.default_rng(0).permutation(count)[:SET_LIMIT]
    return order


def picked(
    scores: SetScores, columns: Sequence[str], order: NDArray[np.int64]
) -> dict[str, list[tuple[int, Pick]]]:
    """For each column the samples at the percentiles of its scores, with their numbers."""
    return {
        column: [
            (int(order[pick.place]), pick) for pick in picks(scores.values[place, : scores.done])
        ]
        for place, column in enumerate(columns)
    }


def _together(query: Query) -> int:
    # SmoothGrad's noise depends on a sample's place among those that are computed together; alone,
    # it has the same noise, hence the same map, wherever it is shown.
    return 1 if query.method == "smoothgrad" else TOGETHER


def _compute(
    job: Job[Any],
    model: nn.Module,
    columns: Sequence[Tensor],
    indices: Sequence[int],
    query: Query,
    progress: Callable[[float, str], None] | None = None,
) -> dict[int, SampleMaps]:
    """Maps of a few samples of every column, all at once."""
    samples = torch.cat([column[list(indices)] for column in columns])
    with eval_mode(model) as module:
        predicted = predict_all(module, samples)
    explained = predicted.argmax(dim=1)
    if query.target is not None:
        explained = torch.full_like(explained, query.target)
    maps = attribute(
        model,
        samples,
        method=query.method,
        layer=query.layer,
        target=explained,
        progress=progress or job.progress,
        cancel=job.cancelled,
    )
    found = {}
    for place, index in enumerate(indices):
        rows = list(range(place, len(maps), len(indices)))
        found[index] = _sample_maps(
            [maps[row] for row in rows], explained[rows], predicted.shape[1]
        )
    return found


def _sample_maps(maps: Sequence[Tensor], explained: Tensor, classes: int) -> SampleMaps:
    whole = [render.to_plane(one, signed=False) for one in maps]
    places = [np.unravel_index(int(plane.argmax()), plane.shape) for plane in whole]
    single = maps[0].shape[0] == 1
    return SampleMaps(
        signed=tuple(render.shrink_plane(render.to_plane(one)) for one in maps),
        magnitudes=None if single else tuple(render.shrink_plane(plane) for plane in whole),
        explained=tuple(int(number) for number in explained),
        scores=tuple(concentration(plane) for plane in whole),
        peaks=tuple((int(y), int(x)) for y, x in places),
        shape=(whole[0].shape[0], whole[0].shape[1]),
        classes=int(classes),
    )
