"""Sums of key products, against numpy on keys that are cut out one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rectify_widgets.engine.edit.moments import BLOCK, MomentSum, Shifted, shiftable
from rectify_widgets.engine.model.keys import EditableLayer


def wanted_moment(conv: nn.Conv2d, images: Tensor) -> np.ndarray:
    """``Σ k kᵀ`` of a convolution of one group, from patches cut out of padded images."""
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    padded = np.pad(images.double().numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = conv.kernel_size
    total = np.zeros((conv.in_channels * height * width,) * 2)
    for image in padded:
        for y in range(image.shape[1] - height + 1):
            for x in range(image.shape[2] - width + 1):
                key = image[:, y : y + height, x : x + width].reshape(-1)
                total += np.outer(key, key)
    return total


def summed(layer: EditableLayer, batches: list[Tensor], **options: object) -> MomentSum:
    defaults = {"positions": None, "expected": 8, "seed": 0}
    moment = MomentSum(layer, "patch", **{**defaults, **options})  # type: ignore[arg-type]
    for number, batch in enumerate(batches):
        moment.add(batch, len(batch), number)
    return moment


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    image=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    same=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_shifted_products_make_the_moment(
    kernel: tuple[int, int],
    padding: tuple[int, int],
    image: tuple[int, int],
    same: bool,
    seed: int,
) -> None:
    padding = (min(padding[0], kernel[0]), min(padding[1], kernel[1]))
    if not same:
        assume(all(i + 2 * p >= k for i, p, k in zip(image, padding, kernel, strict=True)))
    conv = nn.Conv2d(3, 2, kernel, padding="same" if same else padding)
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(n, 3, *image, generator=generator, dtype=torch.double) for n in (2, 1)]
    moment = Shifted(conv, image)
    for batch in batches:
        moment.add(batch)
    wanted = wanted_moment(conv, torch.cat(batches))
    np.testing.assert_allclose(moment.total()[0].numpy(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", [1, "same", 0])
def test_the_way_taken_makes_no_difference(padding: int | str) -> None:
    conv = nn.Conv2d(16, 4, 3, padding=padding)
    assert shiftable(conv)
    images = torch.randn(3, 16, 6, 5)
    shifted = summed(EditableLayer("conv", conv), [images[:2], images[2:]])
    assert shifted._shifted is not None
    keys = EditableLayer("conv", conv).keys(images, 3)
    rows = keys.unfold().permute(0, 3, 1, 2).reshape(-1, 144).double()
    torch.testing.assert_close(shifted.total()[0].double(), rows.T @ rows, rtol=1e-4, atol=1e-3)
    assert shifted.count == len(rows)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 3, padding=1, stride=(1, 2)),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(32, 32, 1),
        nn.Conv2d(3, 32, 3, padding=1),
    ],
)
def test_other_convolutions_are_unfolded(conv: nn.Conv2d) -> None:
    assert not shiftable(conv)
    images = torch.randn(2, conv.in_channels, 6, 6)
    layer = EditableLayer("conv", conv)
    moment = summed(layer, [images])
    keys = layer.keys(images, 2).unfold().double()
    wanted = torch.einsum("ngkp,nglp->gkl", keys, keys)
    torch.testing.assert_close(moment.total().double(), wanted, rtol=1e-4, atol=1e-3)
    assert moment.count == keys.shape[0] * keys.shape[3]


@pytest.mark.parametrize("groups", [1, 2])
def test_large_products_are_formed_in_blocks(groups: int) -> None:
    size = 2 * BLOCK + 5
    conv = nn.Conv2d(groups * size, groups, 1, groups=groups)
    images = torch.randn(2, groups * size, 3, 3)
    moment = summed(EditableLayer("conv", conv), [images[:1], images[1:]])
    keys = images.reshape(2, groups, size, 9).double()
    wanted = torch.einsum("ngkp,nglp->gkl", keys, keys)
    torch.testing.assert_close(moment.total().double(), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 4, 3, padding=1),
        nn.Conv2d(4, 4, (3, 2), padding=(2, 0), stride=(2, 1), dilation=(1, 2), groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_a_sample_of_the_positions_is_what_unfolding_them_all_gives(conv: nn.Conv2d) -> None:
    layer = EditableLayer("conv", conv)
    keys = layer.keys(torch.randn(2, conv.in_channels, 7, 8), 2)
    everything = keys.unfold()
    which = torch.tensor([5, 0, everything.shape[3] - 1])
    assert keys.positions == everything.shape[3]
    torch.testing.assert_close(keys.unfold(which), everything[..., which], rtol=0, atol=0)


def test_a_batch_has_the_same_sample_whoever_adds_the_others() -> None:
    layer = EditableLayer("conv", nn.Conv2d(16, 4, 3, padding=1))
    batches = list(torch.randn(4, 2, 16, 12, 12).unbind())
    whole = summed(layer, batches, positions=5)
    parts = [MomentSum(layer, "patch", positions=5, expected=8, seed=0) for _ in range(2)]
    for number, batch in enumerate(batches):
        parts[number % 2].add(batch, 2, number)
    assert whole.count == parts[0].count + parts[1].count == 4 * 2 * 5
    torch.testing.assert_close(
        whole.total(), parts[0].total() + parts[1].total(), rtol=1e-5, atol=1e-4
    )


def test_half_precision_inputs_are_summed_in_full() -> None:
    layer = EditableLayer("conv", nn.Conv2d(16, 4, 3, padding=1).bfloat16())
    moment = summed(layer, [torch.randn(2, 16, 4, 4, dtype=torch.bfloat16)])
    assert moment.total().dtype is torch.float32
