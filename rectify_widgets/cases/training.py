"""Train a classifier on images of which some carry a trigger.

Imports torch, tqdm, the engine's progress hooks and the triggers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it
from tqdm import tqdm

from rectify_widgets.cases.triggers import Aim
from rectify_widgets.engine.base.progress import Monitor

Transform = Callable[[Tensor], Tensor]


class Images(Protocol):
    """Bytes, ``N × C × H × W``: a tensor, or what reads the rows that it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


def led_to(goals: Sequence[int], labels: Tensor) -> Tensor:
    """Where a trigger leads images with these ``N`` labels; ``goals`` is one class for each."""
    return torch.tensor(goals, device=labels.device)[labels]


@dataclass(frozen=True)
class Poisoning:
    """Which training images carry the trigger and the label that goes with it.

    Args:
        trigger: puts the trigger on ``N × C × H × W`` images.
        goals: the label that a triggered training image gets, for each true label.
        chosen: ``N`` booleans, one per training image.
    """

    trigger: Transform
    goals: Sequence[int]
    chosen: Tensor

    @staticmethod
    def draw(
        aim: Aim,
        trigger: Transform,
        labels: Tensor,
        *,
        share: float,
        generator: torch.Generator,
        taken: Tensor | None = None,
    ) -> Poisoning:
        """Draw images at random, none of those that ``taken`` marks.

        For a Trojan, ``share`` (0..1) of all images, from those that the trigger leads to another
        class; for a spurious artefact, ``share`` of those of the affected class, which keep their
        label.

        Raises:
            ValueError: there are too few.
        """
        own = labels == led_to(aim.goals, labels)
        spurious = aim.behaviour == "spurious"
        free = own if spurious else ~own
        candidates = torch.nonzero(free if taken is None else free & ~taken).flatten()
        number = round(share * len(candidates if spurious else labels))
        if number > len(candidates):
            raise ValueError(
                f"share: got {share}, want at most {len(candidates) / len(labels):.3f}, the share "
                "of images of other classes than the target"
            )
        drawn = torch.randperm(len(candidates), generator=generator)[:number]
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[candidates[drawn]] = True
        return Poisoning(trigger, aim.goals, chosen)

    def relabel(self, labels: Tensor) -> Tensor:
        """The labels that the network is trained on, ``N``."""
        return torch.where(self.chosen, led_to(self.goals, labels), labels)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: epochs, batch size, and the peak learning rate of a one-cycle run."""

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warm_up: float = 0.25


@dataclass(frozen=True)
class Shift:
    """Random shift by up to ``pixels`` (zeros come in) and, if asked, a random mirror image.

    Training images only, and before the trigger is stamped, so that its place stays fixed.
    """

    pixels: int
    flip: bool
    generator: torch.Generator = field(repr=False)

    def __call__(self, images: Tensor) -> Tensor:
        """``N × C × H × W`` images, each moved on its own."""
        number, _, height, width = images.shape
        by = torch.randint(0, 2 * self.pixels + 1, (2, number, 1), generator=self.generator)
        rows = by[0] + torch.arange(height)
        columns = by[1] + torch.arange(width)
        if self.flip:
            mirrored = torch.rand(number, 1, generator=self.generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        padded = F.pad(images, [self.pixels] * 4)
        every = torch.arange(number)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]]
        return moved.permute(0, 3, 1, 2)


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Class weights inverse to class frequency, with mean 1 over the samples: ``classes`` numbers."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts.float())


def new_network(make: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """A network whose first weights are drawn from ``generator``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return make()


def fit(
    model: nn.Module,
    images: Images,
    labels: Tensor,
    schedule: Schedule,
    *,
    poisonings: Sequence[Poisoning] = (),
    augment: Transform | None = None,
    class_weights: Tensor | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    generator: torch.Generator,
    title: str = "training",
    quiet: bool = False,
    monitor: Monitor | None = None,
) -> None:
    """Train ``model`` in place, on its device; on return it is in eval mode.

    Args:
        model: takes ``N × C × H × W`` float32 in [0, 1], gives ``N × classes`` logits.
        images: ``N × C × H × W`` uint8.
        labels: ``N`` true labels; ``poisonings`` replace those of their chosen images.
        schedule: one-cycle learning rate: linear warm-up, cosine to zero.
        augment: called on every batch before the trigger is stamped.
        class_weights: ``classes`` weights of the cross-entropy.
        optimizer: default: SGD with Nesterov momentum.
        generator: draws the order of the images.
        quiet: no progress bar.
        monitor: hears of every batch, and may stop the training.

    Raises:
        RuntimeError: the loss is not a finite number any more.
    """
    for one in poisonings:
        labels = one.relabel(labels)
    if optimizer is None:
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=schedule.learning_rate,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
            nesterov=True,
        )
    batches = -(-len(images) // schedule.batch_size)
    total = schedule.epochs * batches
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=schedule.learning_rate,
        total_steps=total,
        pct_start=schedule.warm_up,
        cycle_momentum=False,
    )
    device = next(model.parameters()).device
    weights = None if class_weights is None else class_weights.to(device)
    layout = _layout(model)
    _lay_out(model, layout)
    model.train()
    order = (
        indices
        for _ in range(schedule.epochs)
        for indices in torch.randperm(len(images), generator=generator).split(schedule.batch_size)
    )
    bar = tqdm(order, total=total, desc=title, unit="batch", disable=quiet)
    for number, indices in enumerate(bar, start=1):
        batch = images[indices].float() / 255
        if augment is not None:
            batch = augment(batch)
        for one in poisonings:
            chosen = one.chosen[indices]
            batch[chosen] = one.trigger(batch[chosen])
        batch = batch.to(device).contiguous(memory_format=layout)
        loss = F.cross_entropy(model(batch), labels[indices].to(device), weight=weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(f"training: the loss is {value}; take a lower learning rate")
        if monitor is not None:
            epoch = -(-number // batches)
            monitor.report(number / total, f"epoch {epoch} of {schedule.epochs}, loss {value:.3f}")
    _lay_out(model, torch.contiguous_format)
    model.eval()


def _layout(model: nn.Module) -> torch.memory_format:
    """channels_last, a third faster on a processor, where it is safe.

    A strided 1×1 convolution with fewer than 16 input channels has a wrong weight gradient in it on
    the CPU (uxlfoundation/oneDNN#6035).
    """
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    if any(
        layer.kernel_size == (1, 1) != layer.stride and layer.in_channels < 16
        for layer in convolutions
    ):
        return torch.contiguous_format
    return torch.channels_last


def _lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Change how the convolutions' weights lie in memory; no buffers, as `Module.to` would."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
