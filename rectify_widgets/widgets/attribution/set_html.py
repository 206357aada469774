"""Contents of the page of a whole set: distributions, and the samples at fixed percentiles.

Pure functions on scores and maps; imports the score and the HTML of maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.attribution import map_html
from rectify_widgets.widgets.attribution.concentration import (
    Pick,
    Scores,
    distribution_table,
    picks,
    summary,
)
from rectify_widgets.widgets.attribution.maps import SetScores, View

Order: TypeAlias = NDArray[np.int64]
"""Numbers of the samples of a set, in the order in which they are scored."""

TileViews: TypeAlias = Mapping[str, Mapping[int, View]]
"""Maps of the samples that are shown, by model and number."""


@dataclass(frozen=True)
class Contents:
    """What the page shows.

    Attributes:
        distributions: HTML of the table and what it says.
        tiles: samples of each column, least concentrated first.
        heads: HTML above the tiles of each column.
        legend: HTML of the colour scale.
    """

    distributions: str
    tiles: Mapping[str, Sequence[map_html.Tile]] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    legend: str = ""


def by_sample(values: Scores, order: Order, count: int) -> Scores:
    """Scores by number of the sample, NaN for those that have none."""
    found = np.full(count, np.nan)
    found[order] = values
    return found


def picked(
    scores: SetScores, columns: Sequence[str], order: Order
) -> dict[str, tuple[tuple[int, Pick], ...]]:
    """For each column the samples at the percentiles, with their numbers."""
    return {
        column: tuple(
            (int(order[pick.place]), pick) for pick in picks(scores.values[place, : scores.done])
        )
        for place, column in enumerate(columns)
    }


def contents(
    pictures: map_html.Pictures,
    scores: Mapping[str, SetScores],
    tiles: TileViews,
    *,
    order: Order,
    ranking: str,
    look: map_html.Look,
    count: int,
) -> Contents:
    """The page for what is scored so far; without tiles while their maps are not there yet.

    Args:
        pictures: the images.
        scores: by model.
        tiles: maps of the samples to show, by model.
        order: the samples that the scores belong to.
        ranking: the model whose percentiles the tiles stand at.
        look: how maps are shown.
        count: samples that were given.
    """
    several = len(scores) > 1
    rows = {
        (column, model if several else ""): part.values[place, : part.done]
        for place, column in enumerate(pictures.columns)
        for model, part in scores.items()
    }
    scored = min((part.done for part in scores.values()), default=0)
    if not scored:
        return Contents("")
    height, width = pictures.shape
    words = summary(rows, pixels=height * width, scored=scored, count=count)
    table = f'{distribution_table(rows)}<p class="rw-soft rw-set-words">{words}</p>'
    views = [view for part in tiles.values() for view in part.values()]
    if not views:
        return Contents(table)
    signed = look.signed and map_html.has_signs(views)
    scale = map_html.scale_of(views, signed=signed)
    shown: dict[str, list[map_html.Tile]] = {}
    heads = {}
    for column, chosen in picked(scores[ranking], list(pictures.columns), order).items():
        shown[column] = [
            map_html.tile(
                pictures, column, index, pick,
                {model: part[index] for model, part in tiles.items()},
                look, scale, signed=signed,
            )
            for index, pick in chosen
            if all(index in part for part in tiles.values())
        ]  # fmt: skip
        whose = f", {ranking.lower()}" if several else ""
        heads[column] = markup.heading(
            "Samples" if column == "Input" else f"{column} samples",
            f"at percentiles of concentration{whose}, most spread-out map first",
        )
    return Contents(table, shown, heads, render.legend_tag(scale, signed=signed))


def static_page(page: Contents) -> str:
    """The page without controls, as tables that read without a style sheet too."""
    if not page.distributions:
        return '<p class="rw-soft">Not scored yet.</p>'
    tiles = "".join(
        f"<div>{page.heads[column]}</div>{map_html.tiles_table(row)}"
        for column, row in page.tiles.items()
        if row
    )
    legend = f'<div class="rw-legend">{page.legend}</div>' if page.legend else ""
    return page.distributions + tiles + legend
