"""What models predict for the inputs of a viewer, and how two of them differ.  Makes no HTML.

Imports numpy and the engine.  `predict` runs a model, `PredictionCache` keeps what it gives;
`Flips` lists the predictions that differ, and a `Comparison` puts inputs, labels and predictions
together.  A flip is *fixed* (wrong before, right after), *broken* (right before, wrong after) or
*changed* (another class, neither of them the label, or no label known).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

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
from rectify_widgets.engine.model.running import chunk_size, eval_mode, model_device, with_head
from rectify_widgets.widgets.markup import class_name
from rectify_widgets.widgets.prediction.confusion import (
    OTHERS,
    ConfusionChange,
    Ints,
    confusion_change,
)

Floats = NDArray[np.float32]

Confusion = tuple[str, int, int]
"""One cell of a heat map: its column of inputs, true class and predicted class."""

CACHE_BYTES = 128 * 2**20
"""Bytes of predictions that are kept; beyond it, those that were used longest ago go first."""

CONFIDENCE = 0.95
"""Level of the intervals."""

KINDS = ("fixed", "broken", "changed")
"""Kinds of flips, by number."""

SAME = UNKNOWN = -1
"""The kind of a prediction that is no flip, and the label where there is none."""


# -- predictions ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one model predicts.

    Attributes:
        classes: for each column of inputs, ``N`` predicted classes.
        probabilities: for each column, ``N × classes``.
        report: the headline figures, or None where no labels are known.
        label: of a model that tells several, the one that this is about: class 1 is with it, class 0
            without; otherwise None.
    """

    classes: Mapping[str, Ints]
    probabilities: Mapping[str, Floats]
    report: Report | None = None
    label: int | None = None

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return int(next(iter(self.probabilities.values())).shape[1])

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return sum(array.nbytes for array in self.probabilities.values())


class PredictionCache:
    """Predictions by model, for as long as the model lives and as `CACHE_BYTES` allows."""

    def __init__(self) -> None:
        self._entries = weakref.WeakKeyDictionary[nn.Module, Predictions]()

    def get(self, model: nn.Module) -> Predictions | None:
        """What is kept for the model; it counts as used now."""
        entry = self._entries.pop(model, None)
        if entry is not None:
            self._entries[model] = entry
        return entry

    def put(self, model: nn.Module, predictions: Predictions) -> None:
        """Keep a model's predictions, and let others go where there is no room.

        It stays itself, and so does the one that was used before it.
        """
        self._entries.pop(model, None)
        room = CACHE_BYTES - predictions.size
        for place, (old, other) in enumerate(list(self._entries.items())[::-1]):
            room -= other.size
            if room < 0 and place > 0:
                self._entries.pop(old, None)
        self._entries[model] = predictions

    def clear(self) -> None:
        """Let go of all."""
        self._entries.clear()


def predict(
    model: nn.Module, columns: Mapping[str, Tensor], monitor: Monitor, label: int | None = None
) -> Predictions:
    """Classes and probabilities of every input, without figures; the model is left as it was.

    Of a model that tells several labels one is looked at: ``label``, or else the one whose
    probability differs most between the columns.

    Between chunks of inputs the work can be watched or cancelled, and other work of the session passes.

    Raises:
        Cancelled: the monitor says so.
        ValueError: scores that are not ``N × classes``, or NaN.
    """
    total, done = sum(map(len, columns.values())), 0
    found: dict[str, tuple[Tensor, Tensor]] = {}
    monitor.check()
    with eval_mode(model) as module:
        headed = with_head(module, *columns.values())
    for name, inputs in columns.items():
        parts = []
        for chunk in inputs.split(chunk_size(inputs, model_device(model))):
            with eval_mode(headed) as module:
                scores = scored(module, chunk, len(chunk))
            parts.append((scores.argmax(dim=-1), _softmax(scores)))
            done += len(chunk)
            monitor.report(done / total, f"{done} of {total} inputs")
        picked, share = zip(*parts, strict=True)
        found[name] = torch.cat(picked), torch.cat(share)
    (_, first), *_, (_, last) = (*found.values(), *found.values())
    if first.ndim < 3:
        label = None
    else:
        apart = (first - last)[..., 1].abs().mean(dim=0)
        label = int(apart.argmax()) if label is None else check_target(label, len(apart))
        found = {name: (c[:, label].clone(), p[:, label].clone()) for name, (c, p) in found.items()}
    classes, shares = ({name: x[i].numpy() for name, x in found.items()} for i in (0, 1))
    return Predictions(classes, shares, label=label)


def _softmax(scores: Tensor) -> Tensor:
    """Probabilities; classes of infinite score share all of it."""
    shares = scores.float().softmax(dim=-1)
    if not shares.isnan().any():
        return shares
    top = scores.isposinf()
    return torch.where(shares.isnan(), top / top.sum(-1, keepdim=True), shares)


def truth_of(labels: Ints | None, label: int | None) -> Ints | None:
    """``N`` true classes as they are; or whether each sample has the label, of ``N × L``.

    Raises:
        ValueError: the model tells several labels, and the truth is one class a sample.
    """
    if labels is None or label is None:
        return labels
    if labels.ndim < 2 or label >= labels.shape[1]:
        raise ValueError(
            f"labels: got shape {labels.shape} for a model that tells several labels, want zeros "
            "and ones, a column for each"
        )
    return labels[:, label]


def judge(
    predictions: Predictions, labels: Ints | None, target: int | None, groups: object = None
) -> Report | None:
    """The figures of `rectify_widgets.evaluate`, with intervals; None without labels.

    The first column counts as clean, the second, if there is one, as corrupted.  The attack
    success rate is left out where every label is the target.

    Raises:
        ValueError: labels or a target that the model has no class for.
    """
    count = predictions.class_count
    check_target(target, count)
    if labels is None:
        return None
    truth = check_labels("labels", torch.from_numpy(labels), count=len(labels), classes=count)
    if target is not None and bool((truth == target).all()):
        target = None
    clean, *corrupted = (
        (torch.from_numpy(classes), truth) for classes in predictions.classes.values()
    )
    return evaluate_predictions(
        clean, corrupted[0] if corrupted else None, target, groups=groups, confidence=CONFIDENCE
    )


# -- flips ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Flips:
    """A list of flips, as arrays of one length.

    Attributes:
        samples: number of the sample.
        columns: place of the column (clean, corrupted) that the input is of.
        kinds: place in `KINDS`.
        labels: the label, or `UNKNOWN`.
        before, after: predicted classes.
        sure_before, sure_after: probability of the predicted class, before and after.
        change: how much the probability of the label grew; without a label, that of the class
            predicted before.
    """

    samples: Ints
    columns: Ints
    kinds: Ints
    labels: Ints
    before: Ints
    after: Ints
    sure_before: Floats
    sure_after: Floats
    change: Floats

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, places: Ints | NDArray[np.bool_]) -> Flips:
        """The flips at these places, in their order."""
        return Flips(*(getattr(self, field.name)[places] for field in fields(self)))

    def select(self, kind: str = "all", column: int | None = None) -> Flips:
        """The flips of one kind, or of ``"all"``, and of one column, or of all."""
        wanted = np.ones(len(self), dtype=np.bool_)
        if kind != "all":
            wanted &= self.kinds == KINDS.index(kind)
        if column is not None:
            wanted &= self.columns == column
        return self.take(wanted)

    def between(self, listed: Ints, truth: int, predicted: int) -> Flips:
        """The flips of one true class to or from one class predicted before or after.

        Classes that are not ``listed`` count as `OTHERS`.  Where no label is known, the true class is
        the one predicted before.
        """

        def folded(numbers: Ints) -> Ints:
            return np.where(np.isin(numbers, listed), numbers, OTHERS)

        truths = np.where(self.labels == UNKNOWN, self.before, self.labels)
        either = (folded(self.before) == predicted) | (folded(self.after) == predicted)
        return self.take((folded(truths) == truth) & either)

    def sort(self, by: str) -> Flips:
        """The flips by a number each, see ``keys``; what is equal goes by sample and column."""
        keys: dict[str, Ints | Floats] = {
            "sample": self.samples,
            "change": -np.abs(self.change),  # greatest first
            "label": self.labels,
            "before": self.before,
            "after": self.after,
        }
        return self.take(np.lexsort((self.columns, self.samples, keys[by])))


def kinds_of(before: Ints, after: Ints, labels: Ints | int) -> Ints:
    """The kind of each prediction, or `SAME`; labels may be `UNKNOWN`."""
    fixed, broken, changed = range(len(KINDS))
    tests = [before == after, before == labels, after == labels]
    return np.select(tests, [SAME, broken, fixed], changed)


def find_flips(before: Predictions, after: Predictions, labels: Ints | None) -> Flips:
    """All flips between two models, by sample and column; ``labels`` are ``N`` or None."""
    parts = []
    for place, name in enumerate(before.classes):
        old, new = before.classes[name], after.classes[name]
        truth = np.full_like(old, UNKNOWN) if labels is None else labels
        kinds = kinds_of(old, new, truth)
        rows = np.flatnonzero(kinds != SAME)
        old, new, truth = old[rows], new[rows], truth[rows]
        of = old if labels is None else truth
        earlier, later = before.probabilities[name], after.probabilities[name]
        sure = earlier[rows, old], later[rows, new]
        change = later[rows, of] - earlier[rows, of]
        parts.append((rows, np.full_like(rows, place), kinds[rows], truth, old, new, *sure, change))
    return Flips(*map(np.concatenate, zip(*parts, strict=True))).sort("sample")


# -- both models ----------------------------------------------------------------------------------


@dataclass(eq=False)
class Comparison:
    """Inputs and what one model or two predict for them.

    Attributes:
        columns: column name to inputs ``N × C × H × W``.
        labels: ``N`` class numbers, or None; of several labels ``N × L`` zeros and ones until one of
            them is looked at.
        source: where the labels are from.
        labelled: whether the labels were given, rather than predicted by the model before its edits.
        target: class that the corruption pulls to, or None.
        classes: class names, by number, or None.
        mean, std: the normalisation of the inputs, undone for display.
        label: of several labels, the one that is looked at.
        groups: which group each sample belongs to, see `rectify_widgets.evaluate`, or None.
        predictions: of the model before its edits and, if there is one, of that after them.
        flips: between the two, or None where there is one model.
    """

    columns: Mapping[str, Tensor]
    labels: Ints | None
    source: str
    labelled: bool
    target: int | None
    classes: Sequence[str] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    predictions: list[Predictions] = field(default_factory=list)
    flips: Flips | None = None
    label: int | None = None
    groups: object = None

    def look_at(self, label: int | None) -> None:
        """From now on show one of several labels, as the classes without and with it."""
        if label is None or self.label is not None:
            return
        self.labels = truth_of(self.labels, label)
        name = class_name(self.classes, label)
        self.label, self.target, self.classes = label, 1, (f"without {name}", f"with {name}")

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.columns.values())))

    @property
    def lone(self) -> bool:
        """Whether a tensor was given rather than pairs."""
        return len(self.columns) == 1

    @property
    def names(self) -> list[str]:
        """Names of the columns as the traits spell them."""
        return [name.lower() for name in self.columns]

    @property
    def reports(self) -> tuple[Report, ...]:
        """The headline figures of each model; in those after edits the groups before them too."""
        found = [found.report for found in self.predictions if found.report is not None]
        return (*found[:1], *(report.beside(found[0]) for report in found[1:]))

    def update(self, predictions: Sequence[Predictions | None]) -> None:
        """Take the predictions of the model before and the one after, up to the first None."""
        first = [*predictions, None].index(None)
        self.predictions = [found for found in predictions[:first] if found is not None]
        self.flips = None
        if len(self.predictions) > 1:
            before, after = self.predictions
            self.flips = find_flips(before, after, self.labels)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of flips: column to kind to number; empty where there is one model."""
        flips = self.flips
        if flips is None:
            return {}
        return {
            name: {kind: len(flips.select(kind, place)) for kind in KINDS}
            for place, name in enumerate(self.names)
        }

    def confusion(self, column: str, limit: int) -> ConfusionChange:
        """What changed by class in a column; without labels by the class predicted before."""
        before, after = (found.classes[column] for found in self.predictions)
        labels = before if self.labels is None else self.labels
        return confusion_change(labels, before, after, self.predictions[0].class_count, limit)
