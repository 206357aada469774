"""One loop of gradient descent for every method that trains.  Imports torch and the engine.

The model stays in evaluation mode: batch-norm statistics, dropout and the like are frozen, since a
handful of samples would spoil the statistics.  Weights that are to stay get no gradient.  Momentum
0.9, gradients clipped to length 1 and a learning rate that falls evenly to zero are this project's
choices for all methods alike: without them, the published rates diverge on a frozen batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.baselines.task import Batch, Examples, Task, draw_batch
from rectify_widgets.baselines.tuning import generator
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import predict

TRAINING_STEPS = 100
"""Steps of training where nothing else is published: about four passes over 768 references."""
MOMENTUM = 0.9
CLIP = 1.0
"""Longest gradient; with frozen batch statistics, published learning rates diverge without it."""
TRAINED = ("linear", "all")
"""Which layers learn: linear ones only, or every one."""

Loss = Callable[[nn.Module, Batch], Tensor]


def weighted_cross_entropy(scores: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy, half of it on corrupted and half on clean inputs."""
    losses = functional.cross_entropy(scores, batch.labels, reduction="none")
    return (losses * batch.weights.to(losses)).sum()


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """`weighted_cross_entropy` of what the model answers."""
    return weighted_cross_entropy(predict(model, batch.inputs), batch)


def train(
    model: nn.Module,
    task: Task,
    loss: Loss,
    parameters: Sequence[nn.Parameter],
    *,
    steps: int,
    learning_rate: float,
    monitor: Monitor,
) -> None:
    """`fit` on the corrupted and the clean examples of the task."""
    fit(
        model, task, task.corrupted(), task.clean(), loss, parameters, steps=steps,
        learning_rate=learning_rate, monitor=monitor,
    )  # fmt: skip


def fit(
    model: nn.Module,
    task: Task,
    corrupted: Examples,
    clean: Examples,
    loss: Loss,
    parameters: Sequence[nn.Parameter],
    *,
    steps: int,
    learning_rate: float,
    monitor: Monitor,
) -> None:
    """Stochastic gradient descent with momentum 0.9 on batches of corrupted and clean examples.

    Args:
        model: in evaluation mode, changed in place.
        task: for the seed.
        corrupted, clean: what to learn from.
        loss: a scalar of the model and a batch.
        parameters: what learns.
        steps, learning_rate: of the descent; the learning rate falls evenly to zero.
        monitor: progress and cancellation, asked in every step.
    """
    draw = generator(task)
    optimiser = torch.optim.SGD(parameters, lr=learning_rate, momentum=MOMENTUM)
    with learning(model, parameters):
        for step in range(steps):
            monitor.report(step / steps, f"step {step + 1} of {steps}")
            batch = draw_batch(draw, corrupted, clean)
            with torch.enable_grad():
                value = loss(model, batch)
                # Not `backward`: it would also follow paths that end at no parameter.
                found = torch.autograd.grad(value, parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(parameters, CLIP)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * (1 - step / steps)
            optimiser.step()
    monitor.report(1.0, "trained")


@contextmanager
def learning(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Only ``parameters`` take gradients in the block; flags and gradients are put back after it."""
    everything = list(model.parameters())
    before = [(one, one.requires_grad, one.grad) for one in everything]
    chosen = {id(one) for one in parameters}
    try:
        for one in everything:
            one.requires_grad_(id(one) in chosen)
        yield
    finally:
        for one, flag, gradient in before:
            one.grad = gradient
            one.requires_grad_(flag)


def trainable(model: nn.Module, trained: str) -> list[nn.Parameter]:
    """The floating-point parameters that learn: of linear layers, or all of them."""
    parts = (
        [part for part in model.modules() if isinstance(part, nn.Linear)]
        if trained == "linear"
        else [model]
    )
    found = {id(p): p for part in parts for p in part.parameters() if p.is_floating_point()}
    if not found:
        raise ValueError(f"trained: got {trained!r}, but the model has no such parameters")
    return list(found.values())
