"""Right for the right reasons, supervised and unsupervised.  Imports torch and the engine.

Ross, Hughes and Doshi-Velez 2017, "Right for the Right Reasons: Training Differentiable Models by
Constraining their Explanations", IJCAI.  Training with a penalty on input gradients where they
should vanish:

    cross-entropy + λ · mean over samples of Σ_d (A_d · ∂/∂x_d Σ_k log p_k)²,

with annotation masks ``A``; or, *find another explanation*, with masks of what the model now looks
at: ``|∂p_max/∂x_d| > 0.67 · max_d |∂p_max/∂x_d|``, those of one model after another taken together.

Published defaults: λ = 1,000, the sum of log probabilities, the cut at 0.67.  What differs: the model
is fine-tuned instead of trained anew (one explanation after another starts from the last); by
stochastic gradient descent with momentum for a hundred steps on the pairs, and on the references
under the original model's labels, instead of 64 epochs of Adam on the labelled training set; no
penalty on the weights; λ and the learning rate are tuned, with annotations both together: one at a
time, a λ that is too much for the task would have the least rate chosen, at which no λ does
anything.  Annotated is where a pair's corruption lies, on its corrupted and on its clean input;
references are not annotated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from rectify_widgets.baselines.baseline import Baseline
from rectify_widgets.baselines.latent import CHUNK
from rectify_widgets.baselines.task import Batch, Examples, Task, prepare
from rectify_widgets.baselines.training import (
    TRAINING_STEPS,
    fit,
    trainable,
    weighted_cross_entropy,
)
from rectify_widgets.baselines.tuning import Options, counts, grid, numbers, run
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import predict

PENALTIES = (1e3, 1e1, 1e5)
RATES = (1e-3, 1e-2, 1e-4)
EXPLANATIONS = (1, 2)
CUT = 0.67


def right_reasons(
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
    penalty: float | None = None,
    learning_rate: float | None = None,
    steps: int | None = None,
) -> Baseline:
    """Fine-tune a copy while penalising input gradients where the pairs' corruption lies.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts, whose difference is the annotation;
            needs nothing else.
        reference, validation, augmented, opacity, seed, progress, cancel: as in `fine_tune`.
        penalty: ``λ``; None tunes over 1,000, 10, 100,000.
        learning_rate: at the start; None tunes over 0.001, 0.01, 0.0001.
        steps: None means 100.

    Raises:
        TypeError, ValueError: bad input, before anything is touched.
        Cancelled: ``cancel`` said so.
    """
    axes = [
        grid(
            learning_rate=numbers("learning_rate", learning_rate, RATES),
            penalty=numbers("penalty", penalty, PENALTIES),
        ),
        grid(steps=counts("steps", steps, (TRAINING_STEPS,))),
    ]
    monitor = Monitor(progress, cancel)
    task = prepare(
        model, pairs, reference=reference, validation=validation, augmented=augmented,
        opacity=opacity, seed=seed,
    )  # fmt: skip
    return run("right_reasons", task, axes, _annotated, monitor)


def another_explanation(
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
    penalty: float | None = None,
    learning_rate: float | None = None,
    steps: int | None = None,
    explanations: int | None = None,
) -> Baseline:
    """Fine-tune a copy to find another explanation than what it looks at now, without annotation.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts; where they differ is not looked at.
        reference, validation, augmented, opacity, seed, progress, cancel: as in `fine_tune`.
        penalty, learning_rate, steps: as in `right_reasons`; the steps are those of one explanation.
        explanations: how many to put away, one after another; None tunes over one and two.

    Raises:
        TypeError, ValueError: bad input, before anything is touched.
        Cancelled: ``cancel`` said so.
    """
    axes = [
        grid(learning_rate=numbers("learning_rate", learning_rate, RATES)),
        grid(penalty=numbers("penalty", penalty, PENALTIES)),
        grid(steps=counts("steps", steps, (TRAINING_STEPS,))),
        grid(explanations=counts("explanations", explanations, EXPLANATIONS)),
    ]
    monitor = Monitor(progress, cancel)
    task = prepare(
        model, pairs, reference=reference, validation=validation, augmented=augmented,
        opacity=opacity, seed=seed,
    )  # fmt: skip
    return run("another_explanation", task, axes, _unsupervised, monitor)


def _annotated(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    _train(model, task, task.corrupted(), task.clean(), options, monitor)


def _unsupervised(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    rounds = options["explanations"]
    corrupted, clean = (
        replace(kind, masks=torch.zeros_like(kind.masks))
        for kind in (task.corrupted(), task.clean())
    )
    for number in range(rounds):
        corrupted, clean = (
            replace(kind, masks=kind.masks | looked_at(model, kind.inputs, monitor))
            for kind in (corrupted, clean)
        )
        part = monitor.part(number / rounds, (number + 1) / rounds)
        _train(model, task, corrupted, clean, options, part)


def _train(
    model: nn.Module,
    task: Task,
    corrupted: Examples,
    clean: Examples,
    options: Options,
    monitor: Monitor,
) -> None:
    fit(
        model,
        task,
        corrupted,
        clean,
        penalised(options["penalty"]),
        trainable(model, "all"),
        steps=options["steps"],
        learning_rate=options["learning_rate"],
        monitor=monitor,
    )


def penalised(penalty: float) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss: cross-entropy plus ``penalty`` times the squared input gradients under the masks."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = batch.inputs.detach().requires_grad_()
        scores = predict(model, inputs)
        (gradient,) = torch.autograd.grad(
            scores.log_softmax(dim=1).sum(), inputs, create_graph=True
        )
        wrong = (gradient * batch.masks).square().flatten(1).sum(dim=1).mean()
        return weighted_cross_entropy(scores, batch) + penalty * wrong

    return loss


def looked_at(model: nn.Module, inputs: Tensor, monitor: Monitor) -> Tensor:
    """Where each input's gradient of the greatest probability is near its largest; booleans."""
    masks = []
    for chunk in inputs.split(CHUNK):
        monitor.check()
        with torch.enable_grad():
            samples = chunk.detach().requires_grad_()
            greatest = predict(model, samples).softmax(dim=1).amax(dim=1).sum()
            (gradient,) = torch.autograd.grad(greatest, samples)
        size = gradient.abs()
        limit = size.flatten(1).amax(dim=1).reshape(-1, *(1,) * (size.ndim - 1))
        masks.append(size > CUT * limit)
    return torch.cat(masks)
