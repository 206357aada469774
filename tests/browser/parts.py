"""CSS selectors of what the browser tests look at and click: the one place that knows them.

A class ``rw-…`` is part of what a widget promises to the tests; everything else about its look may
change.
"""

from __future__ import annotations

PANEL = ".rw-panel"
STATUS = ".rw-status"
ERROR = ".rw-error"
CARD = ".rw-card"
CARDS = ".rw-cards"

# The dashboard's own buttons come before those of the viewers inside it.
RECTIFY = ":nth-match(.rw-rectify, 1)"
LOCATE = ":nth-match(.rw-locate, 1)"
EDIT = ":nth-match(.rw-edit, 1)"
UNDO = ":nth-match(.rw-undo, 1)"
CANCEL = ":nth-match(.rw-cancel, 1)"

ROW = ".rw-row"
"""One layer's bar."""

CHOSEN = ".rw-chosen"
"""The bar of the chosen layer."""

MAPS = ".rw-maps"
MAP = ".rw-maps img"
MAP_AFTER = 'img[alt*="corrupted input, after"]'
"""The attribution map of the corrupted input under the edited model."""

SLIDER = ".noUi-handle"
HISTORY = ".rw-history"
STATIC = ".rw-static"
