"""What stands beside the canvas, as HTML: the cleansed picture, and what the model answers.

Pure functions; imports the renderers and `markup`.  Whatever a colour says, a word says too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from torch import Tensor

from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.prediction.html import track

SIDE = 224
"""Side of a square that takes as much room as a picture, in CSS pixels."""

BYTES = 9_000
"""About how much a picture takes at most."""

ROWS = 5
"""Classes in the table."""

EMPTY = "Nothing is painted yet: mark what should not be in the picture."


@dataclass(frozen=True, eq=False)
class Study:
    """What is known of the sample in view.

    Attributes:
        index: which sample.
        mask: boolean ``H × W``.
        pixels: the input for display, ``H × W × 3``.
        clean: the cleansed input for display, or None where nothing is painted.
        shares: class probabilities of the input and, if there is one, of its clean counterpart;
            empty without a model.
    """

    index: int
    mask: Tensor
    pixels: render.Pixels
    clean: render.Pixels | None = None
    shares: tuple[render.Floats, ...] = ()


def side(study: Study, fill: str, classes: Sequence[str] | None, *, live: bool) -> str:
    """The cleansed picture with the answers; in a still view the painted input comes first."""
    pictures = [] if live else [_figure(marked(study), f"Input {study.index + 1}, painted")]
    if study.clean is not None:
        words = f"Cleansed input {study.index + 1}, fill: {fill}"
        pictures.append(_figure(study.clean, words))
    empty = "" if study.clean is not None else f'<div class="rw-soft rw-empty">{EMPTY}</div>'
    shown = f'<div class="rw-pictures">{"".join(pictures)}</div>' if pictures else ""
    return f'<div class="rw-cleansed">{shown}{empty}<div>{answers(study, classes)}</div></div>'


def marked(study: Study) -> render.Pixels:
    """The input with orange over what is painted."""
    pixels, mask = study.pixels.copy(), study.mask.numpy()
    orange = np.array([int(render.FOR[place : place + 2], 16) for place in (1, 3, 5)])
    pixels[mask] = (0.45 * pixels[mask] + 0.55 * orange).astype(np.uint8)
    return pixels


def _figure(pixels: render.Pixels, words: str) -> str:
    width = render.fit(pixels.shape, SIDE)
    picture = render.image_tag(pixels, words, width=width, most=BYTES)
    return f'<div><div class="rw-soft">{escape(words)}</div>{picture}</div>'


def answers(study: Study, classes: Sequence[str] | None) -> str:
    """A sentence and a table: probabilities of the input and of its clean counterpart."""
    if not study.shares:
        return ""
    best = [int(shares.argmax()) for shares in study.shares]
    said = [
        f"<b>{escape(markup.class_name(classes, number))}</b> {markup.percent(float(shares[number]))}"
        for number, shares in zip(best, study.shares, strict=True)
    ]
    sentence = f"The model answers {said[0]}"
    if len(said) > 1:
        verb = "it stays" if best[0] == best[1] else "it changes to"
        sentence += f"; cleansed, {verb} {said[1]}"
    highest = np.max(study.shares, axis=0)
    listed = sorted(range(len(highest)), key=lambda number: -highest[number])[:ROWS]
    body = ""
    for number in listed:
        cells = ""
        for shares, top, colour in zip(
            study.shares, best, (render.AGAINST, render.FOR), strict=False
        ):
            text = f"{100 * shares[number]:.1f}"
            text = f"<b>{text} ●</b>" if number == top else text
            cells += f'<td class="rw-probability">{track(float(shares[number]), colour)}{text}</td>'
        body += f"<tr><td>{escape(markup.class_name(classes, number))}</td>{cells}</tr>"
    heads = ("Class, in %", "Input", "Cleansed")[: 1 + len(study.shares)]
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<p>{sentence}.</p>{markup.table('rw-predictions', head, body)}"
