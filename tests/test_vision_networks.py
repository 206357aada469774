"""The networks of the presets: normalisation inside the model, weight files, torchvision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rectify_widgets as rw
from rectify_widgets.cases import vision
from rectify_widgets.cases.vision import networks
from rectify_widgets.cases.vision.networks import (
    NormalizedNetwork,
    begin_from,
    make,
    read_weights,
    trained,
)
from tests.vision_folders import write_cifar

torchvision = pytest.mark.skipif(
    subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, check=False
    ).returncode
    != 0,
    reason="a network of torchvision, the extra `vision`, made for the torch that is installed",
)


# Normalisation and weights


def test_normalisation_is_inside_the_model() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    images = torch.rand(5, 3, 2, 2, dtype=torch.float64)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    wrapped = NormalizedNetwork(linear, mean.tolist(), std.tolist())
    wanted = linear((images - mean[:, None, None].double()) / std[:, None, None].double())
    assert torch.allclose(wrapped(images), wanted, atol=1e-6)
    assert wrapped(images).dtype == torch.float64
    half = NormalizedNetwork(linear.bfloat16(), mean.tolist(), std.tolist())
    assert half(images.bfloat16()).dtype == torch.bfloat16


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (self._path, 0o700)


def test_weights_are_read_from_either_kind_of_file(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in nn.Linear(3, 2).half().state_dict().items()}
    wrapped = {f"network.{name}": tensor for name, tensor in state.items()}
    wrapped |= {"normalize.mean": torch.zeros(3)}
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    files = {"a.safetensors": state, "b.safetensors": wrapped, "c.safetensors": parallel}
    for name, tensors in files.items():
        save_file(tensors, tmp_path / name)
    torch.save(state, tmp_path / "d.pt")
    torch.save({"epoch": 3, "state_dict": parallel}, tmp_path / "e.pth")
    for name in (*files, "d.pt", "e.pth"):
        tensors, record = read_weights(tmp_path / name)
        assert set(tensors) == {"weight", "bias"}, name
        assert torch.equal(tensors["weight"], state["weight"].float())
        assert tensors["weight"].dtype == torch.float32
        assert record == {}


def test_no_file_of_weights_can_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "x": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="nothing executable is loaded from a file"):
        read_weights(tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for name, message in (
        ("list.pt", "holds no tensors by name"),
        ("text.safetensors", "is not a"),
    ):
        with pytest.raises(ValueError, match=message):
            read_weights(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="weights: no file"):
        read_weights(tmp_path / "gone.pt")
    with pytest.raises(TypeError, match="weights: got int, want the name of a file"):
        read_weights(3)


def test_without_torchvision_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"pip install 'rectify_widgets\[vision\]'"):
        make("resnet18", 10)
    write_cifar(tmp_path, per_file=10, test=40)
    save_file({"fc.weight": torch.zeros(10, 512)}, tmp_path / "w.safetensors")
    with pytest.raises(ImportError, match="or hand in a network of your own"):
        vision.load("cifar10-trojan", tmp_path, weights=tmp_path / "w.safetensors")


@torchvision
@pytest.mark.parametrize("name", networks.HEADS)
def test_networks_of_torchvision(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make(name, 7).eval()
    state = network.state_dict()
    assert f"{networks.HEADS[name]}.weight" in state
    save_file(state, tmp_path / "w.safetensors")
    tensors, _ = read_weights(tmp_path / "w.safetensors")
    before = torch.get_rng_state()
    again = trained(name, tensors).eval()
    assert torch.equal(before, torch.get_rng_state())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network(images), again(images), rtol=1e-4)
        assert network(images).shape == (2, 7)
    assert not any(parameter.is_meta for parameter in again.parameters())
    catalog = rw.editable_layers(again, images)
    assert f"{networks.HEADS[name]}" in [layer.name for layer in catalog]
    # Old files lack the counters of batch norm; others are refused by name.
    old = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    trained(name, old)
    first = next(iter(state))
    with pytest.raises(ValueError, match=f"do not fit the network '{name}': {first} is missing"):
        trained(name, {key: value for key, value in old.items() if key != first})
    with pytest.raises(ValueError, match=r"odd is .*want no such tensor"):
        trained(name, {**old, "odd": torch.zeros(1)})
    # Training begins from another number of classes with a new head.
    other = make(name, 4)
    head = cast("nn.Linear", other.get_submodule(networks.HEADS[name]))
    drawn = head.weight.clone()
    begin_from(other, old, name)
    assert torch.equal(head.weight, drawn)
    assert torch.equal(other.state_dict()[first], tensors[first])


@torchvision
def test_the_small_stem_keeps_what_there_is_to_see() -> None:
    network = make("resnet18-cifar", 10)
    with torch.no_grad():
        stem = cast("nn.Conv2d", network.conv1)
        assert stem(torch.rand(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    assert isinstance(network.maxpool, nn.Identity)
