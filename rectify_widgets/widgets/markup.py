"""Words and lines of HTML that several widgets share.  Pure functions.

Imports nothing of the package.  Everything that comes from outside is escaped.  Each piece reads
without its style sheet too, as on GitHub: numbers stand in table cells, maps are pictures, and
signs say what colours say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rectify_widgets.engine.repair.result import Rectification
    from rectify_widgets.widgets.session import Job


def class_name(classes: Sequence[str] | None, number: int) -> str:
    """The class's name, or "class 3" where there is none; not escaped."""
    if classes is not None and 0 <= number < len(classes):
        return str(classes[number])
    return f"class {number}"


def percent(share: float | None) -> str:
    """A share for people, "0.4 %", with a real minus sign; a dash where there is none."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{round(100.0 * share, 1) + 0.0:.1f} %".replace("-", "−")


def duration(seconds: float) -> str:
    """A time left for people: "2 s", "1 min 10 s"."""
    whole = max(round(seconds), 1)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def progress_line(job: Job[Any]) -> str:
    """What a job is at, how far it is, and how long it may take: one line."""
    words = [f"{job.label}: {job.message}", f"{100 * job.fraction:.0f} %"]
    left = job.seconds_left()
    if left is not None:
        words.append(f"about {duration(left)} left")
    return " · ".join(words)


def some(count: int, what: str) -> str:
    """A count with its noun: "1 edit", "2 edits"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def shorten(name: str, width: int) -> str:
    """A name of at most ``width`` characters; the middle gives way."""
    if len(name) <= width:
        return name
    head = width // 3
    return f"{name[:head]}…{name[head + 1 - width :]}"


def short(name: str, width: int) -> str:
    """The end of a tag that holds a name of at most ``width`` characters; the pointer shows it all."""
    title = f' title="{escape(name)}"' if len(name) > width else ""
    return f"{title}>{escape(shorten(name, width))}"


def outcome(result: Rectification) -> str:
    """How a rectification ended: one sentence and, where it fell short, why; not escaped."""
    return " ".join([_ending(result), *result.diagnosis])


def _ending(result: Rectification) -> str:
    if result.stopped == "target" and not result.edits:
        return f"Nothing to rectify: the gap is {percent(result.gap_before)}, within its target."
    starts = {
        "target": "Target reached after {}",
        "round limit": "Round limit reached after {}",
        "no layer helps": "Done after {}, no further layer helps",
        "layers refined": "Done after {}, refined together over several layers",
        "cancelled": "Cancelled after {}",
    }
    edits = some(len(result.edits), "edit")
    took = f" ({sum(result.seconds.values()):.1f} s)" if result.seconds else ""
    return (
        f"{starts.get(result.stopped, result.stopped.capitalize() + ', {}').format(edits)}"
        f"{took}: gap {percent(result.gap_before)} → "
        f"{percent(result.gap_after)}, degradation {percent(result.degradation)}."
    )


def corruption(result: Rectification) -> str:
    """What the pairs' corruption was taken to be, in a few words; not escaped."""
    evidence = result.evidence
    if evidence is None or not evidence.corruption:
        return ""
    alone = "" if evidence.transferred else ", not put onto references"
    return f"corruption: {evidence.corruption}{alone}"


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


def table(look: str, head: str, body: str) -> str:
    """A table of these classes; ``head`` holds ``<th>``, ``body`` whole rows."""
    return (
        f'<table class="{f"rw-table {look}".strip()}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def numbers(texts: Iterable[object], tag: str = "td") -> str:
    """Cells of a table, or heads (``"th"``), that stand to the right; not escaped."""
    return "".join(f'<{tag} class="rw-right">{text}</{tag}>' for text in texts)
