"""What `PredictionViewer` shows, as HTML with handles (see `view`): the live page and the snapshot.

Pure functions; imports the renderers, `markup` and `data`.  Whatever a colour says, a sign or a word
says too, and every piece reads without its style sheet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np

from rectify_widgets.widgets import charts, markup, render, view
from rectify_widgets.widgets.prediction.confusion import OTHERS, ConfusionChange
from rectify_widgets.widgets.prediction.data import (
    KINDS,
    UNKNOWN,
    Comparison,
    Confusion,
    Flips,
    kinds_of,
)

NAMES = {"fixed": "↑ fixed", "broken": "↓ broken", "changed": "↔ changed"}
"""The kinds of flips, each with its sign."""

MEASURES = {
    "overall_accuracy": "Overall accuracy",
    "corrupted_accuracy": "Corrupted accuracy",
    "attack_success_rate": "Attack success rate, to {}",
    "clean_target_rate": "Clean target rate, the floor",
}

LONE_MEASURES = {"overall_accuracy": "Accuracy", "clean_target_rate": "Taken for {}"}
"""Names of the figures where one column of inputs is given, clean or not; {} is the target."""

ROWS = 4
"""Classes in a table of probabilities."""

TRACK = 40
"""Length of a full probability bar in CSS pixels, where no style sheet makes it longer."""

THUMBNAIL, PORTRAIT = 48, 72
"""Widths of pictures in a list of flips and on the page of one sample, in CSS pixels."""

BYTES = {THUMBNAIL: 1_500, PORTRAIT: 6_000}
"""About how much a picture takes at most."""

CLASSES = 20
"""Classes in one heat map; of more, those that change most are shown, and the rest together."""

NAMED = 3
"""Changes that the words beside a heat map name."""

NAME = charts.NAME
"""Most letters of a class name in a table of all classes."""

NO_MODEL = "No edited model yet: there is nothing to compare with."
NO_FLIP = "No flip of this kind among these inputs."

Picture = Callable[[str, int, int], str]
"""``<img>`` of a column's sample, of a width."""


def thumbnail(compared: Comparison, column: str, sample: int, width: int) -> str:
    """``<img>`` of an input, of a few kilobytes; its longer side is ``width``."""
    pixels = render.to_rgb(compared.columns[column][sample], compared.mean, compared.std)
    across = max(round(width * pixels.shape[1] / max(pixels.shape[:2])), 1)
    alt = f"{column} input {sample + 1}"
    return render.image_tag(
        pixels, alt, width=across, side=2 * width, most=BYTES[width], enlarge=width > THUMBNAIL
    )


# -- the headline ---------------------------------------------------------------------------------


def note(compared: Comparison) -> str:
    """How many samples, and what they are judged by."""
    notes = [markup.some(compared.count, "sample"), compared.source]
    if compared.reports:
        notes.append("intervals at 95 %")
    return f'<div class="rw-soft">{escape(" · ".join(notes))}</div>'


def headline(compared: Comparison) -> str:
    """The headline figures, and the number of flips of each kind."""
    figures = _figures(compared) if compared.reports else ""
    counts = "" if compared.flips is None else _counts(compared)
    return f'<div class="rw-headline">{figures}{counts}</div>'


def _figures(compared: Comparison) -> str:
    """A row for each figure: before and after, with intervals in words and as a picture."""
    models = ["Model"] if len(compared.reports) == 1 else ["Before", "After"]
    target = compared.target
    to = "" if target is None else markup.class_name(compared.classes, target)
    body = ""
    for name, words in (LONE_MEASURES if compared.lone else MEASURES).items():
        title, cells, marks, said = words.format(to), "", [], []
        for model, report in zip(models, compared.reports, strict=True):
            value = report.figures().get(name)
            if value is None:
                continue
            low, high = report.intervals.get(name, (value, value))
            number, ends = markup.percent(value), f"{100 * low:.1f} to {100 * high:.1f}"
            cells += (
                f'<td class="rw-figure"><b>{number}</b> <span class="rw-num">{ends}</span></td>'
            )
            marks.append((low, value, high))
            said.append(f"{model.lower()} {number}, from {ends}")
        if len(marks) == len(models):
            drawing = whiskers(marks, f"{title}: {'; '.join(said)}")
            body += (
                f'<tr><td>{escape(title)}</td>{cells}<td class="rw-whiskers">{drawing}</td></tr>'
            )
    heads = "".join(f"<th>{name}</th>" for name in ("Figure", *models))
    ends = '<span class="rw-ends"><span>0 %</span> <span>100 %</span></span>'
    return markup.table("rw-figures", f'{heads}<th class="rw-whiskers">{ends}</th>', body)


def whiskers(intervals: Sequence[tuple[float, float, float]], alt: str, width: int = 150) -> str:
    """Figures on a line from 0 to 100 %, given as low end, value and high end.

    The first has a round mark in blue, the second a square one in orange.
    """
    drawn = ""
    for number, interval in enumerate(intervals):
        low, x, high = (5 + min(max(share, 0.0), 1.0) * (width - 10) for share in interval)
        colour, y = (render.FOR if number else render.AGAINST), 9 * number + 4.5
        drawn += (
            f'<path d="M5 {y}H{width - 5}" stroke="{render.INK}" stroke-opacity=".35"/>'
            f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="{colour}" stroke-width="2"/>'
        )
        drawn += (
            f'<rect x="{x - 3:.1f}" y="{y - 3}" width="6" height="6" fill="{colour}"/>'
            if number
            else f'<circle cx="{x:.1f}" cy="{y}" r="3" fill="{colour}"/>'
        )
    height, words = 9 * len(intervals), escape(alt)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'aria-label="{words}" role="img"><title>{words}</title>{drawn}</svg>'
    )


def _counts(compared: Comparison) -> str:
    """Number of flips of each kind, a row for each column of inputs; a number lists its flips."""
    kinds = KINDS if compared.labels is not None else ("changed",)
    body = ""
    for name, (column, counts) in zip(compared.columns, compared.counts().items(), strict=True):
        cells = ""
        for kind in kinds:
            link = view.to_set(f"{column} {kind}", filter=kind, column=column, page="flips")
            cells += f'<td class="rw-right"{link if counts[kind] else ""}>{counts[kind]}</td>'
        same = compared.count - sum(counts.values())
        body += f'<tr><td>{escape(name)}</td>{cells}<td class="rw-right rw-soft">{same}</td></tr>'
    heads = markup.numbers([*(NAMES[kind] for kind in kinds), "same"], "th")
    return markup.table("rw-counts", f"<th>Inputs</th>{heads}", body)


# -- one sample -----------------------------------------------------------------------------------


def sample(compared: Comparison, index: int, picture: Picture) -> str:
    """Probabilities of one sample before and after, a block for each column.

    The label and the predicted classes are always listed.  A predicted class has a sign: ✓ where it
    is the label, ✗ where it is not, ● where no label is known.
    """
    blocks = "".join(_block(compared, name, index, picture) for name in compared.columns)
    return f'<div class="rw-samples">{blocks}</div>'


def _block(compared: Comparison, column: str, index: int, picture: Picture) -> str:
    label = UNKNOWN if compared.labels is None else int(compared.labels[index])
    shares = [found.probabilities[column][index].tolist() for found in compared.predictions]
    predicted = [int(found.classes[column][index]) for found in compared.predictions]
    likely = sorted(range(len(shares[0])), key=lambda number: -max(s[number] for s in shares))
    needed = {label, *predicted} - {UNKNOWN}
    listed = list(dict.fromkeys([*needed, *likely]))[: max(ROWS, len(needed))]
    body = ""
    for number in sorted(listed, key=lambda number: (number != label, likely.index(number))):
        name, cells = markup.class_name(compared.classes, number), ""
        for model, colour in zip(range(len(shares)), (render.AGAINST, render.FOR), strict=False):
            bar, text = track(shares[model][number], colour), f"{100 * shares[model][number]:.1f}"
            picked = f"<b>{text} {sign(number, label)}</b>" if number == predicted[model] else text
            cells += f'<td class="rw-probability">{bar}{picked}</td>'
        note = ' <span class="rw-num">label</span>' if number == label else ""
        hover = escape(f"{name}: {' → '.join(f'{100 * s[number]:.2f} %' for s in shares)}")
        body += f'<tr title="{hover}"><td>{escape(name)}{note}</td>{cells}</tr>'
    words = [
        f"{markup.class_name(compared.classes, number)} {sign(number, label)}"
        for number in predicted
    ]
    title = f"<b>{column if column == 'Input' else f'{column} input'}</b>"
    said = words[0] + ", before and after" * (len(words) - 1)
    if len(set(predicted)) > 1:
        old, new = np.array(predicted)
        title += f" · {NAMES[KINDS[int(kinds_of(old, new, label))]]}"
        said = " → ".join(words)
    heads = "<th>Model, %</th>" if len(shares) == 1 else "<th>Before, %</th><th>After, %</th>"
    return (
        f'<div class="rw-sample"><div class="rw-verdict">{picture(column, index, PORTRAIT)}'
        f'<div>{title}<br><span class="rw-soft">{escape(said)}</span></div></div>'
        f"{markup.table('rw-predictions', f'<th>Class</th>{heads}', body)}</div>"
    )


def track(share: float, colour: str) -> str:
    """A bar of ``share`` (0..1) within a track, as long as there is room for."""
    bar = render.bar_tag(share, width=TRACK, colour=colour)
    long = re.sub(r'style="width:\d+px', f'style="width:{100 * min(share, 1.0):.1f}%', bar)
    return f'<span class="rw-track">{long}</span>'


def sign(predicted: int, label: int) -> str:
    """✓ for the label, ✗ for another class, ● where no label is known."""
    if label == UNKNOWN:
        return "●"
    return "✓" if predicted == label else "✗"


# -- flips ----------------------------------------------------------------------------------------


def flip_list(
    compared: Comparison, flips: Flips, *, picture: Picture, key: str, opens: bool, room: int
) -> str:
    """Flips as tiles that choose their sample.

    Args:
        compared, flips, picture: what to list.
        key: of the list; it keeps its place on the page while this stays.
        opens: whether a click opens the sample too.
        room: characters of HTML; the tiles that do not fit are counted instead.
    """
    if not len(flips):
        return markup.heading("", NO_FLIP)
    tiles: list[str] = []
    while len(tiles) < len(flips) and room > 0:
        tiles.append(_tile(compared, flips, len(tiles), picture, opens=opens))
        room -= len(tiles[-1])
    more = ""
    if len(tiles) < len(flips):
        more = (
            f'<div class="rw-more"><span class="rw-soft">The first {len(tiles)} of '
            f"{len(flips)} flips.</span> <div data-only-live><span{view.to_do('show_more')}>"
            "Show more</span></div></div>"
        )
    return f'<div class="rw-flips" data-list data-key="{key}">{"".join(tiles)}</div>{more}'


def _tile(compared: Comparison, flips: Flips, place: int, picture: Picture, *, opens: bool) -> str:
    """One flip: its picture, its kind, and the class before and after with its probability."""
    number, name = int(flips.samples[place]), list(compared.columns)[flips.columns[place]]
    kind, label = KINDS[flips.kinds[place]], int(flips.labels[place])
    column = "" if compared.lone else f", {name.lower()}"
    lines, names = "", []
    for predicted, sure in (
        (int(flips.before[place]), float(flips.sure_before[place])),
        (int(flips.after[place]), float(flips.sure_after[place])),
    ):
        names.append(markup.class_name(compared.classes, predicted))
        lines += (
            f"<div><span>{sign(predicted, label)} {escape(names[-1])}</span> "
            f'<span class="rw-num">{markup.percent(sure)}</span></div>'
        )
    title = f"Sample {number + 1}{column}: {kind}, {names[0]} to {names[1]}"
    if label != UNKNOWN and kind == "changed":
        truth = markup.class_name(compared.classes, label)
        lines += f'<div class="rw-soft">label {escape(truth)}</div>'
        title += f", label {truth}"
    link = view.to_set(f"flip {number}{column}", index=number)
    link += view.to_do("show_sample") if opens else ""
    return (
        f'<div class="rw-flip"{link} title="{escape(title)}">{picture(name, number, THUMBNAIL)}'
        f"<div><div><b>{NAMES[kind]}</b> "
        f'<span class="rw-num">{number + 1}{escape(column)}</span></div>{lines}</div></div>'
    )


# -- classes --------------------------------------------------------------------------------------


def classes(
    compared: Comparison,
    flips: Flips,
    column: str,
    confusion: Confusion | None,
    listing: Callable[[Flips], str],
) -> str:
    """What changed by class in a column of inputs, or in ``"all"``: heat maps and tables.

    Below them stand the flips of the heat map's cell ``confusion``, as ``listing`` shows them.
    """
    cards = "".join(
        _class_card(compared, name) for name in compared.columns if column in ("all", name.lower())
    )
    below = ""
    if "data-set" in cards:
        words = '<span class="rw-soft">Click a number to list its flips.</span>'
        below = f"<div data-only-live>{words}</div>"
    if confusion is not None and column in ("all", confusion[0]):
        below = _cell_flips(compared, flips, confusion, listing)
    return f'<div class="rw-classes">{cards}</div>{below}'


def groups(compared: Comparison) -> str:
    """Accuracy of each (label, group), and which lose more than a point; empty without groups."""
    table = compared.reports[-1].groups if compared.reports else None
    if table is None:
        return ""
    heads, rows = table.cells(compared.classes)
    body = "".join(
        f"<tr><td>{escape(label)}</td><td>{escape(group)}</td>{markup.numbers(line)}</tr>"
        for label, group, *line in rows
    )
    label, group, *more = (text.capitalize() for text in heads)
    words = "<br>".join(escape(text) for text in table.sentences(compared.classes))
    return (
        f"<div>{markup.heading('Groups', 'accuracy, Wilson intervals at 95 %')}<br>"
        f'<span class="rw-soft">{words}</span>'
        + markup.table(
            "rw-recall", f"<th>{label}</th><th>{group}</th>{markup.numbers(more, 'th')}", body
        )
        + "</div>"
    )


def _cell_flips(
    compared: Comparison, flips: Flips, confusion: Confusion, listing: Callable[[Flips], str]
) -> str:
    """The flips of one cell of a heat map, with a cross that takes them away."""
    column, truth, predicted = confusion
    place = compared.names.index(column)
    listed = compared.confusion(list(compared.columns)[place], CLASSES).classes
    flips = flips.select(column=place).between(listed, truth, predicted)
    words = f"{_truth_word(compared)} {_row_name(truth, compared.classes)}"
    if predicted != truth:
        words += f", {_row_name(predicted, compared.classes)} before or after"
    if not compared.lone:
        words += f", {column} inputs"
    close = f"<div data-only-live><span{view.to_set(confusion=None)}>✕ Close</span></div>"
    title = markup.heading(markup.some(len(flips), "flip"), words)
    return f'<div class="rw-more">{title} {close}</div>{listing(flips)}'


def _truth_word(compared: Comparison) -> str:
    return "Predicted before" if compared.labels is None else "True class"


def _class_card(compared: Comparison, column: str) -> str:
    """Words, a heat map whose numbers list their flips, and a table of the classes."""
    change = compared.confusion(column, CLASSES)
    listed = change.classes.tolist()
    names = [_row_name(number, compared.classes) for number in listed]
    before, after = (found.classes[column] for found in compared.predictions)
    note = f"{(before != after).sum()} of {markup.some(len(before), 'prediction')} differ"
    total, named = compared.predictions[0].class_count, len(listed) - (OTHERS in listed)
    most = " most" if named == CLASSES else ""
    if 0 < named < total:
        note += f"; the {named} of {total} classes that change{most}, the others together"
    rows, words = _truth_word(compared), greatest(change, names)
    title = markup.heading("Inputs" if column == "Input" else f"{column} inputs", note)
    words_shown = words if named else f"{words} among {total} classes"
    title += f'<br><span class="rw-soft">{escape(words_shown)}</span>'
    if not named:
        return f"<div>{title}</div>"

    def handle(row: int, predicted: int) -> str:
        cell = (column.lower(), listed[row], listed[predicted])
        return view.to_set("{} {} {}".format(*cell), confusion=cell)

    chart = charts.heatmap(
        change.matrix,
        f"{column} inputs, number of predictions after minus before, by {rows.lower()} and predicted "
        f"class: {words}",
        names=names,
        handle=handle,
        row_title=rows,
        column_title="Predicted class",
    )
    recall = _recall(change, names, rows, judged=compared.labels is not None)
    return f'<div>{title}<div class="rw-change"><div data-list>{chart}</div>{recall}</div></div>'


def greatest(change: ConfusionChange, names: Sequence[str]) -> str:
    """The greatest changes in words; not escaped."""
    size = np.abs(change.matrix).ravel()
    order = np.argsort(-size, kind="stable")[:NAMED]
    words = []
    for place in order[size[order] > 0]:
        row, column = divmod(int(place), len(names))
        words.append(f"{names[row]} as {names[column]} {charts.signed(change.matrix[row, column])}")
    return "; ".join(words) or "nothing changed"


def _row_name(number: int, classes: Sequence[str] | None) -> str:
    """Name of a row: a class, or all others together; not escaped."""
    return "all others" if number == OTHERS else markup.class_name(classes, number)


def _recall(change: ConfusionChange, names: Sequence[str], rows: str, *, judged: bool) -> str:
    """For each class how many of its samples were right before and are now.

    Without labels, rows are what was predicted before, and those right after stayed the same.
    """
    columns: dict[str, Iterable[object]] = {"Samples": change.samples}
    if judged:
        gains = [charts.signed(gain) or "0" for gain in change.after - change.before]
        columns |= {"Right before": change.before, "Right after": change.after, "Change": gains}
    else:
        columns["Same after"] = change.after
    body = "".join(
        f"<tr><td{markup.short(name, NAME)}</td>{markup.numbers(line)}</tr>"
        for name, *line in zip(names, *columns.values(), strict=True)
    )
    return markup.table("rw-recall", f"<th>{rows}</th>{markup.numbers(columns, 'th')}", body)
