"""What a history shows, from a `Timeline`: curves, tables of steps and trials, words.  Pure.

Imports the charts and the shared pieces of HTML.  Everything that comes from outside is escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from rectify_widgets.engine.repair.result import Step
from rectify_widgets.widgets.charts import Chart, Line, lines
from rectify_widgets.widgets.editability.layer_rows import shorten
from rectify_widgets.widgets.history.timeline import Timeline, Version
from rectify_widgets.widgets.markup import percent, some

TRIALS = 40
"""Most trials of one step with a row of their own; all of them are counted by reason."""

OTHERS = 3
"""Most branches out of view that are drawn beside the one in view: those begun last."""

HEIGHT = 180
"""Height of a chart in CSS pixels."""

TICKS = 24
"""Most steps with a number of their own on the axis."""

GAP, DEGRADATION = 8, 13
"""Width of the columns, in characters."""

TOLD = 12
"""Most steps whose figures the text alternative of a chart says."""

KINDS = {
    "did better": "another edit did better",
    "too little": "too little of the gap",
    "do not fall": "no net gain",
    "budget": "over the budget",
}
"""What the engine's reasons of a roll-back contain, and how they are counted."""


# --- trials --------------------------------------------------------------------------------------


def kind(reason: str) -> str:
    """The reason of a roll-back in a few words."""
    return next((short for part, short in KINDS.items() if part in reason), reason)


def rolled_back(trials: Iterable[Step]) -> list[Step]:
    """The trials that were not kept."""
    return [trial for trial in trials if not trial.accepted]


def trials_summary(trials: Sequence[Step]) -> str:
    """How many trials were rolled back and why, in one line; not escaped."""
    counts = Counter(kind(trial.reason) for trial in trials)
    reasons = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common())
    return f"{some(len(trials), 'trial')} rolled back: {reasons}"


def trials_fold(trials: Sequence[Step], when: str = "") -> str:
    """The trials of a round, folded away under a line that counts those rolled back by reason."""
    back = rolled_back(trials)
    if not back:
        return ""
    more = len(back) - TRIALS
    rest = f'<p class="rw-soft">… and {more} more.</p>' if more > 0 else ""
    summary = escape(f"↺ {when}{trials_summary(back)}")
    kept = [trial for trial in trials if trial.accepted]
    return (
        f"<details><summary>{summary}</summary>"
        f'<div class="rw-scroll">{_trials_table([*kept, *back[:TRIALS]])}</div>{rest}</details>'
    )


def _trials_table(trials: Sequence[Step]) -> str:
    body = "".join(
        f'<tr class="{"rw-pick" if trial.accepted else "rw-off"}">'
        f"<td><code>{escape(trial.layer)}</code></td>"
        f"<td>{escape(trial.found)}</td>"
        f'<td class="rw-right">{percent(trial.gap_after)}</td>'
        f'<td class="rw-right">{percent(trial.degradation_after)}</td>'
        f"<td>{'✓ kept:' if trial.accepted else '↺'} {escape(trial.reason)}</td></tr>"
        for trial in trials
    )
    return (
        '<table class="rw-table"><thead><tr><th>Layer</th><th>Edit</th><th class="rw-right">Gap'
        '</th><th class="rw-right">Degradation</th><th>Outcome</th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


# --- steps ---------------------------------------------------------------------------------------


def step_name(step: int, version: Version, width: int = 30) -> str:
    """Number and title of a step, "✓ 2  conv1"; not escaped."""
    return f"{'○' if version.edit is None else '✓'} {step}  {shorten(version.title, width)}"


def step_notes(timeline: Timeline, version: Version) -> str:
    """What hangs on a step: trials rolled back on the way to it and after it, and branches."""
    pieces = [trials_fold(version.trials)]
    pieces.append(trials_fold(timeline.fruitless(version.number), "after this step, "))
    pieces += [
        f'<div class="rw-soft">↳ {escape(branch_name(timeline, branch))} leaves here</div>'
        for branch in leaving(timeline, version)
    ]
    return "".join(pieces)


def leaving(timeline: Timeline, version: Version) -> list[int]:
    """Branches out of view that share the path in view up to this version and no further."""
    path = [one.number for one in timeline.path]
    place = path.index(version.number)
    after = path[place + 1] if place + 1 < len(path) else None
    found = []
    for branch, tip in enumerate(timeline.branches):
        line = [one.number for one in timeline.lineage(tip.number)]
        if branch == timeline.branch or version.number not in line:
            continue
        if line.index(version.number) + 1 < len(line) and after not in line:
            found.append(branch)
    return found


def branch_name(timeline: Timeline, branch: int) -> str:
    """A branch in a few words: "branch 1: 3 steps, gap 1.2 %"; not escaped."""
    tip = timeline.branches[branch]
    steps = len(timeline.lineage(tip.number)) - 1
    left = timeline.fork(branch)
    start = "" if left is None else f" from {len(timeline.lineage(left.number)) - 1}"
    gap = "" if tip.gap is None else f", gap {percent(tip.gap)}"
    return f"branch {branch}{start}: {some(steps, 'step')}{gap}"


def caption(timeline: Timeline) -> str:
    """Where we are, in one line; not escaped."""
    here, last = timeline.here, len(timeline.path) - 1
    where = f"Step {timeline.step} of {last}" if last else "No edits yet"
    if last:
        where += ", the model as given" if here.edit is None else f", after editing {here.title}"
    figures = [
        f"{name} {percent(value)}"
        for name, value in (("gap", here.gap), ("degradation", here.degradation))
        if value is not None
    ]
    return where + (": " + ", ".join(figures) if figures else "") + "."


def counts(timeline: Timeline) -> str:
    """How much there is, in a few words; not escaped."""
    trials = [trial for version in timeline for trial in version.trials]
    trials += [trial for version in timeline for trial in timeline.fruitless(version.number)]
    words = [f"✓ {some(len(timeline) - 1, 'edit')} kept"]
    if back := rolled_back(trials):
        words.append(f"↺ {some(len(back), 'trial')} rolled back")
    if len(timeline.branches) > 1:
        words.append(f"↳ {len(timeline.branches)} branches")
    return " · ".join(words)


def steps_table(timeline: Timeline) -> str:
    """The branch in view as a table, one row a step, with what hangs on each."""
    body = ""
    for step, version in enumerate(timeline.path):
        here = version is timeline.here
        trial = next((one for one in version.trials if one.accepted), None)
        edit = "" if version.edit is None else version.edit.found
        why = "" if trial is None else f"✓ {trial.reason}"
        body += (
            f'<tr{" class=rw-pick" if here else ""}><td class="rw-right">{step}</td>'
            f"<td>{'▸ ' if here else ''}{_title(version)}</td>"
            f"<td>{escape(edit)}</td>"
            f'<td class="rw-right">{percent(version.gap)}</td>'
            f'<td class="rw-right">{percent(version.degradation)}</td>'
            f"<td>{escape(why)}</td></tr>"
        )
        if notes := step_notes(timeline, version):
            body += f'<tr class="rw-notes"><td></td><td colspan="5">{notes}</td></tr>'
    return (
        '<div class="rw-scroll"><table class="rw-table rw-history"><thead><tr>'
        '<th class="rw-right">Step</th><th>Layer</th><th>Edit</th><th class="rw-right">Gap</th>'
        '<th class="rw-right">Degradation</th><th>Outcome</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _title(version: Version) -> str:
    title = escape(version.title)
    return title if version.edit is None else f"<code>{title}</code>"


# --- steps as buttons ----------------------------------------------------------------------------


def rows_head() -> str:
    """Heads of the columns of the rows."""
    return (
        '<div class="rw-versions-names"><span>Step</span>'
        f"<span>{'Gap':>{GAP}}{'Degradation':>{DEGRADATION}}</span></div>"
    )


def row_rules(marker: str, versions: Sequence[Version]) -> str:
    """CSS that gives every row its figures: ``--s`` in columns, ``--t`` in words where narrow."""
    rules = ""
    for place, version in enumerate(versions):
        gap, loss = percent(version.gap), percent(version.degradation)
        rules += (
            f'.{marker} .rw-v{place} {{ --s: "{gap:>{GAP}}{loss:>{DEGRADATION}}"; '
            f'--t: "gap {gap} · degradation {loss}"; }}'
        )
    return rules


def step_tip(step: int, version: Version) -> str:
    """A step in words, for its row: not everybody sees the columns; not escaped."""
    what = "the model as given" if version.edit is None else f"edit of {version.title}"
    return (
        f"Step {step}, {what}: gap {percent(version.gap)}, "
        f"degradation {percent(version.degradation)}"
    )


def rows_note(start: int, shown: int, count: int) -> str:
    """What the signs mean, and which steps have a row if not all."""
    part = f" · steps {start} to {start + shown - 1} of {count - 1}" if shown < count else ""
    signs = "▸ in view · ✓ kept · ↺ rolled back · ↳ branch"
    return f'<span class="rw-soft">{signs}{part}</span>'


# --- curves --------------------------------------------------------------------------------------


def gap_chart(timeline: Timeline, target: float | None) -> Chart:
    """The gap over the steps, with its target."""
    return _chart(timeline, "Gap", [version.gap for version in timeline], "target", target)


def degradation_chart(timeline: Timeline, budget: float | None) -> Chart:
    """The degradation over the steps, with its budget."""
    values = [version.degradation for version in timeline]
    return _chart(timeline, "Degradation", values, "budget", budget)


def _chart(
    timeline: Timeline,
    name: str,
    values: Sequence[float | None],
    level: str,
    limit: float | None,
) -> Chart:
    """One figure of all versions over the steps, in per cent."""
    path = timeline.path
    shown = [values[version.number] for version in path]
    others = [branch for branch in range(len(timeline.branches)) if branch != timeline.branch]
    own_name = f"branch {timeline.branch}, in view" if others else name
    curves = [Line(own_name, range(len(path)), _percents(shown), unit=" %")]
    common = {version.number for version in path}
    longest = len(path)
    for branch in others[-OTHERS:]:
        line = timeline.lineage(timeline.branches[branch].number)
        start = max(sum(version.number in common for version in line) - 1, 0)
        if start + 1 < len(line):
            own = [values[version.number] for version in line[start:]]
            steps = range(start, len(line))
            curves.append(Line(f"branch {branch}", steps, _percents(own), "grey", " %"))
            longest = max(longest, len(line))
    every = -(-longest // TICKS)
    return lines(
        curves,
        _alt(name, shown, level, limit),
        levels={} if limit is None else {f"{level} {100 * limit:.3g} %": 100 * limit},
        here=timeline.step,
        x_title="Step",
        y_title=f"{name}, %",
        x_names=[str(step) if step % every == 0 else "" for step in range(longest)],
        height=HEIGHT,
    )


def _percents(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100.0 * value for value in values]


def _alt(name: str, values: Sequence[float | None], level: str, limit: float | None) -> str:
    """The figures of a chart in words; the step in view is not among them, see `caption`."""
    every = max(-(-len(values) // TOLD), 1)
    places = sorted({*range(0, len(values), every), len(values) - 1})
    told = [
        f"{percent(values[step])} {f'after step {step}' if step else 'as given'}"
        for step in places
        if values[step] is not None
    ]
    words = f"{name} over {some(len(values) - 1, 'step')}: {', '.join(told) or 'not measured'}"
    if limit is None:
        return words + "."
    last = next((value for value in reversed(values) if value is not None), None)
    verdict = "" if last is None else f", {'met' if last <= limit else 'not met'}"
    return f"{words}; {level} {percent(limit)}{verdict}."
