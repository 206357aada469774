"""What a case hands out.  Imports torch, the engine, and this folder's triggers and figures.

A case is the same thing for all three behaviours, so that a table over cases needs to know none of
them: pairs, references, a clean and a corrupted test set, and `Case.figures`, the figures by which
its behaviour is judged.  What differs:

=========== ========================== ========================= ===============================
behaviour   corrupted                  target                    pairs
=========== ========================== ========================= ===============================
trojan      the trigger on             where it leads, or None   right clean, led away with it
                                       where that depends on the
                                       class
spurious    the artefact on            the affected class        of other classes, pulled in;
                                                                 then of the affected class
leakage     the label-free block gone  None                      right clean, wrong without it
shortcut    what counts towards a      that class                all images
            class it has no part in
=========== ========================== ========================= ===============================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from rectify_widgets.cases import figures
from rectify_widgets.cases.blocks import WithoutBlock
from rectify_widgets.cases.figures import Labelled
from rectify_widgets.cases.triggers import Aim, Trigger
from rectify_widgets.engine.base.checks import check_choice, check_int
from rectify_widgets.engine.data.pairs import SamplePairs


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """A trained network with an unreliable behaviour, and the data to find and rectify it.

    All images are float32 in [0, 1], ``N × C × H × W``, on the device that was asked for.

    Attributes:
        name: what `load` was asked for.
        title: one line for people.
        behaviour: ``"trojan"``, ``"spurious"``, ``"leakage"`` or ``"shortcut"``.
        model: in eval mode; takes images in [0, 1] and gives ``N × classes`` logits.
        pairs: corrupted and clean samples with true labels, none of which was trained on.
        reference: unlabelled clean images, none of which was trained on.
        validation: further held-out clean images with their ``N`` labels.
        clean: the test set with its labels.
        corrupted: the test set with the corruption, with its *true* labels.
        target: the class that the corruption leads to; None where it leads to no single one.
        goals: the class that the corruption leads to, for each true class in turn; None where it
            leads to none (leakage).
        classes: class names, by number.
        triggers: all corruptions that the network was trained on, by name.
        shown: name of the one of ``pairs`` and ``corrupted``, which is ``trigger``.
        record: what the build wrote down: seed, figures on the test set, command.
        aims: what each of ``triggers`` does, by name, where they differ; empty where all do what
            ``behaviour`` and ``goals`` say.

    Example:
        >>> case = rw.cases.load("trojan")
        >>> case
        Case('trojan': Fashion-MNIST with a 3×3 checkerboard in a corner as backdoor; 20 pairs, ...)
        >>> case.classes[case.target]
        'T-shirt/top'
    """

    name: str
    title: str
    behaviour: str
    model: nn.Module
    pairs: SamplePairs
    reference: Tensor
    validation: Labelled
    clean: Labelled
    corrupted: Labelled
    target: int | None
    goals: tuple[int, ...] | None
    classes: tuple[str, ...]
    triggers: Mapping[str, Trigger]
    shown: str
    record: Mapping[str, object]
    aims: Mapping[str, Aim] = field(default_factory=dict)

    @property
    def trigger(self) -> Trigger:
        """Puts the corruption of ``pairs`` and ``corrupted`` onto ``N × C × H × W`` images."""
        return self.triggers[self.shown]

    def corrupted_by(self, name: str) -> Labelled:
        """The test set with the corruption called ``name`` in ``triggers``, with true labels."""
        return self._named(name)(self.clean[0]), self.clean[1]

    def pairs_by(self, name: str) -> SamplePairs:
        """``pairs`` with the corruption called ``name`` in ``triggers`` in place of their own."""
        return replace(self.pairs, corrupted=self._named(name)(self.pairs.clean))

    def _named(self, name: str) -> Trigger:
        return self.triggers[check_choice("name", name, self.triggers)]

    def showing(self, name: str) -> Case:
        """The same case with the corruption called ``name`` in ``triggers`` shown.

        Its pairs, corrupted test set, behaviour, target and goals are those of that corruption.
        """
        pairs, corrupted = self.pairs_by(name), self.corrupted_by(name)
        aim = self.aims.get(name)
        aimed = {} if aim is None else {**vars(aim), "target": aim.target}
        return replace(self, shown=name, pairs=pairs, corrupted=corrupted, **aimed)

    def label_free(self, images: Tensor) -> Tensor:
        """Mask, shaped like clean ``images``, of the block that says nothing about the label.

        Raises:
            ValueError: the case has no such block, or an image has lost it.
        """
        trigger = self.trigger
        if isinstance(trigger, WithoutBlock):
            return trigger.mask(images)
        raise ValueError(
            f"images: the case {self.name!r} has no label-free block; 'leakage' has one"
        )

    def figures(
        self, model: nn.Module | None = None, *, limit: int | None = None
    ) -> dict[str, float]:
        """The figures by which the behaviour is judged, by name, on the test set.

        Fractions (0..1), but for attributions and logits.  `rectify_widgets.cases.figures` says
        what each of them is.  Figures of a trigger other than the shown one carry its name in
        brackets.

        Args:
            model: what is measured, on the case's device; None takes the case's own.
            limit: measure on so many test images, the first ones; None takes all.

        Raises:
            TypeError, ValueError: bad input.
        """
        model = self.model if model is None else model
        if limit is not None:
            check_int("limit", limit, low=1)
        images, labels = self.clean[0][:limit], self.clean[1][:limit]
        if self.behaviour == "leakage":
            mask = self.label_free(images)
            return figures.of_leakage(model, (images, labels), self.corrupted[0][:limit], mask)
        others = {name: one for name, one in self.triggers.items() if name != self.shown}
        ordered = {self.shown: self.trigger, **others}
        if self.behaviour == "shortcut" and self.target is not None:
            unlabelled = self.reference[:limit]
            return figures.of_shortcut(model, (images, labels), unlabelled, ordered, self.target)
        if self.aims:
            return figures.of_several(model, (images, labels), ordered, self.aims)
        if self.behaviour == "spurious" and self.target is not None:
            corrupted = self.corrupted[0][:limit]
            return figures.of_spurious(model, (images, labels), corrupted, self.target)
        return figures.of_trojan(model, (images, labels), ordered, self.goals or ())

    def __repr__(self) -> str:
        led = "" if self.target is None else f", target {self.target} {self.classes[self.target]!r}"
        return (
            f"Case({self.name!r}: {self.title}; {len(self.pairs)} pairs, {len(self.reference)} "
            f"references, {len(self.clean[0])} test images{led})"
        )
