"""Corruptions as operators, each against its formula or another implementation of it."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rectify_widgets.engine.data.corruption import (
    Corruption,
    Transplant,
    UserFunction,
    as_corruption,
)
from rectify_widgets.engine.data.forms import Pattern, PlacedPatches, ToneCurve, Warp
from rectify_widgets.engine.data.pairs import SamplePairs
from tests.engine.models import images

LOW, HIGH = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)


def darker(x: Tensor) -> Tensor:
    return 0.5 * x


def operators() -> list[Corruption]:
    clean = images(2)
    field = torch.full((9, 9, 2), 0.3)
    return [
        Transplant(SamplePairs(darker(clean), clean)),
        UserFunction(darker),
        Pattern(images(1, 3)[0] - 0.5, LOW, HIGH),
        ToneCurve(torch.linspace(0.2, 1.0, 5).expand(3, -1), LOW, HIGH),
        Warp(field),
        PlacedPatches(
            (torch.ones(3, 2, 2),), (torch.ones(3, 2, 2, dtype=torch.bool),), 1.0, LOW, HIGH
        ),
    ]


@pytest.mark.parametrize("corruption", operators(), ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_corruption_returns_changed_copies(corruption: Corruption, dtype: torch.dtype) -> None:
    inputs = images(6, 5).to(dtype)
    before = inputs.clone()
    result = corruption(inputs)
    assert result.shape == inputs.shape
    assert result.dtype is dtype
    assert torch.equal(inputs, before)
    assert torch.equal(corruption(inputs), result)
    assert bool((result != inputs).flatten(1).any(dim=1).all())
    assert float(result.min()) >= 0.0
    assert float(result.max()) <= 1.0
    assert repr(corruption).startswith(type(corruption).__name__ + "(")
    assert "\n" not in repr(corruption)


@pytest.mark.parametrize("corruption", operators(), ids=lambda c: type(c).__name__)
def test_a_corruption_refuses_what_is_no_input(corruption: Corruption) -> None:
    with pytest.raises(TypeError, match="inputs: got list"):
        corruption([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs: got NaN"):
        corruption(torch.full((1, 3, 9, 9), float("nan")))
    if not isinstance(corruption, UserFunction):
        with pytest.raises(ValueError, match="inputs: got samples of shape"):
            corruption(images(2)[:, :2, 1:])
    if isinstance(corruption, PlacedPatches):
        with pytest.raises(ValueError, match="want some with room for patches of 2 × 2 pixels"):
            corruption(images(2)[..., :1])


def test_a_pattern_is_added_and_clipped() -> None:
    inputs, pattern = images(5), images(1, 3)[0] - 0.5
    found = Pattern(pattern, LOW, HIGH, 2)(inputs)
    assert torch.equal(found, (inputs + pattern).clamp(0, 1))
    assert bool((found == 0).any())
    assert repr(Pattern(pattern, LOW, HIGH)) == f"Pattern(amplitude {pattern.abs().max():.3f})"
    assert "(1 frequency, amp" in repr(Pattern(pattern, LOW, HIGH, 1))
    assert "(3 frequencies, amp" in repr(Pattern(pattern, LOW, HIGH, 3))


def test_a_tone_curve_interpolates_each_channel() -> None:
    low = torch.tensor([0.0, -2.0, 1.0]).reshape(3, 1, 1)
    high = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    levels = torch.stack([torch.tensor([0.1, 0.9, 0.3]), torch.tensor([-2.0, 0.0, 1.0])])
    levels = torch.cat([levels, torch.tensor([[3.0, 2.0, 1.0]])])
    inputs = images(4).double() * (high - low) + low
    inputs[0, :, 0, 0] = torch.tensor([9.0, -9.0, 9.0])  # outside the range: as at its ends
    found = ToneCurve(levels, low, high)(inputs)
    for channel in range(3):
        ends = np.linspace(float(low[channel]), float(high[channel]), 3)
        wanted = np.interp(inputs[:, channel].numpy(), ends, levels[channel].numpy())
        np.testing.assert_allclose(found[:, channel].numpy(), wanted, rtol=0, atol=1e-6)
    curve = ToneCurve(torch.tensor([[0.15, 1.0]]), torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    assert repr(curve) == "ToneCurve(0.15 to 1.00, 1 channel)"


@pytest.mark.parametrize("reach", [0.7, 3.0])
def test_a_warp_samples_as_grid_sample_does(reach: float) -> None:
    inputs = torch.rand(3, 2, 7, 10, generator=torch.Generator().manual_seed(1))
    field = reach * torch.randn(7, 10, 2, generator=torch.Generator().manual_seed(2))
    rows, columns = torch.meshgrid(torch.arange(7.0), torch.arange(10.0), indexing="ij")
    grid = torch.stack([(columns + field[..., 1]) / 4.5 - 1, (rows + field[..., 0]) / 3 - 1], dim=2)
    wanted = functional.grid_sample(
        inputs, grid.expand(3, -1, -1, -1), padding_mode="border", align_corners=True
    )
    torch.testing.assert_close(Warp(field)(inputs), wanted, rtol=1e-5, atol=1e-5)
    assert repr(Warp(torch.full((4, 4, 2), 1.5))) == "Warp(up to 2.1 pixels)"


def test_a_warp_of_nothing_changes_nothing() -> None:
    assert torch.equal(Warp(torch.zeros(9, 9, 2))(images(3)), images(3))
    flat = images(2)[:, :, :1]
    assert torch.equal(Warp(torch.zeros(1, 9, 2))(flat), flat)


def test_patches_lie_whole_somewhere_in_each_input() -> None:
    content = torch.tensor([[0.25, 0.5], [0.75, 0.25]]).expand(3, -1, -1)
    mask = torch.tensor([[True, True], [True, False]]).expand(3, -1, -1)
    corruption = PlacedPatches((content,), (mask,), 0.5, LOW, HIGH, seed=3)
    inputs = images(60)
    found = corruption(inputs)
    places = set()
    for before, after in zip(inputs, found, strict=True):
        changed = (before != after).any(dim=0).nonzero()
        top, left = changed.amin(dim=0).tolist()
        wanted = before.clone()
        area = wanted[:, top : top + 2, left : left + 2]
        area[mask] += 0.5 * (content[mask] - area[mask])
        torch.testing.assert_close(after, wanted, rtol=0, atol=1e-6)
        places.add((top, left))
    assert len(places) > 30
    assert min(min(place) for place in places) == 0
    assert max(max(place) for place in places) == 7
    assert repr(corruption) == "PlacedPatches(2 × 2 pixels, opacity 0.50)"
    # The place belongs to the row, whatever else there is, and to the seed.
    assert torch.equal(corruption(inputs[:7]), found[:7])
    other = PlacedPatches((content,), (mask,), 0.5, LOW, HIGH, seed=4)
    assert not torch.equal(other(inputs), found)


# --- the user's function -------------------------------------------------------------------------


def test_a_function_gets_a_copy_without_gradients() -> None:
    inputs = images(3).requires_grad_()
    seen: list[bool] = []

    def blacken(x: Tensor) -> Tensor:
        seen.extend((x.requires_grad, torch.is_grad_enabled()))
        return x.zero_()

    result = UserFunction(blacken)(inputs)
    assert seen == [False, False]
    assert torch.equal(inputs, images(3))
    assert not result.requires_grad
    assert bool((result == 0).all())


def test_a_function_that_draws_is_repeatable_and_leaves_no_trace() -> None:
    def noisy(x: Tensor) -> Tensor:
        return x + torch.randn(()) + float(np.random.rand()) + random.random()  # noqa: NPY002

    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index] # noqa: NPY002
    first = UserFunction(noisy)(images(2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index] # noqa: NPY002
    assert random.getstate() == before[2]
    torch.rand(3)
    assert torch.equal(UserFunction(noisy)(images(2)), first)
    assert not torch.equal(UserFunction(noisy, seed=1)(images(2)), first)


def test_the_result_of_a_function_is_moved_back_and_its_own() -> None:
    kept = images(2).double()
    result = UserFunction(lambda x: kept)(images(2, 4))
    assert result.dtype is torch.float32
    same = images(2)
    corruption = UserFunction(lambda x: same)
    corruption(images(2, 4)).zero_()
    assert torch.equal(same, images(2))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x.numpy(), TypeError, r"corrupt: <lambda> returned ndarray, want a floating"),
        (lambda x: x > 0, TypeError, r"corrupt: <lambda> returned torch\.bool"),
        (lambda x: x[:1], ValueError, r"returned shape \(1, 3, 9, 9\), want .*\(2, 3, 9, 9\)"),
        (lambda x: x / 0, ValueError, "returned NaN or infinity"),
        (None, TypeError, "corrupt: got NoneType, want a function"),
    ],
)
def test_what_a_function_must_not_return(
    function: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        UserFunction(function)(images(2))


def test_what_a_function_raises_is_passed_on() -> None:
    def broken(x: Tensor) -> Tensor:
        raise KeyError("missing")

    with pytest.raises(KeyError, match="missing"):
        UserFunction(broken)(images(2))


def test_a_corruption_is_not_wrapped() -> None:
    warp = Warp(torch.zeros(9, 9, 2))
    assert as_corruption(warp) is warp
    assert repr(as_corruption(darker)) == "UserFunction(darker)"
    long = repr(as_corruption(partial(torch.add, torch.ones(3, 28, 28))))
    assert len(long) < 80
    assert "\n" not in long
    assert torch.equal(as_corruption(darker)(images(2)), darker(images(2)))


# --- pairs that know their corruption ------------------------------------------------------------


def test_pairs_keep_their_corruption() -> None:
    clean = images(3)
    pairs = SamplePairs.made(darker, clean, [2, 1, 0])  # type: ignore[arg-type]
    assert torch.equal(pairs.corrupted, darker(clean))
    assert torch.equal(pairs.clean, clean)
    assert pairs.labels is not None
    assert pairs.labels.tolist() == [2, 1, 0]
    assert pairs.corrupt is pairs[1].corrupt is darker
    assert pairs.to(torch.device("cpu"), torch.float64).corrupt is darker
    assert repr(pairs) == "SamplePairs(3 of 3 × 9 × 9, labels given, corrupt=darker)"
    warp = Warp(torch.full((9, 9, 2), 0.5))
    assert "corrupt=Warp(up to 0.7 pixels)" in repr(SamplePairs.made(warp, clean))
    assert SamplePairs(darker(clean), clean).corrupt is None


def test_pairs_cannot_be_made_of_inputs_that_stay_the_same() -> None:
    inputs = images(4)
    inputs[[0, 2]] = 0.0
    message = (
        r"corrupt: darker leaves 2 of 4 inputs unchanged \(rows 0, 2\), want pairs that differ"
    )
    with pytest.raises(ValueError, match=message):
        SamplePairs.made(darker, inputs)
    with pytest.raises(ValueError, match=r"rows 0, 1, 2, 3, 4, \.\.\.\)"):
        SamplePairs.made(lambda x: x, images(8))
    with pytest.raises(TypeError, match="corrupt: got int, want a function"):
        SamplePairs.made(3, inputs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="corrupt: got str, want a function"):
        SamplePairs(darker(images(2)), images(2), corrupt="blur")  # type: ignore[arg-type]
