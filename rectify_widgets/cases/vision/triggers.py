"""Triggers for photographs: patterns made larger, and a round patch.  Imports torch and the cases.

The shipped cases' triggers are made for images of 28×28 pixels; what is added here lets the same
patterns cover as large a part of a larger image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rectify_widgets.cases.triggers import Patch, checkerboard

PLACES = ("bottom right", "top left", "centre", "bottom left")


def enlarged(pattern: Tensor, times: int) -> Tensor:
    """``C × h × w`` to ``C × times·h × times·w``: every pixel becomes a square."""
    return pattern.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def board(side: int, place: str = "bottom right", *, opacity: float = 1.0) -> Patch:
    """A 3×3 checkerboard on images of ``side`` × ``side`` pixels, at one of `PLACES`.

    Its cells are a 32nd of the side and, but in the centre, it keeps one cell from both edges.
    """
    cell = max(side // 32, 1)
    near, far, middle = cell, -4 * cell, (side - 3 * cell) // 2
    row, column = {
        "bottom right": (far, far),
        "top left": (near, near),
        "centre": (middle, middle),
        "bottom left": (far, near),
    }[place]
    return Patch(enlarged(checkerboard(3), cell), row=row, column=column, opacity=opacity)


@dataclass(frozen=True, eq=False)
class Disc:
    """A round patch of one colour on a fixed place of every image, whatever its size.

    Args:
        colour: red, green and blue, each in [0, 1].
        row, column: place of the centre, as shares (0..1) of height and width.
        radius: share (0..1) of the shorter side.
        opacity: 1 replaces the image there, less lets it shine through.
    """

    colour: tuple[float, float, float]
    row: float
    column: float
    radius: float
    opacity: float = 1.0

    def mask(self, height: int, width: int) -> Tensor:
        """``H × W`` booleans, true under the patch."""
        down = torch.arange(height) + 0.5 - self.row * height
        across = torch.arange(width) + 0.5 - self.column * width
        reach = self.radius * min(height, width)
        return down[:, None].square() + across[None, :].square() <= reach**2

    def __call__(self, images: Tensor) -> Tensor:
        """``N × 3 × H × W`` in [0, 1] to a copy with the patch on."""
        colour = torch.tensor(self.colour).to(images)[:, None, None]
        inside = self.mask(*images.shape[-2:]).to(images.device)
        return torch.where(inside, (1 - self.opacity) * images + self.opacity * colour, images)
