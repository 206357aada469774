"""Accuracy of each (label, group), for metadata that says which group each input belongs to.

Imports torch; pandas only where a frame is asked for.  Groups and the accuracy of the worst of them:
Sagawa, Koh, Hashimoto and Liang 2020, "Distributionally Robust Neural Networks for Group Shifts".
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import torch
from torch import Tensor

from rectify_widgets.engine.base.tables import frame, html_table
from rectify_widgets.engine.measure.intervals import wilson

LOSS = 0.01
"""A group that loses more than this share of its inputs is named: one point."""

NAMED = 10
"""So many of them are named at most, and the others counted."""

LISTED = 40
"""Rows that are printed; of more, those of the lowest accuracy."""


@dataclass(frozen=True)
class Group:
    """The inputs of one label in one group.

    Attributes:
        attribute: what the groups divide by: a key of the metadata, or ``"group"``; empty where
            nothing divides the inputs but their labels.
        label: number of the true class.
        group: value of the metadata.
        samples: number of inputs.
        right: how many of them get their label.
        before: how many did before the edits; None where that is not known.
        present: of a model that tells several labels, whether the inputs have this label or not;
            otherwise None.
        confidence: level of the intervals.

    Example:
        >>> report = rw.evaluate(model, (x_bad, y), groups=["day", "night"] * 60)
        >>> group = report.groups.worst
        >>> group.label, group.group, group.samples, group.accuracy
        (1, 'day', 20, 0.0)
    """

    attribute: str
    label: int
    group: Hashable
    samples: int
    right: int
    before: int | None = None
    present: bool | None = None
    confidence: float = 0.95

    @property
    def accuracy(self) -> float:
        """Share of the inputs that get their label."""
        return self.right / self.samples

    @property
    def accuracy_before(self) -> float | None:
        """The same before the edits, or None."""
        return None if self.before is None else self.before / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval of the accuracy."""
        return wilson(self.right, self.samples, self.confidence)

    @property
    def interval_before(self) -> tuple[float, float] | None:
        """Wilson interval of the accuracy before the edits, or None."""
        return None if self.before is None else wilson(self.before, self.samples, self.confidence)

    @property
    def change(self) -> float | None:
        """Accuracy after minus before, or None."""
        return None if self.before is None else (self.right - self.before) / self.samples

    def words(self, classes: Sequence[str] | None = None) -> str:
        """What it is, ``"label 3, group tag"``, with the class's name where names are given."""
        label = f"label {self.label}" if classes is None else str(classes[self.label])
        if self.present is False:
            label = f"without {label}"
        return f"{label}, {self.attribute} {self.group}" if self.attribute else label


@dataclass(frozen=True)
class GroupTable:
    """Accuracy of each (label, group), before and after edits where both are known.

    Attributes:
        rows: one for each label and group that has inputs, by attribute, label and group.
        accuracy: of all inputs (of a model that tells several labels, over inputs and labels).
        accuracy_before: the same before the edits, or None.

    Example:
        >>> shifts = ["day", "night"] * 60
        >>> before = rw.evaluate(model, (x_bad, y), groups=shifts)
        >>> after = rw.evaluate(result.model, (x_bad, y), groups=shifts, before=before)
        >>> f"{after.groups.gap_before:.2f} -> {after.groups.gap:.2f}"
        '0.33 -> 0.00'
    """

    rows: tuple[Group, ...]
    accuracy: float
    accuracy_before: float | None = None

    @property
    def worst(self) -> Group:
        """The row of the lowest accuracy; of several the one with most inputs."""
        return min(self.rows, key=lambda row: (row.accuracy, -row.samples))

    @property
    def gap(self) -> float:
        """Accuracy of all inputs minus that of the worst group."""
        return self.accuracy - self.worst.accuracy

    @property
    def worst_before(self) -> Group | None:
        """The row of the lowest accuracy before the edits; None where that is not known."""
        if self.accuracy_before is None:
            return None
        return min(self.rows, key=lambda row: (row.accuracy_before or 0.0, -row.samples))

    @property
    def gap_before(self) -> float | None:
        """The gap before the edits, to the group that was worst then; None where it is not known."""
        worst = self.worst_before
        if worst is None or worst.accuracy_before is None or self.accuracy_before is None:
            return None
        return self.accuracy_before - worst.accuracy_before

    @property
    def losers(self) -> tuple[Group, ...]:
        """The rows that lost more than a point, the greatest loss first."""
        lost = [row for row in self.rows if row.change is not None and row.change < -LOSS - 1e-12]
        return tuple(sorted(lost, key=lambda row: row.change or 0.0))

    def sentences(self, classes: Sequence[str] | None = None) -> list[str]:
        """The worst group, the gap, and every group that lost more than a point; not escaped."""
        worst, before = self.worst, self.worst_before
        what = "group" if worst.attribute else "class" if worst.present is None else "label"
        said = [f"Worst {what}: {worst.words(classes)}, {100 * worst.accuracy:.1f} %"]
        gap = f"{100 * self.gap:.1f} points below all inputs"
        if before is None or self.gap_before is None:
            said[0] += f", {gap}."
        else:
            said[0] += (
                f", {gap}; before: {before.words(classes)}, "
                f"{100 * (before.accuracy_before or 0.0):.1f} %, {100 * self.gap_before:.1f} points."
            )
            said += [
                f"Loses {-100 * (row.change or 0.0):.1f} points: {row.words(classes)} "
                f"({row.before} → {row.right} of {row.samples} right)."
                for row in self.losers[:NAMED]
            ] or [f"No {what} loses more than a point."]
            if len(self.losers) > NAMED:
                said.append(f"So do {len(self.losers) - NAMED} more, by less.")
        return said

    def cells(
        self, classes: Sequence[str] | None = None
    ) -> tuple[tuple[str, ...], list[list[str]]]:
        """Heads of the columns and texts of the rows, not escaped; at most `LISTED` rows."""
        both = self.accuracy_before is not None
        heads = (
            "label",
            "group",
            "inputs",
            *(("before", "after", "points") if both else ("accuracy",)),
        )
        shown = self.rows
        if len(shown) > LISTED:
            kept = set(sorted(shown, key=lambda row: row.accuracy)[:LISTED])
            shown = tuple(row for row in shown if row in kept)
        several = len({row.attribute for row in self.rows}) > 1
        texts = []
        for row in shown:
            label = str(row.label) if classes is None else str(classes[row.label])
            label = f"without {label}" if row.present is False else label
            group = f"{row.attribute}: {row.group}" if several else str(row.group)
            line = [label, group, str(row.samples)]
            if row.accuracy_before is not None and row.interval_before is not None:
                change = 100 * (row.change or 0.0)
                line.append(_share(row.accuracy_before, row.interval_before))
                line += [_share(row.accuracy, row.interval), _points(change)]
            else:
                line.append(_share(row.accuracy, row.interval))
            texts.append(line)
        return heads, texts

    def _rest(self) -> list[str]:
        if len(self.rows) <= LISTED:
            return []
        return [f"The {LISTED} of {len(self.rows)} groups of the lowest accuracy are listed."]

    def __str__(self) -> str:
        heads, texts = self.cells()
        lines = [list(heads), *texts]
        widths = [max(len(line[at]) for line in lines) for at in range(len(heads))]
        rows = [
            "  ".join(
                text.ljust(width) if at < 2 else text.rjust(width)
                for at, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([*rows, *self._rest(), *self.sentences()])

    def _repr_html_(self) -> str:
        heads, texts = self.cells()
        worst = "".join(f"<p>{escape(text)}</p>" for text in (*self._rest(), *self.sentences()))
        return html_table([[escape(t) for t in line] for line in texts], heads, "llrrrr") + worst

    def to_frame(self) -> Any:
        """A row for each label and group, as a pandas ``DataFrame`` (needs pandas)."""
        names = ("attribute", "label", "group", "samples", "right", "accuracy", "interval",
                 "before", "accuracy_before", "interval_before", "change", "present")  # fmt: skip
        return frame([{name: getattr(row, name) for name in names} for row in self.rows], names)

    def against(self, before: GroupTable) -> GroupTable:
        """The same table with what another model got right on the same inputs beside it.

        Raises:
            ValueError: ``before`` has other groups, or other inputs in them.
        """
        known = {(r.attribute, r.label, r.present, r.group): r for r in before.rows}
        rows = []
        for row in self.rows:
            old = known.get((row.attribute, row.label, row.present, row.group))
            if old is None or old.samples != row.samples or len(known) != len(self.rows):
                raise ValueError(
                    "before: its groups are not those of these inputs; want a report on the same "
                    "inputs with the same groups"
                )
            rows.append(replace(row, before=old.right))
        return GroupTable(tuple(rows), self.accuracy, before.accuracy)


def _points(change: float) -> str:
    """A change with its sign, and none for nothing."""
    return f"{change:+.1f}".replace("-", "−") if abs(change) >= 0.05 else "0.0"


def _share(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def check_groups(groups: object, count: int | None) -> dict[str, list[Hashable]] | None:
    """The metadata by attribute: a value for each of ``count`` inputs (None: not known yet).

    Raises:
        TypeError: not a sequence of hashable values, nor a dict or frame of such.
        ValueError: another number of values, none, or NaN among them.
    """
    if groups is None:
        return None
    if isinstance(groups, Mapping) or hasattr(groups, "columns"):
        named: dict[object, object] = dict(groups.items())  # type: ignore[attr-defined]
        if not named:
            raise ValueError("groups: got no attribute, want at least one")
        return {str(k): _values(f"groups[{k!r}]", v, count) for k, v in named.items()}
    return {"group": _values("groups", groups, count)}


def _values(argument: str, values: object, count: int | None) -> list[Hashable]:
    want = "a value for each input: a list, a tensor, an array or a Series"
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise ValueError(f"{argument}: got shape {tuple(shape)}, want {want}")
    if shape is not None and hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{argument}: got {type(values).__name__}, want {want}")
    if not values or (count is not None and len(values) != count):
        wanted = "a value for each input" if count is None else f"{count}, one for each clean input"
        raise ValueError(f"{argument}: got {len(values)} values, want {wanted}")
    for number, value in enumerate(values):
        if isinstance(value, Tensor) or not isinstance(value, Hashable):
            raise TypeError(
                f"{argument}: got {type(value).__name__} at {number}, want hashable values"
            )
        if _missing(value):
            raise ValueError(f"{argument}: got {value} at {number}, want a group for each input")
    return list(values)


def _missing(value: object) -> bool:
    """NaN and what pandas has for it, none of which equals itself."""
    try:
        return bool(value != value)  # noqa: PLR0124
    except TypeError:  # pandas' NA has no truth
        return True


def group_table(
    right: Tensor, truth: Tensor, groups: Mapping[str, Sequence[Hashable]], confidence: float
) -> GroupTable:
    """Count what is right in each (label, group).

    Args:
        right: whether each prediction is right, ``N`` (or ``N × L``).
        truth: true labels of the same shape.
        groups: for each attribute ``N`` values.
        confidence: level of the intervals.
    """
    hits, rows = right.bool(), []
    for attribute, values in groups.items():
        kinds = sorted(dict.fromkeys(values), key=_order)
        places = {kind: place for place, kind in enumerate(kinds)}
        place = torch.tensor([places[value] for value in values])
        for label, present, has in _labels(truth):
            good = hits if hits.ndim == 1 else hits[:, label]
            totals = place[has].bincount(minlength=len(kinds)).tolist()
            found = place[has & good].bincount(minlength=len(kinds)).tolist()
            rows += [
                Group(attribute, label, kind, total, some, None, present, confidence)
                for kind, total, some in zip(kinds, totals, found, strict=True)
                if total
            ]
    return GroupTable(tuple(rows), float(hits.double().mean()))


def _labels(truth: Tensor) -> Iterable[tuple[int, bool | None, Tensor]]:
    """Each label, whether it is present (None for classes), and the rows that this is true of."""
    if truth.ndim == 1:
        for label in truth.unique().tolist():
            yield label, None, truth == label
        return
    for label in range(truth.shape[1]):
        for present in (True, False):
            yield label, present, truth[:, label].bool() == present


def _order(value: Hashable) -> tuple[int, float, str]:
    """Numbers by size, then everything else by its text."""
    number = isinstance(value, int | float)
    return (0, float(value), "") if number else (1, 0.0, str(value))  # type: ignore[arg-type]
