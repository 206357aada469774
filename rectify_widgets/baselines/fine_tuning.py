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

from torch import nn

from rectify_widgets.baselines.method import Method, Options, choice, number
from rectify_widgets.baselines.task import Task
from rectify_widgets.baselines.training import TRAINING_STEPS, train
from rectify_widgets.engine.base.progress import Monitor


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    train(model, task, options, monitor)


FINE_TUNING = Method(
    "fine_tuning",
    (
        {
            "learning_rate": number("at the start", 1e-2, 1e-3, 1e-4),
            "trained": choice("layers that learn", "all", "linear"),
        },
        TRAINING_STEPS,
    ),
    _attempt,
)
