"""Augmentative class artefact compensation (A-ClArC).  Imports torch and the engine.

Anders, Weber, Neumann, Samek, Müller and Lapuschkin 2022, "Finding and removing Clever Hans: Using
explanation methods to debug and improve deep models", Information Fusion 77.  The network is
fine-tuned while every sample's activations at one layer are moved along the artefact's concept
activation vector to where corrupted inputs lie, ``a + v (z − vᵀ a)``: an artefact that is
everywhere carries no information, so what follows learns to ignore it.  Afterwards nothing is added.

Published defaults: the last convolutional layer, channel vectors of spatial maxima, stochastic
gradient descent with learning rate 0.0001, linear layers only (all from the code of Dreyer et al.
2024, AAAI).  What differs: the covariance pattern instead of a support vector machine; a hundred
steps on the references under the original model's labels, and on the pairs, instead of ten epochs on
the labelled training set; momentum 0.9; and layer, rate and what is trained are tuned, layers
among the few where projecting the vector out does best (`screened`).
"""

from __future__ import annotations

from torch import nn

from rectify_widgets.baselines.latent import PLACE, Compensation, appended, find_concept
from rectify_widgets.baselines.method import Method, Options
from rectify_widgets.baselines.projective_clarc import project
from rectify_widgets.baselines.task import Task
from rectify_widgets.baselines.training import LINEAR, TRAINING_STEPS, train
from rectify_widgets.engine.base.progress import Monitor


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    monitor.check()
    concept = find_concept(model, task, options)
    with appended(model, concept.layer, Compensation(concept, concept.corrupted, model)):
        train(model, task, options, monitor)


A_CLARC = Method(
    "a_clarc",
    (
        LINEAR,
        TRAINING_STEPS,
        PLACE,
    ),
    _attempt,
    screen=project,
)
