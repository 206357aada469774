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
REDO = ":nth-match(.rw-redo, 1)"
CANCEL = ":nth-match(.rw-cancel, 1)"

LAYER = ".rw-lay tr[data-key]"
"""One layer's row, or a group's; its ``data-key`` is the layer's name."""

CHOSEN = ".rw-lay tr[data-chosen]"
"""The row of the chosen layer."""

MAPS = ".rw-maps"
MAP = ".rw-maps img"
MAP_AFTER = 'img[alt*="corrupted input, after"]'
"""The attribution map of the corrupted input under the edited model."""

MAP_GRID = ".rw-maps [data-grid]"
"""A map that says the number under the pointer."""

TIP = ".rw-tip"
OVERLAY = 'input[name="opacity"]'
METHODS = ".rw-map-controls select"
SAMPLE = ".rw-stepper .noUi-handle"
"""The handle of the slider that goes through the samples."""

STEP = ".rw-steps [data-set]"
"""One row of the history."""

STEPS = ".rw-history-card .noUi-handle"
"""The handle of the slider that goes through the history."""

STEP_ON = ":nth-match(.rw-history-card .rw-step, 2)"
"""The button to the next step."""

STATIC = ".rw-static"

CHOICE = '.rw-choices button:has-text("{}")'
"""A button of a row of choices, by its text."""

WAY_TAB = '.rw-way-tab[data-key="{}"]'
"""The tab of a step of the dashboard, by the step's name."""

ON = ".rw-go-on"
SHOW_CODE = ".rw-toggle-code"
CODE = ".rw-code"
REVEAL = ".rw-reveal"
SAVE = ":nth-match(.rw-save, 1)"
REPORT = ".rw-write-report"
REPORT_FILE = ".rw-row:has(> * > .rw-write-report) input"
CLOUD = ".rw-cloud"
"""The map of the references."""

SUSPICION = ".rw-sus tr[data-key]"
"""A row of the list of suspicions."""

SET_TILE = ".rw-tiles img"
SET_OPEN = ".rw-tiles td"
"""A picture of the whole set, and the tile around it, which opens its sample."""

FLIP = ".rw-flip"
CHART = ".rw-classes .rw-heat"
BRANCH = ".rw-branch-off"

STAGE = ".rw-stage"
"""The canvas of the painter."""

TOOL = ".rw-tools [data-tool={}]"
PAINT_UNDO = '.rw-tools button[title^="Take the last"]'
PAINT_REDO = '.rw-tools button[title^="Do it again"]'
CLEANSED = ".rw-cleansed img"
