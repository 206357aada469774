"""Attribution maps of samples under a model: computed for a view, or scored for a whole set, and cached.

Imports `explain`, the renderers' arrays and the score; no ipywidgets.  The cache goes by model
*object*: going back and forth between several models computes nothing twice, and the maps of a model
are gone as soon as the model is.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rectify_widgets.engine.model.heads import to_explain
from rectify_widgets.engine.model.running import eval_mode, predict_all, with_head
from rectify_widgets.explain import attribute
from rectify_widgets.widgets import render
from rectify_widgets.widgets.attribution.concentration import Pick, Scores, concentration, picks
from rectify_widgets.widgets.session import Job

CACHE_BYTES = 64_000_000
"""Most bytes of maps and scores that one widget keeps; what was used longest ago goes first."""

TOGETHER = 8
"""Samples of a set that are computed at a time."""

LARGE = 200
"""Shorter side in pixels from which on the default method is the one that takes one pass."""

SET_LIMIT = 1000
"""Most samples of a set that are scored; a larger set is sampled at random."""

REDRAW = 0.7
"""Least seconds between two drawings of scores that are still coming in."""


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


@dataclass(frozen=True)
class Version:
    """A model as it is now.

    Attributes:
        model: a weak reference.
        state: changes when the model's weights are replaced or edited in place.
    """

    model: weakref.ref[nn.Module]
    state: int

    @classmethod
    def of(cls, model: nn.Module) -> Version:
        """The current version of a model."""
        tensors = (*model.parameters(), *model.buffers())
        return cls(weakref.ref(model), hash(tuple((id(x), _writes(x)) for x in tensors)))


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written to, where that is counted."""
    if nn.parameter.is_lazy(tensor) or tensor.is_inference():
        return 0
    return tensor._version  # noqa: SLF001 - no other way


class MapCache:
    """What was computed, by version of a model and question, within a bound in bytes.

    Used by the notebook's thread and by the worker.  What belongs to a model that is gone goes when
    something else is put in.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = CACHE_BYTES if limit is None else limit
        self._entries: OrderedDict[tuple[Version, Hashable], SampleMaps | SetScores] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of what is in it."""
        with self._lock:
            return sum(value.nbytes for value in self._entries.values())

    def __len__(self) -> int:
        with self._lock:
            return sum(version.model() is not None for version, _ in self._entries)

    def get(self, version: Version, key: Hashable) -> Any:
        """What is known of this version, or None."""
        with self._lock:
            if (version, key) in self._entries:
                self._entries.move_to_end((version, key))
            return self._entries.get((version, key))

    def put(self, version: Version, key: Hashable, value: SampleMaps | SetScores) -> None:
        """Add something; what was used longest ago gives way."""
        with self._lock:
            self._entries[version, key] = value
            self._entries.move_to_end((version, key))
            for gone in [entry for entry in self._entries if entry[0].model() is None]:
                del self._entries[gone]
            size = sum(other.nbytes for other in self._entries.values())
            while size > self._limit:
                size -= self._entries.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._entries.clear()


class Attributions:
    """Maps and scores of some samples under any model, each computed once while it is cached.

    Args:
        columns: ``N × C × H × W`` each: the same samples clean and corrupted, or as given.

    Attributes:
        order: the samples of a set that are scored, see `spread_order`.
        cache: what is known.
    """

    def __init__(self, columns: Iterable[Tensor]) -> None:
        self._columns = tuple(columns)
        self.order = spread_order(len(self._columns[0]))
        self.cache = MapCache()

    def forget(self) -> None:
        """Let go of the samples and of what is known."""
        self._columns = ()
        self.cache.clear()

    def maps(
        self,
        job: Job[Any],
        model: nn.Module,
        indices: Sequence[int],
        query: Query,
        running: nn.Module | None = None,
    ) -> dict[int, SampleMaps]:
        """Maps of these samples of every column: from the cache, or computed a few at a time.

        ``running`` is a copy of the model that does the work, where the model may be in use.
        """
        version = Version.of(model)
        found = {index: self.cache.get(version, (query, index)) for index in indices}
        missing = [index for index, maps in found.items() if maps is None]
        for part in _parts(missing, query):
            for index, maps in self._compute(job, running or model, part, query).items():
                found[index] = maps
                self.cache.put(version, (query, index), maps)
        return found

    def scores(self, model: nn.Module, query: Query) -> SetScores:
        """Scores of the set, as far as they are known; `score` goes on with them."""
        version = Version.of(model)
        known: SetScores | None = self.cache.get(version, query)
        if known is None:
            known = SetScores(np.full((len(self._columns), len(self.order)), np.nan))
            self.cache.put(version, query, known)
        return known

    def score(
        self,
        job: Job[Any],
        models: Mapping[str, tuple[nn.Module, nn.Module, SetScores]],
        query: Query,
        update: Callable[[], None],
    ) -> None:
        """Score what is missing; what is scored stays so if the job is cancelled.

        Args:
            job: stops it, and hears of progress.
            models: by name of their row: each with a copy that does the work, and its scores.
            query: what is asked.
            update: called on the notebook's loop now and then, as scores come in.
        """
        total, drawn, done = len(self.order), time.monotonic(), 0
        left = sum(total - scores.done for _, _, scores in models.values())
        for row, (model, running, scores) in models.items():
            version = Version.of(model)
            name = f", {row.lower()}" if len(models) > 1 else ""
            for part in _parts(self.order[scores.done :].tolist(), query):
                job.check()
                report = partial(
                    _report,
                    job.part(done / left, (done + len(part)) / left),
                    f"{scores.done} of {total} samples{name}",
                )
                found = self._compute(job, running, part, query, report)
                for place, (index, maps) in enumerate(found.items(), scores.done):
                    scores.values[:, place] = maps.scores
                    if maps.nbytes * total <= CACHE_BYTES // 4:  # small ones, for a closer look
                        self.cache.put(version, (query, index), maps)
                scores.done += len(part)
                done += len(part)
                if time.monotonic() - drawn >= REDRAW:
                    drawn = time.monotonic()
                    job.call(update)

    def _compute(
        self,
        job: Job[Any],
        model: nn.Module,
        indices: Sequence[int],
        query: Query,
        progress: Callable[[float, str], None] | None = None,
    ) -> dict[int, SampleMaps]:
        """Maps of a few samples of every column, all at once."""
        samples = torch.cat([column[list(indices)] for column in self._columns])
        with eval_mode(model) as module:
            predicted = to_explain(predict_all(with_head(module, samples, columns=True), samples))
        explained = predicted.argmax(dim=1)
        if query.target is not None:
            explained = torch.full_like(explained, query.target)
        maps = attribute(
            model, samples, method=query.method, layer=query.layer, target=explained,
            progress=progress or job.progress, cancel=job.cancelled,
        )  # fmt: skip
        classes, step = predicted.shape[1], len(indices)
        return {
            index: _sample_maps(list(maps[place::step]), explained[place::step], classes)
            for place, index in enumerate(indices)
        }


def default_method(model: nn.Module, inputs: Tensor) -> str:
    """The method where none is named: Grad-CAM for large inputs of a network with a convolution.

    Integrated gradients take a forward and backward pass for each of their steps.
    """
    convolutional = any(isinstance(part, nn.Conv2d) for part in model.modules())
    large = min(inputs.shape[-2:]) >= LARGE
    return "grad-cam" if large and convolutional else "integrated-gradients"


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


def _report(part: Callable[[float, str], None], words: str, fraction: float, _: str) -> None:
    part(fraction, words)


def _parts(indices: Sequence[int], query: Query) -> Iterator[list[int]]:
    """A few samples at a time."""
    # SmoothGrad's noise depends on a sample's place among those that are computed together; alone,
    # it has the same noise, hence the same map, wherever it is shown.
    size = 1 if query.method == "smoothgrad" else TOGETHER
    return (list(indices[start : start + size]) for start in range(0, len(indices), size))


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
