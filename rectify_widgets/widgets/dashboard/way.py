"""The steps from a suspicion to a saved repair, as a row of tabs with what each found.  Pure functions.

Imports `markup` and the handles of `view`.  Everything that comes from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from rectify_widgets.reveal.suspicions import Suspicion, Suspicions
from rectify_widgets.widgets import markup
from rectify_widgets.widgets.view import to_set

STEPS = {
    "reveal": "Reveal",
    "cleanse": "Cleanse",
    "locate": "Locate",
    "rectify": "Rectify",
    "evaluate": "Evaluate",
    "save": "Save",
}
"""Steps in order, with their titles."""

REPAIR = ("locate", "rectify", "evaluate", "save")
"""Those that have pairs to work with."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known on the way.

    Attributes:
        references: how many there are, None where they are not counted, 0 where there are none.
        found: suspicions, or None before a search.
        chosen: the suspicion that is chosen.
        painting: samples that are painted and all that can be, or None without a painter.
        pairs: how many there are.
        source: where they come from, in words.
        best: layer that scores best, or None.
        edits: edits of the version in view.
        gaps: gap before and after them, shares of 0..1 or None.
        degradation: what they cost, a share of 0..1 or None.
        right: share of corrupted samples taken for their label, before and after, where known.
        saved: name of the file that they are in, or None.
        report: name of the page that reports them, or None.
    """

    references: int | None
    found: Suspicions | None
    chosen: Suspicion | None
    painting: tuple[int, int] | None
    pairs: int
    source: str
    best: str | None
    edits: int
    gaps: tuple[float | None, float | None]
    degradation: float | None
    right: tuple[float, ...]
    saved: str | None
    report: str | None


@dataclass(frozen=True)
class Tab:
    """A step: a sign and a few words for its tab, and what it needs, found, and leads to."""

    sign: str
    short: str
    needs: str
    found: str
    after: str


def tabs(facts: Facts) -> Mapping[str, Tab]:
    """What each step has to say."""
    return {
        "reveal": _reveal(facts), "cleanse": _cleanse(facts), "locate": _locate(facts),
        "rectify": _rectify(facts), "evaluate": _evaluate(facts), "save": _save(facts),
    }  # fmt: skip


def _reveal(facts: Facts) -> Tab:
    count = facts.references
    needs = "references" if count is None else markup.some(count, "reference")
    if count == 0:
        needs = "references, which were not given (reference=)"
    if facts.found is not None:
        accused = len(facts.found.accused)
        after = "Continue, or go on looking elsewhere: this search accuses nothing."
        if facts.chosen is not None and facts.chosen.pairs is not None:
            after = "Continue takes the pairs of the chosen suspicion."
        elif facts.chosen is not None and len(facts.chosen.inputs):
            after = "Continue takes the references that carry it to the painter."
        return Tab("✓", f"{accused} accused", needs, facts.found.verdict, after)
    if facts.pairs:
        return Tab("–", "skipped", needs, f"not needed: {facts.source}", "Locate.")
    after = "Reveal searches them; references selected in the map can be painted over."
    return Tab("", "not searched", needs, "not searched yet", after)


def _cleanse(facts: Facts) -> Tab:
    needs = "inputs that show the flaw, and what to paint out"
    painted = "" if facts.painting is None else "{} of {} painted".format(*facts.painting)
    if facts.pairs:
        words = f"{markup.some(facts.pairs, 'pair')}, {facts.source}"
        after = "Continue; what is painted anew makes other pairs." if painted else "Locate."
        return Tab("✓", markup.some(facts.pairs, "pair"), needs, words, after)
    after = "Paint, or have a mask suggested; Continue makes pairs of what is painted."
    if not painted:
        after = "Choose a suspicion or select references in Reveal, and continue there."
    return Tab("", painted or "no pairs", needs, painted or "nothing to paint on yet", after)


def _pairs(facts: Facts) -> str:
    return markup.some(facts.pairs, "pair") if facts.pairs else "pairs, from Reveal or Cleanse"


def _locate(facts: Facts) -> Tab:
    needs, after = _pairs(facts), "Locate scores the layers, and so does Rectify."
    if facts.best is None:
        return Tab("", "not scored", needs, "layers are not scored yet", after)
    return Tab("✓", facts.best, needs, f"{facts.best} scores best", "Rectify, or edit one layer.")


def _rectify(facts: Facts) -> Tab:
    if not facts.edits:
        after = "Rectify edits layers until the gap is closed."
        return Tab("", "no edit", _pairs(facts), "no edit yet", after)
    edits = markup.some(facts.edits, "edit")
    before, now = map(markup.percent, facts.gaps)
    cost = markup.percent(facts.degradation)
    words = f"{edits}, gap {before} → {now}, degradation {cost}"
    return Tab("✓", edits, _pairs(facts), words, "Evaluate: look at predictions and maps.")


def _evaluate(facts: Facts) -> Tab:
    needs = "an edited version"
    if not facts.edits:
        return Tab("", "nothing edited", needs, "nothing is edited yet", "Rectify first.")
    if len(facts.right) < 2:
        words = f"gap {markup.percent(facts.gaps[1])}; the samples have no labels"
        return Tab("✓", f"gap {markup.percent(facts.gaps[1])}", needs, words, "Save.")
    before, now = (f"{100 * share:.0f} %" for share in facts.right)
    words = f"corrupted samples right: {before} → {now}"
    return Tab("✓", f"right {before} → {now}", needs, words, "Save.")


def _save(facts: Facts) -> Tab:
    found = markup.some(facts.edits, "edit") + " not saved" if facts.edits else "no edit yet"
    if facts.saved is not None:
        found = f"saved to {facts.saved}"
    found += "" if facts.report is None else f", report in {facts.report}"
    needs = "edits, and the names of the files"
    if facts.saved is None:
        after = "Save writes them; Report explains them."
        return Tab("", "not saved", needs, found, after)
    after = "rw.load_edits reads the file; the edits apply to the model as given."
    return Tab("✓", "saved", needs, found, after)


def header(facts: Facts, stage: str) -> str:
    """The tabs, and the words of the one in view."""
    known = tabs(facts)
    drawn = "".join(
        f'<div{to_set(key=name, stage=name)} class="rw-way-tab">'
        f"<b>{number} {STEPS[name]} {tab.sign}</b>"
        f'<div class="rw-soft">{escape(tab.short)}</div></div>'
        for number, (name, tab) in enumerate(known.items(), 1)
    )
    here = known[stage]
    words = "".join(
        f"<div><b>{head}</b> {escape(text)}</div>"
        for head, text in (("Needs", here.needs), ("Found", here.found), ("Next", here.after))
    )
    return (
        f'<div class="rw-way" data-list data-key="way">{drawn}</div>'
        f'<div class="rw-way-words">{words}</div>'
    )


def listing(code: str) -> str:
    """Code to read and to copy."""
    return f'<pre class="rw-code" tabindex="0" aria-label="Code">{escape(code)}</pre>'


def missing(text: str) -> str:
    """What stands in the place of a step that cannot work yet."""
    return f'<p class="rw-soft rw-way-missing">{escape(text)}</p>'
