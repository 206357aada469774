"""The controls of a panel: buttons, lists, sliders and rows of them, alike and aligned.

Imports ipywidgets.  Everything is linked to the panel's traits.  One layout and one style serve all
controls of a kind in all panels of a session, which takes a quarter of the comms.  Buttons stand
beside each slider and each list, since a notebook keeps some of the keys that those want for itself:
Tab and Enter go everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as ipw

from rectify_widgets.widgets import markup
from rectify_widgets.widgets.panel import Panel

Conversion = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""What makes an entry's value of a trait's, and the other way round."""

INTERVAL = 900
"""Milliseconds between two samples while playing."""


class Controls:
    """Makes the controls of one panel.

    Args:
        panel: has the traits.
        label: width of the labels before lists and sliders, so that they stand in a column.
    """

    def __init__(self, panel: Panel, *, label: str = "auto") -> None:
        self._panel = panel
        self._label = label

    def layout(self, **options: str) -> ipw.Layout:
        """The layout of all controls that have these options."""
        layout: ipw.Layout = self._panel.looks.get(ipw.Layout, **options)
        return layout

    def style(self, kind: type[ipw.Widget], **options: str) -> Any:
        """The style of all controls of a kind that have these options."""
        return self._panel.looks.get(kind, **options)

    def button(
        self,
        text: str,
        icon: str,
        tip: str,
        method: str | Callable[[], object],
        *,
        primary: bool = False,
    ) -> ipw.Button:
        """A button with a text; ``method`` is the panel's, whose name gives the class ``rw-NAME``."""
        button = ipw.Button(
            description=text,
            icon=icon,
            tooltip=tip,
            button_style="primary" if primary else "",
            layout=self.layout(width="auto", flex="0 0 auto", margin="0"),
            style=self.style(ipw.ButtonStyle),
        )
        button.add_class("rw-action")
        if isinstance(method, str):
            button.add_class(f"rw-{method.replace('_', '-')}")
        call = getattr(self._panel, method) if isinstance(method, str) else method
        button.on_click(lambda _: self._panel.press(call))
        return button

    def arrow(self, icon: str, what: str, press: Callable[[], object]) -> ipw.Button:
        """A small button with an icon; ``what`` it does is its tooltip and its name."""
        button = ipw.Button(
            icon=icon,
            tooltip=what,
            layout=self.layout(width="32px", flex="0 0 auto", margin="0"),
            style=self.style(ipw.ButtonStyle),
        )
        button.add_class("rw-step")
        button.on_click(lambda _: self._panel.press(press))
        return button

    def choices(
        self, name: str, options: Mapping[str, str], label: str = "", tip: str = ""
    ) -> ipw.ToggleButtons:
        """A row of buttons for a trait; ``options`` are its values with what the buttons say."""
        buttons = ipw.ToggleButtons(
            options=[(text, value) for value, text in options.items()],
            value=getattr(self._panel, name),
            description=label,
            tooltip=tip or label or name.capitalize(),
            tooltips=[f"{tip or label or name.capitalize()}: {text}" for text in options.values()],
            layout=self.layout(width="auto", margin="0"),
            style=self.style(ipw.ToggleButtonsStyle, button_width="auto", description_width="auto"),
        )
        buttons.add_class("rw-choices")
        self._panel.link(name, buttons, "value")
        return buttons

    def pages(self, options: Mapping[str, str], title: str) -> ipw.ToggleButtons:
        """The heading of a card with the buttons of its pages at the other end of the line."""
        buttons = self.choices("page", options, title, "What this card shows")
        buttons.add_class("rw-pages")
        return buttons

    def choice(self, name: str, options: Sequence[Any], label: str) -> Choice:
        """A list with ◀ ▶ for a trait."""
        return Choice(self, self._panel, name, options, label)

    def samples(
        self, count: int, *, name: str = "index", label: str = "Sample", first: int = 1
    ) -> Samples:
        """◀ slider ▶ and play for a trait, a place among ``count``; the page counts from ``first``."""
        return Samples(self, self._panel, count, name, label, first)

    def field(
        self,
        kind: type[ipw.Widget],
        name: str,
        label: str,
        tip: str,
        *,
        width: str = "auto",
        shown: Conversion | None = None,
        **options: Any,
    ) -> Any:
        """An entry (``ipw.BoundedIntText``, ``ipw.Text``, ``ipw.Checkbox`` ...) for a trait.

        ``shown`` says what the entry shows of the trait, if it is not the trait itself.
        """
        value = getattr(self._panel, name)
        entry = kind(
            value=shown[0](value) if shown else value,
            description=label,
            tooltip=tip,
            layout=self.layout(width=width, flex="0 0 auto", margin="0"),
            style=self.described(kind),
            **options,
        )
        entry.add_class("rw-field")
        self._panel.link(name, entry, "value", shown)
        return entry

    def described(self, kind: type[ipw.Widget]) -> Any:
        """The style of all controls of a kind that have a label."""
        style = kind.class_traits()["style"].klass
        return self.style(style, description_width=self._label)

    def bar(self) -> ipw.FloatProgress:
        """A bar for the panel's progress that takes the room that is left in its row."""
        bar = ipw.FloatProgress(
            min=0.0,
            max=1.0,
            tooltip="How far the work is",
            layout=self.layout(flex="1 1 140px", min_width="80px", width="auto", height="28px"),
            style=self.described(ipw.FloatProgress),
        )
        bar.add_class("rw-progress")
        self._panel.listen(
            self._panel, lambda change: setattr(bar, "value", change["new"]), "progress"
        )
        return bar

    def text(self, html: str = "") -> ipw.HTML:
        """A piece of HTML among the controls."""
        return ipw.HTML(
            html,
            tooltip="",
            layout=self.layout(width="auto", margin="0"),
            style=self.described(ipw.HTML),
        )

    def state(self) -> ipw.HTML:
        """A line that says the panel's status, and below it what went wrong."""
        line = self.text()

        def show(_: object) -> None:
            line.value = markup.status_line(self._panel.status) + markup.error_box(
                self._panel.error
            )

        self._panel.listen(self._panel, show, ["status", "error"])
        show(None)
        return line

    def row(self, *children: ipw.Widget, name: str = "") -> ipw.HBox:
        """Controls side by side; what does not fit goes below, each whole."""
        box = ipw.HBox(
            children,
            layout=self.layout(flex_flow="row wrap", width="100%", align_items="center"),
        )
        box.add_class("rw-row")
        if name:
            box.add_class(f"rw-{name}")
        return box

    def unit(self, *children: ipw.Widget, grow: str = "0 0 auto") -> ipw.HBox:
        """Controls that stay together in one line."""
        layout = self.layout(flex_flow="row nowrap", align_items="center", flex=grow, width="auto")
        box = ipw.HBox(children, layout=layout)
        box.add_class("rw-unit")
        return box


def show(widget: ipw.Widget, *, visible: bool) -> None:
    """Show or hide a control; its layout may be that of others too."""
    (widget.remove_class if visible else widget.add_class)("rw-hidden")


class Samples:
    """◀ slider ▶ and play; `box` is hidden where there is one place.

    The slider shows numbers from ``first`` on; the trait is a place, from 0.
    """

    def __init__(
        self, controls: Controls, panel: Panel, count: int, name: str, label: str, first: int
    ) -> None:
        self._first, self._count, self._marked = first, count, dict[int, str]()
        self.slider = ipw.IntSlider(
            value=first,
            min=first,
            max=first + max(count - 1, 0),
            description=label,
            tooltip=f"{label} in view",
            continuous_update=False,
            layout=controls.layout(flex="1 1 290px", width="auto", min_width="290px"),
            style=controls.described(ipw.IntSlider),
        )
        self.play = ipw.Play(
            min=0,
            max=max(count - 1, 0),
            interval=INTERVAL,
            show_repeat=False,
            tooltip=f"Play: one {label.lower()} after the other",
            layout=controls.layout(width="auto", flex="0 0 auto", margin="0"),
            style=controls.described(ipw.Play),
        )
        self._panel, self._name = panel, name
        back = controls.arrow("chevron-left", f"Previous {label.lower()}", lambda: self._step(-1))
        on = controls.arrow("chevron-right", f"Next {label.lower()}", lambda: self._step(1))
        self.note = controls.text()
        self.box = controls.unit(self.slider, back, on, self.play, self.note, grow="1 1 430px")
        self.box.add_class("rw-stepper")
        self.resize(count)
        panel.link(name, self.slider, "value", (lambda at: at + first, lambda at: at - first))
        panel.link(name, self.play, "value")
        panel.listen(panel, lambda _: self._tell(), name)

    def resize(self, count: int) -> None:
        """Make room for another number of places."""
        self._count = count
        self.slider.max = self._first + max(count - 1, 0)
        self.play.max = max(count - 1, 0)
        show(self.box, visible=count > 1)
        self._tell()

    def mark(self, places: Iterable[int], words: str) -> None:
        """Say something of these places whenever one of them is in view; it is escaped."""
        self._marked |= dict.fromkeys(places, words)
        self._tell()

    def _tell(self) -> None:
        words = self._marked.get(getattr(self._panel, self._name), "")
        said = f"of {self._count}{' · ' if words else ''}{escape(words)}" if self._first else ""
        self.note.value = f'<span class="rw-num rw-of">{said}</span>' if said else ""

    def _step(self, by: int) -> None:
        place = getattr(self._panel, self._name) + by
        setattr(self._panel, self._name, place % self._count)


class Choice:
    """A list with ◀ ▶ for one of a panel's traits; None is a value too.

    ``options`` are values, or pairs of what the list says and the value.
    """

    def __init__(
        self, controls: Controls, panel: Panel, name: str, options: Sequence[Any], label: str
    ) -> None:
        self._panel, self._name, self._offering = panel, name, False
        self.list = ipw.Dropdown(
            options=_pairs(options),
            value=_plain(getattr(panel, name)),
            description=label,
            tooltip=label,
            layout=controls.layout(flex="1 1 160px", width="auto", min_width="160px"),
            style=controls.described(ipw.Dropdown),
        )
        back = controls.arrow("chevron-left", f"Previous {label.lower()}", lambda: self._step(-1))
        on = controls.arrow("chevron-right", f"Next {label.lower()}", lambda: self._step(1))
        self.box = controls.unit(self.list, back, on, grow="1 1 240px")
        self.box.add_class("rw-stepper")
        panel.listen(panel, self._show, [name])
        panel.listen(self.list, self._choose, ["value"])

    @property
    def values(self) -> list[Any]:
        """The values that can be chosen."""
        return [None if value == "" else value for _, value in self.list.options]

    def offer(self, options: Sequence[Any]) -> None:
        """List other options, and choose among them what the trait says, if it is there."""
        self._offering = True
        try:
            self.list.options = _pairs(options)
            value = getattr(self._panel, self._name)
            self.list.value = _plain(value) if value in self.values else None
        finally:
            self._offering = False

    def _show(self, change: Mapping[str, Any]) -> None:
        self.list.value = _plain(change["new"])

    def _choose(self, change: Mapping[str, Any]) -> None:
        if not self._offering:
            value = change["new"]
            setattr(self._panel, self._name, None if value == "" else value)

    def _step(self, by: int) -> None:
        count = len(self.list.options)
        self.list.index = ((self.list.index or 0) + by) % count


def _plain(value: Any) -> Any:
    return "" if value is None else value


def _pairs(options: Sequence[Any]) -> list[tuple[str, Any]]:
    return [
        (option[0], _plain(option[1])) if isinstance(option, tuple) else (str(option), option)
        for option in options
    ]
