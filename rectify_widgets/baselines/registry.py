"""Every method by name, and the one function that runs them.  Imports torch and the engine."""

from __future__ import annotations

import time
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from rectify_widgets.baselines.adversarial_neuron_pruning import NEURON_PRUNING
from rectify_widgets.baselines.augmentative_clarc import A_CLARC
from rectify_widgets.baselines.fine_pruning import FINE_PRUNING
from rectify_widgets.baselines.fine_tuning import FINE_TUNING
from rectify_widgets.baselines.last_layer import LAST_LAYER
from rectify_widgets.baselines.method import Baseline, Method
from rectify_widgets.baselines.projective_clarc import P_CLARC
from rectify_widgets.baselines.rewriting import REWRITING
from rectify_widgets.baselines.right_for_right_reasons import ANOTHER_EXPLANATION, RIGHT_REASONS
from rectify_widgets.baselines.right_reason_clarc import RR_CLARC
from rectify_widgets.baselines.sharpness_aware import SHARPNESS_AWARE
from rectify_widgets.baselines.task import pose_task
from rectify_widgets.baselines.tuning import tune
from rectify_widgets.engine.base.checks import check_choice, nearest
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs

_METHODS = (
    FINE_TUNING, FINE_PRUNING, P_CLARC, A_CLARC, RR_CLARC, REWRITING, RIGHT_REASONS,
    ANOTHER_EXPLANATION, LAST_LAYER, NEURON_PRUNING, SHARPNESS_AWARE,
)  # fmt: skip

BASELINES: MappingProxyType[str, Method] = MappingProxyType({one.name: one for one in _METHODS})
"""Every method by name.  ``print(BASELINES["rr_clarc"])`` lists its options."""


def run(
    method: str | Method,
    model: nn.Module,
    pairs: SamplePairs,
    *,
    reference: Inputs | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    augmented: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    **options: Any,
) -> Baseline:
    """Repair a copy of the model by another method than rectification.

    Args:
        method: a name in `BASELINES`, or a `Method`.
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts; most methods need nothing else.
        reference: unlabelled inputs like those of training; they keep their present labels.  Without
            them the pairs' clean inputs stand in, and `fine_pruning`, `rewriting`, `last_layer` and
            `neuron_pruning` cannot run.
        validation: labelled clean inputs ``(x, y)`` to tune options on, see
            `rectify_widgets.baselines.tuning`.
        augmented: also learn from references that carry the transplanted corruption, so that ``n``
            pairs become many.  Not part of any published method.
        seed: of every random choice.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.
        options: of the method.  Those that are None or left out are tuned on the validation split
            or, without one, have their published default.

    Raises:
        TypeError, ValueError: bad input, before anything is touched; an option that the method does
            not have; weights that come out infinite or NaN with every choice; a layer that the
            corruption does not reach (`Unreached`).
        Cancelled: ``cancel`` answered True.

    Example:
        >>> from rectify_widgets import baselines
        >>> other = baselines.run("fine_tuning", model, pairs, reference=reference)
        >>> rw.evaluate(other.model, (x, y), (x_bad, y), target=0).attack_success_rate
        0.0
    """
    began = time.perf_counter()
    if not isinstance(method, Method):
        method = BASELINES[check_choice("method", method, BASELINES)]
    for name in options:
        if name not in method.options:
            raise TypeError(
                f"{name}: {method.name} has no such option{nearest(name, method.options)}; it has "
                f"{', '.join(method.options)}"
            )
    monitor = Monitor(progress, cancel)
    task = pose_task(model, pairs, reference, validation, augmented=augmented, seed=seed)
    if method.needs_references and reference is None:
        raise ValueError(
            f"reference: got None, {method.name} wants unlabelled inputs {method.needs_references}"
        )
    repaired, chosen, trials = tune(method, task, options, monitor)
    return Baseline(repaired, method.name, chosen, trials, time.perf_counter() - began)
