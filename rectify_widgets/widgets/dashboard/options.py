"""`RectifyOptions`: how a rectification goes about it, as traits that are checked when set.

Imports the engine's checks and traitlets; no ipywidgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import traitlets

from rectify_widgets.engine.base.checks import check_choice, check_int, check_number
from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.repair.options import STRATEGIES
from rectify_widgets.engine.repair.refining import REFINE_STEPS


class RectifyOptions(traitlets.HasTraits):
    """Options of `rectify_widgets.rectify`, for a widget that shows them as fields."""

    method = traitlets.Unicode("edit-attribution")
    """How layers are ranked, see `rectify_widgets.localize`."""

    strategy = traitlets.Unicode("dynamic")
    """``"dynamic"``, or ``"static"`` for one edit of the chosen layer."""

    target_gap = traitlets.Float(0.02)
    """Gap at which the behaviour counts as removed, a fraction."""

    max_degradation = traitlets.Float(0.01)
    """Budget for the loss of accuracy on uncorrupted inputs, a fraction."""

    max_rounds = traitlets.Int(8)
    """Most rounds of a rectification."""

    refine_steps = traitlets.Int(REFINE_STEPS)
    """Gradient steps on the best edits of a round, with the dynamic strategy; 0 for none."""

    def set_options(
        self,
        *,
        method: object,
        strategy: object,
        target_gap: object,
        max_degradation: object,
        max_rounds: object,
        refine_steps: object,
    ) -> None:
        """Set all of them, checked as arguments: a wrong one is a `TypeError` or `ValueError`."""
        self.method = check_choice("method", method, RANKING_METHODS)
        self.strategy = check_choice("strategy", strategy, STRATEGIES)
        self.target_gap = check_number("target_gap", target_gap, low=0.0, high=1.0)
        self.max_degradation = check_number("max_degradation", max_degradation, low=0.0, high=1.0)
        self.max_rounds = check_int("max_rounds", max_rounds, low=1)
        self.refine_steps = check_int("refine_steps", refine_steps, low=0)

    def rectify_options(self, layer: str | None) -> dict[str, Any]:
        """Keywords for `rectify`; the static strategy edits ``layer``."""
        names = ("method", "strategy", "target_gap", "max_degradation", "max_rounds")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.strategy == "static":
            options["layer"] = layer
        else:
            options["refine_steps"] = self.refine_steps
        return options

    @traitlets.validate("method")
    def _check_method(self, proposal: Mapping[str, str]) -> str:
        return check_choice("method", proposal["value"], RANKING_METHODS)

    @traitlets.validate("strategy")
    def _check_strategy(self, proposal: Mapping[str, str]) -> str:
        return check_choice("strategy", proposal["value"], STRATEGIES)

    @traitlets.validate("target_gap", "max_degradation")
    def _check_share(self, proposal: Mapping[str, Any]) -> float:
        return check_number(proposal["trait"].name, proposal["value"], low=0.0, high=1.0)

    @traitlets.validate("max_rounds")
    def _check_rounds(self, proposal: Mapping[str, int]) -> int:
        return check_int("max_rounds", proposal["value"], low=1)

    @traitlets.validate("refine_steps")
    def _check_steps(self, proposal: Mapping[str, int]) -> int:
        return check_int("refine_steps", proposal["value"], low=0)
