"""The dashboard's buttons, its options and the line that says what is going on.  Imports ipywidgets."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ipywidgets as ipw

from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.repair.options import STRATEGIES
from rectify_widgets.widgets.controls import Controls, show
from rectify_widgets.widgets.panel import Panel

BUTTONS = (
    ("Rectify", "magic", "Find and edit layers until the target is reached", "rectify"),
    ("Locate", "search", "Score how editable each layer is", "locate"),
    ("Edit this layer", "pencil", "Edit the chosen layer once", "edit"),
    ("Undo", "undo", "Take the last edit back", "undo"),
    ("Redo", "repeat", "Make the edit again that was taken back", "redo"),
    ("Cancel", "stop", "Stop what is under way", "cancel"),
    ("Save", "download", "Write the edits up to the step in view to the file", "save"),
)
"""Text, icon, explanation and method of each button."""

SHARE = {"percent": True, "max": 100.0, "step": 0.5}
OPTIONS: tuple[tuple[str, type[ipw.Widget], str, str, dict[str, Any]], ...] = (
    ("method", ipw.Dropdown, "Ranking", "How layers are ranked", {"options": list(RANKING_METHODS)}),
    ("target_gap", ipw.BoundedFloatText, "Target gap, %",
     "Gap at which the behaviour counts as removed", SHARE),
    ("max_rounds", ipw.BoundedIntText, "Rounds", "Most rounds", {"min": 1, "max": 100}),
    ("strategy", ipw.Dropdown, "Strategy",
     "dynamic: the best layers in turn; static: the chosen layer once", {"options": STRATEGIES}),
    ("max_degradation", ipw.BoundedFloatText, "Budget, %",
     "Most loss of accuracy on uncorrupted inputs", SHARE),
    ("refine_steps", ipw.BoundedIntText, "Refining steps",
     "Steps on edits of all layers together, where single ones fall short; 0 for none",
     {"min": 0, "max": 1000}),
)  # fmt: skip
"""Trait, entry, label, explanation and limits of each option."""


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
        self.buttons = {words[-1]: make.button(*words) for words in BUTTONS}
        rectify, locate, edit, undo, redo, cancel, save = self.buttons.values()
        self._panel = panel
        self.options: dict[str, ipw.Widget] = {}
        self._toggle = make.button(
            "Options", "caret-right", "How Rectify goes about it", self.toggle_options
        )
        file = make.field(ipw.Text, "file", "File", "Where Save writes the edits", width="260px")
        self.rows = [
            make.row(rectify, locate, edit, make.unit(undo, redo), cancel, make.bar()),
            make.row(self._toggle, file, save),
            make.state(),
        ]

    def update(self, disabled: Collection[str], next_step: str) -> None:
        """Have the buttons show what can be done, and what is to be done next."""
        for name, button in self.buttons.items():
            button.disabled = name in disabled
            button.button_style = "primary" if name == next_step else ""

    def toggle_options(self) -> None:
        """Unfold the options, or fold them again."""
        if not self.options:
            make = Controls(self._panel, label="104px")
            self.options = {
                name: make.field(kind, name, *words, **limits)
                for name, kind, *words, limits in OPTIONS
            }
            self._unfolded = make.row(*self.options.values(), name="options")
            *above, state, cards = self._panel.children
            self._panel.children = (*above, self._unfolded, state, cards)
        is_open = self._toggle.icon == "caret-down"
        self._toggle.icon = "caret-right" if is_open else "caret-down"
        show(self._unfolded, visible=not is_open)
