"""Which classes are taken for which, after an edit minus before it.  Pure functions on numpy.

A confusion matrix counts predictions: one row for each true class, one column for each predicted
one.  The same samples are counted before and after, so each row of the difference sums to zero:
what one class loses, another gains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

OTHERS = -1
"""Stands for all classes that are not shown."""


@dataclass(frozen=True, eq=False)
class Difference:
    """A confusion matrix after minus before.

    Attributes:
        classes: class numbers of rows and columns; `OTHERS` in the last place stands for the rest.
        matrix: change of each count, rows by true class.
        samples: number of samples of each row.
        before, after: how many of them were right; within `OTHERS` by their own classes.
        classes_in_all: number of classes of the model.
    """

    classes: Ints
    matrix: Ints
    samples: Ints
    before: Ints
    after: Ints
    classes_in_all: int


def confusion(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """``classes × classes`` counts, rows by true class."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def busiest(matrix: Ints, limit: int) -> Ints:
    """The classes whose rows and columns change most, at most ``limit``, in their own order."""
    size = np.abs(matrix)
    activity = size.sum(axis=0) + size.sum(axis=1) - np.diagonal(size)
    return np.sort(np.argsort(-activity, kind="stable")[:limit])


def fold(matrix: Ints, shown: Ints) -> Ints:
    """The rows and columns that are shown, and one of each for all others together."""
    place = np.full(len(matrix), len(shown))
    place[shown] = np.arange(len(shown))
    folded = np.zeros((len(shown) + 1, len(shown) + 1), dtype=np.int64)
    np.add.at(folded, (place[:, None], place[None, :]), matrix)
    return folded


def difference(labels: Ints, before: Ints, after: Ints, classes: int, limit: int) -> Difference:
    """What changed between two models, for the ``limit`` classes that change most.

    Args:
        labels: ``N`` true classes.
        before, after: ``N`` predicted classes of each model.
        classes: number of classes.
        limit: with more classes than this, those that change least are taken together.
    """
    counted = [confusion(labels, predicted, classes) for predicted in (before, after)]
    change = counted[1] - counted[0]
    samples = np.bincount(labels, minlength=classes).astype(np.int64)
    right = [np.diagonal(matrix) for matrix in counted]
    every = np.arange(classes)
    if classes <= limit:
        return Difference(every, change, samples, right[0], right[1], classes)
    shown = busiest(change, limit)
    rest = np.setdiff1d(every, shown)

    def pick(values: Ints) -> Ints:
        return np.append(values[shown], values[rest].sum())

    return Difference(
        classes=np.append(shown, OTHERS),
        matrix=fold(change, shown),
        samples=pick(samples),
        before=pick(right[0]),
        after=pick(right[1]),
        classes_in_all=classes,
    )
