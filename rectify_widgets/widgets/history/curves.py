"""A chart of lines as HTML that redraws at once and fits any width.  Pure.

Imports the charts' types.  It draws the description that `charts.lines` makes, like
`charts.picture` does, for a view that changes with every step: a plotly figure takes a second to
come up again in an output, and a picture has one width.  Text and lines take the theme's colours;
the exact values are in the tooltips of the points, and in the text alternative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rectify_widgets.widgets.charts import HERE, Chart

SIDE, TOP, LEGEND, BOTTOM = 44, 24, 20, 34
"""Room around the area of the curves, in CSS pixels: left, above, for a legend, and below."""

HIGH = 25.0
"""Levels within this share of the height from the top have their name below the line."""

DASHES = {"solid": "", "dash": "6 4", "dot": "2 3"}


def drawing(chart: Chart) -> str:
    """A chart of lines over whole places 0, 1, 2 …, as wide as its surroundings."""
    layout, traces = chart.figure["layout"], chart.figure["data"]
    shapes = layout.get("shapes", ())
    levels = [shape for shape in shapes if shape.get("xref") == "paper"]
    heights = [y for trace in traces for y in trace["y"] if y is not None]
    heights += [level["y0"] for level in levels]
    ticks = nice_ticks(min([0.0, *heights]), max([0.0, *heights]))
    low, high = ticks[0], ticks[-1]
    last: float = max([0, *(x for trace in traces for x in trace["x"])])

    def across(x: float) -> float:
        return 100.0 * (x + 0.25) / (last + 0.5)

    def down(y: float) -> float:
        return 100.0 * (high - y) / (high - low)

    names = dict(zip(layout["xaxis"].get("tickvals", ()), layout["xaxis"].get("ticktext", ())))  # noqa: B905 - of one length
    places = "".join(
        f'<span class="rw-x" style="left:{across(x):.2f}%">{escape(str(name))}</span>'
        for x, name in names.items()
    )
    grid = "".join(
        f'<span class="rw-y" style="top:{down(y):.2f}%"><i>{y:g}</i></span>' for y in ticks
    )
    here = "".join(
        f'<span class="rw-here" style="left:{across(shape["x0"]):.2f}%"></span>'
        for shape in shapes
        if shape.get("name") == HERE
    )
    limits = "".join(
        f'<span class="rw-level{" rw-below" if down(shape["y0"]) < HIGH else ""}" '
        f'style="top:{down(shape["y0"]):.2f}%"><i>{escape(note["text"])}</i></span>'
        for shape, note in zip(levels, layout.get("annotations", ()))  # noqa: B905 - of one length
    )
    several = bool(layout.get("showlegend"))
    area = f"inset:{TOP + LEGEND * several}px 8px {BOTTOM}px {SIDE}px"
    curves = "".join(_curve(trace, across, down) for trace in reversed(traces))
    return (
        f'<div class="rw-curves" role="img" aria-label="{escape(chart.alt)}" '
        f'style="height:{chart.height}px"><div aria-hidden="true">'
        f'<b class="rw-y-title">{escape(layout["yaxis"]["title"]["text"])}</b>'
        f"{_legend(traces) if several else ''}"
        f'<div class="rw-area" style="{area}">{grid}{here}{limits}{curves}{places}</div>'
        f'<span class="rw-x-title">{escape(layout["xaxis"]["title"]["text"])}</span>'
        "</div></div>"
    )


def _curve(trace: Mapping[str, Any], across: Any, down: Any) -> str:
    """The stretches of a curve between missing values, and its points."""
    points = list(zip(trace["x"], trace["y"], strict=True))
    stretches = (
        " ".join(f"{across(x):.2f},{down(y):.2f}" for x, y in group)
        for known, group in itertools.groupby(points, lambda point: point[1] is not None)
        if known
    )
    colour, dash = trace["line"]["color"], DASHES[trace["line"]["dash"]]
    drawn = "".join(
        f'<polyline points="{stretch}" fill="none" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{dash}" vector-effect="non-scaling-stroke"/>'
        for stretch in stretches
    )
    dots = "".join(
        f'<span class="rw-dot rw-{trace["marker"]["symbol"]}" title="{escape(trace["name"])}, '
        f'step {x}: {y:.2f} %" style="left:{across(x):.2f}%;top:{down(y):.2f}%;'
        f'background:{colour}"></span>'
        for x, y in points
        if y is not None
    )
    return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{drawn}</svg>{dots}'


def _legend(traces: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(
        f'<span><i class="rw-dot rw-{trace["marker"]["symbol"]}" '
        f'style="background:{trace["line"]["color"]}"></i>{escape(trace["name"])}</span>'
        for trace in traces
    )
    return f'<div class="rw-curves-legend">{items}</div>'


def nice_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers a round step apart that hold ``low`` and ``high``, about ``most`` steps."""
    if high - low <= 0.0:
        high = low + 1.0
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]
