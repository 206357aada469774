"""Which candidate edits a round tries, and in which order.  Imports the engine's candidates alone."""

from __future__ import annotations

from collections.abc import Mapping

from rectify_widgets.engine.find.candidates import Candidate, different
from rectify_widgets.engine.find.ranking import RankingMethod

TRIALS = 10
"""Layers whose best edit is tried in one round, and edits that are tried for their prediction alone."""


def shortlist(
    options: Mapping[str, list[Candidate]],
    scores: Mapping[str, float],
    method: RankingMethod,
    *,
    hopeful: bool = False,
) -> list[Candidate]:
    """The edits to try: the best one of each layer at the top, then further ones of these layers.

    Predictions of one layer's edits are wrong together, so that a second edit of a layer comes after
    the first of every other one at the top.  It is tried where its own prediction is among the best
    of all edits or, with a method that scores layers alone, while fewer than `TRIALS` have been.

    Args:
        options: candidate edits by layer, each layer's best first.
        scores: of the layers.
        method: how they were scored.
        hopeful: whether to leave out, where trials take long, edits that are predicted to cost more
            than they close, if there are others.  Of 73 edits that closed forms kept in the shipped
            cases and on photographs none was such a one in a first round, and eight in later ones,
            of which none improved the objective by more than 0.015.
    """
    few = {name: different(found) for name, found in options.items() if found}
    if hopeful and method.by_edit:
        some = {name: [one for one in found if one.score > 0] for name, found in few.items()}
        few = {name: found for name, found in some.items() if found} or few
    ranked = sorted(few, key=lambda name: -scores[name])
    first = [few[name][0] for name in ranked[:TRIALS]]
    if method.by_edit:
        every = [candidate for each in few.values() for candidate in each]
        again = sorted(every, key=lambda candidate: -candidate.score)[:TRIALS]
    else:
        again = [candidate for name in ranked for candidate in few[name][1:]]
        again = again[: TRIALS - len(first)]
    return [*first, *(candidate for candidate in again if candidate not in first)]
