"""A user's own copies: what is read from each layout, and what is said of wrong ones."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rectify_widgets.cases.idx import Bytes
from rectify_widgets.cases.vision import pictures, sources
from rectify_widgets.cases.vision.pictures import Frame, Pictures, gather, read_picture
from rectify_widgets.cases.vision.sources import cifar10, imagenet, isic
from rectify_widgets.engine.base.progress import Cancelled, Monitor
from tests.vision_folders import CIFAR, COLUMNS, WNIDS, write_cifar, write_classes, write_isic

SMALL = Frame(32, 32)


# CIFAR-10


def test_cifar_is_read_from_its_binary_files(tmp_path: Path) -> None:
    written = write_cifar(tmp_path, per_file=20, test=30)
    source = cifar10(tmp_path, SMALL, 1)
    assert source.classes == CIFAR
    held = source.held.images[torch.arange(30)]
    assert held.shape == (30, 3, 32, 32)
    assert held.dtype == torch.uint8
    for row, image in enumerate(written["test_batch.bin"]):
        assert held[row, 1, 5, 7] == image[5, 7, 1]
        assert np.array_equal(held[row].permute(1, 2, 0).numpy(), image)
    assert source.held.labels.tolist() == [row % 10 for row in range(30)]
    training = source.training()
    assert len(training.images) == 100
    last = training.images[torch.tensor([99])][0].permute(1, 2, 0)
    assert np.array_equal(last.numpy(), written["data_batch_5.bin"][-1])


def test_the_folder_of_the_binary_files_will_do_as_root(tmp_path: Path) -> None:
    write_cifar(tmp_path, per_file=10, test=10)
    assert len(cifar10(tmp_path / "cifar-10-batches-bin", SMALL, 1).held.images) == 10


def test_held_back_images_want_no_training_file(tmp_path: Path) -> None:
    write_cifar(tmp_path, per_file=10, test=10)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    source = cifar10(tmp_path, SMALL, 1)
    assert len(source.held.images) == 10
    with pytest.raises(FileNotFoundError, match=r"data_batch_3.bin.*cifar-10-binary.tar.gz"):
        source.training()


def test_cifar_may_be_folders_of_pictures(tmp_path: Path) -> None:
    for split, each in (("train", 3), ("test", 2)):
        write_classes(tmp_path / split, CIFAR, each, size=(32, 32), suffix=".png")
    source = cifar10(tmp_path, SMALL, 1)
    assert source.held.labels.tolist() == [row // 2 for row in range(20)]
    assert len(source.training().images) == 30
    file = tmp_path / "test" / "bird" / "bird_1.png"
    assert np.array_equal(
        source.held.images[torch.tensor([5])][0].permute(1, 2, 0).numpy(),
        np.asarray(Image.open(file)),
    )


def broken_cifar(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        write_cifar(root, per_file=10, test=10)
        change(root / "cifar-10-batches-bin" / "test_batch.bin")

    return write


def pickled_cifar(root: Path) -> None:
    (root / "cifar-10-batches-py").mkdir()
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(b"\x80\x04.")


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (pickled_cifar, ValueError, "pickled.*can run code.*cifar-10-binary.tar.gz"),
        (lambda root: None, FileNotFoundError, "holds no CIFAR-10; want cifar-10-batches-bin"),
        (
            broken_cifar(lambda file: file.write_bytes(file.read_bytes()[:-1])),
            ValueError,
            "has 30729 bytes, want a multiple of 3073",
        ),
        (
            broken_cifar(lambda file: file.write_bytes(b"\x0b" + file.read_bytes()[1:])),
            ValueError,
            "has the label 11, want 0 to 9",
        ),
        (broken_cifar(lambda file: file.write_bytes(b"")), ValueError, "has 0 bytes"),
        (
            lambda root: write_classes(root / "test", ("cat", "dog"), 1),
            ValueError,
            "2 class folders in test/, cat, dog, want airplane",
        ),
    ],
)
def test_other_layouts_of_cifar_are_refused(
    tmp_path: Path, write: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    write(tmp_path)
    with pytest.raises(error, match=message):
        cifar10(tmp_path, SMALL, 1)


# ImageNet


@pytest.fixture
def imagenet_root(tmp_path: Path) -> Path:
    write_classes(tmp_path / "train", WNIDS, 3)
    write_classes(tmp_path / "val", WNIDS, 2)
    return tmp_path


def test_imagenet_is_read_from_its_folders(imagenet_root: Path) -> None:
    (imagenet_root / "val" / WNIDS[0] / "notes.txt").write_text("no picture")
    source = imagenet(imagenet_root, Frame(36, 32), 2)
    assert source.classes == source.titles == WNIDS
    assert source.held.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.held.images[torch.arange(6)].shape == (6, 3, 32, 32)
    assert source.training().labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # Colours that the classes were written with, but for JPEG.
    means = source.held.images[torch.tensor([0, 2, 4])].float().mean(dim=(2, 3))
    assert (means - torch.tensor([[40, 40, 60], [100, 40, 60], [160, 40, 60]])).abs().max() < 4


def test_nothing_is_decoded_before_it_is_wanted(
    imagenet_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def reading(path: str, frame: Frame) -> Bytes:
        asked.append(path)
        return read_picture(path, frame)

    monkeypatch.setattr(pictures, "read_picture", reading)
    source = imagenet(imagenet_root, SMALL, 1)
    training = source.training()
    assert not asked
    training.images[torch.tensor([4, 0])]
    assert [Path(path).name for path in asked] == [f"{WNIDS[1]}_1.JPEG", f"{WNIDS[0]}_0.JPEG"]


def test_classes_have_readable_names_where_there_is_a_mapping(imagenet_root: Path) -> None:
    lines = f"{WNIDS[0]} tench, Tinca tinca\n{WNIDS[2]} dog, domestic dog\n"
    (imagenet_root / "LOC_synset_mapping.txt").write_text(lines)
    source = imagenet(imagenet_root, SMALL, 1)
    assert source.titles == ("tench", WNIDS[1], "dog")
    assert source.number(WNIDS[2]) == 2
    with pytest.raises(
        ValueError, match=r"target: no class 'n02084072' .*did you mean 'n02084071'"
    ):
        source.number("n02084072")


def flat(root: Path) -> None:
    write_classes(root / "train", WNIDS, 1)
    write_classes(root / "some", ("one",), 3)
    (root / "some" / "one").rename(root / "val")


def without_a_class(root: Path) -> None:
    write_classes(root / "train", WNIDS[:2], 1)
    write_classes(root / "val", WNIDS, 1)


def with_an_empty_class(root: Path) -> None:
    write_classes(root / "val", WNIDS, 1)
    (root / "val" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG").unlink()


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (flat, ValueError, "holds 3 pictures and no folder.*want val/<class>/.*move each into"),
        (lambda root: (root / "val").mkdir(), ValueError, "is empty"),
        (lambda root: None, FileNotFoundError, "no folder .*val'; want val/<class>/"),
        (without_a_class, ValueError, "2 class folders for 3 classes; 'n02084071' is not in both"),
        (with_an_empty_class, ValueError, "no picture in .*n01443537"),
    ],
)
def test_other_layouts_of_imagenet_are_refused(
    tmp_path: Path, write: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    write(tmp_path)
    with pytest.raises(error, match=message):
        imagenet(tmp_path, SMALL, 1).training()


# ISIC 2019


def test_isic_is_read_from_its_table(tmp_path: Path) -> None:
    write_isic(tmp_path)
    source = isic(tmp_path, SMALL, 2)
    assert source.classes == COLUMNS
    with (tmp_path / sources.TRUTH).open() as stream:
        table = list(csv.DictReader(stream))
    truth = {row["image"]: [row[c] for c in COLUMNS].index("1.0") for row in table}
    lesion_of = {}
    with (tmp_path / sources.METADATA).open() as stream:
        lesion_of = {row["image"]: row["lesion_id"] for row in csv.DictReader(stream)}
    seen: list[set[str]] = []
    for split in (source.held, source.training()):
        assert isinstance(split.images, Pictures)
        names = [Path(path).stem for path in split.images.paths]
        assert split.labels.tolist() == [truth[name] for name in names]
        seen.append(set(names))
    assert seen[0] | seen[1] == set(truth)
    assert not seen[0] & seen[1]
    assert 0 < len(seen[0]) < len(seen[1])
    held, training = ({lesion_of[name] for name in names} for names in seen)
    assert not held & training


def test_isic_is_divided_alike_in_every_run_and_one_by_one_without_metadata(tmp_path: Path) -> None:
    write_isic(tmp_path, metadata=False)
    one, two = (isic(tmp_path, SMALL, 1).held for _ in range(2))
    assert isinstance(one.images, Pictures)
    assert isinstance(two.images, Pictures)
    assert one.images.paths == two.images.paths
    # Some lesion of two pictures is torn apart, as the names alone cannot say what they show.
    rows = [int(Path(path).stem.removeprefix("ISIC_")) for path in one.images.paths]
    assert any(row ^ 1 not in rows for row in rows)


def edited(old: str, new: str, file: str = sources.TRUTH) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda root: (root / sources.TRUTH).unlink(), FileNotFoundError, "no file .*GroundTruth"),
        (lambda root: (root / sources.TRUTH).write_text(""), ValueError, "begins '', want a table"),
        (edited("image,MEL", "picture,MEL"), ValueError, "begins 'picture,MEL.*want a table"),
        (edited("0001,1.0,0.0", "0001,1.0,1.0"), ValueError, "line 3 of .*1.0,1.0"),
        (edited("0001,1.0", "0001,0.0"), ValueError, "line 3 of"),
        (edited("0001,1.0", "0001,yes"), ValueError, "line 3 of .*yes"),
        (edited("0001,1.0,", "0001,"), ValueError, "line 3 of"),
        (
            lambda root: (root / sources.INPUT / "ISIC_0000007.jpg").unlink(),
            FileNotFoundError,
            "1 of 60 pictures .* the first is ISIC_0000007.jpg",
        ),
        (
            lambda root: (root / sources.INPUT).rename(root / "Input"),
            FileNotFoundError,
            "unpack ISIC_2019_Training_Input.zip there",
        ),
        (
            edited("lesion_id", "lesion", sources.METADATA),
            ValueError,
            "has the columns image, .*want image and lesion_id",
        ),
    ],
)
def test_other_layouts_of_isic_are_refused(
    tmp_path: Path, change: Callable[[Path], object], error: type[Exception], message: str
) -> None:
    write_isic(tmp_path)
    change(tmp_path)
    with pytest.raises(error, match=message):
        isic(tmp_path, SMALL, 1)


# Pictures


def test_the_square_is_cut_from_the_middle(tmp_path: Path) -> None:
    pixels = np.arange(10 * 14 * 3, dtype=np.uint8).reshape(10, 14, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    square = read_picture(str(tmp_path / "a.png"), Frame(10, 6))
    assert np.array_equal(square, pixels[2:8, 4:10].transpose(2, 0, 1))


@pytest.mark.parametrize(("size", "resized"), [((40, 60), (20, 30)), ((90, 30), (60, 20))])
def test_the_shorter_side_is_what_is_resized(
    tmp_path: Path, size: tuple[int, int], resized: tuple[int, int]
) -> None:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    for bicubic, how in ((False, Image.Resampling.BILINEAR), (True, Image.Resampling.BICUBIC)):
        whole = Image.open(tmp_path / "a.png").resize(resized[::-1], how)
        top, left = ((side - 20) // 2 for side in resized)
        wanted = np.asarray(whole)[top : top + 20, left : left + 20]
        square = read_picture(str(tmp_path / "a.png"), Frame(20, 20, bicubic=bicubic))
        assert np.array_equal(square, wanted.transpose(2, 0, 1))


def test_the_square_is_that_of_torchvision(tmp_path: Path) -> None:
    transforms = pytest.importorskip(
        "torchvision.transforms", reason="compares with torchvision, the extra `vision`"
    )
    random = np.random.default_rng(0)
    for height, width, resize, crop in ((50, 71, 36, 31), (83, 40, 64, 63), (37, 37, 37, 20)):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        for bicubic in (False, True):
            mode = "bicubic" if bicubic else "bilinear"
            chain = transforms.Compose(
                [
                    transforms.Resize(
                        resize, interpolation=transforms.InterpolationMode(mode), antialias=True
                    ),
                    transforms.CenterCrop(crop),
                    transforms.PILToTensor(),
                ]
            )
            wanted = chain(Image.open(tmp_path / "a.png"))
            square = read_picture(str(tmp_path / "a.png"), Frame(resize, crop, bicubic=bicubic))
            assert np.array_equal(square, wanted.numpy())


def test_grey_pictures_have_three_channels(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(tmp_path / "a.png")
    assert (read_picture(str(tmp_path / "a.png"), Frame(8, 8)) == 77).all()


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:-600])
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("cut.jpg", "text.jpg", "gone.jpg"):
        with pytest.raises(ValueError, match=f"{name}' is no picture that Pillow can read"):
            read_picture(str(tmp_path / name), SMALL)


def test_a_frame_cannot_cut_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="crop: got 40, want 1 to 32"):
        Frame(32, 40)


def test_reading_reports_and_can_be_stopped(imagenet_root: Path) -> None:
    images = imagenet(imagenet_root, SMALL, 1).training().images
    told: list[tuple[float, str]] = []
    rows = torch.arange(9).repeat(8)
    read = gather(
        images, rows, torch.device("cpu"), Monitor(lambda *now: told.append(now)), "reading"
    )
    assert read.shape == (72, 3, 32, 32)
    assert read.dtype == torch.float32
    assert torch.equal(read[:9] * 255, images[torch.arange(9)].float())
    assert told == [(0.0, "reading"), (32 / 72, "reading"), (64 / 72, "reading")]
    answers = iter([False, True])
    with pytest.raises(Cancelled):
        gather(images, rows, torch.device("cpu"), Monitor(None, lambda: next(answers)), "reading")
