"""Refining a rank-one edit by gradient steps on what it is judged by.  Imports torch only.

The closed form is the optimum of a stand-in: the layer's outputs on corrupted inputs shall be those
on clean ones.  What a rectification wants is that the *model's answers* be those, and that nothing
else change.  Starting from the closed form, both factors of ``Λ dᵀ`` are moved by Adam (Kingma and
Ba 2015) along the gradient of just that, on the references that edits are solved from:

    mean TV(p'(x̃), p(x)) + KEEP · mean TV(p'(x), p(x))

where ``p`` are the original model's probabilities, ``p'`` the edited one's, ``x`` references, ``x̃``
the same with the transplanted corruption, and TV the total variation distance.  The edit stays of
rank one and needs no label; whether it is better is judged on other references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rectify_widgets.engine.candidates import Candidate
from rectify_widgets.engine.inspection import (
    chunk_size,
    in_chunks,
    model_device,
    model_dtype,
    preserving_rng,
    working_dtype,
)
from rectify_widgets.engine.progress import Monitor

STEPS = 30
"""Gradient steps."""
BATCH = 64
"""References in one step, each with and without the corruption."""
RATE = 0.1
"""First learning rate, in units of the root mean square of each factor; it falls to 0 (cosine)."""
KEEP = 4.0
"""What a point of disturbance weighs against one of gap: more than where edits are judged, so that
what is found is within the budget more often."""
LAYERS = 2
"""Layers whose best edit is refined in one round."""


@dataclass(frozen=True)
class Goal:
    """What the edited model is to answer."""

    carriers: Tensor
    """References with the corruption, ``M × C × H × W``."""
    references: Tensor
    """The same without it."""
    wanted: Tensor
    """The original model's probabilities for the latter, ``M × classes``."""


def starts(tried: Sequence[tuple[float, Candidate]]) -> list[Candidate]:
    """The edits to refine: the best one of each of the best few layers, by what was measured.

    Args:
        tried: objective and edit of each trial that was worth finishing.
    """
    found: dict[str, Candidate] = {}
    for _, candidate in sorted(tried, key=lambda one: one[0]):
        found.setdefault(candidate.layer.name, candidate)
    return list(found.values())[:LAYERS]


def refine(
    model: nn.Module, start: Candidate, goal: Goal, *, steps: int, seed: int, monitor: Monitor
) -> Candidate:
    """The edit after ``steps`` gradient steps; the model, its flags and gradients stay as they are.

    Args:
        model: in evaluation mode, with the weights that the edit would be added to.
        start: the edit to begin from; its prediction is kept.
        goal: what to answer.
        steps: how many steps, at least one.
        seed: draws the references of each step.
        monitor: progress and cancellation.
    """
    weight = start.layer.module.weight.detach()
    name = next(name for name, one in model.named_parameters() if one is start.layer.module.weight)
    units = [factor.square().mean().sqrt() for factor in (start.left, start.right)]
    if not all(bool(unit > 0) for unit in units):
        return start
    factors = [
        (factor / unit).requires_grad_()
        for factor, unit in zip((start.left, start.right), units, strict=True)
    ]
    optimizer = torch.optim.Adam(factors, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(seed)

    def edited() -> Tensor:
        delta = torch.einsum("go,gk->gok", *factors).reshape(weight.shape) * units[0] * units[1]
        return (weight.to(delta) + delta).to(weight)

    for step in range(steps):
        monitor.report(step / steps, f"refining {start.layer.name}")
        rows = torch.randperm(len(goal.references), generator=draw)[:BATCH]
        rows = rows.to(goal.references.device)
        inputs = torch.cat([goal.carriers[rows], goal.references[rows]])
        wanted = goal.wanted[rows].repeat(2, 1)
        weights = torch.cat([torch.ones_like(rows), torch.full_like(rows, KEEP)]) / len(rows)

        def slopes(
            part: slice, inputs: Tensor = inputs, wanted: Tensor = wanted, weights: Tensor = weights
        ) -> Sequence[Tensor]:
            monitor.check()
            some = inputs[part].to(model_device(model), model_dtype(model), copy=True)
            with torch.enable_grad(), preserving_rng(some.device):
                scores = functional_call(model, {name: edited()}, (some,))
                answers = scores.to(working_dtype(scores.dtype)).softmax(dim=1)
                distances = 0.5 * (answers - wanted[part]).abs().sum(dim=1)
                loss = (distances * weights[part]).sum()
            return torch.autograd.grad(loss, factors)

        chunks = list(in_chunks(len(inputs), chunk_size(inputs, model_device(model)), slopes))
        for factor, parts in zip(factors, zip(*chunks, strict=True), strict=True):
            factor.grad = torch.stack(parts).sum(dim=0)
        optimizer.step()
        schedule.step()
    left, right = (factor.detach() * unit for factor, unit in zip(factors, units, strict=True))
    return replace(start, left=left, right=right, refined=True)
