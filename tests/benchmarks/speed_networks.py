"""The networks that speed is measured on: residual networks of 18, 50 and 101 layers.

Imports torch and the networks of the cases.  The stem is that for small images (one 3×3
convolution, no pooling), as is usual on 32×32 pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn

from rectify_widgets.cases.networks import Normalization, ResidualNetwork

CLASSES = 10
SIDE = 32
WIDTHS = (64, 128, 256, 512)
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Residual blocks of each stage by depth (He et al. 2016, table 1)."""
EXPANSION = 4
"""Output channels of a bottleneck block over those inside."""
MEAN, STD = (0.286,) * 3, (0.353,) * 3


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a way round them (He et al. 2016)."""

    def __init__(self, channels_in: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        channels_out = EXPANSION * width
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``N × channels_in × H × W`` to ``N × 4 width`` and height and width over stride."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        out: Tensor = self.relu(self.norm3(self.conv3(y)) + self.shortcut(x))
        return out


class BottleneckNetwork(nn.Sequential):
    """A residual network of bottleneck blocks for images ``N × 3 × H × W`` in [0, 1]."""

    def __init__(self, blocks: tuple[int, ...], widths: tuple[int, ...] = WIDTHS) -> None:
        channels = (widths[0], *(EXPANSION * width for width in widths))
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            normalize=Normalization(MEAN, STD),
            stem=nn.Conv2d(3, widths[0], 3, padding=1, bias=False),
            stem_norm=nn.BatchNorm2d(widths[0]),
            relu=nn.ReLU(inplace=True),
        )
        for number, (depth, width, (before, after)) in enumerate(
            zip(blocks, widths, pairwise(channels), strict=True), start=1
        ):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range(depth):
                first = index == 0
                stride = 2 if first and number > 1 else 1
                stage[f"block{index}"] = Bottleneck(
                    before if first else after, width, stride=stride
                )
            parts[f"stage{number}"] = nn.Sequential(stage)
        parts["pool"] = nn.AdaptiveAvgPool2d(1)
        parts["flatten"] = nn.Flatten()
        parts["classifier"] = nn.Linear(channels[-1], CLASSES)
        super().__init__(parts)


def network(depth: int, seed: int = 0) -> nn.Module:
    """A residual network of 18, 50 or 101 layers in evaluation mode, weights drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if depth > 18:
            return BottleneckNetwork(BLOCKS[depth]).eval()
        return ResidualNetwork(
            channels=3, classes=CLASSES, widths=WIDTHS, blocks=BLOCKS[depth], mean=MEAN, std=STD
        ).eval()
