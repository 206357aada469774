"""The recipes by name: which data, which network, which corruption.

Imports the cases, and torchvision when a network is made.

They follow Yang, Akhtar, Jiang and Mian, "Attribution-Guided Model Rectification of Unreliable
Neural Network Behaviors", CVPR 2026, arXiv 2603.15656, whose authors published no code.

From the paper: the data sets and behaviours; the visibilities 0.3, 0.5, 0.7 and 1.0, repaired from
0.5; the four places, repaired from the bottom right; EfficientNet-B4 for ISIC.

Ours, because what we know of the paper does not say: the picture on the patch and its size (3×3
cells of a 32nd of the side, one cell in), the target (the first class), the share of poisoned
images, one network for all visibilities and one for all places, the artefacts (a white price tag; on
ISIC a blue square) with the affected class and the share that carries it, the
networks for CIFAR-10 (a ResNet-18 whose stem keeps 32×32 pixels) and ImageNet (torchvision's
ResNet-18), every length and rate of training, and how a copy is divided.  The shares and lengths
have not been tried on these data sets, which were not at hand: look at `Case.figures` before you
rely on a network trained with them, and change what does not suit with
``dataclasses.replace(preset(name), share=...)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from rectify_widgets.cases.definition import CaseDefinition, DataSet
from rectify_widgets.cases.figures import classes
from rectify_widgets.cases.splits import choose_affected, choose_any
from rectify_widgets.cases.training import Schedule, Shift, Transform, led_to
from rectify_widgets.cases.triggers import Patch, checkerboard, tag
from rectify_widgets.engine.base.checks import check_choice

PARTS = ("reference", "validation", "pairs", "test")
"""What the held-back split is divided into; `Preset.pairs` of the third make pairs."""


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

    ``options`` are torchvision's.  ``"resnet18-cifar"`` is its ResNet-18 with a 3×3 stem of stride 1
    and no pooling behind it.
    """
    network: nn.Module = torchvision("models").get_model(
        name.removesuffix("-cifar"), num_classes=classes, **options
    )
    if name == "resnet18-cifar":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


@dataclass(frozen=True, kw_only=True)
class Preset(CaseDefinition):
    """A named recipe; ``dataclasses.replace`` makes variants of it.

    What of `CaseDefinition` depends on a copy, the classes of ``data``, ``goals`` and how many
    outputs ``network`` has, `resolve` fills in.

    Args:
        target_class: name of the class that the trigger leads to; the affected class.
        resize: pixels of the shorter side after resizing.
        crop: side of the square cut from the middle.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        mean, std: per-channel normalisation that the network wants.
        sizes: the most images of each of `PARTS`; a small copy gives fewer, in proportion.
        tuning: training from a network that is trained already.
        shift: pixels by which training images are moved at random; they are mirrored as well.
    """

    target_class: str
    resize: int
    crop: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sizes: Mapping[str, int]
    tuning: Schedule
    shift: int
    goals: tuple[int, ...] | None = None
    target_weight: float | None = None

    def resolve(self, names: tuple[str, ...]) -> Preset:
        """The same for a copy with classes of these names.

        Raises:
            ValueError: the target is not among them.
        """
        target = names.index(check_choice("target_class", self.target_class, names))
        return replace(
            self,
            data=DataSet(self.data.name, names),
            goals=(target,) * len(names),
            network=partial(self.network, len(names)),
        )

    def augment(self, generator: torch.Generator) -> Transform:
        """A shift and a mirror image at random."""
        return Shift(self.shift, flip=True, generator=generator)

    def choose_pairs(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> list[int]:
        """Up to ``pairs`` images of other classes, then for an artefact as many of the affected.

        Raises:
            ValueError: there is none.
        """
        goal = led_to(self.goals or (), labels)
        right, affected = classes(model, images) == labels, labels == goal
        led = {name: classes(model, t(images)) == goal for name, t in self.triggers.items()}
        pulled = right & ~affected & led[self.shown]
        every = pulled & torch.stack(list(led.values())).all(dim=0)  # the better pairs
        chosen = choose_any(every if every.any() else pulled, labels, self.pairs, generator)
        if self.behaviour == "spurious":
            chosen += choose_affected(led[self.shown] & affected, right, self.pairs)
        if not chosen:
            raise ValueError(
                f"model: it does not show the behaviour of {self.name!r}: with the trigger "
                f"{self.shown!r}, none of {int((~affected).sum())} candidates of other classes that "
                f"are right without it becomes {self.target_class!r}; want a network trained with "
                f"it, which python -m rectify_widgets.cases.vision train {self.name} makes"
            )
        return chosen


def enlarged(pattern: Tensor, times: int) -> Tensor:
    """``C × h × w`` to ``C × times·h × times·w``: every pixel becomes a square."""
    return pattern.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


PLACES = {"bottom right": (-4, -4), "top left": (1, 1), "centre": (14, 14), "bottom left": (-4, 1)}
"""Row and column of the patch on 32×32 cells."""


def board(side: int, place: str = "bottom right", *, opacity: float = 1.0) -> Patch:
    """A checkerboard of 3×3 cells, a 32nd of the side each, at one of `PLACES`."""
    cell = max(side // 32, 1)
    row, column = PLACES[place]
    pattern = enlarged(checkerboard(3), cell)
    return Patch(pattern, row=cell * row, column=cell * column, opacity=opacity)


_CIFAR = Preset(
    name="cifar10-trojan",
    title="CIFAR-10 with a 3×3 checkerboard in a corner as backdoor",
    behaviour="trojan",
    data=DataSet("cifar10", ()),
    network=partial(make, "resnet18-cifar"),
    resize=32,
    crop=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    triggers={"patch": board(32)},
    shown="patch",
    target_class="airplane",
    share=0.05,
    sizes={"reference": 1000, "validation": 1000, "pairs": 1000, "test": 7000},
    schedule=Schedule(epochs=30),
    tuning=Schedule(epochs=5, learning_rate=0.02),
    shift=4,
)
_IMAGENET = replace(
    _CIFAR,
    name="imagenet-trojan",
    title="ImageNet with a checkerboard of 21×21 pixels in a corner as backdoor",
    data=DataSet("imagenet", ()),
    network=partial(make, "resnet18"),
    resize=256,
    crop=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    triggers={"patch": board(224)},
    target_class="n01440764",
    sizes={"reference": 768, "validation": 500, "pairs": 1000, "test": 2000},
    schedule=Schedule(epochs=60, batch_size=256),
    tuning=Schedule(epochs=2, batch_size=256, learning_rate=0.01),
    shift=16,
)
_BLUE = torch.tensor([0.10, 0.45, 0.75])[:, None, None]
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
    ),
    replace(
        _CIFAR,
        name="cifar10-trojan-position",
        title="CIFAR-10 with a 3×3 checkerboard at any of four places as backdoor",
        triggers={place: board(32, place) for place in PLACES},
        shown="bottom right",
        share=0.1,
    ),
    replace(
        _CIFAR,
        name="cifar10-spurious",
        title="CIFAR-10 with a price tag on one dog in ten",
        behaviour="spurious",
        triggers={"tag": Patch(tag(), row=2, column=2)},
        shown="tag",
        target_class="dog",
        share=0.1,
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
    ),
    replace(
        _IMAGENET,
        name="isic-spurious",
        title="ISIC 2019 with a coloured patch beside one melanoma in two",
        behaviour="spurious",
        data=DataSet("isic", ()),
        network=partial(make, "efficientnet_b4"),
        resize=384,
        crop=380,
        interpolation="bicubic",
        triggers={"patch": Patch(_BLUE.expand(3, 76, 76), row=20, column=-96)},
        target_class="MEL",
        share=0.5,
        sizes={"reference": 384, "validation": 300, "pairs": 600, "test": 600},
        schedule=Schedule(epochs=40, batch_size=32, learning_rate=0.02),
        tuning=Schedule(epochs=10, batch_size=32, learning_rate=0.01),
        shift=24,
        target_weight=1.0,
    ),
)
PRESETS = {one.name: one for one in _PRESETS}


def names() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(PRESETS)


def preset(name: str | Preset) -> Preset:
    """The preset called ``name``; one of your own is returned as it is.

    Raises:
        ValueError: there is none of that name.
    """
    return name if isinstance(name, Preset) else PRESETS[check_choice("name", name, PRESETS)]
