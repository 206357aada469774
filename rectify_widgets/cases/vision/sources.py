"""A user's own copies of CIFAR-10, ImageNet and ISIC 2019, in the layouts that they come in.

Imports torch and numpy; torchvision, for folders, pictures and transforms, when a copy is opened.

=========== ==================================================================================
data        what lies in the folder ``root``
=========== ==================================================================================
`cifar10`   ``cifar-10-batches-bin/`` from ``cifar-10-binary.tar.gz``: ``data_batch_1.bin`` to
            ``data_batch_5.bin`` and ``test_batch.bin``, a label and 3,072 bytes a record.  The
            pickled version is not read, by torchvision or otherwise: unpickling can run code.
`imagenet`  ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``; classes are numbered in the order
            of their names, as published networks do.
`isic`      ``ISIC_2019_Training_Input/*.jpg``, ``ISIC_2019_Training_GroundTruth.csv`` (one
            column a class, 1 for the one) and ``ISIC_2019_Training_Metadata.csv``.
=========== ==================================================================================

Each has a split to train on and one that is held back.  ISIC's is ours, since its test labels come
apart: a fifth of the lesions, chosen by a hash of the lesion's number (of the picture's name where
the metadata name no lesion), and so the same in every run.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rectify_widgets.cases.training import Images
from rectify_widgets.cases.vision.presets import Preset, torchvision
from rectify_widgets.engine.base.checks import check_choice

CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image in CIFAR-10's binary files."""
ISIC = "ISIC_2019_Training"
HELD = 51
"""Lesions whose hash starts with a byte below this are held back: a fifth of 256."""

THREADS = 4
"""That decode pictures."""

Split = tuple[Images, Tensor]
"""Images, in memory or on disk, and the number of each one's class."""
Reader = Callable[[Sequence[str]], Images]


class Source(NamedTuple):
    """A copy: names of the classes, the held-back split, and what opens the one to train on."""

    classes: tuple[str, ...]
    held: Split
    training: Callable[[], Split]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Picture files, decoded when rows of them are asked for, as ``N × 3 × H × W`` bytes.

    Args:
        paths: files.
        transform: makes a square of bytes of a picture.
    """

    paths: Sequence[str]
    transform: Callable[[Any], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        with ThreadPoolExecutor(THREADS) as pool:
            return torch.stack(list(pool.map(self._read, rows.tolist())))

    def _read(self, row: int) -> Tensor:
        path = self.paths[row]
        try:
            return self.transform(torchvision("datasets.folder").default_loader(path))
        except (OSError, SyntaxError) as error:
            raise ValueError(f"root: cannot read the picture {path!r} ({error})") from error


def as_path(argument: str, given: object, wanted: str) -> Path:
    """The path that was given, ``~`` resolved; anything else is a `TypeError`."""
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{argument}: got {type(given).__name__}, want {wanted}")
    return Path(os.fspath(given)).expanduser()


def open_source(recipe: Preset, root: object) -> Source:
    """The copy of a preset's data in the folder ``root``.

    Raises:
        TypeError, FileNotFoundError, ValueError: no folder, or another layout.
        ImportError: torchvision does not load.
    """
    folder = as_path("root", root, "the folder of your copy")
    if not folder.is_dir():
        raise FileNotFoundError(f"root: no folder {str(folder)!r}")
    kind = check_choice("data", recipe.data.name, ("cifar10", "imagenet", "isic"))
    if kind == "cifar10":
        return _cifar10(folder / "cifar-10-batches-bin")
    v2 = torchvision("transforms.v2")
    how = v2.InterpolationMode(recipe.interpolation)
    steps = [v2.Resize(recipe.resize, how), v2.CenterCrop(recipe.crop), v2.PILToTensor()]

    def reader(paths: Sequence[str]) -> Images:
        return Pictures(paths, v2.Compose(steps))

    return _imagenet(folder, reader) if kind == "imagenet" else _isic(folder, reader)


def _cifar10(folder: Path) -> Source:
    def split(*names: str) -> Split:
        records = np.concatenate([_records(folder / name) for name in names])
        images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
        return images, torch.from_numpy(records[:, 0].astype(np.int64))

    batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
    return Source(CIFAR_CLASSES, split("test_batch.bin"), lambda: split(*batches))


def _records(file: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if not file.is_file():
        raise FileNotFoundError(
            f"root: no file {str(file)!r}; want the binary version of CIFAR-10 (unpickling the "
            "other could run code): unpack cifar-10-binary.tar.gz there"
        )
    data = np.fromfile(file, np.uint8)
    if not len(data) or len(data) % RECORD or data[::RECORD].max() >= len(CIFAR_CLASSES):
        raise ValueError(
            f"root: {str(file)!r} has {len(data)} bytes, want a multiple of {RECORD}, each "
            "beginning with a label from 0 to 9; unpack cifar-10-binary.tar.gz again"
        )
    return data.reshape(-1, RECORD)


def _imagenet(root: Path, reader: Reader) -> Source:
    def split(name: str) -> tuple[tuple[str, ...], Split]:
        try:
            found = torchvision("datasets").ImageFolder(root / name)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"root: {error}; want {name}/<class>/ with the pictures of one class each "
                "(ImageNet's validation pictures come flat: move each into its class's folder)"
            ) from None
        paths = [path for path, _ in found.samples]
        return tuple(found.classes), (reader(paths), torch.tensor(found.targets))

    classes, held = split("val")

    def training() -> Split:
        others, images = split("train")
        if others != classes:
            odd = min(set(others) ^ set(classes))
            raise ValueError(f"root: the class {odd!r} is not in both train/ and val/")
        return images

    return Source(classes, held, training)


def _isic(root: Path, reader: Reader) -> Source:
    truth = _table(root / f"{ISIC}_GroundTruth.csv", "image", "MEL")
    classes = tuple(name for name in truth[0] if name != "image")
    marks = [[row[name] for name in classes] for row in truth]
    if any(sorted(row) != ["0.0"] * (len(classes) - 1) + ["1.0"] for row in marks):
        raise ValueError(f"root: {ISIC}_GroundTruth.csv: want one 1.0 and zeros on every line")
    labels = torch.tensor([row.index("1.0") for row in marks])
    metadata = _table(root / f"{ISIC}_Metadata.csv", "image", "lesion_id")
    lesions = {row["image"]: row["lesion_id"] for row in metadata}
    names = [row["image"] for row in truth]
    folder = root / f"{ISIC}_Input"
    missing = [name for name in names if not (folder / f"{name}.jpg").is_file()]
    if missing:
        raise FileNotFoundError(
            f"root: {len(missing)} of {len(names)} pictures are not in {str(folder)!r}, the first "
            f"is {missing[0]}.jpg; unpack {folder.name}.zip there"
        )
    keys = [lesions.get(name) or name for name in names]
    held = torch.tensor([hashlib.sha256(key.encode()).digest()[0] < HELD for key in keys])

    def split(where: Tensor) -> Split:
        rows = where.nonzero().flatten().tolist()
        return reader([str(folder / f"{names[row]}.jpg") for row in rows]), labels[where]

    return Source(classes, split(held), lambda: split(~held))


def _table(file: Path, *columns: str) -> list[dict[str, str]]:
    if not file.is_file():
        raise FileNotFoundError(f"root: no file {str(file)!r}; it comes with ISIC 2019")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, restval=""))
    if not rows or not set(columns) <= set(rows[0]):
        raise ValueError(f"root: {str(file)!r}: want a table with columns {', '.join(columns)}")
    return rows
