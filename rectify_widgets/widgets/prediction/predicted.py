"""What models predict for the inputs of a viewer, kept for each model.

Imports numpy and the engine's inspection and metrics; no ipywidgets.  Inputs go through a model in
chunks, between which the work can be watched, cancelled, and other work of the session let pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_labels
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.measure.metrics import (
    Report,
    check_target,
    evaluate_predictions,
    scored,
)
from rectify_widgets.engine.model.running import chunk_size, eval_mode, model_device

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

KEPT = 128 * 2**20
"""Bytes of predictions that are kept; beyond it, those that were not looked at longest go first."""

CONFIDENCE = 0.95
"""Level of the bootstrap intervals."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """What one model predicts.

    Attributes:
        classes: for each column of inputs, ``N`` predicted classes.
        probabilities: for each column, ``N × classes``.
    """

    classes: Mapping[str, Ints]
    probabilities: Mapping[str, Floats]

    @property
    def count(self) -> int:
        """Number of classes."""
        return int(next(iter(self.probabilities.values())).shape[1])

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(array.nbytes for array in self.probabilities.values())


@dataclass(frozen=True, eq=False)
class Seen:
    """A model's predictions and what they are worth.

    Attributes:
        predicted: the predictions.
        report: the headline figures, or None where no labels are known.
    """

    predicted: Predicted
    report: Report | None


class Kept:
    """Predictions by model, for as long as the model lives and as `KEPT` allows."""

    def __init__(self) -> None:
        self._seen: weakref.WeakKeyDictionary[nn.Module, Seen] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._seen)

    def get(self, model: nn.Module | None) -> Seen | None:
        """What is kept for the model; it counts as looked at now."""
        if model is None:
            return None
        seen = self._seen.pop(model, None)
        if seen is not None:
            self._seen[model] = seen
        return seen

    def put(self, model: nn.Module, seen: Seen) -> None:
        """Keep a model's predictions, and let others go where there is no room.

        It stays itself, and so does the one that was looked at before it.
        """
        self._seen.pop(model, None)
        room = KEPT - seen.predicted.size
        kept = list(self._seen.items())[::-1]
        for place, (old, other) in enumerate(kept):
            room -= other.predicted.size
            if room < 0 and place > 0:
                self._seen.pop(old, None)
        self._seen[model] = seen

    def clear(self) -> None:
        """Let go of all."""
        self._seen.clear()


def predict(model: nn.Module, columns: Mapping[str, Tensor], monitor: Monitor) -> Predicted:
    """Classes and probabilities of every input; the model is left as it was.

    Raises:
        Cancelled: the monitor says so.
        ValueError: scores that are not ``N × classes``, or NaN.
    """
    total = sum(len(inputs) for inputs in columns.values())
    done = 0
    classes: dict[str, Ints] = {}
    probabilities: dict[str, Floats] = {}
    monitor.check()
    for name, inputs in columns.items():
        told, chances = [], []
        for chunk in inputs.split(chunk_size(inputs, model_device(model))):
            with eval_mode(model) as module:
                scores = scored(module, chunk, len(chunk))
            told.append(scores.argmax(dim=1))
            chances.append(_shares(scores))
            done += len(chunk)
            monitor.report(done / total, f"{done} of {total} inputs")
        classes[name] = torch.cat(told).numpy()
        probabilities[name] = torch.cat(chances).numpy()
    return Predicted(classes, probabilities)


def _shares(scores: Tensor) -> Tensor:
    """Probabilities; classes of infinite score share all of it."""
    shares = scores.float().softmax(dim=1)
    broken = shares.isnan()
    return torch.where(broken, scores.isposinf() / scores.isposinf().sum(1, keepdim=True), shares)


def judge(predicted: Predicted, labels: Ints | None, target: int | None) -> Report | None:
    """The figures of `rectify_widgets.evaluate`, with intervals; None without labels.

    The first column counts as clean, the second, if there is one, as corrupted.  The attack
    success rate is left out where every label is the target.

    Raises:
        ValueError: labels or a target that the model has no class for.
    """
    check_target(target, predicted.count)
    if labels is None:
        return None
    truth = check_labels(
        "labels", torch.from_numpy(labels), count=len(labels), classes=predicted.count
    )
    if target is not None and bool((truth == target).all()):
        target = None
    columns = [(torch.from_numpy(told), truth) for told in predicted.classes.values()]
    return evaluate_predictions(
        columns[0], columns[1] if len(columns) > 1 else None, target, confidence=CONFIDENCE
    )
