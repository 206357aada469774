"""Arrays to pictures: attribution maps, overlays and legends as PNG bytes.  Pure functions.

Imports numpy, PIL (which matplotlib brings along) and torch's tensors.  Colours are safe for
colour-blind readers: orange speaks for a class and blue against it, both darken with strength,
and a legend with numbers stands beside every map.
"""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

AGAINST = "#3b78b0"
FOR = "#d55e00"
MAX_SIDE = 256
"""Greatest side of a picture in pixels; larger ones are scaled down on their way to the page."""

LOSSLESS = 25_000
"""A picture of more colour changes than this is reduced to 256 colours: at most a byte a pixel, so
that no map takes 100 KB on the wire."""

SHARP_BELOW = 80
"""Images with a smaller side are shown with visible pixels rather than smoothed."""

PAPER = 196.0
"""Grey level that the darkest pixel of an image fades to under a map."""

_STOPS = (
    (-1.0, (12, 59, 109)),
    (-0.5, (59, 120, 176)),
    (0.0, (250, 250, 250)),
    (0.5, (226, 118, 36)),
    (1.0, (140, 45, 4)),
)


def to_rgb(
    image: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Pixels:
    """``H × W × 3`` bytes of one image ``C × H × W`` of any range and number of channels.

    ``mean`` and ``std`` undo a normalisation, one number a channel.  Values within 0..1 are taken
    as they are; any other range is stretched onto 0..1.  One channel is grey, three are red, green
    and blue, and of any other number the mean is shown.
    """
    pixels = image.detach().to(device="cpu", dtype=torch.float32)
    channels = pixels.shape[0]
    if std is not None:
        pixels = pixels * torch.tensor(list(std)).reshape(-1, 1, 1)
    if mean is not None:
        pixels = pixels + torch.tensor(list(mean)).reshape(-1, 1, 1)
    low, high = float(pixels.min()), float(pixels.max())
    if mean is None and std is None and (low < 0.0 or high > 1.0):
        pixels = (pixels - low) / max(high - low, 1e-12)
    if channels != 3:
        pixels = pixels.mean(dim=0, keepdim=True).expand(3, -1, -1)
    scaled = (pixels.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    array: Pixels = scaled.permute(1, 2, 0).contiguous().numpy()
    return array


def to_plane(attribution: Tensor, *, signed: bool = True) -> Floats:
    """``H × W`` numbers of one map ``C × H × W``: its sum over channels, or of the magnitudes."""
    values = attribution.detach().to(device="cpu", dtype=torch.float32)
    plane: Floats = (values if signed else values.abs()).sum(dim=0).numpy()
    return plane


def shared_scale(planes: Iterable[Floats], percentile: float = 99.0) -> float:
    """The magnitude at which colours saturate, one for all maps: a high percentile of them all."""
    values = [np.abs(plane).ravel() for plane in planes]
    if not values:
        return 1.0
    every = np.concatenate(values)
    return float(np.percentile(every, percentile)) or float(every.max()) or 1.0


def _table() -> Pixels:
    """Colours of 511 values from −1 to 1."""
    positions = [stop for stop, _ in _STOPS]
    values = np.linspace(-1.0, 1.0, 511)
    channels = [
        np.interp(values, positions, [colour[channel] for _, colour in _STOPS])
        for channel in range(3)
    ]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


_TABLE = _table()


def colours(values: Floats) -> Pixels:
    """Colours of values in −1..1: dark blue, pale, dark orange; lightness falls to both ends."""
    places = np.clip(values * 255.0 + 255.5, 0.0, 510.0).astype(np.int16)
    picked: Pixels = _TABLE[places]
    return picked


def overlay(image: Pixels, plane: Floats, scale: float, *, opacity: float = 0.85) -> Pixels:
    """The map over a grey, faded version of its image.

    Args:
        image: ``H × W × 3``.
        plane: ``H × W``, positive where a pixel speaks for the class.
        scale: magnitude at which colours saturate.
        opacity: 0 shows the image alone, 1 fades it most.
    """
    strength = np.clip(plane / np.float32(scale), -1.0, 1.0).astype(np.float32)
    pixels = image.astype(np.float32)
    paper = PAPER + pixels.mean(axis=-1, keepdims=True) * np.float32((250.0 - PAPER) / 255.0)
    pixels += (paper - pixels) * np.float32(opacity)
    alpha = (np.sqrt(np.abs(strength)) * np.float32(opacity))[..., None]
    pixels += (colours(strength) - pixels) * alpha
    result: Pixels = np.clip(pixels + 0.5, 0.0, 255.0).astype(np.uint8)
    return result


def png(pixels: Pixels) -> bytes:
    """PNG bytes of ``H × W × 3`` pixels, at most about 75 KB long."""
    picture = Image.fromarray(pixels)
    if max(picture.size) > MAX_SIDE:
        ratio = MAX_SIDE / max(picture.size)
        width, height = (max(round(side * ratio), 1) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    changes = np.count_nonzero(np.any(pixels[:, 1:] != pixels[:, :-1], axis=-1))
    if changes > LOSSLESS:
        picture = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
    return _encode(picture)


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def image_tag(pixels: Pixels, alt: str, *, width: int) -> str:
    """``<img>`` that carries its PNG, ``width`` CSS pixels wide, with a text alternative.

    Small images are enlarged first, so that their pixels stay sharp where no style sheet says so.
    """
    height = max(round(width * pixels.shape[0] / pixels.shape[1]), 1)
    side = max(pixels.shape[:2])
    if side < SHARP_BELOW:
        factor = min(math.ceil(2 * width / side), MAX_SIDE // side)
        pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    data = b64encode(png(pixels)).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}" '
        f'height="{height}">'
    )


def bar_tag(share: float, *, width: int, height: int = 8, colour: str = AGAINST) -> str:
    """A bar ``share`` (0..1) of ``width`` long; a picture, so that it survives without CSS."""
    length = round(min(max(share, 0.0), 1.0) * width)
    if length < 1:
        return ""
    level = tuple(int(colour[place : place + 2], 16) for place in (1, 3, 5))
    data = b64encode(_encode(Image.new("RGB", (1, 1), level))).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{data}" alt="" width="{length}" height="{height}" '
        f'style="width:{length}px;height:{height}px;max-width:none;margin:0;border-radius:2px;'
        'vertical-align:middle">'
    )


def legend_tag(scale: float, *, signed: bool = True, width: int = 104) -> str:
    """The colour scale as a picture with its numbers beside it."""
    low = -1.0 if signed else 0.0
    ramp = np.linspace(low, 1.0, width, dtype=np.float32)[None].repeat(8, axis=0)
    start, end = (f"−{scale:.2g}", f"+{scale:.2g}") if signed else ("0", f"{scale:.2g}")
    blue = "blue, against the class" if signed else "pale, no weight"
    alt = f"Colour scale from {start} ({blue}) to {end} (dark orange)"
    words = ("against", "for") if signed else ("", "weight")
    return (
        f'<span class="rw-num">{words[0]} {start}</span> {image_tag(colours(ramp), alt, width=width)} '
        f'<span class="rw-num">{end} {words[1]}</span>'
    )
