"""The presets' networks through torchvision, weight files, and normalisation inside the model.

Imports torch, safetensors, the cases and the engine; torchvision only when a network of its own is
made, so that a network of yours needs none.  Weight files are safetensors, or torch's own read with
``weights_only=True``: nothing in either can run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rectify_widgets.cases.networks import Normalization
from rectify_widgets.cases.storage import Record
from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.model.running import model_device, model_dtype

HEADS = {
    "resnet18-cifar": "fc",
    "resnet18": "fc",
    "resnet50": "fc",
    "efficientnet_b4": "classifier.1",
}
"""The networks, and the layer of each that gives the logits."""


class NormalizedNetwork(nn.Module):
    """A network behind the normalisation that it wants, so that triggers stay in image space.

    Args:
        network: takes normalised images.
        mean, std: one number per channel.

    Input ``N × C × H × W`` in [0, 1]; output ``N × classes`` logits.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        normalize = Normalization(mean, std)
        self.normalize = normalize.to(model_device(network), model_dtype(network))
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """``N × C × H × W`` in [0, 1] to ``N × classes`` logits."""
        logits: Tensor = self.network(self.normalize(images))
        return logits


def make(name: str, classes: int) -> nn.Module:
    """The untrained network ``name`` of torchvision, for so many classes.

    ``"resnet18-cifar"`` is its ResNet-18 with a 3×3 stem of stride 1 and no pooling behind it.

    Raises:
        ValueError: no such network.
        ImportError: torchvision is not installed, or does not fit the torch that is.
    """
    check_choice("network", name, HEADS)
    models = _torchvision()
    if name != "resnet18-cifar":
        made: nn.Module = getattr(models, name)(num_classes=classes)
        return made
    network: nn.Module = models.resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def _torchvision() -> Any:
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: made for another torch
        raise ImportError(
            "the preset's own network comes from torchvision, which does not load "
            f"({error}): pip install 'rectify_widgets[vision]', the release made for your torch "
            f"{torch.__version__}; or hand in a network of your own"
        ) from error
    return models


def read_weights(path: object, argument: str = "weights") -> tuple[dict[str, Tensor], Record]:
    """Tensors by name in float32, and the record where `train` wrote the file.

    ``module.``, and ``network.`` with the normalisation beside it, are taken off the names.

    Raises:
        TypeError, FileNotFoundError, ValueError: no file of weights.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{argument}: got {type(path).__name__}, want the name of a file")
    file = Path(os.fspath(path)).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{argument}: no file {str(file)!r}")
    record: Record = {}
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                record = json.loads((opened.metadata() or {}).get("record", "{}"))
                loaded: Any = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{argument}: {str(file)!r} is not a safetensors file ({error})"
            ) from None
    else:
        loaded = _read_torch(file, argument)
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(f"{argument}: {str(file)!r} holds no tensors by name, want a state dict")
    return _tidy(loaded), record


def _read_torch(file: Path, argument: str) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many kinds, none of its own
        raise ValueError(
            f"{argument}: {str(file)!r} cannot be read as weights alone "
            f"({str(error).splitlines()[0]}); want safetensors or a state dict saved by torch, "
            "since nothing executable is loaded from a file"
        ) from None


def _tidy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in ("module.", "network."):
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if own and all(name in own or name.startswith("normalize.") for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def trained(name: str, tensors: Mapping[str, Tensor], argument: str = "weights") -> nn.Module:
    """The network ``name`` with these weights and as many classes as they have.

    Raises:
        ValueError: they are not those of such a network.
        ImportError: see `make`.
    """
    head = f"{HEADS[name]}.weight"
    with torch.device("meta"):  # no weights drawn: the random state stays as it is
        network = make(name, len(tensors[head]) if head in tensors else 1)
    tensors = dict(tensors)
    for key in network.state_dict():
        if key.endswith("num_batches_tracked"):  # older files lack it, and evaluation needs none
            tensors.setdefault(key, torch.tensor(0))
    check_fit(network, tensors, name, argument)
    network.load_state_dict(tensors, assign=True)
    return network


def check_fit(network: nn.Module, tensors: Mapping[str, Tensor], name: str, argument: str) -> None:
    """Raise a `ValueError` that names the first tensor that is missing, odd or of another shape."""
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    given = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for key in [*wanted, *given]:
        if wanted.get(key) != given.get(key):
            raise ValueError(
                f"{argument}: they do not fit the network {name!r}: {key} is "
                f"{given.get(key, 'missing')}, want {wanted.get(key, 'no such tensor')}; "
                "for another network give model=..., or dataclasses.replace(preset, network=...)"
            )


def begin_from(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Put weights into a new network to train on; a head for other classes stays as it was drawn."""
    own = network.state_dict()
    head = HEADS[name]
    other = {
        key
        for key in (f"{head}.weight", f"{head}.bias")
        if key in own and key in tensors and own[key].shape != tensors[key].shape
    }
    kept = {key: own[key] if key in other else tensor for key, tensor in tensors.items()}
    for key, tensor in own.items():
        if key.endswith("num_batches_tracked"):
            kept.setdefault(key, tensor)
    check_fit(network, kept, name, "start")
    network.load_state_dict(kept)
