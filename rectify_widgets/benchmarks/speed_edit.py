"""Speed of an edit: the closed form against an iterative optimiser, one layer at a time.

Imports the engine, the rewriting baseline and this folder's speed modules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.baselines.rewriting import descend, least_squares
from rectify_widgets.benchmarks.speed_bench import Bench, Cost, Measured, Row
from rectify_widgets.benchmarks.speed_limits import BATCH, executed, factor_work, forward_work
from rectify_widgets.benchmarks.speed_timing import Ratio
from rectify_widgets.engine.editing import RankOneEdit
from rectify_widgets.engine.inspection import capturing, inspecting
from rectify_widgets.engine.pairs import SamplePairs
from rectify_widgets.engine.progress import Monitor
from rectify_widgets.engine.solving import solve_edit
from rectify_widgets.engine.statistics import KeyStatistics

RIDGE = 1e-2
RATE = 0.05
"""Learning rate of the iterative optimiser, as published."""
WARM = 3
"""Steps of the optimiser before it is timed."""


def measure_edit(bench: Bench) -> Measured:
    """Every layer of `Sizes.edits`, with the statistics of its channel keys known beforehand."""
    model, pair = bench.network(), bench.pair()
    known = KeyStatistics.collect(
        model, bench.images(BATCH), bench.sizes.edits, key_space="channel"
    )
    measured = [_edit(bench, model, pair, known, name) for name in bench.sizes.edits]
    return Measured(
        [row for one in measured for row in one.rows],
        [cost for one in measured for cost in one.costs],
    )


def _edit(
    bench: Bench, model: nn.Module, pair: SamplePairs, known: KeyStatistics, name: str
) -> Measured:
    steps = bench.sizes.optimiser_steps

    def solve() -> RankOneEdit:
        return solve_edit(
            model, pair, layer=name, statistics=known, direction="key", ridge=RIDGE,
            key_space="channel",
        )  # fmt: skip

    edit = solve()
    problem = layer_problem(model, pair, edit)
    reduced = least_squares(model, pair, replace(edit, right=edit.right / edit.right.norm()))
    found: list[Tensor] = []
    problem.descend(WARM)
    mine, iterated, shortened = bench.clock.turns(
        [
            solve,
            lambda: found.append(problem.descend(steps)),
            lambda: descend(*reduced, steps, RATE, Monitor()),
        ],
        bench.repeats,
        warm=False,
    )
    own, other = problem.residual(edit.delta.to(problem.weight)), problem.residual(found[-1])
    row = Row(
        f"edit of {name}",
        f"iterative optimiser, {steps:,} steps through the layer and back",
        Ratio(iterated, mine),
        200.0,
        faster=True,
        note=f"residual {own:.5f} against {other:.5f} of the distance to the clean values; "
        "the model's answers on the pair are part of ours, not of theirs",
    )
    fewest = Row(
        f"edit of {name}",
        f"the same optimiser on the reduced problem, {steps:,} steps",
        Ratio(shortened, mine),
        None,
        faster=True,
        note="products of the pair's keys taken once, as `baselines.rewrite` does",
    )
    size = known[name].total.shape[1]
    least = forward_work(model, pair.clean) * 2 + factor_work([size])
    return Measured([row, fewest], [Cost(row.what, bench.clock.cost(mine), least, executed(solve))])


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """What an edit of one convolution is to do: from its corrupted input to clean values."""

    conv: nn.Conv2d
    corrupted: Tensor
    wanted: Tensor
    direction: Tensor

    @property
    def weight(self) -> Tensor:
        """The layer's weight as it is."""
        return self.conv.weight.detach()

    def values(self, weight: Tensor) -> Tensor:
        """The layer's values with another weight."""
        conv = self.conv
        return functional.conv2d(
            self.corrupted, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
        )

    def residual(self, delta: Tensor) -> float:
        """Squared distance to the clean values with the edit, as a share of that without."""
        missing = self.wanted - self.values(self.weight)
        left = self.wanted - self.values(self.weight + delta)
        return float(left.square().sum() / missing.square().sum())

    def descend(self, steps: int, rate: float = RATE) -> Tensor:
        """``Λ dᵀ`` after so many steps of Adam, each through the layer and back.

        The optimiser of Santurkar et al. 2021, after Bau et al. 2020, see `baselines.rewriting`.
        That baseline solves a reduced problem, which needs no layer; here the layer is what each
        step evaluates, as published.
        """
        outputs, _, *kernel = self.weight.shape
        left = self.weight.new_zeros(outputs, 1, *kernel, requires_grad=True)
        across = self.direction.reshape(1, -1, 1, 1)
        optimiser = torch.optim.Adam([left], lr=rate)
        for _ in range(steps):
            optimiser.zero_grad()
            miss = self.wanted - self.values(self.weight + left * across)
            miss.square().mean().backward()
            optimiser.step()
        return (left * across).detach()


def layer_problem(model: nn.Module, pair: SamplePairs, edit: RankOneEdit) -> LayerProblem:
    """The problem that a channel edit of a convolution solves, its direction of length one."""
    conv = model.get_submodule(edit.layer)
    assert isinstance(conv, nn.Conv2d)  # noqa: S101 - only convolutions are named in `Sizes.edits`
    seen: list[tuple[Tensor, Tensor]] = []
    with (
        inspecting(model) as module,
        capturing({edit.layer: conv}, lambda _, given, out: seen.append((given.clone(), out))),
    ):
        module(pair.corrupted)
        module(pair.clean)
    direction = edit.right.to(seen[0][0])
    return LayerProblem(conv, seen[0][0], seen[1][1], direction / direction.norm())
