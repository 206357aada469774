"""The dashboard's buttons, its options and the line that says what is going on.  Imports ipywidgets."""

from __future__ import annotations

from collections.abc import Collection

import ipywidgets as ipw

from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.repair.options import STRATEGIES
from rectify_widgets.widgets.controls import Controls, show
from rectify_widgets.widgets.panel import Panel

BUTTONS = (
    ("rectify", "Rectify", "magic", "Find and edit layers until the target is reached"),
    ("locate", "Locate", "search", "Score how editable each layer is"),
    ("edit", "Edit this layer", "pencil", "Edit the chosen layer once"),
    ("undo", "Undo", "undo", "Take the last edit back"),
    ("redo", "Redo", "repeat", "Make the edit again that was taken back"),
    ("cancel", "Cancel", "stop", "Stop what is under way"),
    ("save", "Save", "download", "Write the edits up to the step in view to the file"),
)
"""Name, text, icon and explanation of each button."""


class DashboardControls:
    """Buttons with a progress bar, folded options, a file to save to, and the status.

    Attributes:
        buttons: by the name of their method.
        options: the fields of the options, by the name of their trait; made when they are first
            unfolded.
        rows: what to show, from top to bottom.
    """

    def __init__(self, panel: Panel) -> None:
        make = Controls(panel)
        self.buttons = {
            name: make.button(text, icon, tip, name) for name, text, icon, tip in BUTTONS
        }
        rectify, locate, edit, undo, redo, cancel, save = self.buttons.values()
        self._panel = panel
        self.options: dict[str, ipw.Widget] = {}
        self._folded = make.row(name="options")
        self._toggle = make.button(
            "Options", "caret-right", "How Rectify goes about it", self.toggle_options
        )
        show(self._folded, visible=False)
        file = make.field(ipw.Text, "file", "File", "Where Save writes the edits", width="260px")
        self.rows: list[ipw.Widget] = [
            make.row(rectify, locate, edit, make.unit(undo, redo), cancel, make.bar()),
            make.row(self._toggle, file, save),
            self._folded,
            make.state(),
        ]

    def update(self, enabled: Collection[str], next_step: str) -> None:
        """Have the buttons show what can be done, and what is to be done next."""
        for name, button in self.buttons.items():
            button.disabled = name not in enabled
            button.button_style = "primary" if name == next_step else ""

    def toggle_options(self) -> None:
        """Unfold the options, or fold them again."""
        if not self.options:
            self.options = _option_fields(self._panel)
            self._folded.children = tuple(self.options.values())
        is_open = self._toggle.icon == "caret-down"
        self._toggle.icon = "caret-right" if is_open else "caret-down"
        show(self._folded, visible=not is_open)


def _option_fields(panel: Panel) -> dict[str, ipw.Widget]:
    make = Controls(panel, label="104px")
    return {
        "method": make.field(
            ipw.Dropdown, "method", "Ranking", "How layers are ranked", options=list(RANKING_METHODS)
        ),
        "target_gap": make.field(
            ipw.BoundedFloatText, "target_gap", "Target gap, %",
            "Gap at which the behaviour counts as removed", percent=True, max=100.0, step=0.5,
        ),
        "max_rounds": make.field(
            ipw.BoundedIntText, "max_rounds", "Rounds", "Most rounds", min=1, max=100
        ),
        "strategy": make.field(
            ipw.Dropdown, "strategy", "Strategy",
            "dynamic: the best layers in turn; static: the chosen layer once", options=STRATEGIES,
        ),
        "max_degradation": make.field(
            ipw.BoundedFloatText, "max_degradation", "Budget, %",
            "Most loss of accuracy on uncorrupted inputs", percent=True, max=100.0, step=0.5,
        ),
        "refine_steps": make.field(
            ipw.BoundedIntText, "refine_steps", "Refining steps",
            "Gradient steps on the best edits of a round; 0 for none", min=0, max=1000,
        ),
    }  # fmt: skip
