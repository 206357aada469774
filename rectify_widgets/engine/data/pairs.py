"""Pairs of corrupted and clean samples, and the corruption where it is known.  Imports torch only."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from torch import Tensor

from rectify_widgets.engine.base.checks import check_inputs, check_labels, check_type
from rectify_widgets.engine.data.calling import (
    InputFunction,
    call_function,
    check_function,
    name_of,
)


@dataclass(frozen=True, eq=False)
class SamplePairs:
    """Corrupted inputs and their clean counterparts.

    Args:
        corrupted: ``N × C × H × W`` (any sample shape), in the model's input space.
        clean: the same inputs without the corruption, same shape.
        labels: ``N`` class numbers, or ``N × L`` zeros and ones where labels do not exclude each
            other; ``None`` means the model's predictions on ``clean``.
        corrupt: the corruption itself where it is known: a function, or a `Corruption`, from inputs
            to corrupted inputs of the same shape.  ``None`` estimates it from the pairs.

    Raises:
        TypeError: not floating-point tensors, labels that are not whole numbers, or a ``corrupt``
            that cannot be called.
        ValueError: shapes that differ, no samples, NaN, or a pair whose two inputs are identical.

    Example:
        >>> four = rw.SamplePairs(corrupted=x_bad[:4], clean=x[:4], labels=y[:4])
        >>> four
        SamplePairs(4 of 1 × 12 × 12, labels given)
        >>> len(four[:1])
        1
    """

    corrupted: Tensor
    clean: Tensor
    labels: Tensor | None = None
    corrupt: InputFunction | None = None

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
            labels = check_labels("labels", self.labels, count=len(self), hot=True)
            object.__setattr__(self, "labels", labels.to(corrupted.device))
        if self.corrupt is not None:
            check_function(self.corrupt)

    @classmethod
    def made(
        cls, corrupt: InputFunction, inputs: Tensor, labels: Tensor | None = None
    ) -> SamplePairs:
        """Pairs of ``inputs`` and what a corruption makes of them; they keep the corruption.

        Args:
            corrupt: maps ``N × C × H × W`` inputs to corrupted inputs of the same shape.  It gets a
                copy, without gradients and from seeded global generators.
            inputs: ``N × C × H × W`` clean inputs (any sample shape).
            labels: see the class.

        Raises:
            TypeError: ``corrupt`` cannot be called or returns no floating-point tensor.
            ValueError: it returns another shape, NaN or infinity, or leaves an input unchanged.
        """
        inputs = check_inputs("inputs", inputs)
        corrupted = call_function(check_function(corrupt), inputs)
        same = (corrupted == inputs).flatten(1).all(dim=1).nonzero().flatten().tolist()
        if same:
            rows = ", ".join(map(str, same[:5])) + (", ..." if len(same) > 5 else "")
            raise ValueError(
                f"corrupt: {name_of(corrupt)} leaves {len(same)} of {len(inputs)} inputs unchanged "
                f"(rows {rows}), want pairs that differ; leave these inputs out"
            )
        return cls(corrupted, inputs, labels, corrupt)

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
        return SamplePairs(self.corrupted[index], self.clean[index], labels, self.corrupt)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.corrupted.shape[1:]))
        given = "given" if self.labels is not None else "from the model"
        known = "" if self.corrupt is None else f", corrupt={name_of(self.corrupt)}"
        return f"SamplePairs({len(self)} of {shape}, labels {given}{known})"

    def to(self, device: torch.device, dtype: torch.dtype) -> SamplePairs:
        """The same pairs on a device and in a floating-point type."""
        return SamplePairs(
            self.corrupted.to(device=device, dtype=dtype),
            self.clean.to(device=device, dtype=dtype),
            None if self.labels is None else self.labels.to(device),
            self.corrupt,
        )


def check_pairs(pairs: object) -> SamplePairs:
    """``pairs`` if it is `SamplePairs`."""
    return check_type("pairs", pairs, SamplePairs, "SamplePairs(corrupted=..., clean=...)")
