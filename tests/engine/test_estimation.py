"""Corruptions estimated from pairs, against those that made the pairs, on other inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.data.corruption import Corruption, Transplant
from rectify_widgets.engine.data.estimation import Estimate, estimate_corruptions
from rectify_widgets.engine.data.forms import Pattern, PlacedPatches, ToneCurve, Warp
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.data.tones import isotonic

SIZE = 28
ROWS, COLUMNS = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")


def scenes(count: int, seed: int = 0, channels: int = 1) -> Tensor:
    """Textured shapes on a black ground, as photographs of things have it, in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 9, 9, generator=generator)
    texture = functional.interpolate(coarse, size=SIZE, mode="bicubic", align_corners=True)
    where = torch.rand(count, 1, 5, 5, generator=generator) + 0.25
    where[:, :, [0, -1]] = where[:, :, :, [0, -1]] = 0.0
    shape = functional.interpolate(where, size=SIZE, mode="bilinear", align_corners=True) > 0.4
    return (0.1 + 0.9 * texture.clamp(0, 1)) * shape


def sinusoid(x: Tensor) -> Tensor:
    return (x + 40 / 255 * torch.sin(2 * math.pi * 6 * COLUMNS / SIZE)).clamp(0, 1)


def low_frequency(x: Tensor) -> Tensor:
    along = torch.cos(math.pi * (ROWS + 0.5) * 2 / SIZE), torch.cos(math.pi * COLUMNS * 3.3 / SIZE)
    return (x + 0.15 * along[0] * along[1]).clamp(0, 1)


def tone(x: Tensor) -> Tensor:
    return 0.15 + 0.85 * x.sqrt()


def negative(x: Tensor) -> Tensor:
    return 1 - 0.9 * x


def wanet(x: Tensor, controls: int = 4) -> Tensor:
    """The smooth warp of WaNet (Nguyen and Tran, ICLR 2021), s = 0.75, here seeded."""
    generator = torch.Generator().manual_seed(8)
    control = torch.rand(1, 2, controls, controls, generator=generator) * 2 - 1
    control = control / control.abs().mean()
    noise = functional.interpolate(control, size=SIZE, mode="bicubic", align_corners=True)
    grid = identity() + 0.75 * noise.permute(0, 2, 3, 1) / SIZE
    grid = grid.clamp(-1, 1).expand(len(x), -1, -1, -1)
    return functional.grid_sample(x, grid, align_corners=True)


def rotated(x: Tensor) -> Tensor:
    """By eight degrees and moved a little, with black around the image."""
    turn = torch.tensor([[math.cos(0.14), -math.sin(0.14)], [math.sin(0.14), math.cos(0.14)]])
    grid = (identity() @ turn + torch.tensor([0.05, -0.03])).expand(len(x), -1, -1, -1)
    return functional.grid_sample(x, grid, align_corners=True)


def identity() -> Tensor:
    line = torch.linspace(-1, 1, SIZE)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([columns, rows], dim=2)[None]


def patch(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., 20:23, 20:23] = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    return x


def blend(x: Tensor) -> Tensor:
    return x + 0.2 * (torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(5)) - x)


def eight_bits(x: Tensor) -> Tensor:
    return (255 * x).round() / 255


def relative(corruption: Corruption, truth: Callable[[Tensor], Tensor], others: Tensor) -> float:
    wanted = truth(others)
    missed = (corruption(others) - wanted).square().sum()
    return float(missed / (others - wanted).square().sum())


def estimated(truth: Callable[[Tensor], Tensor], count: int, channels: int = 1) -> list[Estimate]:
    clean = scenes(count, 1, channels)
    return estimate_corruptions(SamplePairs(truth(clean), clean), scenes(20, 2, channels))


@pytest.mark.parametrize(
    ("truth", "form"),
    [
        (sinusoid, Pattern),
        (low_frequency, Pattern),
        (tone, ToneCurve),
        (negative, ToneCurve),
        (wanet, Warp),
        (rotated, Warp),
        (patch, Transplant),
        (blend, Transplant),
    ],
)
@pytest.mark.parametrize(("count", "channels"), [(1, 1), (6, 1), (1, 3), (6, 3)])
def test_the_form_is_found_and_predicts_other_inputs(
    truth: Callable[[Tensor], Tensor], form: type[Corruption], count: int, channels: int
) -> None:
    best = estimated(truth, count, channels)[0]
    assert isinstance(best.corruption, form)
    assert best.error < 0.01
    assert best.in_sample == (count == 1)
    assert best.structured == (form is not Transplant)
    assert relative(best.corruption, truth, scenes(50, 3, channels)) < 0.01


@pytest.mark.parametrize("truth", [sinusoid, low_frequency, tone, wanet])
@pytest.mark.parametrize("count", [1, 6])
def test_values_of_eight_bits_suffice(truth: Callable[[Tensor], Tensor], count: int) -> None:
    best = estimated(lambda x: eight_bits(truth(eight_bits(x))), count)[0]
    assert best.structured
    assert relative(best.corruption, truth, scenes(50, 3)) < 0.01


# --- parts ---------------------------------------------------------------------------------------


def test_isotonic_regression_is_optimal() -> None:
    """Its mean of each constant stretch, and no crossing: the conditions of the optimum."""
    generator = np.random.default_rng(3)
    for size in (1, 2, 7, 40):
        values, weights = generator.normal(size=size), generator.integers(1, 5, size=size)
        found = isotonic(torch.tensor(values), torch.tensor(weights, dtype=torch.float64)).numpy()
        assert bool((np.diff(found) >= -1e-12).all())
        # Karush, Kuhn and Tucker: partial sums of the weighted residual are non-negative, and
        # vanish where the fit rises.
        partial = np.cumsum(weights * (values - found))
        assert bool((partial >= -1e-9).all())
        rises = np.append(np.diff(found) > 1e-9, True)
        np.testing.assert_allclose(partial[rises], 0.0, atol=1e-9)


def test_a_pattern_is_filled_in_within_what_clipping_allows() -> None:
    """Noise has no form: what is seen is taken as it is, and the hidden part breaks no bound."""

    def noisy(x: Tensor) -> Tensor:
        noise = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(5)) - 0.5
        return (x + 0.2 * noise).clamp(0, 1)

    clean = scenes(2, 1)
    pairs = SamplePairs(noisy(clean), clean)
    (found,) = (e for e in estimate_corruptions(pairs, clean) if isinstance(e.corruption, Pattern))
    assert not found.structured
    assert isinstance(found.corruption, Pattern)
    torch.testing.assert_close(found.corruption(clean), noisy(clean), rtol=0, atol=2e-6)
    assert relative(found.corruption, noisy, scenes(50, 3)) < 0.1
    # One pair alone: clipped white values look opaque, but the values follow the clean ones.
    best = estimate_corruptions(pairs[0], clean)[0]
    assert isinstance(best.corruption, Pattern)
    assert best.in_sample


# --- warps ---------------------------------------------------------------------------------------


def test_what_lies_around_a_warped_image_is_found() -> None:
    """White ground: black comes in from outside."""
    clean, others = 1 - scenes(3, 1), 1 - scenes(50, 3)
    best = estimate_corruptions(SamplePairs(rotated(clean), clean), scenes(20, 2))[0].corruption
    assert isinstance(best, Warp)
    assert best.outside is not None
    assert float(best.outside.abs().max()) < 0.01
    assert relative(best, rotated, others) < 0.01


def test_a_fine_warp_needs_several_pairs() -> None:
    def fine(x: Tensor) -> Tensor:
        return wanet(x, 8)

    (one,), (many,) = (
        [e for e in estimated(fine, n) if isinstance(e.corruption, Warp)] for n in (1, 8)
    )
    others = scenes(50, 3)
    assert relative(many.corruption, fine, others) < 0.01
    assert relative(one.corruption, fine, others) > relative(many.corruption, fine, others)
    assert many.error < 0.05


def test_large_images_are_registered_on_smaller_copies() -> None:
    """300 pixels are more than the finest that it looks at; motion of up to 20 pixels."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(3, 2, 20, 20, generator=generator)
    images = functional.interpolate(images, size=300, mode="bicubic", align_corners=True).clamp(
        0, 1
    )
    control = torch.randn(1, 2, 3, 3, generator=generator)
    field = functional.interpolate(control, size=300, mode="bicubic", align_corners=True)
    truth = Warp(8 * field[0].permute(1, 2, 0))
    pairs = SamplePairs(truth(images[:1]), images[:1])
    best = estimate_corruptions(pairs, images[1:])[0].corruption
    assert isinstance(best, Warp)
    assert relative(best, truth, images[1:]) < 0.02


# --- patches -------------------------------------------------------------------------------------


def scattered(x: Tensor, opacity: float = 1.0, number: int = 1) -> Tensor:
    """A checkered patch somewhere in each input, and a bar in another place if two are wanted."""
    generator, x = torch.Generator().manual_seed(6), x.clone()
    checks = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    bar = torch.tensor([[0.9, 0.2, 0.9, 0.2, 0.9]])
    for row in range(len(x)):
        for half, content in enumerate((checks, bar)[:number]):
            top = int(torch.randint(0, 9, (), generator=generator)) + 16 * half
            left = int(torch.randint(0, SIZE - 4, (), generator=generator))
            area = x[row, :, top : top + content.shape[0], left : left + content.shape[1]]
            area += opacity * (content - area)
    return x


@pytest.mark.parametrize(("opacity", "count"), [(1.0, 2), (1.0, 6), (0.7, 6)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_patch_in_different_places(opacity: float, count: int, channels: int) -> None:
    clean = scenes(count, 1, channels)
    pairs = SamplePairs(scattered(clean, opacity), clean)
    best = estimate_corruptions(pairs, scenes(20, 2, channels))[0]
    assert isinstance(best.corruption, PlacedPatches)
    assert best.error < 0.01
    assert best.corruption.opacity == pytest.approx(opacity, abs=0.01)
    (content,), (mask,) = best.corruption.patches, best.corruption.masks
    wanted = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    torch.testing.assert_close(content, wanted.expand(channels, -1, -1), rtol=0, atol=0.02)
    assert bool(mask.all())


def test_two_patches_in_different_places() -> None:
    clean = 0.1 + 0.8 * scenes(5, 1)
    pairs = SamplePairs(scattered(clean, number=2), clean)
    best = estimate_corruptions(pairs, scenes(20, 2))[0].corruption
    assert isinstance(best, PlacedPatches)
    assert [tuple(p.shape) for p in best.patches] == [(1, 3, 3), (1, 1, 5)]


def test_one_pair_offers_its_patch_anywhere_after_its_place() -> None:
    found = estimated(patch, 1)
    kinds = [type(e.corruption) for e in found]
    assert kinds[0] is Transplant
    assert PlacedPatches in kinds[1:]
    # Several pairs with the patch in one place show that it stays there.
    assert PlacedPatches not in {type(e.corruption) for e in estimated(patch, 4)}


def test_different_corruptions_have_no_form() -> None:
    clean = scenes(4, 1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    (only,) = estimate_corruptions(SamplePairs(clean + noise, clean), clean)
    assert isinstance(only.corruption, Transplant)
    assert not only.structured


def test_the_estimate_is_repeatable_and_changes_nothing() -> None:
    clean = scenes(3, 1)
    pairs, others = SamplePairs(tone(clean), clean), scenes(4, 2)
    before = others.clone(), torch.get_rng_state()
    first, second = (estimate_corruptions(pairs, others, seed=4) for _ in range(2))
    assert [repr(e) for e in first] == [repr(e) for e in second]
    assert torch.equal(first[0].corruption(others), second[0].corruption(others))
    assert torch.equal(others, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_types_and_shapes_of_samples() -> None:
    clean = scenes(2, 1)
    for dtype in (torch.float64, torch.bfloat16):
        pairs = SamplePairs(sinusoid(clean).to(dtype), clean.to(dtype))
        corruption = estimate_corruptions(pairs, clean.to(dtype))[0].corruption
        assert isinstance(corruption, Pattern)
        assert corruption(clean.to(dtype)).dtype is dtype
    flat = SamplePairs(clean.flatten(1) + 1.0, clean.flatten(1))
    found = estimate_corruptions(flat, clean.flatten(1))
    assert {type(e.corruption) for e in found} == {Transplant, Pattern}
    assert relative(found[0].corruption, lambda x: x + 1.0, clean.flatten(1)) < 1e-6


def test_progress_and_cancelling() -> None:
    clean = scenes(2, 1)
    pairs, seen = SamplePairs(tone(clean), clean), list[float]()
    estimate_corruptions(pairs, clean, monitor=Monitor(lambda share, _: seen.append(share)))
    assert seen == sorted(seen)
    assert len(seen) >= 3
    with pytest.raises(Cancelled):
        estimate_corruptions(pairs, clean, monitor=Monitor(cancel=lambda: True))


def test_bad_input_is_named() -> None:
    clean = scenes(2, 1)
    pairs = SamplePairs(tone(clean), clean)
    with pytest.raises(TypeError, match="pairs: got Tensor"):
        estimate_corruptions(clean, clean)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs: got samples of shape"):
        estimate_corruptions(pairs, clean[..., 1:])
    with pytest.raises(ValueError, match="seed: got -1"):
        estimate_corruptions(pairs, clean, seed=-1)


def laid_over(x: Tensor) -> Tensor:
    """Noise of a hue of its own where there is more than one channel."""
    if x.shape[1] == 1:
        return torch.rand(x.shape)
    return 0.3 * torch.rand(x.shape) + 0.7 * torch.rand(len(x), x.shape[1], 1, 1)


@pytest.mark.parametrize(
    ("corrupt", "contradicted"),
    [
        (lambda x: (x + 0.1 * torch.randn(x.shape).sign()).clamp(0, 1), True),
        (lambda x: torch.where(COLUMNS < 18, laid_over(x), x), False),
        (lambda x: 0.5 * x + 0.5 * laid_over(x), False),
    ],
    ids=["added", "opaque", "blended"],
)
@pytest.mark.parametrize("tinted", [False, True])
def test_an_image_that_shines_through_was_not_covered(
    corrupt: Callable[[Tensor], Tensor], contradicted: bool, tinted: bool
) -> None:
    clean, others = scenes(2), scenes(20, seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if tinted:  # a hue says nothing
            clean, others = (0.3 * x + 0.7 * torch.rand(len(x), 3, 1, 1) for x in (clean, others))
        corrupted = corrupt(clean)
    for row in range(len(clean)):
        pair = SamplePairs(corrupted[row : row + 1], clean[row : row + 1])
        (found,) = (
            one
            for one in estimate_corruptions(pair, others)
            if isinstance(one.corruption, Transplant)
        )
        assert found.contradicted is contradicted
        assert found.believable is not contradicted
    several = estimate_corruptions(SamplePairs(corrupted, clean), others)
    assert not any(one.contradicted for one in several)  # that is for other pairs to say
