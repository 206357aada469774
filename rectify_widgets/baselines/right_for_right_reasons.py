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

from rectify_widgets.baselines.latent import CHUNK
from rectify_widgets.baselines.method import Method, Options, count, number
from rectify_widgets.baselines.task import Batch, Task
from rectify_widgets.baselines.training import TRAINING_STEPS, train, weighted_cross_entropy
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import predict

CUT = 0.67


def _annotated(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    train(model, task, options, monitor, penalised(options["penalty"]))


def _unsupervised(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    rounds = options["explanations"]
    corrupted, clean = (
        replace(kind, masks=torch.zeros_like(kind.masks))
        for kind in (task.corrupted(), task.clean())
    )
    for row in range(rounds):
        corrupted, clean = (
            replace(kind, masks=kind.masks | saliency_masks(model, kind.inputs, monitor))
            for kind in (corrupted, clean)
        )
        part = monitor.part(row / rounds, (row + 1) / rounds)
        train(model, task, options, part, penalised(options["penalty"]), (corrupted, clean))


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


def saliency_masks(model: nn.Module, inputs: Tensor, monitor: Monitor) -> Tensor:
    """Where the input gradient of the greatest probability is near its largest; booleans."""
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


RATE = {"learning_rate": number("at the start", 1e-3, 1e-2, 1e-4)}
PENALTY = {"penalty": number("λ", 1e3, 1e1, 1e5)}

RIGHT_REASONS = Method("right_reasons", (RATE | PENALTY, TRAINING_STEPS), _annotated)
ANOTHER_EXPLANATION = Method(
    "another_explanation",
    (
        RATE,
        PENALTY,
        TRAINING_STEPS,  # of each explanation
        {"explanations": count("how many to penalise, one after another", 1, 2)},
    ),
    _unsupervised,
)
