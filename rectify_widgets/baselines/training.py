"""One loop of gradient descent for every method that trains.  Imports torch and the engine.

The model stays in evaluation mode: batch-norm statistics, dropout and the like are frozen, since a
handful of samples would spoil the statistics.  Weights that are to stay get no gradient.  Momentum
0.9, gradients clipped to length 1 and a learning rate that falls evenly to zero are this project's
choices for all methods alike: without them, the published rates diverge on a frozen batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.baselines.method import Options, choice, count, number
from rectify_widgets.baselines.task import Batch, Examples, Task, draw_batch
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import predict

MOMENTUM = 0.9
CLIP = 1.0
"""Longest gradient; with frozen batch statistics, published learning rates diverge without it."""

TRAINING_STEPS = {"steps": count("of training", 100)}
"""Where nothing else is published: about four passes over 768 references."""

LINEAR = {
    "learning_rate": number("at the start", 1e-4, 1e-3, 1e-2, 1e-1),
    "trained": choice("layers that learn", "linear", "all"),
}
"""Published of A-ClArC and RR-ClArC."""

Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""A scalar of the model and a batch."""
Gradients: TypeAlias = list[Tensor | None]
"""One for each parameter that learns; None where the loss does not depend on it."""
Gradient: TypeAlias = Callable[[nn.Module, Batch, Loss, Sequence[nn.Parameter]], Gradients]
"""What is descended: of the model, a batch, the loss and the parameters that learn."""


def weighted_cross_entropy(scores: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy, half of it on corrupted and half on clean inputs."""
    losses = functional.cross_entropy(scores.movedim(-1, 1), batch.labels, reduction="none")
    if losses.ndim > 1:  # of several labels, each with its own
        losses = losses.mean(dim=1)
    return (losses * batch.weights.to(losses)).sum()


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """`weighted_cross_entropy` of the model's scores."""
    return weighted_cross_entropy(predict(model, batch.inputs), batch)


def gradient(
    model: nn.Module, batch: Batch, loss: Loss, parameters: Sequence[nn.Parameter]
) -> Gradients:
    """The gradient of the loss at the present weights."""
    with torch.enable_grad():
        value = loss(model, batch)
        # Not `backward`: it would also follow paths that end at no parameter.
        return list(torch.autograd.grad(value, parameters, allow_unused=True))


def train(
    model: nn.Module,
    task: Task,
    options: Options,
    monitor: Monitor,
    loss: Loss = cross_entropy,
    examples: tuple[Examples, Examples] | None = None,
    descended: Gradient = gradient,
) -> None:
    """Stochastic gradient descent with momentum 0.9 on batches of corrupted and clean examples.

    Args:
        model: a copy in evaluation mode, changed in place.
        task: for the seed and the examples.
        options: ``steps``, ``learning_rate`` (it falls evenly to zero) and, where there is a choice,
            ``trained``.
        monitor: progress and cancellation, asked in every step.
        loss: a scalar of the model and a batch.
        examples: corrupted and clean ones; None means those of the task.
        descended: the gradient of each step, before it is clipped.
    """
    corrupted, clean = examples or (task.corrupted(), task.clean())
    parameters = trainable(model, options.get("trained", "all"))
    steps, learning_rate = options["steps"], options["learning_rate"]
    draw = task.generator()
    optimiser = torch.optim.SGD(parameters, lr=learning_rate, momentum=MOMENTUM)
    flags = [(one, one.requires_grad) for one in model.parameters()]
    model.requires_grad_(requires_grad=False)
    for one in parameters:
        one.requires_grad_()
    for step in range(steps):
        monitor.report(step / steps, f"step {step + 1} of {steps}")
        batch = draw_batch(draw, corrupted, clean)
        found = descended(model, batch, loss, parameters)
        for parameter, way in zip(parameters, found, strict=True):
            parameter.grad = way
        nn.utils.clip_grad_norm_(parameters, CLIP)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        optimiser.step()
    optimiser.zero_grad()
    for one, flag in flags:
        one.requires_grad_(flag)
    monitor.report(1.0, "trained")


def trainable(model: nn.Module, trained: str) -> list[nn.Parameter]:
    """The floating-point parameters that learn: of linear layers, or all of them."""
    linear = [part for part in model.modules() if isinstance(part, nn.Linear)]
    parts = linear if trained == "linear" else [model]
    unique = {id(p): p for part in parts for p in part.parameters() if p.is_floating_point()}
    if not unique:
        raise ValueError(f"trained: got {trained!r}, but the model has no such parameters")
    return list(unique.values())
