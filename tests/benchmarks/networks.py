"""Networks that the engine was never tuned on.  Imports torch and the residual network of the cases.

Four kinds of what people hand in: convolutions without batch norm, no convolution at all, tokens
and attention, and a deeper residual network for colour.  All take ``N × C × H × W`` in [0, 1] and
give ``N × classes`` logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.cases.networks import Normalization, ResidualNetwork

GREY_MEAN, GREY_STD = (0.13,), (0.31,)
"""MNIST's."""


class PlainCNN(nn.Module):
    """Four convolutions and two linear layers, with biases and without any normalisation layer.

    ``size`` is the height and width of the input in pixels, a multiple of four.
    """

    def __init__(self, *, channels: int = 1, size: int = 28, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 48, 3, padding=1)
        self.conv4 = nn.Conv2d(48, 48, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        rest = (size // 4 + 1) // 2
        self.hidden = nn.Linear(48 * rest**2, 128)
        self.classifier = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``N × channels × size × size`` to ``N × classes``."""
        x = self.pool(self.relu(self.conv1(images)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.conv4(self.relu(self.conv3(x))))
        x = self.relu(self.hidden(x.flatten(1)))
        logits: Tensor = self.classifier(x)
        return logits


class MLP(nn.Module):
    """Linear layers on the flattened input; ``widths`` are those of the hidden layers."""

    def __init__(
        self,
        *,
        channels: int = 1,
        size: int = 28,
        classes: int = 10,
        widths: Sequence[int] = (256, 128, 64),
    ) -> None:
        super().__init__()
        self.normalize = Normalization(GREY_MEAN * channels, GREY_STD * channels)
        self.hidden = nn.ModuleList()
        width_in = channels * size**2
        for width in widths:
            self.hidden.append(nn.Linear(width_in, width))
            width_in = width
        self.classifier = nn.Linear(width_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``N × channels × size × size`` to ``N × classes``."""
        x = self.normalize(images).flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        logits: Tensor = self.classifier(x)
        return logits


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), one fused layer for queries, keys, values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``N × T × width`` to the same."""
        number, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(number, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(number, count, width))
        return out


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and with a way round it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``N × T × width`` to the same."""
        tokens = tokens + self.attention(self.norm1(tokens))
        out: Tensor = tokens + self.contract(F.gelu(self.expand(self.norm2(tokens))))
        return out


class TinyViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021): patches become tokens, their mean is read.

    ``size`` is the height and width of the input in pixels, a multiple of ``patch``.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: int = 28,
        classes: int = 10,
        patch: int = 4,
        width: int = 64,
        heads: int = 4,
        depth: int = 4,
    ) -> None:
        super().__init__()
        self.normalize = Normalization(GREY_MEAN * channels, GREY_STD * channels)
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``N × channels × size × size`` to ``N × classes``."""
        tokens = self.embed(self.normalize(images)).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.classifier(self.norm(tokens).mean(dim=1))
        return logits


class ColourResNet(ResidualNetwork):
    """Three channels, nineteen 3×3 convolutions, two shortcuts and a linear layer."""

    def __init__(self, *, channels: int = 3, size: int = 28, classes: int = 10) -> None:
        del size  # any will do
        super().__init__(
            channels=channels,
            classes=classes,
            blocks=(3, 3, 3),
            stem_stride=2,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
        )
