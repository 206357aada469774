"""Charts of the report as SVG: readable without colour, in both themes, and without the text around.

Imports pandas for its types.  Both axes are spaced by the square root, so that small figures can be
distinguished beside large ones; every line and point carries its method's name or mark.  Drawn by
hand, since the page is committed and opens without a network: plotly would put 4.8 MB of JavaScript
into it, and matplotlib's SVG makes it half as large again and draws it in one theme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pandas import DataFrame

WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 170, 26, 44
LINE = 14
"""Height of a label, in pixels of the drawing."""
TICKS = (100.0, 70.0, 50.0, 30.0, 20.0, 15.0, 10.0, 7.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1)
APART = 22
"""Least distance of two ticks."""


@dataclass(frozen=True)
class Axis:
    """Numbers to pixels by the signed square root."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The place of a number, in pixels of the drawing."""
        low, high = _root(self.low), _root(self.high)
        share = (_root(value) - low) / ((high - low) or 1.0)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within, far enough from each other; 0 always."""
        ticks = [0.0]
        for value in (sign * size for size in TICKS for sign in (1, -1)):
            inside = self.low <= value <= self.high
            if inside and all(abs(self(value) - self(one)) >= APART for one in ticks):
                ticks.append(value)
        return sorted(ticks)


def against_n(points: DataFrame, name: str, unit: str, before: float) -> str:
    """The headline figure over the number of pairs, a line for each method.

    Args:
        points: ``method``, ``n``, ``lost`` and ``headline``, in printed units.
        name, unit: of the headline.
        before: the headline of the unrepaired network.
    """
    counts = sorted(points["n"].unique())
    y = _height(points, before)
    step = (WIDTH - RIGHT - LEFT) / len(counts)
    x = {n: LEFT + (place + 0.5) * step for place, n in enumerate(counts)}
    parts = [_grid_y(y, f"{name}{unit}")]
    parts += [_text(x[n], HEIGHT - BOTTOM + 18, f"n = {n}", "middle") for n in counts]
    parts += [
        _line("rw-before", LEFT, y(before), WIDTH - RIGHT, y(before)),
        _text(LEFT + 4, y(before) - 5, "before", "start"),
    ]
    ends, alt = [], f"{name} after the repair by number of pairs; before {before:.2f}{unit}."
    for method, line in _own_last(points):
        kind = _kind(method)
        dots = [(x[n], y(value)) for n, value in zip(line["n"], line["headline"], strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in dots)
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        for (a, b), n, value in zip(dots, line["n"], line["headline"], strict=True):
            tip = f"{method}, n = {n}: {name} {value:.2f}{unit}"
            alt += f"  {tip}."
            parts.append(
                f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="4">'
                f"<title>{escape(tip)}</title></circle>"
            )
        ends.append((*dots[-1], method))
    return _svg([*parts, *_labels(ends)], f"{name} against n. {alt}")


def against_loss(
    points: DataFrame, marks: Mapping[str, str], name: str, unit: str, before: float
) -> str:
    """The headline figure over the loss of accuracy, a mark for each method and number of pairs."""
    low, high = min(0.0, points["lost"].min()), max(0.0, points["lost"].max())
    room = max(high - low, 0.1) * 0.05
    x, y = Axis(low - room, high + room, LEFT + 12, WIDTH - 16), _height(points, before)
    parts = [_grid_y(y, f"{name}{unit}")]
    for tick in x.ticks():
        parts.append(_line("rw-grid", x(tick), TOP, x(tick), HEIGHT - BOTTOM))
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
    label = "OA lost, points (left is better)"
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 8, label, "middle"))
    alt = f"{name} after the repair against loss of overall accuracy."
    for method, line in _own_last(points):
        for n, lost, value in zip(line["n"], line["lost"], line["headline"], strict=True):
            tip = f"{method}, n = {n}: OA lost {lost:.2f}, {name} {value:.2f}{unit}"
            alt += f"  {tip}."
            parts.append(
                f'<g class="{_kind(method)}"><title>{escape(tip)}</title>'
                f'<circle cx="{x(lost):.1f}" cy="{y(value):.1f}" r="8"/>'
                f'<text class="rw-mark" x="{x(lost):.1f}" y="{y(value) + 4:.1f}" '
                f'text-anchor="middle">{escape(marks[method])}</text></g>'
            )
    return _svg(parts, f"{name} against OA lost. {alt}")


def _height(points: DataFrame, before: float) -> Axis:
    return Axis(0.0, max(before, points["headline"].max()) or 1.0, HEIGHT - BOTTOM, TOP)


def _own_last(points: DataFrame) -> list[tuple[str, DataFrame]]:
    """The points of each method by n; our own last, above the others."""
    lines = [(str(method), line.sort_values("n")) for method, line in points.groupby("method")]
    return sorted(lines, key=lambda one: _kind(one[0]) != "rw-peer")


def _svg(parts: Sequence[str], alt: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">'
        f"{''.join(parts)}</svg>"
    )


def _grid_y(y: Axis, heading: str) -> str:
    ticks = "".join(
        _line("rw-grid", LEFT, y(tick), WIDTH - 16, y(tick))
        + _text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end")
        for tick in y.ticks()
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'{ticks}<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(heading)}</text>"
    )


def _labels(ends: Sequence[tuple[float, float, str]]) -> list[str]:
    """Names to the right of the lines, moved apart, each tied to its line's end."""
    order = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, height, _ in order:
        places.append(max(height, places[-1] + LINE) if places else height)
    bound = HEIGHT - BOTTOM + 6.0
    parts = []
    start = WIDTH - RIGHT + 24
    for (a, b, method), place in reversed(list(zip(order, places, strict=True))):
        height = min(place, bound)
        bound = height - LINE
        parts.append(_line("rw-tie", a + 5, b, start - 4, height))
        parts.append(
            f'<text class="{_kind(method)}" x="{start}" y="{height + 4:.1f}">{escape(method)}</text>'
        )
    return parts


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _kind(method: str) -> str:
    """How a method is drawn: `dynamic`, with any settings, stands out."""
    if method.startswith("dynamic"):
        return "rw-own"
    return "rw-static" if method == "static" else "rw-peer"


def _root(value: float) -> float:
    return math.copysign(math.sqrt(abs(value)), value)
