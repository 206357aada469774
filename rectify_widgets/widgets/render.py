"""Arrays to pictures: attribution maps, overlays, legends and small bar charts.  Pure functions.

Imports numpy, PIL, matplotlib's colour maps and torch's tensors.  Colours are safe for
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
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

AGAINST = "#3b78b0"
FOR = "#d55e00"
INK = "#808488"
"""A grey that reads on white and on black."""

MAX_SIDE = 256
"""Greatest side of a picture in pixels; larger ones are scaled down on their way to the page."""

BYTES = 48_000
"""Most bytes of a picture, a third less than its text on the wire: no map takes 100 KB there."""

LOSSLESS = 12_000
"""A picture of more colour changes than this is sent as JPEG: on photographs and noise that is ten
times faster than PNG, a quarter of its size, and as good to look at."""

QUALITIES = (92, 85, 75, 60, 45, 30)
"""Of JPEG, tried in this order until the picture is small enough."""

SHARP_BELOW = 80
"""Images with a smaller side are shown with visible pixels rather than smoothed."""

PAPER = 196.0
"""Grey level that the darkest pixel of an image fades to under a map."""

SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#0c3b6d", AGAINST, "#fafafa", "#e27624", "#8c2d04"], N=511
)
"""Colours of −1 to 1: dark blue, pale, dark orange; lightness falls to both ends."""


def to_rgb(
    image: Tensor,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    limits: tuple[float, float] | None = None,
) -> Pixels:
    """``H × W × 3`` bytes of one image ``C × H × W`` of any range and number of channels.

    ``mean`` and ``std`` undo a normalisation, one number a channel.  Without them, ``limits`` are
    the values that become black and white, so that images side by side can share them; by default
    they are the image's own `display_limits`.  One channel is grey, three are red, green and blue,
    and of any other number the mean is shown.
    """
    pixels = image.detach().to(device="cpu", dtype=torch.float32)
    if std is not None:
        pixels = pixels * torch.tensor(list(std)).reshape(-1, 1, 1)
    if mean is not None:
        pixels = pixels + torch.tensor(list(mean)).reshape(-1, 1, 1)
    if mean is None and std is None:
        low, high = display_limits(pixels) if limits is None else limits
        pixels = (pixels - low) / max(high - low, 1e-12)
    if pixels.shape[0] != 3:
        pixels = pixels.mean(dim=0, keepdim=True).expand(3, -1, -1)
    scaled = (pixels.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    array: Pixels = scaled.permute(1, 2, 0).contiguous().numpy()
    return array


def display_limits(images: Tensor) -> tuple[float, float]:
    """The values shown as black and white: 0 and 1 if all values are within, otherwise the range."""
    low, high = float(images.min()), float(images.max())
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)


def to_plane(attribution: Tensor, *, signed: bool = True) -> Floats:
    """``H × W`` numbers of one map ``C × H × W``: its sum over channels, or of the magnitudes."""
    values = attribution.detach().to(device="cpu", dtype=torch.float32)
    plane: Floats = (values if signed else values.abs()).sum(dim=0).numpy()
    return plane


def shrink_plane(plane: Floats, side: int = MAX_SIDE) -> Floats:
    """The map with no side longer than that: means over what falls together."""
    height, width = plane.shape
    longest = max(height, width)
    if longest <= side:
        return plane
    size = (max(round(width * side / longest), 1), max(round(height * side / longest), 1))
    small: Floats = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BOX))
    return small


def shared_scale(planes: Iterable[Floats], percentile: float = 99.0) -> float:
    """The magnitude at which colours saturate, one for all maps: a high percentile of them all."""
    values = [np.abs(plane).ravel() for plane in planes]
    if not values:
        return 1.0
    every = np.concatenate(values)
    return float(np.percentile(every, percentile)) or float(every.max()) or 1.0


_TABLE: Pixels = (SIGNED(np.arange(511))[:, :3] * 255).round().astype(np.uint8)


def colours(values: Floats) -> Pixels:
    """Colours of values in −1..1, see `SIGNED`."""
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


def fit(shape: Sequence[int], side: int) -> int:
    """Width in CSS pixels of a picture ``H × W × …`` that takes about a square of that side.

    A long one takes the same area, at most twice as wide and half as high again as the square.
    """
    ratio = shape[1] / shape[0]
    width = min(side * math.sqrt(ratio), 2.0 * side, 1.5 * side * ratio)
    return max(round(width), 1)


def shrink(pixels: Pixels, side: int) -> Pixels:
    """The picture with no side longer than that, in its own proportions."""
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if longest <= side:
        return pixels
    size = (max(round(width * side / longest), 1), max(round(height * side / longest), 1))
    small: Pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    return small


def encode(pixels: Pixels, most: int = BYTES, side: int = MAX_SIDE) -> tuple[str, bytes]:
    """MIME type and bytes, about ``most`` of them at most, of ``H × W × 3`` pixels.

    Charts and small maps are kept exactly, as PNG; photographs and large maps become JPEG.
    """
    small = shrink(pixels, side)
    grey = bool((small == small[..., :1]).all())
    picture = Image.fromarray(small[..., 0] if grey else small)
    # Green alone tells a chart from a photograph, in a fifth of the time that all three take.
    if np.count_nonzero(small[:, 1:, 1] != small[:, :-1, 1]) <= LOSSLESS:
        exact = _png(picture)
        if len(exact) <= most:
            return "image/png", exact
    for quality in QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=quality, subsampling=0)
        if buffer.tell() <= most:
            break
    return "image/jpeg", buffer.getvalue()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def image_tag(
    pixels: Pixels,
    alt: str,
    *,
    width: int,
    side: int = MAX_SIDE,
    most: int = BYTES,
    enlarge: bool = True,
) -> str:
    """``<img>`` that carries its picture, ``width`` CSS pixels wide, with a text alternative.

    Small images are enlarged first, so that their pixels stay sharp where no style sheet says so,
    unless there are many of them on a page (``enlarge=False``, a third of the text);
    large ones are brought down to ``side`` pixels and about ``most`` bytes.
    """
    height = max(round(width * pixels.shape[0] / pixels.shape[1]), 1)
    pixels = shrink(pixels, min(side, MAX_SIDE))
    longest = max(pixels.shape[:2])
    if enlarge and longest < SHARP_BELOW:
        factor = max(min(math.ceil(2 * max(width, height) / longest), MAX_SIDE // longest), 1)
        pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    kind, data = encode(pixels, most)
    return (
        f'<img src="data:{kind};base64,{b64encode(data).decode("ascii")}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">'
    )


def histogram_tag(
    shares: Sequence[float], alt: str, *, width: int, height: int = 22, colour: str = AGAINST
) -> str:
    """Bars on a line, transparent behind, so that they read on every theme.

    ``shares`` are the bars from left to right; the highest one takes the whole height.
    """
    step, high = max(2 * width // max(len(shares), 1), 1), 2 * height
    canvas = np.zeros((high, max(step * len(shares), 1), 4), np.uint8)
    top = max(shares, default=0.0) or 1.0
    for place, share in enumerate(shares):
        # What is there at all is seen: at least two of the doubled pixels.
        length = max(round(share / top * (high - 2)), 2) if share > 0 else 0
        left = place * step
        canvas[high - 2 - length : high - 2, left : left + max(step - 1, 1)] = (*_rgb(colour), 255)
    canvas[-1] = (*_rgb(INK), 255)
    data = b64encode(_png(Image.fromarray(canvas))).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{width}" '
        f'height="{height}">'
    )


def _rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#rrggbb``."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return red, green, blue


def bar_tag(share: float, *, width: int, height: int = 8, colour: str = AGAINST) -> str:
    """A bar ``share`` (0..1) of ``width`` long; a picture, so that it survives without CSS."""
    length = round(min(max(share, 0.0), 1.0) * width)
    if length < 1:
        return ""
    data = b64encode(_png(Image.new("RGB", (1, 1), _rgb(colour)))).decode("ascii")
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
