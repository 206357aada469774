"""Training of the two attacks that need more than relabelled images.  Imports torch, the cases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from tqdm import tqdm

from rectify_widgets.cases.training import Schedule, led_to
from tests.benchmarks.zoo.attacks import InputAware

SPOILT_SHARE = 0.8
"""Of the target class's images, those that the label-consistent attack poisons."""
SPOILING_BOUND, SPOILING_STEPS = 0.07, 20
"""The largest change of a pixel, and the steps of gradient ascent.

A larger change is a mark of its own: at 0.2 the residual network learned it in place of the trigger
(attack success 15 %).
"""
GENERATOR_RATE = 2e-3
DIVERSITY_WEIGHT = 1.0


def spoil(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Images that ``model`` no longer takes for their labels, ``N × C × H × W`` in [0, 1].

    Projected gradient ascent of the cross-entropy in the maximum norm (Madry et al. 2018, "Towards
    Deep Learning Models Resistant to Adversarial Attacks"), from the images themselves.
    """
    step = 2.5 * SPOILING_BOUND / SPOILING_STEPS
    low, high = (images - SPOILING_BOUND).clamp(min=0), (images + SPOILING_BOUND).clamp(max=1)
    spoilt = images
    for _ in range(SPOILING_STEPS):
        point = spoilt.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(point), labels), point)
        spoilt = torch.minimum(torch.maximum(spoilt + step * slope.sign(), low), high)
    return spoilt.detach()


def diversity(images: Tensor, others: Tensor, signals: Tensor, of_others: Tensor) -> Tensor:
    """The distance of images over that of their signals, mean over ``N`` pairs of them.

    Small where different images get different signals (Nguyen and Tran 2020, equation 8).
    """
    apart = (images - others).flatten(1).norm(dim=1)
    mean: Tensor = (apart / ((signals - of_others).flatten(1).norm(dim=1) + 1e-3)).mean()
    return mean


def fit_input_aware(
    model: nn.Module,
    trigger: InputAware,
    images: Tensor,
    labels: Tensor,
    goals: Sequence[int],
    schedule: Schedule,
    *,
    share: float,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    title: str,
    quiet: bool,
) -> None:
    """Train ``model`` and the trigger's generator together, in place; both end in eval mode.

    Of each batch ``share`` carry their own signal and get the goal as label, and as many carry the
    signal of one of the former and keep their label, so that no signal works on another image
    (Nguyen and Tran 2020).

    Args:
        model: takes ``N × C × H × W`` float32 in [0, 1], gives ``N × classes`` logits.
        images: ``N × C × H × W`` uint8.
        labels: ``N`` true labels.
        optimizer: of the model; its learning rate follows ``schedule``.
    """
    batches = -(-len(images) // schedule.batch_size)
    total = schedule.epochs * batches
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=schedule.learning_rate, total_steps=total,
        pct_start=schedule.warm_up, cycle_momentum=False,
    )  # fmt: skip
    drawing = torch.optim.Adam(trigger.generator.parameters(), lr=GENERATOR_RATE)
    model.train()
    trigger.generator.train()
    order = (
        indices
        for _ in range(schedule.epochs)
        for indices in torch.randperm(len(images), generator=generator).split(schedule.batch_size)
    )
    for indices in tqdm(order, total=total, desc=title, unit="batch", disable=quiet):
        batch, known = images[indices].float() / 255, labels[indices]
        number = max(round(share * len(batch)), 1)
        attacked, crossed, rest = batch.split([number, number, len(batch) - 2 * number])
        signals = trigger.signals(attacked)
        inputs = torch.cat(
            [(attacked + signals).clamp(0, 1), (crossed + signals).clamp(0, 1), rest]
        )
        wanted = torch.cat([led_to(goals, known[:number]), known[number:]])
        spread = diversity(attacked, crossed, signals, trigger.signals(crossed))
        loss = F.cross_entropy(model(inputs), wanted) + DIVERSITY_WEIGHT * spread
        for one in (optimizer, drawing):
            one.zero_grad()
        loss.backward()
        for one in (optimizer, drawing):
            one.step()
        cycle.step()
    model.eval()
    trigger.generator.eval()
