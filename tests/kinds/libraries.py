"""Networks of timm and transformers, small ones with random weights, as kinds of models.

Imports torch, and these two libraries where a network is built.  `LIBRARIES` holds the kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, cast

from torch import nn

import rectify_widgets as rw
from tests.kinds.scene import CLASSES, Kind, kind

LIBRARIES: list[Kind] = []
"""Twelve networks of each library."""
TOKENS: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 48,
}  # fmt: skip
WINDOWS: dict[str, Any] = {
    "image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2],
    "window_size": 4,
}  # fmt: skip
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
SMALL_SWIN: dict[str, Any] = {
    "img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2),
}  # fmt: skip
SMALL_DEIT: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2,
}  # fmt: skip


def of_timm(name: str, **options: Any) -> nn.Module:
    """A network of timm by the name that it has there."""
    made = import_module("timm").create_model(name, num_classes=CLASSES, **options)
    return cast("nn.Module", made)


def of_transformers(name: str, **options: Any) -> nn.Module:
    """An image classifier of transformers, without the adapter."""
    library = import_module("transformers")
    config = getattr(library, f"{name}Config")(num_labels=CLASSES, **options)
    made = getattr(library, f"{name}ForImageClassification")(config)
    if name == "Levit":  # what it starts with hides its input
        for weight in made.parameters():
            if weight.ndim > 1:
                nn.init.kaiming_normal_(weight)
    return cast("nn.Module", made)


def bit() -> nn.Module:
    """Big Transfer: a ResNet with weight standardisation and group norm."""
    layers, parts = import_module("timm.layers"), import_module("timm.models.resnetv2")
    made = parts.ResNetV2(
        (1, 1), (16, 32), num_classes=CLASSES, stem_chs=8, stem_type="fixed",
        conv_layer=layers.StdConv2d, norm_layer=partial(layers.GroupNormAct, num_groups=4),
    )  # fmt: skip
    return cast("nn.Module", made)


def mixer() -> nn.Module:
    """MLP-Mixer."""
    made = import_module("timm.models.mlp_mixer").MlpMixer(
        num_classes=CLASSES, img_size=32, patch_size=8, num_blocks=2, embed_dim=24
    )
    nn.init.normal_(made.head.weight)  # zero at first
    return cast("nn.Module", made)


def timm_kind(name: str, build: Callable[[], nn.Module]) -> None:
    """Add a network of timm."""
    kind(f"timm, {name}", build, to=LIBRARIES, size=32, centred=True, exact=1e-3)


def transformers_kind(name: str, **options: Any) -> None:
    """Add a network of transformers, behind the adapter that takes its logits."""
    kind(
        f"transformers, {name}",
        lambda: rw.adapt(
            of_transformers(name, **options), output="logits", task="multiclass", scores="logits"
        ),
        to=LIBRARIES, size=64 if name == "Levit" else 32, centred=True, exact=1e-3,
    )  # fmt: skip


for name in ("resnet", "efficientnet", "convnext", "nfnet", "byobnet", "mambaout"):
    timm_kind(name, lambda name=name: of_timm(f"test_{name}"))  # type: ignore[misc]
timm_kind("densenet", lambda: of_timm("densenet121", growth_rate=4, block_config=(2, 2)))
timm_kind("swin", lambda: of_timm("swin_tiny_patch4_window7_224", **SMALL_SWIN))
timm_kind("deit", lambda: of_timm("deit_tiny_patch16_224", **SMALL_DEIT))
timm_kind("xcit", lambda: of_timm("xcit_nano_12_p16_224", **SMALL_DEIT))
timm_kind("resnetv2, BiT", bit)
timm_kind("mixer", mixer)
for name in ("ViT", "DeiT", "Beit", "Dinov2"):
    transformers_kind(name, **TOKENS)
for name in ("Swin", "Swinv2"):
    transformers_kind(name, **WINDOWS)
for name in ("ConvNext", "ConvNextV2"):
    transformers_kind(name, **STAGES, num_stages=2)
transformers_kind("ResNet", **STAGES, embedding_size=8, layer_type="basic")
transformers_kind("Bit", **STAGES, embedding_size=8, num_groups=4)
transformers_kind("PoolFormer", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1])
transformers_kind(
    "Levit", image_size=64, hidden_sizes=[16, 16, 16], num_attention_heads=[2, 2, 2],
    depths=[1, 1, 1], key_dim=[8, 8, 8],
)  # fmt: skip
