"""The methods that one would otherwise pick, for comparison.  Imports torch and the engine.

Each is a re-implementation from its paper, in a file of its own that says what the published
defaults are and what differs.  One function runs them all:

    run("p_clarc", model, pairs, reference=reference, validation=(x, y)).model

Options that are not given are tuned on the validation split by one tuner
(`rectify_widgets.baselines.tuning`) or, without such a split, have their published default.  Nothing
else in the package may use this room.

Example:
    >>> from rectify_widgets import baselines
    >>> sorted(baselines.BASELINES)[:3]
    ['a_clarc', 'another_explanation', 'fine_pruning']
"""

from __future__ import annotations

from rectify_widgets.baselines.method import Baseline, Method, Option, TuningTrial
from rectify_widgets.baselines.registry import BASELINES, run

__all__ = ["BASELINES", "Baseline", "Method", "Option", "TuningTrial", "run"]
