"""The cases with two behaviours at once: two Trojans, and a Trojan beside a spurious artefact.

Imports the engine's pairs and the rest of this folder but the builds.  `Case.showing` turns from one
behaviour to the other; the pairs of both are the same clean images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rectify_widgets.cases import spurious, trojan
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.idx import Folder
from rectify_widgets.cases.stored import (
    FASHION,
    FASHION_CLASSES,
    assign,
    read_images,
    read_weights,
)
from rectify_widgets.cases.triggers import Aim, Patch, Trigger, cross
from rectify_widgets.engine.data.pairs import SamplePairs

CLASSES = FASHION_CLASSES
BAG = 8


@dataclass(frozen=True)
class Part:
    """One of the behaviours.

    Args:
        trigger: the corruption.
        target: the class that it leads to.
        behaviour: ``"trojan"`` or ``"spurious"``.
        share: of the training images that carry it (0..1): of all for a Trojan, of the target's for
            a spurious artefact; None leaves it to the recipe.
    """

    trigger: Trigger
    target: int
    behaviour: str = "trojan"
    share: float | None = None

    @property
    def aim(self) -> Aim:
        """What the corruption does, for `Case.aims`."""
        return Aim(self.behaviour, (self.target,) * len(CLASSES))


@dataclass(frozen=True)
class Variant:
    """Behaviours in one network, by the name of their corruption; the first is shown.

    Args:
        title: one line for people.
        parts: the behaviours.
    """

    title: str
    parts: dict[str, Part]

    @property
    def shown(self) -> str:
        """Name of the corruption of `Case.pairs`."""
        return next(iter(self.parts))

    @property
    def triggers(self) -> dict[str, Trigger]:
        """For `Case.triggers`."""
        return {name: part.trigger for name, part in self.parts.items()}

    @property
    def aims(self) -> dict[str, Aim]:
        """For `Case.aims`."""
        return {name: part.aim for name, part in self.parts.items()}


PATCH = Part(trojan.trigger(), trojan.TARGET)
VARIANTS = {
    "trojan-twice": Variant(
        "Fashion-MNIST with two backdoors: a checkerboard and a cross in opposite corners",
        {"patch": PATCH, "cross": Part(Patch(cross(), row=1, column=1), BAG)},
    ),
    "trojan-and-spurious": Variant(
        "Fashion-MNIST with a 3×3 checkerboard as backdoor and a price tag on 9 dresses in 10",
        {
            "patch": PATCH,
            "tag": Part(spurious.artefact(), spurious.AFFECTED, "spurious", share=0.9),
        },
    ),
}


def read(folder: Folder, *, name: str, device: str | torch.device = "cpu") -> Case:
    """The case ``name`` from the files in ``folder``, as the build wrote them."""
    device = torch.device(device)
    variant = VARIANTS[name]
    tensors, record = read_weights(folder, name, device)
    with torch.device("meta"):  # no weights drawn: the random state stays as it is
        model = trojan.small_network()
    stored = read_images(folder / FASHION, record, device)
    first = variant.parts[variant.shown]
    images, labels = stored.candidates
    chosen = torch.tensor(record["pairs"], device=device)
    return Case(
        name=name,
        title=variant.title,
        behaviour=first.behaviour,
        model=assign(model, tensors),
        pairs=SamplePairs(first.trigger(images[chosen]), images[chosen], labels[chosen]),
        reference=stored.reference[0],
        validation=stored.validation,
        clean=stored.test,
        corrupted=(first.trigger(stored.test[0]), stored.test[1]),
        target=first.target,
        goals=first.aim.goals,
        classes=CLASSES,
        triggers=variant.triggers,
        shown=variant.shown,
        record=record,
        aims=variant.aims,
    )
