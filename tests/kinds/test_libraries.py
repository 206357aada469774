"""Networks of timm and transformers through every public call, and their maps beside hand-written ones.

It runs where these libraries are, the extra `vision`, in an environment of its own.  The verdicts make
the table in ``libraries.md``; after a change, write it anew there with

    RECTIFY_WRITE_TABLES=1 python -m pytest tests/kinds/test_libraries.py -m ""
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.model.running import unwrap
from tests.kinds.calls import CALLS
from tests.kinds.libraries import (
    LIBRARIES,
    SMALL_DEIT,
    SMALL_SWIN,
    STAGES,
    TOKENS,
    WINDOWS,
    of_timm,
    of_transformers,
)
from tests.kinds.scene import CLASSES, Kind, seeded
from tests.kinds.verdicts import HEAD, faults, outcomes, row
from tests.map_fakes import first, last, tokens
from tests.vision_folders import needs_torchvision

pytestmark = pytest.mark.usefixtures("one_thread", "libraries")

TABLE = Path(__file__).with_name("libraries.md")
COMMAND = 'RECTIFY_WRITE_TABLES=1 python -m pytest tests/kinds/test_libraries.py -m ""'


@pytest.fixture(scope="module")
def libraries() -> None:
    needs_torchvision()
    pytest.importorskip("timm", reason="timm, of the extra `vision`")
    pytest.importorskip("transformers", reason="transformers, of the extra `vision`")


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIBRARIES, ids=str)
def test_every_call(kind: Kind) -> None:
    wrong = faults(kind)
    assert not wrong, "\n".join(wrong)
    assert sum(not one.refused for one in outcomes(kind).values()) >= len(CALLS) - 2


@pytest.mark.slow
def test_table_is_up_to_date() -> None:
    lines = [
        f"# {len(LIBRARIES)} networks of timm and transformers × {len(CALLS)} public calls",
        "",
        "Small ones with random weights, checked as those of [`every_kind.md`](every_kind.md) are.",
        "",
        f"Written by the tests: `{COMMAND}`.",
        "",
        *HEAD,
        *map(row, LIBRARIES),
    ]
    written = "\n".join(lines) + "\n"
    if os.environ.get("RECTIFY_WRITE_TABLES"):
        TABLE.write_text(written, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == written, f"out of date; write it anew: {COMMAND}"


# --- Grad-CAM along the right axes ---------------------------------------------------------------


def small_swin() -> nn.Module:
    kind = pytest.importorskip("torchvision.models").SwinTransformer
    return kind([4, 4], 12, [1, 1], [1, 2], [4, 4], num_classes=CLASSES)  # type: ignore[no-any-return]


def small_convnext() -> nn.Module:
    parts = pytest.importorskip("torchvision.models.convnext")
    stages = [parts.CNBlockConfig(8, 16, 1), parts.CNBlockConfig(16, None, 1)]
    return parts.ConvNeXt(stages, num_classes=CLASSES, layer_scale=0.5)  # type: ignore[no-any-return]


def small_vit() -> nn.Module:
    kind = pytest.importorskip("torchvision.models").VisionTransformer
    model: Any = kind(32, 8, 2, 2, 24, 48, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight)  # zero at first
    return model  # type: ignore[no-any-return]


MAPS: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Tensor], Tensor]]] = {
    "torchvision, Swin, block": (small_swin, "features.1.0", last),
    "torchvision, Swin, linear": (small_swin, "features.3.0.mlp.0", last),
    "torchvision, ConvNeXt, depthwise": (small_convnext, "features.1.0.block.0", first),
    "torchvision, ConvNeXt, linear": (small_convnext, "features.3.0.block.3", last),
    "torchvision, ViT, block": (small_vit, "encoder.layers.encoder_layer_0", tokens(1, 4)),
    "torchvision, ViT, linear": (small_vit, "encoder.layers.encoder_layer_0.mlp.0", tokens(1, 4)),
    "timm, Swin, block": (
        lambda: of_timm("swin_tiny_patch4_window7_224", **SMALL_SWIN), "layers.0.blocks.0", last,
    ),
    "timm, Swin, linear": (
        lambda: of_timm("swin_tiny_patch4_window7_224", **SMALL_SWIN),
        "layers.1.blocks.0.mlp.fc1", tokens(0, 4),
    ),
    "timm, ConvNeXt, depthwise": (
        lambda: of_timm("test_convnext"), "stages.1.blocks.0.conv_dw", first,
    ),
    "timm, ConvNeXt, linear": (
        lambda: of_timm("convnext_atto", dims=(8, 12, 16, 16), depths=(1, 1, 1, 1), conv_mlp=False),
        "stages.1.blocks.0.mlp.fc1", last,
    ),
    "timm, ViT, block": (
        lambda: of_timm("deit_tiny_patch16_224", **SMALL_DEIT), "blocks.0", tokens(1, 4),
    ),
    "timm, ViT, linear": (
        lambda: of_timm("deit_tiny_patch16_224", **SMALL_DEIT), "blocks.0.mlp.fc1", tokens(1, 4),
    ),
    "transformers, Swin, linear": (
        lambda: of_transformers("Swin", **WINDOWS), "swin.encoder.layers.1.blocks.0.mlp.fc1", tokens(0, 4),
    ),
    "transformers, ConvNeXt, stage": (
        lambda: of_transformers("ConvNext", **STAGES, num_stages=2), "convnext.encoder.stages.1",
        first,
    ),
    "transformers, ViT, linear": (
        lambda: of_transformers("ViT", **TOKENS), "vit.layers.0.mlp.fc1", tokens(1, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAPS)
def test_grad_cam_follows_the_axes(name: str) -> None:
    build, layer, to_maps = MAPS[name]
    raw = seeded(build, 0).eval()
    model: nn.Module = raw
    if name.startswith("transformers"):
        model = rw.adapt(raw, output="logits", task="multiclass", scores="logits")
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    targets = torch.tensor([0, 3, 1])
    options: dict[str, Any] = {"method": "grad-cam", "target": targets, "relu": False}
    mine = rw.attribute(model, x, layer=layer, **options)
    seen: list[Any] = []
    handle = (
        unwrap(model).get_submodule(layer).register_forward_hook(lambda *args: seen.append(args[2]))
    )
    score = model(x)[torch.arange(3), targets].sum()
    handle.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    (gradient,) = torch.autograd.grad(score, output)
    values, slopes = to_maps(output), to_maps(gradient)
    small = torch.einsum("ncyx,nc->nyx", values, slopes.mean((2, 3))).detach()
    wanted = nn.functional.interpolate(small[:, None], x.shape[-2:], mode="bilinear")
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(mine, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=1e-3)
