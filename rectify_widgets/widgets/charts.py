"""Charts as HTML, the same on a live page and in a snapshot: curves, and tables of signed numbers.

Pure functions.  Imports numpy, matplotlib's rule for round ticks, words and colours.  Curves are an
inline ``<svg>`` in a grey that reads on white and on black; `view.still` makes a picture of it.
Handles (see `view`) come as attributes: the page marks what is chosen, so that a chart is not drawn
again when something in it is picked.  Everything that comes from outside is escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeGuard

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rectify_widgets.widgets import markup
from rectify_widgets.widgets.render import AGAINST, FOR, INK, Pixels, colours

LOOKS = {
    "blue": (AGAINST, "", "m-{r},0a{r},{r} 0 1 0 {d},0a{r},{r} 0 1 0-{d},0z", 4.0),
    "grey": (INK, "2 3", "m0-{r}l{r},{r}-{r},{r}-{r}-{r}z", 5.0),
}
"""Colour, dashes, marker and its radius of a curve: each differs from the others in all of them."""

WIDTH, HEIGHT = 470, 180
LEFT, TOP, LEGEND, BOTTOM = 46, 26, 18, 36
"""Size of a chart in CSS pixels, and room beside its area, above it, for a legend, and below it."""

LETTER, LARGER, HERE = 6.2, 7.8, 14
"""Mean width of a letter, the same where a dashboard draws it larger, and width of the chosen place's mark."""

CROWDED = 0.3
"""Most of the distance between two places that the radius of a marker takes."""

STYLE = (
    f"<style>.rw-here{{fill:{FOR};fill-opacity:0}}[data-set]:hover>.rw-here{{fill-opacity:.14}}"
    "[data-chosen]>.rw-here{fill-opacity:.3}</style>"
)
"""Part of each drawing, since a picture has no other style sheet."""

NAME = 28
"""Most letters of a name beside a table; of longer ones the middle gives way."""

MANY, BRIGHT, EMPTY = 6, 140, "rgba(128,132,136,0.1)"
"""Of a table: columns beyond which their names stand upright, brightness beyond which the ink is
dark, and the colour of empty cells."""


@dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Attributes:
        name: in the legend.
        x, y: its points; None or NaN leaves a gap.
        look: one of `LOOKS`.
        unit: of ``y`` where the pointer is.
        handles: attributes of its points, for those that can be picked on their own.
    """

    name: str
    x: Sequence[int]
    y: Sequence[float | None]
    look: str = "blue"
    unit: str = ""
    handles: Sequence[str] = ()


def lines(
    curves: Sequence[Line],
    alt: str,
    *,
    x_names: Sequence[str],
    handles: Sequence[str] = (),
    levels: Mapping[str, float] | None = None,
    x_title: str = "",
    y_title: str = "",
) -> str:
    """``<svg>`` of curves over the places 0, 1, 2 …

    Args:
        curves: what to draw; the first one lies on top.
        alt: what the chart says, in words.
        x_names: names of the places; so many are written as there is room for.
        handles: attributes of the places, for those that can be picked.
        levels: horizontal lines by name, such as a budget.
        x_title, y_title: of the axes, with units.
    """
    levels = levels or {}
    numbers = [0.0, *levels.values(), *(y for curve in curves for y in curve.y if _known(y))]
    ticks = round_ticks(min(numbers), max(numbers))
    top, bottom, right = TOP + LEGEND * (len(curves) > 1), HEIGHT - BOTTOM, WIDTH - 8
    column = (right - LEFT) / max(len(x_names), 1)
    every = _round_up((LETTER * max(map(len, x_names), default=0) + 12) / column)

    def across(x: float) -> float:
        return LEFT + (x + 0.5) * column

    def down(y: float) -> float:
        return bottom - (y - ticks[0]) / (ticks[-1] - ticks[0]) * (bottom - top)

    def level(y: float, look: str) -> str:
        return f'<path d="M{LEFT},{down(y):.1f}H{right}" stroke="{INK}" {look}/>'

    def band(x: int, wide: float, look: str) -> str:
        left, tall = across(x) - wide / 2, bottom - top
        return f'<rect x="{left:.1f}" y="{top}" width="{wide:.1f}" height="{tall}" {look}/>'

    axes = [_text(y_title, 0, 12, weight=600), _text(x_title, right, HEIGHT - 4, "end")]
    for y in ticks:
        axes += level(y, 'stroke-opacity=".3"'), _text(f"{y:g}", LEFT - 8, down(y) + 4, "end")
    for x in range(0, len(x_names), every):
        axes.append(_text(x_names[x], across(x), bottom + 15, "middle"))
    for name, y in levels.items():
        below = 14 if down(y) < top + 16 else -4
        axes.append(level(y, 'stroke-width="1.5" stroke-dasharray="5 4"'))
        axes.append(_text(name, LEFT + 4, down(y) + below))
    reach, mark, places = 'fill-opacity="0"', 'class="rw-here" rx="3"', ""
    for x, name in enumerate(x_names):
        title = escape(f"{x_title} {name}: {_values(curves, x)}".strip())
        areas = f"<title>{title}</title>{band(x, column, reach)}{band(x, min(HERE, column), mark)}"
        places += f"<g{handles[x] if x < len(handles) else ''}>{areas}</g>"
    drawn = "".join(_curve(curve, across, down, CROWDED * column) for curve in reversed(curves))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'aria-label="{escape(alt)}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="{"group" if handles else "img"}" font-family="system-ui,sans-serif" '
        f'font-size="11" fill="{INK}">{STYLE}{_legend(curves) if len(curves) > 1 else ""}'
        f"{''.join(axes)}<g data-list>{places}</g>{drawn}</svg>"
    )


def round_ticks(low: float, high: float) -> list[float]:
    """A few round numbers, a round step apart, that hold ``low`` and ``high``."""
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high if high > low else low + 1.0)
    return [round(float(tick), 12) for tick in ticks]


def _round_up(number: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50 …"""
    ten = int(10 ** math.floor(math.log10(max(number, 1.0))))
    return next(ten * step for step in (1, 2, 5, 10) if ten * step >= number)


def _marker(look: str, most: float = math.inf) -> str:
    """The path of a marker around the point it starts from, with a radius of at most ``most``."""
    _, _, path, radius = LOOKS[look]
    radius = min(radius, most)
    return path.format(r=f"{radius:.3g}", d=f"{2 * radius:.3g}")


def _known(y: float | None) -> TypeGuard[float]:
    return y is not None and math.isfinite(y)


def _text(text: str, x: float, y: float, anchor: str = "start", weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'pointer-events="none" aria-hidden="true">{escape(text)}</text>'
    )


def _values(curves: Sequence[Line], place: int) -> str:
    """The numbers of all curves at a place."""
    points = [(curve, *point) for curve in curves for point in zip(curve.x, curve.y, strict=True)]
    values = (f"{c.name} {y:.2f}{c.unit}" for c, x, y in points if x == place and _known(y))
    return ", ".join(values) or "not measured"


def _legend(curves: Sequence[Line]) -> str:
    drawn, x = "", float(LEFT)
    for curve in curves:
        colour = LOOKS[curve.look][0]
        drawn += f'<path d="M{x + 5:.1f},{TOP}{_marker(curve.look)}" fill="{colour}"/>'
        drawn += _text(curve.name, x + 14, TOP + 4)
        x += LARGER * len(curve.name) + 32
    return drawn


def _curve(
    curve: Line, across: Callable[[float], float], down: Callable[[float], float], radius: float
) -> str:
    """The stretches of a curve between missing values, and its points, no larger than ``radius``."""
    colour, dash, *_ = LOOKS[curve.look]
    marker = _marker(curve.look, radius)
    points = [
        f"{across(x):.1f},{down(y):.1f}" if _known(y) else ""
        for x, y in zip(curve.x, curve.y, strict=True)
    ]
    drawn = "".join(
        f'<polyline points="{" ".join(stretch)}" fill="none" stroke="{colour}" '
        f'stroke-width="2" stroke-dasharray="{dash}" pointer-events="none"/>'
        for known, stretch in itertools.groupby(points, bool)
        if known
    )
    for x, y, point, handle in itertools.zip_longest(curve.x, curve.y, points, curve.handles):
        if point:
            dot = f'<path d="M{point}{marker}" fill="{colour}"'
            what = f"<title>{escape(f'{curve.name}, {x}: {y:.2f}{curve.unit}')}</title>"
            drawn += f"<g{handle}>{what}{dot}/></g>" if handle else f'{dot} pointer-events="none"/>'
    return drawn


def heatmap(
    values: NDArray[np.integer],
    alt: str,
    *,
    names: Sequence[str],
    handle: Callable[[int, int], str],
    row_title: str,
    column_title: str,
) -> str:
    """``<table>`` of signed numbers with colours: blue below zero, orange above, empty at zero.

    Args:
        values: ``N × N``, top row first.
        alt: what the table says, in words.
        names: of the rows, and of the columns; the titles say what they are.
        handle: gives the attributes of the cell in a row and a column.
    """
    shades = colours((values / (np.abs(values).max(initial=0) or 1)).astype(np.float32))
    upright = "writing-mode:vertical-rl;transform:rotate(180deg)" if len(names) > MANY else ""
    head = "".join(
        f'<th scope="col"><span style="{upright}"{markup.short(name, NAME)}</span></th>'
        for name in names
    )
    body = ""
    for row, name in enumerate(names):
        body += f'<tr><th scope="row"{markup.short(name, NAME)}</th>'
        for column, value in enumerate(values[row]):
            if text := signed(value):
                title = escape(f"{name} → {names[column]}: {text}")
                look = f'title="{title}" style="{_shade(shades[row, column])}"'
                body += f"<td{handle(row, column)} {look}>{text}</td>"
            else:
                body += f'<td style="background:{EMPTY}"></td>'
        body += "</tr>"
    return (
        f'<table class="rw-heat" aria-label="{escape(alt)}"><thead><tr><th></th>'
        f'<th colspan="{len(names)}">{escape(column_title)} →</th></tr>'
        f"<tr><th>{escape(row_title)} ↓</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def signed(number: int) -> str:
    """``+3``, ``−3`` with a real minus sign, and nothing for 0."""
    return f"{number:+d}".replace("-", "−") if number else ""


def _shade(colour: Pixels) -> str:
    """Style of a cell, whose ink reads on its colour."""
    red, green, blue = (int(channel) for channel in colour)
    ink = "#111" if 0.3 * red + 0.59 * green + 0.11 * blue > BRIGHT else "#fff"
    return f"background:rgb({red},{green},{blue});color:{ink}"
