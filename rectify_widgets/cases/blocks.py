"""BlockMNIST: a digit and a label-free block, one above the other.  Imports torch only.

The label-free (or null) block is the same in every image and says nothing about the digit; only
whether it stands above or below the digit is drawn at random.  After Shah, Jain and Netrapalli
2021, "Do Input Gradients Highlight Discriminative Features?", whose block is drawn differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def null_block(side: int = 28) -> Tensor:
    """A ``1 × side × side`` picture of a box with a cross in it, white on black.

    The box keeps a seventh of the side from the edge, its lines are a fourteenth of it thick.
    """
    margin, thick = side // 7, max(1, side // 14)
    index = torch.arange(side)
    row, column = index[:, None], index[None, :]
    inside = (torch.minimum(row, column) >= margin) & (torch.maximum(row, column) < side - margin)
    edge = (torch.minimum(row, column) < margin + thick) | (
        torch.maximum(row, column) >= side - margin - thick
    )
    cross = ((row - column).abs() < thick) | ((row + column - side + 1).abs() < thick)
    return (inside & (edge | cross)).float()[None]


def stack(digits: Tensor, below: Tensor) -> Tensor:
    """``N × 1 × S × S`` digits to ``N × 1 × 2S × S`` images with the null block.

    Args:
        digits: in [0, 1].
        below: ``N`` booleans, true where the null block stands below the digit.
    """
    block = null_block(digits.shape[-1]).to(digits).expand_as(digits)
    under = below.to(digits.device).reshape(-1, 1, 1, 1)
    return torch.cat([torch.where(under, digits, block), torch.where(under, block, digits)], dim=2)


@dataclass(frozen=True, eq=False)
class RandomStack:
    """`stack` with the order drawn anew in every call, for training.

    Args:
        generator: draws the order.
    """

    generator: torch.Generator

    def __call__(self, digits: Tensor) -> Tensor:
        """``N × 1 × S × S`` digits in [0, 1] to ``N × 1 × 2S × S`` images."""
        return stack(digits, torch.rand(len(digits), generator=self.generator) < 0.5)


@dataclass(frozen=True)
class WithoutBlock:
    """The corruption of the leakage case: the null block goes, nothing comes in its place."""

    def mask(self, images: Tensor) -> Tensor:
        """``N × 1 × 2S × S`` booleans: the half of each image that holds the null block.

        Raises:
            ValueError: no BlockMNIST images, or one whose null block is not there.
        """
        side = images.shape[-1]
        if images.ndim != 4 or images.shape[1:] != (1, 2 * side, side):
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, want N × 1 × 2S × S, two squares one "
                "above the other"
            )
        halves = images.reshape(len(images), 2, side, side)
        found = (halves == null_block(side).to(images)).flatten(2).all(dim=2)
        if not bool(found.any(dim=1).all()):
            first = int((~found.any(dim=1)).nonzero()[0])
            raise ValueError(
                f"images: no label-free block in image {first}; take the mask of the images as "
                "they were before it was removed"
            )
        wide = found[:, :, None, None].expand(-1, -1, side, side)
        return wide.reshape(len(images), 1, 2 * side, side)

    def __call__(self, images: Tensor) -> Tensor:
        """``N × 1 × 2S × S`` images to copies with black in the block's place."""
        return torch.where(self.mask(images), torch.zeros_like(images), images)
