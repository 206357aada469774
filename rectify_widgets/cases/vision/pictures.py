"""Picture files as tensors, read only when they are wanted.  Imports torch, numpy and Pillow.

A data set of photographs does not fit in memory, so it is held as a list of paths: `Pictures` is
indexed like a tensor of images and decodes what it is asked for.  Resizing and cropping are those
with which the published networks are evaluated, to the pixel those of torchvision's ``Resize`` and
``CenterCrop`` on Pillow images.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rectify_widgets.cases.idx import Bytes
from rectify_widgets.engine.base.progress import Monitor

CHUNK = 32
"""Pictures read between two questions whether to stop."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"}


class Images(Protocol):
    """Bytes, ``N × C × H × W``, in memory or on disk: a tensor, or `Pictures`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Frame:
    """How a picture of any size becomes a square.

    Args:
        resize: pixels of the shorter side after resizing.
        crop: side of the square cut from the middle.
        bicubic: interpolate bicubically; else bilinearly.  Both smooth when they shrink.
    """

    resize: int
    crop: int
    bicubic: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop: got {self.crop}, want 1 to {self.resize}, what resize leaves")

    def cut(self, picture: Image.Image) -> Image.Image:
        """The square."""
        width, height = picture.size
        shorter = min(width, height)
        if shorter != self.resize:
            size = [
                self.resize if side == shorter else int(self.resize * side / shorter)
                for side in (width, height)
            ]
            how = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
            picture = picture.resize((size[0], size[1]), how)
        width, height = picture.size
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        return picture.crop((left, top, left + self.crop, top + self.crop))


def read_picture(path: str, frame: Frame) -> Bytes:
    """The picture in a file as ``3 × crop × crop`` bytes; grey ones become three equal channels.

    Raises:
        ValueError: Pillow cannot read it, or it is cut short.
    """
    try:
        with Image.open(path) as picture:
            square = frame.cut(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"root: {path!r} is no picture that Pillow can read ({error}); fetch the file again"
        ) from error
    return np.asarray(square).transpose(2, 0, 1)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Picture files, indexed like a tensor of ``N × 3 × crop × crop`` bytes.

    Args:
        paths: files.
        frame: how each becomes a square.
        workers: threads that decode.
    """

    paths: Sequence[str]
    frame: Frame
    workers: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        chosen = [self.paths[row] for row in rows.tolist()]
        with ThreadPoolExecutor(self.workers) as pool:
            squares = list(pool.map(lambda path: read_picture(path, self.frame), chosen))
        return torch.from_numpy(np.stack(squares))


def gather(
    images: Images, rows: Tensor, device: torch.device, monitor: Monitor, message: str
) -> Tensor:
    """Images of these rows, ``N × C × H × W`` float32 in [0, 1], on ``device``."""
    whole: Tensor | None = None  # filled bit by bit, since it may be most of what fits
    for number, chunk in enumerate(rows.split(CHUNK)):
        begin = number * CHUNK
        monitor.report(begin / max(len(rows), 1), message)
        batch = images[chunk].to(device).float() / 255
        if whole is None:
            whole = batch.new_empty(len(rows), *batch.shape[1:])
        whole[begin : begin + len(batch)] = batch
    assert whole is not None  # noqa: S101 - splitting gives at least one chunk
    return whole
