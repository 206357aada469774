"""Speed of an edit: the closed form against an iterative optimiser, one layer at a time.

Imports the engine, the rewriting baseline and this folder's speed modules.  Both sides start from
the layer's inputs on one pair and the second moment of its reference keys, and both are given the
edit direction's key space; the optimiser is given the direction itself, which ours has to solve for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.baselines.rewriting import descend
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.closed_form import closed_form, closed_form_channel, key_sums
from rectify_widgets.engine.edit.solver import DenseSolver
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.keys import EditableLayer, pad
from rectify_widgets.engine.model.running import capturing, eval_mode
from rectify_widgets.engine.repair.solving import solve_edit
from tests.benchmarks.speed_bench import Bench, Cost, Measured, Row
from tests.benchmarks.speed_limits import (
    BATCH,
    Work,
    executed,
    factor_work,
    forward_work,
)
from tests.benchmarks.speed_timing import Ratio, three_digits

RIDGE = 1e-2
LEARNING_RATE = 0.05
"""That of the iterative optimiser, as published."""
WARM_STEPS = 3
"""Steps of the optimiser before it is timed."""
TARGET = 200.0
"""How many times faster the closed form is to be."""


@dataclass(frozen=True, eq=False)
class Edit:
    """An edit of a convolution without groups: a direction and what goes with it.

    Their product has the shape of the weight: in the patch key space the direction is ``1 × C × kh ×
    kw`` and the rest ``O × 1 × 1 × 1``, in the channel key space ``1 × C × 1 × 1`` and ``O × 1 × kh
    × kw``.
    """

    left: Tensor
    right: Tensor

    @property
    def delta(self) -> Tensor:
        """What is added to the weight."""
        return self.left * self.right


@dataclass(frozen=True, eq=False)
class Problem:
    """What an edit of one convolution is to do: from its corrupted input to clean values."""

    layer: EditableLayer
    corrupted: Tensor
    clean: Tensor
    """The layer's inputs, ``1 × C × H × W``."""
    moments: dict[str, Tensor]
    """The second moment of the reference keys by key space."""

    @property
    def weight(self) -> Tensor:
        """The layer's weight as it is."""
        return self.layer.module.weight.detach()

    def values(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """The layer's values, before the bias, with another weight."""
        conv = self.layer.module
        assert isinstance(conv, nn.Conv2d)
        return functional.conv2d(
            inputs, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
        )

    def residual(self, edit: Edit) -> float:
        """Squared distance to the clean values with the edit, as a share of that without."""
        wanted = self.values(self.clean, self.weight)
        missing = wanted - self.values(self.corrupted, self.weight)
        left = wanted - self.values(self.corrupted, self.weight + edit.delta)
        return float(left.square().sum() / missing.square().sum())

    @torch.no_grad()
    def solve_patch(self) -> Edit:
        """The closed form with patch keys: sums, factorisation, direction, ``Λ``."""
        layer = self.layer
        corrupted, clean = (layer.keys(x, 1) for x in (self.corrupted, self.clean))
        source = key_sums(layer, corrupted, clean)["key"]
        solver = DenseSolver(layer.name, self.moments["patch"])
        right = solver.solve(source.unsqueeze(1), RIDGE)
        left = closed_form(right, corrupted, clean)
        return Edit(left.reshape(-1, 1, 1, 1), right.reshape(1, *self.weight.shape[1:]))

    @torch.no_grad()
    def solve_channel(self) -> Edit:
        """The same with per-pixel channel keys, the key space of the published optimiser."""
        layer = self.layer
        corrupted, clean = (layer.pixels(x, 1) for x in (self.corrupted, self.clean))
        weights = (corrupted - clean).norm(dim=2)
        source = torch.einsum("ngp,ngkp->gk", weights, corrupted)
        solver = DenseSolver(layer.name, self.moments["channel"])
        right = solver.solve(source.unsqueeze(1), RIDGE)[:, 0]
        missing = layer.keys(self.clean, 1) - layer.keys(self.corrupted, 1)
        left = closed_form_channel(layer, right, self.corrupted, missing.values())
        outputs, _, *kernel = self.weight.shape
        return Edit(left.reshape(outputs, 1, *kernel), right.reshape(1, -1, 1, 1))

    def descend(self, start: Edit, steps: int, rate: float = LEARNING_RATE) -> Edit:
        """``Λ`` along the direction of ``start``, from zero by Adam through the layer and back.

        The optimiser of Santurkar et al. 2021, after Bau et al. 2020, see `baselines.rewriting`.
        That baseline solves a reduced problem, which needs no layer; here the layer is what each
        step evaluates, as published.
        """
        wanted = self.values(self.clean, self.weight)
        right = start.right / start.right.norm()
        left = torch.zeros_like(start.left).requires_grad_()
        optimiser = torch.optim.Adam([left], lr=rate)
        for _ in range(steps):
            optimiser.zero_grad()
            miss = wanted - self.values(self.corrupted, self.weight + left * right)
            miss.square().mean().backward()
            optimiser.step()
        return Edit(left.detach(), right)

    def descend_reduced(self, start: Edit, steps: int) -> None:
        """The same with the products of the channel keys taken once, as the baseline does."""
        conv = self.layer.module
        assert isinstance(conv, nn.Conv2d)
        missing = self.layer.keys(self.clean, 1) - self.layer.keys(self.corrupted, 1)
        image = (self.corrupted * start.right / start.right.norm()).sum(dim=1, keepdim=True)
        rows = functional.unfold(pad(conv, image), conv.kernel_size, conv.dilation, 0, conv.stride)
        descend(rows.mT, missing.values()[0].mT, steps, LEARNING_RATE, Monitor())


def measure_edit(bench: Bench) -> Measured:
    """Every layer of `Sizes.edited`."""
    model, pair, names = bench.network(), bench.pair(), bench.sizes.edited
    statistics = {
        space: KeyStatistics.collect(model, bench.images(BATCH), names, key_space=space)
        for space in ("patch", "channel")
    }
    measured = [_measure_layer(bench, model, pair, statistics, name) for name in names]
    return Measured(
        [row for one in measured for row in one.rows],
        [cost for one in measured for cost in one.costs],
    )


def _measure_layer(
    bench: Bench,
    model: nn.Module,
    pair: SamplePairs,
    statistics: dict[str, KeyStatistics],
    name: str,
) -> Measured:
    problem, steps = pose(model, pair, statistics, name), bench.sizes.optimiser_steps
    starts = {"patch": problem.solve_patch(), "channel": problem.solve_channel()}
    found: dict[str, Edit] = {}

    def whole_call() -> None:
        solve_edit(
            model, pair, layer=name, statistics=statistics["channel"], direction="key", ridge=RIDGE,
            key_space="channel",
        )  # fmt: skip

    def iterate(space: str) -> None:
        found[space] = problem.descend(starts[space], steps)

    whole_call()
    problem.descend(starts["patch"], WARM_STEPS)
    patch, patch_steps, channel, channel_steps, reduced, call = bench.clock.turns(
        [
            problem.solve_patch,
            lambda: iterate("patch"),
            problem.solve_channel,
            lambda: iterate("channel"),
            lambda: problem.descend_reduced(starts["channel"], steps),
            whole_call,
        ],
        bench.repeats,
        warm=False,
    )
    residuals = {
        space: f"residual {problem.residual(starts[space]):.5f} against "
        f"{problem.residual(found[space]):.5f}"
        for space in starts
    }
    times = three_digits(Ratio(reduced, channel).median)
    products_once = f"{times}× where the optimiser takes products of keys once"
    rows = [
        Row(
            f"edit of {name}, {what}", f"iterative optimiser, {steps:,} steps", ratio, target,
            faster=True, note=note,
        )
        for what, ratio, target, note in (
            ("patch keys", Ratio(patch_steps, patch), TARGET, residuals["patch"]),
            ("channel keys", Ratio(channel_steps, channel), TARGET,
             f"{residuals['channel']}; {products_once}"),
            ("the whole call", Ratio(channel_steps, call), None,
             "`solve_edit`, which runs the model; the optimiser alone; channel keys"),
        )
    ]  # fmt: skip
    pass_ = forward_work(model, pair.clean)
    costs = [
        Cost(row.what, bench.clock.cost(spans), least, executed(task))
        for row, spans, least, task in (
            (rows[0], patch, _least_work(problem, "patch"), problem.solve_patch),
            (rows[1], channel, _least_work(problem, "channel"), problem.solve_channel),
            (rows[2], call, _least_work(problem, "channel") + pass_ * 2, whole_call),
        )
    ]
    return Measured(rows, costs)


def _least_work(problem: Problem, space: str) -> Work:
    """The factorisation, and once each the values and the keys' sums."""
    size = problem.moments[space].shape[1]
    keys = problem.corrupted[0, 0].numel() * problem.weight.shape[1]
    pass_ = problem.weight.numel() * problem.corrupted[0, 0].numel()
    return factor_work([size]) + Work(float(pass_), 4.0 * (2 * keys + problem.weight.numel()))


def pose(
    model: nn.Module, pair: SamplePairs, statistics: dict[str, KeyStatistics], name: str
) -> Problem:
    """The problem of one convolution without groups; two passes of the model."""
    layer = editable_layers(model).editable[name]
    seen: list[Tensor] = []
    with (
        eval_mode(model) as module,
        capturing({name: layer.module}, lambda _, given, __: seen.append(given.clone())),
    ):
        module(pair.corrupted)
        module(pair.clean)
    corrupted, clean = seen
    moments = {space: one[name].moment for space, one in statistics.items()}
    return Problem(layer, corrupted, clean, moments)
