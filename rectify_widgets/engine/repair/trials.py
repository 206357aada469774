"""The trials of one round and their record.  Imports torch only."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from rectify_widgets.engine.find.candidates import Candidate
from rectify_widgets.engine.measure.judge import Verdict
from rectify_widgets.engine.repair.result import Step

TO_COME = (2.0, 1.0, 0.7)
"""Rounds to expect after the one under way, by the number of those that kept an edit before it: within
a factor of two where there are two to five in all, as with every shipped Trojan and spurious correlation."""
LATER = 0.5
"""The same after more rounds."""
SHARE = 0.6
"""What a trial takes of a whole measurement: what comes before the layer is not run again, and hopeless
ones are broken off (0.40 to 0.94 in twelve rounds on four cases)."""


@dataclass
class Trials:
    """The trials of one round."""

    number: int
    """Number of the round."""
    scores: Mapping[str, float]
    """Editability of the layers in it."""
    count: int = 0
    """How many edits are tried; 0 while they are not chosen."""
    best: tuple[Candidate, Verdict, int] | None = None
    """The edit to keep, its verdict, and its row among all steps."""

    def step(
        self,
        candidate: Candidate,
        verdict: Verdict | None,
        before: Verdict,
        reason: str | None,
        began: float,
        *,
        layer: str | None = None,
        kept: str = "best of this round",
    ) -> Step:
        """The record of a trial; ``reason`` says why the edit is not kept, ``kept`` otherwise."""
        name = candidate.layer.name
        whole = verdict if verdict and verdict.finished else None
        return Step(
            round=self.number,
            layer=layer or name,
            score=self.scores[name],
            direction=candidate.direction,
            ridge=candidate.ridge,
            gap_before=before.gap,
            gap_after=verdict.gap if verdict else None,
            degradation_before=before.degradation,
            degradation_after=whole.degradation if whole else None,
            worst_class=whole.worst_class if whole else None,
            accepted=reason is None,
            reason=reason or kept,
            seconds=time.perf_counter() - began,
            sufferer=whole.sufferer if whole else None,
            refined=candidate.refined,
            objective=whole.objective if whole else None,
        )


def rounds_to_come(kept: int, at_most: int) -> float:
    """Rounds to expect after the one under way, ``kept`` having kept an edit; ``at_most`` may follow."""
    return min(TO_COME[kept] if kept < len(TO_COME) else LATER, at_most)
