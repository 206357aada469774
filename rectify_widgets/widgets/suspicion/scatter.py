"""The references as points on the page, and those that are picked there.  Imports anywidget.

Python draws the points, as ``<svg>`` that a snapshot shows as well; ``scatter.js`` lets the pointer or
the keys pick some, and hands their numbers back.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

import anywidget
import numpy as np
import traitlets

from rectify_widgets.widgets import render
from rectify_widgets.widgets.suspicion.data import Landscape

WIDTH, HEIGHT, EDGE = 420, 320, 12
"""Size of the plane in CSS pixels, and the room that is left free along its edges."""

DISC = "m-{r},0a{r},{r} 0 1 0 {d},0a{r},{r} 0 1 0-{d},0z"
DIAMOND = "m0-{r}l{r},{r}-{r},{r}-{r}-{r}z"

STYLE = (
    "<style>[data-picked]{stroke:#009e73;stroke-width:3.2;paint-order:stroke;fill-opacity:1}"
    "[data-here]{stroke:#cc79a7;stroke-width:6;paint-order:stroke}</style>"
)
"""Part of the drawing, since a picture has no other style sheet."""


class Scatter(anywidget.AnyWidget):
    """Points to pick from: a lasso, a click, or the keyboard."""

    _esm = (files(__package__) / "scatter.js").read_text(encoding="utf-8")

    svg = traitlets.Unicode("").tag(sync=True)
    """The points; each has its number as ``data-point`` and says what it is in its ``<title>``."""

    selected = traitlets.List(traitlets.Int()).tag(sync=True)
    """Numbers of the points that are picked, ascending."""


def draw(
    land: Landscape,
    names: Sequence[str],
    target: int | None,
    carriers: Sequence[int],
    selected: Sequence[int] = (),
) -> str:
    """``<svg>`` of all references; what colours say, shapes say too.

    Args:
        land: where they are.
        names: of the class that each is taken for.
        target: the class of the chosen suspicion, whose references are blue, or None.
        carriers: references that carry it, as orange diamonds.
        selected: references that are marked as picked; a live page marks them by itself.
    """
    low, high = land.points.min(axis=0), land.points.max(axis=0)
    places = (land.points - low) / np.where(high > low, high - low, 1.0)
    across = EDGE + places[:, 0] * (WIDTH - 2 * EDGE)
    down = HEIGHT - EDGE - places[:, 1] * (HEIGHT - 2 * EDGE)
    carrying, picked = set(carriers), set(selected)
    drawn = []
    for row in sorted(range(len(places)), key=lambda row: row in carrying):  # carriers on top
        if row in carrying:
            path, radius, colour, opacity = DIAMOND, 5.5, render.FOR, 0.95
        elif land.predicted[row] == target:
            path, radius, colour, opacity = DISC, 3.2, render.AGAINST, 0.8
        else:
            path, radius, colour, opacity = DISC, 2.8, render.INK, 0.5
        shape = path.format(r=radius, d=2 * radius)
        words = f"Reference {row}: {names[row]}" + ", carries it" * (row in carrying)
        drawn.append(
            f'<path d="M{across[row]:.1f},{down[row]:.1f}{shape}" fill="{colour}" '
            f'fill-opacity="{opacity}" data-point="{row}"{" data-picked" * (row in picked)}>'
            f"<title>{escape(words)}</title></path>"
        )
    alt = f"{len(places)} references, {len(carrying)} of which carry what was found"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'aria-label="{alt}" viewBox="0 0 {WIDTH} {HEIGHT}">{STYLE}{"".join(drawn)}</svg>'
    )
