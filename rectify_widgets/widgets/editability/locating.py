"""The controls of an `EditabilityViewer` that is used alone: method, Locate, Cancel, progress.

Imports ipywidgets, the buttons and `markup`.  It shows a state and says which button was pressed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import ipywidgets as ipw

from rectify_widgets.widgets import markup
from rectify_widgets.widgets.buttons import action_button, progress_bar
from rectify_widgets.widgets.stepper import LABEL

if TYPE_CHECKING:
    from rectify_widgets.widgets.base import Panel

BUTTONS = (
    ("locate", "Locate", "search", "Score how editable each layer is, by the method in front"),
    ("cancel", "Cancel", "stop", "Stop scoring; earlier scores stay"),
)
"""Name, text, icon and explanation of each button."""


class LocateControls(ipw.VBox):
    """The method in front, two buttons with a progress bar, and below them what is going on.

    Args:
        panel: has the trait ``method``.
        methods: to choose from.
        press: called with the name of a button that was clicked; None where there is no model to
            score, and the methods alone are shown.
    """

    def __init__(
        self, panel: Panel, methods: Sequence[str], press: Callable[[str], None] | None
    ) -> None:
        chosen = ipw.Dropdown(
            options=list(methods),
            value=panel.method,
            description="Method",
            layout=ipw.Layout(width="auto", flex="0 1 240px", margin="2px 8px 4px 0"),
            style={"description_width": LABEL},
        )
        panel.link("method", chosen, "value")
        self.buttons: dict[str, ipw.Button] = {}
        layout = ipw.Layout(flex_flow="row wrap", width="100%", align_items="center")
        if press is None:
            super().__init__([ipw.HBox([chosen], layout=layout)], layout=ipw.Layout(width="100%"))
            return
        self.buttons = {
            name: action_button(
                text, icon, tip, partial(press, name), name=name, primary=name == "locate"
            )
            for name, text, icon, tip in BUTTONS
        }
        self._bar, self._status, self._error = progress_bar(), ipw.HTML(), ipw.HTML()
        row = ipw.HBox([chosen, *self.buttons.values(), self._bar], layout=layout)
        super().__init__([row, self._status, self._error], layout=ipw.Layout(width="100%"))

    def show(
        self, *, status: str, progress: float, error: BaseException | None, busy: bool
    ) -> None:
        """Show a state; while the layers are being scored only Cancel can be pressed."""
        if not self.buttons:
            return
        self._status.value = markup.status_line(status)
        self._error.value = markup.error_box(error)
        self._bar.value = progress
        self._bar.layout.visibility = "visible" if busy else "hidden"
        self.buttons["locate"].disabled = busy
        self.buttons["cancel"].disabled = not busy
