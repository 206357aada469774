"""BlockMNIST: where the label-free block stands, what taking it away leaves, and the case itself."""

from __future__ import annotations

import pytest
import torch

from rectify_widgets import cases
from rectify_widgets.cases.blocks import RandomStack, WithoutBlock, null_block, stack
from rectify_widgets.cases.training import predict


@pytest.fixture(scope="module")
def case() -> cases.Case:
    return cases.load("leakage")


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


def test_stacking_keeps_the_digit_and_puts_the_block_where_it_is_told() -> None:
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


# The case


def test_the_case_is_block_mnist(case: cases.Case) -> None:
    assert case.clean[0].shape == (5000, 1, 56, 28)
    assert case.target is None
    assert case.goals is None
    assert case.classes == tuple("0123456789")
    mask = case.label_free(case.clean[0])
    assert torch.equal(case.corrupted[0], case.clean[0].masked_fill(mask, 0))
    below = mask[:, 0, -1, 0].float().mean()
    assert 0.45 < below < 0.55
    assert case.label_free(case.reference).any(dim=(1, 2, 3)).all()
    # No label is to be had from where the block stands.
    for label in range(10):
        assert 0.4 < mask[case.clean[1] == label, 0, -1, 0].float().mean() < 0.6


def test_pairs_are_right_with_the_block_and_wrong_without(case: cases.Case) -> None:
    pairs = case.pairs
    assert pairs.labels is not None
    assert len(pairs) == 20
    assert torch.equal(predict(case.model, pairs.clean), pairs.labels)
    assert (predict(case.model, pairs.corrupted) != pairs.labels).all()


def test_the_behaviour_is_there(case: cases.Case) -> None:
    found = case.figures(limit=1000)
    assert found["overall_accuracy"] > 0.97
    assert found["corrupted_accuracy"] < 0.75
    assert found["net_attribution"] > 1
    assert found["logit_change"] > 1
