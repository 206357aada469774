"""Projective class artefact compensation (P-ClArC).  Imports torch and the engine.

Anders, Weber, Neumann, Samek, Müller and Lapuschkin 2022, "Finding and removing Clever Hans: Using
explanation methods to debug and improve deep models", Information Fusion 77.  A concept activation
vector ``v`` of the artefact is projected out of a layer's activations at inference, and put back at
where clean inputs lie: ``a + v (z − vᵀ a)`` with ``z`` the mean of ``vᵀ a`` over clean inputs.

Published defaults: the last convolutional layer, channel vectors of spatial maxima (as in the code
of Dreyer et al. 2024, AAAI).  What differs: the vector is the covariance pattern (`pattern_cav`)
instead of a linear support vector machine, as its authors have recommended since Pahde et al. 2022;
its samples are the pairs instead of all training data; and the layer and the space are tuned.

The projection is a module behind the layer, which is copied, moved and saved with the model.
"""

from __future__ import annotations

from torch import nn

from rectify_widgets.baselines.latent import PLACE, Compensation, find_concept, insert
from rectify_widgets.baselines.method import Method, Options
from rectify_widgets.baselines.task import Task
from rectify_widgets.engine.base.progress import Monitor


def project(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    """Put the projection behind the layer."""
    monitor.check()
    concept = find_concept(model, task, options)
    insert(model, concept.layer, Compensation(concept, concept.clean, model))


P_CLARC = Method("p_clarc", (PLACE,), project)
