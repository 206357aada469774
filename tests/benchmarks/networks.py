"""Networks that the engine was never tuned on.  Imports torch and the residual network of the cases.

Four kinds of what people hand in: convolutions without batch norm, no convolution at all, tokens
and attention, and a deeper residual network for colour.  All take ``N × C × H × W`` in [0, 1] and
give ``N × classes`` logits; ``size`` is the height and width of their input in pixels.  Speed and
memory are measured on `resnet`.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets.cases.networks import Normalization, ResidualNetwork

GREY_MEAN, GREY_STD = (0.13,), (0.31,)
"""MNIST's."""
MLP_WIDTHS = (256, 128, 64)
"""Of the hidden layers."""
RESNET_WIDTHS = (64, 128, 256, 512)
RESNET_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Residual blocks of each stage by depth (He et al. 2016, table 1)."""
EXPANSION = 4
"""Output channels of a bottleneck block over those inside."""


def plain_cnn(*, channels: int = 1, size: int = 28, classes: int = 10) -> nn.Module:
    """Four convolutions and two linear layers, with biases and without any normalisation layer."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, 5, padding=2),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(32, 48, 3, padding=1),
            relu3=nn.ReLU(inplace=True),
            conv4=nn.Conv2d(48, 48, 3, stride=2, padding=1),
            relu4=nn.ReLU(inplace=True),
            flatten=nn.Flatten(),
            hidden=nn.Linear(48 * ((size // 4 + 1) // 2) ** 2, 128),
            relu5=nn.ReLU(inplace=True),
            classifier=nn.Linear(128, classes),
        )
    )


def mlp(*, channels: int = 1, size: int = 28, classes: int = 10) -> nn.Module:
    """Linear layers on the flattened input."""
    widths = (channels * size**2, *MLP_WIDTHS)
    layers = ((str(i), nn.Linear(*both)) for i, both in enumerate(pairwise(widths)))
    relus = ((f"relu{i}", nn.ReLU()) for i in range(len(MLP_WIDTHS)))
    return nn.Sequential(
        OrderedDict(
            normalize=Normalization(GREY_MEAN * channels, GREY_STD * channels),
            flatten=nn.Flatten(),
            hidden=nn.Sequential(OrderedDict(chain(*zip(layers, relus, strict=True)))),
            classifier=nn.Linear(MLP_WIDTHS[-1], classes),
        )
    )


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017), one fused layer for queries, keys, values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """``N × T × width`` to the same."""
        qkv = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv)
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
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
    """A vision transformer (Dosovitskiy et al. 2021): patches become tokens, their mean is read."""

    def __init__(self, *, channels: int = 1, size: int = 28, classes: int = 10) -> None:
        super().__init__()
        patch, width, heads, depth = 4, 64, 4, 4
        self.normalize = Normalization(GREY_MEAN * channels, GREY_STD * channels)
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``N × channels × size × size`` to ``N × classes``."""
        tokens = self.embed(self.normalize(images)).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


def colour_resnet(*, channels: int = 3, size: int = 28, classes: int = 10) -> nn.Module:
    """Three channels, nineteen 3×3 convolutions, two shortcuts and a linear layer; of any size."""
    del size
    return ResidualNetwork(
        channels=channels, classes=classes, blocks=(3, 3, 3), stem_stride=2,
        mean=(0.5,) * channels, std=(0.25,) * channels,
    )  # fmt: skip


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a way round them (He et al. 2016)."""

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()

        def conv(before: int, after: int, size: int, stride: int = 1) -> nn.Sequential:
            layer = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
            return nn.Sequential(OrderedDict(conv=layer, norm=nn.BatchNorm2d(after)))

        channels = EXPANSION * width
        self.first, self.second = conv(channels_in, width, 1), conv(width, width, 3, stride)
        self.third = conv(width, channels, 1)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else conv(channels_in, channels, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``N × channels_in × H × W`` to ``N × 4 width`` and height and width over stride."""
        y = self.third(self.relu(self.second(self.relu(self.first(x)))))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


def resnet(depth: int, seed: int = 0) -> nn.Module:
    """A residual network of 18, 50 or 101 layers in evaluation mode, weights drawn from ``seed``.

    The stem is that for images of 32×32 pixels, one 3×3 convolution and no pooling.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = RESNET_BLOCKS[depth]
        model = ResidualNetwork(
            channels=3, widths=RESNET_WIDTHS, blocks=blocks if depth == 18 else (1,) * 4,
            mean=(0.286,) * 3, std=(0.353,) * 3,
        )  # fmt: skip
        if depth > 18:
            channels = RESNET_WIDTHS[0]
            for number, (width, count) in enumerate(zip(RESNET_WIDTHS, blocks, strict=True), 1):
                stage: OrderedDict[str, nn.Module] = OrderedDict()
                for index in range(count):
                    stride = 2 if index == 0 and number > 1 else 1
                    stage[f"block{index}"] = Bottleneck(channels, width, stride)
                    channels = EXPANSION * width
                setattr(model, f"stage{number}", nn.Sequential(stage))
            model.classifier = nn.Linear(channels, model.classifier.out_features)
        return model.eval()
