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

REPORT = (
    "Report", "file-text-o", "Write a page for whoever must approve the edits", "write_report",
)  # fmt: skip
"""The button of the last step, likewise."""

PERCENT = (lambda share: round(100.0 * share, 6)), (lambda percent: percent / 100.0)
MEGABYTES = (lambda size: round((size or 0) / 1e6)), (lambda number: number * 10**6 or None)
NAMED = (lambda name: name or ""), (lambda text: text.strip() or None)
"""What entries show of a share, of bytes or None, and of a name or None, and what they mean."""

SHARE = {"shown": PERCENT, "max": 100.0, "step": 0.5}
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
    ("memory_limit", ipw.BoundedIntText, "Memory, MB",
     "Most memory that locating and rectifying take beyond model and data; 0 for the usual",
     {"shown": MEGABYTES, "min": 0, "max": 10**7, "step": 100}),
    ("checkpoint", ipw.Text, "Checkpoint",
     "File from which Rectify goes on after the kernel was killed; removed at the end",
     {"shown": NAMED, "placeholder": "run.safetensors"}),
)  # fmt: skip
"""Trait, entry, label, explanation and limits of each option."""


class DashboardControls:
    """Buttons, a progress bar with the status, folded options, and a file to save to.

    Attributes:
        buttons: by the name of their method; that of the report is made when the last step is
            first in view.
        options: the fields of the options, by the name of their trait; made when they are first
            unfolded.
        top: what goes on and stops, the progress and the status.
        rows: what locates, edits and saves, from top to bottom.
        onward: goes on to the next step.
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
        file = make.field(ipw.Text, "file", "File", "Where Save writes the edits", width="220px")
        self.onward = make.button(
            "Continue", "arrow-right", "Take what was found here to the next step, or skip this one",
            "go_on",
        )  # fmt: skip
        code = make.button("Show code", "code", "Python that does the same", "toggle_code")
        self._work = cancel, make.bar(), make.state()
        self.top = [make.row(self.onward, code, *self._work[:2]), self._work[2]]
        self._unfolded = make.row(name="options")
        self._report, self._disabled = make.row(), frozenset[str]()
        for one in (self._unfolded, self._report):
            show(one, visible=False)
        undoing, saving = make.unit(undo, redo), make.unit(file, save)
        buttons = make.row(rectify, locate, edit, undoing, self._toggle, saving)
        self.rows = [buttons, self._report, self._unfolded]

    def update(self, disabled: Collection[str], next_step: str) -> None:
        """Have the buttons show what can be done, and what is to be done next."""
        self._disabled = frozenset(disabled)
        for name, button in self.buttons.items():
            button.disabled = name in disabled
            button.button_style = "primary" if name == next_step else ""

    def arrange(self, *, repairing: bool, last: bool, busy: bool) -> None:
        """Show the buttons of the repair or hide them, and what is under way, if anything is.

        ``last`` is the last step, which has the report besides.
        """
        if last and not self._report.children:
            make = Controls(self._panel)
            page = make.field(
                ipw.Text, "report_file", "Report file",
                "Where Report writes the page, .html; its facts go beside it, as .json",
                width="280px",
            )  # fmt: skip
            self.buttons["write_report"] = button = make.button(*REPORT)
            button.disabled = "write_report" in self._disabled
            self._report.children = (make.unit(page, button),)
        for one in self._work:
            show(one, visible=repairing or busy)
        show(self.rows[0], visible=repairing)
        show(self._report, visible=last)
        show(self._unfolded, visible=repairing and self._toggle.icon == "caret-down")

    def toggle_options(self) -> None:
        """Unfold the options, or fold them again."""
        if not self.options:
            make = Controls(self._panel, label="104px")
            self.options = {
                name: make.field(kind, name, *words, **limits)
                for name, kind, *words, limits in OPTIONS
            }
            self._unfolded.children = tuple(self.options.values())
        is_open = self._toggle.icon == "caret-down"
        self._toggle.icon = "caret-right" if is_open else "caret-down"
        show(self._unfolded, visible=not is_open)
