"""Layers to HTML: one scrollable table of bars or numbers, live and as a static view.  Pure.

Imports the data, `markup`, `render` and the handles of `view`.  Everything that comes from outside
is escaped.  Without a style sheet the table reads too: numbers stand in cells, bars are pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.editability.data import Entry, Knowledge, Scores
from rectify_widgets.widgets.view import to_do, to_set

NAME = 34
"""Longest name that is shown whole, in characters; the tooltip has all of it."""

MEASURED = "Share of the gap that the edit of the layer closed"
EDIT = "Direction and ridge of the layer's best edit"
ERROR = "How far attributions are from adding up to the gap; large beside a shortcut"


@dataclass(frozen=True)
class Column:
    """A column of the table: its head, and what it says of an entry, both as HTML."""

    head: str
    show: Callable[[Entry], str]
    look: str = ""
    about: str = ""


def layer_table(entries: Sequence[Entry], known: Knowledge, view: str) -> str:
    """The entries as rows to choose from; a group folds and unfolds."""
    columns = _columns(known, view)
    head = "<th>Layer</th><th></th>" + "".join(
        f'<th class="{column.look}" title="{escape(column.about)}">{column.head}</th>'
        for column in columns
    )
    body = "".join(_line(entry, known, columns) for entry in entries)
    return (
        '<div class="rw-lay-list" data-list data-key="layers">'
        f"{markup.table('rw-lay', head, body)}</div>"
        f'<div class="rw-soft rw-lay-legend">{" · ".join(legend(known, view))}</div>'
    )


def folding() -> str:
    """What folds or unfolds the whole tree; of no use in a static view."""
    links = "".join(
        f'<a class="rw-link"{to_do(method, key=text.lower())}>{text}</a>'
        for method, text in (("fold_all", "Fold all"), ("unfold_all", "Unfold all"))
    )
    return f"<div data-only-live>{links}</div>"


def legend(known: Knowledge, view: str) -> list[str]:
    """What signs and bars mean, a few words each."""
    words = ["★ scores best" if known.scores else "Not scored yet", "● edited"]
    if view == "table":
        return words
    if known.measured:
        words.append("❙ measured after the edit")
    shares = [scores for scores in known.scores if scores.is_share]
    if shares:
        full = max(scores.limits(known.measured.values())[1] for scores in shares)
        words.append(f"full bar: {markup.percent(full).replace('.0 ', ' ')} of the gap")
    if len(shares) < len(known.scores):
        words.append("projection, which has no unit: its greatest score")
    lows = [(scores, scores.limits(known.measured.values())[0]) for scores in known.scores]
    if any(value < low for scores, low in lows for value in scores.values.values()):
        words.append("◂ bar cut off")
    if view == "tree" and known.scores:
        words.append("hollow bar: the best inside a group")
    return words


def _line(entry: Entry, known: Knowledge, columns: Sequence[Column]) -> str:
    """One row of the table."""
    name = f"<code>{escape(markup.shorten(entry.label, NAME - 2 * entry.depth))}</code>"
    about, look, handle = escape(known.describe(entry)), "", ""
    if entry.is_group:
        fold, count = "▸" if entry.folded else "▾", len(entry.inside) or entry.refused
        name = f"{fold} {name} ({count})"
        handle = to_do("fold", entry.name, key=f"group {entry.name}")
    elif entry.is_layer:
        handle = to_set(key=entry.name, layer=entry.name)
    label = f"<td>{'&nbsp;' * 4 * entry.depth}{name}</td>"
    if entry.reason or not (entry.is_layer or entry.inside):
        why = f"not editable: {entry.reason}" if entry.reason else "no layer that can be edited"
        look = ' class="rw-off"'
        cells = f'<td></td><td colspan="{len(columns)}">{escape(why)}</td>'
    else:
        cells = f"<td>{known.signs(entry)}</td>" + "".join(
            f'<td class="{column.look}">{column.show(entry)}</td>' for column in columns
        )
    return f'<tr{look}{handle} title="{about}">{label}{cells}</tr>'


def _columns(known: Knowledge, view: str) -> list[Column]:
    numbers = view == "table"
    scores = [_score_column(one, known, place, numbers) for place, one in enumerate(known.scores)]
    if known.measured:  # beside the method in front, which is the first
        head = "Measured" + _soft("after the edit")
        scores.insert(1, Column(head, known.measured_of, "rw-right", MEASURED))
    kind = Column("Kind", lambda entry: escape(_kind(entry, known)), "rw-lay-wide", "What it is")
    if not numbers:
        return [kind, *scores]
    ranks = {name: str(place) for place, name in enumerate(known.ranking, start=1)}

    def choice(place: int) -> Callable[[Entry], str]:
        return lambda entry: escape(f"{known.choices.get(entry.name, ('', ''))[place]}")

    def error(entry: Entry) -> str:
        share = known.completeness.get(entry.name)
        return "" if share is None else f"{100.0 * share:.0f} %"

    rank = "Rank by the method in front"
    return [
        Column("Rank", lambda entry: ranks.get(entry.name, "–"), "rw-right", rank),
        kind,
        *scores,
        Column("Direction", choice(0), "rw-lay-wide", EDIT),
        Column("Ridge", choice(1), "rw-lay-wide rw-right", EDIT),
        Column("Completeness" + _soft("relative error"), error, "rw-lay-wide rw-right", ERROR),
    ]


def _kind(entry: Entry, known: Knowledge) -> str:
    if entry.is_group:
        return markup.some(len(entry.inside), "layer")
    return known.kinds.get(entry.name, "")


def _soft(text: str) -> str:
    return f'<br><span class="rw-soft">{escape(text)}</span>'


def _score_column(scores: Scores, known: Knowledge, place: int, numbers: bool) -> Column:
    """The scores of one method, with bars or as numbers alone."""
    method = RANKING_METHODS[scores.method]
    unit = method.short_unit if numbers or place > 0 else method.unit
    if scores.note and len({other.note for other in known.scores}) > 1:
        unit += f", {scores.note}"
    about = f"{scores.method}: {method.unit}" + f", {scores.note}" * bool(scores.note)
    head = scores.method + _soft(unit)
    look = "rw-lay-minor" if place else "rw-lay-front"
    if numbers:
        return Column(head, lambda entry: scores.text(scores.of(entry)), f"{look} rw-right", about)

    least, _ = scores.limits(known.measured.values())

    def show(entry: Entry) -> str:
        score = scores.of(entry)
        cut = "◂ " if score is not None and score < least else ""
        return (
            f'<span class="rw-lay-score">{_bar(entry, scores, known)} '
            f"<span>{cut}{scores.text(score)}</span></span>"
        )

    return Column(head, show, f"{look} rw-lay-bars", about)


def _bar(entry: Entry, scores: Scores, known: Knowledge) -> str:
    """A score as a bar from zero, with a tick where the share was measured; 0 to 100 % wide."""
    low, high = scores.limits(known.measured.values())
    score, span, marks = scores.of(entry), high - low, ""

    def percent(value: float) -> str:
        return f"{100.0 * value / span:.1f}%"

    if low < 0.0:
        marks = f'<rect x="{percent(-low)}" width="1" height="12" fill="{render.INK}"/>'
    if score is not None:
        start, stop = sorted((0.0, max(score, low)))
        colour = render.FOR if entry.is_layer and known.signs(entry) else render.AGAINST
        hollow = f'fill="none" stroke="{colour}" stroke-width="1.5"'
        fill = hollow if entry.is_group else f'fill="{colour}"'
        marks += (
            f'<rect x="{percent(start - low)}" y="2" width="{percent(stop - start)}" height="8" '
            f"{fill}/>"
        )
    measured = known.measured.get(entry.name) if entry.is_layer else None
    if measured is not None and scores.is_share:
        marks += f'<rect x="{percent(max(measured, low) - low)}" width="4" height="12" fill="#111" stroke="#fff"/>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'width="96" height="12" aria-label="">{marks}</svg>'
    )
