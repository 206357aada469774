"""The dashboard's buttons, options, progress bar, status line and error.  Imports ipywidgets.

`Controls` shows a state, says which button was pressed, and keeps its fields equal to the panel's
traits; it decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw

from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.repair.options import STRATEGIES
from rectify_widgets.widgets import markup
from rectify_widgets.widgets.buttons import action_button, progress_bar

if TYPE_CHECKING:
    from rectify_widgets.widgets.base import Panel

BUTTONS = (
    ("rectify", "Rectify", "magic", "Find and edit layers until the target is reached"),
    ("locate", "Locate", "search", "Score how editable each layer is"),
    ("edit", "Edit this layer", "pencil", "Edit the chosen layer once"),
    ("undo", "Undo", "undo", "Take the last edit back"),
    ("redo", "Redo", "repeat", "Make the edit again that was taken back"),
    ("cancel", "Cancel", "stop", "Stop what is under way"),
)
"""Name, text, icon and explanation of each button in the first row."""

SAVE = ("save", "Save", "download", "Write the edits up to the step in view to the file")


class Controls(ipw.VBox):
    """Buttons with a progress bar, the options of a rectification, and what is going on.

    Args:
        panel: has the traits ``method``, ``strategy``, ``max_degradation``, ``target_gap``,
            ``max_rounds``, ``refine_steps`` and ``file``.
        press: called with the name of a button that was clicked.
    """

    def __init__(self, panel: Panel, press: Callable[[str], None]) -> None:
        self.buttons = {
            name: action_button(
                text, icon, tip, partial(press, name), name=name, primary=name == "rectify"
            )
            for name, text, icon, tip in (*BUTTONS, SAVE)
        }
        self._bar = progress_bar()
        self._status, self._error = ipw.HTML(), ipw.HTML()
        row = ipw.HBox(
            [*(self.buttons[name] for name, *_ in BUTTONS), self._bar],
            layout=ipw.Layout(flex_flow="row wrap", width="100%", align_items="flex-start"),
        )
        options = ipw.HBox(
            [*_options(panel), _linked(panel, "file", ipw.Text, "File", 200), self.buttons["save"]],
            layout=ipw.Layout(flex_flow="row wrap", width="100%", align_items="center"),
        )
        options.add_class("rw-options")
        super().__init__([row, options, self._status, self._error], layout=ipw.Layout(width="100%"))

    def show(
        self,
        *,
        status: str,
        progress: float,
        error: BaseException | None,
        enabled: Collection[str],
    ) -> None:
        """Show a state; ``enabled`` are the buttons that can be pressed."""
        self._status.value = markup.status_line(status)
        self._error.value = markup.error_box(error)
        self._bar.value = progress
        for name, button in self.buttons.items():
            button.disabled = name not in enabled


def _options(panel: Panel) -> list[ipw.Widget]:
    """Fields for what `rectify` takes."""
    lists: dict[str, tuple[str, tuple[str, ...], int]] = {
        "method": ("Ranking", tuple(RANKING_METHODS), 200),
        "strategy": ("Strategy", STRATEGIES, 154),
    }
    fields = [
        _linked(panel, name, ipw.Dropdown, text, width, options=options)
        for name, (text, options, width) in lists.items()
    ]
    for name, text, width in (
        ("target_gap", "Target gap, %", 142),
        ("max_degradation", "Budget, %", 122),
    ):
        field = ipw.BoundedFloatText(
            value=100.0 * getattr(panel, name),
            min=0.0,
            max=100.0,
            step=0.5,
            **_look(text, width),
        )
        panel.link(name, field, "value", transform=(_to_percent, _to_share))
        fields.append(field)
    whole: dict[str, tuple[str, int, int, int]] = {
        "max_rounds": ("Rounds", 104, 1, 100),
        "refine_steps": ("Refining steps", 150, 0, 1000),
    }
    for name, (text, width, low, high) in whole.items():
        kind = ipw.BoundedIntText
        fields.append(_linked(panel, name, kind, text, width, min=low, max=high))
    return fields


def _linked(
    panel: Panel, name: str, kind: type[ipw.Widget], text: str, width: int, **options: Any
) -> ipw.Widget:
    """A field for one of the panel's traits."""
    field = kind(value=getattr(panel, name), **options, **_look(text, width))
    panel.link(name, field, "value")
    return field


def _look(text: str, width: int) -> dict[str, Any]:
    layout = ipw.Layout(width="auto", flex=f"0 1 {width}px", margin="0 12px 4px 0", min_width="0")
    return {"description": text, "layout": layout, "style": {"description_width": "auto"}}


def _to_percent(share: float) -> float:
    return round(100.0 * share, 4)


def _to_share(percent: float) -> float:
    return round(percent / 100.0, 6)
