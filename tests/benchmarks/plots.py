"""Charts of the report as SVG: readable without colour, in both themes, and without the text around.

Imports the standard library only.  Both axes are spaced by the square root, so that small figures
can be told apart beside large ones; every line and point carries its method's name or mark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 62, 170, 26, 44
LINE = 14
"""Height of a label, in pixels of the drawing."""
TICKS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 70.0, 100.0)
APART = 22
"""Least distance of two ticks."""
PEER = "rw-peer"


@dataclass(frozen=True)
class Point:
    """Where a method ended with n pairs, in printed units."""

    n: int
    loss: float
    headline: float


Series = Mapping[str, Sequence[Point]]
"""Points by method."""


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
        found: list[float] = [0.0]
        for size in reversed(TICKS):
            for value in (size, -size):
                inside = self.low <= value <= self.high
                if inside and all(abs(self(value) - self(one)) >= APART for one in found):
                    found.append(value)
        return sorted(found)


def against_n(series: Series, name: str, unit: str, before: float) -> str:
    """The headline figure over the number of pairs, a line for each method."""
    counts = sorted({point.n for points in series.values() for point in points})
    top = max([before, *(point.headline for points in series.values() for point in points)])
    y = Axis(0.0, top or 1.0, HEIGHT - BOTTOM, TOP)
    step = (WIDTH - RIGHT - LEFT) / max(len(counts), 1)
    x = {n: LEFT + (place + 0.5) * step for place, n in enumerate(counts)}
    parts = [_grid_y(y, f"{name}{unit}")]
    parts += [_text(x[n], HEIGHT - BOTTOM + 18, f"n = {n}", "middle") for n in counts]
    parts.append(_rule(y(before), "before"))
    ends: list[tuple[float, float, str]] = []
    for method, points in sorted(series.items(), key=lambda item: _kind(item[0]) != PEER):
        dots = [(x[point.n], y(point.headline)) for point in points]
        kind = _kind(method)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in dots)
        parts.append(f'<polyline class="{kind}" points="{path}"/>')
        for (a, b), point in zip(dots, points, strict=True):
            tip = escape(f"{method}, n = {point.n}: {name} {point.headline:.2f}{unit}")
            parts.append(
                f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="4"><title>{tip}</title></circle>'
            )
        if dots:
            ends.append((*dots[-1], method))
    parts += _labels(ends)
    alt = f"{name} after the repair by number of pairs; before {before:.2f}{unit}.  " + "  ".join(
        f"{method}: "
        + ", ".join(f"{point.headline:.2f} at n = {point.n}" for point in points)
        + "."
        for method, points in series.items()
    )
    return _svg(parts, f"{name} against n", alt)


def against_loss(
    series: Series, marks: Mapping[str, str], name: str, unit: str, before: float
) -> str:
    """The headline figure over the loss of accuracy, a mark for each method and number of pairs."""
    every = [point for points in series.values() for point in points]
    losses = [0.0, *(point.loss for point in every)]
    low, high = min(losses), max(losses)
    room = max(high - low, 0.1) * 0.05
    x = Axis(low - room, high + room, LEFT + 12, WIDTH - 16)
    y = Axis(0.0, max([before, *(point.headline for point in every)]) or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [_grid_y(y, f"{name}{unit}")]
    for tick in x.ticks():
        parts.append(
            f'<line class="rw-grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" '
            f'y2="{HEIGHT - BOTTOM}"/>'
        )
        parts.append(_text(x(tick), HEIGHT - BOTTOM + 16, f"{tick:g}", "middle"))
    parts.append(
        _text((LEFT + WIDTH) / 2, HEIGHT - 8, "OA lost, points (left is better)", "middle")
    )
    for method, points in sorted(series.items(), key=lambda item: _kind(item[0]) != PEER):
        kind = _kind(method)
        for point in points:
            tip = escape(
                f"{method}, n = {point.n}: OA lost {point.loss:.2f}, {name} {point.headline:.2f}{unit}"
            )
            parts.append(
                f'<g class="{kind}"><title>{tip}</title>'
                f'<circle cx="{x(point.loss):.1f}" cy="{y(point.headline):.1f}" r="8"/>'
                f'<text class="rw-mark" x="{x(point.loss):.1f}" y="{y(point.headline) + 4:.1f}" '
                f'text-anchor="middle">{escape(marks[method])}</text></g>'
            )
    alt = f"{name} after the repair against loss of overall accuracy.  " + "  ".join(
        f"{method}, n = {point.n}: {name} {point.headline:.2f}{unit} for {point.loss:.2f} points."
        for method, points in series.items()
        for point in points
    )
    return _svg(parts, f"{name} against OA lost", alt)


def _svg(parts: Sequence[str], title: str, alt: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {alt}")}">'
        f"{''.join(parts)}</svg>"
    )


def _grid_y(y: Axis, heading: str) -> str:
    parts = []
    for tick in y.ticks():
        parts.append(
            f'<line class="rw-grid" x1="{LEFT}" x2="{WIDTH - 16}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/>'
        )
        parts.append(_text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(heading)}</text>"
    )
    return "".join(parts)


def _rule(height: float, name: str) -> str:
    return (
        f'<line class="rw-before" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" '
        f'y2="{height:.1f}"/>' + _text(LEFT + 4, height - 5, name, "start")
    )


def _labels(ends: Sequence[tuple[float, float, str]]) -> list[str]:
    """Names to the right of the lines, moved apart, each tied to its line's end."""
    order = sorted(ends, key=lambda end: end[1])
    places: list[float] = []
    for _, height, _ in order:
        places.append(max(height, places[-1] + LINE) if places else height)
    places[-1:] = [min(place, HEIGHT - BOTTOM + 6) for place in places[-1:]]
    for row in range(len(places) - 2, -1, -1):
        places[row] = min(places[row], places[row + 1] - LINE)
    parts = []
    for (a, b, method), place in zip(order, places, strict=True):
        start = WIDTH - RIGHT + 24
        kind = _kind(method)
        parts.append(
            f'<line class="rw-tie" x1="{a + 5:.1f}" y1="{b:.1f}" x2="{start - 4}" y2="{place:.1f}"/>'
        )
        parts.append(
            f'<text class="{kind}" x="{start}" y="{place + 4:.1f}">{escape(method)}</text>'
        )
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _kind(method: str) -> str:
    """How a method is drawn: `dynamic` and its variants stand out."""
    if method.startswith("dynamic"):
        return "rw-own"
    return "rw-static" if method == "static" else PEER


def _root(value: float) -> float:
    return math.copysign(math.sqrt(abs(value)), value)
