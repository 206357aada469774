"""HTML of attribution maps: one sample in full, and the distribution and samples of a whole set.

Pure functions; imports the renderers, the view's handles and what several widgets share.  One colour
scale, given in numbers, serves all maps of a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from torch import Tensor

from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.attribution.concentration import (
    Pick,
    Scores,
    axis_of,
    share_above,
    spread_share,
)
from rectify_widgets.widgets.attribution.data import SampleMaps, SetScores
from rectify_widgets.widgets.view import grid, to_do

SIDE = 256
"""Side of a picture of one sample in CSS pixels, where there is room."""

TILE = 92
"""Side of a picture of the whole set."""

TILE_PIXELS = 144
"""Most pixels of a side of a tile."""

TILE_BYTES = 14_000
"""Most bytes of a tile: a page of them takes about as much as three maps in full."""

UNDER_PIXELS, UNDER_BYTES = 112, 6_000
"""Most pixels of a side, and bytes, of the input that lies under a map: the input itself stands beside."""

NO_MAP = {
    "integrated-gradients": "no gradient of the score reaches the input on the way from black",
    "saliency": "no gradient of the score reaches the input",
    "input-x-gradient": "no gradient of the score reaches the input where it is not 0",
    "smoothgrad": "no gradient of the score reaches the input, with noise on it either",
    "grad-cam": "nothing in this layer speaks for the class; what speaks against it is left out",
    "occlusion": "the score stays the same whatever part of the input is covered",
}
"""What a map that is zero everywhere says, by method."""

NO_EDIT = "the model as given, without edits"
"""What stands where the maps of the edited model stand at other steps."""

BINS = 24
"""Bars of a distribution."""


@dataclass(frozen=True)
class MapStyle:
    """How maps are drawn.

    Attributes:
        method: that they were made with.
        opacity: of the maps over their images, 0 to 1.
        signed: whether signs are shown.
        classes: class names, by number.
    """

    method: str
    opacity: float
    signed: bool
    classes: tuple[str, ...] | None


class Pictures:
    """The images of one kind of input, ready to lie under maps.

    Args:
        columns: ``N × C × H × W`` by name.
        mean, std: the normalisation that is undone for display.
    """

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        self.columns, self._mean, self._std = columns, mean, std
        self.shape = tuple(next(iter(columns.values())).shape[-2:])

    def of(self, index: int) -> dict[str, render.Pixels]:
        """The images of one sample, which share what is black and what is white."""
        images = {name: column[index] for name, column in self.columns.items()}
        ranges = [render.display_limits(image) for image in images.values()]
        limits = (min(low for low, _ in ranges), max(high for _, high in ranges))
        return {
            name: render.shrink(
                render.to_rgb(image, self._mean, self._std, limits), render.MAX_SIDE
            )
            for name, image in images.items()
        }


# -- one sample -----------------------------------------------------------------------------------


def sample_page(
    pictures: Pictures,
    index: int,
    maps: Mapping[str, SampleMaps],
    style: MapStyle,
    *,
    compares: bool = False,
) -> str:
    """One sample: its input and its maps, clean and corrupted; ``maps`` has a row's name and maps.

    A map is a picture of its own over its input, so that the page can change its opacity.  Where the
    page ``compares`` two models at other steps, one model alone leaves room for the second.
    """
    signed, scale = _scale(list(maps.values()), style)
    width = render.fit(pictures.shape, SIDE)
    images = pictures.of(index)
    rows = [""] * (1 + max(len(maps), 2 * compares))
    for place, (column, image) in enumerate(images.items()):
        base = render.image_tag(image, f"{_input_name(column)}, sample {index + 1}", width=width)
        below = render.image_tag(
            render.shrink(image, UNDER_PIXELS), "", width=width, most=UNDER_BYTES
        )
        source = below.split('"', 2)[1]
        rows[0] += _figure(f"<span>{base}</span>", _input_name(column).capitalize())
        for row, (name, one) in enumerate(maps.items(), 1):
            plane = one.planes(signed=signed)[place]
            what = f"for {markup.class_name(style.classes, one.explained[place])}"
            picture = render.image_tag(
                render.overlay(image, plane, scale, opacity=1.0),
                _describe(one, place, column, name, style),
                width=width,
            ).replace("<img ", f"<img{grid(plane, what)} ", 1)
            caption = name if column == "Input" else f"{column}, {name.lower()}"
            rows[row] += _figure(
                f'<span class="rw-map" style="background-image:url({source})">{picture}</span>',
                caption,
                what,
                f"concentration {number(one.scores[place])}"
                if plane.any()
                else f"all zero: {NO_MAP[style.method]}",
            )
        if len(rows) > 1 + len(maps):
            blank = render.image_tag(np.full_like(image, 128), "", width=width)
            rows[-1] += _figure(
                f'<span class="rw-none">{blank}</span>', f"{column}, after", NO_EDIT, "–"
            )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    overlay = (
        '<label data-only-live>Overlay <input type="range" min="0" max="1" step="0.05" '
        f'value="{style.opacity:g}" name="opacity" data-key="opacity" data-live="--rw-opacity" '
        'title="Opacity of the maps over their images"> '
        f'<span class="rw-num">{style.opacity:.0%}</span></label>'
    )
    return (
        f'<div class="rw-attribution" style="--rw-opacity:{style.opacity:g}">'
        f'<div class="rw-legend">{render.legend_tag(scale, signed=signed)}{overlay}</div>'
        f'<table class="rw-maps" style="--rw-width:{width}px"><tbody>{body}</tbody></table></div>'
    )


def _figure(picture: str, name: str, note: str = "", figure: str = "") -> str:
    soft = f' <span class="rw-soft">{escape(note)}</span>' if note else ""
    last = f'<br><span class="rw-num">{escape(figure)}</span>' if figure else ""
    return f"<td><div data-zoom>{picture}</div>{escape(name)}{soft}{last}</td>"


def _scale(maps: Sequence[SampleMaps], style: MapStyle) -> tuple[bool, float]:
    """Whether signs are shown, and the one colour scale of all these maps."""
    signed = style.signed and any(float(p.min()) < 0 for one in maps for p in one.signed)
    planes = [plane for one in maps for plane in one.planes(signed=signed)]
    return signed, render.shared_scale(planes)


def _input_name(column: str) -> str:
    """What a column's inputs are called: "clean input"."""
    return "input" if column == "Input" else f"{column.lower()} input"


def _describe(one: SampleMaps, place: int, column: str, row: str, style: MapStyle) -> str:
    name = markup.class_name(style.classes, one.explained[place])
    y, x = one.peaks[place]
    start = f"{style.method} map of the {_input_name(column)}, {row.lower()}: evidence for {name}, "
    if not one.planes(signed=False)[place].any():
        return f"{start}zero everywhere"
    return (
        f"{start}strongest at row {y}, column {x} of {one.shape[0]} × {one.shape[1]}, "
        f"concentration {number(one.scores[place])}"
    )


# -- the whole set --------------------------------------------------------------------------------


def set_page(
    pictures: Pictures,
    scores: Mapping[str, SetScores],
    tiles: Mapping[str, Mapping[int, SampleMaps]],
    picked: Mapping[str, Sequence[tuple[int, Pick]]],
    *,
    ranking: str,
    style: MapStyle,
    count: int,
) -> str:
    """Distributions of what is scored so far, and samples along them once their maps are there.

    Args:
        pictures: the images.
        scores: by model.
        tiles: maps of the samples to show, by model and number.
        picked: for each column the samples at the percentiles.
        ranking: the model whose percentiles the samples stand at.
        style: how maps are drawn.
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
        return '<p class="rw-soft">Not scored yet.</p>'
    height, width = pictures.shape
    words = summary(rows, pixels=height * width, scored=scored, count=count)
    page = f'{distribution_table(rows)}<p class="rw-soft rw-set-words">{words}</p>'
    maps = [one for part in tiles.values() for one in part.values()]
    if not maps:
        return page
    signed, scale = _scale(maps, style)
    for column, chosen in picked.items():
        whose = f", {ranking.lower()}" if several else ""
        page += markup.heading(
            "Samples" if column == "Input" else f"{column} samples",
            f"at percentiles of concentration{whose}, most spread-out map first",
        )
        cells = "".join(
            _tile(pictures, column, index, pick, {m: part[index] for m, part in tiles.items()},
                  style, scale, signed=signed)
            for index, pick in chosen
            if all(index in part for part in tiles.values())
        )  # fmt: skip
        page += f'<table class="rw-tiles"><tbody><tr data-list>{cells}</tr></tbody></table>'
    return f'{page}<div class="rw-legend">{render.legend_tag(scale, signed=signed)}</div>'


def _tile(
    pictures: Pictures,
    column: str,
    index: int,
    pick: Pick,
    maps: Mapping[str, SampleMaps],
    style: MapStyle,
    scale: float,
    *,
    signed: bool,
) -> str:
    """One sample of the set: its map under each model, over its image; a click opens the sample."""
    images = pictures.of(index)
    place = list(images).index(column)
    image = render.shrink(images[column], TILE_PIXELS)
    width = render.fit(pictures.shape, TILE)
    body = ""
    for row, one in maps.items():
        plane = render.shrink_plane(one.planes(signed=signed)[place], TILE_PIXELS)
        mixed = render.overlay(image, plane, scale, opacity=style.opacity)
        alt = f"Sample {index + 1}: {_describe(one, place, column, row, style)}"
        picture = render.image_tag(mixed, alt, width=width, most=TILE_BYTES)
        name = "" if len(maps) == 1 else f"{escape(row)} "
        note = escape(markup.class_name(style.classes, one.explained[place]))
        body += (
            f"{picture}<br>{name}<b>{number(one.scores[place])}</b><br>"
            f'<span class="rw-soft" title="{note}">{note}</span><br>'
        )
    handle = to_do("open_sample", index, key=f"{column} {index}")
    return (
        f'<td{handle} title="Show sample {index + 1} in full"><span class="rw-soft">{pick.where}</span>'
        f"<br>{body}sample {index + 1}</td>"
    )


def number(score: float) -> str:
    """A concentration with two decimals, a dash where there is none."""
    return f"{score:.2f}" if np.isfinite(score) else "–"


def distribution_table(rows: Mapping[tuple[str, str], Scores], *, width: int = 144) -> str:
    """Distribution and quantiles of each kind of map; ``rows`` is (column, model) to scores.

    All distributions have one axis, whose ends stand above them: tenths that enclose all scores.
    """
    low, high = axis_of(rows.values())
    heads = "".join(
        f'<th class="rw-right">{head}</th>' for head in ("least", "10 %", "median", "90 %", "most")
    )
    body = ""
    for (column, model), scores in rows.items():
        known = scores[np.isfinite(scores)]
        name = f"{column}, {model.lower()}" if model else column
        if not known.size:
            body += f'<tr><td>{escape(name)}</td><td colspan="6">no map</td></tr>'
            continue
        marks = np.percentile(known, (0, 10, 50, 90, 100))
        counts, _ = np.histogram(known, bins=BINS, range=(low, high))
        alt = (
            f"Distribution of the concentration of {len(known)} maps, {name}: a tenth of them below "
            f"{marks[1]:.2f}, half below {marks[2]:.2f}, a tenth above {marks[3]:.2f}"
        )
        colour = render.FOR if model == "After" else render.AGAINST
        bars = render.histogram_tag(counts.tolist(), alt, width=width, colour=colour)
        figures = "".join(
            f'<td class="rw-right">{f"<b>{number(mark)}</b>" if place == 2 else number(mark)}</td>'
            for place, mark in enumerate(marks)
        )
        body += f'<tr><td>{escape(name)}</td><td class="rw-strip">{bars}</td>{figures}</tr>'
    return (
        '<table class="rw-table rw-distribution"><thead><tr><th>Maps</th>'
        f'<th class="rw-strip">{low:.1f} <span>→ more concentrated →</span> {high:.1f}</th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def summary(rows: Mapping[tuple[str, str], Scores], *, pixels: int, scored: int, count: int) -> str:
    """What the distributions say, in words; not escaped."""
    words = []
    models = list(dict.fromkeys(model for _, model in rows))
    for model in models:
        pair = [rows.get((column, model)) for column in ("Corrupted", "Clean")]
        share = None if pair[0] is None or pair[1] is None else share_above(pair[0], pair[1])
        if share is not None:
            words.append(f"{model.lower() + ': ' if model else ''}{markup.percent(share)}")
    sentences = []
    if words:
        sentences.append(
            "Samples whose corrupted map is more concentrated than the clean one: "
            + ", ".join(words)
            + " (50 % is no difference)."
        )
    middles = [
        f"{column.lower()}{' ' + model.lower() if model else ''} "
        f"{markup.percent(spread_share(float(np.nanmedian(scores)), pixels))}"
        for (column, model), scores in rows.items()
        if np.isfinite(scores).any()
    ]
    if middles:
        sentences.append(
            "The median map's weight, spread evenly, would take this share of the pixels: "
            + ", ".join(middles)
            + "."
        )
    some = f"{scored} of {count} samples, drawn at random" if scored < count else f"{count} samples"
    sentences.append(f"Scored: {some if count > 1 else '1 sample'}.")
    empty = sum(int(np.isnan(scores).sum()) for scores in rows.values())
    if empty:
        sentences.append(f"Empty maps, which have no score: {empty}.")
    return " ".join(sentences)
