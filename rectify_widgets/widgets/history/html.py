"""What a history shows, from a `Timeline`: curves, the steps with their trials, words.  Pure.

Imports the charts, the handles and the shared pieces of HTML.  The step in view is marked by the
page, so that this HTML is the same at every step; everything that comes from outside is escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

from rectify_widgets.engine.repair.result import Step, by_layer, summary_of
from rectify_widgets.widgets import charts, markup
from rectify_widgets.widgets.history.timeline import Timeline, Version
from rectify_widgets.widgets.markup import percent, some
from rectify_widgets.widgets.view import to_do, to_set

TRIALS = 40
"""Most trials of one step with a row of their own; all of them are counted by reason."""

OTHERS = 3
"""Most branches out of view that are drawn beside the one in view: those begun last."""

SPOKEN = 12
"""Most steps whose figures the text alternative of a chart says."""

KINDS = {
    "did better": "another edit did better",
    "too little": "too little of the gap",
    "do not fall": "no net gain",
    "budget": "over the budget",
}
"""What the engine's reasons of a roll-back contain, and how they are counted."""


def page(
    timeline: Timeline, target: float | None, budget: float | None, here: int | None = None
) -> str:
    """The curves, and the steps of the branch in view.

    Args:
        timeline: all versions.
        target, budget: for the gap and the degradation, fractions.
        here: a step to point at in words, for a still view.
    """
    gaps = [version.gap for version in timeline]
    losses = [version.degradation for version in timeline]
    curves = ""
    if any(value is not None for value in (*gaps, *losses)):
        curves = (
            f'<div class="rw-columns"><div>{chart(timeline, "Gap", gaps, "target", target)}</div>'
            f"<div>{chart(timeline, 'Degradation', losses, 'budget', budget)}</div></div>"
        )
    return f"{curves}{steps(timeline, here)}"


# --- steps ---------------------------------------------------------------------------------------

OBJECTIVE = "Objective"
"""Head of a column of trials: the gap and twice the change on clean inputs, by which they are compared."""

WITHOUT = "Gap without it, points"
"""Head of a column: how much more of the gap is left without an edit, all others in place."""


def _heads(*more: str) -> str:
    """Heads of a table of steps and of one of trials; see `_cells`."""
    figures = markup.numbers(("Gap", "Degradation", *more), "th")
    return f"<th>Layer</th><th>Edit</th>{figures}<th>Outcome</th>"


def _cells(
    title: str, edit: str, gap: float | None, loss: float | None, outcome: str, *more: str
) -> str:
    """What was edited, how, what it brought and cost, ``more`` figures, and what became of it."""
    figures = markup.numbers((percent(gap), percent(loss), *more))
    return f"<td>{title}</td><td>{escape(edit)}</td>{figures}<td>{escape(outcome)}</td>"


def steps(timeline: Timeline, here: int | None = None) -> str:
    """The branch in view as a table that scrolls, one row a step, with what hangs on each."""
    path, body = timeline.path, ""
    several = any(version.contribution is not None for version in path)
    for step, version in enumerate(path):
        title, settings = escape(version.title), ""
        if version.edit is not None:
            title, settings = f"<code>{title}</code>", version.edit.settings
        outcome = next((f"✓ {one.reason}" for one in version.trials if one.accepted), "")
        if version.contribution is not None and not _begins(version, path[step - 1]):
            outcome = "✓ likewise"
        alone = ["" if version.contribution is None else points(version.contribution)]
        figures = version.gap, version.degradation
        body += (
            f'<tr{to_set(key=f"step {version.number}", step=step)}><td class="rw-right">'
            f"{'▸ ' if step == here else ''}{step}</td>"
            f"{_cells(title, settings, *figures, outcome, *(alone if several else []))}</tr>"
        )
        if notes := _notes(timeline, step, version):
            body += f'<tr class="rw-notes"><td></td><td colspan="{5 + several}">{notes}</td></tr>'
    heads = markup.numbers(["Step"], "th") + _heads(*[WITHOUT] * several)
    table = markup.table("", heads, body)
    look = "rw-steps rw-several" if several else "rw-steps"
    return f'<div class="{look}" data-list data-key="steps">{table}</div>'


def _notes(timeline: Timeline, step: int, version: Version) -> str:
    """What hangs on a step: trials rolled back on the way to it and after it, and branches."""
    number, trials, notes = version.number, version.trials, ""
    if together := _together(timeline.path, step):
        notes = _layers(together, f"layers {number}")
        trials = (*rolled_back(trials), summary_of(together))
    notes += _trials(trials, f"to {number}")
    notes += _trials(version.fruitless, f"after {number}", "after this step, ")
    for branch, line in _others(timeline):
        if timeline.last_shared(branch, timeline.branch) == step < len(line) - 1:
            notes += (
                f'<div class="rw-soft"><span{to_do("show_branch", branch, key=f"branch {branch}")}>'
                f"↳ {escape(branch_name(timeline, branch))} leaves here</span></div>"
            )
    return notes


def _begins(version: Version, before: Version) -> bool:
    """Whether a version is the first of those whose edits were made together."""
    return version.contribution is not None and (
        before.contribution is None or bool(rolled_back(version.trials))
    )


def _together(path: Sequence[Version], step: int) -> list[Step]:
    """The kept trials of edits that were made together, where ``step`` is the first of them."""
    if not _begins(path[step], path[step - 1]):
        return []
    versions = [path[step]]
    for version in path[step + 1 :]:
        if version.contribution is None or _begins(version, versions[-1]):
            break
        versions.append(version)
    return [trial for version in versions for trial in version.trials if trial.accepted]


def _layers(together: Sequence[Step], key: str) -> str:
    """The layers of edits made together, the one that contributes most first, folded away."""
    layers = by_layer(together)
    body = "".join(
        f"<tr><td><code>{escape(name)}</code></td>{markup.numbers((count, points(more)))}</tr>"
        for name, count, more in layers
    )
    heads = f"<th>Layer</th>{markup.numbers(('Edits', f'{WITHOUT}, added up'), 'th')}"
    what = f"{some(len(together), 'edit')} of {some(len(layers), 'layer')}"
    return (
        f'<details data-key="{key}"><summary>✓ {what}, most of all '
        f"<code>{escape(layers[0][0])}</code></summary>"
        f"{markup.table('rw-narrow', heads, body)}</details>"
    )


def _others(timeline: Timeline) -> list[tuple[int, tuple[Version, ...]]]:
    """The branches out of view, with their versions."""
    tips = enumerate(timeline.branches)
    return [(tip, timeline.lineage(end.number)) for tip, end in tips if tip != timeline.branch]


def _trials(trials: Sequence[Step], key: str, when: str = "") -> str:
    """The trials of a round, folded away under a line that counts those rolled back by reason."""
    back = rolled_back(trials)
    if not back:
        return ""
    body = ""
    for trial in [*(one for one in trials if one.accepted), *back[:TRIALS]]:
        look, sign = ("rw-pick", "✓ kept:") if trial.accepted else ("rw-off", "↺")
        title, outcome = f"<code>{escape(trial.layer)}</code>", f"{sign} {trial.reason}"
        figures = trial.gap_after, trial.degradation_after
        cells = _cells(title, trial.settings, *figures, outcome, percent(trial.objective))
        body += f'<tr class="{look}">{cells}</tr>'
    more = len(back) - TRIALS
    rest = f'<p class="rw-soft">… and {more} more.</p>' if more > 0 else ""
    return (
        f'<details data-key="{key}"><summary>{escape(f"↺ {when}{summary(back)}")}</summary>'
        f"{markup.table('', _heads(OBJECTIVE), body)}{rest}</details>"
    )


# --- words, not escaped --------------------------------------------------------------------------


def points(share: float) -> str:
    """A difference of shares in points, "+12.3", with a real minus sign."""
    return f"{round(100.0 * share, 1) + 0.0:+.1f}".replace("-", "−")


def rolled_back(trials: Sequence[Step]) -> list[Step]:
    """The trials that were not kept."""
    return [trial for trial in trials if not trial.accepted]


def summary(trials: Sequence[Step]) -> str:
    """How many trials were rolled back and why, in one line."""
    kinds = (
        next((short for part, short in KINDS.items() if part in trial.reason), trial.reason)
        for trial in trials
    )
    reasons = ", ".join(f"{reason} ({count})" for reason, count in Counter(kinds).most_common())
    return f"{some(len(trials), 'trial')} rolled back: {reasons}"


def branch_name(timeline: Timeline, branch: int) -> str:
    """A branch in a few words: "branch 1: 3 steps, gap 1.2 %"."""
    tip = timeline.branches[branch]
    steps = len(timeline.lineage(tip.number)) - 1
    shared = [timeline.last_shared(branch, earlier) for earlier in range(branch)]
    start = f" from {max(shared)}" if shared else ""
    gap = "" if tip.gap is None else f", gap {percent(tip.gap)}"
    return f"branch {branch}{start}: {some(steps, 'step')}{gap}"


def caption(timeline: Timeline) -> str:
    """Where we are, in one line."""
    here, last = timeline.here, len(timeline.path) - 1
    where = "No edits yet"
    if last:
        what = "the model as given" if here.edit is None else f"after editing {here.title}"
        where = f"Step {timeline.step} of {last}, {what}"
    figures = [
        f"{name} {percent(value)}"
        for name, value in (("gap", here.gap), ("degradation", here.degradation))
        if value is not None
    ]
    return where + (": " + ", ".join(figures) if figures else "") + "."


def counts(timeline: Timeline) -> str:
    """How much there is, in a few words."""
    trials = [trial for one in timeline for trial in (*one.trials, *one.fruitless)]
    words = [f"✓ {some(len(timeline) - 1, 'edit')} kept"]
    if back := rolled_back(trials):
        words.append(f"↺ {some(len(back), 'trial')} rolled back")
    if len(timeline.branches) > 1:
        words.append(f"↳ {len(timeline.branches)} branches")
    return " · ".join(words)


# --- curves --------------------------------------------------------------------------------------


def chart(
    timeline: Timeline,
    name: str,
    values: Sequence[float | None],
    level: str,
    limit: float | None,
) -> str:
    """One figure of all versions over the steps, in per cent."""
    path = timeline.path
    own = [values[version.number] for version in path]
    others = _others(timeline)
    own_name = f"branch {timeline.branch}, in view" if others else name
    curves = [charts.Line(own_name, range(len(path)), _percents(own), unit=" %")]
    for branch, line in others[-OTHERS:]:
        start = timeline.last_shared(branch, timeline.branch)
        handles = [
            to_set(key=f"{name} {line[step].number}", branch=branch, step=step)
            for step in range(start + 1, len(line))
        ]
        if handles:
            part = _percents([values[version.number] for version in line[start:]])
            places, title = range(start, len(line)), f"branch {branch}"
            curves.append(charts.Line(title, places, part, "grey", " %", ["", *handles]))
    return charts.lines(
        curves,
        _alt(name, own, level, limit),
        levels={} if limit is None else {f"{level} {100 * limit:.3g} %": 100 * limit},
        handles=[to_set(key=f"{name} {one.number}", step=step) for step, one in enumerate(path)],
        x_title="Step",
        y_title=f"{name}, %",
        x_names=[str(step) for step in range(max(curve.x[-1] for curve in curves) + 1)],
    )


def _percents(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100.0 * value for value in values]


def _alt(name: str, values: Sequence[float | None], level: str, limit: float | None) -> str:
    """The figures of a chart in words; the step in view is not among them, see `caption`."""
    every = max(-(-len(values) // SPOKEN), 1)
    places = sorted({*range(0, len(values), every), len(values) - 1})
    figures = [
        f"{percent(values[step])} {f'after step {step}' if step else 'as given'}"
        for step in places
        if values[step] is not None
    ]
    words = f"{name} over {some(len(values) - 1, 'step')}: {', '.join(figures) or 'not measured'}"
    if limit is None:
        return words + "."
    last = next((value for value in reversed(values) if value is not None), None)
    verdict = "" if last is None else f", {'met' if last <= limit else 'not met'}"
    return f"{words}; {level} {percent(limit)}{verdict}."
