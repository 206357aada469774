"""Do a model's classes depend on a concept?  `dependence` and its result.

Imports the engine, `concepts`, `references` and `suspicions`; matplotlib in `plot`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_module
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.base.tables import frame, html_table
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import eval_mode, predict_all, with_head
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.reveal.concepts import channel_means, class_gradients, pattern, ridge_filter
from rectify_widgets.reveal.references import check_classes, check_scores, gather_references
from rectify_widgets.reveal.suspicions import Suspicion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST, MOST = 32, 256
"""References that are needed, and that are used at most."""
CLASSES = 12
"""Classes that are tested; of more, those whose scores the concept moves most."""
LEVEL = 0.05
DIRECTIONS = {"pattern": pattern, "filter": ridge_filter}
HEADS = ("layer", "class", "effect", "random 95 %", "share", "p")


@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity:
    """How one model's classes answer to a concept, layer by layer (``L`` layers, ``K`` classes).

    Attributes:
        layers: names, in network order.
        classes: class numbers.
        directions: by layer the concept's direction, one number a channel.
        effect: ``L × K``, change of a class's log-odds (nats, first order, mean over references) by
            the concept's direction.
        share: ``L × K``, share (0..1) of references on which it is positive: the score of TCAV.
        random: ``L × K``, 95 % quantile of the magnitude of the effects of random directions.
        p: ``L × K``, share of random directions whose largest effect over all layers and classes,
            in standard deviations, is as large as this one.
    """

    layers: tuple[str, ...]
    classes: tuple[int, ...]
    directions: dict[str, Tensor]
    effect: Tensor
    share: Tensor
    random: Tensor
    p: Tensor

    @property
    def significant(self) -> tuple[tuple[str, int], ...]:
        """Layer and class of the effects with ``p`` of at most 0.05."""
        places = (self.p <= LEVEL).nonzero().tolist()
        return tuple((self.layers[row], self.classes[column]) for row, column in places)


@dataclass(frozen=True, eq=False, repr=False)
class Dependence:
    """Result of `dependence`.

    Attributes:
        before: of the model.
        after: of the repaired model, or None.
        tried: number of random directions.

    Example:
        >>> told = rw.dependence(model, pairs, reference, after=result)
        >>> concept = "classifier", 0  # class 0 in this layer
        >>> concept in told.before.significant, concept in told.after.significant
        (True, False)
    """

    before: Sensitivity
    after: Sensitivity | None
    tried: int

    @property
    def verdict(self) -> str:
        """One or two sentences for people."""
        said = [
            _verdict(self.before, "The model" if self.after is None else "Before the repair it")
        ]
        if self.after is not None:
            said.append(_verdict(self.after, "After the repair it"))
        return " ".join(said)

    def __repr__(self) -> str:
        table = [self._heads(), *self._texts()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join([self.verdict, *lines])

    def _repr_html_(self) -> str:
        rows = [[escape(cell) for cell in row] for row in self._texts()]
        table = html_table(rows, self._heads(), "lrrrrrrr")
        return f"<p>{escape(self.verdict)}</p>{table}"

    def to_frame(self) -> Any:
        """A pandas ``DataFrame`` with a row for each layer and class.

        Raises:
            ImportError: pandas is not installed.
        """
        columns = ["layer", "class", "effect", "share", "random", "p"]
        columns += [] if self.after is None else ["effect_after", "share_after", "p_after"]
        rows = []
        for row, layer in enumerate(self.before.layers):
            for column, number in enumerate(self.before.classes):
                one = self.before
                values = [one.effect, one.share, one.random, one.p]
                if self.after is not None:
                    values += [self.after.effect, self.after.share, self.after.p]
                cells = [layer, number, *(float(each[row, column]) for each in values)]
                rows.append(dict(zip(columns, cells, strict=True)))
        return frame(rows, columns)

    def plot(self) -> Figure:
        """Effect on the class that the concept moves most, by layer; filled where significant."""
        from matplotlib.figure import Figure

        column = self._most()
        names = self.before.layers
        figure = Figure(figsize=(5.6, 1.2 + 0.24 * len(names)), layout="constrained")
        axes = figure.subplots()
        rows = torch.arange(len(names)).tolist()
        bounds = self.before.random[:, column].tolist()
        axes.barh(rows, [2 * one for one in bounds], left=[-one for one in bounds],
                  color="#88888840", label="random directions, 95 %")  # fmt: skip
        models = [("before" if self.after is not None else "model", "#d55e00", self.before)]
        if self.after is not None:
            models.append(("after", "#0072b2", self.after))
        for label, colour, one in models:
            effect = one.effect[:, column].tolist()
            told = (one.p[:, column] <= LEVEL).tolist()
            faces = [colour if yes else "none" for yes in told]
            axes.scatter(effect, rows, c=faces, edgecolors=colour, label=label, zorder=3)
        axes.set_yticks(rows, names)
        axes.invert_yaxis()
        axes.set_xlabel(f"change of class {self.before.classes[column]}, nats", color="#888888")
        axes.set_title(self.verdict, fontsize=7, color="#888888", wrap=True)
        axes.tick_params(colors="#888888", labelsize=7)
        axes.spines[:].set_visible(False)
        axes.legend(fontsize=7, frameon=False, labelcolor="#888888")
        figure.patch.set_alpha(0)
        return figure

    def _most(self) -> int:
        """Column of the class with the smallest ``p``; of equals, with the largest effect."""
        least = self.before.p == self.before.p.min()
        most = self.before.effect.abs().masked_fill(~least, -1.0)
        return int(most.argmax()) % len(self.before.classes)

    def _heads(self) -> tuple[str, ...]:
        return HEADS if self.after is None else (*HEADS, "effect after", "p after")

    def _texts(self) -> list[tuple[str, ...]]:
        column, one = self._most(), self.before
        rows: list[tuple[str, ...]] = []
        for row, layer in enumerate(one.layers):
            cells = [
                layer, str(one.classes[column]), f"{one.effect[row, column]:+.2f}",
                f"{one.random[row, column]:.2f}", f"{100 * one.share[row, column]:.0f} %",
                f"{one.p[row, column]:.3f}",
            ]  # fmt: skip
            if self.after is not None:
                late = self.after
                cells += [f"{late.effect[row, column]:+.2f}", f"{late.p[row, column]:.3f}"]
            rows.append(tuple(cells))
        return rows


def dependence(
    model: nn.Module,
    concept: Suspicion | SamplePairs,
    reference: Inputs,
    *,
    after: nn.Module | Rectification | None = None,
    layers: Iterable[str] | None = None,
    direction: str = "pattern",
    tried: int = 400,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Dependence:
    """Test whether the model's classes depend on a concept, before and after a repair.

    In each layer the concept is a direction: how the channels, averaged over positions, change where
    it appears (the pattern of Pahde et al. 2022, with the length that it has, so that a layer that
    it does not reach any more has none).  The derivative of each class's log-odds along it on the references
    is compared with that along random directions (Kim et al. 2018, TCAV): differences of two
    references that the model takes for one class, which is variation that does not decide.  A
    class depends on the concept where that moves it more.  ``p`` is adjusted for all layers and
    classes tested together (the largest standardised effect of each random direction, Westfall and
    Young 1993).

    It is a test of first order: what a model does only far away from the references is not seen,
    and where something is local, it is seen in layers that put together what lies in few places.

    Args:
        model: the classifier; left as it was.
        concept: pairs with and without it, or a `Suspicion` that has pairs.
        reference: unlabelled inputs, ``N × C × H × W``, at least 32 of at least two predicted
            classes; up to 256 are used.
        after: the repaired model or what `rectify` returned, or None.
        layers: names of editable layers, None for all of them.
        direction: ``"pattern"``, or ``"filter"``: the ridge regression, for comparison; it has the
            pattern's length, and points less to the concept than away from what else varies.
        tried: random directions; ``p`` is at least 1 / (``tried`` + 1).
        seed: of their choice and of that of the references.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: no pairs, too few references, references of one class or of another shape than
            the pairs, or a layer that is not there.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> rw.dependence(model, pairs, reference).verdict
        'The model depends on the concept: class...'
    """
    check_module("model", model)
    pairs = _pairs(concept)
    later = after.model if isinstance(after, Rectification) else after
    if later is not None:
        check_module("after", later)
    check_choice("direction", direction, DIRECTIONS)
    check_int("tried", tried, low=20)
    generator = torch.Generator().manual_seed(check_int("seed", seed, low=0))
    monitor = Monitor(progress, cancel)
    images = gather_references(reference, FEWEST)
    if images.shape[1:] != pairs.clean.shape[1:]:
        raise ValueError(
            f"reference: got inputs of shape {tuple(images.shape[1:])}, want "
            f"{tuple(pairs.clean.shape[1:])} as in the pairs"
        )
    images = images[torch.randperm(len(images), generator=generator)[:MOST].to(images.device)]
    with eval_mode(model) as plain:
        module = with_head(plain, images[:64])
        predicted = predict_all(module, images, monitor=monitor)
        check_scores(predicted)
        check_classes(predicted.argmax(dim=1))
        moved = predict_all(module, pairs.corrupted) - predict_all(module, pairs.clean)
        chosen = editable_layers(module, images[:2]).select("layers", layers)
    classes = sorted(moved.mean(dim=0).abs().topk(min(CLASSES, moved.shape[1])).indices.tolist())
    swaps = _swaps(predicted.argmax(dim=1).cpu(), tried, generator)
    asked = _Question(pairs, images, swaps, classes, tuple(chosen), direction)
    first = asked.of(model, monitor.part(0.0, 1.0 if later is None else 0.5))
    second = None if later is None else asked.of(later, monitor.part(0.5, 1.0))
    if second is not None and second.layers != first.layers:
        raise ValueError("after: it has other layers than model, want a repaired copy of it")
    monitor.report(1.0, f"{len(first.layers)} layers, {len(classes)} classes")
    return Dependence(first, second, tried)


@dataclass(frozen=True)
class _Question:
    """What is asked of a model, and of the repaired one."""

    pairs: SamplePairs
    images: Tensor
    swaps: Tensor
    classes: list[int]
    names: tuple[str, ...]
    direction: str

    def of(self, model: nn.Module, monitor: Monitor) -> Sensitivity:
        count = len(self.pairs)
        every = torch.cat(
            [self.pairs.corrupted, self.pairs.clean, self.images.to(self.pairs.clean)]
        )
        with eval_mode(model) as plain:
            module = with_head(plain, self.images[:64])
            catalog = editable_layers(module, self.images[:2])
            layers: dict[str, EditableLayer] = catalog.select("layers", self.names)
            means = channel_means(module, layers, every, monitor.part(0.0, 0.2))
            gradients = class_gradients(
                module, layers, self.images, self.classes, monitor.part(0.2, 1.0)
            )
        names = tuple(name for name in layers if name in gradients and name in means)
        if not names:
            raise ValueError("layers: no gradient of the scores comes back to any of them")
        present = torch.arange(2 * count) < count
        made = [self._layer(means[one].cpu(), gradients[one].cpu(), present) for one in names]
        directions, effect, share, random = zip(*made, strict=True)
        effects, randoms = torch.stack(effect), torch.stack(random)  # L × K, L × R × K
        # A layer whose channels do not vary moves nothing either way.
        deviation = randoms.square().mean(dim=1).sqrt().clamp_min(1e-12)
        largest = (randoms.abs() / deviation[:, None]).amax(dim=(0, 2))
        above = (largest[:, None, None] >= effects.abs() / deviation).sum(dim=0)
        return Sensitivity(
            names, tuple(self.classes), dict(zip(names, directions, strict=True)), effects,
            torch.stack(share), randoms.abs().quantile(1 - LEVEL, dim=1),
            (1 + above) / (1 + len(largest)),
        )  # fmt: skip

    def _layer(
        self, values: Tensor, gradients: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Direction, its effect and share by class, and effects of random ones, ``R × K``."""
        own, others = values[: len(present)], values[len(present) :]
        along = DIRECTIONS[self.direction](own, present)
        length = pattern(own, present).norm()
        along = along * (length / along.norm().clamp_min(1e-300))
        moved = gradients @ along
        mean = gradients.mean(dim=0)
        random = (others[self.swaps[:, 0]] - others[self.swaps[:, 1]]) @ mean.T
        return along, moved.mean(dim=0), (moved > 0).double().mean(dim=0), random


def _pairs(concept: object) -> SamplePairs:
    if isinstance(concept, Suspicion):
        if concept.pairs is None:
            raise ValueError(
                "concept: the suspicion has no pairs, since it is not accused; want pairs, such as "
                "SamplePairs(x, cleanse(x, mask))"
            )
        return concept.pairs
    if not isinstance(concept, SamplePairs):
        raise TypeError(f"concept: got {type(concept).__name__}, want SamplePairs or a Suspicion")
    return concept


def _swaps(predicted: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count × 2`` rows of different references that have the same predicted class."""
    alike = predicted[:, None] == predicted[None]
    rows = alike.fill_diagonal_(fill_value=False).nonzero()
    if not len(rows):
        raise ValueError(
            "reference: the model gives no two inputs the same class, want more of them"
        )
    return rows[torch.randint(len(rows), (count,), generator=generator)]


def _verdict(one: Sensitivity, who: str) -> str:
    found = one.significant
    if not found:
        return f"{who} shows no dependence on the concept."
    classes = sorted({number for _, number in found})
    layers = len({layer for layer, _ in found})
    named = "class" if len(classes) == 1 else "classes"
    return (
        f"{who} depends on the concept: {named} {', '.join(map(str, classes))} in {layers} of "
        f"{len(one.layers)} layers."
    )
