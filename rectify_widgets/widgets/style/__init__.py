"""The look of the widgets, for light and dark themes: a style sheet for each, and a shared one.

Imports nothing but the standard library.  Colours of text, lines and surfaces are the theme's own
(JupyterLab's custom properties, with fallbacks for front ends without them).
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

SHEETS = (
    "attribution", "editability", "prediction", "history", "painter", "suspicion", "dashboard",
)  # fmt: skip
"""Sheets of single widgets; each applies after the shared one, ``base``."""


def read_sheets(*names: str) -> str:
    """These sheets in one line, without comments: they travel with every widget and snapshot."""
    folder = files(__name__)
    text = "".join((folder / f"{name}.css").read_text(encoding="utf-8") for name in names)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text).strip()


@cache
def element(*names: str) -> str:
    """``<style>`` with the shared sheet and those of some widgets."""
    return f"<style>{read_sheets('base', *names)}</style>"


PAGE = read_sheets("page")
"""The sheet of exported pages, where there is no notebook to give colours and a font."""

AUDIT = read_sheets("audit")
"""The sheet of an audit report, on screens and on paper."""
