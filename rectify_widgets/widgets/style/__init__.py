"""The look of the widgets, for light and dark themes: the style sheets of this folder in one piece.

Imports nothing but the standard library.  Colours of text, lines and surfaces are the theme's own
(JupyterLab's custom properties, with fallbacks for front ends without them).
"""

from __future__ import annotations

import re
from importlib.resources import files

SHEETS = ("base", "attribution", "editability", "prediction", "history", "dashboard")
"""Names of the sheets, in the order in which they apply: the shared one, then one for a widget."""


def read_sheets(*names: str) -> str:
    """These sheets in one line, without comments: they travel with every widget and snapshot."""
    folder = files(__name__)
    text = "".join((folder / f"{name}.css").read_text(encoding="utf-8") for name in names)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text).strip()


STYLE = f"<style>{read_sheets(*SHEETS)}</style>"
"""The sheets of all widgets, as an element."""

PAGE = read_sheets("page")
"""The sheet of exported pages, where there is no notebook to give colours and a font."""
