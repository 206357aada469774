"""A user's own copies of CIFAR-10, ImageNet and ISIC 2019, in the layouts that they come in.

Imports torch, numpy, Pillow and the standard library, not torchvision: its CIFAR-10 reader unpickles
files, and nothing executable is ever loaded from a file here.

=========== ==================================================================================
data        what lies in the folder ``root``
=========== ==================================================================================
`cifar10`   ``cifar-10-batches-bin/`` from ``cifar-10-binary.tar.gz``: ``data_batch_1.bin`` to
            ``data_batch_5.bin`` and ``test_batch.bin``, a label and 3,072 bytes a record (red,
            green, blue, each row by row); or folders ``train/<class>/`` and ``test/<class>/`` of
            pictures.  The pickled ``cifar-10-batches-py`` is refused.
`imagenet`  ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``; classes are numbered in the order
            of their names, as published networks do.  ``LOC_synset_mapping.txt`` gives them
            readable names where it is there.
`isic`      ``ISIC_2019_Training_Input/*.jpg`` and ``ISIC_2019_Training_GroundTruth.csv`` (one
            column a class, 1 for the one); ``ISIC_2019_Training_Metadata.csv`` where it is there.
=========== ==================================================================================

Each has a split to train on and one that is held back.  ISIC's is ours, since its test labels come
apart: a fifth of the lesions, told by a hash of the lesion's number (of the picture's name where
there are no metadata), and so the same in every run.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rectify_widgets.cases.vision.pictures import SUFFIXES, Frame, Images, Pictures
from rectify_widgets.engine.base.checks import nearest

CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
RECORD = 1 + 3 * 32 * 32
"""Bytes of an image in CIFAR-10's binary files."""
HELD = 51
"""Lesions whose hash starts with a byte below this are held back: a fifth of 256."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images, in memory or on disk, and the number of each one's class."""

    images: Images
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """A copy of a data set.

    Attributes:
        classes: names as users of the data set write them, by number.
        titles: the same for people.
        held: the split that no network here is trained on.
        training: reads the other one, which only training wants.
    """

    classes: tuple[str, ...]
    titles: tuple[str, ...]
    held: Split
    training: Callable[[], Split]

    def number(self, name: str) -> int:
        """The number of the class ``name``."""
        if name not in self.classes:
            raise ValueError(
                f"target: no class {name!r} among the {len(self.classes)} under root"
                f"{nearest(name, self.classes)}; dataclasses.replace(preset, target=...) takes "
                "another"
            )
        return self.classes.index(name)


def check_root(root: object) -> Path:
    """``root`` as a folder that is there."""
    if not isinstance(root, str | os.PathLike):
        raise TypeError(f"root: got {type(root).__name__}, want the folder of your copy")
    folder = Path(os.fspath(root)).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"root: no folder {str(folder)!r}")
    return folder


# CIFAR-10


def cifar10(root: Path, frame: Frame, workers: int) -> Source:
    """CIFAR-10 from its binary files, or from folders of pictures."""
    folder = root / "cifar-10-batches-bin"
    folder = folder if folder.is_dir() else root
    if (folder / "test_batch.bin").is_file():
        return Source(
            CIFAR_CLASSES,
            CIFAR_CLASSES,
            _records([folder / "test_batch.bin"]),
            lambda: _records([folder / f"data_batch_{n}.bin" for n in range(1, 6)]),
        )
    for held in ("test", "val"):
        if (root / held).is_dir():
            source = _folders(root, held, frame, workers)
            if source.classes != CIFAR_CLASSES:
                raise ValueError(
                    f"root: got {len(source.classes)} class folders in {held}/, "
                    f"{', '.join(source.classes[:10])}, want {', '.join(CIFAR_CLASSES)}"
                )
            return source
    pickled = (root / "cifar-10-batches-py").is_dir() or (root / "test_batch").is_file()
    if pickled:
        raise ValueError(
            f"root: {str(root)!r} holds the pickled version of CIFAR-10, and unpickling a file can "
            "run code in it; fetch the binary version, cifar-10-binary.tar.gz, from the same page "
            "and unpack it there: cifar-10-batches-bin/test_batch.bin and data_batch_1.bin to "
            "data_batch_5.bin"
        )
    raise FileNotFoundError(
        f"root: {str(root)!r} holds no CIFAR-10; want cifar-10-batches-bin/ from "
        "cifar-10-binary.tar.gz, or folders train/<class>/ and test/<class>/ of pictures"
    )


def _records(files: list[Path]) -> Split:
    parts = []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"root: no file {str(file)!r}; unpack cifar-10-binary.tar.gz again"
            )
        data = np.fromfile(file, np.uint8)
        if not len(data) or len(data) % RECORD:
            raise ValueError(
                f"root: {str(file)!r} has {len(data)} bytes, want a multiple of {RECORD} (a label "
                "and 3 × 32 × 32 bytes an image); unpack cifar-10-binary.tar.gz again"
            )
        parts.append(data.reshape(-1, RECORD))
        if parts[-1][:, 0].max() >= len(CIFAR_CLASSES):
            raise ValueError(
                f"root: {str(file)!r} has the label {parts[-1][:, 0].max()}, want 0 to 9; is it "
                "CIFAR-100, or no CIFAR-10 at all?"
            )
    records = np.concatenate(parts)
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
    return Split(images, torch.from_numpy(records[:, 0].astype(np.int64)))


# ImageNet, and any folders of pictures


def imagenet(root: Path, frame: Frame, workers: int) -> Source:
    """ImageNet's folders."""
    return _folders(root, "val", frame, workers)


def _folders(root: Path, held: str, frame: Frame, workers: int) -> Source:
    classes = _class_folders(root / held)
    return Source(
        classes,
        _titles(root, classes),
        _folder(root / held, classes, frame, workers),
        lambda: _folder(root / "train", classes, frame, workers),
    )


def _class_folders(folder: Path) -> tuple[str, ...]:
    want = f"want {folder.name}/<class>/ with the pictures of one class each"
    if not folder.is_dir():
        raise FileNotFoundError(f"root: no folder {str(folder)!r}; {want}")
    with os.scandir(folder) as listing:
        entries = [(entry.name, entry.is_dir()) for entry in listing]
    classes = tuple(sorted(name for name, is_folder in entries if is_folder))
    if not classes:
        flat = sum(Path(name).suffix.lower() in SUFFIXES for name, _ in entries)
        found = f"holds {flat} pictures and no folder" if flat else "is empty"
        raise ValueError(
            f"root: {str(folder)!r} {found}, so nothing says what class a picture is of; {want} "
            "(ImageNet's validation pictures come flat: move each into the folder of its class)"
        )
    return classes


def _folder(folder: Path, classes: tuple[str, ...], frame: Frame, workers: int) -> Split:
    found = _class_folders(folder)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise ValueError(
            f"root: {str(folder)!r} has {len(found)} class folders for {len(classes)} classes; "
            f"{odd[0]!r} is not in both splits"
        )
    paths, labels = [], []
    for number, name in enumerate(classes):
        with os.scandir(folder / name) as listing:
            files = sorted(
                entry.path for entry in listing if Path(entry.name).suffix.lower() in SUFFIXES
            )
        if not files:
            raise ValueError(f"root: no picture in {str(folder / name)!r}")
        paths += files
        labels += [number] * len(files)
    return Split(Pictures(paths, frame, workers), torch.tensor(labels))


def _titles(root: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The first name that the mapping has for each class, where there is a mapping."""
    mapping = root / "LOC_synset_mapping.txt"
    if not mapping.is_file():
        return classes
    lines = mapping.read_text(encoding="utf-8").splitlines()
    known = {
        wnid: names.split(",")[0] for wnid, _, names in (line.partition(" ") for line in lines)
    }
    return tuple(known.get(name) or name for name in classes)


# ISIC 2019

INPUT = "ISIC_2019_Training_Input"
TRUTH = "ISIC_2019_Training_GroundTruth.csv"
METADATA = "ISIC_2019_Training_Metadata.csv"


def isic(root: Path, frame: Frame, workers: int) -> Source:
    """ISIC 2019's table and pictures."""
    classes, names, labels = _truth(root / TRUTH)
    folder = root / INPUT
    if not folder.is_dir():
        raise FileNotFoundError(f"root: no folder {str(folder)!r}; unpack {INPUT}.zip there")
    with os.scandir(folder) as listing:
        present = {entry.name for entry in listing}
    missing = [name for name in names if f"{name}.jpg" not in present]
    if missing:
        raise FileNotFoundError(
            f"root: {len(missing)} of {len(names)} pictures of {TRUTH} are not in {str(folder)!r}, "
            f"the first is {missing[0]}.jpg; unpack {INPUT}.zip there"
        )
    lesions = _lesions(root / METADATA)
    marks = [hashlib.sha256(lesions.get(name, name).encode()).digest()[0] for name in names]
    held = torch.tensor(marks) < HELD

    def split(where: Tensor) -> Split:
        rows = where.nonzero().flatten().tolist()
        paths = [str(folder / f"{names[row]}.jpg") for row in rows]
        return Split(Pictures(paths, frame, workers), labels[where])

    return Source(classes, classes, split(held), lambda: split(~held))


def _truth(file: Path) -> tuple[tuple[str, ...], list[str], Tensor]:
    """Classes, picture names and class numbers from the table."""
    want = "want a table that begins image,MEL,NV,BCC,... with one 1 a line"
    if not file.is_file():
        raise FileNotFoundError(f"root: no file {str(file)!r}; {want}")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        header, *rows = csv.reader(stream) if file.stat().st_size else [[]]
        if len(header) < 3 or header[0] != "image":
            raise ValueError(f"root: {str(file)!r} begins {','.join(header)[:60]!r}, {want}")
    labels = []
    for line, row in enumerate(rows, start=2):
        try:
            marks = [float(cell) for cell in row[1:]]
        except ValueError:
            marks = []
        if len(row) != len(header) or sorted(marks) != [0.0] * (len(header) - 2) + [1.0]:
            raise ValueError(f"root: line {line} of {str(file)!r} is {','.join(row)!r}, {want}")
        labels.append(marks.index(1.0))
    if not rows:
        raise ValueError(f"root: {str(file)!r} lists no picture, {want}")
    return tuple(header[1:]), [row[0] for row in rows], torch.tensor(labels)


def _lesions(file: Path) -> dict[str, str]:
    """The lesion that each picture shows, as far as the metadata say."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8-sig", newline="") as stream:
        table = csv.DictReader(stream)
        if not {"image", "lesion_id"} <= set(table.fieldnames or ()):
            raise ValueError(
                f"root: {str(file)!r} has the columns {', '.join(table.fieldnames or ())}, want "
                "image and lesion_id among them; without that file pictures are divided one by one"
            )
        return {row["image"]: row["lesion_id"] for row in table if row["lesion_id"]}


SOURCES: dict[str, Callable[[Path, Frame, int], Source]] = {
    "cifar10": cifar10,
    "imagenet": imagenet,
    "isic": isic,
}
