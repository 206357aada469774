"""The options of a rectification as traits of a widget; the engine checks and documents them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import traitlets

from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.widgets.checks import CheckedTrait

DEFAULTS = RectifyOptions()

OPTIONS = tuple(field.name for field in fields(RectifyOptions))
"""Names of everything that can be given."""


def _check(name: str, value: object) -> Any:
    given: dict[str, Any] = {name: value}
    return getattr(replace(DEFAULTS, **given), name)


class OptionTraits(traitlets.HasTraits):
    """The options of `rectify_widgets.rectify` that a widget shows as fields."""

    method = CheckedTrait(DEFAULTS.method, _check).tag(sync=True)
    strategy = CheckedTrait(DEFAULTS.strategy, _check)
    target_gap = CheckedTrait(DEFAULTS.target_gap, _check)
    max_degradation = CheckedTrait(DEFAULTS.max_degradation, _check)
    max_rounds = CheckedTrait(DEFAULTS.max_rounds, _check)
    refine_steps = CheckedTrait(DEFAULTS.refine_steps, _check)
    memory_limit = CheckedTrait(DEFAULTS.memory_limit, _check)

    _given = DEFAULTS

    def set_options(self, **given: Any) -> None:
        """Start from these; a wrong one is a `TypeError` or `ValueError` that names it."""
        self._given = RectifyOptions(**given)
        for name in OptionTraits.class_own_traits():
            if name in given:
                setattr(self, name, getattr(self._given, name))

    def options(self, layer: str | None) -> RectifyOptions:
        """The current options; the static strategy edits ``layer``."""
        values = {name: getattr(self, name) for name in OptionTraits.class_own_traits()}
        static = self.strategy == "static"
        values |= {"layer": layer, "refine_steps": None} if static else {"layer": None}
        return replace(self._given, **values)
