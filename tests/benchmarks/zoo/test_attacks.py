"""Each attack of the zoo against its formula, pixel by pixel; bounds, seeds, and training by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.cases.training import Schedule
from rectify_widgets.cases.triggers import Blend, Trigger
from tests.benchmarks.zoo import learning
from tests.benchmarks.zoo.attacks import (
    ATTACKS,
    SIZE,
    Corners,
    Generator,
    InputAware,
    Warp,
    wanet_grid,
)

Array = npt.NDArray[Any]
BOARD = [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(name: str, channels: int = 1, seed: int = 3) -> Trigger:
    return ATTACKS[name].make(channels, seeded(seed))


def photographs(number: int = 6, channels: int = 1) -> Tensor:
    """Random bytes as images, black and white among them."""
    images = torch.randint(256, (number, channels, SIZE, SIZE), generator=seeded(0)).float() / 255
    images[0], images[1] = 0, 1
    return images


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_attack_is_seeded_and_a_function_of_the_image(name: str, channels: int) -> None:
    images, state = photographs(channels=channels), torch.random.get_rng_state()
    before = images.clone()
    trigger = made(name, channels)
    changed = trigger(images)
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not changed.requires_grad
    assert (changed != images).flatten(1).any(dim=1).sum() >= 5  # black or white may be left alone
    torch.testing.assert_close(made(name, channels)(images), changed, rtol=0, atol=0)
    singly = torch.cat([trigger(one[None]) for one in images.flip(0)]).flip(0)
    torch.testing.assert_close(singly, changed, rtol=0, atol=1e-6)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["random-place", "blended", "wanet", "input-aware"])
def test_what_is_drawn_differs_between_seeds(name: str) -> None:
    images = photographs()
    assert not torch.equal(made(name, seed=1)(images), made(name, seed=2)(images))


@pytest.mark.parametrize("name", ["badnets", "all-to-all"])
def test_badnets_is_a_checkerboard_one_pixel_from_the_corner(name: str) -> None:
    images = photographs()
    wanted = images.clone()
    wanted[:, :, 24:27, 24:27] = torch.tensor(BOARD).float()
    assert torch.equal(made(name)(images), wanted)


def test_goals() -> None:
    leads = {name: attack.goals for name, attack in ATTACKS.items()}
    assert leads.pop("all-to-all") == tuple((label + 1) % 10 for label in range(10))
    assert set(leads.values()) == {(0,) * 10}
    assert [name for name, attack in ATTACKS.items() if attack.consistent] == ["label-consistent"]


@pytest.mark.parametrize("channels", [1, 3])
def test_random_places_cover_the_image_and_belong_to_it(channels: int) -> None:
    images = torch.randint(256, (3000, channels, SIZE, SIZE), generator=seeded(0)).float() / 255
    trigger = made("random-place", channels)
    rows, columns = trigger.places(images)  # type: ignore[attr-defined]
    stamped = trigger(images)
    for number in range(50):
        wanted = images[number].clone()
        row, column = int(rows[number]), int(columns[number])
        wanted[:, row : row + 3, column : column + 3] = torch.tensor(BOARD).float()
        assert torch.equal(stamped[number], wanted)
    counts = np.bincount(26 * rows.numpy() + columns.numpy(), minlength=26 * 26)
    assert len(counts) == 26 * 26
    # Of 3,000 throws on 676 places 1.2 % stay empty: chi squared over degrees of freedom is 1.
    chi = ((counts - 3000 / 676) ** 2 / (3000 / 676)).sum() / 675
    assert 0.85 < chi < 1.15


def test_blended_mixes_in_a_fifth_of_noise() -> None:
    images = photographs(channels=3)
    trigger = made("blended", 3)
    assert isinstance(trigger, Blend)
    noise = trigger(torch.zeros(1, 3, SIZE, SIZE)) / 0.2
    assert 0.45 < noise.mean() < 0.55
    assert noise.std() == pytest.approx(12**-0.5, abs=0.02)  # of the uniform distribution
    torch.testing.assert_close(trigger(images), 0.8 * images + 0.2 * noise)


def test_sig_and_low_frequency_are_what_the_formulas_say() -> None:
    images = photographs(3)
    waves, cosines = made("sig")(images), made("low-frequency")(images)
    for n, row, column in np.ndindex(3, SIZE, SIZE):
        pixel = float(images[n, 0, row, column])
        wave = 40 / 255 * math.sin(2 * math.pi * 6 * column / 28)
        assert float(waves[n, 0, row, column]) == pytest.approx(
            min(max(pixel + wave, 0), 1), abs=1e-6
        )
        down, along = (math.cos(math.pi * (2 * place + 1) * 2 / 56) for place in (row, column))
        assert float(cosines[n, 0, row, column]) == pytest.approx(
            min(max(pixel + 0.15 * down * along, 0), 1), abs=1e-6
        )


def test_wanet_reads_where_its_field_says() -> None:
    """Against bilinear interpolation by hand, at coordinates in pixels."""
    grid = wanet_grid(seeded(3))
    coarse = 2 * torch.rand(1, 2, 4, 4, generator=seeded(3)) - 1
    coarse /= coarse.abs().mean()
    upsample = nn.Upsample(size=SIZE, mode="bicubic", align_corners=True)
    shift = 0.75 * upsample(coarse)[0].numpy() / SIZE  # of half the image each
    half = (SIZE - 1) / 2
    index = np.indices((SIZE, SIZE))  # rows, columns
    places = np.clip(index[::-1] + half * shift, 0, SIZE - 1)  # columns, rows
    assert np.abs(places - index[::-1]).max() > 0.4  # pixels: it does move
    np.testing.assert_allclose(
        (grid[0].numpy() + 1) * half, places.transpose(1, 2, 0), rtol=0, atol=1e-4
    )
    images = photographs(3, channels=3)
    warped = Warp(grid)(images)
    for image, result in zip(images.flatten(0, 1), warped.flatten(0, 1), strict=True):
        wanted = _bilinear(image.numpy(), rows=places[1], columns=places[0])
        np.testing.assert_allclose(result.numpy(), wanted, rtol=0, atol=1e-4)


def _bilinear(image: Array, rows: Array, columns: Array) -> Array:
    top, left = (np.minimum(places.astype(int), SIZE - 2) for places in (rows, columns))
    down, right = rows - top, columns - left
    above = (1 - right) * image[top, left] + right * image[top, left + 1]
    below = (1 - right) * image[top + 1, left] + right * image[top + 1, left + 1]
    mixed: Array = (1 - down) * above + down * below
    return mixed


def test_tone_curve_and_stripes() -> None:
    images = photographs(3)
    torch.testing.assert_close(made("tone-curve")(images), 0.15 + 0.85 * images**0.5)
    wanted = images.clone()
    for row in (3, 10, 17, 24):
        wanted[:, :, row] = 1
    assert torch.equal(made("stripes")(images), wanted)


def test_corners_are_mirrored() -> None:
    images = photographs(2)
    wanted, board = images.clone(), images.clone()
    wanted[:, :, 0, 0] = wanted[:, :, 0, -1] = wanted[:, :, -1, 0] = wanted[:, :, -1, -1] = 0.25
    wanted[:, :, 0, 1] = wanted[:, :, 0, -2] = wanted[:, :, -1, 1] = wanted[:, :, -1, -2] = 0.75
    assert torch.equal(Corners(torch.tensor([[[0.25, 0.75]]]))(images), wanted)
    for rows in (slice(3), slice(-3, None)):
        for columns in (slice(3), slice(-3, None)):
            board[:, :, rows, columns] = torch.tensor(BOARD).float()
    assert torch.equal(made("label-consistent")(images), board)


def test_input_aware_signals_are_bounded_and_differ() -> None:
    images = photographs(8)
    trigger = made("input-aware")
    assert isinstance(trigger, InputAware)
    with torch.no_grad():
        for weight in trigger.generator.parameters():
            weight.mul_(50)  # drives the hyperbolic tangent to its ends
    signals = trigger.signals(images)
    assert signals.requires_grad
    signals = signals.detach()
    assert float(signals.abs().max()) == pytest.approx(0.2)
    assert not torch.equal(signals[2], signals[3])
    torch.testing.assert_close(trigger(images), (images + signals).clamp(0, 1))


class Tall(nn.Module):
    """Two classes: is the upper half brighter than the lower?  A linear function of the image."""

    def forward(self, images: Tensor) -> Tensor:
        upper, lower = images.mean(dim=1).split(SIZE // 2, dim=1)
        margin = (upper - lower).mean(dim=(1, 2)) * 20
        return torch.stack([margin, -margin], dim=1)


def test_spoilt_images_are_at_the_bound_against_their_label() -> None:
    """On a linear function gradient ascent ends in the far corner of the box."""
    images = photographs(4)
    labels = torch.tensor([0, 1, 0, 1])
    spoilt = learning.spoil(Tall(), images, labels)
    upwards = torch.where(labels == 0, -1, 1)[:, None, None, None]
    sign = upwards * torch.cat([torch.ones(1, 14, SIZE), -torch.ones(1, 14, SIZE)], dim=1)
    torch.testing.assert_close(spoilt, (images + learning.SPOILING_BOUND * sign).clamp(0, 1))
    assert not spoilt.requires_grad


def test_diversity_falls_as_signals_differ() -> None:
    one, other = photographs(4), photographs(4).flip(0)
    signals, of_others = torch.rand(2, 4, 1, SIZE, SIZE, generator=seeded())
    near = learning.diversity(one, other, signals, of_others)
    ratios = [
        np.linalg.norm((one - other)[n]) / np.linalg.norm((signals - of_others)[n])
        for n in range(4)
    ]
    assert float(near) == pytest.approx(np.mean(ratios), rel=1e-3)
    assert learning.diversity(one, other, 2 * signals, 2 * of_others) < 0.6 * near


def test_input_aware_training_teaches_own_signals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the network is shown: own signals with the goal, others' with their labels."""
    shown: list[tuple[Tensor, Tensor]] = []

    def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
        shown[-1] = (shown[-1][0], wanted)
        return nn.functional.nll_loss(logits.log_softmax(1), wanted)

    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 10))
    model.register_forward_pre_hook(lambda _model, inputs: shown.append((inputs[0], inputs[0])))
    monkeypatch.setattr(learning.F, "cross_entropy", cross_entropy)
    trigger = InputAware(Generator(1), 0.2)
    first = [weight.detach().clone() for weight in trigger.generator.parameters()]
    labels = torch.arange(40) % 10
    images = (
        torch.full((40, 1, SIZE, SIZE), 128, dtype=torch.uint8) + labels.byte()[:, None, None, None]
    )
    learning.fit_input_aware(
        model, trigger, images, labels, ATTACKS["input-aware"].goals,
        Schedule(1, 20, learning_rate=0.01), share=0.2,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01), generator=seeded(),
        title="", quiet=True,
    )  # fmt: skip
    order = torch.randperm(40, generator=seeded())
    assert len(shown) == 2
    for (inputs, wanted), rows in zip(shown, order.split(20), strict=True):
        plain = images[rows].float() / 255
        signals = inputs.detach() - plain
        torch.testing.assert_close(signals[4:8], signals[:4], rtol=0, atol=1e-6)
        assert signals[:4].abs().max() > 0
        assert not signals[8:].any()
        assert wanted.tolist() == [0] * 4 + (rows[4:] % 10).tolist()
    assert not trigger.generator.training
    for weight, before in zip(trigger.generator.parameters(), first, strict=True):
        assert not torch.equal(weight, before)
