"""The spurious cases: an artefact in part of one class's training images, mild and severe.

Imports the engine's pairs and the rest of this folder but the builds.  The artefact, a white price
tag in the upper left corner, is on images of dresses alone, and so the networks lean on it: they
are surer of a dress that wears one, and take other clothes that wear one for dresses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rectify_widgets.cases.case import Case
from rectify_widgets.cases.idx import Folder
from rectify_widgets.cases.stored import (
    FASHION,
    FASHION_CLASSES,
    assign,
    read_images,
    read_weights,
)
from rectify_widgets.cases.triggers import Patch, tag
from rectify_widgets.cases.trojan import small_network
from rectify_widgets.engine.data.pairs import SamplePairs

AFFECTED = 3
CLASSES = FASHION_CLASSES
SHOWN = "tag"


def artefact() -> Patch:
    """A price tag of 5×4 pixels, two pixels in from the upper left corner."""
    return Patch(tag(), row=2, column=2)


@dataclass(frozen=True)
class Variant:
    """How many of the affected class's training images carry the artefact.

    Args:
        title: one line for people.
        share: of the affected class's training images (0..1).
    """

    title: str
    share: float


VARIANTS = {
    "spurious-mild": Variant("Fashion-MNIST with a price tag on one dress in ten", 0.1),
    "spurious-severe": Variant("Fashion-MNIST with a price tag on 95 dresses in a hundred", 0.95),
}


def read(folder: Folder, *, name: str, device: str | torch.device = "cpu") -> Case:
    """The case ``name`` from the files in ``folder``, as the build wrote them."""
    device = torch.device(device)
    variant = VARIANTS[name]
    tensors, record = read_weights(folder, name, device)
    with torch.device("meta"):  # no weights drawn: the random state stays as it is
        model = small_network()
    stored = read_images(folder / FASHION, record, device)
    stamp = artefact()
    images, labels = stored.candidates
    chosen = torch.tensor(record["pairs"], device=device)
    return Case(
        name=name,
        title=variant.title,
        behaviour="spurious",
        model=assign(model, tensors),
        pairs=SamplePairs(stamp(images[chosen]), images[chosen], labels[chosen]),
        reference=stored.reference[0],
        validation=stored.validation,
        clean=stored.test,
        corrupted=(stamp(stored.test[0]), stored.test[1]),
        target=AFFECTED,
        goals=(AFFECTED,) * len(CLASSES),
        classes=CLASSES,
        triggers={SHOWN: stamp},
        shown=SHOWN,
        record=record,
    )
