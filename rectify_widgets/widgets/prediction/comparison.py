"""What two models say of the same inputs, ready to be shown.  Makes no widget.

A `Comparison` holds the inputs, the labels and what is known of the models, and says it in HTML,
tiles and charts; `prediction.PredictionViewer` decides which of them is in view.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rectify_widgets.engine.base.checks import check_labels
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.measure.metrics import Report, check_target
from rectify_widgets.widgets import markup
from rectify_widgets.widgets.base import check_channels, check_classes, check_samples
from rectify_widgets.widgets.prediction import class_page, flips, prediction_html
from rectify_widgets.widgets.prediction.flip_list import PER_SHEET, Tile, place_text, still
from rectify_widgets.widgets.prediction.predicted import Seen

PICTURES = 512
"""Thumbnails that are kept."""

THUMBNAIL, PORTRAIT = 48, 72
"""Widths of pictures in the list and on the page of one sample, in CSS pixels."""

NO_MODEL = "No edited model yet: there is nothing to compare with."
NO_FLIP = "No flip of this kind among these inputs."


@dataclass(eq=False)
class Comparison:
    """Inputs and what one model or two predict for them.

    Attributes:
        columns: column name to inputs ``N × C × H × W``.
        labels: ``N`` class numbers, or None.
        source: where the labels are from.
        target: class that the corruption pulls to, or None.
        classes: class names, by number, or None.
        mean, std: the normalisation of the inputs, undone for display.
        told: whether the labels were given, rather than predicted by the model before its edits.
        seen: what is known of the model before and, if there is one, after its edits.
        found: the flips between the two, or None where there is one model.
    """

    columns: Mapping[str, Tensor]
    labels: flips.Ints | None
    source: str
    target: int | None
    classes: Sequence[str] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    told: bool
    seen: list[Seen] = field(default_factory=list)
    found: flips.Flips | None = None
    _pictures: OrderedDict[tuple[str, int, int], str] = field(default_factory=OrderedDict)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(next(iter(self.columns.values())))

    @property
    def lone(self) -> bool:
        """Whether a tensor was given rather than pairs."""
        return len(self.columns) == 1

    @property
    def names(self) -> list[str]:
        """Names of the columns as the traits spell them."""
        return [name.lower() for name in self.columns]

    @property
    def reports(self) -> tuple[Report, ...]:
        """The headline figures, for each model that is known."""
        return tuple(seen.report for seen in self.seen if seen.report is not None)

    def know(self, seen: Sequence[Seen | None]) -> None:
        """Take what is known of the model before and the one after, up to the first None."""
        self.seen, self.found = [], None
        for one in seen:
            if one is None:
                break
            self.seen.append(one)
        if len(self.seen) > 1:
            before, after = (
                [(one.predicted.classes[name], one.predicted.probabilities[name])
                 for name in self.columns]
                for one in self.seen
            )  # fmt: skip
            self.found = flips.find(before, after, self.labels)

    def unlearn(self) -> None:
        """Let go of labels that a model predicted."""
        if not self.told:
            self.labels = None

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of flips: column to kind to number; empty where there is one model."""
        if self.found is None:
            return {}
        table = flips.tally(self.found, len(self.columns))
        rows = (dict(zip(flips.KINDS, row, strict=True)) for row in table)
        return dict(zip(self.names, rows, strict=True))

    def select(self, kind: str, column: str, sort: str) -> flips.Flips | None:
        """The flips of a kind and a column in an order; None where there is one model."""
        if self.found is None:
            return None
        place = None if column == "all" else self.names.index(column)
        return flips.arrange(flips.keep(self.found, kind, place), sort)

    def share_right(self, column: str) -> list[float]:
        """Share of the samples of a column that get their label, for each model in turn."""
        if self.labels is None or column not in self.columns:
            return []
        return [float((one.predicted.classes[column] == self.labels).mean()) for one in self.seen]

    # -- as HTML ----------------------------------------------------------------------------------

    def head(self) -> str:
        """The heading: how many samples, and what they are judged by."""
        notes = [markup.some(self.count, "sample"), self.source]
        if self.reports:
            notes.append("bootstrap intervals at 95 %")
        return markup.heading("What the model predicts", " · ".join(notes))

    def figures(self) -> str:
        """The headline figures, and the number of flips of each kind."""
        if not self.seen:
            return '<span class="rw-soft">Predicting …</span>'
        pieces = ""
        if self.reports:
            name = "" if self.target is None else markup.class_name(self.classes, self.target)
            pieces = prediction_html.figures(self.reports, lone=self.lone, target=name)
        if self.found is not None:
            table = flips.tally(self.found, len(self.columns))
            rows = dict(zip(self.columns, table, strict=True))
            pieces += prediction_html.counts(rows, self.count, judged=self.labels is not None)
        return f'<div class="rw-headline">{pieces}</div>'

    def sample(self, index: int) -> str:
        """Probabilities of one sample, a block for each column."""
        if not self.seen:
            return ""
        pieces = [
            prediction_html.probabilities(
                name if name == "Input" else f"{name} input",
                [one.predicted.probabilities[name][index].tolist() for one in self.seen],
                [int(one.predicted.classes[name][index]) for one in self.seen],
                label=None if self.labels is None else int(self.labels[index]),
                classes=self.classes,
                picture=self.picture(name, index, PORTRAIT),
            )
            for name in self.columns
        ]
        return f'<div class="rw-samples">{"".join(pieces)}</div>'

    def list_note(self, listed: flips.Flips | None) -> str:
        """Why a list of flips is empty; nothing where it is not."""
        if listed is None:
            return markup.heading("", NO_MODEL if self.seen else "")
        return "" if len(listed) else markup.heading("", NO_FLIP)

    def tiles(self, shown: flips.Flips | None, index: int) -> list[Tile]:
        """A tile for each of these flips; ``index`` is the sample in view."""
        if shown is None:
            return []
        tiles = []
        for place, sample in enumerate(shown.samples):
            name = list(self.columns)[shown.columns[place]]
            column = "" if self.lone else name
            picture = self.picture(name, int(sample), THUMBNAIL)
            html = prediction_html.tile(
                shown, place, column=column, classes=self.classes, picture=picture
            )
            said = prediction_html.tile_name(shown, place, column=column, classes=self.classes)
            tiles.append(Tile(html, said, chosen=sample == index))
        return tiles

    def still_list(self, listed: flips.Flips | None, number: int, index: int) -> str:
        """One sheet of a list of flips, as HTML that cannot be clicked."""
        if listed is None or not len(listed):
            return self.list_note(listed)
        tiles = self.tiles(flips.sheet(listed, number, PER_SHEET), index)
        return still(tiles) + place_text(number * PER_SHEET, len(tiles), len(listed))

    def still_classes(self, column: str) -> str:
        """What changed by class, as HTML."""
        views = [view for view in self.views(column) if view is not None]
        return class_page.still(views) if views else markup.heading("", NO_MODEL)

    def views(self, column: str) -> list[class_page.View | None]:
        """What changed by class in each column; None for those that are not asked for."""
        if self.found is None:
            return [None] * len(self.columns)
        before, after = (one.predicted for one in self.seen)
        return [
            class_page.describe(
                name,
                self.labels,
                before.classes[name],
                after.classes[name],
                count=before.count,
                classes=self.classes,
            )
            if column in ("all", name.lower())
            else None
            for name in self.columns
        ]

    def picture(self, column: str, sample: int, width: int) -> str:
        """``<img>`` of one input, kept for the next time."""
        key = (column, sample, width)
        if key not in self._pictures:
            self._pictures[key] = prediction_html.thumbnail(
                self.columns[column][sample],
                f"{column} input {sample}",
                width=width,
                mean=self.mean,
                std=self.std,
            )
            if len(self._pictures) > PICTURES:
                self._pictures.popitem(last=False)
        self._pictures.move_to_end(key)
        return self._pictures[key]

    def forget(self) -> None:
        """Let go of inputs, predictions and pictures."""
        self.columns, self.seen, self.found = {}, [], None
        self._pictures.clear()


def gather(
    inputs: object,
    labels: object,
    target: object,
    classes: object,
    mean: object,
    std: object,
) -> Comparison:
    """A comparison of what a user handed in.

    Raises:
        TypeError, ValueError: an argument that cannot be used.
    """
    columns = check_samples("inputs", inputs)
    first = next(iter(columns.values()))
    source = "labels as given"
    if labels is None and isinstance(inputs, SamplePairs):
        labels, source = inputs.labels, "labels of the pairs"
    told = labels is not None
    if not told:
        source = "no labels" if len(columns) == 1 else "labels: the first model on clean inputs"
    return Comparison(
        columns,
        check_labels("labels", labels, count=len(first)).cpu().numpy() if told else None,
        source,
        check_target(target, None),
        check_classes(classes),
        check_channels("mean", mean, first.shape[1]),
        check_channels("std", std, first.shape[1]),
        told,
    )
