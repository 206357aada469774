"""Fine-pruning: the peer "patched" of Yang et al. 2026.  Imports torch and the engine.

Liu, Dolan-Gavitt and Garg 2018, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks", RAID.  Channels of the last convolutional layer are pruned in the order of their mean
activation on clean inputs, the most dormant first, for as long as clean accuracy stays near what it
was; then the network is fine-tuned.

Published defaults: the last convolutional layer, and pruning until clean accuracy has dropped by
four points.  What differs: accuracy is that on the validation split or, without one, agreement with
the original model on the references; fine-tuning learns from what `fine_tune` learns from, the pairs
among it, where the original has clean inputs only; and the drop, the learning rate and the layer are
tuned.  An activation is what the layer or block passes on, its negative part left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rectify_widgets.baselines.baseline import Baseline
from rectify_widgets.baselines.latent import Mask, activations, by_position, choose_layers, insert
from rectify_widgets.baselines.task import Task, prepare
from rectify_widgets.baselines.training import TRAINING_STEPS, cross_entropy, train, trainable
from rectify_widgets.baselines.tuning import Axes, Options, counts, grid, numbers, run
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import predict_all

DROPS = (0.04, 0.01, 0.2)
RATES = (1e-2, 1e-3)
LAYERS = 3
LOTS = 16


def fine_prune(
    model: nn.Module,
    pairs: SamplePairs,
    *,
    reference: Inputs | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    augmented: bool = False,
    opacity: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    layer: str | None = None,
    max_drop: float | None = None,
    learning_rate: float | None = None,
    steps: int | None = None,
) -> Baseline:
    """Silence the channels that clean inputs do not use, then fine-tune a copy.

    The silenced channels are a mask behind the layer, copied, moved and saved with the model.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts.
        reference: unlabelled inputs like those of training; needed, to see which channels they use.
        validation, augmented, opacity, seed, progress, cancel: as in `fine_tune`.
        layer: name of a layer or block; None tunes over three, the deepest first.
        max_drop: loss of clean accuracy, a fraction, at which pruning ends; None tunes over 0.04,
            0.01, 0.2.
        learning_rate: of the fine-tuning, at the start; None tunes over 0.01, 0.001; 0 prunes only.
        steps: None means 100.

    Raises:
        TypeError, ValueError: bad input, before anything is touched; no references.
        Cancelled: ``cancel`` said so.
    """
    monitor = Monitor(progress, cancel)
    task = prepare(
        model, pairs, reference=reference, validation=validation, augmented=augmented,
        opacity=opacity, seed=seed,
    )  # fmt: skip
    task.require_references("fine_pruning", "to see which channels they use")
    axes: Axes = [
        grid(layer=choose_layers(task, layer, LAYERS)),
        grid(max_drop=numbers("max_drop", max_drop, DROPS)),
        grid(learning_rate=numbers("learning_rate", learning_rate, RATES)),
        grid(steps=counts("steps", steps, (TRAINING_STEPS,))),
    ]
    return run("fine_pruning", task, axes, _attempt, monitor)


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    prune(model, task, options["layer"], options["max_drop"], monitor.part(0.0, 0.2))
    if options["learning_rate"] > 0:
        train(
            model,
            task,
            cross_entropy,
            trainable(model, "all"),
            steps=options["steps"],
            learning_rate=options["learning_rate"],
            monitor=monitor.part(0.2, 1.0),
        )


def use_of_channels(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """Mean positive activation of each channel over inputs and positions, ``C``."""
    sums = [
        by_position(part).clamp_min(0).mean(dim=1).sum(dim=0)
        for part in activations(model, layer, inputs)
    ]
    return torch.stack(sums).sum(dim=0) / len(inputs)


def prune(model: nn.Module, task: Task, layer: str, max_drop: float, monitor: Monitor) -> None:
    """Put a mask behind the layer: as many channels as the drop allows, the most dormant first.

    Channels go one by one, or a sixteenth of them at a time where they are many.  The first lot that
    costs too much stays and ends it, as published, though accuracy need not fall steadily.
    """
    references = task.require_references("fine_pruning", "to see which channels they use")
    order = use_of_channels(model, layer, references).argsort(stable=True)
    assert task.answers is not None  # noqa: S101 - they come with the references
    inputs, labels = task.validation or (references, task.answers)

    def accuracy() -> float:
        return float((predict_all(model, inputs).argmax(dim=1) == labels).double().mean())

    least = accuracy() - max_drop
    mask = Mask(torch.ones(len(order), device=order.device))
    insert(model, layer, mask)
    lots = order[:-1].split(max(1, len(order) // LOTS))  # one channel always stays
    for number, lot in enumerate(lots):
        monitor.report(number / len(lots), f"pruning {layer}: lot {number + 1} of {len(lots)}")
        mask.kept[lot] = 0
        if accuracy() < least:
            mask.kept[lot] = 1
            break
