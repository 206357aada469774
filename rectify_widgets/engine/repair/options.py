"""`RectifyOptions`: how a rectification goes about it, checked once.  Imports torch only.

Everything that decides which edits a call makes, apart from the model and the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rectify_widgets.engine.base.checks import check_choice, check_int, check_number
from rectify_widgets.engine.edit.closed_form import DIRECTIONS
from rectify_widgets.engine.find.candidates import RIDGES
from rectify_widgets.engine.find.localization import check_grid
from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.model.memory import check_limit
from rectify_widgets.engine.repair.refining import REFINE_STEPS

STRATEGIES = ("dynamic", "static")


@dataclass(frozen=True, kw_only=True)
class RectifyOptions:
    """The options of `rectify`, which documents them; its keywords have the same names and defaults.

    After construction all values are checked, ``directions`` and ``ridges`` are tuples, and
    ``refine_steps`` is a number.  ``dataclasses.asdict`` gives keywords for `rectify`.

    Raises:
        TypeError, ValueError: a wrong value; the message names the option.
    """

    strategy: str = "dynamic"
    layer: str | None = None
    method: str = "edit-attribution"
    max_rounds: int = 8
    max_degradation: float = 0.01
    target_gap: float = 0.02
    directions: Sequence[str] = DIRECTIONS
    ridges: Sequence[float] = RIDGES
    refine_steps: int | None = None
    memory_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("strategy", self.strategy, STRATEGIES)
        check_choice("method", self.method, RANKING_METHODS)
        if self.layer is not None and self.strategy != "static":
            raise ValueError(
                f"layer: got {self.layer!r} with strategy {self.strategy!r}, want "
                "strategy='static' to edit one named layer"
            )
        steps = self.refine_steps
        if steps is None:
            steps = REFINE_STEPS if self.strategy == "dynamic" else 0
        checked: dict[str, object] = {"memory_limit": check_limit(self.memory_limit)}
        for name, number, low in (
            ("max_rounds", self.max_rounds, 1), ("seed", self.seed, 0), ("refine_steps", steps, 0),
        ):  # fmt: skip
            checked[name] = check_int(name, number, low=low)
        for name in ("max_degradation", "target_gap"):
            checked[name] = check_number(name, getattr(self, name), low=0.0, high=1.0)
        checked["directions"], checked["ridges"] = check_grid(self.directions, self.ridges)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def rounds(self) -> int:
        """Bound on the number of rounds: ``"static"`` has one."""
        return 1 if self.strategy == "static" else self.max_rounds
