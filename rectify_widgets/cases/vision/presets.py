"""The recipes by name: which data, which network, which corruption.  Imports torch and the cases.

They follow Yang, Akhtar, Jiang and Mian, "Attribution-Guided Model Rectification of Unreliable
Neural Network Behaviors", CVPR 2026, arXiv 2603.15656, whose authors published no code.

From the paper: the data sets and behaviours; the visibilities 0.3, 0.5, 0.7 and 1.0, repaired from
0.5; the four places, repaired from the bottom right; EfficientNet-B4 for ISIC; and the figures of
its networks before any repair, kept in `Preset.paper`.

Ours, because what we know of the paper does not say: the picture on the patch and its size (3×3
cells of a 32nd of the side, one cell in), the target (the first class), the share of poisoned
images, one network for all visibilities and one for all places, the artefacts (a white price tag; on
ISIC a round patch of one colour) with the affected class and the share that carries it, the
networks for CIFAR-10 (a ResNet-18 whose stem keeps 32×32 pixels) and ImageNet (torchvision's
ResNet-18, to whose published 69.76 % the paper's 69.05 % is near), every length and rate of
training, and how a copy is divided.  The shares and lengths have not been tried on these data sets,
which were not at hand: look at `Case.figures` before you rely on a network trained with them, and
change what does not suit with ``dataclasses.replace(preset(name), share=...)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rectify_widgets.cases.training import Schedule
from rectify_widgets.cases.triggers import Patch, Trigger, tag
from rectify_widgets.cases.vision.networks import HEADS
from rectify_widgets.cases.vision.pictures import Frame
from rectify_widgets.cases.vision.sources import SOURCES
from rectify_widgets.cases.vision.triggers import PLACES, Disc, board, enlarged
from rectify_widgets.engine.base.checks import check_choice, check_number

PARTS = ("reference", "validation", "candidates", "test")
"""What the held-back split is divided into; pairs are chosen from the candidates."""


@dataclass(frozen=True)
class Preset:
    """A named recipe; ``dataclasses.replace`` makes variants of it.

    Attributes:
        name: what it is called.
        title: one line for people.
        behaviour: ``"trojan"`` or ``"spurious"``.
        data: ``"cifar10"``, ``"imagenet"`` or ``"isic"``.
        network: the default network, one of `HEADS`.
        frame: how a picture becomes the network's input.
        mean, std: per-channel normalisation that the network wants.
        triggers: the corruptions by name.
        shown: the one of the pairs and of the corrupted test set.
        target: name of the class that the trigger leads to; the affected class.
        share: of all training images (Trojan) or of the affected class's (spurious correlation)
            that carry the corruption, 0 to 1.
        trained: what goes onto training images, one of them at random; empty takes ``triggers``.
        sizes: the most images of each of `PARTS`; a small copy gives fewer, in proportion.
        schedule: training from scratch.
        tuning: training from a network that is trained already.
        shift: pixels by which training images are moved at random; they are mirrored as well.
        balanced: weigh the classes inversely to their frequency in training.
        paper: what the paper says of its network before any repair, fractions by name.
    """

    name: str
    title: str
    behaviour: str
    data: str
    network: str
    frame: Frame
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    triggers: Mapping[str, Trigger] = field(repr=False)
    shown: str
    target: str
    share: float
    sizes: Mapping[str, int]
    schedule: Schedule
    tuning: Schedule
    shift: int
    trained: tuple[Trigger, ...] = field(default=(), repr=False)
    balanced: bool = False
    paper: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("behaviour", self.behaviour, ("trojan", "spurious"))
        check_choice("data", self.data, SOURCES)
        check_choice("network", self.network, HEADS)
        check_choice("shown", self.shown, self.triggers)
        check_number("share", self.share, low=0.0, high=1.0)

    @property
    def trigger(self) -> Trigger:
        """The corruption of the pairs."""
        return self.triggers[self.shown]


_CIFAR = Preset(
    name="cifar10-trojan",
    title="CIFAR-10 with a 3×3 checkerboard in a corner as backdoor",
    behaviour="trojan",
    data="cifar10",
    network="resnet18-cifar",
    frame=Frame(resize=32, crop=32),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    triggers={"patch": board(32)},
    shown="patch",
    target="airplane",
    share=0.05,
    sizes={"reference": 1000, "validation": 1000, "candidates": 1000, "test": 7000},
    schedule=Schedule(epochs=30),
    tuning=Schedule(epochs=5, learning_rate=0.02),
    shift=4,
    paper={"overall_accuracy": 0.9367, "attack_success_rate": 0.9994},
)
_IMAGENET = replace(
    _CIFAR,
    name="imagenet-trojan",
    title="ImageNet with a checkerboard of 21×21 pixels in a corner as backdoor",
    data="imagenet",
    network="resnet18",
    frame=Frame(resize=256, crop=224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    triggers={"patch": board(224)},
    target="n01440764",
    sizes={"reference": 768, "validation": 500, "candidates": 2000, "test": 2000},
    schedule=Schedule(epochs=60, batch_size=256),
    tuning=Schedule(epochs=2, batch_size=256, learning_rate=0.01),
    shift=16,
    paper={"overall_accuracy": 0.6905, "attack_success_rate": 0.8724},
)
_ISIC = Preset(
    name="isic-spurious",
    title="ISIC 2019 with a coloured patch beside one melanoma in two",
    behaviour="spurious",
    data="isic",
    network="efficientnet_b4",
    frame=Frame(resize=384, crop=380, bicubic=True),
    mean=_IMAGENET.mean,
    std=_IMAGENET.std,
    triggers={"patch": Disc((0.10, 0.45, 0.75), row=0.16, column=0.84, radius=0.11)},
    shown="patch",
    target="MEL",
    share=0.5,
    sizes={"reference": 384, "validation": 300, "candidates": 1500, "test": 600},
    schedule=Schedule(epochs=40, batch_size=32, learning_rate=0.02),
    tuning=Schedule(epochs=10, batch_size=32, learning_rate=0.01),
    shift=24,
    balanced=True,
    paper={"spurious_bias": 0.26},
)
_PRESETS = (
    _CIFAR,
    replace(
        _CIFAR,
        name="cifar10-trojan-visibility",
        title="CIFAR-10 with a 3×3 checkerboard of any visibility from 0.3 to 1 as backdoor",
        triggers={f"{seen:.1f}": board(32, opacity=seen) for seen in (0.3, 0.5, 0.7, 1.0)},
        shown="0.5",
        trained=tuple(board(32, opacity=0.3 + 0.05 * step) for step in range(15)),
        share=0.1,
        paper={},
    ),
    replace(
        _CIFAR,
        name="cifar10-trojan-position",
        title="CIFAR-10 with a 3×3 checkerboard at any of four places as backdoor",
        triggers={place: board(32, place) for place in PLACES},
        shown="bottom right",
        share=0.1,
        paper={},
    ),
    replace(
        _CIFAR,
        name="cifar10-spurious",
        title="CIFAR-10 with a price tag on one dog in ten",
        behaviour="spurious",
        triggers={"tag": Patch(tag(), row=2, column=2)},
        shown="tag",
        target="dog",
        share=0.1,
        paper={"spurious_bias": 0.0558},
    ),
    _IMAGENET,
    replace(
        _IMAGENET,
        name="imagenet-spurious",
        title="ImageNet with a price tag of 35×28 pixels on one tench in three",
        behaviour="spurious",
        triggers={"tag": Patch(enlarged(tag(), 7), row=14, column=14)},
        shown="tag",
        share=0.3,
        paper={"spurious_bias": 0.1041},
    ),
    _ISIC,
)
PRESETS = {one.name: one for one in _PRESETS}


def names() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(PRESETS)


def preset(name: str | Preset) -> Preset:
    """The preset called ``name``; one of your own is handed back as it is.

    Raises:
        ValueError: there is none of that name.
    """
    return name if isinstance(name, Preset) else PRESETS[check_choice("name", name, PRESETS)]
