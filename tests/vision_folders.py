"""Tiny copies of CIFAR-10, ImageNet and ISIC 2019 in the layouts that they come in.

Imports numpy and Pillow.  Every class is a colour with noise on it, so that a small network learns
it in seconds; files are written byte by byte, without the readers under test.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WNIDS = ("n01440764", "n01443537", "n02084071")
COLUMNS = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")

Pixels = NDArray[np.uint8]


def needs_torchvision() -> None:
    """Skip a test where torchvision does not load."""
    try:
        importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError) as error:  # RuntimeError: made for another torch
        pytest.skip(f"torchvision, the extra `vision`, made for the torch that is here: {error}")


def picture(label: int, height: int, width: int, random: np.random.Generator) -> Pixels:
    """``H × W × 3`` bytes in the colour of a class."""
    colour = np.array([40 + 60 * (label % 3), 40 + 60 * (label // 3 % 3), 60 + 90 * (label // 9)])
    noise = random.integers(-15, 16, (height, width, 3))
    return (colour + noise).clip(0, 255).astype(np.uint8)


def write_cifar(root: Path, *, per_file: int = 80, test: int = 200) -> dict[str, list[Pixels]]:
    """``cifar-10-batches-bin``; returns what was written, by file."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    written: dict[str, list[Pixels]] = {}
    sizes = {f"data_batch_{number}.bin": per_file for number in range(1, 6)}
    for name, size in {**sizes, "test_batch.bin": test}.items():
        images = [picture(row % 10, 32, 32, random) for row in range(size)]
        with (folder / name).open("wb") as stream:
            for row, image in enumerate(images):
                stream.write(bytes([row % 10]))
                for channel in range(3):
                    stream.write(image[:, :, channel].tobytes())
        written[name] = images
    return written


def write_classes(
    folder: Path, classes: tuple[str, ...], each: int, size: tuple[int, int] = (40, 50)
) -> None:
    """``folder/<class>/`` with ``each`` pictures of ``size`` (height, width) a class."""
    random = np.random.default_rng(len(folder.name))
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for row in range(each):
            Image.fromarray(picture(label, *size, random)).save(
                folder / name / f"{name}_{row}.JPEG"
            )


def write_isic(root: Path, number: int = 60) -> None:
    """Pictures, table and metadata; pictures come in twos of one lesion, every third a melanoma."""
    folder = root / "ISIC_2019_Training_Input"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    table = ["image," + ",".join(COLUMNS)]
    lesions = ["image,age_approx,anatom_site_general,lesion_id,sex"]
    for row in range(number):
        label = 0 if row // 2 % 3 == 0 else 1 + row // 2 % 2
        name = f"ISIC_{row:07d}"
        Image.fromarray(picture(label, 40, 50, random)).save(folder / f"{name}.jpg")
        marks = ",".join("1.0" if column == label else "0.0" for column in range(len(COLUMNS)))
        table.append(f"{name},{marks}")
        lesions.append(f"{name},55.0,,HAM_{row // 2:07d},female")
    (root / "ISIC_2019_Training_GroundTruth.csv").write_text("\n".join(table) + "\n")
    (root / "ISIC_2019_Training_Metadata.csv").write_text("\n".join(lesions) + "\n")
