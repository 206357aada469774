"""Candidate edits of all layers: statistics, one look at the model, and the closed form for each.

Imports torch only.  All layers at a time where memory allows, else some after others: every part
costs another pass, and all parts together give what one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

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

Clock = Callable[[str], AbstractContextManager[None]]
"""Times a stage of the work while its block runs."""


class StatisticsSource:
    """Statistics of a problem's layers: those that were given, else collector when asked for.

    What has been collected is kept until it is forgotten, but under a limit of memory, where the
    layers come in parts: then each part is collected anew.

    Args:
        problem: what is asked about.
        reference: what to collect from; None takes the problem's references.
        statistics: known ones, which are checked against the model.
        seed: of the sampling of positions.
        room: bytes of factors that `factors` may keep.

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
            if statistics.key_space != "patch":
                raise ValueError(
                    f"statistics: got {statistics.key_space!r} keys, want 'patch' keys"
                )
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
        """Where the factors of a layer's second moment belong, by ridge; ``size`` bytes in all.

        What is put there is there the next time, if there is room, until the layer is forgotten.
        """
        if name not in self._factors:
            if sum(self._reserved.values()) + size > self._room:
                return {}
            self._factors[name], self._reserved[name] = {}, size
        return self._factors[name]

    def forget(self, names: Iterable[str]) -> None:
        """Collect these anew when they are asked for again."""
        for name in names:
            self._stale.add(name)
            self._factors.pop(name, None)
            self._reserved.pop(name, None)


@dataclass
class Proposals:
    """What one look at the layers gave."""

    options: dict[str, list[Candidate]] = field(default_factory=dict)
    """Candidate edits of every layer, each layer's best first."""
    completeness: dict[str, float] = field(default_factory=dict)
    """For each layer how far its attributions are from adding up to the gap, relative to it."""
    projection: dict[str, float] = field(default_factory=dict)
    """The score of Yang et al. 2026, where it was asked for."""


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
    projection: bool = False,
    clock: Clock = lambda _: nullcontext(),
) -> Proposals:
    """Candidate edits of every layer of the problem.

    Where several ranks make the call, each looks at its own samples of the probe, and predictions
    are averaged before anything is chosen, so that all choose alike.

    Args:
        problem: model, layers and references.
        collector: their statistics.
        probe: samples that carry the corruption, for the prediction.
        sources: corrupted and clean inputs to solve from, see `Problem.sources`.
        monitor: progress and cancellation.
        directions, ridges: the grid.
        steps: midpoints of the path.
        projection: score by projection as well.
        clock: times the stages ``"statistics"``, ``"sweep"`` and ``"solving"``.
    """
    found = Proposals()
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
                seen = sweep_probe(
                    problem.model, layers, probe, steps=steps, monitor=share.part(0.5, 0.8)
                )
                projections = {}
                if projection:
                    projections = projected(problem, layers, statistics, steps, share.silent())
            problem.hand_back()
            with clock("solving"):
                options = _solve(
                    problem.model, layers, statistics, collector, seen, sources,
                    share.part(0.8, 1.0), directions, ridges,
                )  # fmt: skip
        found.completeness |= completeness(seen, ranks, counted)
        found.projection |= _agreed(projections, ranks)
        found.options |= _ranked(options, ranks, counted)
        del seen, statistics, options, projections  # before the next part is looked at
    problem.hand_back()
    return found


def _solve(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    statistics: KeyStatistics,
    collector: StatisticsSource,
    seen: ProbeSweep,
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
        found = [
            candidate
            for corrupted, clean in keys
            for candidate in candidates(
                layer, solver, (corrupted[name], clean[name]), seen,
                directions=directions, ridges=ridges,
            )
        ]  # fmt: skip
        options[name] = found
    return options


def _ranked(
    options: Mapping[str, list[Candidate]], ranks: Ranks, counted: int
) -> dict[str, list[Candidate]]:
    """Each layer's best edit first, by what is predicted from all ranks' samples."""
    if ranks.several:
        found = [candidate for each in options.values() for candidate in each]
        own = torch.tensor([[one.share, one.cost] for one in found], dtype=torch.float64)
        told = iter(ranks.mean(own, counted).tolist())
        options = {
            name: [
                replace(one, share=share, cost=cost)
                for one, (share, cost) in zip(each, told, strict=False)
            ]
            for name, each in options.items()
        }
    return {
        name: sorted(each, key=lambda candidate: -candidate.score) for name, each in options.items()
    }


def _agreed(scores: Mapping[str, float], ranks: Ranks) -> dict[str, float]:
    """The same scores on all ranks, to the last bit."""
    own = torch.tensor(list(scores.values()), dtype=torch.float64)
    return dict(zip(scores, ranks.mean(own, 1).tolist(), strict=True))


def projected(
    problem: Problem,
    layers: Mapping[str, EditableLayer],
    statistics: KeyStatistics,
    steps: int,
    monitor: Monitor,
) -> dict[str, float]:
    """``‖Σ_p M_p (C⁻¹ k̃_p)ᵀ‖_F`` with ``M = (v − ṽ) ⊙ Ḡ``, averaged over pairs.

    Yang et al. 2026, the attribution of a layer projected on its edit direction.
    """
    probe = problem.pair_probe()
    seen = sweep_probe(problem.model, layers, probe, steps=steps, monitor=monitor)
    scores = dict.fromkeys(layers, 0.0)
    for name in seen.path_gradients:
        attributions = (seen.clean[name] - seen.corrupted[name]).values()
        attributions = attributions * seen.path_gradients[name]
        solver = DenseSolver(name, statistics[name].moment)
        norms = []
        for row in range(len(probe)):
            keys = seen.corrupted[name].rows(slice(row, row + 1))
            summed = keys.gather(attributions[row : row + 1])
            norms.append(solver.solve(summed, RIDGES[0]).norm())
        scores[name] = float(torch.stack(norms).mean())
    return scores


def completeness(seen: ProbeSweep, ranks: Ranks, counted: int) -> dict[str, float]:
    """For each layer how far its attributions are from adding up to the gap, relative to it."""
    errors = []
    for name, gradients in seen.path_gradients.items():
        change = (seen.clean[name] - seen.corrupted[name]).values()
        total = (change * gradients).sum(dim=(1, 2, 3))
        errors.append((total - seen.gap).abs().mean())
    *means, gap = ranks.mean(torch.stack([*errors, seen.gap.abs().mean()]), counted)
    return {
        name: float(error / gap.clamp_min(1e-9))
        for name, error in zip(seen.path_gradients, means, strict=True)
    }
