"""`solve_edit`: the best edit of one layer, or of the best layer.  Imports torch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_number
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.closed_form import (
    DIRECTIONS,
    Unreached,
    closed_form,
    closed_form_channel,
    key_sums,
)
from rectify_widgets.engine.edit.edits import RankOneEdit, digest
from rectify_widgets.engine.edit.solver import MAX_RIDGE, DenseSolver, MatrixFreeSolver, Solver
from rectify_widgets.engine.edit.statistics import KeyStatistics, collect
from rectify_widgets.engine.find.candidates import RIDGES, Candidate, layer_keys
from rectify_widgets.engine.find.localization import rank_layers
from rectify_widgets.engine.find.problem import Problem, pose_problem
from rectify_widgets.engine.find.proposals import StatisticsSource
from rectify_widgets.engine.model.keys import KEY_SPACES, EditableLayer, Keys
from rectify_widgets.engine.model.running import capturing, eval_mode, predict

SOLVERS = ("dense", "matrix-free")


def solve_edit(
    model: nn.Module,
    pairs: SamplePairs,
    *,
    layer: str | None = None,
    reference: Inputs | None = None,
    statistics: KeyStatistics | None = None,
    direction: str | None = None,
    ridge: float | None = None,
    key_space: str = "patch",
    solver: str = "dense",
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> RankOneEdit:
    """Solve for the rank-one edit of one layer that maps the pairs' corrupted keys to clean values.

    It is the edit that `localize` scores highest among what the arguments leave open: solved from the
    pairs or, with 32 references or more, also from references that carry the transplanted corruption,
    whichever does better.  In the channel key space it is solved from the pairs.  Nothing is applied.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts.
        layer: dotted name, or None for the most editable one.
        reference: unlabelled inputs like those of training.
        statistics: of the references, where they have been collected already; alone they leave
            nothing to put the corruption onto.
        direction: ``"contrast"`` or ``"key"``.
        ridge: in units of the mean diagonal of the second moment.
        key_space: ``"patch"``, or ``"channel"`` for per-pixel channel vectors (Bau et al. 2020).
        solver: ``"dense"``, or ``"matrix-free"`` to solve from the references' layer inputs without
            forming the second moment.
        seed: which references are used.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Raises:
        TypeError, ValueError: bad input; stale statistics; a layer that cannot be edited or that
            the corruption does not reach.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> rw.solve_edit(model, pairs, reference=reference, direction="key")
        RankOneEdit('classifier', weight 3 × 288, key direction, ridge ...)
    """
    check_choice("key_space", key_space, KEY_SPACES)
    check_choice("solver", solver, SOLVERS)
    check_int("seed", seed, low=0)
    directions: Sequence[str] = DIRECTIONS
    ridges: Sequence[float] = RIDGES
    if direction is not None:
        directions = [check_choice("direction", direction, DIRECTIONS)]
    if ridge is not None:
        ridges = [check_number("ridge", ridge, low=0.0, high=MAX_RIDGE)]
    monitor = Monitor(progress, cancel)
    with eval_mode(model, "pairs") as module:
        problem = pose_problem(
            module, pairs, reference, statistics=statistics, argument="layer",
            layers=None if layer is None else [layer], seed=seed, monitor=monitor,
        )  # fmt: skip
        dense = key_space == "patch" and solver == "dense"
        last = monitor
        if dense or layer is None or direction is None or ridge is None:
            known = statistics if key_space == "patch" else None
            collector = StatisticsSource(problem, reference, known, seed)
            first, last = monitor.part(0.0, 1.0 if dense else 0.8), monitor.part(0.8, 1.0)
            edit = _best(problem, collector, directions, ridges, seed, first)
            layer, direction, ridge = edit.layer, edit.direction, edit.ridge
        problem = replace(problem, layers={layer: problem.layers[layer]})
        if not dense:
            last.report(0.0, f"solving {layer}")
        if key_space == "channel":
            edit = _channel_edit(problem, layer, statistics, direction, ridge, seed, last)
        elif solver == "matrix-free":
            edit = _best(problem, _ReferenceKeys(problem), (direction,), (ridge,), seed, last)
        monitor.report(1.0, f"solved {layer}")
        return edit


class _ReferenceKeys(StatisticsSource):
    """Solvers that work from the references' layer inputs, without a second moment."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, None, None, seed=0)

    def of(self, layers: Mapping[str, EditableLayer], monitor: Monitor) -> KeyStatistics:  # noqa: ARG002
        """None: there is nothing to collect."""
        return KeyStatistics({}, key_space="patch", references=len(self._problem.references))

    def solver(self, name: str, statistics: KeyStatistics, ridges: Sequence[float]) -> Solver:  # noqa: ARG002
        """See `StatisticsSource.solver`."""
        layer, model = self._problem.layers[name], self._problem.model
        chunks = self._problem.references.split(64)
        return MatrixFreeSolver(
            layer, [layer_keys(model, {name: layer}, chunk)[name] for chunk in chunks]
        )


def _best(
    problem: Problem,
    collector: StatisticsSource,
    directions: Sequence[str],
    ridges: Sequence[float],
    seed: int,
    monitor: Monitor,
) -> RankOneEdit:
    """The edit that `localize` puts first among the layers of the problem."""
    try:
        return rank_layers(
            problem, collector, directions=directions, ridges=ridges, seed=seed, monitor=monitor
        ).edit()
    except Unreached:
        if len(problem.layers) == 1:
            (name,) = problem.layers
            # These raise the reason, where there is another one.
            collector.solver(name, collector.of(problem.layers, monitor.silent()), ridges)
            for direction in directions:
                _sum(problem.layers[name], _pair_keys(problem, name), direction)
        names = ", ".join(map(repr, problem.layers))
        raise Unreached(
            f"layer: the corruption of the pairs does not reach layer {names}"
        ) from None


def _channel_edit(
    problem: Problem,
    name: str,
    statistics: KeyStatistics | None,
    direction: str,
    ridge: float,
    seed: int,
    monitor: Monitor,
) -> RankOneEdit:
    """The edit in the key space of per-pixel channel vectors; a linear layer has only one space."""
    layer = problem.layers[name]
    if layer.computed:
        raise ValueError(
            f"key_space: layer {name!r} computes its weight from the one that it keeps, so that channel "
            "keys have no closed form; want 'patch'"
        )
    if statistics is None:
        statistics = collect(
            problem.model, problem.references, problem.catalog, problem.layers, key_space="channel",
            seed=seed, monitor=monitor,
        )  # fmt: skip
    statistics.check_space("channel")
    statistics.check(problem.model, problem.catalog, [name])
    solver = DenseSolver(name, statistics[name].moment)
    if not isinstance(layer.module, nn.Conv2d):
        keys = _pair_keys(problem, name)
        solved = solver.solve(_sum(layer, keys, direction).unsqueeze(1), ridge)
        lefts = closed_form(solved, *keys)
        return Candidate(layer, direction, ridge, lefts[:, 0], solved[:, 0], 0.0, 0.0).edit()
    inputs: list[Tensor] = []
    with capturing({name: layer.module}, lambda _, found, __: inputs.append(found.clone())):
        predict(problem.model, problem.pairs.corrupted)
        predict(problem.model, problem.pairs.clean)
    count = len(problem.pairs)
    corrupted, clean = (layer.pixels(one, count) for one in inputs)
    change = corrupted - clean
    weights = change.norm(dim=2)
    if float(weights.max()) <= 0.0:
        raise Unreached(f"layer: the corruption of the pairs does not reach layer {name!r}")
    weights = weights / weights.sum(dim=(0, 2), keepdim=True).clamp_min(1e-30)
    source = corrupted if direction == "key" else change
    right = solver.solve(torch.einsum("ngp,ngkp->gk", weights, source).unsqueeze(1), ridge)[:, 0]
    whole = layer.keys(inputs[1], count) - layer.keys(inputs[0], count)
    left = closed_form_channel(layer, right, inputs[0].to(right), whole.values())
    return RankOneEdit(
        layer=name,
        left=left.reshape(layer.outputs, -1).cpu(),
        right=(right[0] if layer.groups == 1 else right).cpu(),
        shape=tuple(layer.module.weight.shape),
        direction=direction,
        ridge=ridge,
        key_space="channel",
        solved_for=digest(layer.module.weight),
    )


def _pair_keys(problem: Problem, name: str) -> tuple[Keys, Keys]:
    """The layer's keys on the pairs, corrupted and clean."""
    layers = {name: problem.layers[name]}
    corrupted = layer_keys(problem.model, layers, problem.pairs.corrupted)
    return corrupted[name], layer_keys(problem.model, layers, problem.pairs.clean)[name]


def _sum(layer: EditableLayer, keys: tuple[Keys, Keys], direction: str) -> Tensor:
    sums = key_sums(layer, *keys)
    if direction not in sums:
        raise Unreached(
            f"layer: the {direction} direction of layer {layer.name!r} vanishes: the changes of its keys "
            "cancel out over the positions"
        )
    return sums[direction]
