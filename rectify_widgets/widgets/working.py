"""Goes as soon as every viewer has moved to `panel`."""

from __future__ import annotations

from rectify_widgets.widgets.base import Panel as Working

__all__ = ["Working"]
