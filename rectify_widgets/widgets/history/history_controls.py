"""The buttons, the list of branches and the file name of a `HistoryViewer`.  Imports ipywidgets.

They show a timeline and say what was pressed; they decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import ipywidgets as ipw

from rectify_widgets.widgets.buttons import action_button
from rectify_widgets.widgets.history import history_html
from rectify_widgets.widgets.history.timeline import Timeline

FILE = "edits.safetensors"
"""Name that is offered for saving."""

BUTTONS = (
    ("undo", "Undo", "undo", "Go one step back"),
    ("redo", "Redo", "repeat", "Go one step forward"),
    ("branch_off", "Branch off", "code-fork", "Begin a branch at this step; later steps are kept"),
    ("save", "Save", "save", "Write the edits up to this step to the file"),
)
"""Method, text, icon and explanation of each button."""

ALONE = ("undo", "redo", "save")
"""Buttons that a larger widget has itself."""


class HistoryControls(ipw.HBox):
    """A row of buttons with the branches and the file.

    Args:
        press: called with the name of a button that was clicked.
        choose: called with the branch that was chosen.
        alone: show the buttons that a larger widget has itself, too.
    """

    def __init__(
        self, press: Callable[[str], None], choose: Callable[[int], None], *, alone: bool
    ) -> None:
        self._choose = choose
        self._showing = False
        self.buttons = {
            name: action_button(text, icon, tip, partial(press, name), name=name)
            for name, text, icon, tip in BUTTONS
        }
        self.branches = ipw.Dropdown(
            options=[("", 0)],
            description="Branch",
            layout=ipw.Layout(flex="1 1 220px", width="auto", min_width="0", max_width="420px"),
            style={"description_width": "48px"},
        )
        self.branches.observe(self._chosen, names=["value"])
        self.file = ipw.Text(
            value=FILE,
            description="File",
            continuous_update=False,
            layout=ipw.Layout(flex="1 1 160px", width="auto", min_width="0", max_width="300px"),
            style={"description_width": "28px"},
        )
        *first, save = self.buttons.values()
        super().__init__(
            [*first, self.branches, self.file, save],
            layout=ipw.Layout(flex_flow="row wrap", width="100%", align_items="center"),
        )
        for widget in () if alone else (self.file, *(self.buttons[name] for name in ALONE)):
            widget.layout.display = "none"

    def show(self, timeline: Timeline) -> None:
        """Show what can be done at the step in view."""
        last = timeline.step == len(timeline.path) - 1
        for names, off in (("undo", "save"), not timeline.step), (("redo", "branch_off"), last):
            for name in names:
                self.buttons[name].disabled = off
        count = len(timeline.branches)
        self._showing = True
        try:
            self.branches.options = [
                (history_html.branch_name(timeline, place), place) for place in range(count)
            ]
            self.branches.value = timeline.branch
        finally:
            self._showing = False
        self.branches.layout.display = None if count > 1 else "none"

    def _chosen(self, change: Mapping[str, int | None]) -> None:
        if not self._showing and change["new"] is not None:
            self._choose(change["new"])
