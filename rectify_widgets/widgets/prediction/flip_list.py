"""The list of flips as tiles that can be chosen.  Imports ipywidgets; decides nothing.

Each tile is one button with a picture and words under it, so that Tab and Enter reach all of them.
As many tiles as fit one sheet are made once and filled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ipywidgets as ipw

from rectify_widgets.widgets.buttons import step_button

PER_SHEET = 12
"""Flips on one sheet of the list."""


@dataclass(frozen=True)
class Tile:
    """What a tile shows: HTML, the same in one line, and whether it is the sample in view."""

    html: str
    name: str
    chosen: bool


def still(tiles: Sequence[Tile]) -> str:
    """The tiles as HTML that cannot be clicked."""
    cells = "".join(f'<div class="rw-flip-tile">{tile.html}</div>' for tile in tiles)
    return f'<div class="rw-flips">{cells}</div>'


def place_text(start: int, count: int, total: int) -> str:
    """Which part of the list is in view."""
    return f'<span class="rw-num">{start + 1} to {start + count} of {total}</span>'


class FlipList(ipw.VBox):
    """Tiles in rows as the width allows, with ◀ ▶ below for the sheets.

    Args:
        choose: called with the place of a tile that was chosen.
        turn: called with −1 or 1 for the sheet before or after.
    """

    def __init__(self, choose: Callable[[int], None], turn: Callable[[int], None]) -> None:
        self.buttons: list[ipw.Button] = []
        self._words: list[ipw.HTML] = []
        tiles = []
        for place in range(PER_SHEET):
            words = ipw.HTML(layout=ipw.Layout(width="100%", margin="0"))
            button = ipw.Button(layout=ipw.Layout(width="100%", height="100%", margin="0"))
            button.on_click(lambda _, place=place: choose(place))
            tile = ipw.Box([words, button], layout=ipw.Layout(display="none"))
            tile.add_class("rw-flip-tile")
            self.buttons.append(button)
            self._words.append(words)
            tiles.append(tile)
        self._tiles = ipw.Box(tiles, layout=ipw.Layout(display="grid", width="100%"))
        self._tiles.add_class("rw-flips")
        self._place = ipw.HTML(layout=ipw.Layout(margin="0 8px"))
        self.back = step_button("chevron-left", "Previous flips", lambda: turn(-1))
        self.on = step_button("chevron-right", "Next flips", lambda: turn(1))
        self._pager = ipw.HBox(
            [self.back, self._place, self.on], layout=ipw.Layout(align_items="center")
        )
        super().__init__([self._tiles, self._pager], layout=ipw.Layout(width="100%"))

    def show(self, tiles: Sequence[Tile], start: int, total: int) -> None:
        """Show the tiles of one sheet, the first of which is number ``start`` of ``total``."""
        places = zip(self._tiles.children, self._words, self.buttons, strict=True)
        for place, (box, words, button) in enumerate(places):
            if place >= len(tiles):
                box.layout.display = "none"
                continue
            words.value = tiles[place].html
            button.description = button.tooltip = tiles[place].name
            (box.add_class if tiles[place].chosen else box.remove_class)("rw-chosen")
            box.layout.display = "grid"
        self._pager.layout.display = None if total > PER_SHEET else "none"
        end = start + len(tiles)
        self._place.value = place_text(start, len(tiles), total)
        self.back.disabled = start == 0
        self.on.disabled = end >= total

    def mark(self, chosen: Sequence[bool]) -> None:
        """Mark the tiles of the sample in view, and those only."""
        for box, marked in zip(self._tiles.children, chosen, strict=False):
            (box.add_class if marked else box.remove_class)("rw-chosen")
