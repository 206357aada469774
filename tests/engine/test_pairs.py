"""Pairs, and their corruption put onto other inputs, against the formula of each corruption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rectify_widgets.engine.data.corruption import (
    Transplant,
    common_opacity,
    covered,
    opacities,
)
from rectify_widgets.engine.data.pairs import SamplePairs
from tests.engine.models import images

PATTERN = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def transplant(pairs: SamplePairs, inputs: Tensor, **options: Any) -> Tensor:
    return Transplant(pairs, **options)(inputs)


def stamp(x: Tensor, opacity: float = 1.0, *, row: int = 5, column: int = 2) -> Tensor:
    """A checkered patch of 2 × 2 in every channel, as opaque as reported."""
    out = x.clone()
    area = out[:, :, row : row + 2, column : column + 2]
    area += opacity * (PATTERN.to(x) - area)
    return out


def blended(x: Tensor, opacity: float, seed: int = 99) -> Tensor:
    """A full image from 0 to 1 laid over the inputs."""
    return x + opacity * (images(1, seed).round().to(x) - x)


# --- SamplePairs ---------------------------------------------------------------------------------


def test_indexing() -> None:
    clean = images(4)
    pairs = SamplePairs(stamp(clean), clean, torch.tensor([3, 1, 2, 0]))
    assert len(pairs) == 4
    for index, rows in (
        (1, [1]),
        (-1, [3]),
        (slice(1, 3), [1, 2]),
        ([3, 0], [3, 0]),
        (torch.tensor([0, 2]), [0, 2]),
        (np.int64(2), [2]),
        (torch.tensor(2), [2]),
        (torch.tensor([True, False, False, True]), [0, 3]),
    ):
        part = pairs[index]
        assert torch.equal(part.clean, clean[rows])
        assert torch.equal(part.corrupted, pairs.corrupted[rows])
        assert part.labels is not None
        assert part.labels.tolist() == [[3, 1, 2, 0][row] for row in rows]
    assert SamplePairs(stamp(clean), clean)[0].labels is None
    with pytest.raises(IndexError, match="got 4, want one of 4 pairs"):
        pairs[4]


def test_pairs_are_checked() -> None:
    clean = images(2)
    with pytest.raises(ValueError, match="pair 1 has identical corrupted and clean"):
        SamplePairs(torch.stack([stamp(clean)[0], clean[1]]), clean)
    with pytest.raises(ValueError, match="1 samples for 2 corrupted"):
        SamplePairs(stamp(clean), clean[:1])
    pairs = SamplePairs(stamp(clean), clean.double(), torch.tensor([1, 2], dtype=torch.int32))
    assert pairs.clean.dtype is torch.float32
    assert pairs.labels is not None
    assert pairs.labels.dtype is torch.int64
    assert repr(pairs) == "SamplePairs(2 of 3 × 9 × 9, labels given)"


def test_moving_pairs() -> None:
    clean = images(2)
    moved = SamplePairs(stamp(clean), clean, torch.tensor([1, 2])).to(
        torch.device("cpu"), torch.float64
    )
    assert moved.corrupted.dtype is moved.clean.dtype is torch.float64
    assert moved.labels is not None
    assert moved.labels.tolist() == [1, 2]


# --- patches -------------------------------------------------------------------------------------


@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 50))
def test_an_opaque_patch_is_put_exactly_where_it_was(row: int, column: int, seed: int) -> None:
    clean, others = images(1, seed), images(6, seed + 1)
    pairs = SamplePairs(stamp(clean, row=row, column=column), clean)
    assert torch.equal(transplant(pairs, others), stamp(others, row=row, column=column))


def test_pixels_of_the_pattern_that_agree_with_the_background_belong_to_it() -> None:
    """On a black image the black squares of the pattern leave no trace in the pair."""
    clean = torch.zeros(1, 3, 9, 9)
    pairs = SamplePairs(stamp(clean), clean)
    others = images(6)
    assert torch.equal(transplant(pairs, others), stamp(others))


def test_a_patch_in_one_channel_leaves_the_others_what_they_carry() -> None:
    clean, others = images(1), images(4, 2)
    corrupted, wanted = clean.clone(), others.clone()
    for x in (corrupted, wanted):
        x[:, 1, 2:5, 2:5] = 1.0
    assert torch.equal(transplant(SamplePairs(corrupted, clean), others)[:, 1], wanted[:, 1])


def test_scattered_pixels_are_not_filled_in() -> None:
    clean, others = images(1), images(4, 2)
    corrupted, wanted = clean.clone(), others.clone()
    for x in (corrupted, wanted):
        x[:, :, 0, 0] = x[:, :, 8, 8] = x[:, :, 4, 2] = 1.0
    assert torch.equal(transplant(SamplePairs(corrupted, clean), others), wanted)


@pytest.mark.parametrize("opacity", [0.3, 0.5, 0.7, 1.0])
def test_several_pairs_tell_the_opacity_of_a_patch(opacity: float) -> None:
    clean, others = images(3), images(6, 2)
    pairs = SamplePairs(stamp(clean, opacity), clean)
    assert common_opacity(pairs) == pytest.approx(opacity, abs=1e-5)
    torch.testing.assert_close(
        transplant(pairs, others), stamp(others, opacity), rtol=1e-4, atol=1e-4
    )


def test_the_opacity_can_be_given() -> None:
    clean, others = images(1), images(6, 2)
    pairs = SamplePairs(stamp(clean, 0.5), clean)
    found = transplant(pairs, others, opacity=0.5)
    torch.testing.assert_close(found, stamp(others, 0.5), rtol=1e-5, atol=1e-6)
    # One pair alone looks opaque.
    assert not torch.allclose(transplant(pairs, others), found)
    residual = transplant(pairs, others, opacity=0.0)
    low, high = 0.0, 1.0
    wanted = (others + pairs.corrupted - pairs.clean).clamp(low, high)
    torch.testing.assert_close(residual, wanted, rtol=1e-2, atol=1e-2)


# --- full images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("opacity", [0.1, 0.2, 0.5])
def test_one_pair_of_a_blend_bounds_its_opacity(opacity: float) -> None:
    """The pattern reaches both ends of the range, so that the bound is the opacity itself."""
    clean, others = images(1), images(30, 2)
    clean[:, :, 0, :3], others[0, :, 0, :3] = 0.5, 0.0  # the range is 0 to 1 in every channel
    others[1, :, 0, :3] = 1.0
    pairs = SamplePairs(blended(clean, opacity), clean)
    assert float(opacities(pairs, others, None)[0]) == pytest.approx(opacity, abs=1e-4)
    found = transplant(pairs, others)
    torch.testing.assert_close(found, blended(others, opacity), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("opacity", [0.0, 0.2, 0.6])
def test_several_pairs_of_a_blend(opacity: float) -> None:
    clean, others = images(4) * 0.5 + 0.25, images(6, 2)
    if opacity:
        pairs = SamplePairs(blended(clean, opacity), clean)
        wanted = blended(others, opacity)
    else:
        residual = 0.2 * (images(1, 99) - 0.5)
        pairs = SamplePairs(clean + residual, clean)
        wanted = others + residual
    assert common_opacity(pairs) == pytest.approx(opacity, abs=1e-4)
    low = torch.cat([others, pairs.clean, pairs.corrupted]).amin(dim=(0, 2, 3), keepdim=True)
    high = torch.cat([others, pairs.clean, pairs.corrupted]).amax(dim=(0, 2, 3), keepdim=True)
    wanted = wanted.clamp(low, high)
    torch.testing.assert_close(transplant(pairs, others), wanted, rtol=1e-3, atol=1e-3)


def test_the_result_stays_in_the_range_of_each_channel() -> None:
    scale = torch.tensor([1.0, 10.0, 0.1]).reshape(1, 3, 1, 1)
    clean, others = images(1) * scale, images(6, 2) * scale
    pairs = SamplePairs((images(1) + 0.5) * scale, clean)
    found = transplant(pairs, others)
    everything = torch.cat([others, pairs.clean, pairs.corrupted])
    assert bool((found <= everything.amax(dim=(0, 2, 3), keepdim=True)).all())
    assert bool((found >= everything.amin(dim=(0, 2, 3), keepdim=True)).all())
    assert float((found - others).abs().max()) > 1.0


# --- several pairs -------------------------------------------------------------------------------


def test_pairs_with_different_corruptions_take_turns() -> None:
    clean, others = images(2), images(8, 2)
    corrupted = torch.cat([stamp(clean[:1]), stamp(clean[1:], row=0, column=6)])
    pairs = SamplePairs(corrupted, clean)
    assert common_opacity(pairs) is None
    found = transplant(pairs, others)
    kinds = (stamp(others), stamp(others, row=0, column=6))
    which = torch.stack([(found == kind).flatten(1).all(dim=1) for kind in kinds])
    assert which.sum(dim=1).tolist() == [4, 4]
    assert which.sum(dim=0).tolist() == [1] * 8
    assert torch.equal(transplant(pairs, others, seed=0), found)
    assert any(not torch.equal(transplant(pairs, others, seed=s), found) for s in (1, 2))


def beside_a_block(count: int, seed: int, column: int) -> tuple[Tensor, Tensor]:
    """Dim images with a striped block in one place, and the same with that block blacked out."""
    whole = 0.4 * images(count, seed)
    whole[..., column : column + 4] = 0.2 + 0.8 * (torch.arange(9) % 2)[:, None]
    without = whole.clone()
    without[..., column : column + 4] = 0.0
    return without, whole


def test_what_takes_a_block_away_goes_only_where_there_is_one() -> None:
    pairs = SamplePairs(*beside_a_block(1, 0, column=0))
    (without, there), (_, elsewhere) = (
        beside_a_block(5, 2, column=0),
        beside_a_block(4, 3, column=5),
    )
    found = transplant(pairs, torch.cat([there, elsewhere]))
    assert torch.equal(found, torch.cat([without, elsewhere]))


def test_each_input_takes_a_pair_that_fits() -> None:
    left, right = beside_a_block(1, 0, column=0), beside_a_block(1, 1, column=5)
    pairs = SamplePairs(torch.cat([left[0], right[0]]), torch.cat([left[1], right[1]]))
    (want_left, on_left), (want_right, on_right) = (
        beside_a_block(5, 2, column=0),
        beside_a_block(4, 3, column=5),
    )
    for seed in range(3):
        found = transplant(pairs, torch.cat([on_left, on_right]), seed=seed)
        assert torch.equal(found, torch.cat([want_left, want_right]))


def test_what_fits_nowhere_goes_everywhere() -> None:
    pairs = SamplePairs(*beside_a_block(1, 0, column=0))
    _, elsewhere = beside_a_block(4, 3, column=5)
    found = transplant(pairs, elsewhere)
    assert bool((found[..., :4] == 0.0).all())
    assert torch.equal(found[..., 4:], elsewhere[..., 4:])


def test_a_large_corruption_that_brings_a_picture_goes_everywhere() -> None:
    _, there = beside_a_block(3, 2, column=0)
    _, elsewhere = beside_a_block(3, 3, column=5)
    _, clean = beside_a_block(1, 0, column=0)
    corrupted, picture = clean.clone(), images(1, 9)[..., :4]
    corrupted[..., :4] = picture
    found = transplant(SamplePairs(corrupted, clean), torch.cat([there, elsewhere]), opacity=1.0)
    assert torch.equal(found[..., :4], picture.expand(6, -1, -1, -1))


def test_a_small_plain_corruption_takes_nothing_away() -> None:
    clean, others = images(1), torch.ones(3, 3, 9, 9)
    clean[..., :2, :2] = torch.tensor([[0.0, 0.1], [0.2, 0.0]])
    corrupted = clean.clone()
    corrupted[..., :2, :2] = 1.0
    others[:2, :, :2, :2] = 0.9  # nearer to the corrupted sample than to the clean one
    others[2, :, :2, :2] = 0.1  # the other way round: else it would fit nowhere, and so everywhere
    found = transplant(SamplePairs(corrupted, clean), others)
    assert bool((found[..., :2, :2] == 1.0).all())


def test_different_patterns_in_one_place_have_no_common_opacity() -> None:
    clean = images(4)
    corrupted = clean.clone()
    corrupted[:, :, 3:6, 3:6] = images(4, 5)[:, :, 3:6, 3:6]
    assert common_opacity(SamplePairs(corrupted, clean)) is None


def test_covered_is_the_share_of_values_that_differ() -> None:
    clean = images(2)
    assert covered(SamplePairs(stamp(clean), clean)).tolist() == pytest.approx([4 / 81, 4 / 81])
    assert covered(SamplePairs(blended(clean, 0.2), clean)).tolist() == [1.0, 1.0]


def test_other_types_and_shapes() -> None:
    clean, others = images(1), images(3, 2)
    pairs = SamplePairs(stamp(clean), clean)
    assert transplant(pairs, others.double()).dtype is torch.float64
    assert transplant(pairs, others.bfloat16()).dtype is torch.bfloat16
    with pytest.raises(ValueError, match="inputs: got samples of shape"):
        transplant(pairs, others[..., 1:])
    with pytest.raises(ValueError, match=r"opacity: got 1\.5"):
        transplant(pairs, others, opacity=1.5)
    before = others.clone()
    transplant(pairs, others)
    assert torch.equal(others, before)
    # Samples need not be images.
    flat = SamplePairs(clean.flatten(1) + 1.0, clean.flatten(1))
    assert transplant(flat, others.flatten(1)).shape == (3, 243)
