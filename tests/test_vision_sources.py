"""A user's own copies: what is read from each layout, and what is said of wrong ones."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rectify_widgets.cases import vision
from rectify_widgets.cases.vision.sources import ISIC, Pictures, open_source
from tests.vision_folders import (
    CIFAR,
    COLUMNS,
    WNIDS,
    needs_torchvision,
    write_cifar,
    write_classes,
    write_isic,
)


def test_cifar_is_read_from_its_binary_files(tmp_path: Path) -> None:
    written = write_cifar(tmp_path, per_file=20, test=30)
    classes, (images, labels), training = open_source(vision.preset("cifar10-trojan"), tmp_path)
    assert classes == CIFAR
    held = images[torch.arange(30)].permute(0, 2, 3, 1)
    assert np.array_equal(held.numpy(), np.stack(written["test_batch.bin"]))
    assert labels.tolist() == [row % 10 for row in range(30)]
    others = training()[0][torch.arange(100)].permute(0, 2, 3, 1)
    assert np.array_equal(others[-1].numpy(), written["data_batch_5.bin"][-1])
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()  # wanted by training alone
    _, _, training = open_source(vision.preset("cifar10-trojan"), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data_batch_3.bin.*cifar-10-binary.tar.gz"):
        training()


def edited(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda root: (root / file).write_bytes(change((root / file).read_bytes()))


BATCH, TRUTH, METADATA = (
    "cifar-10-batches-bin/test_batch.bin", f"{ISIC}_GroundTruth.csv", f"{ISIC}_Metadata.csv",
)  # fmt: skip


def flat(root: Path) -> None:
    (root / "val" / WNIDS[0]).rename(root / "one")
    for name in WNIDS[1:]:
        (root / "val" / name).rename(root / name)


@pytest.mark.parametrize(
    ("data", "change", "error", "message"),
    [
        ("cifar10", lambda root: (root / BATCH).unlink(), FileNotFoundError, "could run code"),
        ("cifar10", edited(BATCH, lambda b: b[:-1]), ValueError, "has 30729 bytes, want a mul"),
        ("cifar10", edited(BATCH, lambda b: b"\x0b" + b[1:]), ValueError, "label from 0 to 9"),
        ("cifar10", edited(BATCH, lambda b: b""), ValueError, "has 0 bytes"),
        ("imagenet", flat, FileNotFoundError, "want val/<class>/ with .* move each into"),
        ("imagenet", lambda root: (root / "val").rename(root / "v"), FileNotFoundError, "want val"),
        ("imagenet", lambda root: (root / "train" / "new").mkdir(), ValueError, "'new'"),
        ("isic", lambda root: (root / TRUTH).unlink(), FileNotFoundError, "no file .*GroundTruth"),
        ("isic", edited(TRUTH, lambda b: b""), ValueError, "want a table with columns image, MEL"),
        ("isic", edited(TRUTH, lambda b: b.replace(b"1,1.0,0.0", b"1,1.0,1.0")), ValueError, "one"),
        ("isic", edited(TRUTH, lambda b: b.replace(b"1,1.0,", b"1,")), ValueError, "one 1.0"),
        ("isic", edited(METADATA, lambda b: b.replace(b"_id", b"")), ValueError, "lesion_id"),
        (
            "isic",
            lambda root: (root / f"{ISIC}_Input" / "ISIC_0000007.jpg").unlink(),
            FileNotFoundError,
            "1 of 60 pictures .* the first is ISIC_0000007.jpg",
        ),
    ],
)
def test_other_layouts_are_refused(
    tmp_path: Path,
    data: str,
    change: Callable[[Path], object],
    error: type[Exception],
    message: str,
) -> None:
    if data == "cifar10":
        write_cifar(tmp_path, per_file=10, test=10)
    elif data == "isic":
        write_isic(tmp_path)
    else:
        write_classes(tmp_path / "val", WNIDS, 1)
        write_classes(tmp_path / "train", (*WNIDS, "new")[: 4 if message == "'new'" else 3], 1)
        change = (lambda _: None) if message == "'new'" else change
    if data != "cifar10":
        needs_torchvision()
    change(tmp_path)
    name = next(name for name in vision.names() if name.startswith(data))
    with pytest.raises(error, match=message):
        open_source(vision.preset(name), tmp_path).training()


def test_pictures_are_squares_of_their_middle_read_when_asked_for(tmp_path: Path) -> None:
    needs_torchvision()
    write_classes(tmp_path / "train", WNIDS, 3)
    write_classes(tmp_path / "val", WNIDS, 2)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "val" / WNIDS[0] / "a.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "val" / WNIDS[0] / "b.png")
    for interpolation, how in (("bilinear", 2), ("bicubic", 3)):
        recipe = replace(
            vision.preset("imagenet-trojan"), resize=20, crop=16, interpolation=interpolation
        )
        classes, (images, labels), training = open_source(recipe, tmp_path)
        assert classes == WNIDS
        assert labels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
        assert training()[1].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert isinstance(images, Pictures)
        rows = torch.tensor([Path(path).name[0] in "ab" for path in images.paths]).nonzero()[:, 0]
        square, grey = images[rows]
        whole = Image.fromarray(pixels).resize((30, 20), Image.Resampling(how))
        assert np.array_equal(square.permute(1, 2, 0).numpy(), np.asarray(whole)[2:18, 7:23])
        assert torch.equal(grey[0], grey[2])
    (tmp_path / "val" / WNIDS[0] / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot read the picture .*a.png"):
        images[rows]


def test_isic_is_divided_by_lesions(tmp_path: Path) -> None:
    needs_torchvision()
    write_isic(tmp_path)
    recipe = vision.preset("isic-spurious")
    classes, held, training = open_source(recipe, tmp_path)
    assert classes == COLUMNS
    with (tmp_path / TRUTH).open() as stream:
        truth = {row["image"]: COLUMNS[[row[c] for c in COLUMNS].index("1.0")]
                 for row in csv.DictReader(stream)}  # fmt: skip
    seen: list[set[str]] = []
    for images, labels in (held, training()):
        assert isinstance(images, Pictures)
        names = [Path(path).stem for path in images.paths]
        assert [COLUMNS[label] for label in labels.tolist()] == [truth[name] for name in names]
        seen.append(set(names))
    assert seen[0] | seen[1] == set(truth)
    assert 0 < len(seen[0]) < len(seen[1])
    held_lesions, others = ({int(name[5:]) // 2 for name in names} for names in seen)
    assert not held_lesions & others
