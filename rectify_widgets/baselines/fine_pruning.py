"""Fine-pruning: the peer "patched" of Yang et al. 2026.  Imports torch and the engine.

Liu, Dolan-Gavitt and Garg 2018, "Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
Networks", RAID.  Channels of the last convolutional layer are pruned in the order of their mean
activation on clean inputs, the most dormant first, for as long as clean accuracy stays near what it
was; then the network is fine-tuned.

Published defaults: the last convolutional layer, and pruning until clean accuracy has dropped by
four points.  What differs: accuracy is that on the validation split or, without one, agreement with
the original model on the references; fine-tuning learns from what fine-tuning learns from, the pairs
among it, where the original has clean inputs only; and the drop, the learning rate and the layer are
tuned.  An activation is what the layer or block passes on, its negative part left out.  The
silenced channels are a mask behind the layer, copied, moved and saved with the model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rectify_widgets.baselines.latent import Mask, activations, by_position, insert, latent_layer
from rectify_widgets.baselines.method import Method, Options, number
from rectify_widgets.baselines.task import Task, accuracy
from rectify_widgets.baselines.training import TRAINING_STEPS, train
from rectify_widgets.engine.base.progress import Monitor

LAYERS = 3
"""Layers to choose from."""
LOTS = 16
"""Channels are pruned in about so many lots where they are many."""


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    prune(model, task, options["layer"], options["max_drop"], monitor.part(0.0, 0.2))
    if options["learning_rate"] > 0:
        train(model, task, options, monitor.part(0.2, 1.0))


def mean_activations(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
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
    references = task.problem.references
    order = mean_activations(model, layer, references).argsort(stable=True)
    judged = task.validation or (references, task.problem.answers)
    least = accuracy(model, judged) - max_drop
    mask = Mask(torch.ones(len(order), device=order.device))
    insert(model, layer, mask)
    lots = order[:-1].split(max(1, len(order) // LOTS))  # one channel always stays
    for row, lot in enumerate(lots):
        monitor.report(row / len(lots), f"pruning {layer}: lot {row + 1} of {len(lots)}")
        mask.kept[lot] = 0
        if accuracy(model, judged) < least:
            mask.kept[lot] = 1
            break


FINE_PRUNING = Method(
    "fine_pruning",
    (
        {"layer": latent_layer(LAYERS)},
        {"max_drop": number("loss of clean accuracy that ends pruning", 0.04, 0.01, 0.2)},
        {"learning_rate": number("of fine-tuning, at the start; 0 prunes only", 1e-2, 1e-3)},
        TRAINING_STEPS,
    ),
    _attempt,
    needs_references="to see which channels they use",
)
