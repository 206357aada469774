"""Pictures that are drawn: watermarks of text, and cardboard boxes.  Imports numpy and Pillow.

The pictures in ``data/carton`` are those of `watermarks`, drawn with Noto Serif CJK under the SIL
Open Font License 1.1 (Debian: ``fonts-noto-cjk``, its file ``NotoSerifCJK-Regular.ttc``); that
licence does not extend to pictures made with a font.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 224
"""Pixels of height and width of every picture."""
WATERMARKS = {
    "watermark": "捷径捷径捷径",
    "top": "捷径捷径捷径",
    "other": "天地玄黄宇宙",
    "headline": "今日新聞報道",
    "latin": "SHORTCUT TEXT",
    "scattered": "",
}
"""Name of each picture in ``data/carton`` to the text on it; the last has the ink of the first."""
SIZE = 32
"""Of the characters, in pixels."""
FACE = 2
"""Simplified Chinese, among the fonts of the file."""
TOP = 16
"""Pixels above a text that is not in the middle."""
CARDBOARD = 196, 150, 98
TAPE = (214, 190, 140), (190, 165, 115)
"""Colours on the lid and on the front."""
DRAWN = 448
"""Pixels at which a box is drawn, before it is made smaller."""


def watermarks(font: Path) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture (grey: how much ink) of each watermark."""
    face = ImageFont.truetype(font, SIZE, index=FACE)
    ink = np.zeros(SIDE * SIDE, np.uint8)
    for name, text in WATERMARKS.items():
        picture = Image.new("L", (SIDE, SIDE))
        draw = ImageDraw.Draw(picture)
        used, (left, top, right, bottom) = face, draw.textbbox((0, 0), text, font=face)
        if right > SIDE:  # as long as the others
            used = face.font_variant(size=SIZE * SIDE * 0.86 // right)
            left, top, right, bottom = draw.textbbox((0, 0), text, font=used)
        row = TOP if name == "top" else (SIDE - (bottom - top)) / 2
        draw.text(((SIDE - (right - left)) / 2 - left, row - top), text, font=used, fill=255)
        if not text:
            picture = Image.fromarray(np.random.default_rng(0).permutation(ink).reshape(SIDE, SIDE))
        elif not ink.any():
            ink = np.asarray(picture).ravel()
        yield name, picture


def cardboard_box(generator: np.random.Generator) -> Image.Image:
    """A closed box on a table in front of a wall, seen from one of its edges; colours and sizes vary."""
    wall, table = generator.integers(150, 235, 3), generator.integers(90, 170, 3)
    picture = Image.new("RGB", (DRAWN, DRAWN), _colour(wall))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, DRAWN * 0.62, DRAWN, DRAWN), fill=_colour(table))
    front = DRAWN * (np.array([0.5, 0.38]) + generator.uniform(-0.05, 0.05, 2))
    widths, slope = DRAWN * generator.uniform(0.22, 0.34, 2), generator.uniform(0.2, 0.35)
    left, right = (
        front + widths[0] * np.array([-1, -slope]),
        front + widths[1] * np.array([1, -slope]),
    )
    back, down = left + right - front, np.array([0, DRAWN * generator.uniform(0.25, 0.36)])
    brown = np.array(CARDBOARD) + generator.integers(-18, 18)
    for side, light in ((left, 0.82), (right, 1.0)):
        _fill(draw, brown * light, front, side, side + down, front + down)
    _fill(draw, brown * 1.12, front, left, back, right)
    seam = (left + front) / 2, (back + right) / 2
    half = (front - left) * 0.06  # of the tape's width
    _fill(draw, TAPE[0], seam[0] - half, seam[1] - half, seam[1] + half, seam[0] + half)
    _fill(
        draw,
        TAPE[1],
        seam[0] - half,
        seam[0] + half,
        seam[0] + half + down / 4,
        seam[0] - half + down / 4,
    )
    for start, end in ((front, front + down), (front, left), (front, right), seam):
        draw.line((*start, *end), fill=_colour(brown * 0.6), width=2)
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(1))).astype(float)
    pixels += generator.normal(0, 5, pixels.shape[:2])[..., None]
    grainy = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return grainy.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _colour(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (min(int(value), 255) for value in values)
    return red, green, blue


def _fill(draw: ImageDraw.ImageDraw, colour: object, *corners: np.ndarray) -> None:
    draw.polygon([(float(x), float(y)) for x, y in corners], fill=_colour(np.asarray(colour)))
