"""HTML of attribution maps: one sample in full, and the tiles of a whole set.

Pure functions; imports the renderers and what several widgets share.  One colour scale, given in
numbers, serves all maps of a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from torch import Tensor

from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.attribution.concentration import Pick, number
from rectify_widgets.widgets.attribution.maps import View

SIDE = 256
"""Side of a picture of one sample in CSS pixels, where there is room."""

STATIC_SIDE = 116
"""The same in a static view, whose pictures cannot shrink with the page."""

TILE = 76
"""Side of a picture of the whole set in a static view; on a page tiles share the width."""

TILE_PIXELS = 144
"""Most pixels of a side of a tile."""

TILE_BYTES = 14_000
"""Most bytes of a tile: a page of them takes about as much as three maps in full."""


@dataclass(frozen=True)
class Look:
    """How maps are shown.

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


@dataclass(frozen=True)
class Shown:
    """The sample in view: its number, and its maps by row."""

    index: int
    views: Mapping[str, View]


@dataclass(frozen=True)
class Cell:
    """A picture with what stands under it."""

    picture: str
    name: str
    note: str = ""
    figure: str = ""


@dataclass(frozen=True)
class Sheet:
    """Pictures of one sample: for each column (clean, corrupted) the input and its maps."""

    columns: Mapping[str, tuple[Cell, ...]]
    legend: str
    width: int


@dataclass(frozen=True)
class Tile:
    """A sample that stands at a percentile of the set: its number and its pictures."""

    index: int
    where: str
    cells: tuple[Cell, ...]


class Pictures:
    """The images of one kind of input, ready to be mixed with maps.

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


def has_signs(views: Sequence[View]) -> bool:
    """Whether any map speaks against its class somewhere."""
    return any(float(plane.min()) < 0 for view in views for plane in view.signed)


def scale_of(views: Sequence[View], *, signed: bool) -> float:
    """The one colour scale of all these maps."""
    return render.shared_scale([plane for view in views for plane in view.planes(signed=signed)])


def sheet(
    pictures: Pictures, index: int, views: Mapping[str, View], look: Look, *, side: int = SIDE
) -> Sheet:
    """Pictures of one sample under every model; ``views`` has a row's name and its maps."""
    signed = look.signed and has_signs(list(views.values()))
    scale = scale_of(list(views.values()), signed=signed)
    width = render.fit(pictures.shape, side)
    columns: dict[str, tuple[Cell, ...]] = {}
    for place, (column, image) in enumerate(pictures.of(index).items()):
        alt = f"{input_name(column)}, sample {index}"
        cells = [Cell(render.image_tag(image, alt, width=width), "Input")]
        for row, view in views.items():
            plane = view.planes(signed=signed)[place]
            mixed = render.overlay(image, plane, scale, opacity=look.opacity)
            cells.append(
                Cell(
                    render.image_tag(mixed, _describe(view, place, column, row, look), width=width),
                    row,
                    f"for {markup.class_name(look.classes, view.explained[place])}",
                    f"concentration {number(view.scores[place])}",
                )
            )
        columns[column] = tuple(cells)
    return Sheet(columns, render.legend_tag(scale, signed=signed), width)


def sample_html(pictures: Pictures, shown: Shown | None, look: Look, *, still: bool) -> str:
    """The page of one sample: ``still`` as a table, else in as many columns as there is room."""
    if shown is None:
        return '<span class="rw-soft">Computing maps …</span>'
    side = STATIC_SIDE if still else SIDE
    page = sheet(pictures, shown.index, shown.views, look, side=side)
    return sheet_table(page) if still else sheet_html(page)


def sheet_html(page: Sheet) -> str:
    """The pictures of one sample, in as many columns as the page has room for."""
    body = ""
    alone = len(page.columns) == 1
    for column, cells in page.columns.items():
        head = "" if alone else f'<div class="rw-mapset-name">{escape(column)}</div>'
        figures = "".join(f"<figure>{cell.picture}{_caption(cell)}</figure>" for cell in cells)
        body += (
            f'<div class="rw-mapset-column" style="--rw-cells:{len(cells)}">{head}'
            f'<div class="rw-mapset-cells">{figures}</div></div>'
        )
    return (
        f'<div class="rw-maps rw-mapset-host"><div class="rw-mapset" '
        f'style="--rw-columns:{len(page.columns)};--rw-width:{page.width}px">{body}</div></div>'
        f'<div class="rw-legend">{page.legend}</div>'
    )


def sheet_table(page: Sheet) -> str:
    """The same as a table, which reads without a style sheet too."""
    names = list(page.columns)
    rows = [
        (
            cells[0].name,
            [(cell.picture, " · ".join(filter(None, (cell.note, cell.figure)))) for cell in cells],
        )
        for cells in zip(*page.columns.values(), strict=True)
    ]
    return markup.map_grid(names, rows, page.legend)


def tile(
    pictures: Pictures,
    column: str,
    index: int,
    pick: Pick,
    views: Mapping[str, View],
    look: Look,
    scale: float,
    *,
    signed: bool,
) -> Tile:
    """One sample of the set: its map under each model, over its image."""
    images = pictures.of(index)
    place = list(images).index(column)
    image = render.shrink(images[column], TILE_PIXELS)
    width = render.fit(pictures.shape, TILE)
    cells = []
    for row, view in views.items():
        plane = render.shrink_plane(view.planes(signed=signed)[place], TILE_PIXELS)
        mixed = render.overlay(image, plane, scale, opacity=look.opacity)
        alt = f"Sample {index}: {_describe(view, place, column, row, look)}"
        cells.append(
            Cell(
                render.image_tag(mixed, alt, width=width, most=TILE_BYTES),
                row,
                markup.class_name(look.classes, view.explained[place]),
                number(view.scores[place]),
            )
        )
    return Tile(index, pick.where, tuple(cells))


def tile_html(one: Tile) -> str:
    """A tile for the page; its button, which names the sample, stands under it."""
    body = ""
    for cell in one.cells:
        row = "" if len(one.cells) == 1 else f"{escape(cell.name)} "
        body += (
            f"<figure>{cell.picture}<figcaption>{row}<b>{escape(cell.figure)}</b> "
            f'<span class="rw-soft rw-set-class" title="{escape(cell.note)}">{escape(cell.note)}</span>'
            "</figcaption></figure>"
        )
    return f'<div class="rw-set-where">{escape(one.where)}</div>{body}'


def tiles_table(tiles: Sequence[Tile]) -> str:
    """The tiles of one column as a table, which reads without a style sheet too."""
    head = "".join(f"<th>{escape(one.where)}</th>" for one in tiles)
    body = ""
    for place in range(len(tiles[0].cells) if tiles else 0):
        row = ""
        for one in tiles:
            cell = one.cells[place]
            name = "" if len(one.cells) == 1 else f"{cell.name} "
            row += (
                f'<td>{cell.picture}<br><span class="rw-soft">{escape(name + cell.figure)}'
                f"<br>{escape(cell.note)}</span></td>"
            )
        body += f"<tr>{row}</tr>"
    samples = "".join(f'<td><span class="rw-soft">sample {one.index}</span></td>' for one in tiles)
    return (
        f'<table class="rw-maps rw-set-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}<tr>{samples}</tr></tbody></table>"
    )


def input_name(column: str) -> str:
    """What a column's inputs are called: "clean input"."""
    return "input" if column == "Input" else f"{column.lower()} input"


def _caption(cell: Cell) -> str:
    note = f' <span class="rw-soft">{escape(cell.note)}</span>' if cell.note else ""
    figure = f'<br><span class="rw-num">{escape(cell.figure)}</span>' if cell.figure else ""
    return f"<figcaption>{escape(cell.name)}{note}{figure}</figcaption>"


def _describe(view: View, place: int, column: str, row: str, look: Look) -> str:
    name = markup.class_name(look.classes, view.explained[place])
    y, x = view.peaks[place]
    return (
        f"{look.method} map of the {input_name(column)}, {row.lower()}: evidence for {name}, "
        f"strongest at row {y}, column {x} of {view.shape[0]} × {view.shape[1]}, "
        f"concentration {number(view.scores[place])}"
    )
