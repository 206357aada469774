"""Sharpness-aware fine-tuning, FT-SAM of the backdoor literature.  Imports torch and the engine.

Zhu, Wei, Shen, Fan and Wu 2023, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware
Minimization", ICCV.  Weights of the neurons that a backdoor uses are large, and plain fine-tuning
hardly moves them.  What is minimised is the loss at the worst weights nearby instead:

    min over w of  max over ‖T⁻¹ε‖ ≤ ρ  of  L(w + ε),    T = diag |w|,

where the neighbourhood is wider along large weights (Kwon et al. 2021, "ASAM", ICML).  Each step
takes the gradient at the maximum of the linearised loss, ``ε = ρ · T² ∇L / ‖T ∇L‖``, and follows it
from ``w``.

Published defaults: ρ = 2, learning rate 0.01, every weight.  What differs: all that differs in
`fine_tuning`, with the pairs and the references among what is learnt from, where the original has
labelled clean inputs only; neither label smoothing (0.1 in the published code) nor weight decay;
and ρ and the learning rate are tuned, since small networks bear less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rectify_widgets.baselines.method import Method, Options, number
from rectify_widgets.baselines.task import Batch, Task
from rectify_widgets.baselines.training import (
    TRAINING_STEPS,
    Gradient,
    Gradients,
    Loss,
    gradient,
    train,
)
from rectify_widgets.engine.base.progress import Monitor

TINY = 1e-12
"""Added to the length of the gradient, which may be zero."""


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    train(model, task, options, monitor, descended=sharpness_aware(options["radius"]))


def sharpness_aware(radius: float) -> Gradient:
    """The gradient at the worst weights within ``radius`` ρ; the weights are left as they were."""

    def descended(
        model: nn.Module, batch: Batch, loss: Loss, parameters: Sequence[nn.Parameter]
    ) -> Gradients:
        here = gradient(model, batch, loss, parameters)
        reached = [(p, one) for p, one in zip(parameters, here, strict=True) if one is not None]
        before = [p.clone() for p, _ in reached]
        length = torch.stack([(p * one).norm() for p, one in reached]).norm()
        for p, one in reached:
            p.add_(p.square() * one * (radius / (length + TINY)))
        worst = gradient(model, batch, loss, parameters)
        for (p, _), kept in zip(reached, before, strict=True):
            p.copy_(kept)
        return worst

    return descended


SHARPNESS_AWARE = Method(
    "sharpness_aware",
    (
        {"radius": number("ρ, how far the worst weights lie, relative to each", 2.0, 0.5, 0.1)},
        {"learning_rate": number("at the start", 1e-2, 1e-3)},
        TRAINING_STEPS,
    ),
    _attempt,
)
