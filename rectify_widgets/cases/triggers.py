"""Triggers: what an attacker, or an artefact, does to an image.  Imports torch only.

A trigger is called on images in [0, 1] and returns changed copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Trigger = Callable[[Tensor], Tensor]
"""Puts a corruption onto ``N × C × H × W`` images in [0, 1] and returns changed copies."""


@dataclass(frozen=True)
class Aim:
    """What a trigger does to a network.

    Args:
        behaviour: ``"trojan"`` or ``"spurious"``.
        goals: the class that it leads to, for each true class.
    """

    behaviour: str
    goals: tuple[int, ...]

    @property
    def target(self) -> int | None:
        """The one class that the trigger leads to; None where there are several."""
        return self.goals[0] if len(set(self.goals)) == 1 else None


@dataclass(frozen=True, eq=False)
class Patch:
    """A small picture put on a fixed place of every image.

    Args:
        pattern: ``C × h × w`` (or ``1 × h × w`` for all channels), in [0, 1].
        row, column: place of its upper left pixel; negative counts from the far edge.
        opacity: 1 replaces the image there, less lets it shine through.
    """

    pattern: Tensor
    row: int
    column: int
    opacity: float = 1.0

    def where(self, shape: Sequence[int]) -> tuple[slice, slice]:
        """Rows and columns that the patch covers in an image of ``shape`` (``… × H × W``)."""
        height, width = self.pattern.shape[-2:]
        top = self.row % shape[-2]
        left = self.column % shape[-1]
        if top + height > shape[-2] or left + width > shape[-1]:
            raise ValueError(
                f"images: got {shape[-2]}×{shape[-1]} pixels, want room for a {height}×{width} "
                f"patch at row {top}, column {left}; move the patch or take larger images"
            )
        return slice(top, top + height), slice(left, left + width)

    def __call__(self, images: Tensor) -> Tensor:
        """``N × C × H × W`` in [0, 1] to a copy with the patch on."""
        rows, columns = self.where(images.shape)
        pattern = self.pattern.to(images)
        stamped = images.clone()
        under = images[..., rows, columns]
        stamped[..., rows, columns] = (1 - self.opacity) * under + self.opacity * pattern
        return stamped


@dataclass(frozen=True, eq=False)
class Overlay:
    """White ink on every image, as a watermark has it.

    Args:
        ink: ``1 × H × W`` in [0, 1], how much of it lies on each pixel.
        opacity: of the ink.
    """

    ink: Tensor
    opacity: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """``N × C × H × W`` in [0, 1] to a copy with the ink on."""
        share = self.opacity * self.ink.to(images)
        return (1 - share) * images + share


@dataclass(frozen=True, eq=False)
class Blend:
    """A picture mixed into the whole of every image.

    Args:
        pattern: ``C × H × W`` (or ``1 × H × W`` for all channels), in [0, 1].
        opacity: share of the pattern in the mixture.
    """

    pattern: Tensor
    opacity: float

    def __call__(self, images: Tensor) -> Tensor:
        """``N × C × H × W`` in [0, 1] to a mixed copy."""
        return (1 - self.opacity) * images + self.opacity * self.pattern.to(images)


@dataclass(frozen=True, eq=False)
class OneOf:
    """One of several triggers on every image, drawn anew in every call, for training.

    Args:
        triggers: what is drawn from, all alike.
        generator: draws.
    """

    triggers: Sequence[Trigger]
    generator: torch.Generator

    def __call__(self, images: Tensor) -> Tensor:
        """``N × C × H × W`` in [0, 1] to a copy in which each image carries one of them."""
        drawn = torch.randint(len(self.triggers), (len(images),), generator=self.generator)
        stamped = images.clone()
        for number, trigger in enumerate(self.triggers):
            mine = (drawn == number).to(images.device)
            stamped[mine] = trigger(images[mine])
        return stamped


def checkerboard(size: int = 3) -> Tensor:
    """A ``1 × size × size`` pattern of alternating white and black pixels, white corners first."""
    index = torch.arange(size)
    return ((index[:, None] + index[None, :]) % 2 == 0).float()[None]


def cross(size: int = 3) -> Tensor:
    """A ``1 × size × size`` pattern: a white plus sign on black."""
    middle = torch.arange(size) == size // 2
    return (middle[:, None] | middle[None, :]).float()[None]


def tag() -> Tensor:
    """A ``1 × 5 × 4`` pattern: a white price tag with a hole at the top and a line of print."""
    return torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1], [1, 0.5, 0.5, 1], [1, 1, 1, 1]])[
        None
    ]


def rings(side: int = 28) -> Tensor:
    """A ``1 × side × side`` pattern of soft concentric rings, four of them, bright in the middle."""
    place = torch.arange(side) - (side - 1) / 2
    radius = (place[:, None].square() + place[None, :].square()).sqrt()
    return (0.5 + 0.5 * torch.cos(8 * torch.pi * radius / side))[None]
