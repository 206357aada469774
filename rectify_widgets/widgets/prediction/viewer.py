"""`PredictionViewer`: what a model predicts for each sample, before and after its edits.

Imports the base panel, `predicted` for the work, the pure rooms (`flips`, `confusion`,
`prediction_html`) for what to show, and the widgets of its pages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import ipywidgets as ipw
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_module
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.measure.metrics import Report
from rectify_widgets.widgets import markup
from rectify_widgets.widgets.base import Panel, check_index, refuse_unknown
from rectify_widgets.widgets.buttons import progress_line
from rectify_widgets.widgets.jobs import Job
from rectify_widgets.widgets.prediction import class_page, prediction_html
from rectify_widgets.widgets.prediction.comparison import NO_MODEL, gather
from rectify_widgets.widgets.prediction.flip_list import PER_SHEET, FlipList
from rectify_widgets.widgets.prediction.flips import KINDS, Flips, Ints, sheet, sheet_count
from rectify_widgets.widgets.prediction.predicted import Kept, Seen, judge, predict
from rectify_widgets.widgets.prediction.wait_row import WaitRow
from rectify_widgets.widgets.session import Session
from rectify_widgets.widgets.stepper import ChoiceStepper, SampleStepper

PAGES = {"sample": "Sample", "flips": "Flips", "classes": "Classes"}
FILTERS = {"all": "All"} | {kind: f"{prediction_html.SIGNS[kind]} {kind}" for kind in KINDS}
SORTS = {
    "sample": "Sample",
    "change": "Change of confidence",
    "label": "Label",
    "before": "Class before",
    "after": "Class after",
}

SHORT = 2_500_000
"""Input values that may be predicted while something longer is under way: 16 colour images of 224 ×
224, or 3,000 of 28 × 28.  More than that waits for its turn."""

PATIENCE = 2.0
"""Seconds of prediction from which on progress is shown, with an estimate and a Cancel button."""

LABEL = "Predictions"
"""What the work is called in messages."""


class PredictionViewer(Panel):
    """Class probabilities of each sample, predictions that flipped, and the figures they add up to.

    Headline figures are those of `rectify_widgets.evaluate`, with bootstrap intervals at 95 %.

    Args:
        before: a torch module that gives ``N × classes`` scores.
        after: the edited model, or None; it can be set later.
        inputs: `SamplePairs`, or a tensor ``N × C × H × W``.
        labels: ``N`` class numbers; None takes the pairs' labels, or else what ``before``
            predicts for their clean inputs.  Without pairs there is no verdict.
        target: class that the corruption pulls to, for the attack success rate.
        classes: class names, by number.
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> viewer = PredictionViewer(model, result.model, pairs, target=0, classes=names)
        >>> viewer.page, viewer.filter, viewer.sort = "flips", "broken", "change"
    """

    sheets = ("prediction",)

    index = traitlets.Int(0)
    """The sample in view, from 0."""

    after = traitlets.Instance(nn.Module, allow_none=True)
    """The edited model, or None.  Predictions are kept for as long as a model lives."""

    page = traitlets.Unicode("sample")
    """What is in view: ``"sample"``, ``"flips"`` or ``"classes"``."""

    filter = traitlets.Unicode("all")
    """Which flips are listed: ``"all"``, ``"fixed"``, ``"broken"`` or ``"changed"``."""

    column = traitlets.Unicode("all")
    """Which inputs are listed and compared by class: ``"all"``, ``"clean"`` or ``"corrupted"``;
    ``"all"`` or ``"input"`` where a tensor was given."""

    sort = traitlets.Unicode("sample")
    """Order of the flips: ``"sample"``, ``"change"`` (of confidence, greatest first), ``"label"``,
    ``"before"`` or ``"after"`` (by class)."""

    sheet = traitlets.Int(0)
    """The sheet of the list of flips in view, from 0; a sheet holds 12."""

    opens = traitlets.Bool()
    """Whether choosing a flip opens its sample; where the session is shared, it sets the index
    only, for the widgets beside this one to follow."""

    counts = traitlets.Dict(read_only=True)
    """Number of flips: column to kind to number, ``counts["clean"]["broken"]``."""

    def __init__(
        self,
        before: nn.Module,
        after: nn.Module | None,
        inputs: SamplePairs | Tensor,
        *,
        labels: Tensor | None = None,
        target: int | None = None,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._before = check_module("before", before)
        self._compared = gather(inputs, labels, target, classes, mean, std)
        self._kept = Kept()
        self._listed: Flips | None = None
        self._predicting: Job[list[Seen]] | None = None
        self.about = markup.some(self._compared.count, "sample")
        super().__init__(session)
        with self.building():
            self.opens = session is None
            if after is not None:
                self.after = check_module("after", after)
            self._build()
            self.predict()

    def _build(self) -> None:
        self._head, self._figures, self._table, self._note = (ipw.HTML() for _ in range(4))
        self._wait = WaitRow(self.cancel, self.predict)
        self.samples = SampleStepper(self, self._compared.count)
        pages = self.choices("page", PAGES, "")
        columns = dict(zip(self._compared.names, self._compared.columns, strict=True))
        self._which = self.choices("column", {"all": "Both"} | columns, "")
        listed = self.choices("filter", FILTERS, "")
        order = ChoiceStepper(self, "sort", [(text, name) for name, text in SORTS.items()], "Sort")
        order.layout.flex, order.layout.width = "0 1 300px", "auto"
        self._list = FlipList(self._choose, self._turn)
        self._map = class_page.ClassPage(len(columns))
        self._pages = {
            "sample": ipw.VBox([self.samples, self._table]),
            "flips": ipw.VBox([_row(listed, order), self._list]),
            "classes": ipw.VBox([self._map]),
        }
        for box in self._pages.values():
            box.layout.width = "100%"
        bar = _row(pages, self._which)
        self.fill([self._head, self._wait, self._figures, bar, self._note, *self._pages.values()])
        self.draw()
        self.listen(self, self._switch, ["after"])
        self.listen(self, lambda _: self._follow(), ["index"])
        self.listen(self, lambda _: self._draw_page(), ["page", "sheet"])
        self.listen(self, lambda _: self._restart(), ["filter", "column", "sort"])

    # -- what can be read -------------------------------------------------------------------------

    @property
    def labels(self) -> Tensor | None:
        """``N`` class numbers that the predictions are judged by, once they are known."""
        labels = self._compared.labels
        return None if labels is None else torch.from_numpy(labels)

    @property
    def reports(self) -> tuple[Report, ...]:
        """The headline figures of the model before and, if there is one, after its edits."""
        return self._compared.reports

    @property
    def flips(self) -> Flips | None:
        """The flips of the chosen kind and column, in the chosen order, of all sheets."""
        return self._compared.select(self.filter, self.column, self.sort)

    def share_right(self, column: str) -> list[float]:
        """Share of the samples of a column that get their label, for each model in turn."""
        return self._compared.share_right(column)

    # -- predicting -------------------------------------------------------------------------------

    def predict(self) -> Job[list[Seen]]:
        """Predict what is not known yet for the current models, and show it."""
        models = [self._before] if self.after is None else [self._before, self.after]
        missing = [model for model in dict.fromkeys(models) if self._kept.get(model) is None]
        compared, columns, begun = self._compared, self._compared.columns, time.monotonic()
        labels = compared.labels

        def work(job: Job[list[Seen]]) -> list[Seen]:
            nonlocal labels, begun
            begun = time.monotonic()
            found = []
            for place, model in enumerate(missing):
                span = (place / len(missing), (place + 1) / len(missing))
                told = predict(model, columns, Monitor(job.part(*span), job.cancelled))
                if labels is None and not compared.lone:
                    labels = told.classes["Clean"]
                found.append(Seen(told, judge(told, labels, compared.target)))
                job.call(partial(self._learn, model, found[-1], labels))
            return found

        def show(_: Job[list[Seen]]) -> None:
            self._wait.rest()
            self._show_models(models)

        def report(job: Job[list[Seen]]) -> None:
            left = job.seconds_left()
            if left is not None and time.monotonic() - begun + left > PATIENCE:
                self.set_trait("progress", job.fraction)
                self._wait.busy(job.fraction, markup.status_line(progress_line(job)))

        self._wait.rest()
        values = sum(inputs.numel() for inputs in columns.values()) * len(missing)
        if not missing:
            self._show_models(models)
        self._predicting = self.begin(
            work if missing else lambda _: [],
            lane=f"predictions {id(self)}",
            label=LABEL,
            short=values <= SHORT,
            on_done=show if missing else lambda _: None,
            on_progress=report,
        )
        return self._predicting

    def _learn(self, model: nn.Module, seen: Seen, labels: Ints | None) -> None:
        """Keep what is known of a model; the first of all is shown at once."""
        self._kept.put(model, seen)
        self._compared.labels = labels
        if not self._compared.seen:
            self._show_models([model])

    def refresh(self) -> Job[list[Seen]]:
        """Predict everything anew: for a model that was changed in place."""
        self._kept.clear()
        self._compared.unlearn()
        return self.predict()

    def cancel(self) -> Job[list[Seen]] | None:
        """Stop predicting; returns its job."""
        job = self._predicting
        if job is None or job.done:
            return None
        job.cancel()
        return job

    def failed(self, job: Job[object]) -> None:
        """Show what went wrong, and what is known of the model before its edits."""
        if job.label == LABEL:
            self._show_models([self._before])
        super().failed(job)
        if not self._compared.seen:
            self._figures.value = ""
        words = markup.error_box(self.error) or markup.status_line(self.status)
        self._wait.failed(words)

    # -- showing ----------------------------------------------------------------------------------

    def _show_models(self, models: Sequence[nn.Module]) -> None:
        """Show what is known of these models: one, or the one before and the one after."""
        self._compared.know([self._kept.get(model) for model in models])
        found = self._compared.found
        self.set_trait("counts", self._compared.counts())
        words = markup.some(self._compared.count, "sample")
        words += "" if found is None else f", {markup.some(len(found), 'flip')}"
        self.set_trait("status", words)
        self.set_trait("progress", 1.0)
        self.sheet = min(self.sheet, self._last_sheet())
        self.draw()

    def draw(self) -> None:
        """Show the figures and the page in view."""
        self._head.value, self._figures.value = self._compared.head(), self._compared.figures()
        self._draw_page()

    def _draw_page(self) -> None:
        for name, box in self._pages.items():
            box.layout.display = None if name == self.page else "none"
        alone = self._compared.lone or self.page == "sample"
        self._which.layout.display = "none" if alone else None
        self._note.value = ""
        if self.page == "sample":
            self._table.value = self._compared.sample(self.index)
        elif self.page == "flips":
            self._draw_flips()
        else:
            self._draw_classes()

    def _draw_flips(self) -> None:
        found, start = self.flips, self.sheet * PER_SHEET
        self._note.value = self._compared.list_note(found)
        self._listed = None if found is None else sheet(found, self.sheet, PER_SHEET)
        tiles = self._compared.tiles(self._listed, self.index)
        self._list.show(tiles, start, 0 if found is None else len(found))

    def _draw_classes(self) -> None:
        views = self._compared.views(self.column)
        self._note.value = "" if any(views) else markup.heading("", NO_MODEL)
        self._map.show(views)

    # -- controls ---------------------------------------------------------------------------------

    def _switch(self, _: object) -> None:
        self.predict()

    def _restart(self) -> None:
        """Show the first sheet of another list."""
        if self.sheet:
            self.sheet = 0
        else:
            self._draw_page()

    def _follow(self) -> None:
        if self.page == "sample":
            self._table.value = self._compared.sample(self.index)
        elif self.page == "flips" and self._listed is not None:
            self._list.mark([sample == self.index for sample in self._listed.samples])

    def _choose(self, place: int) -> None:
        """A click on a tile."""
        if self._listed is None or place >= len(self._listed):
            return
        self.index = int(self._listed.samples[place])
        if self.opens:
            self.page = "sample"

    def _turn(self, by: int) -> None:
        self.sheet += by

    def _last_sheet(self) -> int:
        found = self.flips
        return sheet_count(0 if found is None else len(found), PER_SHEET) - 1

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        return check_index(proposal["value"], self._compared.count)

    @traitlets.validate("page", "filter", "column", "sort")
    def _check_choice(self, proposal: Mapping[str, Any]) -> str:
        columns = ("all", *self._compared.names)
        choices = {"page": PAGES, "filter": FILTERS, "column": columns, "sort": SORTS}
        name = proposal["trait"].name
        return check_choice(name, proposal["value"], choices[name])

    @traitlets.validate("sheet")
    def _check_sheet(self, proposal: Mapping[str, int]) -> int:
        number = check_int("sheet", proposal["value"], low=0)
        last = self._last_sheet()
        if number > last:
            raise ValueError(f"sheet: got {number}, want 0 to {last}: the list has no more")
        return number

    # -- static views -----------------------------------------------------------------------------

    def static_html(self) -> str:
        """The figures and the page in view; of the flips the sheet in view."""
        compared = self._compared
        if self.page == "sample":
            view = compared.sample(self.index)
        elif self.page == "flips":
            view = compared.still_list(self.flips, self.sheet, self.index)
        else:
            view = compared.still_classes(self.column)
        return "".join(
            f"<div>{piece}</div>" for piece in (compared.head(), compared.figures(), view)
        )

    def forget(self) -> None:
        """Let go of models, inputs, predictions and pictures."""
        self._kept.clear()
        self._compared.forget()
        self._listed = None


def _row(*children: ipw.Widget) -> ipw.HBox:
    """Controls side by side, below each other where there is no room."""
    row = ipw.HBox(
        list(children),
        layout=ipw.Layout(width="100%", flex_flow="row wrap", align_items="center"),
    )
    row.add_class("rw-choosing")
    return row
