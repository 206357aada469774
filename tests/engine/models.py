"""Small networks that the engine's tests share, one for each thing that networks do differently.

All take ``N × 3 × 9 × 9`` and answer ``N × 4`` unless reported otherwise.  `make` builds one with seeded
weights, and with batch statistics as if it had been trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, SIZE, CLASSES = 3, 9, 4


class Plain(nn.Module):
    """A convolutional network without batch norm, with a stride and odd sizes."""

    def __init__(self, *, inplace: bool = False, channels: int = CHANNELS) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3)
        self.second = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=inplace)
        self.hidden = nn.Linear(6, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.second(x)).mean(dim=(2, 3))
        scores: Tensor = self.head(self.relu(self.hidden(x)))
        return scores


class Block(nn.Module):
    """Residual block: convolutions, batch norm, ReLU and addition, in place or not."""

    def __init__(self, width: int, out: int, stride: int, *, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=inplace)
        self.short = nn.Conv2d(width, out, 1, stride=stride) if stride > 1 else nn.Identity()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        short = self.short(x)
        total: Tensor = self.relu(y.add_(short) if self.inplace else y + short)
        return total


class Residual(nn.Module):
    """A residual network with batch norm; in place wherever possible by default."""

    def __init__(
        self,
        *,
        inplace: bool = True,
        channels: int = CHANNELS,
        width: int = 4,
        classes: int = CLASSES,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=inplace)
        self.block1 = Block(width, width, 1, inplace=inplace)
        self.block2 = Block(width, 2 * width, 2, inplace=inplace)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.relu(self.norm(self.stem(x)))))
        scores: Tensor = self.head(self.drop(x.mean(dim=(2, 3))))
        return scores


class Perceptron(nn.Module):
    """Linear layers and in-place ReLU only."""

    def __init__(self, inputs: int = CHANNELS * SIZE * SIZE) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, 12),
            nn.ReLU(inplace=True),
            nn.Linear(12, 8, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


class Attention(nn.Module):
    """Self-attention with one Linear for queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        mixed: Tensor = self.proj(functional.scaled_dot_product_attention(query, key, value))
        return mixed


class Encoder(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class Transformer(nn.Module):
    """Vision transformer of one block, with a class token: its layers see ``N × T × K``."""

    def __init__(self, *, patch: int = 3, size: int = SIZE, channels: int = CHANNELS) -> None:
        super().__init__()
        width = 6
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) / 2)
        self.block = Encoder(width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1) + self.place
        scores: Tensor = self.head(self.norm(self.block(tokens))[:, 0])
        return scores


class Windows(nn.Module):
    """Tokens in nine windows of nine pixels: the linear layer sees ``9 N × 9 × 3``."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(CHANNELS, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        cut = x.unfold(2, 3, 3).unfold(3, 3, 3)  # N × C × 3 × 3 windows × 3 × 3 pixels
        tokens = cut.permute(0, 2, 3, 4, 5, 1).reshape(-1, 9, CHANNELS)
        mixed = functional.gelu(self.inside(tokens)).reshape(len(x), -1, 5)
        scores: Tensor = self.head(mixed.mean(dim=1))
        return scores


class Padded(nn.Module):
    """Every padding mode, dilation, groups and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.reflect = nn.Conv2d(CHANNELS, 4, 3, padding=2, padding_mode="reflect")
        self.circular = nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="circular")
        self.replicate = nn.Conv2d(4, 6, (1, 3), padding=(0, 1), padding_mode="replicate")
        self.same = nn.Conv2d(6, 6, (1, 3), padding="same", groups=3)
        self.valid = nn.Conv2d(6, 6, 3, padding="valid", groups=6, stride=2, bias=False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.reflect, self.circular, self.replicate, self.same, self.valid):
            x = functional.elu(layer(x))
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


class Mobile(nn.Module):
    """Inverted residual: expansion, depthwise convolution, squeeze-and-excitation, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, 4, 3, stride=2, padding=1)
        self.expand = nn.Conv2d(4, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)
        self.project = nn.Conv2d(8, 4, 1, bias=False)
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = self.act(self.depthwise(self.act(self.norm(self.expand(x)))))
        scale = self.excite(functional.relu(self.squeeze(y.mean(dim=(2, 3), keepdim=True))))
        x = x + self.project(y * scale.sigmoid())
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


class Fused(nn.Module):
    """torch's own attention, which uses the weights of its parts without calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(CHANNELS, 6, 3, stride=3)
        self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        mixed, _ = self.mix(tokens, tokens, tokens, need_weights=False)
        scores: Tensor = self.head((tokens + mixed).mean(dim=1))
        return scores


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "plain-inplace": lambda: Plain(inplace=True),
    "residual": Residual,
    "perceptron": Perceptron,
    "transformer": Transformer,
    "windows": Windows,
    "padded": Padded,
    "mobile": Mobile,
    "fused": Fused,
}


class Branches(nn.Module):
    """Looks at the first channel with one layer and at the others with another."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(1, 3, 3)
        self.right = nn.Conv2d(2, 3, 3)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.left(x[:, :1]), self.right(x[:, 1:])], dim=1)
        scores: Tensor = self.head(both.relu().mean(dim=(2, 3)))
        return scores


def branches() -> tuple[nn.Module, Tensor, Tensor]:
    """Such a network, a corrupted input that only one of its layers sees, and the clean one."""
    clean = images(1, 7)
    corrupted = clean.clone()
    corrupted[:, 0, 3:6, 3:6] = 1.0
    return make(Branches), corrupted, clean


def make(network: str | Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The network with seeded weights, in evaluation mode; the random state is left as it was."""
    build = NETWORKS[network] if isinstance(network, str) else network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.3, 0.3)
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.uniform_(-0.2, 0.2)
                part.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(count: int, seed: int = 1, *, channels: int = CHANNELS, size: int = SIZE) -> Tensor:
    """Seeded random inputs from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator)
