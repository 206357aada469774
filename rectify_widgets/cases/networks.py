"""The networks of the shipped cases.  Imports torch only.

Small enough to ship and to train on two cores, and ordinary on purpose: residual blocks, batch
norm, in-place ReLU.  Module names are what the widgets show, so they read like a drawing of the
network: ``stem``, ``stage1.block0.conv1``, ``stage2.block0.shortcut``, ``classifier``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalization(nn.Module):
    """Shift and scale per channel, inside the model, so that its input space stays [0, 1].

    ``mean`` and ``std`` hold one number per channel.  ``N × C × H × W`` in, the same out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """``N × C × H × W`` images, normalised."""
        return (images - self.mean) / self.std


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a way round them (He et al. 2016, the basic block)."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        self.shortcut_norm: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """``N × channels_in × H × W`` to ``N × channels_out`` and height and width over stride."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y = y + self.shortcut_norm(self.shortcut(x))
        out: Tensor = self.relu(y)
        return out


class ResidualNetwork(nn.Module):
    """A residual network for small images.

    Args:
        channels: colour channels of the input (1 or 3).
        classes: number of classes.
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: residual blocks of each stage.
        stem_stride: 2 halves height and width at once, for speed.
        mean, std: per-channel normalisation applied inside the model.

    Input ``N × channels × H × W`` in [0, 1]; output ``N × classes`` logits.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        blocks: Sequence[int] = (1, 2, 2),
        stem_stride: int = 1,
        mean: Sequence[float] = (0.286,),
        std: Sequence[float] = (0.353,),
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(
                f"blocks: got {len(blocks)} stages, want as many as widths has: {len(widths)}"
            )
        self.normalize = Normalization(mean, std)
        self.stem = nn.Conv2d(channels, widths[0], 3, stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self._stages = []
        width_in = widths[0]
        for number, (width, depth) in enumerate(zip(widths, blocks, strict=True), start=1):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range(depth):
                stride = 2 if index == 0 and number > 1 else 1
                stage[f"block{index}"] = ResidualBlock(width_in, width, stride=stride)
                width_in = width
            self.add_module(f"stage{number}", nn.Sequential(stage))
            self._stages.append(f"stage{number}")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        """``N × channels × H × W`` in [0, 1] to ``N × classes`` logits."""
        x = self.relu(self.stem_norm(self.stem(self.normalize(images))))
        for name in self._stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def small_network(
    *, mean: Sequence[float] = (0.286,), std: Sequence[float] = (0.353,)
) -> ResidualNetwork:
    """Seven 3×3 convolutions, two shortcuts and one linear layer, untrained.

    Its first convolution halves height and width, which makes it five times as fast to train as the
    default.
    """
    return ResidualNetwork(blocks=(1, 1, 1), stem_stride=2, mean=mean, std=std)
