"""Predictions that flip between two models: their kinds, and choosing, sorting and paging them.

Pure functions on numpy arrays; imports nothing else.  A flip is *fixed* (wrong before, right
after), *broken* (right before, wrong after) or *changed* (another class, neither of them the
label, or no label known).  Where both models say the same, there is no flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

KINDS = ("fixed", "broken", "changed")
"""Kinds of flips, by number."""

FILTERED = ("all", *KINDS)
"""What the list can be narrowed to."""

SAME = -1
"""The kind of a prediction that is no flip."""

UNKNOWN = -1
"""The label of a sample that has none."""

SORTS = ("sample", "change", "label", "before", "after")
"""What the list can be sorted by: the sample's number, the change of confidence (greatest first),
the label, or the class that was predicted before or after."""


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

    def take(self, places: Ints | NDArray[np.bool_] | slice) -> Flips:
        """The flips at these places, in their order."""
        return Flips(*(getattr(self, field.name)[places] for field in fields(self)))


def kinds_of(before: Ints, after: Ints, labels: Ints | None) -> Ints:
    """The kind of each prediction, or `SAME`; ``labels`` may be missing, or `UNKNOWN`."""
    truth = np.full_like(before, UNKNOWN) if labels is None else labels
    kinds = np.full(before.shape, KINDS.index("changed"), dtype=np.int64)
    kinds[after == truth] = KINDS.index("fixed")
    kinds[before == truth] = KINDS.index("broken")
    kinds[before == after] = SAME
    return kinds


def find(
    before: Sequence[tuple[Ints, Floats]],
    after: Sequence[tuple[Ints, Floats]],
    labels: Ints | None,
) -> Flips:
    """All flips, by sample and column.

    Args:
        before: for each column the ``N`` predicted classes and the ``N × classes`` probabilities.
        after: the same of the other model.
        labels: ``N`` class numbers, or None.
    """
    parts = []
    for place, ((old, chances), (new, now)) in enumerate(zip(before, after, strict=True)):
        kinds = kinds_of(old, new, labels)
        rows = np.flatnonzero(kinds != SAME)
        truth = np.full(len(rows), UNKNOWN) if labels is None else labels[rows]
        told = old[rows] if labels is None else truth
        parts.append(
            Flips(
                samples=rows,
                columns=np.full(len(rows), place),
                kinds=kinds[rows],
                labels=truth,
                before=old[rows],
                after=new[rows],
                sure_before=chances[rows, old[rows]],
                sure_after=now[rows, new[rows]],
                change=now[rows, told] - chances[rows, told],
            )
        )
    names = [field.name for field in fields(Flips)]
    every = Flips(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    return arrange(every, "sample")


def keep(flips: Flips, kind: str = "all", column: int | None = None) -> Flips:
    """The flips of one kind, or of ``"all"``, and of one column, or of all."""
    wanted = np.ones(len(flips), dtype=np.bool_)
    if kind != "all":
        wanted &= flips.kinds == KINDS.index(kind)
    if column is not None:
        wanted &= flips.columns == column
    return flips.take(wanted)


def arrange(flips: Flips, by: str) -> Flips:
    """The flips in one of the orders of `SORTS`; what is equal goes by sample and column."""
    keys: dict[str, Ints | Floats] = {
        "sample": flips.samples,
        "change": -np.abs(flips.change),
        "label": flips.labels,
        "before": flips.before,
        "after": flips.after,
    }
    return flips.take(np.lexsort((flips.columns, flips.samples, keys[by])))


def sheet_count(count: int, size: int) -> int:
    """Number of sheets that so many entries fill; at least one."""
    return max(-(-count // size), 1)


def sheet(flips: Flips, number: int, size: int) -> Flips:
    """The flips on one sheet of the list, from 0."""
    return flips.take(slice(number * size, (number + 1) * size))


def tally(flips: Flips, columns: int) -> list[list[int]]:
    """Number of flips: a row for each column of inputs, a number for each of `KINDS`."""
    counts = np.zeros((columns, len(KINDS)), dtype=np.int64)
    np.add.at(counts, (flips.columns, flips.kinds), 1)
    return [[int(number) for number in row] for row in counts]
