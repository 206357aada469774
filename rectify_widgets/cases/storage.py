"""The files of a case: weights with their record, and the images that ship.

Imports this folder's IDX, and safetensors: nothing executable is ever loaded.

    data/fashion-mnist/, data/mnist/   test-*: test images; heldout-*: images of the training file
                          that no network here was trained on
    data/NAME.safetensors   weights of the case NAME; a record in the metadata says how the
                          held-out images are used and what the build measured
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import as_file
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rectify_widgets.cases.figures import Labelled
from rectify_widgets.cases.idx import Bytes, Folder, read_idx

Record = dict[str, Any]
"""What a build wrote down; plain JSON."""


@dataclass(frozen=True)
class CaseImages:
    """The images that ship with a case, by use.

    Attributes:
        test: the test set.
        reference, validation, candidates: held-out images and labels; pairs are made of the last.
    """

    test: Labelled
    reference: Labelled
    validation: Labelled
    candidates: Labelled


def as_images(array: Bytes) -> Tensor:
    """``N × H × W`` bytes to ``N × 1 × H × W`` float32 in [0, 1]."""
    return torch.from_numpy(array)[:, None].float() / 255


def weights_file(name: str) -> str:
    """Where the weights of the case ``name`` lie in the data folder."""
    return f"{name}.safetensors"


def read_images(
    folder: Folder,
    record: Mapping[str, Any],
    device: torch.device,
    compose: Callable[[Tensor, Folder, str], Tensor],
) -> CaseImages:
    """The images in ``folder``, divided as ``record`` says.

    Args:
        folder: of the data set.
        record: of the case; ``parts`` says how many held-out images serve each use, in the file's
            order.
        device: where the images are put.
        compose: makes the case's images of those in the folder; called with them, the folder, and
            ``"test"`` or ``"heldout"``.

    Raises:
        ValueError: these are not the held-out images that the record's network was kept from.
    """

    def arrays(split: str) -> tuple[Bytes, Bytes]:
        images, labels = (
            read_idx(folder / f"{split}-{kind}.idx.xz") for kind in ("images", "labels")
        )
        return images, labels

    def labelled(split: str, images: Bytes, labels: Bytes) -> Labelled:
        composed = compose(as_images(images), folder, split)
        return composed.to(device), torch.from_numpy(labels).long().to(device)

    images, labels = arrays("heldout")
    actual = fingerprint(images, labels)
    if record.get("heldout", actual) != actual:
        raise ValueError(
            f"{folder.name}: got held-out images {actual}, want {record['heldout']}, those that the "
            "network was not trained on; give cases of different seeds a folder (--out) each"
        )
    sizes: Mapping[str, int] = record["parts"]
    pieces = [tensor.split(list(sizes.values())) for tensor in labelled("heldout", images, labels)]
    uses = dict(zip(sizes, zip(*pieces, strict=True), strict=True))
    return CaseImages(
        labelled("test", *arrays("test")), uses["reference"], uses["validation"], uses["pairs"]
    )


def fingerprint(images: Bytes, labels: Bytes) -> str:
    """Sixteen hexadecimal digits that distinguish one set of held-out images from another."""
    return hashlib.sha256(labels.tobytes() + images.tobytes()).hexdigest()[:16]


def read_weights(
    folder: Folder, name: str, device: torch.device
) -> tuple[dict[str, Tensor], Record]:
    """Weights of the case ``name``, in float32 whatever they are stored in, and the record."""
    with (
        as_file(folder / weights_file(name)) as path,
        safe_open(path, framework="pt") as weights,
    ):
        record = json.loads(weights.metadata()["record"])
        tensors = {key: weights.get_tensor(key).clone() for key in weights.keys()}  # noqa: SIM118
    for key, tensor in tensors.items():
        if tensor.dtype is torch.float16:
            tensors[key] = tensor.float()
    return {key: tensor.to(device) for key, tensor in tensors.items()}, record


def write_weights(folder: Path, name: str, model: nn.Module, record: Record) -> None:
    """What `read_weights` reads: matrices and kernels in float16 if they survive it unchanged.

    See `halve`; everything else is stored as it is.
    """
    tensors = {
        key: tensor.half() if is_half(tensor) else tensor
        for key, tensor in model.state_dict().items()
    }
    path = folder / weights_file(name)
    # One string, because the file format does not keep the order of several.
    save_file(tensors, path, {"record": json.dumps(record)})
    path.chmod(0o644)  # it comes out readable by its owner alone


def halve(model: nn.Module) -> None:
    """Round matrices and kernels to float16, in place; they take half the room when stored.

    The figures of a record are measured on the network as it is after this, so that nothing is lost
    between what was measured and what `load` gives.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())


def is_half(tensor: Tensor) -> bool:
    """Whether float16 holds every number of a matrix or kernel exactly."""
    return (
        tensor.ndim > 1
        and tensor.is_floating_point()
        and bool((tensor.half().to(tensor) == tensor).all())
    )
