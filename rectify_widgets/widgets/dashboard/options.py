"""The options of a rectification as traits of a widget; the engine checks and documents them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import traitlets

from rectify_widgets.engine.repair.options import RectifyOptions

DEFAULTS = RectifyOptions()

OPTIONS = tuple(field.name for field in fields(RectifyOptions))
"""Names of everything that can be given."""

FIELDS = ("method", "strategy", "target_gap", "max_degradation", "max_rounds", "refine_steps")
"""Those that can be changed in the widget."""


class OptionTraits(traitlets.HasTraits):
    """Options of `rectify_widgets.rectify` for a widget that shows some of them as fields."""

    method = traitlets.Unicode(DEFAULTS.method)
    """How layers are ranked, see `rectify_widgets.localize`."""

    strategy = traitlets.Unicode(DEFAULTS.strategy)
    """``"dynamic"``, or ``"static"`` for one edit of the chosen layer."""

    target_gap = traitlets.Float(DEFAULTS.target_gap)
    """Gap at which the behaviour counts as removed, a fraction."""

    max_degradation = traitlets.Float(DEFAULTS.max_degradation)
    """Budget for the loss of accuracy on uncorrupted inputs, a fraction."""

    max_rounds = traitlets.Int(DEFAULTS.max_rounds)
    """Most rounds of a rectification."""

    refine_steps = traitlets.Int(DEFAULTS.refine_steps)
    """Gradient steps on the best edits of a round, with the dynamic strategy; 0 for none."""

    _given = DEFAULTS

    def set_options(self, **given: Any) -> None:
        """Start from these; a wrong one is a `TypeError` or `ValueError` that names it."""
        self._given = RectifyOptions(**given)
        for name in FIELDS:
            if name in given:
                setattr(self, name, getattr(self._given, name))

    def options(self, layer: str | None) -> RectifyOptions:
        """The current options; the static strategy edits ``layer``."""
        values: dict[str, Any] = {name: getattr(self, name) for name in FIELDS}
        static = self.strategy == "static"
        values |= {"layer": layer, "refine_steps": None} if static else {"layer": None}
        return replace(self._given, **values)

    @traitlets.validate(*FIELDS)
    def _check_option(self, proposal: Mapping[str, Any]) -> Any:
        name = proposal["trait"].name
        return getattr(replace(DEFAULTS, **{name: proposal["value"]}), name)
