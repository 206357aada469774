"""Panels of several pieces of HTML; goes as soon as every viewer has moved to `panel`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets as ipw

from rectify_widgets.widgets import panel
from rectify_widgets.widgets.panel import (
    check_channels,
    check_classes,
    check_index,
    check_path,
    check_samples,
    close_tree,
    refuse_unknown,
)
from rectify_widgets.widgets.style import element

__all__ = [
    "Panel",
    "check_channels",
    "check_classes",
    "check_index",
    "check_path",
    "check_samples",
    "close_tree",
    "refuse_unknown",
]


class Panel(panel.Panel):
    """A panel whose children hold the HTML."""

    def fill(self, children: Sequence[ipw.Widget]) -> None:
        """Show the children, with the style sheet before them."""
        style = ipw.HTML(element(*self.sheets))
        style.add_class("rw-style")
        self.children = (style, *children)

    def static_html(self) -> str:
        """The current view as HTML without scripts; each widget says what it shows."""
        return ""

    def still(self) -> str:
        """The same."""
        return self.static_html()

    def pictured(self) -> str:
        """The current view as HTML with its style sheets."""
        return self._static()

    def choices(
        self, name: str, options: Mapping[str, str], label: str, **layout: str
    ) -> ipw.ToggleButtons:
        """A row of buttons for a trait; ``options`` are its values with what the buttons say."""
        buttons = ipw.ToggleButtons(
            options=[(text, value) for value, text in options.items()],
            value=getattr(self, name),
            description=label,
            layout=ipw.Layout(**({"width": "auto"} | layout)),
            style={"button_width": "auto", "description_width": "auto" if label else "0"},
        )
        buttons.add_class("rw-choices")
        self.link(name, buttons, "value")
        return buttons
