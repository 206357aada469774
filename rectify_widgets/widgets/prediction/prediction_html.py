"""The pieces of `PredictionViewer` as HTML: figures, probabilities, flips, classes.

Pure functions; imports the renderers, `markup`, `flips` and `confusion`.  Whatever a colour says, a
sign or a word says too, and every piece reads without its style sheet.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from rectify_widgets.engine.measure.metrics import Report
from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.prediction import confusion, flips

TRACK = 40
"""Length of a full probability bar in CSS pixels."""

SIGNS = {"fixed": "↑", "broken": "↓", "changed": "↔"}
"""The sign before each kind of flip."""

ROWS = 4
"""Classes in a table of probabilities."""

MEASURES = {
    "overall_accuracy": "Overall accuracy",
    "corrupted_accuracy": "Corrupted accuracy",
    "attack_success_rate": "Attack success rate",
    "clean_target_rate": "Clean target rate, the floor",
}

LONE_MEASURES = {"overall_accuracy": "Accuracy", "clean_target_rate": "Taken for the target"}
"""Names of the figures where one column of inputs is given, clean or not."""

THUMBNAIL_BYTES = 6_000
"""About how much a small picture takes at most."""

Interval = tuple[float, float, float]
"""Low end, value and high end, as fractions."""


# -- pictures -------------------------------------------------------------------------------------


def thumbnail(
    image: Tensor,
    alt: str,
    *,
    width: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> str:
    """``<img>`` of an input ``C × H × W``, of a few kilobytes; its longer side is ``width``."""
    pixels = render.to_rgb(image, mean, std)
    across = max(round(width * pixels.shape[1] / max(pixels.shape[:2])), 1)
    return render.image_tag(pixels, alt, width=across, side=2 * width, most=THUMBNAIL_BYTES)


def whiskers(intervals: Sequence[Interval], alt: str, *, width: int = 150) -> str:
    """``<img>`` of figures with their intervals on a line from 0 to 100 %.

    The first has a round mark in blue, the second a square one in orange.
    """
    scale, row = 3, 9
    picture = Image.new("RGBA", (width * scale, row * scale * len(intervals)), (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    margin, radius = 5 * scale, 3 * scale

    def place(share: float) -> float:
        return margin + min(max(share, 0.0), 1.0) * (width * scale - 2 * margin)

    for number, (low, value, high) in enumerate(intervals):
        colour = render.FOR if number else render.AGAINST
        y = round((number + 0.5) * row * scale)
        draw.line([(place(0), y), (place(1), y)], fill=(128, 132, 136, 90), width=scale)
        draw.line([(place(low), y), (place(high), y)], fill=colour, width=2 * scale)
        box = (place(value) - radius, y - radius, place(value) + radius, y + radius)
        (draw.rectangle if number else draw.ellipse)(box, fill=colour)
    buffer = io.BytesIO()
    picture.quantize(32, method=Image.Quantize.FASTOCTREE).save(buffer, format="PNG")
    data = b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}" '
        f'height="{row * len(intervals)}">'
    )


def track(share: float, colour: str) -> str:
    """A bar of ``share`` (0..1) within a track, as long as there is room for."""
    width = 100.0 * min(max(share, 0.0), 1.0)
    bar = render.bar_tag(share, width=TRACK, colour=colour)
    start = bar.find('style="')
    if start >= 0:
        bar = (
            f'{bar[:start]}style="width:{width:.1f}%;height:8px;max-width:none;margin:0;'
            'border-radius:2px;vertical-align:top">'
        )
    return f'<span class="rw-track">{bar}</span>'


# -- the headline ---------------------------------------------------------------------------------


def figures(reports: Sequence[Report], *, lone: bool, target: str = "") -> str:
    """Headline figures, a row each: before and after, with intervals in words and as a picture."""
    names = LONE_MEASURES if lone else MEASURES
    values = [report.figures() for report in reports]
    heads = ["Model"] if len(reports) == 1 else ["Before", "After"]
    body = ""
    for name, words in names.items():
        if not all(name in value for value in values):
            continue
        title = words.replace("the target", target) if target else words
        if target and name == "attack_success_rate":
            title += f", to {target}"
        cells, marks, said = "", [], []
        for head, report, value in zip(heads, reports, values, strict=True):
            low, high = report.intervals.get(name, (value[name], value[name]))
            ends = f"{100 * low:.1f} to {100 * high:.1f}"
            number = markup.percent(value[name])
            cells += (
                f'<td class="rw-figure"><b>{number}</b> <span class="rw-num">{ends}</span></td>'
            )
            marks.append((low, value[name], high))
            said.append(f"{head.lower()} {number}, from {ends}")
        alt = f"{title}: {'; '.join(said)}"
        body += f'<tr><td>{escape(title)}</td>{cells}<td class="rw-whiskers">{whiskers(marks, alt)}</td></tr>'
    head = "".join(f"<th>{name}</th>" for name in heads)
    ends = '<span class="rw-ends"><span>0 %</span><span>100 %</span></span>'
    return (
        f'<table class="rw-table rw-figures"><thead><tr><th>Figure</th>{head}'
        f'<th class="rw-whiskers">{ends}</th></tr></thead><tbody>{body}</tbody></table>'
    )


def counts(rows: Mapping[str, Sequence[int]], count: int, *, judged: bool) -> str:
    """Number of flips of each kind: a row for each column of inputs."""
    kinds = flips.KINDS if judged else ("changed",)
    head = "".join(f'<th class="rw-right">{SIGNS[kind]} {kind}</th>' for kind in kinds)
    body = ""
    for name, numbers in rows.items():
        told = [numbers[flips.KINDS.index(kind)] for kind in kinds]
        cells = "".join(f'<td class="rw-right">{number}</td>' for number in told)
        body += (
            f"<tr><td>{escape(name)}</td>{cells}"
            f'<td class="rw-right rw-soft">{count - sum(told)}</td></tr>'
        )
    return (
        f'<table class="rw-table rw-counts"><thead><tr><th>Inputs</th>{head}'
        f'<th class="rw-right">same</th></tr></thead><tbody>{body}</tbody></table>'
    )


# -- one sample -----------------------------------------------------------------------------------


def probabilities(
    title: str,
    chances: Sequence[Sequence[float]],
    told: Sequence[int],
    *,
    label: int | None = None,
    classes: Sequence[str] | None = None,
    picture: str = "",
) -> str:
    """Probabilities of the likeliest classes of one input under one model or two.

    The label and the predicted classes are always among them.  The predicted class has a sign: ✓
    where it is the label, ✗ where it is not, ● where no label is known.

    Args:
        title: what the input is.
        chances: for each model the probabilities of all classes.
        told: for each model the class that it predicts.
        label: the right class, if known.
        classes: class names, by number.
        picture: ``<img>`` of the input.
    """
    likely = sorted(range(len(chances[0])), key=lambda number: -max(c[number] for c in chances))
    needed = list(dict.fromkeys([*([] if label is None else [label]), *told]))
    shown = list(dict.fromkeys([*needed, *likely]))[: max(ROWS, len(needed))]
    shown.sort(key=lambda number: (number != label, likely.index(number)))
    heads = ["Model, %"] if len(chances) == 1 else ["Before, %", "After, %"]
    body = ""
    for number in shown:
        cells = ""
        for place, column in enumerate(chances):
            picked = number == told[place]
            text = f"{100 * column[number]:.1f}" + (f" {sign(number, label)}" if picked else "")
            bar = track(column[number], render.FOR if place else render.AGAINST)
            cells += f'<td class="rw-probability">{bar}{f"<b>{text}</b>" if picked else text}</td>'
        note = ' <span class="rw-num">label</span>' if number == label else ""
        body += f"<tr><td>{escape(markup.class_name(classes, number))}{note}</td>{cells}</tr>"
    head = "".join(f"<th>{name}</th>" for name in heads)
    return (
        f'<div class="rw-sample"><div class="rw-verdict">{picture}<div><b>{escape(title)}</b>'
        f"{escape(flipped(told, label))}<br>"
        f'<span class="rw-soft">{escape(verdict(told, label, classes))}</span></div></div>'
        f'<table class="rw-table rw-predictions"><thead><tr><th>Class</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def verdict(told: Sequence[int], label: int | None, classes: Sequence[str] | None) -> str:
    """What is predicted; not escaped."""
    words = [f"{markup.class_name(classes, number)} {sign(number, label)}" for number in told]
    if len(set(told)) > 1:
        return " → ".join(words)
    return words[0] + (", before and after" if len(told) > 1 else "")


def flipped(told: Sequence[int], label: int | None) -> str:
    """`` · ↑ fixed``, or nothing where nothing flipped; not escaped."""
    if len(set(told)) < 2:
        return ""
    old, new = (np.array([number]) for number in told)
    truth = None if label is None else np.array([label])
    kind = flips.KINDS[int(flips.kinds_of(old, new, truth)[0])]
    return f" · {SIGNS[kind]} {kind}"


def sign(predicted: int, label: int | None) -> str:
    """✓ for the label, ✗ for another class, ● where no label is known."""
    if label is None:
        return "●"
    return "✓" if predicted == label else "✗"


# -- flips ----------------------------------------------------------------------------------------


def tile(
    found: flips.Flips, place: int, *, column: str, picture: str, classes: Sequence[str] | None
) -> str:
    """One flip: its picture, its kind, and the class before and after with its probability."""
    kind = flips.KINDS[found.kinds[place]]
    label = None if found.labels[place] == flips.UNKNOWN else int(found.labels[place])
    lines = ""
    for number, sure in (
        (int(found.before[place]), float(found.sure_before[place])),
        (int(found.after[place]), float(found.sure_after[place])),
    ):
        name = escape(markup.class_name(classes, number))
        lines += (
            f'<div class="rw-flip-line"><span>{sign(number, label)} {name}</span> '
            f'<span class="rw-num">{markup.percent(sure)}</span></div>'
        )
    truth = ""
    if label is not None and kind == "changed":
        truth = f'<div class="rw-soft">label {escape(markup.class_name(classes, label))}</div>'
    where = f"{found.samples[place]} · {column.lower()}" if column else f"{found.samples[place]}"
    return (
        f'<div class="rw-flip">{picture}<div class="rw-flip-words"><div class="rw-flip-line">'
        f"<b>{SIGNS[kind]} {kind}</b> "
        f'<span class="rw-num">{escape(where)}</span></div>{lines}{truth}</div></div>'
    )


def tile_name(found: flips.Flips, place: int, *, column: str, classes: Sequence[str] | None) -> str:
    """The same in one line, for those who cannot see it; not escaped."""
    kind = flips.KINDS[found.kinds[place]]
    names = [
        markup.class_name(classes, int(number))
        for number in (found.before[place], found.after[place])
    ]
    where = f", {column.lower()}" if column else ""
    return f"Sample {found.samples[place]}{where}: {kind}, {names[0]} to {names[1]}"


# -- classes --------------------------------------------------------------------------------------


def signed(number: int) -> str:
    """``+3``, ``−3`` with a real minus sign, and nothing for 0."""
    return "" if number == 0 else f"{number:+d}".replace("-", "−")


def row_name(number: int, classes: Sequence[str] | None) -> str:
    """Name of a row: a class, or all others together; not escaped."""
    return "all others" if number == confusion.OTHERS else markup.class_name(classes, number)


def recall(
    found: confusion.Difference, classes: Sequence[str] | None, *, judged: bool = True
) -> str:
    """For each class how many of its samples were right before and are now.

    Without labels, rows are what was predicted before, and those right after stayed the same.
    """
    first = "True class" if judged else "Predicted before"
    heads = ("Samples", "Right before", "Right after", "Change")
    body = ""
    rows = zip(found.classes, found.samples, found.before, found.after, strict=True)
    for number, samples, before, after in rows:
        numbers = [str(samples), str(before), str(after), signed(int(after - before)) or "0"]
        cells = "".join(
            f'<td class="rw-right">{text}</td>' for text in (numbers if judged else numbers[::2])
        )
        body += f"<tr><td>{escape(row_name(int(number), classes))}</td>{cells}</tr>"
    head = "".join(
        f'<th class="rw-right">{name}</th>'
        for name in (heads if judged else ("Samples", "Same after"))
    )
    return (
        f'<table class="rw-table rw-recall"><thead><tr><th>{first}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
