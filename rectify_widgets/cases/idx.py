"""Read and write IDX, the format of MNIST and its kin.  Imports numpy and the standard library.

Byte 2 of the header is the type (8: unsigned bytes, the only one here), byte 3 the number of
dimensions; one big-endian 32-bit size per dimension follows, then the bytes.  Files may be packed
with gzip or xz, as their suffix says.  Nothing in such a file can be executed.
"""

from __future__ import annotations

import gzip
import lzma
import math
import struct
import sys
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

if sys.version_info >= (3, 11):
    from importlib.resources.abc import Traversable
else:
    from importlib.abc import Traversable

Folder: TypeAlias = Traversable
"""A folder on disk or inside a package."""

Bytes: TypeAlias = NDArray[np.uint8]


def read_idx(file: Traversable) -> Bytes:
    """The array in an IDX file (plain, ``.gz`` or ``.xz``).

    Raises:
        ValueError: the file is not IDX, holds another type than bytes, or is cut short.
    """
    data = file.read_bytes()
    if file.name.endswith(".gz"):
        data = gzip.decompress(data)
    elif file.name.endswith(".xz"):
        data = lzma.decompress(data)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != 8:
        raise ValueError(
            f"{file.name}: got a file that starts {data[:4].hex(' ')}, want IDX of unsigned bytes "
            "(00 00 08 and the number of dimensions); is it a complete download?"
        )
    dimensions = data[3]
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise ValueError(f"{file.name}: the header is cut short; fetch the file again")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{file.name}: got {len(data) - start} bytes after the header, want "
            f"{' × '.join(map(str, shape))} = {math.prod(shape)}; fetch the file again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def write_idx(path: Path, array: Bytes) -> None:
    """Write ``array`` as IDX, packed as the suffix says; the same array gives the same bytes."""
    if array.dtype != np.uint8:
        raise TypeError(f"array: got {array.dtype}, want uint8")
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + np.ascontiguousarray(array).tobytes()
    if path.suffix == ".gz":
        data = gzip.compress(data, 9, mtime=0)
    elif path.suffix == ".xz":
        data = lzma.compress(data, preset=9)
    path.write_bytes(data)


def read_split(folder: Path, split: str) -> tuple[Bytes, Bytes]:
    """Images ``N × H × W`` and labels ``N`` of a split (``"train"`` or ``"t10k"``) of a folder.

    Raises:
        FileNotFoundError: the folder, or one of its two files, is not there.
        ValueError: images and labels do not belong together.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"data: {folder} is no folder; give one with IDX files in it")
    images = read_idx(_find(folder, f"{split}-images-idx3-ubyte"))
    labels = read_idx(_find(folder, f"{split}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"data: got {split} images of shape {images.shape} and labels of shape "
            f"{labels.shape}, want N × H × W and N"
        )
    return images, labels


def _find(folder: Path, stem: str) -> Path:
    for suffix in (".gz", ".xz", ""):
        path = folder / (stem + suffix)
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"data: {folder} has no {stem}.gz (nor .xz, nor unpacked); it wants the four files of "
        "MNIST or Fashion-MNIST, train-* and t10k-*, images and labels"
    )
