"""Projective class artefact compensation (P-ClArC).  Imports torch and the engine.

Anders, Weber, Neumann, Samek, Müller and Lapuschkin 2022, "Finding and removing Clever Hans: Using
explanation methods to debug and improve deep models", Information Fusion 77.  A concept activation
vector ``v`` of the artefact is projected out of a layer's activations at inference, and put back at
where clean inputs lie: ``a + v (z − vᵀ a)`` with ``z`` the mean of ``vᵀ a`` over clean inputs.

Published defaults: the last convolutional layer, channel vectors of spatial maxima (as in the code
of Dreyer et al. 2024, AAAI).  What differs: the vector is the covariance pattern (`pattern_cav`)
instead of a linear support vector machine, as its authors have recommended since Pahde et al. 2022;
its samples are the pairs instead of all training data; and the layer and the space are tuned.
"""

from __future__ import annotations

from torch import Tensor, nn

from rectify_widgets.baselines.baseline import Baseline
from rectify_widgets.baselines.latent import (
    SPACES,
    Compensation,
    choose_layers,
    find_concept,
    insert,
)
from rectify_widgets.baselines.task import Task, prepare
from rectify_widgets.baselines.tuning import Options, grid, names, run
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs


def p_clarc(
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
) -> Baseline:
    """Project the corruption's direction out of one layer, at inference and for good.

    Nothing is trained.  The projection is a module behind the layer, which is copied, moved and
    saved with the model.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts; needs nothing else.
        reference: unlabelled inputs like those of training, for where clean inputs lie; without
            them the pairs' clean inputs say so.
        validation, augmented, opacity, seed, progress, cancel: as in `fine_tune`; ``augmented``
            takes the references with the transplanted corruption into the vector.
        layer: name of a layer or block; None tunes over all of them, the deepest first.
        space: ``"channel"`` or ``"map"``; None tunes over both.

    Raises:
        TypeError, ValueError: bad input, before anything is touched; a layer that the corruption
            does not reach.
        Cancelled: ``cancel`` said so.
    """
    spaces = names("space", space, SPACES)
    monitor = Monitor(progress, cancel)
    task = prepare(
        model, pairs, reference=reference, validation=validation, augmented=augmented,
        opacity=opacity, seed=seed,
    )  # fmt: skip
    axes = [grid(space=spaces, layer=choose_layers(task, layer))]
    return run("p_clarc", task, axes, project, monitor)


def project(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    """Put the projection behind the layer."""
    monitor.check()
    concept = find_concept(model, task, options["layer"], options["space"])
    insert(model, concept.layer, Compensation(concept, concept.clean, model))
