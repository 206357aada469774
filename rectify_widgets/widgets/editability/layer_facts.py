"""What is known about each layer, and how it is said: scores with their units, signs, tooltips.

Imports the rows and `markup`.  Pure; nothing here is escaped, `layer_html` does that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rectify_widgets.widgets import markup
from rectify_widgets.widgets.editability.layer_rows import ROOT, Row

UNITS = {
    "edit-attribution": ("predicted share of the gap", "predicted share"),
    "projection": ("score of the paper, no unit", "no unit"),
    "trial": ("share of the gap, by trial", "share by trial"),
}
"""What the scores of each method are, and the same in two words."""

NO_UNIT = ("projection",)
"""Methods whose scores are no shares of the gap."""


@dataclass(frozen=True)
class Column:
    """The scores of one method.

    Attributes:
        method: its name.
        scores: layer name to score, best first.
        note: of which model the scores are.
        front: whether this is the method in front.
    """

    method: str
    scores: Mapping[str, float]
    note: str = ""
    front: bool = True

    @property
    def is_share(self) -> bool:
        """Whether the scores are shares of the gap, 0 to 1."""
        return self.method not in NO_UNIT

    def limits(self, measured: Iterable[float] = ()) -> tuple[float, float]:
        """Values at both ends of a bar.

        Shares reach from 0 to 1, or as far as they and what was measured go; so a short bar says
        that a layer closes little of the gap even where no other closes more.
        """
        values = [0.0, *self.scores.values()]
        if self.is_share:
            values += [1.0, *measured]
        return min(values), max(values) or 1.0

    def score(self, row: Row) -> float | None:
        """The score of a layer, or the best one inside a group."""
        if not row.is_group:
            return self.scores.get(row.name)
        return max((self.scores[n] for n in row.inside if n in self.scores), default=None)

    def text(self, score: float | None) -> str:
        """A score for people: a share in per cent, any other number to three digits."""
        if score is None:
            return "–"
        if self.is_share:
            return share_text(score)
        if 100.0 <= abs(score) < 1e6:
            return f"{float(f'{score:.3g}'):,.0f}".replace(",", " ").replace("-", "−")
        return f"{score:.3g}".replace("-", "−")


@dataclass(frozen=True)
class Facts:
    """What is known about the layers.

    Attributes:
        columns: scores, a column for each method, the one in front first.
        measured: layer name to the share of the gap that its edit was seen to close.
        edited: names of edited layers.
        kinds: what each layer is.
        choices, completeness: of the method in front, see `Localization`.
    """

    columns: Sequence[Column] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
    edited: Collection[str] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    completeness: Mapping[str, float] = field(default_factory=dict)

    @property
    def front(self) -> Column | None:
        """The column of the method in front, if that has scores."""
        return next((column for column in self.columns if column.front), None)

    @property
    def best(self) -> str | None:
        """The layer that the method in front scores best."""
        return None if self.front is None else next(iter(self.front.scores), None)

    def signs(self, row: Row) -> str:
        """★ for the best layer, ● for edited ones; a folded group has the signs of its layers."""
        inside = row.inside if row.folded else (row.name,) if row.is_layer else ()
        best, edited = self.best in inside, any(name in inside for name in self.edited)
        return ("★" if best else "") + ("●" if edited else "")

    def shown(self, row: Row) -> float | None:
        """What was measured of a layer."""
        return self.measured.get(row.name) if row.is_layer else None


def share_text(share: float) -> str:
    """A share of the gap in per cent, with a real minus sign."""
    text = markup.percent(share)
    return "0.0 %" if text == "-0.0 %" else text.replace("-", "−")


def tooltip(row: Row, facts: Facts) -> str:
    """All that is known about a row, in words."""
    name = row.name or ROOT
    if row.reason:
        return f"{name} cannot be edited: {row.reason}"
    prefix, ending = "", []
    if row.is_group:
        words = [f"{name}: {markup.some(len(row.inside), 'layer')}"]
        words += [f"{row.refused} that cannot be edited"] * bool(row.refused)
        prefix = "best inside by "
        ending = ["click to unfold" if row.folded else "click to fold"]
    else:
        kind = facts.kinds.get(row.name, "")
        words = [f"{name} ({kind})" if kind else name]
    for column in facts.columns:
        words.append(f"{prefix}{column.method} {column.text(column.score(row))}")
    shown, signs = facts.shown(row), facts.signs(row)
    words += [] if shown is None else [f"measured after the edit {share_text(shown)}"]
    words += ["best"] * ("★" in signs) + ["edited"] * ("●" in signs) + ending
    return " · ".join(words)


def legend(facts: Facts, view: str) -> list[str]:
    """What signs and bars mean, a few words each."""
    words = ["★ scores best"] * bool(facts.columns) + ["● edited"]
    if view == "table":
        return words
    if facts.measured:
        words.append("❙ measured after the edit")
    shares = [column for column in facts.columns if column.is_share]
    if shares:
        full = max(column.limits(facts.measured.values())[1] for column in shares)
        words.append(f"full bar: {share_text(full).replace('.0 ', ' ')} of the gap")
    if len(shares) < len(facts.columns):
        words.append("projection, which has no unit: its greatest score")
    if view == "tree" and facts.columns:
        words.append("hollow bar: the best inside a group")
    return words
