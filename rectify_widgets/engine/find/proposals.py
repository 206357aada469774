"""Candidate edits of all layers: statistics, one sweep of the model, and the closed form for each.

Imports torch only.  All layers at once where memory allows, otherwise in parts with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from rectify_widgets.engine.base.pace import Pace
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.base.ranks import Ranks
from rectify_widgets.engine.data.inputs import Inputs, count_inputs
from rectify_widgets.engine.edit.closed_form import DIRECTIONS
from rectify_widgets.engine.edit.solver import DenseSolver, Solver
from rectify_widgets.engine.edit.statistics import BATCH, KeyStatistics, collect
from rectify_widgets.engine.find.candidates import (
    RIDGES,
    Candidate,
    Probe,
    sweep_probe,
)
from rectify_widgets.engine.find.drafts import Draft, Predictions, chunks, draft_edits
from rectify_widgets.engine.find.problem import MAX_REFERENCES, Problem
from rectify_widgets.engine.model.gradients import PATH_STEPS
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.memory import collect_chunk

Measure: TypeAlias = Callable[
    [Problem, Mapping[str, EditableLayer], KeyStatistics, int, Monitor], dict[str, float]
]
"""A number per layer from the problem, the layers, their statistics and the steps of the path."""

Clock = Callable[[str], AbstractContextManager[None]]
"""Times a stage of the work while its block runs."""


COLLECTING, FOLLOWING, SOLVING = 2, 3, 600
"""Time to collect the keys of a sample, to follow a gradient, and to solve for all layers, in units of a
prediction, for the progress bar alone: between what small networks and an EfficientNet take."""


class StatisticsSource:
    """Statistics of a problem's layers: given ones, or collected on demand.

    They are kept until forgotten, except where a memory limit divides the layers into parts.

    Args:
        problem: model, layers and references.
        reference: what to collect from; None takes the problem's references.
        statistics: given ones, which are checked against the model.
        seed: of the sampling of positions.
        room: bytes of factors that `solver` may keep.

    Raises:
        ValueError: statistics in another key space, missing or stale.
    """

    def __init__(
        self,
        problem: Problem,
        reference: Inputs | None,
        statistics: KeyStatistics | None,
        seed: int,
        room: int = 0,
    ) -> None:
        if statistics is not None:
            statistics.check_space("patch")
            statistics.check(problem.model, problem.catalog, problem.layers)
        self._problem = problem
        self._source = problem.references if reference is None else reference
        self._given = statistics
        self._kept: KeyStatistics | None = None
        self._stale: set[str] = set(problem.layers)
        self._seed = seed
        self._room = room
        self._factors: dict[str, dict[float, Tensor]] = {}
        self._reserved: dict[str, int] = {}
        self.took: dict[str, float] = {}
        """Seconds of the stages of `propose_edits` in the round before."""

    @property
    def samples(self) -> int:
        """How many have to be gone through for all layers, about."""
        if self._given is not None or not self._stale:
            return 0
        return count_inputs(self._source) or MAX_REFERENCES

    def of(self, layers: Mapping[str, EditableLayer], monitor: Monitor) -> KeyStatistics:
        """Statistics of these layers at least."""
        if self._given is not None:
            return self._given
        problem = self._problem
        keep = len(layers) == len(problem.layers)
        wanted = {name: layers[name] for name in layers if name in self._stale or not keep}
        if wanted:
            chunk = None
            if problem.sizes is not None and problem.limit is not None:
                chunk = collect_chunk(problem.sizes, wanted, BATCH, problem.limit)
            newer = collect(
                problem.model, self._source, problem.catalog, wanted, chunk=chunk, seed=self._seed,
                monitor=monitor, ranks=problem.ranks,
            )  # fmt: skip
            if not keep:
                return newer
            self._kept = newer if self._kept is None else self._kept.updated(newer)
            self._stale.clear()
        assert self._kept is not None  # noqa: S101 - all layers are stale at first
        return self._kept

    def solver(self, name: str, statistics: KeyStatistics, ridges: Sequence[float]) -> Solver:
        """The solver of one layer, from what `of` gave for it.

        Raises:
            ValueError: the layer's keys are zero on all references.
        """
        moment = statistics[name].moment
        return DenseSolver(name, moment, self.factors(name, len(ridges) * moment.nbytes))

    def factors(self, name: str, size: int) -> dict[float, Tensor]:
        """A layer's factors by ridge, ``size`` bytes in all; kept until forgotten if there is room."""
        if name not in self._factors and sum(self._reserved.values()) + size <= self._room:
            self._factors[name], self._reserved[name] = {}, size
        return self._factors.get(name, {})

    def forget(self, names: Iterable[str]) -> None:
        """Collect these again on the next request."""
        for name in names:
            self._stale.add(name)
            self._factors.pop(name, None)
            self._reserved.pop(name, None)


@dataclass
class Proposals:
    """Candidate edits of the layers, and what else the same passes give."""

    options: dict[str, list[Candidate]] = field(default_factory=dict)
    """Candidate edits of every layer, each layer's best first."""
    completeness: dict[str, float] = field(default_factory=dict)
    """For each layer how far its attributions are from adding up to the gap, relative to it."""
    measured: dict[str, float] = field(default_factory=dict)
    """What was measured of every layer besides, where it was asked for."""


def propose_edits(
    problem: Problem,
    collector: StatisticsSource,
    probe: Probe,
    sources: Sequence[tuple[Tensor, Tensor]],
    monitor: Monitor,
    *,
    directions: Sequence[str] = DIRECTIONS,
    ridges: Sequence[float] = RIDGES,
    steps: int = PATH_STEPS,
    measure: Measure | None = None,
    clock: Clock = lambda _: nullcontext(),
) -> Proposals:
    """Candidate edits of every layer of the problem.

    Several ranks take their own samples of the probe each, and average predictions before choosing.

    Args:
        problem: model, layers and references.
        collector: their statistics.
        probe: samples that carry the corruption, for the prediction.
        sources: corrupted and clean inputs to solve from, see `Problem.sources`.
        monitor: progress and cancellation.
        directions, ridges: the grid.
        steps: midpoints of the path.
        measure: a number per layer to measure besides.
        clock: times the stages ``"statistics"``, ``"sweep"`` and ``"solving"``.
    """
    proposals = Proposals()
    ranks = problem.ranks
    rows, counted = ranks.rows(len(probe))
    probe = probe.only(rows)
    drafts: dict[str, list[Draft]] = {}
    parts = problem.parts()
    pace, took = Pace(monitor, took=collector.took), collector.took
    collecting, sweeping = COLLECTING * collector.samples, FOLLOWING * steps * len(probe)
    for number, layers in enumerate(parts):
        others = len(parts) - 1 - number

        def after_collecting(cost: float, others: int = others) -> float:
            unit = cost / max(collecting, 1)
            solving = took.get("solving", unit * SOLVING)
            return others * (cost + solving) + solving + took.get("sweeping", unit * sweeping)

        def after_solving(cost: float, others: int = others) -> float:
            collected = took.get("collecting", 0.0)
            unit = collected / collecting if collecting else cost / SOLVING
            return others * (cost + collected) + took.get("sweeping", unit * sweeping)

        problem.hand_back()
        with clock("statistics"):
            statistics = collector.of(layers, pace.stage("collecting", after_collecting))
        share = pace.stage("solving", after_solving)
        share.report(0.0, "solving all layers")
        with ranks.together():
            problem.hand_back()
            measured = {}
            if measure is not None:
                with clock("sweep"):
                    measured = measure(problem, layers, statistics, steps, share.silent())
            with clock("solving"):
                drafts |= draft_edits(
                    problem.model, layers,
                    partial(collector.solver, statistics=statistics, ridges=ridges), sources,
                    directions=directions, ridges=ridges, most=problem.chunk,
                    monitor=share,
                )  # fmt: skip
        proposals.measured |= _agreed(measured, ranks)
        del statistics  # before the next part
    groups = problem.sweeps()
    sweep = pace.stage("sweeping", lambda _: 0.0)
    for number, layers in enumerate(groups):
        share = sweep.part(number / len(groups), (number + 1) / len(groups))
        problem.hand_back()
        with ranks.together(), clock("sweep"):
            predictions = Predictions({name: drafts[name] for name in layers})
            for some in chunks(len(probe), problem.chunk):
                part = share.part(some.start / len(probe), some.stop / len(probe))
                predictions.add(
                    sweep_probe(problem.model, layers, probe.only(some), steps=steps, monitor=part)
                )
            options = predictions.options()
        proposals.completeness |= completeness(predictions, ranks, counted)
        proposals.options |= _ranked(options, ranks, counted)
    problem.hand_back()
    pace.end()
    return proposals


def _ranked(
    options: Mapping[str, list[Candidate]], ranks: Ranks, counted: int
) -> dict[str, list[Candidate]]:
    """Each layer's best edit first, by what is predicted from all ranks' samples."""
    if ranks.several:
        flat = [candidate for each in options.values() for candidate in each]
        own = torch.tensor([[one.share, one.cost] for one in flat], dtype=torch.float64)
        agreed = iter(ranks.mean(own, counted).tolist())
        options = {
            name: [replace(one, share=s, cost=c) for one, (s, c) in zip(each, agreed, strict=False)]
            for name, each in options.items()
        }
    return {name: sorted(each, key=lambda one: -one.score) for name, each in options.items()}


def _agreed(scores: Mapping[str, float], ranks: Ranks) -> dict[str, float]:
    """The same scores on all ranks, to the last bit."""
    own = torch.tensor(list(scores.values()), dtype=torch.float64)
    return dict(zip(scores, ranks.mean(own, 1).tolist(), strict=True))


def completeness(predictions: Predictions, ranks: Ranks, counted: int) -> dict[str, float]:
    """For each layer how far its attributions are from adding up to the gap, relative to it."""
    errors, whole = predictions.errors()
    *means, gap = ranks.mean(torch.stack([*errors.values(), whole]), counted)
    return {
        name: float(error / gap.clamp_min(1e-9)) for name, error in zip(errors, means, strict=True)
    }
