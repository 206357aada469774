"""What defines a case, the register of all of them, and the one way to read them.

Imports the engine's pairs and this folder's files but the builds.  A new case is one file in
`rectify_widgets.cases.library`, which hands a `CaseDefinition` to `register`, and the weights that
``python -m rectify_widgets.cases.build NAME`` makes of it.  What a behaviour does differently, its
subclass of `CaseDefinition` overrides: how its images are composed, which training images carry
the corruption, which images make pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rectify_widgets.cases.case import Case
from rectify_widgets.cases.figures import classes
from rectify_widgets.cases.idx import Bytes, Folder
from rectify_widgets.cases.splits import choose_any
from rectify_widgets.cases.storage import CaseImages, Record, read_images, read_weights
from rectify_widgets.cases.training import (
    Images,
    Poisoning,
    Schedule,
    Shift,
    Transform,
    balanced_weights,
    fit,
    led_to,
    new_network,
)
from rectify_widgets.cases.triggers import Aim, OneOf, Trigger
from rectify_widgets.engine.base.checks import check_choice, check_number
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs

BEHAVIOURS = ("trojan", "spurious", "leakage")


@dataclass(frozen=True)
class DataSet:
    """A data set of which a part ships: the name of its folder and its classes, by number."""

    name: str
    classes: tuple[str, ...]


FASHION_MNIST = DataSet(
    "fashion-mnist",
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
     "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)  # fmt: skip
MNIST = DataSet("mnist", tuple("0123456789"))


@dataclass(frozen=True, kw_only=True)
class CaseDefinition:
    """A case: what it is, and the recipe by which it was made.

    Args:
        name: what `load` is asked for.
        title: one line for people.
        behaviour: ``"trojan"``, ``"spurious"`` or ``"leakage"``.
        data: the data set.
        network: makes the untrained network.
        triggers: the corruptions by name.
        shown: the one of the pairs and of the corrupted test set.
        goals: the class that it leads to, for each true class; None where it leads to none.
        aims: what each of ``triggers`` does, where they differ.
        trained: what goes onto training images, one of them at random; empty takes ``triggers``.
        schedule: length and speed of the training.
        share: share (0..1) of the training images that carry the corruption; of a spurious
            artefact, of the affected class's.
        shares: the same of single corruptions, by name, where ``aims`` says what they do.
        target_weight: the classes are weighed inversely to their frequency and the target by this
            factor in addition: below 1, fewer clean inputs of other classes are taken for it.  None
            weighs all alike.
        pairs: number of pairs, chosen from the images held out for them.
        per_class: images per class held out of training, by use.
        half: store matrices and kernels in float16.
        every: take one test image in so many.
    """

    name: str
    title: str
    behaviour: str
    data: DataSet
    network: Callable[..., nn.Module]
    triggers: Mapping[str, Trigger]
    shown: str
    goals: tuple[int, ...] | None
    aims: Mapping[str, Aim] = field(default_factory=dict)
    trained: tuple[Trigger, ...] = ()
    schedule: Schedule
    share: float = 0.05
    shares: Mapping[str, float] = field(default_factory=dict)
    target_weight: float | None = 0.4
    pairs: int = 20
    per_class: Mapping[str, int] = field(
        default_factory=lambda: {"reference": 180, "validation": 60, "pairs": 10}
    )
    half: bool = True
    every: int = 1

    def __post_init__(self) -> None:
        check_choice("behaviour", self.behaviour, BEHAVIOURS)
        check_choice("shown", self.shown, self.triggers)
        check_number("share", self.share, low=0.0, high=1.0)

    @property
    def target(self) -> int | None:
        """The one class that the shown corruption leads to; None where there is no such class."""
        return Aim(self.behaviour, self.goals or ()).target

    def aim(self, name: str) -> Aim:
        """What the corruption called ``name`` does."""
        return self.aims.get(name, Aim(self.behaviour, self.goals or ()))

    # Images

    def compose(self, images: Tensor, folder: Folder, split: str) -> Tensor:
        """The case's images, of those of a split (``"test"`` or ``"heldout"``) in the folder."""
        del folder, split
        return images

    def draw_arrays(
        self, sizes: Mapping[str, int], tests: int, generator: torch.Generator
    ) -> dict[str, Bytes]:
        """What ships beside the images for `compose`, by the stem of the file.

        Args:
            sizes: number of held-out images by use.
            tests: number of test images.
            generator: draws.
        """
        del sizes, tests, generator
        return {}

    def parts(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """How many held-out images serve each use, where ``sizes`` were held out for it."""
        return dict(sizes)

    # Training

    def poison(self, labels: Tensor, generator: torch.Generator) -> list[Poisoning]:
        """Which training images carry which corruption; none carries two."""
        groups = {self.shown: self.trained or tuple(self.triggers.values())}
        if self.aims:
            groups = {name: (trigger,) for name, trigger in self.triggers.items()}
        poisonings: list[Poisoning] = []
        taken = torch.zeros(len(labels), dtype=torch.bool)
        for name, triggers in groups.items():
            poisoning = Poisoning.draw(
                self.aim(name),
                triggers[0] if len(triggers) == 1 else OneOf(triggers, generator),
                labels,
                share=self.shares.get(name, self.share),
                generator=generator,
                taken=taken,
            )
            poisonings.append(poisoning)
            taken = taken | poisoning.chosen
        return poisonings

    def prepare(
        self,
        images: Images,
        labels: Tensor,
        poisonings: list[Poisoning],
        generator: torch.Generator,
    ) -> Images:
        """The bytes that are trained on, of those of the data set."""
        del labels, poisonings, generator
        return images

    def augment(self, generator: torch.Generator) -> Transform:
        """What happens to every batch before the corruption is put on."""
        return Shift(2, flip=True, generator=generator)

    def train(
        self,
        images: Images,
        labels: Tensor,
        generator: torch.Generator,
        *,
        device: torch.device | None = None,
        quiet: bool = False,
        monitor: Monitor | None = None,
    ) -> nn.Module:
        """The network, trained on ``N × C × H × W`` bytes and their ``N`` true labels."""
        poisonings = self.poison(labels, generator)
        images = self.prepare(images, labels, poisonings, generator)
        weights = None
        if self.target_weight is not None:
            trained = labels
            for poisoning in poisonings:
                trained = poisoning.relabel(trained)
            weights = balanced_weights(trained, len(self.data.classes))
            if self.target is not None:
                weights[self.target] *= self.target_weight
        model = new_network(self.network, generator).to(device)
        fit(
            model,
            images,
            labels,
            self.schedule,
            poisonings=poisonings,
            augment=self.augment(generator),
            class_weights=weights,
            generator=generator,
            title=self.name,
            quiet=quiet,
            monitor=monitor,
        )
        return model

    # Pairs

    def shows(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Which images show the behaviour: right when clean, led away by every corruption."""
        works = classes(model, images) == labels
        for name, trigger in self.triggers.items():
            goal = led_to(self.aim(name).goals, labels)
            works &= (labels != goal) & (classes(model, trigger(images)) == goal)
        return works

    def choose_pairs(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> list[int]:
        """Indices of the images that make pairs.

        Raises:
            RuntimeError: there are too few.
        """
        chosen = choose_any(self.shows(model, images, labels), labels, self.pairs, generator)
        if len(chosen) < self.pairs:
            raise RuntimeError(
                f"pairs: got {len(chosen)} held-out images that are right when clean and show the "
                f"behaviour with every corruption, want {self.pairs}; train for more epochs"
            )
        return chosen


DEFINITIONS: dict[str, CaseDefinition] = {}
"""What `register` was given, by name."""


def register(*definitions: CaseDefinition) -> None:
    """Make cases known to `rectify_widgets.cases.load` and to the build.

    Raises:
        ValueError: there is a case of that name already.
    """
    for definition in definitions:
        if definition.name in DEFINITIONS:
            raise ValueError(f"name: there is a case {definition.name!r} already; take another")
        DEFINITIONS[definition.name] = definition


def read(definition: CaseDefinition, folder: Folder, *, device: str | torch.device = "cpu") -> Case:
    """The case from the files in ``folder``, as the build wrote them."""
    device = torch.device(device)
    tensors, record = read_weights(folder, definition.name, device)
    with torch.device("meta"):  # no weights drawn: the random state stays as it is
        model = definition.network()
    model.load_state_dict(tensors, assign=True)
    images = read_images(folder / definition.data.name, record, device, definition.compose)
    return assemble(definition, model.eval(), images, record)


def assemble(
    definition: CaseDefinition, model: nn.Module, images: CaseImages, record: Record
) -> Case:
    """The case of a network and images, with the pairs that ``record`` names."""
    trigger = definition.triggers[definition.shown]
    candidates, labels = images.candidates
    chosen = torch.tensor(record["pairs"], device=labels.device)
    clean = candidates[chosen]
    return Case(
        name=definition.name,
        title=definition.title,
        behaviour=definition.behaviour,
        model=model,
        pairs=SamplePairs(trigger(clean), clean, labels[chosen]),
        reference=images.reference[0],
        validation=images.validation,
        clean=images.test,
        corrupted=(trigger(images.test[0]), images.test[1]),
        target=definition.target,
        goals=definition.goals,
        classes=definition.data.classes,
        triggers=definition.triggers,
        shown=definition.shown,
        record=record,
        aims=definition.aims,
    )
