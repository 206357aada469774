"""Augmentative class artefact compensation (A-ClArC).  Imports torch and the engine.

Anders, Weber, Neumann, Samek, Müller and Lapuschkin 2022, "Finding and removing Clever Hans: Using
explanation methods to debug and improve deep models", Information Fusion 77.  The network is
fine-tuned while every sample's activations at one layer are moved along the artefact's concept
activation vector to where corrupted inputs lie, ``a + v (z − vᵀ a)``: an artefact that is
everywhere tells nothing, so what follows learns to ignore it.  Afterwards nothing is added.

Published defaults: the last convolutional layer, channel vectors of spatial maxima, stochastic
gradient descent with learning rate 0.0001, linear layers only (all from the code of Dreyer et al.
2024, AAAI).  What differs: the covariance pattern instead of a support vector machine; a hundred
steps on the references under the original model's labels, and on the pairs, instead of ten epochs on
the labelled training set; momentum 0.9; and layer, rate and what is trained are tuned, layers
among the few where projecting the vector out does best (`screened`).
"""

from __future__ import annotations

from torch import Tensor, nn

from rectify_widgets.baselines.baseline import Baseline
from rectify_widgets.baselines.latent import (
    SPACES,
    Compensation,
    choose_layers,
    find_concept,
    inserted,
)
from rectify_widgets.baselines.screening import screened
from rectify_widgets.baselines.task import Task, prepare
from rectify_widgets.baselines.training import (
    TRAINED,
    TRAINING_STEPS,
    cross_entropy,
    train,
    trainable,
)
from rectify_widgets.baselines.tuning import Axes, Options, counts, grid, names, numbers, run
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs

RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def a_clarc(
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
    learning_rate: float | None = None,
    steps: int | None = None,
    trained: str | None = None,
) -> Baseline:
    """Fine-tune a copy with the corruption's direction added to every sample at one layer.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts; needs nothing else.
        reference, validation, augmented, opacity, seed, progress, cancel: as in `fine_tune`.
        layer: name of a layer or block; None tunes, see `screened`.
        space: ``"channel"`` or ``"map"``; None tunes over both.
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
        grid(steps=counts("steps", steps, (TRAINING_STEPS,))),
    ]
    spaces = names("space", space, SPACES)
    places = screened(task, choose_layers(task, layer), spaces, monitor.part(0.0, 0.2))
    return run("a_clarc", task, [*choices, places], _attempt, monitor.part(0.2, 1.0))


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    monitor.check()
    concept = find_concept(model, task, options["layer"], options["space"])
    with inserted(model, concept.layer, Compensation(concept, concept.corrupted, model)):
        train(
            model,
            task,
            cross_entropy,
            trainable(model, options["trained"]),
            steps=options["steps"],
            learning_rate=options["learning_rate"],
            monitor=monitor,
        )
