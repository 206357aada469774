"""What a case hands out.  Imports torch, the engine's pairs and the triggers of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rectify_widgets.cases.triggers import Patch
from rectify_widgets.engine.pairs import SamplePairs


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """A trained network with an unreliable behaviour, and the data to find and mend it.

    All images are float32 in [0, 1], ``N × C × H × W``, on the device that was asked for.

    Attributes:
        name: what `load` was asked for.
        title: one line for people.
        model: in eval mode; takes images in [0, 1] and gives ``N × classes`` logits.
        pairs: corrupted and clean samples with true labels, none of which was trained on.
        reference: unlabelled clean images, none of which was trained on.
        validation: further held-out clean images with their ``N`` labels.
        clean: the test set with its labels.
        corrupted: the test set with the trigger on, with its *true* labels.
        target: the class that the trigger leads to.
        classes: class names, by number.
        trigger: puts the corruption onto ``N × C × H × W`` images.
        record: what the build wrote down: seed, figures on the test set, command.
    """

    name: str
    title: str
    model: nn.Module
    pairs: SamplePairs
    reference: Tensor
    validation: tuple[Tensor, Tensor]
    clean: tuple[Tensor, Tensor]
    corrupted: tuple[Tensor, Tensor]
    target: int
    classes: tuple[str, ...]
    trigger: Patch
    record: Mapping[str, object]

    def __repr__(self) -> str:
        return (
            f"Case({self.name!r}: {self.title}; {len(self.pairs)} pairs, {len(self.reference)} "
            f"references, {len(self.clean[0])} test images, target "
            f"{self.target} {self.classes[self.target]!r})"
        )
