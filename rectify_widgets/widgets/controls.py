"""The dashboard's buttons, progress bar, status line and error, in place.  Imports ipywidgets.

`Controls` shows a state and says which button was pressed; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as ipw

from rectify_widgets.widgets import markup

BUTTONS = (
    ("rectify", "Rectify", "magic", "Find and edit layers until the target is reached"),
    ("locate", "Locate", "search", "Score how editable each layer is"),
    ("edit", "Edit this layer", "pencil", "Edit the chosen layer once"),
    ("undo", "Undo", "undo", "Take the last edit, or the last rectification, back"),
    ("cancel", "Cancel", "stop", "Stop what is under way"),
)
"""Name, text, icon and explanation of each button."""


class Controls(ipw.VBox):
    """A row of buttons with a progress bar, and below it what is going on.

    Args:
        press: called with the name of a button that was clicked.
    """

    def __init__(self, press: Callable[[str], None]) -> None:
        self.buttons: dict[str, ipw.Button] = {}
        for name, text, icon, tip in BUTTONS:
            button = ipw.Button(
                description=text,
                icon=icon,
                tooltip=tip,
                button_style="primary" if name == "rectify" else "",
                layout=ipw.Layout(width="auto", margin="0 6px 6px 0"),
            )
            button.add_class("rw-action")
            button.add_class(f"rw-{name}")
            button.on_click(lambda _, name=name: press(name))
            self.buttons[name] = button
        self._bar = ipw.FloatProgress(
            min=0.0, max=1.0, layout=ipw.Layout(flex="1 1 160px", min_width="120px", height="28px")
        )
        self._bar.add_class("rw-progress")
        self._status, self._error = ipw.HTML(), ipw.HTML()
        row = ipw.HBox(
            [*self.buttons.values(), self._bar],
            layout=ipw.Layout(flex_flow="row wrap", width="100%", align_items="flex-start"),
        )
        super().__init__([row, self._status, self._error], layout=ipw.Layout(width="100%"))

    def show(
        self,
        *,
        status: str,
        progress: float,
        error: BaseException | None,
        busy: bool,
        can_undo: bool,
    ) -> None:
        """Show a state; while something is under way only Cancel can be pressed."""
        self._status.value = markup.status_line(status)
        self._error.value = markup.error_box(error)
        self._bar.value = progress
        for name, button in self.buttons.items():
            button.disabled = busy != (name == "cancel")
        if not can_undo:
            self.buttons["undo"].disabled = True
