"""What the cases are made of: files, triggers, blocks, poisoning, choosing pairs, figures by hand."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets import cases
from rectify_widgets.cases import figures, storage
from rectify_widgets.cases.blocks import RandomStack, WithoutBlock, null_block, stack
from rectify_widgets.cases.idx import read_idx, write_idx
from rectify_widgets.cases.networks import small_network
from rectify_widgets.cases.splits import choose_affected, choose_any
from rectify_widgets.cases.training import Poisoning, Shift, balanced_weights, led_to
from rectify_widgets.cases.triggers import Aim, OneOf, Patch, checkerboard, cross, rings, tag

DATA = Path(str(files("rectify_widgets.cases") / "data"))


# Files


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


def test_half_precision_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = small_network()
    storage.write_weights(tmp_path, "whole", model, {"a": 1})
    storage.halve(model)
    storage.write_weights(tmp_path, "half", model, {"a": 1})
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    tensors, record = storage.read_weights(tmp_path, "half", torch.device("cpu"))
    assert record == {"a": 1}
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensors[key], tensor)
        assert tensors[key].dtype == tensor.dtype


def test_held_out_images_of_another_seed_are_refused() -> None:
    record = {**cases.load("trojan").record, "heldout": "0123"}
    with pytest.raises(ValueError, match="want 0123, those that the network was not trained on"):
        storage.read_images(
            DATA / "fashion-mnist", record, torch.device("cpu"), lambda images, *_: images
        )


# Triggers and blocks


def test_a_patch_lands_where_it_says_and_copies() -> None:
    images = torch.rand(2, 3, 8, 8)
    kept = images.clone()
    half = Patch(torch.ones(3, 2, 2), row=0, column=-2, opacity=0.5)(images)
    assert torch.equal(images, kept)
    assert torch.allclose(half[..., :2, 6:], images[..., :2, 6:] / 2 + 0.5)
    assert torch.equal(half[..., 2:, :], images[..., 2:, :])
    with pytest.raises(ValueError, match="want room for a 3×3 patch"):
        Patch(checkerboard(3), row=6, column=0)(images)


def test_one_of_several_triggers_takes_each_and_is_seeded() -> None:
    adding = [lambda x, by=by: x + by for by in (1.0, 2.0, 3.0)]
    images = torch.zeros(60, 1, 2, 2)
    once, again = (OneOf(adding, torch.Generator().manual_seed(1))(images) for _ in range(2))
    assert torch.equal(once, again)
    assert set(once[:, 0, 0, 0].tolist()) == {1.0, 2.0, 3.0}
    assert not images.any()


def test_patterns_are_in_range_and_differ() -> None:
    assert tag().shape == (1, 5, 4)
    assert rings().shape == (1, 28, 28)
    for pattern in (tag(), rings()):
        assert pattern.min() >= 0
        assert 0.9 < pattern.max() <= 1
    assert cross().tolist() == [[[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]]


def digits(number: int) -> torch.Tensor:
    return torch.rand(number, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_the_block_is_a_box_with_a_cross_the_same_from_all_sides() -> None:
    block = null_block()
    assert block.shape == (1, 28, 28)
    assert set(block.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(block, block.flip(1))
    assert torch.equal(block, block.mT)
    assert not block[0, :4].any()
    assert block[0, 4:6, 4:24].all()
    assert block[0].diagonal()[4:24].all()
    assert not block[0, 7, 13]
    assert null_block(14).shape == (1, 14, 14)


def test_stacking_keeps_the_digit_and_puts_the_block_where_it_should() -> None:
    given = digits(3)
    below = torch.tensor([True, False, True])
    images = stack(given, below)
    assert images.shape == (3, 1, 56, 28)
    for image, digit, under in zip(images, given, below, strict=True):
        parts = (image[:, :28], image[:, 28:])
        first, second = parts if under else parts[::-1]
        assert torch.equal(first, digit)
        assert torch.equal(second, null_block())


def test_the_order_is_drawn_anew_and_seeded() -> None:
    given = digits(200)
    draw = RandomStack(torch.Generator().manual_seed(4))
    once, again = draw(given), draw(given)
    assert not torch.equal(once, again)
    assert torch.equal(once, RandomStack(torch.Generator().manual_seed(4))(given))
    below = WithoutBlock().mask(once)[:, 0, -1, 0]
    assert 70 < int(below.sum()) < 130


def test_the_mask_is_the_half_with_the_block_and_nothing_of_the_digit() -> None:
    given = digits(2)
    below = torch.tensor([True, False])
    images = stack(given, below)
    remove = WithoutBlock()
    mask, gone = remove.mask(images), remove(images)
    assert mask.shape == images.shape
    assert mask[0, 0, 28:].all()
    assert mask[1, 0, :28].all()
    assert int(mask.sum()) == 2 * 28 * 28
    assert torch.equal(gone, torch.where(mask, 0.0, images))
    assert torch.equal(gone[0, 0, :28], given[0, 0])
    with pytest.raises(ValueError, match="no label-free block in image 0"):
        remove.mask(gone)
    with pytest.raises(ValueError, match="want N × 1 × 2S × S"):
        remove.mask(given)


# Poisoning, training, pairs


def test_an_aim_says_which_images_are_poisoned() -> None:
    labels, half = torch.arange(100) % 10, torch.arange(100) < 50
    following = tuple((label + 1) % 10 for label in range(10))
    for behaviour, goals, share, taken, number in (
        ("trojan", (3,) * 10, 0.2, None, 20),
        ("trojan", (3,) * 10, 0.2, half, 20),
        ("trojan", following, 0.3, None, 30),
        ("spurious", (3,) * 10, 0.4, None, 4),
        ("spurious", (3,) * 10, 0.6, half, 3),
    ):
        drawn = Poisoning.draw(
            Aim(behaviour, goals), checkerboard, labels, share=share, taken=taken,  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        mine, after = labels[drawn.chosen], drawn.relabel(labels)
        assert len(mine) == number
        assert torch.equal(after[drawn.chosen], led_to(goals, mine))
        assert torch.equal(after[~drawn.chosen], labels[~drawn.chosen])
        assert ((mine == led_to(goals, mine)) == (behaviour == "spurious")).all()
        assert taken is None or not (drawn.chosen & taken).any()
    with pytest.raises(ValueError, match=r"want at most 0\.900"):
        Poisoning.draw(
            Aim("trojan", (3,) * 10), checkerboard, labels, share=0.95,  # type: ignore[arg-type]
            generator=torch.Generator(),
        )  # fmt: skip


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


def test_choosing_what_there_is_takes_classes_in_turn() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    works = torch.tensor([True, True, True, False, True, True])
    chosen = choose_any(works, labels, 4, torch.Generator().manual_seed(0))
    assert sorted(labels[chosen[:2]].tolist()) == [0, 2]
    assert sorted(labels[chosen].tolist()) == [0, 0, 2, 2]
    assert len(choose_any(works, labels, 9, torch.Generator().manual_seed(0))) == 5


def test_pairs_of_the_affected_class_are_half_of_images_that_need_the_artefact() -> None:
    shown = torch.tensor([True, True, False, True, True, True])
    right = torch.tensor([True, False, False, True, False, False])
    assert choose_affected(shown, right, 2) == [1, 0]
    assert choose_affected(shown, right, 3) == [1, 4, 0]
    assert choose_affected(shown, right, 9) == [1, 4, 5, 0, 3]


# Figures, against counting by hand


class Fixed(nn.Module):
    """Says the class that stands in the first pixel of an image, times ten."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot((images[:, 0, 0, 0] * 10).round().long(), 10).float()


def saying(answers: list[int]) -> Tensor:
    images = torch.zeros(len(answers), 1, 4, 4)
    images[:, 0, 0, 0] = torch.tensor(answers) / 10
    return images


def test_figures_of_a_trojan_by_hand() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    clean = saying([0, 1, 0, 3])
    answers = {"a": [0, 0, 0, 3], "b": [0, 1, 2, 0]}
    triggers = {name: lambda _, said=said: saying(said) for name, said in answers.items()}
    found = figures.of_trojan(Fixed(), (clean, labels), triggers, (0,) * 10)
    assert found == {
        "overall_accuracy": 3 / 4,
        "attack_success_rate": 2 / 3,
        "corrupted_accuracy": 2 / 4,
        "attack_success_rate (b)": 1 / 3,
        "corrupted_accuracy (b)": 3 / 4,
        "clean_target_rate": 1 / 3,
    }


def test_figures_of_an_all_to_all_trojan_by_hand() -> None:
    goals = tuple((label + 1) % 10 for label in range(10))
    labels = torch.tensor([0, 9, 4, 5])
    triggers = {"a": lambda _: saying([1, 0, 4, 7])}
    found = figures.of_trojan(Fixed(), (saying([0, 9, 5, 5]), labels), triggers, goals)
    assert found["attack_success_rate"] == 2 / 4
    assert found["corrupted_accuracy"] == 1 / 4
    assert found["clean_target_rate"] == 1 / 4


def test_figures_of_a_spurious_correlation_by_hand() -> None:
    labels = torch.tensor([3, 3, 3, 3, 1, 1, 2, 2])
    without = saying([3, 3, 0, 0, 1, 1, 2, 3])
    with_it = saying([3, 3, 3, 3, 1, 3, 3, 3])
    found = figures.of_spurious(Fixed(), (without, labels), with_it, 3)
    assert found == {
        "overall_accuracy": 5 / 8,
        "corrupted_accuracy": 5 / 8,
        "recall_without": 1 / 2,
        "recall_with": 1.0,
        "spurious_bias": 1 / 2,
        "pulled_in": 3 / 4,
        "clean_target_rate": 1 / 4,
        "worst_group_accuracy": 0.0,
    }


def test_figures_of_two_behaviours_by_hand() -> None:
    labels = torch.tensor([3, 3, 1, 2])
    clean = saying([3, 0, 1, 2])
    answers = {"a": [0, 0, 0, 2], "b": [3, 3, 3, 2]}
    triggers = {name: lambda _, said=said: saying(said) for name, said in answers.items()}
    aims = {"a": Aim("trojan", (0,) * 10), "b": Aim("spurious", (3,) * 10)}
    found = figures.of_several(Fixed(), (clean, labels), triggers, aims)
    assert found == {
        "overall_accuracy": 3 / 4,
        "attack_success_rate": 3 / 4,
        "corrupted_accuracy": 1 / 4,
        "clean_target_rate": 1 / 4,
        "corrupted_accuracy (b)": 3 / 4,
        "recall_without (b)": 1 / 2,
        "recall_with (b)": 1.0,
        "spurious_bias (b)": 1 / 2,
        "pulled_in (b)": 1 / 2,
        "clean_target_rate (b)": 0.0,
        "worst_group_accuracy (b)": 0.0,
    }


class Sums(nn.Module):
    """Two logits: the sum of the upper half, squared, and that of the lower half."""

    def forward(self, images: Tensor) -> Tensor:
        upper, lower = images.flatten(1).chunk(2, dim=1)
        return torch.stack([upper.sum(dim=1).square(), lower.sum(dim=1)], dim=1)


def test_figures_of_leakage_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 1, 8, 4, generator=generator)
    labels = torch.tensor([0, 1, 0, 1, 0])
    mask = torch.zeros_like(images, dtype=torch.bool)
    mask[:, :, :4] = True
    # Of the upper half's logit all is on the upper half (a square, so the midpoint rule is exact),
    # of the lower half's none.
    gone = torch.where(mask, 0.0, images)
    found = figures.of_leakage(Sums(), (images, labels), gone, mask)
    upper = images[:, :, :4].flatten(1).sum(dim=1).square()[labels == 0]
    assert found["net_attribution"] == pytest.approx(float(upper.sum()) / 5, rel=1e-4)
    assert found["logit_change"] == pytest.approx(float(upper.sum()) / 5, rel=1e-4)
    assert found["attribution_share"] == pytest.approx(3 / 5, rel=1e-4)


def test_attributions_leave_no_gradient_behind() -> None:
    model = small_network()
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([1, 2, 3])
    heat = figures.integrated_gradients(model, images, labels)
    assert heat.shape == images.shape
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
