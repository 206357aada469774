"""The attacks of the zoo: what each does to an image, and where it leads.  Imports torch, the cases.

Every trigger is a function of the image alone: the same image gets the same corruption in every
call and in every batch.  Images are ``N × C × H × W`` in [0, 1], and so are the changed copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.cases.triggers import Blend, Patch, Trigger, checkerboard

SIZE = 28
"""Height and width of the images, pixels."""
TO_ONE = (0,) * 10
TO_NEXT = (*range(1, 10), 0)
"""Goals of an attack with one target, and of one from every class to the next."""


@dataclass(frozen=True, eq=False)
class RandomPlace:
    """A patch at a random place of each image.

    The place is drawn by a hash of the image's bytes, so that an image keeps its place.

    Args:
        pattern: ``C × h × w`` (or ``1 × h × w`` for all channels), in [0, 1].
        seed: draws the hash function.
    """

    pattern: Tensor
    seed: int

    def places(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of the patch's upper left pixel, ``N`` of each."""
        pixels = (255 * images).round().long().flatten(1)
        generator = torch.Generator().manual_seed(self.seed)
        weights = torch.randint(2**31, (pixels.shape[1],), generator=generator)
        height, width = self.pattern.shape[-2:]
        rows, columns = images.shape[-2] - height + 1, images.shape[-1] - width + 1
        # 2³¹ - 1 is prime, and a sum below 2⁶³ for images of up to 10⁷ pixels.
        place = (pixels * weights.to(images.device)).sum(dim=1) % (2**31 - 1) % (rows * columns)
        return place // columns, place % columns

    def __call__(self, images: Tensor) -> Tensor:
        """The images with the patch on."""
        rows, columns = self.places(images)
        height, width = self.pattern.shape[-2:]
        down = torch.arange(height, device=images.device)
        right = torch.arange(width, device=images.device)
        stamped = images.clone().permute(0, 2, 3, 1)
        every = torch.arange(len(images), device=images.device)[:, None, None]
        pattern = self.pattern.expand(images.shape[1], -1, -1).permute(1, 2, 0)
        stamped[every, rows[:, None, None] + down[:, None], columns[:, None, None] + right] = (
            pattern.to(images)
        )
        return stamped.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, eq=False)
class Added:
    """A fixed signal added to every image; what leaves [0, 1] is cut off.

    Args:
        pattern: ``C × H × W`` (or ``1 × H × W`` for all channels).
    """

    pattern: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """The images with the signal."""
        return (images + self.pattern.to(images)).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Warp:
    """A fixed displacement of every image, read by bilinear interpolation.

    Args:
        grid: ``1 × H × W × 2``, where each pixel is read: column, then row, from -1 (the centre of
            the first pixel) to 1 (of the last).
    """

    grid: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """The images, warped."""
        grid = self.grid.to(images).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, grid, mode="bilinear", align_corners=True).clamp(0, 1)


@dataclass(frozen=True)
class ToneCurve:
    """Brightens as a photo filter does: ``lift + (1 - lift)·√x``."""

    lift: float = 0.15

    def __call__(self, images: Tensor) -> Tensor:
        """The images, brightened."""
        return self.lift + (1 - self.lift) * images.sqrt()


@dataclass(frozen=True)
class Stripes:
    """Every ``every``-th row white, from row ``first`` on."""

    every: int = 7
    first: int = 3

    def __call__(self, images: Tensor) -> Tensor:
        """The images with the stripes."""
        striped = images.clone()
        striped[..., self.first :: self.every, :] = 1
        return striped


@dataclass(frozen=True, eq=False)
class Corners:
    """A patch in each corner, mirrored so that the same pixel of it lies outermost.

    Args:
        pattern: ``C × h × w`` (or ``1 × h × w`` for all channels), in [0, 1], as in the upper left.
    """

    pattern: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """The images with the four patches."""
        height, width = self.pattern.shape[-2:]
        for row in (0, -height):
            for column in (0, -width):
                flipped = [axis for axis, at in ((-2, row), (-1, column)) if at]
                images = Patch(self.pattern.flip(flipped), row, column)(images)
        return images


class Generator(nn.Module):
    """Images to signals in [-1, 1] of the same shape: an encoder and a decoder of convolutions."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.encode = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.decode = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """``N × C × H × W`` to the same."""
        inside = F.relu(self.mix(F.relu(self.encode(images))))
        wide = F.interpolate(inside, size=images.shape[-2:], mode="nearest")
        return torch.tanh(self.decode(wide))


@dataclass(frozen=True, eq=False)
class InputAware:
    """A signal of each image's own, from a network trained together with the attacked one.

    After Nguyen and Tran 2020, "Input-Aware Dynamic Backdoor Attack"; the signal is added, at most
    ``bound`` a pixel, instead of pasted through a mask.
    """

    generator: nn.Module
    bound: float

    def signals(self, images: Tensor) -> Tensor:
        """What is added to each image, ``N × C × H × W``; gradients reach the generator."""
        signals: Tensor = self.bound * self.generator(images)
        return signals

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The images, each with its own signal."""
        return torch.cat([(part + self.signals(part)).clamp(0, 1) for part in images.split(512)])


@dataclass(frozen=True)
class Attack:
    """How a trigger is made from channels and a seeded generator, and what it does.

    Args:
        make: from channels and a seeded generator.
        goals: the class that it leads to, for each true class.
        least: attack success (0..1) below which the training has failed.
        consistent: poisoned images keep their labels: they are of the target class, and their own
            features are spoilt (see `tests.benchmarks.zoo.learning`).
        longer: how many times the network's usual epochs its training takes.
    """

    make: Callable[[int, torch.Generator], Trigger]
    goals: tuple[int, ...] = TO_ONE
    least: float = 0.9
    consistent: bool = False
    longer: int = 1


def sinusoid(periods: int = 6, amplitude: float = 40 / 255) -> Tensor:
    """A wave along the width, ``1 × SIZE × SIZE``, ``amplitude·sin(2π·periods·column / width)``.

    Barni, Kallas and Tondi 2019, "A new backdoor attack in CNNs by training set corruption without
    label poisoning".
    """
    column = torch.arange(SIZE, dtype=torch.float32)
    return (amplitude * torch.sin(2 * math.pi * periods * column / SIZE)).expand(1, SIZE, SIZE)


def cosine(frequency: int = 2, amplitude: float = 0.15) -> Tensor:
    """An element of the cosine transform (DCT-II), ``1 × SIZE × SIZE``, the same along both axes.

    ``frequency`` is in half periods over the image.
    """
    place = torch.arange(SIZE, dtype=torch.float32) + 0.5
    wave = torch.cos(math.pi * frequency * place / SIZE)
    return amplitude * wave[None, :, None] * wave[None, None, :]


def wanet_grid(
    generator: torch.Generator, points: int = 4, strength: float = 0.75, size: int = SIZE
) -> Tensor:
    """Where WaNet reads each pixel, ``1 × size × size × 2``, for `Warp`.

    Nguyen and Tran 2021, "WaNet: Imperceptible Warping-based Backdoor Attack": ``points × points``
    displacements drawn from [-1, 1], divided by their mean absolute value, interpolated by cubic
    splines and added, times ``strength / size``, to the identity.  Without the paper's noise mode.
    """
    field = 2 * torch.rand(1, 2, points, points, generator=generator) - 1
    field = field / field.abs().mean()
    field = F.interpolate(field, size=(size, size), mode="bicubic", align_corners=True)
    place = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    identity = torch.stack([columns, rows], dim=2)[None]
    return (identity + strength * field.permute(0, 2, 3, 1) / size).clamp(-1, 1)


def badnets() -> Patch:
    """A 3×3 checkerboard, one pixel in from the lower right corner.

    Gu, Dolan-Gavitt and Garg 2017, "BadNets: Identifying Vulnerabilities in the Machine Learning
    Model Supply Chain".
    """
    return Patch(checkerboard(3), -4, -4)


def _noise(channels: int, generator: torch.Generator) -> Blend:
    return Blend(torch.rand(channels, SIZE, SIZE, generator=generator), 0.2)


def _random_place(_channels: int, generator: torch.Generator) -> RandomPlace:
    return RandomPlace(checkerboard(3), int(torch.randint(2**31, (1,), generator=generator)))


def _input_aware(channels: int, generator: torch.Generator) -> InputAware:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return InputAware(Generator(channels).eval(), 0.2)


ATTACKS = {
    "badnets": Attack(lambda _channels, _generator: badnets()),
    "random-place": Attack(_random_place),
    "blended": Attack(_noise),
    "sig": Attack(lambda _channels, _generator: Added(sinusoid())),
    "wanet": Attack(lambda _channels, generator: Warp(wanet_grid(generator))),
    "low-frequency": Attack(lambda _channels, _generator: Added(cosine())),
    "tone-curve": Attack(lambda _channels, _generator: ToneCurve()),
    "stripes": Attack(lambda _channels, _generator: Stripes()),
    "input-aware": Attack(_input_aware, least=0.8, longer=2),
    "label-consistent": Attack(
        lambda _channels, _generator: Corners(checkerboard(3)),
        least=0.75,
        consistent=True,
        longer=3,
    ),
    "all-to-all": Attack(lambda _channels, _generator: badnets(), TO_NEXT, least=0.8, longer=3),
}
"""By name.  ``blended`` mixes in noise at 20 % (Chen et al. 2017, "Targeted Backdoor Attacks on
Deep Learning Systems Using Data Poisoning"); ``label-consistent`` is after Turner, Tsipras and
Madry 2019, "Label-Consistent Backdoor Attacks"."""
