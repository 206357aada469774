"""Candidate edits of all layers: statistics, one sweep of the model, and the closed form for each.

Imports torch only.  All layers at once where memory allows, otherwise in parts with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.base.ranks import Ranks
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.edit.closed_form import DIRECTIONS
from rectify_widgets.engine.edit.solver import DenseSolver, Solver
from rectify_widgets.engine.edit.statistics import BATCH, KeyStatistics, collect
from rectify_widgets.engine.find.candidates import (
    RIDGES,
    Candidate,
    Probe,
    ProbeSweep,
    candidates,
    layer_keys,
    sweep_probe,
)
from rectify_widgets.engine.find.problem import Problem
from rectify_widgets.engine.model.gradients import PATH_STEPS
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.memory import collect_chunk

Measure: TypeAlias = Callable[
    [Problem, Mapping[str, EditableLayer], KeyStatistics, int, Monitor], dict[str, float]
]
"""A number per layer from the problem, the layers, their statistics and the steps of the path."""

Clock = Callable[[str], AbstractContextManager[None]]
"""Times a stage of the work while its block runs."""


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

    def of(self, layers: Mapping[str, EditableLayer], monitor: Monitor) -> KeyStatistics:
        """Statistics of these layers at least."""
        if self._given is not None:
            return self._given
        problem = self._problem
        keep = len(layers) == len(problem.layers)
        wanted = {name: layers[name] for name in layers if name in self._stale or not keep}
        if wanted:
            chunk = None
            if problem.sizes is not None:
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
    parts = problem.parts()
    for number, layers in enumerate(parts):
        share = monitor.part(number / len(parts), (number + 1) / len(parts))
        problem.hand_back()
        with clock("statistics"):
            statistics = collector.of(layers, share.part(0.0, 0.5))
        with ranks.together():
            problem.hand_back()
            with clock("sweep"):
                probed = sweep_probe(
                    problem.model, layers, probe, steps=steps, monitor=share.part(0.5, 0.8)
                )
                measured = {}
                if measure is not None:
                    measured = measure(problem, layers, statistics, steps, share.silent())
            problem.hand_back()
            with clock("solving"):
                options = _solve(
                    problem.model, layers, statistics, collector, probed, sources,
                    share.part(0.8, 1.0), directions, ridges,
                )  # fmt: skip
        proposals.completeness |= completeness(probed, ranks, counted)
        proposals.measured |= _agreed(measured, ranks)
        proposals.options |= _ranked(options, ranks, counted)
        del probed, statistics, options, measured  # before the next part
    problem.hand_back()
    return proposals


def _solve(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    statistics: KeyStatistics,
    collector: StatisticsSource,
    probed: ProbeSweep,
    sources: Sequence[tuple[Tensor, Tensor]],
    monitor: Monitor,
    directions: Sequence[str],
    ridges: Sequence[float],
) -> dict[str, list[Candidate]]:
    keys = [
        (layer_keys(model, layers, corrupted), layer_keys(model, layers, clean))
        for corrupted, clean in sources
    ]
    options: dict[str, list[Candidate]] = {}
    for number, (name, layer) in enumerate(layers.items()):
        monitor.report(number / len(layers), f"solving {name}")
        try:
            solver = collector.solver(name, statistics, ridges)
        except ValueError:  # a layer whose inputs are zero on all references
            options[name] = []
            continue
        options[name] = [
            candidate
            for corrupted, clean in keys
            for candidate in candidates(
                layer, solver, (corrupted[name], clean[name]), probed,
                directions=directions, ridges=ridges,
            )
        ]  # fmt: skip
    return options


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


def completeness(probed: ProbeSweep, ranks: Ranks, counted: int) -> dict[str, float]:
    """For each layer how far its attributions are from adding up to the gap, relative to it."""
    errors = []
    for name, gradients in probed.path_gradients.items():
        change = (probed.clean[name] - probed.corrupted[name]).values()
        total = (change * gradients).sum(dim=(1, 2, 3))
        errors.append((total - probed.gap).abs().mean())
    *means, gap = ranks.mean(torch.stack([*errors, probed.gap.abs().mean()]), counted)
    return {
        name: float(error / gap.clamp_min(1e-9))
        for name, error in zip(probed.path_gradients, means, strict=True)
    }
