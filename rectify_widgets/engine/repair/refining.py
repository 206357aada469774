"""Refining a rank-one edit by gradient steps on the measure it is judged by.  Imports torch only.

The closed form makes the *layer's outputs* on corrupted inputs those on clean ones.  From there Adam
(Kingma and Ba 2015) optimises both factors of ``Λ dᵀ`` so that the *model's predictions* are, and all
others stay, on the references that edits are solved from:

    mean TV(p'(x̃), p(x)) + keep · mean TV(p'(x), p(x))

where ``p`` are the original model's probabilities, ``p'`` the edited one's, ``x`` references, ``x̃``
the same with the transplanted corruption, and TV the total variation distance.  The edit keeps
rank one; whether it is better is judged on other references.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.find.candidates import Candidate
from rectify_widgets.engine.model.running import (
    chunk_size,
    in_chunks,
    model_dtype,
    preserving_rng,
    working_dtype,
)

REFINE_STEPS = 100
"""Gradient steps: a third as many leave more of the gap, three times as many hardly less."""
BATCH = 64
"""References in one step, each with and without the corruption."""
RATE = 0.1
"""First learning rate, in units of the root mean square of each factor; it falls to 0 (cosine)."""
KEEP = 4.0
"""Weight of a point of disturbance relative to one of gap at first: more than where edits are judged,
so that the result is within the budget more often."""
STRICTER = 2.0
"""An edit that is over the budget is refined again, with the weight multiplied and the learning rate
divided by this."""
TURNS = 3
"""Most times that one edit is refined."""
WEAKER = 0.5
"""Factor by which an edit that is still over the budget is scaled for a last trial."""
LAYERS = 2
"""Layers whose best edit is refined in one round."""


@dataclass(frozen=True)
class Goal:
    """What the edited model should predict, ``wanted``: ``M × classes`` probabilities."""

    carriers: Tensor
    """References with the corruption, ``M × C × H × W``."""
    references: Tensor
    """The same without it, for which the original model predicts ``wanted``."""
    wanted: Tensor

    def only(self, rows: Tensor) -> Goal:
        """Some of the references."""
        return Goal(self.carriers[rows], self.references[rows], self.wanted[rows])


def starts(
    tried: Sequence[tuple[float, Candidate]], shortlist: Sequence[Candidate]
) -> list[Candidate]:
    """The edits to refine, one each of the best few layers: by what was measured, then predicted.

    Args:
        tried: objective and edit of each trial that was worth finishing.
        shortlist: all edits that were tried, as they were ranked.
    """
    measured = [candidate for _, candidate in sorted(tried, key=lambda one: one[0])]
    best: dict[str, Candidate] = {}
    for candidate in (*measured, *shortlist):
        best.setdefault(candidate.layer.name, candidate)
    return list(best.values())[:LAYERS]


def refine(
    model: nn.Module,
    start: Candidate,
    goal: Goal,
    *,
    steps: int,
    seed: int,
    monitor: Monitor,
    turn: int = 0,
) -> Candidate:
    """The edit after ``steps`` gradient steps; the model, its flags and gradients stay as they are.

    Args:
        model: in evaluation mode, with the weights that the edit would be added to.
        start: the edit to begin from; its predicted effect is kept.
        goal: what the model should predict.
        steps: at least one.
        seed: draws the references of each step.
        monitor: progress and cancellation.
        turn: how often the edit has been refined already, see `STRICTER`.
    """
    keep, rate = KEEP * STRICTER**turn, RATE / STRICTER**turn
    weight = start.layer.module.weight.detach()
    name = next(name for name, one in model.named_parameters() if one is start.layer.module.weight)
    units = [factor.square().mean().sqrt() for factor in (start.left, start.right)]
    if not all(bool(unit > 0) for unit in units):
        return start
    factors = [
        (factor / unit).requires_grad_()
        for factor, unit in zip((start.left, start.right), units, strict=True)
    ]
    optimizer = torch.optim.Adam(factors, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)

    def edited() -> Tensor:
        delta = torch.einsum("go,gk->gok", *factors).reshape(weight.shape) * units[0] * units[1]
        return (weight.to(delta) + delta).to(weight)

    for step in range(steps):
        monitor.report(step / steps, f"refining {start.layer.name}")
        rows = torch.randperm(len(goal.references), generator=draw)[:BATCH]
        loss = partial(
            _loss, model, name, edited, goal.only(rows.to(goal.wanted.device)), keep, monitor
        )
        _set_gradients(factors, loss, 2 * len(rows), chunk_size(goal.references, weight.device))
        optimizer.step()
        schedule.step()
    left, right = (factor.detach() * unit for factor, unit in zip(factors, units, strict=True))
    return replace(start, left=left, right=right, refined=True)


def _loss(
    model: nn.Module,
    name: str,
    edited: Callable[[], Tensor],
    goal: Goal,
    keep: float,
    monitor: Monitor,
    part: slice,
) -> Tensor:
    """What some rows of the references, with the corruption and then without, add to the loss."""
    monitor.check()
    inputs = torch.cat([goal.carriers, goal.references])[part]
    weights = goal.wanted.new_ones(2 * len(goal.wanted)) / len(goal.wanted)
    weights[len(goal.wanted) :] *= keep
    with torch.enable_grad(), preserving_rng(inputs.device):
        scores = functional_call(model, {name: edited()}, (inputs.to(model_dtype(model)),))
        answers = scores.to(working_dtype(scores.dtype)).softmax(dim=1)
        distances = 0.5 * (answers - goal.wanted.repeat(2, 1)[part]).abs().sum(dim=1)
        loss: Tensor = (distances * weights[part]).sum()
    return loss


def _set_gradients(
    factors: Sequence[Tensor], loss: Callable[[slice], Tensor], count: int, size: int
) -> None:
    """The gradient of a loss that adds up over ``count`` rows, ``size`` of them at a time."""
    parts = in_chunks(count, size, lambda part: torch.autograd.grad(loss(part), factors))
    for factor, gradients in zip(factors, zip(*parts, strict=True), strict=True):
        factor.grad = torch.stack(gradients).sum(dim=0)
