"""What changed by class between the predictions of two models.  Pure; imports numpy only.

Nothing here takes room for all pairs of classes, unless all of them are listed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

OTHERS = -1
"""All classes that are not listed."""


@dataclass(frozen=True, eq=False)
class ConfusionChange:
    """A confusion matrix after minus before.

    The same samples are counted both times, so each row sums to zero: what one class loses, another
    gains.

    Attributes:
        classes: class numbers of rows and columns; `OTHERS` in the last place stands for the rest.
        matrix: change of each count, rows by true class, columns by predicted class.
        samples: number of samples of each row.
        before, after: how many of them were right; within `OTHERS` by their own classes.
    """

    classes: Ints
    matrix: Ints
    samples: Ints
    before: Ints
    after: Ints


def confusion_matrix(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """``classes × classes`` counts, rows by true class."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def busiest(labels: Ints, before: Ints, after: Ints, classes: int, limit: int) -> Ints:
    """At most ``limit`` classes whose rows and columns of the confusion matrix change most, in order.

    Takes room for the predictions that differ, not for all pairs of classes.
    """
    moved = before != after
    pairs = [labels[moved] * classes + found[moved] for found in (before, after)]
    cells, place = np.unique(np.concatenate(pairs), return_inverse=True)
    size = np.abs(np.bincount(place, np.repeat((-1.0, 1.0), moved.sum()), len(cells)))
    rows, columns = np.divmod(cells, classes)
    activity = np.bincount(rows, size, classes)
    activity += np.bincount(columns, np.where(rows == columns, 0.0, size), classes)
    order = np.argsort(-activity, kind="stable")[:limit]
    return np.sort(order[activity[order] > 0])


def confusion_change(
    labels: Ints, before: Ints, after: Ints, classes: int, limit: int
) -> ConfusionChange:
    """What changed between two models that predict ``N`` classes each.

    Of more than ``limit`` classes, those that change least are taken together.
    """
    listed = place = np.arange(classes)
    if classes > limit:
        busy = busiest(labels, before, after, classes, limit)
        place = np.full(classes, len(busy))
        place[busy] = np.arange(len(busy))
        listed = np.append(busy, OTHERS)
    earlier, later = (
        confusion_matrix(place[labels], place[found], len(listed)) for found in (before, after)
    )
    samples, right_before, right_after = (
        np.bincount(place[part], minlength=len(listed))
        for part in (labels, labels[before == labels], labels[after == labels])
    )
    return ConfusionChange(listed, later - earlier, samples, right_before, right_after)
