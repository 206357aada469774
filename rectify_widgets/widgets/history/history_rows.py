"""The steps of a timeline as rows to press, and what hangs on each.  Imports ipywidgets.

Each row is a button, so that a step is chosen by mouse or keyboard in every front end.  What
differs from row to row in the columns reaches the style sheet as custom properties.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import ipywidgets as ipw

from rectify_widgets.widgets.base import close_tree
from rectify_widgets.widgets.history import history_html
from rectify_widgets.widgets.history.timeline import Timeline

ROWS = 20
"""Steps with a row on the page: those of the step in view and around it."""

_numbers = itertools.count(1)


class StepRows(ipw.VBox):
    """A row for each step of the branch in view, `ROWS` at a time.

    Args:
        choose: called with the step whose row was pressed.
    """

    def __init__(self, choose: Callable[[int], None]) -> None:
        self._choose = choose
        self._marker = f"rw-h{next(_numbers)}"
        self._start = 0
        self._slots: list[tuple[ipw.Button, ipw.HTML]] = []
        self._slot_layout = ipw.Layout(width="100%")
        self._slot_style = ipw.ButtonStyle()
        self._sheet = ipw.HTML(layout=ipw.Layout(display="none"))
        self._note = ipw.HTML()
        head = ipw.HTML(history_html.rows_head())
        head.add_class("rw-versions-head")
        self._box = ipw.VBox(layout=ipw.Layout(width="100%"))
        self._box.add_class("rw-versions")
        super().__init__(
            [self._sheet, head, self._box, self._note], layout=ipw.Layout(width="100%")
        )
        self.add_class(self._marker)

    def show(self, timeline: Timeline) -> None:
        """Show the rows around the step that we are at."""
        path, step = timeline.path, timeline.step
        self._start = step // ROWS * ROWS
        shown = path[self._start : self._start + ROWS]
        while len(self._slots) < len(shown):
            self._slots.append(self._slot(len(self._slots)))
        children: list[ipw.Widget] = []
        for slot, version in enumerate(shown):
            button, under = self._slots[slot]
            place = self._start + slot
            sign = "▸ " if place == step else "  "
            button.description = sign + history_html.step_name(place, version)
            button.tooltip = history_html.step_tip(place, version)
            _mark(button, "rw-chosen", on=place == step)
            _mark(button, "rw-undone", on=place > step)
            under.value = history_html.step_notes(timeline, version)
            children += [button, under] if under.value else [button]
        if tuple(children) != self._box.children:
            self._box.children = tuple(children)
        self._sheet.value = f"<style>{history_html.row_rules(self._marker, shown)}</style>"
        self._note.value = history_html.rows_note(self._start, len(shown), len(path))

    def _slot(self, slot: int) -> tuple[ipw.Button, ipw.HTML]:
        button = ipw.Button(layout=self._slot_layout, style=self._slot_style)
        button.add_class("rw-version")
        button.add_class(f"rw-v{slot}")
        button.on_click(lambda _: self._choose(self._start + slot))
        under = ipw.HTML(layout=self._slot_layout)
        under.add_class("rw-under")
        return button, under

    def close(self) -> None:
        """Close the rows out of view too."""
        for widget in (*itertools.chain(*self._slots), self._slot_layout, self._slot_style):
            close_tree(widget)
        self._slots.clear()
        super().close()


def _mark(widget: ipw.DOMWidget, name: str, *, on: bool) -> None:
    (widget.add_class if on else widget.remove_class)(name)
