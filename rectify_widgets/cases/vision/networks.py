"""torchvision, when it is asked for: networks by name, behind their normalisation, with weights.

Imports torch, safetensors, the cases and the engine.  Weight files are safetensors alone: nothing in
them can run.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rectify_widgets.cases.networks import Normalization
from rectify_widgets.engine.model.running import model_device, model_dtype


def torchvision(part: str) -> Any:
    """The module ``part`` of torchvision.

    Raises:
        ImportError: it is not installed, or does not fit the torch that is.
    """
    try:
        return import_module(f"torchvision.{part}")
    except (ImportError, RuntimeError) as error:  # RuntimeError: made for another torch
        raise ImportError(
            f"cases of photographs want torchvision, which does not load ({error}): pip install "
            f"'rectify_widgets[vision]', the release made for your torch {torch.__version__}"
        ) from error


def make(name: str, classes: int, **options: Any) -> nn.Module:
    """The untrained network ``name`` of torchvision, for so many classes.

    ``options`` are torchvision's.  ``"resnet18-cifar"`` is its ResNet-18 with a 3×3 stem of stride 1 and no pooling behind it.
    """
    network: nn.Module = torchvision("models").get_model(
        name.removesuffix("-cifar"), num_classes=classes, **options
    )
    if name == "resnet18-cifar":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


def normalized(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network behind the normalisation that it wants, so that triggers stay in [0, 1]."""
    normalize = Normalization(mean, std).to(model_device(network), model_dtype(network))
    return nn.Sequential(OrderedDict(normalize=normalize, network=network))


def with_weights(make_network: Callable[..., nn.Module], path: object, argument: str) -> nn.Module:
    """A network with the weights of a safetensors file.

    Raises:
        TypeError, FileNotFoundError, ValueError: no file of weights of such a network.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{argument}: got {type(path).__name__}, want the name of a file")
    file = Path(os.fspath(path)).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{argument}: no file {str(file)!r}")
    with torch.device("meta"):  # no weights drawn: the random state stays as it is
        network = make_network()
    try:
        network.load_state_dict(load_file(file), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{argument}: got {str(file)!r}, want a safetensors file of the preset's network "
            f"({error}); for another network give a module"
        ) from None
    return network.requires_grad_()
