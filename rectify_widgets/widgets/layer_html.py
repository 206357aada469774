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
from rectify_widgets.widgets.layer_facts import UNITS, Column, Facts, share_text
from rectify_widgets.widgets.layer_rows import NAME_WIDTH, Row

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
    tiny = "minmax(70px, 1fr)" + " 6em" * bool(view == "table" and facts.measured and facts.columns)
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


def _bars_head(facts: Facts) -> tuple[str, str, str]:
    """Heads of the columns, and their widths in wide and in narrow places."""
    heads, wide, narrow = "", [], []
    for place, column in enumerate(facts.columns):
        look = "rw-lay-front" if column.front else "rw-lay-minor"
        heads += _method_head(column, facts, brief=not column.front, look=look)
        wide.append("minmax(100px, 1.6fr)" if column.front else "minmax(100px, 1fr)")
        narrow.append("minmax(88px, 1fr)" if column.front else "7.2em")
        if facts.measured and place == 0:
            heads += _head("Measured", "after the edit", MEASURED, "rw-right rw-lay-after")
            wide.append("6.8em")
            narrow.append("6em")
    if not facts.columns:
        why = "Locate scores the layers"
        return _head("Not scored yet", "", why), "1fr 6.8em", "1fr 6em"
    return heads, " ".join(wide), " ".join(narrow)


def _bars(row: Row, facts: Facts) -> str:
    """A bar with its number for each method, and the measured share."""
    shown, colour = facts.shown(row), "var(--rw-blue)"
    if row.is_layer and facts.signs(row):
        colour = "var(--rw-orange)"
    text = "" if shown is None else share_text(shown)
    measured = f'<span class="rw-right rw-lay-after">{text}</span>' if facts.measured else ""
    if not facts.columns:
        return f"<span></span>{measured}"
    cells = ""
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
        look = "rw-lay-front" if column.front else "rw-lay-minor"
        cells += (
            f'<span class="rw-lay-cell {look}"><span class="rw-lay-bar">{marks}</span>'
            f'<span class="rw-lay-num">{column.text(score)}</span></span>'
        )
        cells += measured if place == 0 else ""
    return cells


def _table_head(facts: Facts) -> tuple[str, str, str]:
    """Heads of the columns, and their widths in wide and in narrow places."""
    heads = _head("Rank", "", "Rank by the method in front", "rw-right rw-lay-rank")
    heads += _head("Kind", "", "What the layer is", "rw-lay-wide")
    wide, narrow = ["3em", "9em"], ["3em"]
    for place, column in enumerate(facts.columns):
        look = f"{'rw-lay-front' if column.front else 'rw-lay-minor'} rw-right"
        heads += _method_head(column, facts, brief=True, look=look)
        wide.append("9.4em")
        narrow.append("7.6em")
        if facts.measured and place == 0:
            heads += _head("Measured", "after the edit", MEASURED, "rw-right")
            wide.append("6.8em")
            narrow.append("6.4em")
    why = "Direction and ridge of the layer's best edit"
    heads += _head("Direction", "", why, "rw-lay-wide") + _head(
        "Ridge", "", why, "rw-lay-wide rw-right"
    )
    why = "How far attributions are from adding up to the gap; large beside a shortcut"
    heads += _head("Completeness", "relative error", why, "rw-lay-wide rw-right")
    wide += ["5.4em", "4em", "7.6em"]
    return heads, " ".join(wide), " ".join(narrow)


def _numbers(row: Row, facts: Facts) -> str:
    """All numbers of a layer."""
    name, front = row.name, facts.front
    rank = list(front.scores).index(name) + 1 if front and name in front.scores else "–"
    cells = [(str(rank), "rw-right rw-lay-rank"), (facts.kinds.get(name, ""), "rw-lay-wide")]
    for place, column in enumerate(facts.columns):
        look = "rw-lay-front" if column.front else "rw-lay-minor"
        cells.append((column.text(column.score(row)), f"{look} rw-right"))
        if facts.measured and place == 0:
            shown = facts.shown(row)
            cells.append(("" if shown is None else share_text(shown), "rw-right"))
    direction, ridge = facts.choices.get(name, ("", None))
    cells.append((direction, "rw-lay-wide"))
    cells.append(("" if ridge is None else f"{ridge:g}", "rw-lay-wide rw-right"))
    error = facts.completeness.get(name)
    error_text = "" if error is None else f"{100.0 * error:.0f} %"
    cells.append((error_text, "rw-lay-wide rw-right"))
    return "".join(f'<span class="{look}">{escape(text)}</span>' for text, look in cells)


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
    heads = ["Layer", "", "Kind"]
    for column in facts.columns:
        note = f", {column.note}" if len({c.note for c in facts.columns}) > 1 else ""
        heads.append(f"{column.method}<br>{UNITS[column.method][0]}{escape(note)}")
    if facts.measured:
        heads.insert(4, "Measured<br>after the edit")
    body = "".join(_static_row(row, facts, len(heads)) for row in rows[:STATIC_ROWS])
    more = len(rows) - STATIC_ROWS
    tail = f'<p class="rw-soft">and {more} more</p>' if more > 0 else ""
    head = "".join(f"<th>{words}</th>" for words in heads)
    return (
        f'<table class="rw-table rw-lay-static"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>{tail}"
    )


def _static_row(row: Row, facts: Facts, columns: int) -> str:
    label = (
        f"<td>{'&nbsp;' * 4 * row.depth}<code>{escape(row.text(STATIC_NAME).strip())}</code></td>"
    )
    if why := _why(row):
        cell = f'<td colspan="{columns - 1}">{escape(why)}</td>'
        return f'<tr class="rw-off">{label}{cell}</tr>'
    signs = facts.signs(row).replace("★", "★ best ").replace("●", "● edited").strip()
    kind = facts.kinds.get(row.name, "") if row.is_layer else markup.some(len(row.inside), "layer")
    cells = f"<td>{signs}</td><td>{escape(kind)}</td>"
    shown = facts.shown(row)
    for place, column in enumerate(facts.columns):
        score, high = column.score(row), column.limits()[1]
        colour = render.FOR if signs and row.is_layer else render.AGAINST
        bar = render.bar_tag(max(score or 0.0, 0.0) / high, width=TRACK, colour=colour)
        cells += f'<td style="white-space:nowrap">{bar} {column.text(score)}</td>'
        if facts.measured and place == 0:
            cells += f"<td>{'' if shown is None else share_text(shown)}</td>"
    look = ' class="rw-pick"' if "★" in signs else ""
    return f"<tr{look}>{label}{cells}</tr>"
