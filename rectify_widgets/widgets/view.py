"""The one view of a panel: HTML that Python renders, with handles in it that a page can act on.

Imports anywidget.  The HTML comes from pure functions, escaped; ``view.js`` shows it and hands back
what the reader does.  The live view and the static snapshot are the same HTML: `still` leaves the
handles out.  The handles are attributes:

``data-set='{"layer": "conv1"}'``
    a click, Enter or an arrow key sets these traits of the panel.
``data-do='{"fold": "stage1"}'``
    a click or Enter calls this method of the panel with that argument.
``data-list``
    arrow keys go from handle to handle within it; it scrolls to the one that is chosen.
``data-key="conv1"``
    survives a redraw with focus, scroll position and open parts.
``data-zoom``
    its contents are magnified and moved together with those of all others in the view.
``data-grid`` (see `grid`)
    the number under the pointer is shown.
``data-live="--rw-opacity"``
    of ``<input name="opacity">``: the page follows its value in a CSS variable of the view's first
    element, and only its release sets the trait.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape, unescape
from importlib.resources import files
from typing import Any, Protocol

import anywidget
import numpy as np
import traitlets

from rectify_widgets.widgets.render import Floats, shrink_plane
from rectify_widgets.widgets.style import read_sheets

GRID = 64
"""Longest side of the numbers behind a map; of larger maps each number is a mean."""


class Owner(Protocol):
    """What a view asks of its panel."""

    handles: tuple[str, ...]

    def has_trait(self, name: str) -> bool:
        """Whether there is such a trait."""

    def press(self, method: Callable[[], object]) -> None:
        """Call the method, and show what it raises."""


class View(anywidget.AnyWidget):
    """A panel's HTML on the page.

    Args:
        panel: names in `Panel.handles` the traits and methods that the HTML may set and call.
        sheets: names of style sheets, after the shared one.
        **options: of every widget, such as its layout.
    """

    _esm = (files(__package__) / "view.js").read_text(encoding="utf-8")
    _css = traitlets.Unicode("").tag(sync=True)

    html = traitlets.Unicode("").tag(sync=True)
    """What is shown."""

    marks = traitlets.Dict().tag(sync=True)
    """Names of traits with their values: handles that set these are marked as chosen.  Apart from
    `html`, so that a click does not send the whole view again."""

    def __init__(self, panel: Owner, sheets: Sequence[str] = (), **options: Any) -> None:
        names = ("base", *sheets)
        # A page has one style element for each id, which by default is that of the class.
        super().__init__(_css=read_sheets(*names), _anywidget_id="rw-" + "-".join(names), **options)
        self._panel: Owner | None = panel
        self.on_msg(lambda _, message, __: self.act(message))

    def act(self, message: Mapping[str, Any]) -> None:
        """What a click does: ``{"set": {trait: value}, "do": {method: argument}}``.

        Names that are not among the panel's handles are ignored; what a trait or a method raises is
        shown by the panel.
        """
        panel = self._panel
        if panel is None:
            return
        for name, value in message.get("set", {}).items():
            if name in panel.handles and panel.has_trait(name):
                panel.press(partial(setattr, panel, name, value))
        for name, argument in message.get("do", {}).items():
            if name in panel.handles and not panel.has_trait(name):
                given = () if argument is None else (argument,)
                panel.press(partial(getattr(panel, name), *given))

    def close(self) -> None:
        """Let go of the panel."""
        self._panel = None
        super().close()


def to_set(key: str | None = None, **traits: object) -> str:
    """Attributes of an element that sets these traits; ``key`` keeps its focus over a redraw."""
    return _attributes("set", traits, key)


def to_do(method: str, argument: object = None, key: str | None = None) -> str:
    """Attributes of an element that calls a method of the panel."""
    return _attributes("do", {method: argument}, key)


def _attributes(name: str, values: Mapping[str, object], key: str | None) -> str:
    kept = "" if key is None else f' data-key="{escape(key)}"'
    return f' data-{name}="{escape(json.dumps(values, ensure_ascii=False))}"{kept}'


def grid(plane: Floats, what: str = "") -> str:
    """Attributes of an element that says the number under the pointer.

    Args:
        plane: ``H × W`` numbers.
        what: what they are, said after each number.
    """
    small = shrink_plane(plane, GRID)
    top = float(np.abs(small).max()) or 1.0
    steps = np.clip(np.rint(small * (127 / top)), -127, 127).astype(np.int8)
    numbers = b64encode(steps.tobytes()).decode("ascii")
    (rows, cols), (height, width) = small.shape, plane.shape
    return (
        f' data-grid="{numbers}" data-top="{top:.6g}" data-rows="{rows}" data-cols="{cols}" '
        f'data-height="{height}" data-width="{width}" data-what="{escape(what)}"'
    )


_HANDLE = re.compile(
    r' data-(?:set|do|key|live|grid|top|rows|cols|height|width|what)="([^"]*)"'
    r"| data-(?:list|zoom)\b"
)
_LIVE = re.compile(r"<(label|span|div) data-only-live>.*?</\1>", re.DOTALL)
_SVG = re.compile(
    r'<svg [^>]*?width="(\d+)" height="(\d+)" aria-label="([^"]*)".*?</svg>', re.DOTALL
)


def still(html: str, marks: Mapping[str, object]) -> str:
    """The same HTML for a place without scripts: no handles, and what was chosen stays marked.

    What makes sense on a live page alone, ``<span data-only-live>`` (or label, div), is left out, and
    drawings become pictures, since many places that show HTML refuse ``<svg>``.
    """

    def plain(match: re.Match[str]) -> str:
        if not match[0].startswith(" data-set="):
            return ""
        set_ = json.loads(unescape(match[1]))
        mine = [name for name in marks if name in set_]
        chosen = mine and all(_same(set_[name], marks[name]) for name in mine)
        return " data-chosen" if chosen else ""

    return _SVG.sub(_picture, _HANDLE.sub(plain, _LIVE.sub("", html)))


def _picture(match: re.Match[str]) -> str:
    width, height, alt = match.groups()
    drawing = match[0].replace(" data-chosen", ' data-chosen=""')  # XML wants a value
    data = b64encode(drawing.encode()).decode("ascii")
    return f'<img src="data:image/svg+xml;base64,{data}" alt="{alt}" width="{width}" height="{height}">'


def _same(one: object, other: object) -> bool:
    """Equal once they are JSON, where a tuple is a list."""
    return json.dumps(one) == json.dumps(other)
