"""Small networks of the blocks that real networks are made of, each written as those are.

All take ``N × 3 × 12 × 12`` and answer ``N × 4``.  `BLOCKS` holds what builds each, the layers that
can be edited in the order in which they run, and words of the reason for all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, SIZE, CLASSES, WIDTH = 3, 12, 4, 8


def conv_norm(inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1,
              act: nn.Module | None = None) -> nn.Sequential:  # fmt: skip
    """Convolution, batch norm and an activation, as torchvision's ``Conv2dNormActivation``."""
    padding = (kernel - 1) // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act or nn.Identity())


class Pooled(nn.Module):
    """Blocks between a stem and a linear head behind global pooling."""

    def __init__(self, *blocks: nn.Module, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(x).mean(dim=(2, 3)))
        return scores


class Shortcut(nn.Module):
    """Residual block with a projection on its shortcut; the sum and the ReLU are in place."""

    def __init__(self, branch: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        self.downsample = conv_norm(inputs, outputs, stride=stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += self.downsample(x)
        total: Tensor = self.relu(out)
        return total


def residual() -> nn.Module:
    """A basic block and a bottleneck, as in ResNet-18 and ResNet-50."""
    relu = nn.ReLU(inplace=True)
    basic = nn.Sequential(
        conv_norm(WIDTH, 12, 3, stride=2, act=relu),
        conv_norm(12, 12, 3),
    )
    bottleneck = nn.Sequential(
        conv_norm(12, 4, act=relu),
        conv_norm(4, 4, 3, stride=2, act=relu),
        conv_norm(4, 16),
    )
    return Pooled(
        conv_norm(CHANNELS, WIDTH, 3, act=relu),
        nn.MaxPool2d(3, 2, 1),
        Shortcut(basic, WIDTH, 12, 2),
        Shortcut(bottleneck, 12, 16, 2),
        width=16,
    )


class DropPath(nn.Module):
    """Stochastic depth: leaves whole samples out of a branch, in training alone."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        shape = (len(x), *[1] * (x.ndim - 1))
        return x * (torch.rand(shape, device=x.device) >= self.rate) / (1 - self.rate)


class SqueezeExcite(nn.Module):
    """Weighs channels by what the whole image holds."""

    def __init__(self, width: int, squeezed: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.act, self.gate = act, gate

    def forward(self, x: Tensor) -> Tensor:
        weighed: Tensor = x * self.gate(self.fc2(self.act(self.fc1(self.avgpool(x)))))
        return weighed


class Inverted(nn.Module):
    """Inverted residual: expand, depthwise, squeeze and excite, project; added where it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, act: type[nn.Module],
                 gate: type[nn.Module]) -> None:  # fmt: skip
        super().__init__()
        wide = 2 * inputs
        self.expand = conv_norm(inputs, wide, act=act())
        self.depthwise = conv_norm(wide, wide, kernel, stride=stride, groups=wide, act=act())
        self.squeeze = SqueezeExcite(wide, 4, nn.ReLU(), gate())
        self.project = conv_norm(wide, outputs)
        self.drop = DropPath(0.5)
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + self.drop(out) if self.added else out


def inverted() -> nn.Module:
    """One block as in MobileNetV3 and one as in EfficientNet."""
    return Pooled(
        conv_norm(CHANNELS, 4, 3, stride=2, act=nn.Hardswish()),
        Inverted(4, 6, 5, 2, nn.Hardswish, nn.Hardsigmoid),
        Inverted(6, 6, 3, 1, nn.SiLU, nn.Sigmoid),
        width=6,
    )


class NormChannels(nn.LayerNorm):
    """Layer norm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Depthwise 7 × 7, then a perceptron at every pixel with the channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.grow, self.shrink = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 0.5))
        self.drop = DropPath(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.shrink(functional.gelu(self.grow(y))).permute(0, 3, 1, 2)
        total: Tensor = x + self.drop(self.layer_scale * y)
        return total


def convnext() -> nn.Module:
    """Patches for a stem, a block, a downsampling convolution, a block."""
    return Pooled(
        nn.Conv2d(CHANNELS, 6, 2, stride=2),
        NormChannels(6),
        ConvNeXt(6),
        nn.Sequential(NormChannels(6), nn.Conv2d(6, 8, 2, stride=2)),
        ConvNeXt(8),
        NormChannels(8),
        width=8,
    )


class Encoder(nn.Module):
    """Pre-norm block around torch's own attention, whose weights lie in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, WIDTH)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        y = self.norm1(tokens)
        tokens = tokens + self.attention(y, y, y, need_weights=False)[0]
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class VisionTransformer(nn.Module):
    """Patch embedding, class token and places around any encoder."""

    def __init__(self, encoder: nn.Module, *, batch_first: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(CHANNELS, WIDTH, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, 10, WIDTH) / 2)
        self.encoder = encoder
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1) + self.places
        if self.batch_first:
            seen = self.encoder(tokens)
        else:
            seen = self.encoder(tokens.transpose(0, 1)).transpose(0, 1)
        scores: Tensor = self.head(self.norm(seen)[:, 0])
        return scores


def torch_encoder(*, batch_first: bool) -> nn.Module:
    """torch's own encoder; in evaluation it takes a fast path that calls none of its layers."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, 0.1, batch_first=batch_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return VisionTransformer(encoder, batch_first=batch_first)


class Shifted(nn.Module):
    """Attention inside windows of 3 × 3 on a 6 × 6 grid, shifted or not, as in Swin."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.bias_mlp = nn.Linear(2, 2)  # version 2 computes the bias of places for both heads
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))

    def attend(self, x: Tensor) -> Tensor:
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        cut = x.reshape(len(x), 2, 3, 2, 3, WIDTH).transpose(2, 3).reshape(-1, 9, WIDTH)
        query, key, value = (
            part.reshape(len(cut), 9, 2, -1).transpose(1, 2)
            for part in self.qkv(cut).chunk(3, dim=-1)
        )
        axis = torch.arange(3.0).to(x)
        spots = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(9, 2)
        bias = self.bias_mlp(spots[:, None] - spots[None]).permute(2, 0, 1)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = self.proj(mixed.transpose(1, 2).reshape(-1, 9, WIDTH))
        whole = mixed.reshape(len(x), 2, 2, 3, 3, WIDTH).transpose(2, 3).reshape(x.shape)
        return torch.roll(whole, (self.shift, self.shift), (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class Merging(nn.Module):
    """Four neighbours become one token."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * WIDTH)
        self.reduction = nn.Linear(4 * WIDTH, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return merged


class Swin(nn.Module):
    """Windows, shifted windows and merging, the channels last throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(CHANNELS, WIDTH, 2, stride=2)
        self.blocks = nn.Sequential(Shifted(0), Shifted(1), Merging())
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.blocks(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))
        return scores


@dataclass(frozen=True)
class Block:
    """A network and what is to be found in it."""

    build: Callable[[], nn.Module]
    editable: list[str]
    refused: dict[str, str] = field(default_factory=dict)


NOT_THE_FORM = "only Conv2d and Linear have the key/value form, not its"
TOKENS = {"": f"{NOT_THE_FORM} token, places"}
USED = "nn.MultiheadAttention uses its weight directly"
FUSED = f"MultiheadAttention: {NOT_THE_FORM} in_proj_weight"
ENCODER = ["linear1", "linear2"]


def torch_encoder_block(*, batch_first: bool) -> Block:
    layers = [f"encoder.layers.{number}" for number in range(2)]
    refused = {f"{layer}.self_attn": FUSED for layer in layers}
    refused |= {f"{layer}.self_attn.out_proj": USED for layer in layers}
    return Block(
        lambda: torch_encoder(batch_first=batch_first),
        ["patches", *(f"{layer}.{name}" for layer in layers for name in ENCODER), "head"],
        TOKENS | refused,
    )


BLOCKS: dict[str, Block] = {
    "residual": Block(
        residual,
        [
            "blocks.0.0",
            "blocks.2.branch.0.0", "blocks.2.branch.1.0", "blocks.2.downsample.0",
            "blocks.3.branch.0.0", "blocks.3.branch.1.0", "blocks.3.branch.2.0",
            "blocks.3.downsample.0",
            "head",
        ],
    ),
    "inverted residual": Block(
        inverted,
        ["blocks.0.0"]
        + [
            f"blocks.{number}.{name}"
            for number in (1, 2)
            for name in ("expand.0", "depthwise.0", "squeeze.fc1", "squeeze.fc2", "project.0")
        ]
        + ["head"],
    ),
    "ConvNeXt": Block(
        convnext,
        [
            "blocks.0",
            "blocks.2.depthwise", "blocks.2.grow", "blocks.2.shrink",
            "blocks.3.1",
            "blocks.4.depthwise", "blocks.4.grow", "blocks.4.shrink",
            "head",
        ],
        {f"blocks.{number}": f"ConvNeXt: {NOT_THE_FORM} layer_scale" for number in (2, 4)},
    ),
    "ViT": Block(
        lambda: VisionTransformer(nn.Sequential(Encoder(), Encoder())),
        ["patches"]
        + [f"encoder.{number}.mlp.{place}" for number in (0, 1) for place in (0, 3)]
        + ["head"],
        TOKENS
        | {f"encoder.{number}.attention": FUSED for number in (0, 1)}
        | {f"encoder.{number}.attention.out_proj": USED for number in (0, 1)},
    ),
    "torch's encoder": torch_encoder_block(batch_first=True),
    "torch's encoder, sequence first": torch_encoder_block(batch_first=False),
    "Swin": Block(
        Swin,
        ["patches"]
        + [
            f"blocks.{number}.{name}"
            for number in (0, 1)
            for name in ("qkv", "proj", "mlp.0", "mlp.2")
        ]
        + ["blocks.2.reduction", "head"],
        {f"blocks.{number}.bias_mlp": "its rows belong to no sample" for number in (0, 1)},
    ),
}  # fmt: skip
