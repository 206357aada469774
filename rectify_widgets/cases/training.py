"""Train a classifier on images of which some carry a trigger.

Imports torch, the engine's progress hooks and the triggers; tqdm when it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.cases.triggers import Aim
from rectify_widgets.engine.base.progress import Monitor

Transform = Callable[[Tensor], Tensor]
Goal = int | tuple[int, ...]
"""The label that a trigger leads to; or one for each true label."""


class Images(Protocol):
    """Bytes, ``N × C × H × W``: a tensor, or what reads the rows that it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


def led_to(goal: Goal, labels: Tensor) -> Tensor:
    """Where a trigger with this goal leads images with these ``N`` labels."""
    if isinstance(goal, int):
        return torch.full_like(labels, goal)
    return torch.tensor(goal, device=labels.device)[labels]


@dataclass(frozen=True)
class Poisoning:
    """Which training images carry the trigger and the label that goes with it.

    Args:
        trigger: puts the trigger on ``N × C × H × W`` images.
        target: the label that triggered training images get.
        chosen: ``N`` booleans, one per training image.
    """

    trigger: Transform
    target: Goal
    chosen: Tensor

    @staticmethod
    def by(
        aim: Aim,
        trigger: Transform,
        labels: Tensor,
        *,
        share: float,
        generator: torch.Generator,
        taken: Tensor | None = None,
    ) -> Poisoning:
        """`draw` for a Trojan, `within` the target class for a spurious artefact."""
        if aim.behaviour == "spurious":
            return Poisoning.within(
                trigger, aim.goals[0], labels, share=share, generator=generator, taken=taken
            )
        return Poisoning.draw(
            trigger, aim.goals, labels, share=share, generator=generator, taken=taken
        )

    @staticmethod
    def draw(
        trigger: Transform,
        target: Goal,
        labels: Tensor,
        *,
        share: float,
        generator: torch.Generator,
        taken: Tensor | None = None,
    ) -> Poisoning:
        """Poison ``share`` of all images (0..1), drawn from those whose label is not the target.

        None of those that ``taken`` marks are drawn.
        """
        candidates = torch.nonzero(_free(labels != led_to(target, labels), taken)).flatten()
        number = round(share * len(labels))
        if number > len(candidates):
            raise ValueError(
                f"share: got {share}, want at most {len(candidates) / len(labels):.3f}, the share "
                "of images of other classes than the target"
            )
        drawn = torch.randperm(len(candidates), generator=generator)[:number]
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[candidates[drawn]] = True
        return Poisoning(trigger, target, chosen)

    @staticmethod
    def within(
        trigger: Transform,
        label: int,
        labels: Tensor,
        *,
        share: float,
        generator: torch.Generator,
        taken: Tensor | None = None,
    ) -> Poisoning:
        """Put the trigger on ``share`` (0..1) of the images of one label, which keep it.

        None of those that ``taken`` marks are drawn, nor counted.
        """
        candidates = torch.nonzero(_free(labels == label, taken)).flatten()
        order = torch.randperm(len(candidates), generator=generator)
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[candidates[order[: round(share * len(candidates))]]] = True
        return Poisoning(trigger, label, chosen)

    def relabel(self, labels: Tensor) -> Tensor:
        """The labels that the network is trained on, ``N``."""
        return torch.where(self.chosen, led_to(self.target, labels), labels)


def _free(wanted: Tensor, taken: Tensor | None) -> Tensor:
    return wanted if taken is None else wanted & ~taken


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
    poisoning: Poisoning | Sequence[Poisoning] = (),
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
        labels: ``N`` true labels; ``poisoning`` replaces those of its chosen images.
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
    poisonings = (poisoning,) if isinstance(poisoning, Poisoning) else tuple(poisoning)
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
    order = _batches(len(images), schedule, generator)
    for number, indices in enumerate(_bar(order, total, title, quiet), start=1):
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
    """Change how the convolutions' weights lie in memory, and nothing else."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def _batches(number: int, schedule: Schedule, generator: torch.Generator) -> Iterable[Tensor]:
    for _ in range(schedule.epochs):
        yield from torch.randperm(number, generator=generator).split(schedule.batch_size)


def _bar(order: Iterable[Tensor], total: int, title: str, quiet: bool) -> Iterable[Tensor]:
    if quiet:
        return order
    from tqdm import tqdm

    bar: Iterable[Tensor] = tqdm(order, total=total, desc=title, unit="batch")
    return bar


@dataclass(frozen=True)
class Figures:
    """What was measured of a Trojaned network on a test set; all are shares (0..1).

    ``accuracy``: of clean inputs.  ``attack_success``: triggered inputs of other classes predicted
    as the target.  ``corrupted_accuracy``: triggered inputs given their true label.
    ``clean_target``: clean inputs of other classes predicted as the target, the floor under which
    no repair can bring the attack success except by chance.
    """

    accuracy: float
    attack_success: float
    corrupted_accuracy: float
    clean_target: float


def measure(
    model: nn.Module, images: Tensor, labels: Tensor, *, trigger: Transform, target: int
) -> Figures:
    """Figures of ``model`` on ``N × C × H × W`` images in [0, 1] and their ``N`` true labels."""
    clean = predict(model, images)
    corrupted = predict(model, trigger(images))
    others = labels != target

    def share(hits: Tensor) -> float:
        return hits.float().mean().item()

    return Figures(
        accuracy=share(clean == labels),
        attack_success=share(corrupted[others] == target),
        corrupted_accuracy=share(corrupted == labels),
        clean_target=share(clean[others] == target),
    )


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """Predicted labels, ``N``, of ``N × C × H × W`` images in [0, 1]."""
    return torch.cat([model(batch).argmax(1) for batch in images.split(batch_size)])
