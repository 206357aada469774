"""The methods that one would otherwise pick, for comparison.  Imports torch and the engine.

Each is a re-implementation from its paper, in a file of its own that says what the published
defaults are and what differs.  All have one signature,

    method(model, pairs, *, reference=None, validation=None, augmented=False, opacity=None, seed=0,
           progress=None, cancel=None, **options) -> Baseline

with their own options beside it: what is None is tuned on the validation split by one tuner
(`rectify_widgets.baselines.tuning`) or, without such a split, has its published default.  Nothing
else in the package may use this room but the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from rectify_widgets.baselines.augmentative_clarc import a_clarc
from rectify_widgets.baselines.baseline import Baseline, Trial
from rectify_widgets.baselines.fine_pruning import fine_prune
from rectify_widgets.baselines.fine_tuning import fine_tune
from rectify_widgets.baselines.last_layer import retrain_last_layer
from rectify_widgets.baselines.projective_clarc import p_clarc
from rectify_widgets.baselines.rewriting import rewrite
from rectify_widgets.baselines.right_for_right_reasons import another_explanation, right_reasons
from rectify_widgets.baselines.right_reason_clarc import rr_clarc

BASELINES: MappingProxyType[str, Callable[..., Baseline]] = MappingProxyType(
    {
        "fine_tuning": fine_tune,
        "fine_pruning": fine_prune,
        "p_clarc": p_clarc,
        "a_clarc": a_clarc,
        "rr_clarc": rr_clarc,
        "rewriting": rewrite,
        "right_reasons": right_reasons,
        "another_explanation": another_explanation,
        "last_layer": retrain_last_layer,
    }
)
"""Every method by name."""

__all__ = [
    "BASELINES",
    "Baseline",
    "Trial",
    "a_clarc",
    "another_explanation",
    "fine_prune",
    "fine_tune",
    "p_clarc",
    "retrain_last_layer",
    "rewrite",
    "right_reasons",
    "rr_clarc",
]
