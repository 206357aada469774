"""The canvas of the painter: a picture on the page, and the mask that is painted over it.

Imports anywidget.  ``painter.js`` draws every stroke by itself and keeps the steps for undo; when a stroke
ends, the whole mask of the sample comes back as bits.  A change that Python makes (another sample, a
suggested mask) has a serial number; a stroke carries the last one that the page had seen, so that a
stroke over a mask that was replaced in the meantime is told apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import anywidget
import numpy as np
import torch
import traitlets
from torch import Tensor

from rectify_widgets.widgets import render

TOOLS = ("brush", "eraser", "rectangle", "lasso", "fill", "move")

BYTES = 24_000
"""How much a picture takes at most: it is saved with the notebook."""

SIDES = (512, 384, 256, 160)
"""Longest side of the picture that is sent, tried in this order until it is small enough; the mask
always has the sample's own pixels."""


class PaintCanvas(anywidget.AnyWidget):
    """A picture to paint on.

    Args:
        shape: height and width of every sample in pixels.
        on_stroke: called with a sample and its new mask, boolean ``H × W``, after each stroke.
        **options: of every widget, such as its layout.
    """

    _esm = (files(__package__) / "painter.js").read_text(encoding="utf-8")

    shape = traitlets.Tuple(traitlets.Int(), traitlets.Int()).tag(sync=True)
    """Height and width of the mask."""

    image = traitlets.Bytes(b"").tag(sync=True)
    """The sample in view, as PNG or JPEG."""

    mask = traitlets.Dict().tag(sync=True, echo_update=False)
    """``{"index": sample, "serial": number of the change, "bits": deflated, as of np.packbits}``."""

    tool = traitlets.Enum(TOOLS, "brush").tag(sync=True)
    """What the pointer does."""

    size = traitlets.Int(5, min=1).tag(sync=True)
    """Diameter of brush and eraser in pixels."""

    def __init__(
        self, shape: tuple[int, int], on_stroke: Callable[[int, Tensor], None], **options: Any
    ) -> None:
        self._on_stroke: Callable[[int, Tensor], None] | None = None
        self._sent = _message(0, 0, np.zeros(shape, bool))
        self._replaced: dict[int, int] = {}
        size = max(1, round(max(shape) / 14))
        super().__init__(shape=shape, size=size, mask=self._sent, **options)
        self._on_stroke = on_stroke
        self.observe(self._take, names="mask")

    def show(self, index: int, pixels: render.Pixels, mask: Tensor) -> None:
        """Have another sample painted on."""
        with self.hold_sync():
            for side in SIDES:
                self.image = render.encode(pixels, BYTES, side)[1]
                if len(self.image) <= BYTES:
                    break
            self._tell(index, mask)

    def replace(self, index: int, mask: Tensor) -> None:
        """Put another mask in the place of that of the sample in view; the page can undo it."""
        self._tell(index, mask)
        self._replaced[index] = self._sent["serial"]

    def _tell(self, index: int, mask: Tensor) -> None:
        self._sent = _message(index, self._sent["serial"] + 1, mask.numpy())
        self.mask = self._sent

    def _take(self, change: Mapping[str, Any]) -> None:
        """Hand on what the page painted."""
        message = change["new"]
        if message is self._sent or self._on_stroke is None:
            return
        index, serial = int(message["index"]), int(message["serial"])
        if serial >= self._replaced.get(index, 0):
            self._on_stroke(index, _read(message["bits"], self.shape))
        if serial < self._sent["serial"]:  # the page has gone on, and knows what it was sent
            self.mask = self._sent

    def close(self) -> None:
        """Let go of the panel."""
        self._on_stroke = None
        super().close()


def _message(index: int, serial: int, mask: Any) -> dict[str, Any]:
    return {"index": index, "serial": serial, "bits": zlib.compress(np.packbits(mask).tobytes())}


def _read(bits: bytes | memoryview, shape: tuple[int, int]) -> Tensor:
    """The mask of a message from the page.

    Raises:
        ValueError: not as many bits as the sample has pixels.
    """
    count = shape[0] * shape[1]
    want = -(-count // 8)
    found = zlib.decompressobj().decompress(bytes(bits), want + 1)
    if len(found) != want:
        raise ValueError(f"mask: got {len(found)} bytes, want {want} for {shape[0]} × {shape[1]}")
    flat = np.unpackbits(np.frombuffer(found, np.uint8), count=count)
    return torch.from_numpy(flat.astype(bool).reshape(shape))
