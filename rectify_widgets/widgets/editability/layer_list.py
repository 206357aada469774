"""Rows of layers as buttons, a page at a time, with bars or numbers drawn over them.

Imports ipywidgets and the rooms of rows and HTML.  The buttons carry the names, and take clicks and
keys; what is drawn over them is one piece of HTML that lets both through.  However deep the network
is, no more than `PAGE` buttons are made, and they are used again for every view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ipywidgets as ipw

from rectify_widgets.widgets.buttons import action_button, step_button
from rectify_widgets.widgets.editability import layer_html
from rectify_widgets.widgets.editability.layer_facts import Facts, legend, tooltip
from rectify_widgets.widgets.editability.layer_rows import NAME_WIDTH, Row

if TYPE_CHECKING:
    from rectify_widgets.widgets.base import Panel

PAGE = 25
"""Most rows at a time: all of a page is in view, since nothing here can scroll to a row."""


VIEWS = {"bars": "Bars", "table": "Table", "tree": "Tree"}
ORDERS = {"network": "Network", "rank": "Best first"}


class ListTools(ipw.HBox):
    """Buttons for what is listed and how: a panel's traits ``view``, ``order`` and ``folded``.

    Args:
        panel: has the traits.
        groups: the groups of the tree.
    """

    def __init__(self, panel: Panel, groups: Sequence[str]) -> None:
        views = panel.choices("view", VIEWS, "View", margin="0 12px 0 0")
        orders = panel.choices("order", ORDERS, "Order", margin="0 12px 0 0")
        unfold = action_button(
            "Unfold all", "", "Show every layer", lambda: setattr(panel, "folded", ())
        )
        fold = action_button(
            "Fold all", "", "Show the outermost groups", lambda: setattr(panel, "folded", groups)
        )
        self._folding = ipw.HBox([unfold, fold])
        self._foldable = bool(groups)
        layout = ipw.Layout(flex_flow="row wrap", width="100%", align_items="center")
        super().__init__([views, orders, self._folding], layout=layout)
        self.add_class("rw-list-tools")

    def show(self, view: str) -> None:
        """Offer to fold and unfold where there is a tree."""
        self._folding.layout.display = None if view == "tree" and self._foldable else "none"


class LayerList(ipw.VBox):
    """A page of rows to choose from.

    Args:
        press: called with the row that was clicked.
        turn: called with −1 or 1 for the page before or after.
        width: longest name that is shown whole, in characters.
    """

    def __init__(
        self,
        press: Callable[[Row], None],
        turn: Callable[[int], None],
        width: int = NAME_WIDTH,
    ) -> None:
        self._press, self._width = press, width
        self._pool: list[ipw.Button] = []
        self._shown: list[Row] = []
        self._chosen: ipw.Button | None = None
        self._look = (ipw.Layout(width="100%", height="24px"), ipw.ButtonStyle())
        self._buttons = ipw.VBox(layout=ipw.Layout(width="100%"))
        self._buttons.add_class("rw-rows")
        self._overlay, self._legend = ipw.HTML(), ipw.HTML()
        self._strip, self._place = ipw.HTML(), ipw.HTML()
        self._overlay.add_class("rw-overlay")
        canvas = ipw.Box([self._buttons, self._overlay], layout=ipw.Layout(width="100%"))
        canvas.add_class("rw-canvas")
        scroller = ipw.Box([canvas], layout=ipw.Layout(width="100%"))
        scroller.add_class("rw-scroller")
        self._pager = ipw.HBox(
            [
                step_button("chevron-left", "Rows before", lambda: turn(-1)),
                step_button("chevron-right", "Rows after", lambda: turn(1)),
                self._place,
            ],
            layout=ipw.Layout(align_items="center", width="100%"),
        )
        super().__init__(
            [scroller, self._strip, self._pager, self._legend], layout=ipw.Layout(width="100%")
        )

    @property
    def buttons(self) -> dict[str, ipw.Button]:
        """The buttons in view, by the name of their layer or group."""
        return {row.name: b for row, b in zip(self._shown, self._pool, strict=False)}

    def show(self, rows: Sequence[Row], facts: Facts, view: str, page: int) -> None:
        """Write a page of the rows into the buttons, and what is known of them above."""
        first = PAGE * page
        self._shown = list(rows[first : first + PAGE])
        for place, row in enumerate(self._shown):
            if place == len(self._pool):
                self._pool.append(self._button(place))
            button = self._pool[place]
            with button.hold_sync():
                button.description = row.text(self._width)
                button.tooltip = tooltip(row, facts)
                button.disabled = bool(row.reason)
        buttons = tuple(self._pool[: len(self._shown)])
        if buttons != self._buttons.children:
            self._buttons.children = buttons
        self._overlay.value = layer_html.overlay(self._shown, facts, view, self._width)
        self._legend.value = layer_html.legend(legend(facts, view))
        many, last = len(rows) > PAGE, first + len(self._shown)
        self._pager.layout.display = None if many else "none"
        self._strip.layout.display = None if many and view != "tree" else "none"
        self._strip.value = (
            layer_html.strip(rows, facts, range(first, last)) if many and view != "tree" else ""
        )
        self._place.value = f"{first + 1} to {last} of {len(rows)} rows"

    def mark(self, layer: str | None) -> None:
        """Mark the button of the chosen layer, if it is in view."""
        found = [
            button
            for row, button in zip(self._shown, self._pool, strict=False)
            if row.is_layer and row.name == layer
        ]
        new = found[0] if found else None
        if new is self._chosen:
            return
        if self._chosen is not None:
            self._chosen.remove_class("rw-chosen")
        if new is not None:
            new.add_class("rw-chosen")
        self._chosen = new

    def close(self) -> None:
        """Close the buttons that are out of view as well."""
        for part in (*self._pool, *self._look):
            part.close()
        super().close()

    def _button(self, place: int) -> ipw.Button:
        layout, style = self._look
        button = ipw.Button(layout=layout, style=style)
        button.add_class("rw-row")
        button.on_click(lambda _: self._press(self._shown[place]))
        return button


def page_of(rows: Sequence[Row], name: str | None) -> int | None:
    """The page on which a layer has its row; None where it has none."""
    places = [place for place, row in enumerate(rows) if row.is_layer and row.name == name]
    return places[0] // PAGE if places else None


def page_count(rows: Sequence[Row]) -> int:
    """Number of pages, at least one."""
    return max(math.ceil(len(rows) / PAGE), 1)
