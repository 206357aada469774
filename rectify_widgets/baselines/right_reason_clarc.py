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

from rectify_widgets.baselines.baseline import Baseline
from rectify_widgets.baselines.latent import (
    SPACES,
    Concept,
    by_position,
    choose_layers,
    find_concept,
)
from rectify_widgets.baselines.screening import screened
from rectify_widgets.baselines.task import Batch, Task, prepare
from rectify_widgets.baselines.training import (
    TRAINED,
    TRAINING_STEPS,
    train,
    trainable,
    weighted_cross_entropy,
)
from rectify_widgets.baselines.tuning import (
    Axes,
    Options,
    counts,
    generator,
    grid,
    names,
    numbers,
    run,
)
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import capturing, predict

PENALTIES = (1.0, 1e2, 1e4, 1e6)
RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def rr_clarc(
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
    space: str | None = None,
    penalty: float | None = None,
    learning_rate: float | None = None,
    steps: int | None = None,
    trained: str | None = None,
) -> Baseline:
    """Fine-tune a copy while penalising the gradient along the corruption's direction.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts; needs nothing else.
        reference, validation, augmented, opacity, seed, progress, cancel: as in `fine_tune`.
        layer: name of a layer or block; None tunes, see `screened`.
        space: ``"channel"`` or ``"map"``; None tunes over both.
        penalty: ``λ``; None tunes over 1, 10², 10⁴, 10⁶.
        learning_rate: at the start; None tunes over 0.0001, 0.001,
            0.01, 0.1.
        steps: None means 100.
        trained: ``"linear"`` layers only or ``"all"``; None tunes over both.

    Raises:
        TypeError, ValueError: bad input, before anything is touched; a layer that the corruption
            does not reach.
        Cancelled: ``cancel`` said so.
    """
    monitor = Monitor(progress, cancel)
    task = prepare(
        model, pairs, reference=reference, validation=validation, augmented=augmented,
        opacity=opacity, seed=seed,
    )  # fmt: skip
    choices: Axes = [
        grid(
            learning_rate=numbers("learning_rate", learning_rate, RATES),
            trained=names("trained", trained, TRAINED),
        ),
        grid(penalty=numbers("penalty", penalty, PENALTIES)),
        grid(steps=counts("steps", steps, (TRAINING_STEPS,))),
    ]
    spaces = names("space", space, SPACES)
    places = screened(task, choose_layers(task, layer), spaces, monitor.part(0.0, 0.2))
    return run("rr_clarc", task, [*choices, places], _attempt, monitor.part(0.2, 1.0))


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    monitor.check()
    concept = find_concept(model, task, options["layer"], options["space"])
    train(
        model,
        task,
        penalised(concept, options["penalty"], generator(task)),
        trainable(model, options["trained"]),
        steps=options["steps"],
        learning_rate=options["learning_rate"],
        monitor=monitor,
    )


def penalised(
    concept: Concept, penalty: float, draw: torch.Generator
) -> Callable[[nn.Module, Batch], Tensor]:
    """The loss: cross-entropy plus ``penalty`` times the squared gradient along the concept."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        inputs = batch.inputs.detach().requires_grad_()  # else frozen layers have no gradient
        edges: list[GradientEdge] = []
        shapes: list[torch.Size] = []

        def watch(_: str, __: Tensor, output: Tensor) -> None:
            # The edge stands for the output even where what follows works in place.
            edges.append(get_gradient_edge(output))
            shapes.append(output.shape)

        with capturing({concept.layer: model.get_submodule(concept.layer)}, watch):
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
