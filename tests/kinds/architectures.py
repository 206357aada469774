"""Networks of every architecture that image classifiers have, a few hundred weights each.

Imports torch and the package.  Importing it adds the kinds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.engine import models
from tests.engine.building_blocks import BLOCKS
from tests.engine.traces import Experts
from tests.kinds.scene import CLASSES, kind
from tests.kinds.variants import Small


class Pooled(nn.Module):
    """A body between a stem and a linear head behind global pooling."""

    def __init__(self, *body: nn.Module, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu())
        scores: Tensor = self.head(x.relu().amax(dim=tuple(range(2, x.ndim))))
        return scores


class Stacked(nn.Module):
    """Two layers by turns with themselves, which is one layer that is used three times."""

    def __init__(self, part: nn.Module, times: int) -> None:
        super().__init__()
        self.part, self.times = part, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.part(x).relu()
        return x


class Shape(nn.Module):
    """Any function as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator, no-any-return]


def tied() -> nn.Module:
    """Two convolutions with one weight."""
    model = Pooled(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3))
    model.body[2].weight = model.body[0].weight
    return model


for name, body in {
    "group norm": lambda: Pooled(nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 3)),
    "instance norm": lambda: Pooled(nn.InstanceNorm2d(6, affine=True), nn.Conv2d(6, 6, 3)),
    "layer norm over the image": lambda: Pooled(nn.LayerNorm([6, 8, 8]), nn.Conv2d(6, 6, 3)),
    "local response norm": lambda: Pooled(nn.LocalResponseNorm(3), nn.Conv2d(6, 6, 3)),
    "grouped": lambda: Pooled(nn.Conv2d(6, 6, 3, groups=3)),
    "depthwise and pointwise": lambda: Pooled(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, 1)),
    "dilated": lambda: Pooled(nn.Conv2d(6, 6, 3, dilation=2, padding=2)),
    "circular padding": lambda: Pooled(nn.Conv2d(6, 6, 3, padding=1, padding_mode="circular")),
    "transposed": lambda: Pooled(nn.ConvTranspose2d(6, 6, 2, stride=2), nn.Conv2d(6, 6, 3)),
    "1d over rows": lambda: Pooled(nn.Flatten(2), nn.Conv1d(6, 6, 5), nn.ReLU()),
    "3d over channels": lambda: Pooled(nn.Unflatten(1, (1, 6)), nn.Conv3d(1, 6, 3), nn.ReLU()),
    "bilinear": lambda: Pooled(Outer(6), nn.Conv2d(6, 6, 3)),
    "a spectrum": lambda: Pooled(
        Shape(lambda x: torch.fft.rfft2(x).abs().log1p()), nn.Conv2d(6, 6, 3)
    ),
    "pixel shuffle": lambda: Pooled(nn.Conv2d(6, 24, 1), nn.PixelShuffle(2), nn.Conv2d(6, 6, 3)),
    "maxout": lambda: Pooled(nn.Conv2d(6, 12, 3), Shape(lambda x: x.unflatten(1, (6, 2)).amax(2))),
    "tied weights": tied,
    "a layer used three times": lambda: Pooled(Stacked(nn.Conv2d(6, 6, 3, padding=1), 3)),
    "attention over the image": lambda: Pooled(Attended(6)),
    "stochastic depth": lambda: Pooled(Deep(6)).train(),
}.items():
    kind(name, body, centred=True)


class Outer(nn.Module):
    """torch's bilinear layer at every pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pair = nn.Bilinear(width, width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        mixed: Tensor = self.pair(x, x).movedim(-1, 1)
        return mixed


class Attended(nn.Module):
    """Weighs pixels by a linear layer with the channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ask = nn.Linear(width, width)
        self.give = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).mT
        weights = (self.ask(rows) @ rows.mT / 2.5).softmax(dim=-1)
        mixed: Tensor = x + (weights @ self.give(rows)).mT.reshape(x.shape)
        return mixed


class Deep(nn.Module):
    """A residual branch that training leaves out for some samples."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(len(x), 1, 1, 1) > 0.5 if self.training else 1.0
        total: Tensor = x + kept * self.branch(x)
        return total


# --- rows, tokens, experts -----------------------------------------------------------------------


class Recurrent(nn.Module):
    """Reads the rows of the image one after the other."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.rows = nn.Linear(24, 8)
        self.cell = cell(8, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x.permute(0, 2, 1, 3).flatten(2)).relu()
        scores: Tensor = self.head(self.cell(rows)[0][:, -1])
        return scores


class Words(nn.Module):
    """Looks up a vector for the brightness of every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        levels = (8 + 4 * x.mean(dim=1)).clamp(0, 15).long().flatten(1)
        tokens = self.mix(self.table(levels)).relu()
        scores: Tensor = self.head(tokens.amax(dim=1))
        return scores


class Mixer(nn.Module):
    """Perceptrons over patches and over channels by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, stride=2)
        self.across, self.along = nn.Linear(16, 16), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        x = x + functional.gelu(self.across(x))
        x = x.mT + functional.gelu(self.along(self.norm(x.mT)))
        scores: Tensor = self.head(x.mean(dim=1))
        return scores


class Adapter(nn.Module):
    """A frozen linear layer with a trained detour of low rank (LoRA)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(requires_grad=False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.base(x) + self.up(self.down(x))
        return total


@kind("low-rank adapters (LoRA)")
def _() -> nn.Module:
    model = Small()
    model.head = Adapter(model.head)  # type: ignore[assignment]
    return model


class Dense(nn.Module):
    """Every layer sees what all before it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = nn.Linear(15, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], dim=1)
        scores: Tensor = self.head(x.amax(dim=(2, 3)))
        return scores


class Noisy(nn.Module):
    """Adds noise of its own generator, the same in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Small()

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0))
        scores: Tensor = self.body(x + 0.1 * noise)
        return scores


kind("LSTM over rows", lambda: Recurrent(nn.LSTM), centred=True)
kind("GRU over rows", lambda: Recurrent(nn.GRU), centred=True)
kind("embedded levels", Words, centred=True)
kind("MLP-Mixer", Mixer, centred=True)
kind("mixture of experts", Experts, centred=True)
kind("dense connections", Dense, centred=True)
kind("noise of its own", Noisy)


# --- weight standardisation ----------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """Weights of zero mean and unit variance in every channel (Qiao et al. 2019, as in BiT)."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        weight = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)
        weight = weight.reshape(self.weight.shape)
        return functional.conv2d(
            x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Scaled(nn.Conv2d):
    """Standardised weights with a gain, scaled to keep the variance (Brock et al. 2021, NF-ResNet)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight[0].numel()
        weight = functional.batch_norm(
            self.weight.reshape(1, len(self.weight), -1), None, None, eps=1e-6, training=True,
            weight=(self.gain * size**-0.5).view(-1),
        ).reshape_as(self.weight)  # fmt: skip
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


kind("weight-standardised", lambda: Pooled(Standardised(6, 6, 3), nn.GroupNorm(2, 6)), centred=True)
kind(
    "scaled weight-standardised",
    lambda: Pooled(Scaled(6, 6, 3), nn.ReLU(), Scaled(6, 6, 3)),
    centred=True,
)


# --- those that other tests have -----------------------------------------------------------------


def seeded_network(name: str) -> Callable[[], nn.Module]:
    """What builds a network of ``tests/engine/models.py`` from the caller's random numbers."""
    return lambda: models.make(name, int(torch.randint(99, ())))


for name in models.NETWORKS:
    kind(f"{name} (9 × 9)", seeded_network(name), size=9, centred=name != "perceptron")
for name, block in BLOCKS.items():
    kind(f"{name} (12 × 12)", block.build, size=12, centred=True)
