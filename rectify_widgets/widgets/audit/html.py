"""The page of an audit report.  Pure functions of facts and pictures; all text is escaped.

Imports the sheet, the whiskers of `prediction`, and `markup`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rectify_widgets.engine.measure.groups import GroupTable
from rectify_widgets.engine.measure.metrics import Report
from rectify_widgets.widgets import markup
from rectify_widgets.widgets.prediction.html import MEASURES, whiskers
from rectify_widgets.widgets.style import AUDIT

POINTS = ("overall_accuracy", "corrupted_accuracy", "attack_success_rate")
"""Figures in the boxes at the top, where they were measured."""


def page(
    facts: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    reports: Sequence[Report],
    classes: Sequence[str] | None,
    outcome: str,
) -> str:
    """The whole document.

    Args:
        facts: what goes to JSON, see `facts`.
        samples: pairs with their ``pictures``.
        reports: before and after, or none.
        classes: class names, by number.
        outcome: how the repair ended, in words.
    """
    title, model = escape(facts["title"]), facts["model"]
    short = f"{model['fingerprint_before'][:12]} → {model['fingerprint_after'][:12]}"
    head = (
        f"<header><p class=kind>Repair report</p><h1>{title}</h1>"
        f"<p class=meta>{escape(model['type'])}, {model['parameters']:,} parameters · weights "
        f"<code>{short}</code> · {escape(facts['made'])}</p></header>"
    )
    body = "".join(
        _section(number, name, text)
        for number, (name, text) in enumerate(
            (
                ("Result", _result(facts, reports, classes, outcome)),
                ("What was wrong", _wrong(facts, samples)),
                ("What was changed", _changed(facts)),
                ("What it cost", _cost(facts, reports, classes)),
                ("What was not tried", _not_tried(facts)),
                ("How to reproduce it", _reproduce(facts)),
                ("Decision", _decision()),
            ),
            start=1,
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{AUDIT}</style></head><body><main>{head}{body}</main></body></html>"
    )


def _section(number: int, name: str, text: str) -> str:
    return f"<section><h2>{number}&ensp;{name}</h2>{text}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table of markup; columns from ``left`` on stand to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if place >= left else ''}>{cell}</{tag}>"
            for place, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    return f"<table><thead><tr>{line(heads, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _list(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


# -- sections -------------------------------------------------------------------------------------


def _result(
    facts: Mapping[str, Any],
    reports: Sequence[Report],
    classes: Sequence[str] | None,
    outcome: str,
) -> str:
    goal = facts["target"]
    to = "" if goal is None else markup.class_name(classes, goal)
    boxes, rows = "", []
    repair = facts["repair"]
    if reports:
        before, after = (report.figures() for report in reports)
        for name, words in MEASURES.items():
            if name not in after:
                continue
            title = escape(words.format(to))
            ends = [report.intervals[name] for report in reports]
            marks = [
                (low, value[name], high)
                for (low, high), value in zip(ends, (before, after), strict=True)
            ]
            said = f"{words.format(to)}: before {_percent(marks[0])}, after {_percent(marks[1])}"
            numbers = [f"<b>{markup.percent(v)}</b> {_ends(low, high)}" for low, v, high in marks]
            rows.append((title, *numbers, whiskers(marks, said)))
            if name in POINTS:
                boxes += _box(title, markup.percent(before[name]), markup.percent(after[name]))
        count = reports[1].samples
        note = f"{count[0]:,} clean" + (f" and {count[1]:,} corrupted" if count[1] else "")
        table = _table(("Figure", "Before", "After", "0 % to 100 %"), rows) + (
            f"<p class=note>Measured on {note} test inputs; intervals at 95 %. ● before, "
            "■ after.</p>"
        )
    else:
        table = "<p>No labelled test set was given; the figures below are those of references.</p>"
        shares = (repair["gap_before"], repair["gap_after"])
        boxes += _box("Gap to the clean predictions", *(markup.percent(x) for x in shares))
        boxes += _box("Loss of accuracy, expected", "0.0 %", markup.percent(repair["degradation"]))
    layers = len({edit["layer"] for edit in facts["edits"]})
    edits = markup.some(len(facts["edits"]), "rank-one edit")
    boxes += f"<div><span>{markup.some(layers, 'layer')} changed</span><b>{edits}</b></div>"
    return f"<p class=lead>{escape(outcome)}</p><div class=boxes>{boxes}</div>{table}"


def _box(title: str, before: str, after: str) -> str:
    return f"<div><span>{title}</span><b>{before} → {after}</b></div>"


def _percent(mark: tuple[float, float, float]) -> str:
    return f"{markup.percent(mark[1])}, from {100 * mark[0]:.1f} to {100 * mark[2]:.1f}"


def _ends(low: float, high: float) -> str:
    return f"<small>[{100 * low:.1f}, {100 * high:.1f}]</small>"


def _wrong(facts: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str:
    pairs, evidence = facts["pairs"], facts["repair"]["evidence"]
    shape = " × ".join(map(str, pairs["shape"]))
    words = (
        f"The behaviour is shown by {markup.some(pairs['count'], 'pair')} of inputs ({shape}), each "
        "with the corruption and without it."
    )
    if evidence is not None:
        words += f" It changes the answer on {markup.percent(evidence['shown_pairs'])} of the pairs"
        if evidence["references"] and evidence["transferred"]:
            words += (
                f" and, put onto {evidence['references']} references, on "
                f"{markup.percent(evidence['shown'])} of these"
            )
        words += "."
        if evidence["corruption"]:
            words += f" It was taken to be: {evidence['corruption']}."
    figures = ""
    for one in samples:
        captions = (
            f"Clean<br>{_answer(one['before_clean'], one['after_clean'])}",
            f"Corrupted<br>{_answer(one['before_corrupted'], one['after_corrupted'])}",
            "Map, clean<br><small>before</small>",
            "Map, corrupted<br><small>before</small>",
            "Map, corrupted<br><small>after</small>",
        )
        cells = "".join(
            f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
            for picture, caption in zip(one["pictures"], captions, strict=True)
        )
        figures += (
            f"<div class=pair><p>Pair {one['pair'] + 1}, evidence for "
            f"<b>{escape(one['explained_name'])}</b></p><div>{cells}</div></div>"
        )
    note = (
        f"Maps: {escape(pairs['attribution'])}; orange speaks for the class and blue against it, in "
        "one scale within a pair. "
        f"{len(samples)} of {markup.some(pairs['count'], 'pair')} shown."
    )
    return f"<p>{escape(words)}</p>{figures}<p class=note>{note}</p>"


def _answer(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    old, new = (
        f"{escape(one['name'])}&nbsp;<small>{100 * one['probability']:.0f}&nbsp;%</small>"
        for one in (before, after)
    )
    return f"{old} → {new}"


def _changed(facts: Mapping[str, Any]) -> str:
    edits = facts["edits"]
    if not edits:
        return "<p>Nothing: no edit was kept, and the weights are those of before.</p>"
    rows = [
        (
            str(number),
            f"<code>{escape(edit['layer'])}</code>",
            " × ".join(map(str, edit["weight_shape"])),
            escape(edit["solved"]),
            f"{edit['norm']:.3g}",
            f"{100 * edit['relative_norm']:.2f} %",
            f"<code>{edit['fingerprint'][:16]}</code>",
        )
        for number, edit in enumerate(edits, start=1)
    ]
    heads = ("Edit", "Layer", "Weight", "Solved", "Norm", "Of the weight's", "Fingerprint")
    return (
        "<p>Each edit adds a matrix of rank one to the weight of one layer. All other weights are "
        "as they were, to the bit, and every edit can be taken back.</p>"
        + _table(heads, rows, left=4)
        + "<p class=note>Frobenius norms, and as a share of the norm of the weight before. "
        "Fingerprints are BLAKE2 digests; the JSON file has them in full.</p>"
    )


def _cost(
    facts: Mapping[str, Any], reports: Sequence[Report], classes: Sequence[str] | None
) -> str:
    repair = facts["repair"]
    budget = repair["max_degradation"]
    words = (
        f"Loss of accuracy on inputs that chose the edits: {markup.percent(repair['degradation'])}"
    )
    words += "." if budget is None else f", of an allowed {markup.percent(budget)}."
    evidence = repair["evidence"]
    if evidence is not None and evidence["references"]:
        words += (
            f" Answers that changed on clean references: {markup.percent(evidence['changed'])}."
        )
    text = f"<p>{words}</p>"
    if reports:
        for title, table in (
            ("Each class", reports[1].by_label),
            ("Each group", reports[1].groups),
        ):
            if table is not None:
                text += f"<h3>{title}</h3>{_groups(table, classes)}"
        text += "<p class=note>Accuracy on the clean test inputs; Wilson intervals at 95 %.</p>"
    return text


def _groups(table: GroupTable, classes: Sequence[str] | None) -> str:
    heads, rows = table.cells(classes)
    titles, left = [text.capitalize() for text in heads], 2
    if not any(row.attribute for row in table.rows):
        titles, rows, left = titles[:1] + titles[2:], [line[:1] + line[2:] for line in rows], 1
    named = [escape(text) for text in table.sentences(classes)]
    said = "".join(
        f"<li class={'bad' if text.startswith('Loses') else 'ok'}>{text}</li>" for text in named
    )
    cells = [[escape(text) for text in line] for line in rows]
    return f"<ul class=said>{said}</ul>{_table(titles, cells, left=left)}"


def _not_tried(facts: Mapping[str, Any]) -> str:
    text = ""
    for name, found in facts["not_tried"].items():
        if found:
            text += f"<h3>{escape(name.capitalize())}</h3>{_list(found)}"
    if facts["repair"]["diagnosis"]:
        text += f"<h3>Why it ended where it did</h3>{_list(facts['repair']['diagnosis'])}"
    return text


def _reproduce(facts: Mapping[str, Any]) -> str:
    known, model = facts["reproduce"], facts["model"]
    rows = [
        ("Versions", ", ".join(f"{name} {number}" for name, number in known["versions"].items())),
        ("System", known["system"]),
        ("Seed", "not known" if known["seed"] is None else str(known["seed"])),
        ("Weights before", model["fingerprint_before"]),
        ("Weights after", model["fingerprint_after"]),
        ("Pairs", facts["pairs"]["fingerprint"]),
    ]
    if known["seconds"]:
        rows.append(("Time", f"{sum(known['seconds'].values()):.1f} s"))
    listing = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    call = (
        f"<pre>import rectify_widgets as rw\n\n{escape(known['call'])}</pre>"
        if known["call"]
        else ""
    )
    own = f"<h3>As it was done</h3><pre>{escape(known['code'])}</pre>" if known["code"] else ""
    return f"<dl>{listing}</dl>{call}{own}"


def _decision() -> str:
    lines = "".join(
        f"<div><span>{name}</span></div>" for name in ("Name and role", "Date", "Signature")
    )
    return (
        "<p class=choice><span>☐ accepted</span><span>☐ accepted with conditions</span>"
        f"<span>☐ refused</span></p><div class=remarks><span>Conditions and remarks</span></div>"
        f"<div class=sign>{lines}</div>"
    )
