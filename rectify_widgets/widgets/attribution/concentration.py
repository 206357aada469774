"""How concentrated attribution maps are, over a whole set of inputs: figures and their HTML.

Pure functions on arrays; imports numpy and the renderers.  A map that is locked onto a trigger has
its weight on a few pixels, whatever the rest of the picture shows; an honest one spreads it over
the object.  One number a map, sorted, shows a whole set without a choice of examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from rectify_widgets.widgets import markup, render

Scores = NDArray[np.float64]
"""Concentration of one map a sample, NaN where a map is empty or not computed yet."""

PERCENTILES = (0, 10, 25, 50, 75, 90, 100)
"""Places in the sorted set whose samples are shown."""

BINS = 24
"""Bars of a distribution."""


def concentration(plane: NDArray[np.floating]) -> float:
    """Sparseness of a map's magnitudes: 0 where all pixels weigh the same, 1 where one has it all.

    For ``n`` pixels with magnitudes ``a`` it is ``(√n − ‖a‖₁ / ‖a‖₂) / (√n − 1)`` (Hoyer 2004,
    "Non-negative Matrix Factorization with Sparseness Constraints", section 3.1).  Here
    ``(‖a‖₁ / ‖a‖₂)²`` is the number of pixels that the weight would take if it were spread evenly.

    Why this one.  The Gini index (Hurley & Rickard 2009) is governed by how many pixels are near
    zero, and for methods that multiply by the input that is the dark background of every picture:
    on the shipped case it tells clean from corrupted maps hardly better than a coin.  The share
    in the strongest 5 % (or 1 %) of pixels has to be told how large a trigger is.  This one weighs
    large values by their square, and needs no such number.

    Args:
        plane: ``H × W``, of any sign and scale.

    Returns:
        0 to 1; NaN for a map of zeros, which is neither spread out nor concentrated.
    """
    magnitudes = np.abs(np.asarray(plane, np.float64)).ravel()
    peak = float(magnitudes.max(initial=0.0))
    if peak == 0.0:
        return math.nan
    if magnitudes.size == 1:
        return 1.0
    magnitudes = magnitudes / peak  # neither squares nor sums leave the range of floats
    root = math.sqrt(magnitudes.size)
    spread = float(magnitudes.sum()) / math.sqrt(float(magnitudes @ magnitudes))
    return min(max((root - spread) / (root - 1.0), 0.0), 1.0)


def spread_share(score: float, pixels: int) -> float:
    """Share of the pixels that the weight of a map would take if it were spread evenly."""
    root = math.sqrt(pixels)
    return ((root - score * (root - 1.0)) / root) ** 2


@dataclass(frozen=True)
class Pick:
    """A sample at one or several percentiles of a score.

    Attributes:
        percentiles: where it stands, of `PERCENTILES`.
        place: its place in the array of scores.
        score: its score.
    """

    percentiles: tuple[int, ...]
    place: int
    score: float

    @property
    def where(self) -> str:
        """The percentiles for people: "50 %", "0 to 25 %"."""
        first, last = self.percentiles[0], self.percentiles[-1]
        return f"{first} %" if first == last else f"{first} to {last} %"


def picks(scores: Scores, percentiles: Sequence[int] = PERCENTILES) -> tuple[Pick, ...]:
    """The samples that stand at these percentiles, least concentrated first.

    NaN are left out.  The sample at percentile ``p`` of ``n`` is the one of rank ``p (n − 1)``,
    rounded; in a small set one sample may stand at several.
    """
    known = np.flatnonzero(np.isfinite(scores))
    if not known.size:
        return ()
    ranked = known[np.argsort(scores[known], kind="stable")]
    found: dict[int, list[int]] = {}
    for percentile in percentiles:
        rank = math.floor(percentile / 100 * (ranked.size - 1) + 0.5)
        found.setdefault(int(ranked[rank]), []).append(percentile)
    return tuple(
        Pick(tuple(wanted), place, float(scores[place])) for place, wanted in found.items()
    )


def share_above(upper: Scores, lower: Scores) -> float | None:
    """Share of samples whose ``upper`` score is above their ``lower`` one; ties count half."""
    both = np.isfinite(upper) & np.isfinite(lower)
    if not both.any():
        return None
    a, b = upper[both], lower[both]
    return float((a > b).mean() + 0.5 * (a == b).mean())


# -- HTML -----------------------------------------------------------------------------------------


def number(score: float) -> str:
    """A concentration with two decimals, a dash where there is none."""
    return f"{score:.2f}" if math.isfinite(score) else "–"


def distribution_table(rows: Mapping[tuple[str, str], Scores], *, width: int = 144) -> str:
    """Distribution and quantiles of each kind of map; ``rows`` is (column, model) to scores.

    All distributions have one axis, whose ends stand above them: tenths that enclose all scores.
    """
    low, high = axis_of(rows.values())
    heads = "".join(
        f'<th class="rw-right">{head}</th>' for head in ("least", "10 %", "median", "90 %", "most")
    )
    body = ""
    for (column, model), scores in rows.items():
        known = scores[np.isfinite(scores)]
        name = f"{column}, {model.lower()}" if model else column
        if not known.size:
            body += f'<tr><td>{escape(name)}</td><td colspan="6">no map</td></tr>'
            continue
        marks = np.percentile(known, (0, 10, 50, 90, 100))
        counts, _ = np.histogram(known, bins=BINS, range=(low, high))
        alt = (
            f"Distribution of the concentration of {len(known)} maps, {name}: a tenth of them below "
            f"{marks[1]:.2f}, half below {marks[2]:.2f}, a tenth above {marks[3]:.2f}"
        )
        colour = render.FOR if model == "After" else render.AGAINST
        bars = render.histogram_tag(counts.tolist(), alt, width=width, colour=colour)
        figures = "".join(
            f'<td class="rw-right">{f"<b>{number(mark)}</b>" if place == 2 else number(mark)}</td>'
            for place, mark in enumerate(marks)
        )
        body += f'<tr><td>{escape(name)}</td><td class="rw-strip">{bars}</td>{figures}</tr>'
    return (
        '<table class="rw-table rw-distribution"><thead><tr><th>Maps</th>'
        f'<th class="rw-strip">{low:.1f} <span>→ more concentrated →</span> {high:.1f}</th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def axis_of(scores: Iterable[Scores]) -> tuple[float, float]:
    """The tenths that enclose all these scores."""
    every = [part[np.isfinite(part)] for part in scores]
    known = np.concatenate(every) if every else np.zeros(0)
    if not known.size:
        return 0.0, 1.0
    low = min(math.floor(float(known.min()) * 10), 9)
    return low / 10, max(math.ceil(float(known.max()) * 10), low + 1) / 10


def summary(rows: Mapping[tuple[str, str], Scores], *, pixels: int, scored: int, count: int) -> str:
    """What the distributions say, in words; not escaped."""
    words = []
    models = list(dict.fromkeys(model for _, model in rows))
    for model in models:
        pair = [rows.get((column, model)) for column in ("Corrupted", "Clean")]
        share = None if pair[0] is None or pair[1] is None else share_above(pair[0], pair[1])
        if share is not None:
            words.append(f"{model.lower() + ': ' if model else ''}{markup.percent(share)}")
    sentences = []
    if words:
        sentences.append(
            "Samples whose corrupted map is more concentrated than the clean one: "
            + ", ".join(words)
            + " (50 % is no difference)."
        )
    middles = [
        f"{column.lower()}{' ' + model.lower() if model else ''} "
        f"{markup.percent(spread_share(float(np.nanmedian(scores)), pixels))}"
        for (column, model), scores in rows.items()
        if np.isfinite(scores).any()
    ]
    if middles:
        sentences.append(
            "The median map's weight, spread evenly, would take this share of the pixels: "
            + ", ".join(middles)
            + "."
        )
    some = f"{scored} of {count} samples, drawn at random" if scored < count else f"{count} samples"
    sentences.append(f"Scored: {some if count > 1 else '1 sample'}.")
    empty = sum(int(np.isnan(scores).sum()) for scores in rows.values())
    if empty:
        sentences.append(f"Empty maps, which have no score: {empty}.")
    return " ".join(sentences)
