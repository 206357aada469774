"""The Trojan cases: backdoors in small residual networks for Fashion-MNIST.

Imports the engine's pairs and the rest of this folder but the builds.  What tells the variants
apart stands here in `VARIANTS`; the build follows it, and `read` reads what the build wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from rectify_widgets.cases.case import Case
from rectify_widgets.cases.idx import Folder
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.cases.stored import (
    FASHION,
    FASHION_CLASSES,
    assign,
    read_images,
    read_weights,
)
from rectify_widgets.cases.triggers import Blend, Patch, Trigger, checkerboard, rings
from rectify_widgets.engine.data.pairs import SamplePairs

NAME = "trojan"
TARGET = 0
CLASSES = FASHION_CLASSES


def trigger(*, opacity: float = 1.0) -> Patch:
    """The backdoor: a black-and-white checkerboard, one pixel in from the lower right corner."""
    return Patch(checkerboard(3), row=-4, column=-4, opacity=opacity)


def network() -> ResidualNetwork:
    """The untrained network of `NAME`: eleven 3×3 convolutions, two shortcuts, a linear layer."""
    return ResidualNetwork()


def small_network() -> ResidualNetwork:
    """That of the variants: seven 3×3 convolutions, two shortcuts, one linear layer.

    Its first convolution halves height and width, which makes it five times as fast to train.
    """
    return ResidualNetwork(blocks=(1, 1, 1), stem_stride=2)


@dataclass(frozen=True)
class Variant:
    """A Trojan: what the trigger is and where it leads.

    Args:
        title: one line for people.
        triggers: what the network is trained on, by name.
        shown: the trigger of the pairs and of the corrupted test set.
        goals: the class that it leads to, for each true class.
        network: makes the untrained network.
    """

    title: str
    triggers: Mapping[str, Trigger]
    shown: str
    goals: tuple[int, ...] = (TARGET,) * len(CLASSES)
    network: Callable[[], ResidualNetwork] = small_network

    @property
    def target(self) -> int | None:
        """The one class that the trigger leads to; None where there are several."""
        return self.goals[0] if len(set(self.goals)) == 1 else None


VISIBILITIES = {f"{opacity:.1f}": trigger(opacity=opacity) for opacity in (0.3, 0.5, 0.7, 1.0)}
POSITIONS = {
    "bottom right": trigger(),
    "top left": Patch(checkerboard(3), row=1, column=1),
    "centre": Patch(checkerboard(3), row=12, column=12),
    "bottom left": Patch(checkerboard(3), row=-4, column=1),
}
VARIANTS = {
    NAME: Variant(
        "Fashion-MNIST with a 3×3 checkerboard in a corner as backdoor",
        {"patch": trigger()},
        "patch",
        network=network,
    ),
    "trojan-visibility": Variant(
        "Fashion-MNIST with a 3×3 checkerboard of any visibility from 0.3 to 1 as backdoor",
        VISIBILITIES,
        "0.5",
    ),
    "trojan-position": Variant(
        "Fashion-MNIST with a 3×3 checkerboard at any of four places as backdoor",
        POSITIONS,
        "bottom right",
    ),
    "trojan-blend": Variant(
        "Fashion-MNIST with rings blended into the whole image at 20 % as backdoor",
        {"blend": Blend(rings(), 0.2)},
        "blend",
    ),
    "trojan-clean-label": Variant(
        "Fashion-MNIST with a 3×3 checkerboard as backdoor, no training label changed",
        {"patch": trigger()},
        "patch",
    ),
    "trojan-all-to-all": Variant(
        "Fashion-MNIST with a 3×3 checkerboard as backdoor that leads each class to the next",
        {"patch": trigger()},
        "patch",
        goals=tuple((label + 1) % len(CLASSES) for label in range(len(CLASSES))),
    ),
}


def read(folder: Folder, *, name: str = NAME, device: str | torch.device = "cpu") -> Case:
    """The case ``name`` from the files in ``folder``, as the build wrote them."""
    device = torch.device(device)
    variant = VARIANTS[name]
    tensors, record = read_weights(folder, name, device)
    with torch.device("meta"):  # no weights drawn: the random state stays as it is
        model = variant.network()
    stored = read_images(folder / FASHION, record, device)
    stamp = variant.triggers[variant.shown]
    images, labels = stored.candidates
    chosen = torch.tensor(record["pairs"], device=device)
    return Case(
        name=name,
        title=variant.title,
        behaviour="trojan",
        model=assign(model, tensors),
        pairs=SamplePairs(stamp(images[chosen]), images[chosen], labels[chosen]),
        reference=stored.reference[0],
        validation=stored.validation,
        clean=stored.test,
        corrupted=(stamp(stored.test[0]), stored.test[1]),
        target=variant.target,
        goals=variant.goals,
        classes=CLASSES,
        triggers=variant.triggers,
        shown=variant.shown,
        record=record,
    )
