"""Suspicions to HTML: the list with pull bars, and the pictures behind the one that is chosen.  Pure.

Imports the data, `markup`, `render` and the handles of `view`.  Everything that comes from outside is
escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from torch import Tensor

from rectify_widgets.reveal.suspicions import Suspicion, Suspicions
from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.suspicion.data import SHOWN, Transplants
from rectify_widgets.widgets.view import to_set

THUMB, TILE = 38, 64
"""Sides of squares that take as much room as a picture of the list, and below it, in CSS pixels."""

BYTES = 4_000
"""About how much a picture takes at most."""

BAR = 120
"""Width of a pull of 100 % in CSS pixels."""

UNKNOWN = "Not searched yet. Reveal looks for what decides although it is no part of an object."


def framed(pixels: render.Pixels, mask: Tensor | None) -> render.Pixels:
    """The picture with an orange frame around the mask, as wide as one pixel in 28."""
    if mask is None or not mask.any():
        return pixels
    factor = max(1, -(-render.SHARP_BELOW // max(pixels.shape[:2])))
    big = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    inside = mask.numpy().repeat(factor, axis=0).repeat(factor, axis=1)
    wide = max(1, round(max(big.shape[:2]) / 42))
    grown = np.pad(inside, wide)
    for axis in (0, 1):
        grown = np.logical_or.reduce(
            [np.roll(grown, by, axis=axis) for by in range(-wide, wide + 1)]
        )
    edge = grown[wide:-wide, wide:-wide] & ~inside
    orange = [int(render.FOR[place : place + 2], 16) for place in (1, 3, 5)]
    big[edge] = orange
    return big


def suspicion_list(
    found: Suspicions | None, thumbs: Sequence[render.Pixels | None], classes: Sequence[str] | None
) -> str:
    """The verdict, and a row for each suspicion; a row chooses it."""
    if found is None:
        return f'<p class="rw-soft">{UNKNOWN}</p>'
    sign = "⚠" if found.accused else "✓"
    verdict = f'<p class="rw-sus-verdict"><b>{sign} {escape(found.verdict)}</b></p>'
    if not len(found):
        return verdict
    head = (
        '<th></th><th>Pulls to</th><th title="Share of other references that it turns to the '
        'class, with 95 % interval">Pull, 95 % interval</th><th class="rw-right">Carriers</th>'
        '<th class="rw-right" title="Share of healthy networks in which one as strong turns up">'
        "As strong in<br>healthy ones</th><th>Verdict</th>"
    )
    body = "".join(
        _row(rank, one, thumb, classes)
        for rank, (one, thumb) in enumerate(zip(found, thumbs, strict=True))
    )
    table = markup.table("rw-sus", head, body)
    return f'{verdict}<div class="rw-sus-list" data-list data-key="suspicions">{table}</div>'


def _row(
    rank: int, one: Suspicion, thumb: render.Pixels | None, classes: Sequence[str] | None
) -> str:
    name = markup.class_name(classes, one.target)
    picture = ""
    if thumb is not None:
        picture = _picture(thumb, f"Carrier of suspicion {rank + 1}", THUMB)
    words = "⚠ accused" if one.accused else "within healthy"
    carriers = str(len(one.inputs)) if len(one.inputs) else "–"
    look = "" if one.accused else ' class="rw-off"'
    return (
        f"<tr{look}{to_set(key=f'suspicion {rank}', rank=rank)}><td>{picture}</td>"
        f'<td><b>{escape(name)}</b><br><span class="rw-soft">{escape(one.kind)}</span></td>'
        f'<td title="{one.others} other references">{_bar(one)}</td>'
        f"{markup.numbers([carriers, f'{100 * one.healthy:.0f} %'])}<td>{words}</td></tr>"
    )


def _bar(one: Suspicion) -> str:
    """The pull as a bar, its interval as a line with ends, and both in numbers."""
    low, high = (min(max(end, 0.0), 1.0) * (BAR - 2) + 1 for end in one.interval)
    colour = render.FOR if one.accused else render.INK
    text = f"{100 * one.pull:.0f} % ({100 * one.interval[0]:.0f}–{100 * one.interval[1]:.0f})"
    line = f'stroke="currentColor" stroke-width="1.5" d="M{low:.1f},6H{high:.1f}M{low:.1f},2.5v7M{high:.1f},2.5v7"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{BAR}" height="12" aria-label="" '
        f'color="{render.INK}"><rect y="2" width="{BAR}" height="8" fill="{render.INK}" '
        f'fill-opacity=".15"/><rect y="2" width="{one.pull * BAR:.1f}" height="8" '
        f'fill="{colour}"/><path class="rw-sus-interval" {line}/></svg> '
        f'<span class="rw-sus-pull">{text}</span>'
    )


def details(
    one: Suspicion,
    carriers: Sequence[tuple[int, render.Pixels]],
    moved: Transplants | None,
    pictures: Sequence[render.Pixels],
    classes: Sequence[str] | None,
) -> str:
    """The references that carry it, region framed, and those that it turned."""
    blocks = ""
    if carriers:
        count = len(one.inputs)
        some = f", {len(carriers)} shown" if count > len(carriers) else ""
        tiles = "".join(_tile(pixels, _numbered(row)) for row, pixels in carriers)
        note = "the region is framed" if len(one.mask) else ""
        verb = "carry" if one.accused or len(one.mask) else "would carry"
        blocks += _block(f"{markup.some(count, 'reference')} {verb} it{some}", note, tiles)
    elif not len(one.inputs):
        blocks += (
            '<p class="rw-soft">No reference carries it: it is a change of clean references, found '
            "by searching.</p>"
        )
    if moved is not None:
        name = markup.class_name(classes, one.target)
        what = "what they carry" if len(one.inputs) else "the change"
        if moved.source is not None:
            what = f"the region of {_numbered(moved.source)}"
        rows = zip(pictures, moved.rows, moved.before, moved.after, strict=True)
        tiles = "".join(
            _tile(
                pixels,
                f"{markup.class_name(classes, old)} → {markup.class_name(classes, new)}",
                "" if row < 0 else _numbered(row),
            )
            for pixels, row, old, new in rows
        )
        note = f"with {what}, {moved.turned} of {moved.tried} others are taken for {name}"
        if moved.source is None:
            note += "; on the left without it"
        blocks += _block("Turned by it", note, tiles or '<p class="rw-soft">None.</p>')
    return blocks


def _numbered(row: int) -> str:
    """A reference as people count, from 1."""
    return f"reference {row + 1}"


def selection(tiles: Sequence[tuple[int, render.Pixels, str]], count: int, total: int) -> str:
    """The references that are selected, as pictures."""
    if not count:
        return ""
    shown = "".join(_tile(pixels, name, _numbered(row)) for row, pixels, name in tiles)
    some = f", {len(tiles)} shown" if count > len(tiles) else ""
    return _block(f"{count} of {total} references selected{some}", "", shown)


def legend(explained: float) -> str:
    """What the scatter shows."""
    return (
        f'<span class="rw-soft"><span style="color:{render.FOR}">◆</span> carries it · '
        f'<span style="color:{render.AGAINST}">●</span> taken for its class · '
        f'<span style="color:{render.INK}">●</span> other · <span style="color:#009e73">○</span> green rim: selected.<br>'
        "Two main directions of what goes into the last layer, "
        f"{100 * explained:.0f} % of its variance.</span>"
    )


def _block(title: str, note: str, tiles: str) -> str:
    return f'<div>{markup.heading(title, note)}<div class="rw-sus-tiles">{tiles}</div></div>'


def _tile(pixels: render.Pixels, words: str, more: str = "") -> str:
    alt = f"{words}, {more}" if more else words
    second = f'<br><span class="rw-soft">{escape(more)}</span>' if more else ""
    return (
        f'<div class="rw-sus-tile">{_picture(pixels, alt, TILE)}'
        f'<div title="{escape(alt)}">{escape(words)}{second}</div></div>'
    )


def _picture(pixels: render.Pixels, alt: str, side: int) -> str:
    width = render.fit(pixels.shape, side)
    return render.image_tag(pixels, alt, width=width, most=BYTES, side=2 * side, enlarge=False)


MOST_TILES = 2 * SHOWN
"""Most pictures of selected references."""
