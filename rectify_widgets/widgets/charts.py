"""Charts as plain plotly dictionaries, and still pictures of the same dictionaries.

Pure functions, but for `ChartView`.  A chart is described once.  In a live notebook plotly draws
it, with exact values under the pointer; `picture` draws the same description with matplotlib, for
snapshots, exported pages, and front ends that have no plotly renderer.

Ink is a grey that reads on white and on black, and backgrounds are transparent, so that a chart
follows the theme of the page without being told.
"""

from __future__ import annotations

import io
import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from html import escape
from typing import Any

import ipywidgets as ipw
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from rectify_widgets.widgets import render

INK = "#808488"
GRID = "rgba(128, 132, 136, 0.25)"
EMPTY = "rgba(128, 132, 136, 0.1)"
SIZE = 11
"""Text, in CSS pixels."""

LINES = {
    "blue": {"color": render.AGAINST, "dash": "solid", "symbol": "circle"},
    "orange": {"color": render.FOR, "dash": "dash", "symbol": "square"},
    "grey": {"color": INK, "dash": "dot", "symbol": "diamond"},
}
"""Looks of lines and bars: each differs from the others in colour, in dash and in marker."""

CELLS = ((0.0, render.AGAINST), (0.5, "#e8eaec"), (1.0, render.FOR))
"""Colours of a table of signed numbers; opaque, so that its numbers read on every page."""

STRONG = 0.55
"""Cells beyond this share of the greatest number have white ink, the others dark ink."""

MANY = 6
"""Columns of a table beyond which their names stand aslant."""

HERE = "here"
"""Name of the line that shows where we are."""

KEPT = 32
"""Still pictures that are kept: drawing one takes a tenth of a second."""

_DASHES = {"solid": "-", "dash": "--", "dot": ":"}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D"}


@dataclass(frozen=True)
class Chart:
    """A chart and what it says.

    Attributes:
        figure: a plotly figure, ``{"data": [...], "layout": {...}}``.
        alt: what a reader of the picture learns from it, in words.
    """

    figure: Mapping[str, Any]
    alt: str

    @property
    def height(self) -> int:
        """Height in CSS pixels."""
        return int(self.figure["layout"]["height"])


@dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Attributes:
        name: in the legend.
        x, y: its points; None or NaN leaves a gap.
        look: one of `LINES`.
        unit: of ``y`` where the pointer is.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    look: str = "blue"
    unit: str = ""


def lines(
    curves: Sequence[Line],
    alt: str,
    *,
    levels: Mapping[str, float] | None = None,
    here: float | None = None,
    x_title: str = "",
    y_title: str = "",
    x_names: Sequence[str] | None = None,
    height: int = 210,
) -> Chart:
    """Curves over common places.

    Args:
        curves: what to draw.
        alt: what the chart says, in words.
        levels: horizontal lines by name, such as a budget.
        here: place of a vertical line.
        x_title, y_title: of the axes, with units.
        x_names: names of the places 0, 1, 2 …
        height: in CSS pixels.
    """
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": curve.name,
            "x": list(curve.x),
            "y": [None if y is None or not math.isfinite(y) else float(y) for y in curve.y],
            "line": {"color": LINES[curve.look]["color"], "dash": LINES[curve.look]["dash"]},
            "marker": {"symbol": LINES[curve.look]["symbol"], "size": 8},
            "hovertemplate": f"{curve.name}: %{{y:.2f}}{curve.unit}<extra></extra>",
        }
        for curve in curves
    ]
    shapes = [
        _line({"xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level}, "dot")
        for level in (levels or {}).values()
    ]
    notes = [
        {
            "xref": "paper", "x": 0, "xanchor": "left", "y": level, "yanchor": "bottom",
            "text": name, "showarrow": False, "font": {"size": SIZE - 1, "color": INK},
        }
        for name, level in (levels or {}).items()
    ]  # fmt: skip
    if here is not None:
        place = {"yref": "paper", "y0": 0, "y1": 1, "x0": here, "x1": here}
        shapes.append(_line(place, "solid") | {"name": HERE})
    axis = {"title": {"text": x_title}, **_AXIS}
    if x_names is not None:
        axis |= {"tickvals": list(range(len(x_names))), "ticktext": list(x_names)}
    layout = _layout(height) | {
        "xaxis": axis | {"showgrid": False},
        "yaxis": {"title": {"text": y_title}, "rangemode": "tozero", **_AXIS},
        "shapes": shapes,
        "annotations": notes,
        "showlegend": len(curves) > 1,
        "hovermode": "x unified",
    }
    return Chart({"data": data, "layout": layout}, alt)


def heatmap(
    values: Sequence[Sequence[float]],
    alt: str,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    row_title: str = "",
    column_title: str = "",
    height: int = 320,
) -> Chart:
    """A table of signed numbers with colours: blue below zero, orange above, pale at zero.

    Args:
        values: one list a row, top row first.
        alt: what the chart says, in words.
        rows, columns: their names.
        texts: what stands in each cell, so that no number has to be read from a colour; where
            nothing does, the cell is left empty.
        row_title, column_title: of the axes.
        height: in CSS pixels.
    """
    extent = max((abs(value) for row in values for value in row), default=0.0) or 1.0
    data = [
        {
            "type": "heatmap",
            "z": [
                [float(value) if text else None for value, text in zip(row, told, strict=True)]
                for row, told in zip(values, texts, strict=True)
            ],
            "hoverongaps": False,
            "x": list(range(len(columns))),
            "y": list(range(len(rows))),
            "zmin": -extent,
            "zmax": extent,
            "colorscale": [list(stop) for stop in CELLS],
            "showscale": False,
            "xgap": 1,
            "ygap": 1,
            "text": [list(row) for row in texts],
            "customdata": [[[row, column] for column in columns] for row in rows],
            "hovertemplate": "%{customdata[0]} → %{customdata[1]}: %{text}<extra></extra>",
        }
    ]
    notes = [
        {
            "x": column, "y": row, "text": texts[row][column], "showarrow": False,
            "font": {"size": SIZE, "color": "#fff" if abs(value) > STRONG * extent else "#333"},
        }
        for row, cells in enumerate(values)
        for column, value in enumerate(cells)
        if texts[row][column]
    ]  # fmt: skip
    layout = _layout(height) | {
        "plot_bgcolor": EMPTY,
        "xaxis": {
            "title": {"text": column_title}, **_AXIS, "showgrid": False,
            "range": [-0.5, len(columns) - 0.5],
            "tickvals": list(range(len(columns))), "ticktext": list(columns), "side": "bottom",
            **({"tickangle": -40} if len(columns) > MANY else {}),
        },
        "yaxis": {
            "title": {"text": row_title, "standoff": 14}, **_AXIS, "showgrid": False,
            "range": [len(rows) - 0.5, -0.5],
            "tickvals": list(range(len(rows))), "ticktext": list(rows),
        },
        "annotations": notes,
    }  # fmt: skip
    return Chart({"data": data, "layout": layout}, alt)


_AXIS = {
    "color": INK,
    "gridcolor": GRID,
    "zeroline": False,
    "automargin": True,
    "tickfont": {"size": SIZE},
}


def _line(place: Mapping[str, Any], dash: str) -> dict[str, Any]:
    return {"type": "line", **place, "line": {"color": INK, "width": 1, "dash": dash}}


def _layout(height: int) -> dict[str, Any]:
    return {
        "height": height,
        "autosize": True,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": SIZE, "color": INK, "family": "system-ui, sans-serif"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hoverlabel": {"font": {"size": SIZE}},
    }


# --- the same, still -----------------------------------------------------------------------------


def picture(chart: Chart, *, width: int = 520) -> str:
    """``<img>`` of a chart, ``width`` CSS pixels wide, drawn at twice the resolution."""
    return _still(json.dumps(chart.figure), chart.alt, width)


@lru_cache(KEPT)
def _still(description: str, alt: str, width: int) -> str:
    chart = Chart(json.loads(description), alt)
    density = 96
    figure = Figure(
        figsize=(width / density, chart.height / density), dpi=2 * density, layout="constrained"
    )
    axes = figure.subplots()
    layout = chart.figure["layout"]
    for trace in chart.figure["data"]:
        _DRAW[trace["type"]](axes, trace)
    for shape in layout.get("shapes", ()):
        _draw_shape(axes, shape)
    for note in layout.get("annotations", ()):
        _draw_note(axes, note)
    if layout.get("showlegend"):
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8,
            labelcolor=INK, borderaxespad=0,
        )  # fmt: skip
    _draw_axes(axes, layout)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    small = io.BytesIO()
    Image.open(buffer).quantize(64, method=Image.Quantize.FASTOCTREE).save(small, format="PNG")
    data = b64encode(small.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(chart.alt)}" width="{width}" '
        f'height="{chart.height}">'
    )


def _draw_axes(axes: Any, layout: Mapping[str, Any]) -> None:
    for side, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        wanted = layout[f"{side}axis"]
        axis.set_label_text(wanted["title"]["text"], color=INK, fontsize=8)
        if "tickvals" in wanted:
            axis.set_ticks(wanted["tickvals"], wanted["ticktext"])
        axis.set_tick_params(colors=INK, labelsize=8, length=0)
        if wanted.get("showgrid", True):
            axis.grid(visible=True, color=INK, alpha=0.25, linewidth=0.6)
    if layout["yaxis"].get("rangemode") == "tozero":
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.spines[:].set_visible(False)


def _draw_shape(axes: Any, shape: Mapping[str, Any]) -> None:
    style = {"color": INK, "linewidth": 0.8, "linestyle": _DASHES[shape["line"]["dash"]]}
    if shape.get("xref") == "paper":
        axes.axhline(shape["y0"], **style)
    else:
        axes.axvline(shape["x0"], **style)


def _draw_note(axes: Any, note: Mapping[str, Any]) -> None:
    """A name over the left end of a level, or the number of a cell."""
    style = {"color": note["font"]["color"], "fontsize": 7}
    if note.get("xref") == "paper":
        axes.annotate(
            note["text"], (0, note["y"]), (2, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="left", va="bottom", **style,
        )  # fmt: skip
    else:
        axes.text(note["x"], note["y"], note["text"], ha="center", va="center", **style)


def _draw_scatter(axes: Any, trace: Mapping[str, Any]) -> None:
    axes.plot(
        trace["x"],
        [math.nan if y is None else y for y in trace["y"]],
        label=trace["name"],
        color=trace["line"]["color"],
        linestyle=_DASHES[trace["line"]["dash"]],
        marker=_MARKERS[trace["marker"]["symbol"]],
        markersize=4.5,
        linewidth=1.6,
    )


def _draw_heatmap(axes: Any, trace: Mapping[str, Any]) -> None:
    palette = LinearSegmentedColormap.from_list("signed", [colour for _, colour in CELLS])
    cells = np.array(trace["z"], dtype=float)  # gaps become NaN, which are not drawn
    places = np.arange(cells.shape[1] + 1) - 0.5, np.arange(cells.shape[0] + 1) - 0.5
    axes.add_patch(
        Rectangle((-0.5, -0.5), cells.shape[1], cells.shape[0], color=INK, alpha=0.1, linewidth=0)
    )
    axes.pcolormesh(*places, cells, cmap=palette, vmin=trace["zmin"], vmax=trace["zmax"])
    axes.invert_yaxis()
    axes.tick_params(axis="x", rotation=40 if len(trace["x"]) > MANY else 0)


_DRAW = {"scatter": _draw_scatter, "heatmap": _draw_heatmap}


# --- on the page ---------------------------------------------------------------------------------


def _everywhere(chart: Chart) -> Chart:
    """The chart without the line that shows where we are: it moves, and drawing is slow."""
    layout = chart.figure["layout"]
    shapes = [shape for shape in layout.get("shapes", ()) if shape.get("name") != HERE]
    return replace(chart, figure={**chart.figure, "layout": {**layout, "shapes": shapes}})


def fallback(chart: Chart) -> str:
    """The still picture behind a live chart; a worker may draw it ahead, since it is kept."""
    return picture(_everywhere(chart))


class ChartView(ipw.Output):
    """A place for a chart: plotly's where the front end can draw it, else the still picture."""

    def __init__(self, *, height: int = 210) -> None:
        super().__init__(layout=ipw.Layout(width="100%", min_height=f"{height}px"))
        self.add_class("rw-chart")

    def show(self, chart: Chart | None) -> None:
        """Show a chart, or nothing."""
        if chart is None:
            self.outputs: tuple[object, ...] = ()
            return
        self.layout.min_height = f"{chart.height}px"
        data = {
            "application/vnd.plotly.v1+json": {
                **chart.figure,
                "config": {"displayModeBar": False, "responsive": True},
            },
            "text/html": fallback(chart),
            "text/plain": chart.alt,
        }
        self.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)
