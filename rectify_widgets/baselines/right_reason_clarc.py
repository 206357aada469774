"""Right-reason class artefact compensation (RR-ClArC).  Imports torch and the engine.

Dreyer, Pahde, Anders, Samek and Lapuschkin 2024, "From Hope to Safety: Unlearning Biases of Deep
Models via Gradient Penalization in Latent Space", AAAI.  Fine-tuning with a penalty on how much the
scores change along the artefact's concept activation vector ``v`` at one layer:

    cross-entropy + λ · mean over samples of (vᵀ ∂(Σ_c m_c z_c) / ∂a)²,   m_c = ±1 at random,

the gradient being averaged over the positions for channel vectors.

Published defaults: random signs, squares, the covariance-pattern vector, the last convolutional
layer, stochastic gradient descent with learning rate 0.0001, linear layers only; λ was searched on
validation data from 0.05 to 10⁷, which is why none is *the* default and 1 comes first here.  What
differs: a hundred steps on the references under the original model's labels, and on the pairs,
instead of ten epochs on the labelled training set; momentum 0.9; layer, rate and what is trained are
tuned too, layers among the few where projecting the vector out does best (`screened`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rectify_widgets.baselines.latent import PLACE, Concept, by_position, find_concept
from rectify_widgets.baselines.method import Method, Options, number
from rectify_widgets.baselines.projective_clarc import project
from rectify_widgets.baselines.task import Batch, Task
from rectify_widgets.baselines.training import LINEAR, TRAINING_STEPS, train, weighted_cross_entropy
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import capturing, predict, unwrap


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    monitor.check()
    concept = find_concept(model, task, options)
    loss = penalised(concept, options["penalty"], task.generator())
    train(model, task, options, monitor, loss)


def penalised(
    concept: Concept, penalty: float, draw: torch.Generator
) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss: cross-entropy plus ``penalty`` times the squared gradient along the concept."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = batch.inputs.detach().requires_grad_()  # otherwise frozen layers have no gradient
        edges: list[GradientEdge] = []
        shapes: list[torch.Size] = []

        def watch(_: str, __: Tensor, output: Tensor) -> None:
            # The edge stands for the output even where what follows works in place.
            edges.append(get_gradient_edge(output))
            shapes.append(output.shape)

        with capturing({concept.layer: unwrap(model).get_submodule(concept.layer)}, watch):
            scores = predict(model, inputs)
        signs = torch.randint(0, 2, scores.shape, generator=draw).to(scores) * 2 - 1
        (gradient,) = torch.autograd.grad((scores * signs).sum(), edges, create_graph=True)
        right = _slope(gradient.reshape(shapes[0]), concept).square().mean()
        return weighted_cross_entropy(scores, batch) + penalty * right

    return loss


def _slope(gradient: Tensor, concept: Concept) -> Tensor:
    """``vᵀ g`` of each sample, ``N``."""
    vector = concept.vector.to(gradient)
    if concept.space == "channel":
        return by_position(gradient).mean(dim=1) @ vector
    return gradient.flatten(1) @ vector


RR_CLARC = Method(
    "rr_clarc",
    (
        LINEAR,
        {"penalty": number("λ", 1.0, 1e2, 1e4, 1e6)},
        TRAINING_STEPS,
        PLACE,
    ),
    _attempt,
    screen=project,
)
