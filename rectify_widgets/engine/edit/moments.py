"""Sums of ``k kᵀ`` over the positions of one layer, the cheaper of two ways.  Imports torch only.

*Unfolded*: take the keys, all of them or a seeded sample of the positions, and multiply; the
product is symmetric, so that only its upper blocks are formed.

*Shifted*: two entries of a convolution's second moment that lie the same displacement apart sum the
same products of pixels, but for a few rows and columns at the border.  A 3×3 kernel has 81 pairs of
offsets and, up to symmetry, 13 displacements: a sixth of the multiply-adds, with no unfolded patch
and no sample.  It is used where the unfolded way would use all positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise, product

import torch
from torch import Tensor, nn

from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import working_dtype

POSITIONS_PER_INPUT = 64
POSITIONS_PER_KEY = 8
BLOCK = 384
"""Rows of a symmetric product formed at once: enough for a fast product, and few enough that little
of the lower half is formed with them."""
MIN_CHANNELS = 16
"""With fewer, unfolding costs less than many small products."""

Range = tuple[int, int]


class MomentSum:
    """Adds up ``k kᵀ`` of one layer, batch after batch.

    Args:
        layer, key_space: see `KeyStatistics.collect`.
        positions: positions taken at random from each input; None takes `POSITIONS_PER_INPUT`, or
            as many as give `POSITIONS_PER_KEY` for each number of the key where inputs are few.
        expected: inputs that will be added, as far as known.
        seed: of the sample of positions, which depends on nothing else but the batch's number.

    Attributes:
        count: positions that went into the sum.
    """

    def __init__(
        self,
        layer: EditableLayer,
        key_space: str,
        positions: int | None,
        expected: int,
        seed: int,
    ) -> None:
        self.count = 0
        self._layer = layer
        self._key_space = key_space
        self._positions = positions
        self._expected = expected
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn = 0
        self._last = torch.empty(0, dtype=torch.long)
        self._upper: Tensor | None = None
        self._shifted: Shifted | None = None

    def add(self, inputs: Tensor, samples: int, batch: int) -> None:
        """Add batch number ``batch``, or a piece of it: the ``inputs`` for so many model inputs.

        Numbers never decrease; missing ones are other processes' batches.
        """
        layer = self._layer
        if self._key_space == "channel":
            pixels = layer.pixels(inputs, samples)
            which = self._sample(pixels.shape[3], pixels.shape[2], batch)
            self._multiply(pixels if which is None else pixels[..., which.to(pixels.device)])
            return
        keys = layer.keys(inputs, samples)
        which = self._sample(keys.positions, layer.key_size, batch)
        if which is None and isinstance(layer.module, nn.Conv2d) and shiftable(layer.module):
            if self._shifted is None:
                self._shifted = Shifted(layer.module, (inputs.shape[2], inputs.shape[3]))
            self._shifted.add(inputs.detach().to(working_dtype(inputs.dtype)))
            self.count += samples * keys.positions
        else:
            self._multiply(keys.unfold(which))

    def total(self) -> Tensor:
        """The sum so far, ``G × K × K``."""
        if self._shifted is not None:
            return self._shifted.total()
        if self._upper is None:  # there was nothing to add
            weight = self._layer.module.weight.detach()
            size = self._layer.key_size if self._key_space == "patch" else weight.shape[1]
            precise = working_dtype(weight.dtype)
            return weight.new_zeros(self._layer.groups, size, size, dtype=precise)
        return self._upper.triu_() + self._upper.triu(1).mT

    def _sample(self, available: int, size: int, batch: int) -> Tensor | None:
        """Positions to take from each input of this batch; None for all."""
        per_key = math.ceil(POSITIONS_PER_KEY * size / self._expected)
        wanted = self._positions or max(POSITIONS_PER_INPUT, per_key)
        if available <= wanted:
            return None
        while self._drawn <= batch:
            self._last = torch.randperm(available, generator=self._generator)
            self._drawn += 1
        return self._last[:wanted]

    def _multiply(self, keys: Tensor) -> None:
        """Add the products of ``N × G × K × P`` keys, upper blocks only."""
        rows = keys.permute(1, 2, 0, 3).flatten(2)
        size = rows.shape[1]
        if self._upper is None:
            self._upper = rows.new_zeros(len(rows), size, size)
        if size <= BLOCK:
            self._upper.baddbmm_(rows, rows.mT)
        else:  # group by group, since only a product of matrices is added in place, without a copy
            for upper, group in zip(self._upper, rows, strict=True):
                for first in range(0, size, BLOCK):
                    some = slice(first, first + BLOCK)
                    upper[some, first:].addmm_(group[some], group[first:].T)
        self.count += rows.shape[2]


def shiftable(conv: nn.Conv2d) -> bool:
    """Whether `Shifted` handles this convolution and pays off."""
    return (
        conv.groups == 1
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.kernel_size != (1, 1)
        and conv.in_channels >= MIN_CHANNELS
    )


class Shifted:
    """Sums of products of shifted images, and the second moment put together from them.

    Entry ``(i, j), (i + dy, j + dx)`` of the moment, one number for each pair of channels, is the sum
    of ``x[a, b] x[a + dy, b + dx]ᵀ`` over the rows and columns that offset ``(i, j)`` meets.  Those
    differ at the border alone, so that images are cut into a middle and some border rows and
    columns, each of them multiplied once for each displacement.

    Args:
        conv: the convolution, see `shiftable`.
        image: height and width of its inputs.
    """

    def __init__(self, conv: nn.Conv2d, image: tuple[int, int]) -> None:
        self._kernel = (conv.kernel_size[0], conv.kernel_size[1])
        left, right, top, bottom = conv._reversed_padding_repeated_twice  # noqa: SLF001 - as in `pad`
        self._before = (top, left)
        self._image = image
        self._outputs = (
            image[0] + top + bottom - self._kernel[0] + 1,
            image[1] + left + right - self._kernel[1] + 1,
        )
        self._sums: dict[tuple[int, int, Range, Range], Tensor] = {}

    def add(self, images: Tensor) -> None:
        """Add ``N × C × H × W`` inputs."""
        pixels = images.permute(2, 3, 0, 1).contiguous()
        channels = pixels.shape[3]
        for dy, dx in self._displacements():
            for rows, columns in product(self._pieces(0, dy), self._pieces(1, dx)):
                one = pixels[slice(*rows), slice(*columns)].reshape(-1, channels)
                other = pixels[
                    rows[0] + dy : rows[1] + dy, columns[0] + dx : columns[1] + dx
                ].reshape(-1, channels)
                place = (dy, dx, rows, columns)
                if place not in self._sums:
                    self._sums[place] = pixels.new_zeros(channels, channels)
                self._sums[place].addmm_(one.T, other)

    def total(self) -> Tensor:
        """The sum of ``k kᵀ`` over all positions, ``1 × K × K``."""
        any_sum = next(iter(self._sums.values()))
        channels = len(any_sum)
        size = (channels, *self._kernel)
        total = any_sum.new_zeros(*size, *size)
        for dy, dx in self._displacements():
            for i, j in product(*(self._offsets(axis, by) for axis, by in ((0, dy), (1, dx)))):
                rows, columns = self._met(0, i, dy), self._met(1, j, dx)
                block = any_sum.new_zeros(channels, channels)
                for piece in product(self._pieces(0, dy), self._pieces(1, dx)):
                    if _within(piece[0], rows) and _within(piece[1], columns):
                        block += self._sums[(dy, dx, *piece)]
                total[:, i, j, :, i + dy, j + dx] = block
                total[:, i + dy, j + dx, :, i, j] = block.T
        return total.reshape(1, channels * math.prod(self._kernel), -1)

    def _displacements(self) -> Iterator[tuple[int, int]]:
        """Half of them; the others are their opposites."""
        height, width = self._kernel
        yield from ((0, dx) for dx in range(width))
        yield from product(range(1, height), range(1 - width, width))

    def _offsets(self, axis: int, by: int) -> range:
        """Offsets in the kernel that stay in it when displaced."""
        return range(max(0, -by), self._kernel[axis] - max(0, by))

    def _met(self, axis: int, offset: int, by: int) -> Range:
        """Rows or columns that an offset meets, so that their displaced ones are in the image."""
        first = offset - self._before[axis]
        start = max(first, 0, -by)
        stop = min(first + self._outputs[axis], self._image[axis] - max(0, by))
        return start, max(start, stop)

    def _pieces(self, axis: int, by: int) -> list[Range]:
        """Pieces of the image such that each offset meets whole pieces only."""
        met = [self._met(axis, offset, by) for offset in self._offsets(axis, by)]
        return [
            piece
            for piece in pairwise(sorted({end for one in met for end in one}))
            if any(_within(piece, one) for one in met)
        ]


def _within(piece: Range, whole: Range) -> bool:
    return whole[0] <= piece[0] and piece[1] <= whole[1]
