"""Who is better, and by more than the measurement can resolve: the one place where that is decided.

Imports the cases' names and pandas.  Two methods are compared on the same pairs, seed by seed, by
two figures: the *headline* of the behaviour and the loss of overall accuracy (OA), both better when
lower.

- Trojan: attack success rate (ASR), the mean over all triggers of the case.  What lies below the
  *floor*, the clean target rate of the unrepaired network, counts as the floor: a network that
  takes so many clean images for the target cannot be asked for less.
- Spurious correlation: the absolute bias.
- Leakage: net attribution on the label-free block.

They *tie* where the mean difference is within `ERRORS` standard errors of it over the seeds, or
within `LEAST`, whichever is more: a few test images, or a hundredth of the net attribution before
any repair.  With one seed there is no standard error, and `LEAST` alone decides.

`dynamic` *wins* where its headline is lower and its OA loss not larger; it *loses* where its
headline is higher and its OA loss not smaller, or its headline ties and its OA loss is larger; one
lower and the other higher is a *trade-off*; all else is a tie.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np
from pandas import DataFrame

from rectify_widgets.cases.definition import DEFINITIONS

Figures: TypeAlias = Mapping[str, float]
"""What `Case.figures` gives."""

TROJAN, SPURIOUS, LEAKAGE = "trojan", "spurious", "leakage"
WINS, TIES, TRADES, LOSES = "dynamic wins", "tie", "trade-off", "dynamic loses"
VERDICTS = (WINS, TIES, TRADES, LOSES)

HEADLINES = {TROJAN: "ASR", SPURIOUS: "bias", LEAKAGE: "net attribution"}
LEAST = {TROJAN: 0.0005, SPURIOUS: 0.002, LEAKAGE: 0.01}
"""Fractions; of leakage, a share of the figure before any repair."""
LEAST_OA = 0.0005
ERRORS = 2.0
SUCCESS = "attack_success_rate"


def behaviour(case: str) -> str:
    """Which of the three a case shows."""
    return DEFINITIONS[case].behaviour


def scale(case: str) -> float:
    """What turns the headline of a case into what is printed: per cent, or itself."""
    return 1.0 if behaviour(case) == LEAKAGE else 100.0


def headline(case: str, figures: Figures, before: Figures) -> float:
    """The figure that methods are judged by; lower is better."""
    kind = behaviour(case)
    if kind == SPURIOUS:
        return abs(figures["spurious_bias"])
    if kind == LEAKAGE:
        return figures["net_attribution"]
    floor = before["clean_target_rate"]
    return statistics.fmean(
        max(value, floor) for name, value in figures.items() if name.startswith(SUCCESS)
    )


def lost(figures: Figures, before: Figures) -> float:
    """Loss of overall accuracy, a fraction."""
    return before["overall_accuracy"] - figures["overall_accuracy"]


def compare(case: str, own: DataFrame, other: DataFrame, before: Figures) -> str | None:
    """The verdict on `dynamic` with both differences, "VERDICT: …"; None where no seed is shared.

    Args:
        case: its name.
        own, other: columns ``headline`` and ``lost``, one row a seed, which is the index.
        before: figures of the unrepaired network.
    """
    gains = (other[["headline", "lost"]] - own[["headline", "lost"]]).dropna()
    if gains.empty:
        return None
    kind = behaviour(case)
    least = LEAST[kind] * (before["net_attribution"] if kind == LEAKAGE else 1.0)
    resolved = np.maximum(ERRORS * gains.sem().fillna(0.0), [least, LEAST_OA])
    main, cost = gains.mean().where(gains.mean().abs() > resolved, 0.0)
    verdict = _verdict(main, cost)
    main_text = _text(main * scale(case), "lower", "higher")
    cost_text = _text(cost * 100.0, "smaller", "larger")
    return f"{verdict}: {HEADLINES[kind]} {main_text}, OA loss {cost_text}"


def tally(comparisons: Iterable[str]) -> dict[str, int]:
    """How often each verdict was given, of what `compare` says."""
    given = [one.partition(":")[0] for one in comparisons]
    return {verdict: given.count(verdict) for verdict in VERDICTS if verdict in given}


def _verdict(main: float, cost: float) -> str:
    if main * cost < 0:
        return TRADES
    if main > 0:
        return WINS
    return LOSES if main < 0 or cost < 0 else TIES


def _text(gain: float, better: str, worse: str) -> str:
    """A resolved difference for people, from the view of `dynamic`."""
    return f"{better if gain > 0 else worse} by {abs(gain):.2f}" if gain else "tie"
