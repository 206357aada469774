"""Grad-CAM along the right axes, whatever the layout: equal to one written by hand.

The networks are small copies of Swin, ConvNeXt and ViT, and of others that lay out their tokens in
their own way.  For each layer the test itself says how its output lies; the package is not told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.explain import attribute
from tests.engine.building_blocks import BLOCKS, WIDTH, Encoder, Swin, VisionTransformer
from tests.engine.models import make
from tests.map_fakes import first, last, tokens

TARGETS = torch.tensor([0, 3, 1])


def inputs(size: int = 12) -> Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(4))


def by_hand(model: nn.Module, layer: str, x: Tensor, to_maps: Callable[[Tensor], Tensor]) -> Tensor:
    """Grad-CAM without ReLU: channels weighed with their gradient, averaged over the places."""
    seen: list[Any] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *args: seen.append(args[2]))
    score = model(x)[torch.arange(len(x)), TARGETS].sum()
    handle.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    (gradient,) = torch.autograd.grad(score, output)
    values, slopes = to_maps(output), to_maps(gradient)
    small = torch.einsum("ncyx,nc->nyx", values, slopes.mean((2, 3)))
    return functional.interpolate(small[:, None], x.shape[-2:], mode="bilinear")


def sequence_first(one: Tensor) -> Tensor:
    return tokens(1, 3)(one.transpose(0, 1))


class Even(nn.Module):
    """As many channels as rows and columns, so that no size tells which axis is which."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.norm, self.grow, self.shrink = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.act = nn.GELU()
        self.after, self.head = nn.Identity(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(x.permute(0, 2, 3, 1))
        y = self.shrink(self.act(self.grow(y)))
        x = self.after(x + y.movedim(-1, 1))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


class Registers(nn.Module):
    """A class token and three registers behind the patches, which are cut by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * 4 * 3, WIDTH)
        self.extra = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.block = Encoder()
        self.only = nn.Identity()
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        cut = x.unfold(2, 4, 4).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5)
        x = self.embed(cut.flatten(3)).flatten(1, 2)
        x = self.block(torch.cat([x, self.extra.expand(len(x), -1, -1)], dim=1))
        scores: Tensor = self.head(self.only(x[:, :-4]).mean(1))
        return scores


class Tuples(nn.Module):
    """Blocks that answer a tuple, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Encoder()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.block(x), x)


class InTuples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Tuples(), Tuples()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.two(self.one(x)[0])[0]
        return answer


def registers(one: Tensor) -> Tensor:
    return one[:, :12].transpose(1, 2).reshape(len(one), -1, 3, 4)


def only(one: Tensor) -> Tensor:
    return one.transpose(1, 2).reshape(len(one), -1, 3, 4)


LAYERS: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Tensor], Tensor]]] = {
    "Swin, patches": (Swin, "patches", first),
    "Swin, norm": (Swin, "blocks.0.norm1", last),
    "Swin, block": (Swin, "blocks.0", last),
    "Swin, shifted block": (Swin, "blocks.1", last),
    "Swin, linear": (Swin, "blocks.1.mlp.0", last),
    "Swin, merging": (Swin, "blocks.2.reduction", last),
    "Swin, all blocks": (Swin, "blocks", last),
    "ConvNeXt, depthwise": (BLOCKS["ConvNeXt"].build, "blocks.2.depthwise", first),
    "ConvNeXt, linear": (BLOCKS["ConvNeXt"].build, "blocks.2.grow", last),
    "ConvNeXt, block": (BLOCKS["ConvNeXt"].build, "blocks.4", first),
    "ConvNeXt, norm of its own": (BLOCKS["ConvNeXt"].build, "blocks.5", first),
    "even, norm": (Even, "norm", last),
    "even, activation": (Even, "act", last),
    "even, after": (Even, "after", first),
    "ViT, patches": (BLOCKS["ViT"].build, "patches", first),
    "ViT, block": (BLOCKS["ViT"].build, "encoder.0", tokens(1, 3)),
    "ViT, norm": (BLOCKS["ViT"].build, "encoder.1.norm1", tokens(1, 3)),
    "ViT, linear": (BLOCKS["ViT"].build, "encoder.0.mlp.0", tokens(1, 3)),
    "sequence first": (
        BLOCKS["torch's encoder, sequence first"].build, "encoder.layers.0.norm2", sequence_first,
    ),
    "registers behind": (Registers, "block", registers),
    "registers cut off": (Registers, "only", only),
    "tuples": (lambda: VisionTransformer(InTuples()), "encoder.one", tokens(1, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_grad_cam_follows_the_axes(name: str) -> None:
    build, layer, to_maps = LAYERS[name]
    model, x = make(build), inputs()
    mine = attribute(model, x, method="grad-cam", layer=layer, target=TARGETS, relu=False)
    expected = by_hand(model, layer, x, to_maps).detach()
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-4)


def test_wrong_axes_give_another_map() -> None:
    # What these tests are about: with the axes taken as channels first the map says little.
    model, x = make(Even), inputs()
    right = attribute(model, x, method="grad-cam", layer="grow", target=TARGETS, relu=False)
    wrong = attribute(
        model, x, method="grad-cam", layer="grow", target=TARGETS, relu=False,
        layout="channels-first",
    )  # fmt: skip
    both = torch.stack([right.flatten(), wrong.flatten()])
    assert abs(float(both.corrcoef()[0, 1])) < 0.6


def test_the_layout_can_be_given() -> None:
    model, x = make(BLOCKS["ViT"].build), inputs()
    options: dict[str, Any] = {"method": "grad-cam", "layer": "encoder.0", "target": TARGETS}
    told = attribute(model, x, **options)
    torch.testing.assert_close(attribute(model, x, layout=tokens(1, 3), **options), told)
    torch.testing.assert_close(attribute(model, x, layout="channels-last", **options), told)
    with pytest.raises(ValueError, match=r"layout: got 'channel-last', want one of .*did you mean"):
        attribute(model, x, layout="channel-last", **options)
    with pytest.raises(ValueError, match=r"layout: the function returned shape \(3, 8\), want"):
        attribute(model, x, layout=lambda one: one[:, 0], **options)


def test_what_has_no_map_says_why() -> None:
    with pytest.raises(ValueError, match=r"which axes of its output .* cannot be told"):
        attribute(make(Swin), inputs(), method="grad-cam", layer="blocks.0.qkv")
    with pytest.raises(ValueError, match="depends on its class token alone"):
        attribute(make(BLOCKS["ViT"].build), inputs(), method="grad-cam", layer="encoder.1")


def test_tokens_of_an_image_that_is_not_square() -> None:
    model = make(Registers)
    x = inputs()
    mine = attribute(model, x, method="grad-cam", layer="block", target=TARGETS, batch_size=1)
    expected = by_hand(model, "block", x, registers).detach().relu()
    torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-4)
