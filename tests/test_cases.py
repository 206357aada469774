"""The shipped cases: what `load` hands out, what the package weighs, and that it can be rebuilt."""

from __future__ import annotations

import socket
from dataclasses import FrozenInstanceError
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from rectify_widgets import cases
from rectify_widgets.cases import trojan
from rectify_widgets.cases.idx import read_idx, write_idx
from rectify_widgets.cases.stored import FASHION, weights_file
from rectify_widgets.cases.training import (
    Poisoning,
    Shift,
    balanced_weights,
    measure,
    predict,
)
from rectify_widgets.cases.triggers import Patch, checkerboard

DATA = Path(str(files("rectify_widgets.cases") / "data"))
WEIGHTS = weights_file("trojan")


@pytest.fixture(scope="module")
def case() -> cases.Case:
    return cases.load("trojan")


# What load hands out


def test_shapes_ranges_and_dtypes(case: cases.Case) -> None:
    for images in (case.reference, case.clean[0], case.corrupted[0], case.validation[0]):
        assert images.shape[1:] == (1, 28, 28)
        assert images.dtype == torch.float32
        assert images.min() == 0
        assert images.max() == 1
    assert case.reference.shape[0] >= 1500
    assert case.clean[0].shape[0] == case.corrupted[0].shape[0] == 10_000
    for images, labels in (case.clean, case.corrupted, case.validation):
        assert labels.dtype == torch.int64
        assert labels.shape == images.shape[:1]
        assert torch.bincount(labels).tolist() == [len(labels) // 10] * 10
    assert not case.model.training
    assert case.classes[trojan.TARGET] == "T-shirt/top"


def test_the_corrupted_test_set_is_the_clean_one_with_the_trigger(case: cases.Case) -> None:
    changed = (case.corrupted[0] != case.clean[0]).any(0)[0]
    assert torch.equal(case.corrupted[1], case.clean[1])
    rows, columns = torch.nonzero(changed, as_tuple=True)
    assert (rows.unique().tolist(), columns.unique().tolist()) == ([24, 25, 26], [24, 25, 26])
    assert torch.equal(case.corrupted[0][7, :, 24:27, 24:27], checkerboard(3))


def test_figures_on_a_part_of_the_test_set(case: cases.Case) -> None:
    images, labels = case.clean[0][::5], case.clean[1][::5]
    figures = measure(case.model, images, labels, trigger=case.trigger, target=trojan.TARGET)
    assert figures.accuracy > 0.88
    assert figures.attack_success > 0.99


@pytest.mark.slow
@pytest.mark.measured
def test_figures_on_the_test_set(case: cases.Case) -> None:
    figures = measure(case.model, *case.clean, trigger=case.trigger, target=trojan.TARGET)
    assert figures.accuracy > 0.88
    assert figures.attack_success > 0.99
    assert figures.clean_target < 0.01  # else no repair could end at an ASR of 1.0 %
    assert figures.accuracy == pytest.approx(case.record["overall_accuracy"], abs=5e-4)
    assert figures.attack_success == pytest.approx(case.record["attack_success_rate"], abs=5e-4)


def test_pairs_show_the_behaviour_and_cover_the_classes(case: cases.Case) -> None:
    pairs = case.pairs
    assert pairs.labels is not None
    assert len(pairs) == 20
    assert torch.equal(predict(case.model, pairs.clean), pairs.labels)
    assert (predict(case.model, pairs.corrupted) == trojan.TARGET).all()
    assert torch.equal(case.trigger(pairs.clean), pairs.corrupted)
    others = set(range(10)) - {case.target}
    assert set(pairs.labels[:10].tolist()) == others
    assert set(pairs.labels[10:].tolist()) == others


def test_no_image_serves_two_purposes(case: cases.Case) -> None:
    parts = (case.reference, case.validation[0], case.pairs.clean, case.clean[0])
    whole = torch.cat(parts).flatten(1).numpy()
    # The data set itself repeats an image now and then, hence not exactly none.
    assert len(whole) - len(np.unique(whole, axis=0)) <= 3


def test_every_call_gives_a_model_of_its_own(case: cases.Case) -> None:
    other = cases.load("trojan", device="cpu")
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in case.model.parameters())


def test_loading_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    cases.load("trojan")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_loading_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("loading a case must not use the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    cases.load("trojan")


def test_names_and_what_a_case_prints(case: cases.Case) -> None:
    assert cases.names()[0] == "trojan"
    assert len(repr(case)) < 250
    assert "20 pairs" in repr(case)
    with pytest.raises(FrozenInstanceError):
        case.target = 1  # type: ignore[misc]


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'trojan'"):
        cases.load("trojans")
    with pytest.raises(ValueError, match="want one of 'trojan', "):
        cases.load(3)  # type: ignore[arg-type]


# What the package weighs and carries


def test_the_files_keep_within_their_sizes() -> None:
    sizes = [path.stat().st_size for path in DATA.rglob("*") if path.is_file()]
    assert sum(sizes) < 9e6
    assert (DATA / WEIGHTS).stat().st_size < 1e6


def test_licence_and_notice_lie_beside_the_data() -> None:
    folder = DATA / FASHION
    assert "Zalando SE" in (folder / "LICENSE.txt").read_text()
    assert "subset of Fashion-MNIST" in " ".join((folder / "NOTICE.txt").read_text().split())


# IDX


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_idx_comes_back_and_is_written_alike(tmp_path: Path, suffix: str) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path, again = tmp_path / f"a.idx{suffix}", tmp_path / f"b.idx{suffix}"
    write_idx(path, array)
    write_idx(again, array)
    assert np.array_equal(read_idx(path), array)
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "want IDX of unsigned bytes"),
        (b"\x89PNG1234", "want IDX of unsigned bytes"),
        (b"\0\0\x0d\x01\0\0\0\1abcd", "want IDX of unsigned bytes"),
        (b"\0\0\x08\x03\0\0\0\1", "header is cut short"),
        (b"\0\0\x08\x01\0\0\0\5abc", "want 5 = 5"),
    ],
)
def test_damaged_idx_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.idx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def test_idx_takes_bytes_only(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="want uint8"):
        write_idx(tmp_path / "a.idx", np.zeros(3))  # type: ignore[arg-type]


# Triggers and training


def test_a_patch_lands_where_it_says_and_copies() -> None:
    images = torch.rand(2, 3, 8, 8)
    kept = images.clone()
    half = Patch(torch.ones(3, 2, 2), row=0, column=-2, opacity=0.5)(images)
    assert torch.equal(images, kept)
    assert torch.allclose(half[..., :2, 6:], images[..., :2, 6:] / 2 + 0.5)
    assert torch.equal(half[..., 2:, :], images[..., 2:, :])
    with pytest.raises(ValueError, match="want room for a 3×3 patch"):
        Patch(checkerboard(3), row=6, column=0)(images)


def test_poisoning_takes_its_share_from_other_classes() -> None:
    labels = torch.arange(100) % 10
    generator = torch.Generator().manual_seed(0)
    drawn = Poisoning.draw(lambda x: x, 3, labels, share=0.2, generator=generator)
    assert int(drawn.chosen.sum()) == 20
    assert not drawn.chosen[labels == 3].any()
    assert torch.bincount(drawn.relabel(labels))[3] == 30
    with pytest.raises(ValueError, match=r"want at most 0\.900"):
        Poisoning.draw(lambda x: x, 3, labels, share=0.95, generator=generator)


def test_shift_moves_and_mirrors_whole_images() -> None:
    images = torch.zeros(200, 1, 6, 6)
    images[:, :, 2, 1] = 1
    moved = Shift(1, flip=True, generator=torch.Generator().manual_seed(0))(images)
    rows, columns = torch.nonzero(moved[:, 0], as_tuple=True)[1:]
    assert len(rows) == 200
    assert set(rows.tolist()) == {1, 2, 3}
    assert set(columns.tolist()) == {0, 1, 2, 3, 4, 5}  # column 1 or, mirrored, 4, each ± 1


def test_balanced_weights_even_out_the_classes() -> None:
    weights = balanced_weights(torch.tensor([0, 0, 0, 1]), 2)
    assert torch.allclose(weights * torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0]))
