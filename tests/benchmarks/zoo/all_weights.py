"""A bound on what edits can do: every weight free, on the same references, towards the same goal.

Imports the engine and the cases.  Where rank-one edits of all layers are refined, all parameters of the
network are optimised instead; everything else is as in `rectify`.  Of a shipped case, from one pair:

    python -m tests.benchmarks.zoo.all_weights leakage
"""

from __future__ import annotations

import sys
from functools import partial

from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.base.pace import Pace
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.problem import pose_problem
from rectify_widgets.engine.model.running import copied, eval_mode
from rectify_widgets.engine.repair.joint import goal_of
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.refining import Overridden, descend
from rectify_widgets.engine.repair.rounds import Rounds

RATES = 1e-3, 3e-3
STEPS = 600
"""Twice as many as edits are refined in: there is more to learn, and nobody waits for it."""


def free_all_weights(
    model: nn.Module, pairs: SamplePairs, reference: Tensor, seed: int
) -> tuple[nn.Module, float]:
    """A copy of the model with other weights, and the learning rate.

    It is the one with the least gap plus weighted disturbance of those that stay within the budget of
    `rectify`; if none does, the one that degrades the least.
    """
    work = copied(model)
    found = []
    with eval_mode(work, "pairs") as module:
        problem = pose_problem(module, pairs, reference, seed=seed, own=True, spare=True)
        options = RectifyOptions(seed=seed)
        loop = Rounds(problem, None, options, Pace(Monitor()))
        goal = goal_of(loop.solving, problem.spare, loop.state, seed, Monitor())
        judge = loop.judging.judge(Monitor(), steady=True)
        for rate in RATES:
            free = {
                name: weight.detach().clone().requires_grad_()
                for name, weight in problem.model.named_parameters()
            }
            descend(
                Overridden(problem.model, {}), [*free.values()], partial(dict, free), goal, rate,
                steps=STEPS, seed=seed, monitor=Monitor(), chunk=problem.lesson,
            )  # fmt: skip
            weights = {name: weight.detach() for name, weight in free.items()}
            verdict = judge.measure(Overridden(problem.model, weights))
            over = max(verdict.degradation - options.max_degradation, 0.0)
            found.append((over, verdict.objective, rate, weights))
        _, _, rate, weights = min(found, key=lambda one: one[:2])
        problem.model.load_state_dict(weights, strict=False)
    return work, rate


def main(name: str, pairs: int = 3) -> None:
    """Print the figures of a shipped case, as it is and from each of the first pairs."""
    case = rw.cases.load(name)
    print("before", case.figures())
    for seed in range(pairs):
        pair = case.pairs[seed : seed + 1]
        model, rate = free_all_weights(case.model, pair, case.reference, seed)
        print(f"pair {seed}, rate {rate}", case.figures(model))


if __name__ == "__main__":
    main(sys.argv[1])
