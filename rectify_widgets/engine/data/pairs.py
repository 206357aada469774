"""Pairs of corrupted and clean samples.  Imports torch only."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from torch import Tensor

from rectify_widgets.engine.base.checks import check_inputs, check_labels, check_type


@dataclass(frozen=True, eq=False)
class SamplePairs:
    """Corrupted inputs and their clean counterparts.

    Args:
        corrupted: ``N × C × H × W`` (any sample shape), in the model's input space.
        clean: the same inputs without the corruption, same shape.
        labels: ``N`` class numbers; ``None`` means the model's predictions on ``clean``.

    Raises:
        TypeError: not floating-point tensors, or labels that are not whole numbers.
        ValueError: shapes that differ, no samples, NaN, or a pair whose two inputs are identical.
    """

    corrupted: Tensor
    clean: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        corrupted = check_inputs("corrupted", self.corrupted)
        clean = check_inputs("clean", self.clean, like=corrupted)
        if corrupted.shape != clean.shape:
            raise ValueError(
                f"clean: got {clean.shape[0]} samples for {corrupted.shape[0]} corrupted ones, "
                "want one clean counterpart for each"
            )
        clean = clean.to(device=corrupted.device, dtype=corrupted.dtype)
        same = (corrupted == clean).flatten(1).all(dim=1)
        if bool(same.any()):
            raise ValueError(
                f"corrupted: pair {int(same.nonzero()[0])} has identical corrupted and clean "
                "inputs, want the corruption on one of them"
            )
        object.__setattr__(self, "corrupted", corrupted)
        object.__setattr__(self, "clean", clean)
        if self.labels is not None:
            labels = check_labels("labels", self.labels, count=len(self))
            object.__setattr__(self, "labels", labels.to(corrupted.device))

    def __len__(self) -> int:
        return int(self.corrupted.shape[0])

    def __getitem__(self, index: SupportsIndex | slice | Sequence[int] | Tensor) -> SamplePairs:
        if not isinstance(index, slice | Sequence) and not getattr(index, "ndim", 0):
            # One pair; numpy and torch have whole numbers of their own.
            position = operator.index(index)
            if not -len(self) <= position < len(self):
                raise IndexError(f"index: got {position}, want one of {len(self)} pairs")
            index = [position]
        labels = None if self.labels is None else self.labels[index]
        return SamplePairs(self.corrupted[index], self.clean[index], labels)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.corrupted.shape[1:]))
        given = "given" if self.labels is not None else "from the model"
        return f"SamplePairs({len(self)} of {shape}, labels {given})"

    def to(self, device: torch.device, dtype: torch.dtype) -> SamplePairs:
        """The same pairs on a device and in a floating-point type."""
        return SamplePairs(
            self.corrupted.to(device=device, dtype=dtype),
            self.clean.to(device=device, dtype=dtype),
            None if self.labels is None else self.labels.to(device),
        )


def check_pairs(pairs: object) -> SamplePairs:
    """``pairs`` if it is `SamplePairs`."""
    return check_type("pairs", pairs, SamplePairs, "SamplePairs(corrupted=..., clean=...)")
