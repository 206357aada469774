"""Fine-tuning on the pairs: what one would try first.  Imports torch and the engine.

No single paper owns it.  It is the peer "fine-tune" of Yang et al. 2026 (CVPR, arXiv 2603.15656),
whose schedule is not published, and "FT" of the backdoor literature (Wu et al. 2022,
"BackdoorBench", NeurIPS Datasets and Benchmarks: a hundred epochs from learning rate 0.01, annealed,
which is the first value here).

What differs: the network stays in evaluation mode, and there are a hundred steps instead of a
hundred epochs, since a few pairs are learnt in a few steps and what follows only costs accuracy.
The pairs' clean inputs and the references, labelled by the original model, make up half the loss.
"""

from __future__ import annotations

from torch import Tensor, nn

from rectify_widgets.baselines.baseline import Baseline
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

RATES = (1e-2, 1e-3, 1e-4)


def fine_tune(
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
    learning_rate: float | None = None,
    steps: int | None = None,
    trained: str | None = None,
) -> Baseline:
    """Train a copy on the pairs' corrupted inputs with their clean labels, plus clean inputs.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts; needs nothing else.
        reference: unlabelled inputs like those of training; they keep their present labels.  Without
            them the pairs' clean inputs are all that holds the network.
        validation: labelled clean inputs ``(x, y)`` to tune options on, see
            `rectify_widgets.baselines.tuning`.
        augmented: also learn from references that carry the transplanted corruption, so that ``n``
            pairs become many.  Not part of the published method.
        opacity: of the transplant, see `transplant`.
        seed: of every random choice.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.
        learning_rate: at the start; None tunes over 0.01, 0.001, 0.0001.
        steps: None means 100.
        trained: ``"all"`` layers or ``"linear"`` ones only; None tunes over both.

    Raises:
        TypeError, ValueError: bad input, before anything is touched.
        Cancelled: ``cancel`` said so.
    """
    axes: Axes = [
        grid(
            learning_rate=numbers("learning_rate", learning_rate, RATES),
            trained=names("trained", trained, TRAINED[::-1]),
        ),
        grid(steps=counts("steps", steps, (TRAINING_STEPS,))),
    ]
    monitor = Monitor(progress, cancel)
    task = prepare(
        model, pairs, reference=reference, validation=validation, augmented=augmented,
        opacity=opacity, seed=seed,
    )  # fmt: skip
    return run("fine_tuning", task, axes, _attempt, monitor)


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    train(
        model,
        task,
        cross_entropy,
        trainable(model, options["trained"]),
        steps=options["steps"],
        learning_rate=options["learning_rate"],
        monitor=monitor,
    )
