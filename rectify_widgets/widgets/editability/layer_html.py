"""Layers to HTML: the bars and numbers over the list, the strip below it, the static table.  Pure.

Imports the rows, the facts, `markup` and `render`.  Everything that comes from outside is escaped.
The live views are drawn over a column of buttons (see `layer_list`), which carry the names and, as
tooltips, all that is drawn; the static table stands on its own and reads without a style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.editability.layer_facts import UNITS, Column, Facts, share_text
from rectify_widgets.widgets.editability.layer_rows import NAME_WIDTH, Row

STATIC_NAME = 40
"""Longest name in a static table, in characters."""

TRACK = 72
"""Length of a full bar of the static table in CSS pixels."""

STATIC_ROWS = 200
"""Most rows of a static table; a line below it counts the others."""

STRIP = 300
"""Most bars of the strip; of a deeper network each stands for the best of several layers."""

MEASURED = "Share of the gap that the edit of the layer was seen to close"
SIGNS = "2.3em"


def overlay(rows: Sequence[Row], facts: Facts, view: str, width: int = NAME_WIDTH) -> str:
    """Head and rows of a live view, without the names, which the buttons below it say."""
    names = f"{1 + max((len(row.text(width)) for row in rows), default=6)}ch"
    head, wide, narrow = _table_head(facts) if view == "table" else _bars_head(facts)
    tiny = "minmax(70px, 1fr)"
    if view == "table":
        tiny = " ".join(_beside(["5.8em"] * len(facts.columns), "5.6em", facts))
    widths = {"wide": wide, "narrow": narrow, "tiny": tiny}
    style = ";".join(f"--rw-{place}:{names} {SIGNS} {sizes}" for place, sizes in widths.items())
    body = ""
    for row in rows:
        if why := _why(row):
            cells = f'<span class="rw-lay-why">{escape(why)}</span>'
        else:
            cells = _numbers(row, facts) if view == "table" else _bars(row, facts)
        body += f'<div class="rw-lay-row"><span></span><span>{facts.signs(row)}</span>{cells}</div>'
    return (
        f'<div class="rw-lay-{view}" style="{style}" aria-hidden="true">'
        f'<div class="rw-lay-row rw-lay-head"><span>Layer</span><span></span>{head}</div>'
        f"{body}</div>"
    )


def _why(row: Row) -> str:
    """Why a row has no scores; empty where it may have some."""
    if row.is_group and not row.inside:
        return "no layer that can be edited"
    return f"not editable: {row.reason}" if row.reason else ""


def _head(words: str, below: str = "", why: str = "", look: str = "") -> str:
    soft = f"<br><i>{escape(below)}</i>" if below else ""
    return f'<span class="{look}" title="{escape(why)}">{escape(words)}{soft}</span>'


def _method_head(column: Column, facts: Facts, *, brief: bool, look: str) -> str:
    """The method's name above the unit, and the model, where that differs between columns."""
    unit = UNITS[column.method][brief]
    if len({other.note for other in facts.columns}) > 1 and column.note:
        unit += f", {column.note}"
    why = f"{column.method}: {UNITS[column.method][0]}"
    return _head(column.method, unit, f"{why}, {column.note}" if column.note else why, look)


def _beside(columns: Sequence[str], measured: str, facts: Facts) -> list[str]:
    """What was measured stands beside the method in front, which is the first column."""
    return [*columns[:1], *[measured] * bool(facts.measured), *columns[1:]]


def _look(place: int) -> str:
    return "rw-lay-minor" if place else "rw-lay-front"


def _bars_head(facts: Facts) -> tuple[str, str, str]:
    """Heads of the columns, and their widths in wide and in narrow places."""
    heads, wide, narrow = [], [], []
    for place, column in enumerate(facts.columns):
        heads.append(_method_head(column, facts, brief=place > 0, look=_look(place)))
        wide.append("minmax(100px, 1fr)" if place else "minmax(100px, 1.6fr)")
        narrow.append("5.6em" if place else "minmax(100px, 1fr)")
    if not heads:
        heads, wide = [_head("Not scored yet", "", "Locate scores the layers")], ["1fr"]
        narrow = wide
    after = _head("Measured", "after the edit", MEASURED, "rw-right rw-lay-after")
    heads = _beside(heads, after, facts)
    wide, narrow = _beside(wide, "6.8em", facts), _beside(narrow, "5.6em", facts)
    return "".join(heads), " ".join(wide), " ".join(narrow)


def _bars(row: Row, facts: Facts) -> str:
    """A bar with its number for each method, and the measured share."""
    shown, colour = facts.shown(row), "var(--rw-blue)"
    if row.is_layer and facts.signs(row):
        colour = "var(--rw-orange)"
    cells = []
    for place, column in enumerate(facts.columns):
        low, high = column.limits(facts.measured.values())
        score, span = column.score(row), high - low
        marks = f'<u style="left:{-100 * low / span:.1f}%"></u>' if low < 0.0 else ""
        if score is not None:
            start, stop = (100.0 * (end - low) / span for end in sorted((0.0, score)))
            look = ' class="rw-lay-inside"' if row.is_group else ""
            marks += (
                f'<i{look} style="left:{start:.1f}%;width:{stop - start:.1f}%;--c:{colour}"></i>'
            )
        if shown is not None and column.is_share:
            marks += f'<b style="left:{100.0 * (shown - low) / span:.1f}%"></b>'
        cells.append(
            f'<span class="rw-lay-cell {_look(place)}"><span class="rw-lay-bar">{marks}</span>'
            f'<span class="rw-lay-num">{column.text(score)}</span></span>'
        )
    text = "" if shown is None else share_text(shown)
    after = f'<span class="rw-right rw-lay-after">{text}</span>'
    return "".join(_beside(cells or ["<span></span>"], after, facts))


def _table_head(facts: Facts) -> tuple[str, str, str]:
    """Heads of the columns, and their widths in wide and in narrow places."""
    columns = list(enumerate(facts.columns))
    heads = _beside(
        [
            _method_head(c, facts, brief=True, look=f"{_look(place)} rw-right")
            for place, c in columns
        ],
        _head("Measured", "after the edit", MEASURED, "rw-right"),
        facts,
    )
    edit = "Direction and ridge of the layer's best edit"
    error = "How far attributions are from adding up to the gap; large beside a shortcut"
    heads = [
        _head("Rank", "", "Rank by the method in front", "rw-right rw-lay-rank"),
        _head("Kind", "", "What the layer is", "rw-lay-wide"),
        *heads,
        _head("Direction", "", edit, "rw-lay-wide"),
        _head("Ridge", "", edit, "rw-lay-wide rw-right"),
        _head("Completeness", "relative error", error, "rw-lay-wide rw-right"),
    ]
    wide = ["3em", "9em", *_beside(["9.4em"] * len(columns), "6.8em", facts)]
    narrow = ["3em", *_beside(["7.4em"] * len(columns), "6.4em", facts)]
    return "".join(heads), " ".join([*wide, "5.4em", "4em", "7.6em"]), " ".join(narrow)


def _numbers(row: Row, facts: Facts) -> str:
    """All numbers of a layer."""
    name, front, shown = row.name, facts.front, facts.shown(row)
    rank = str(list(front.scores).index(name) + 1) if front and name in front.scores else "–"
    direction, ridge = facts.choices.get(name, ("", None))
    error = facts.completeness.get(name)

    def cell(text: str, look: str) -> str:
        return f'<span class="{look}">{escape(text)}</span>'

    scores = [
        cell(column.text(column.score(row)), f"{_look(place)} rw-right")
        for place, column in enumerate(facts.columns)
    ]
    after = cell("" if shown is None else share_text(shown), "rw-right")
    cells = [
        cell(rank, "rw-right rw-lay-rank"),
        cell(facts.kinds.get(name, ""), "rw-lay-wide"),
        *_beside(scores, after, facts),
        cell(direction, "rw-lay-wide"),
        cell("" if ridge is None else f"{ridge:g}", "rw-lay-wide rw-right"),
        cell("" if error is None else f"{100.0 * error:.0f} %", "rw-lay-wide rw-right"),
    ]
    return "".join(cells)


def strip(rows: Sequence[Row], facts: Facts, seen: range) -> str:
    """The scores of all layers side by side in one low picture; the rows in view are underlined."""
    front = facts.front
    if front is None:
        return ""
    layers = [(place, row) for place, row in enumerate(rows) if row.is_layer]
    each = max(math.ceil(len(layers) / STRIP), 1)
    low, high = front.limits()
    bars = ""
    for start in range(0, len(layers), each):
        some = layers[start : start + each]
        score = max((front.scores.get(row.name, 0.0) for _, row in some), default=0.0)
        bottom, top = (100.0 * (end - low) / (high - low) for end in sorted((0.0, score)))
        counts = any(facts.signs(row) for _, row in some)
        look = ' class="rw-lay-seen"' if any(place in seen for place, _ in some) else ""
        colour = "var(--rw-orange)" if counts else "var(--rw-blue)"
        bars += (
            f'<span{look}><i style="bottom:{bottom:.0f}%;height:{max(top - bottom, 1.0):.0f}%;'
            f'background:{colour}"></i></span>'
        )
    best = "" if facts.best is None else f"; {escape(facts.best)} scores best"
    alt = f"{front.method} of all {len(layers)} layers side by side{best}"
    return f'<div class="rw-lay-strip" role="img" aria-label="{alt}" title="{alt}">{bars}</div>'


def legend(words: Sequence[str]) -> str:
    """What signs and bars mean, in one line."""
    return f'<span class="rw-soft">{" · ".join(map(escape, words))}</span>'


def static_table(rows: Sequence[Row], facts: Facts) -> str:
    """The rows as a table with bars, all methods, what was measured and what cannot be edited."""
    notes = {column.note for column in facts.columns}
    units = [
        f"{column.method}<br>{UNITS[column.method][0]}"
        + (f", {escape(column.note)}" if len(notes) > 1 and column.note else "")
        for column in facts.columns
    ]
    heads = ["Layer", "", "Kind", *_beside(units, "Measured<br>after the edit", facts)]
    body = "".join(_static_row(row, facts, len(heads)) for row in rows[:STATIC_ROWS])
    more = len(rows) - STATIC_ROWS
    tail = f'<p class="rw-soft">and {markup.some(more, "more row")}</p>' if more > 0 else ""
    head = "".join(f"<th>{words}</th>" for words in heads)
    return (
        f'<table class="rw-table rw-lay-static"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>{tail}"
    )


def _static_row(row: Row, facts: Facts, columns: int) -> str:
    name = escape(row.text(STATIC_NAME).strip())
    label = f"<td>{'&nbsp;' * 4 * row.depth}<code>{name}</code></td>"
    if why := _why(row):
        cell = f'<td colspan="{columns - 1}">{escape(why)}</td>'
        return f'<tr class="rw-off">{label}{cell}</tr>'
    signs = facts.signs(row).replace("★", "★ best ").replace("●", "● edited").strip()
    kind = facts.kinds.get(row.name, "") if row.is_layer else markup.some(len(row.inside), "layer")
    shown = facts.shown(row)
    colour = render.FOR if signs and row.is_layer else render.AGAINST
    scores = []
    for column in facts.columns:
        score, high = column.score(row), column.limits()[1]
        bar = render.bar_tag(max(score or 0.0, 0.0) / high, width=TRACK, colour=colour)
        scores.append(f"<td>{bar} {column.text(score)}</td>")
    after = f"<td>{'' if shown is None else share_text(shown)}</td>"
    cells = "".join([f"<td>{signs}</td><td>{escape(kind)}</td>", *_beside(scores, after, facts)])
    look = ' class="rw-pick"' if "★" in signs else ""
    return f"<tr{look}>{label}{cells}</tr>"
