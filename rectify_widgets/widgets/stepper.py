"""Controls that step through something: samples, methods, layers.  Imports ipywidgets.

Buttons stand beside each slider and each list, since a notebook keeps some of the keys that those
want for itself: Tab and Enter go everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as ipw

from rectify_widgets.widgets.buttons import step_button

if TYPE_CHECKING:
    from rectify_widgets.widgets.base import Panel

INTERVAL = 900
"""Milliseconds between two samples while playing."""

LABEL = "62px"
"""Width of the labels, so that controls stand in a column."""


class SampleStepper(ipw.HBox):
    """◀ slider ▶ and play, for a panel's sample ``index``; hidden where there is one sample.

    Args:
        panel: has the trait.
        count: number of samples.
        name: of the trait.
        label: before the slider.
    """

    def __init__(
        self, panel: Panel, count: int, *, name: str = "index", label: str = "Sample"
    ) -> None:
        self.slider = ipw.IntSlider(
            min=0,
            max=count - 1,
            description=label,
            continuous_update=False,
            layout=ipw.Layout(flex="1 1 120px", width="auto", min_width="0"),
            style={"description_width": LABEL},
        )
        self.play = ipw.Play(
            min=0,
            max=count - 1,
            interval=INTERVAL,
            show_repeat=False,
            layout=ipw.Layout(width="auto", flex="0 0 auto"),
        )
        self._panel, self._name = panel, name
        back = step_button("chevron-left", f"Previous {label.lower()}", lambda: self._step(-1))
        on = step_button("chevron-right", f"Next {label.lower()}", lambda: self._step(1))
        super().__init__([self.slider, back, on, self.play], layout=_row())
        self.add_class("rw-stepper")
        self.resize(count)
        panel.link(name, self.slider, "value")
        panel.link(name, self.play, "value")

    def resize(self, count: int) -> None:
        """Make room for another number of samples."""
        self.slider.max = self.play.max = max(count - 1, 0)
        self.layout.display = "none" if count < 2 else None

    def _step(self, by: int) -> None:
        place = getattr(self._panel, self._name) + by
        setattr(self._panel, self._name, place % (self.slider.max + 1))


class ChoiceStepper(ipw.HBox):
    """A list with ◀ ▶ for one of a panel's traits.

    Args:
        panel: has the trait.
        name: of the trait.
        options: its values, or pairs of what the list says and the value; None is a value too,
            though a list takes it for no choice.
        label: before the list.
    """

    def __init__(self, panel: Panel, name: str, options: Sequence[Any], label: str) -> None:
        self._panel, self._name = panel, name
        self.choice = ipw.Dropdown(
            options=_pairs(options),
            value=_plain(getattr(panel, name)),
            description=label,
            layout=ipw.Layout(flex="1 1 120px", width="auto", min_width="0"),
            style={"description_width": LABEL},
        )
        back = step_button("chevron-left", f"Previous {label.lower()}", lambda: self._step(-1))
        on = step_button("chevron-right", f"Next {label.lower()}", lambda: self._step(1))
        super().__init__([self.choice, back, on], layout=_row())
        self.add_class("rw-stepper")
        panel.listen(panel, self._show, [name])
        panel.listen(self.choice, self._choose, ["value"])

    @property
    def values(self) -> list[Any]:
        """The values that can be chosen."""
        return [None if value == "" else value for _, value in self.choice.options]

    def offer(self, options: Sequence[Any]) -> None:
        """List other options, and choose among them what the trait says, if it is there."""
        self._offering = True
        try:
            self.choice.options = _pairs(options)
            value = getattr(self._panel, self._name)
            self.choice.value = _plain(value) if value in self.values else None
        finally:
            self._offering = False

    _offering = False

    def _show(self, change: Mapping[str, Any]) -> None:
        self.choice.value = _plain(change["new"])

    def _choose(self, change: Mapping[str, Any]) -> None:
        if not self._offering:
            value = change["new"]
            setattr(self._panel, self._name, None if value == "" else value)

    def _step(self, by: int) -> None:
        count = len(self.choice.options)
        self.choice.index = ((self.choice.index or 0) + by) % count


def _plain(value: Any) -> Any:
    return "" if value is None else value


def _pairs(options: Sequence[Any]) -> list[tuple[str, Any]]:
    return [
        (option[0], _plain(option[1])) if isinstance(option, tuple) else (str(option), option)
        for option in options
    ]


def _row() -> ipw.Layout:
    return ipw.Layout(width="100%", align_items="center", flex_flow="row nowrap")
