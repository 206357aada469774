"""Results to HTML: tables, verdicts and lines of text.  Pure functions.

Imports `render` for the bars and `style` for the class names only.  Everything that comes from
outside is escaped.  Each piece reads without its style sheet too, as on GitHub: numbers stand in
table cells, bars and maps are pictures, and signs say what colours say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from rectify_widgets.widgets import render

if TYPE_CHECKING:
    from rectify_widgets.engine.history import Rectification, Step


TRACK = 40
"""Length of a full probability bar in CSS pixels."""


def class_name(classes: Sequence[str] | None, number: int) -> str:
    """The class's name, or "class 3" where there is none; not escaped."""
    if classes is not None and 0 <= number < len(classes):
        return str(classes[number])
    return f"class {number}"


def percent(share: float | None) -> str:
    """A share of 0..1 for people, "0.4 %"; a dash where there is none."""
    return "–" if share is None or not math.isfinite(share) else f"{100.0 * share:.1f} %"


def score_text(score: float) -> str:
    """A score in at most five characters, with a real minus sign."""
    text = f"{score:.2f}" if abs(score) < 100 else f"{score:.0e}"
    return "0.00" if text == "-0.00" else text.replace("-", "−")


def duration(seconds: float) -> str:
    """A time left for people: "2 s", "1 min 10 s"."""
    whole = max(round(seconds), 1)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def some(count: int, what: str) -> str:
    """A count with its noun: "1 edit", "2 edits"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def outcome(result: Rectification) -> str:
    """One sentence on how a rectification ended; not escaped."""
    starts = {
        "target": "Target reached after {}",
        "round limit": "Round limit reached after {}",
        "no layer helps": "Done after {}, no further layer helps",
        "cancelled": "Cancelled after {}",
    }
    edits = some(len(result.edits), "edit")
    return (
        f"{starts.get(result.stopped, result.stopped + ', {}').format(edits)} "
        f"({sum(result.seconds.values()):.1f} s): gap {percent(result.gap_before)} → "
        f"{percent(result.gap_after)}, degradation {percent(result.degradation)}."
    )


def heading(text: str, note: str = "") -> str:
    """Heading of a card, with a soft note after it."""
    soft = f' <span class="rw-soft">{escape(note)}</span>' if note else ""
    return f'<b class="rw-head">{escape(text)}</b>{soft}'


def status_line(text: str) -> str:
    """The status, announced by screen readers as it changes."""
    return f'<div class="rw-status" role="status" aria-live="polite">{escape(text)}</div>'


def error_box(error: BaseException | None) -> str:
    """What went wrong, in place; nothing where nothing did."""
    if error is None:
        return ""
    name = type(error).__name__
    return f'<div class="rw-error" role="alert"><b>✗ {escape(name)}</b> {escape(str(error))}</div>'


def prediction_table(
    title: str,
    before: Sequence[float],
    after: Sequence[float] | None,
    *,
    label: int | None = None,
    classes: Sequence[str] | None = None,
    rows: int = 3,
) -> str:
    """Probabilities of the likeliest classes of one input, before and after the edits.

    Both columns show the same classes in the same order.  The predicted class has a sign: ✓ where
    it is the label, ✗ where it is not, ● where no label is known.
    """
    columns = [before] if after is None else [before, after]
    top = [max(range(len(column)), key=lambda number: column[number]) for column in columns]
    likely = sorted(range(len(before)), key=lambda number: -max(c[number] for c in columns))
    shown = sorted(likely[:rows], key=lambda number: (number != label, likely.index(number)))
    heads = ["Model, %"] if after is None else ["Before, %", "After, %"]
    words = [f"{class_name(classes, number)} {_sign(number, label)}" for number in top]
    verdict = " → ".join(dict.fromkeys(words)) if len(words) > 1 else words[0]
    body = ""
    for number in shown:
        cells = ""
        for place, column in enumerate(columns):
            picked = number == top[place]
            colour = render.FOR if place else render.AGAINST
            bar = render.bar_tag(column[number], width=TRACK, colour=colour)
            text = f"{100 * column[number]:.1f}" + (f" {_sign(number, label)}" if picked else "")
            cells += (
                f'<td class="rw-probability"><span class="rw-track">{bar}</span>'
                f"{f'<b>{text}</b>' if picked else text}</td>"
            )
        body += f"<tr><td>{escape(class_name(classes, number))}</td>{cells}</tr>"
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<div class="rw-verdict"><b>{escape(title)}</b> '
        f'<span class="rw-soft">{escape(verdict)}</span></div>'
        f'<table class="rw-table rw-predictions"><thead><tr><th>Class</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _sign(predicted: int, label: int | None) -> str:
    if label is None:
        return "●"
    return "✓" if predicted == label else "✗"


def share_table(rows: Mapping[str, Sequence[float]], count: int) -> str:
    """Share of all samples with the right prediction: a row for each kind of input."""
    if not rows or not any(rows.values()):
        return ""
    models = max(len(shares) for shares in rows.values())
    heads = ["Model, %"] if models == 1 else ["Before, %", "After, %"]
    body = ""
    for name, shares in rows.items():
        cells = ""
        for place, share in enumerate(shares):
            bar = render.bar_tag(share, width=TRACK, colour=render.FOR if place else render.AGAINST)
            cells += f'<td class="rw-probability"><span class="rw-track">{bar}</span>{100 * share:.1f}</td>'
        body += f"<tr><td>{escape(name)}</td>{cells}</tr>"
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<div class="rw-verdict"><b>Right predictions</b> '
        f'<span class="rw-soft">share of {count} samples</span></div>'
        f'<table class="rw-table rw-predictions"><thead><tr><th>Input</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def map_grid(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[str, str]]]], legend: str
) -> str:
    """Pictures in rows and columns with captions; ``rows`` holds (name, [(picture, caption)])."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = ""
    for name, cells in rows:
        body += f"<tr><th>{escape(name)}</th>"
        for picture, caption in cells:
            body += f'<td>{picture}<br><span class="rw-soft">{escape(caption)}</span></td>'
        body += "</tr>"
    return (
        f'<table class="rw-maps"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'
        f'<div class="rw-legend">{legend}</div>'
    )


def score_table(
    scores: Mapping[str, float], order: Iterable[str], *, edited: Iterable[str] = (), unit: str = ""
) -> str:
    """Every layer's editability in network order; ★ marks the best, ● the edited ones."""
    names = list(order)
    top = max((abs(score) for score in scores.values()), default=0.0) or 1.0
    best = max(scores, key=lambda name: scores[name]) if scores else None
    marked = set(edited)
    body = ""
    for name in names:
        score = scores[name]
        signs = (" ★ best" if name == best else "") + (" ● edited" if name in marked else "")
        bar = render.bar_tag(max(score, 0.0) / top, width=120)
        look = "rw-pick" if name == best else ""
        body += (
            f'<tr class="{look}"><td><code>{escape(name)}</code></td>'
            f'<td>{bar}</td><td class="rw-right">{score_text(score)}</td><td>{signs}</td></tr>'
        )
    return (
        f'<table class="rw-table"><thead><tr><th>Layer</th><th>{escape(unit)}</th>'
        '<th class="rw-right">Score</th><th></th></tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def refused_list(refused: Mapping[str, str]) -> str:
    """Layers that cannot be edited, with the reasons, folded away."""
    if not refused:
        return ""
    items = "".join(
        f"<li><code>{escape(name)}</code>: {escape(why)}</li>" for name, why in refused.items()
    )
    some = "1 layer" if len(refused) == 1 else f"{len(refused)} layers"
    return f"<details><summary>{some} cannot be edited</summary><ul>{items}</ul></details>"


def steps_table(steps: Sequence[Step]) -> str:
    """The trials of a rectification: ✓ for those that were kept, and folded away, ↺ for the rest."""
    kept = [step for step in steps if step.accepted]
    others = [step for step in steps if not step.accepted]
    table = _step_rows(kept) if kept else '<p class="rw-soft">No edit was kept.</p>'
    if not others:
        return table
    title = f"{some(len(others), 'trial')} rolled back"
    return f"{table}<details><summary>{title}</summary>{_step_rows(others)}</details>"


def _step_rows(steps: Sequence[Step]) -> str:
    body = ""
    for step in steps:
        outcome = f"{'✓ kept' if step.accepted else '↺ rolled back'}: {step.reason}"
        body += (
            f'<tr><td class="rw-right">{step.round}</td><td><code>{escape(step.layer)}</code></td>'
            f"<td>{escape(str(step.direction))}</td>"
            f'<td class="rw-right">{percent(step.gap_before)} → {percent(step.gap_after)}</td>'
            f'<td class="rw-right">{percent(step.degradation_after)}</td>'
            f"<td>{escape(outcome)}</td></tr>"
        )
    return (
        '<table class="rw-table"><thead><tr><th class="rw-right">Round</th><th>Layer</th>'
        '<th>Direction</th><th class="rw-right">Gap</th><th class="rw-right">Degradation</th>'
        f"<th>Outcome</th></tr></thead><tbody>{body}</tbody></table>"
    )
