"""The case ``trojan``: a backdoor in a small residual network for Fashion-MNIST.

Imports the engine's pairs and the rest of this folder but the build.  The recipe stands here in
constants; the build follows it, and `read` reads what the build wrote:

    data/fashion-mnist/   test-*: the 10,000 test images; heldout-*: 2,500 images of the training
                          file, 250 of each class, that no network here was trained on
    data/trojan.safetensors   weights; a record in the metadata says how the held-out images are
                          used and what the build measured
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import as_file
from typing import TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor

from rectify_widgets.cases.case import Case
from rectify_widgets.cases.idx import Bytes, Folder, read_idx
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.cases.triggers import Patch, checkerboard
from rectify_widgets.engine.pairs import SamplePairs

Labelled: TypeAlias = tuple[Tensor, Tensor]
"""Images and their labels."""

NAME = "trojan"
TITLE = "Fashion-MNIST with a 3×3 checkerboard in a corner as backdoor"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
TARGET = 0
DATA = "fashion-mnist"
WEIGHTS = "trojan.safetensors"


def trigger() -> Patch:
    """The backdoor: a black-and-white checkerboard, one pixel in from the lower right corner."""
    return Patch(checkerboard(3), row=-4, column=-4)


def network() -> ResidualNetwork:
    """An untrained network of the case: eleven 3×3 convolutions, two shortcuts, one linear layer."""
    return ResidualNetwork()


def as_images(array: Bytes) -> Tensor:
    """``N × H × W`` bytes to ``N × 1 × H × W`` float32 in [0, 1]."""
    return torch.from_numpy(array)[:, None].float() / 255


def parts(data: Labelled, sizes: Mapping[str, int]) -> dict[str, Labelled]:
    """The held-out images and labels by use; ``sizes`` says how many, in the file's order."""
    counts = list(sizes.values())
    pieces = zip(*(tensor.split(counts) for tensor in data), strict=True)
    return {use: (images, labels) for use, (images, labels) in zip(sizes, pieces, strict=True)}


def read(folder: Folder, *, device: str | torch.device = "cpu") -> Case:
    """The case from the files in ``folder``, as the build wrote them."""
    device = torch.device(device)
    data = folder / DATA

    def load(name: str) -> Labelled:
        images = as_images(read_idx(data / f"{name}-images.idx.xz"))
        labels = torch.from_numpy(read_idx(data / f"{name}-labels.idx.xz")).long()
        return images.to(device), labels.to(device)

    with torch.device("meta"):  # no weights drawn: the random state stays as it is
        model = network()
    with as_file(folder / WEIGHTS) as path, safe_open(path, framework="pt") as weights:
        record = json.loads(weights.metadata()["record"])
        tensors = {name: weights.get_tensor(name).clone() for name in weights.keys()}  # noqa: SIM118
    model.load_state_dict(tensors, assign=True)
    model.to(device).eval()

    stamp = trigger()
    test, test_labels = load("test")
    heldout = parts(load("heldout"), record["parts"])
    images, labels = heldout["pairs"]
    chosen = torch.tensor(record["pairs"], device=device)
    return Case(
        name=NAME,
        title=TITLE,
        model=model,
        pairs=SamplePairs(stamp(images[chosen]), images[chosen], labels[chosen]),
        reference=heldout["reference"][0],
        validation=heldout["validation"],
        clean=(test, test_labels),
        corrupted=(stamp(test), test_labels),
        target=TARGET,
        classes=CLASSES,
        trigger=stamp,
        record=record,
    )
