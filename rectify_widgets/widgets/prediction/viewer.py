"""`PredictionViewer`: what a model predicts for each sample, before and after its edits.

Imports the panel and its controls, `data` for the predictions and how they differ, and `html` for
what is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import (
    check_choice,
    check_flag,
    check_int,
    check_labels,
    check_module,
)
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.measure.groups import check_groups
from rectify_widgets.engine.measure.metrics import Report
from rectify_widgets.widgets import markup, view
from rectify_widgets.widgets.checks import (
    CheckedTrait,
    check_channels,
    check_classes,
    check_goal,
    check_index,
    check_samples,
    refuse_unknown,
)
from rectify_widgets.widgets.controls import Controls, show
from rectify_widgets.widgets.panel import Panel
from rectify_widgets.widgets.prediction import html
from rectify_widgets.widgets.prediction.confusion import OTHERS, Ints
from rectify_widgets.widgets.prediction.data import (
    Comparison,
    Confusion,
    Flips,
    PredictionCache,
    Predictions,
    judge,
    predict,
    truth_of,
)
from rectify_widgets.widgets.session import Job, Session

TITLE = "What the model predicts"
PAGES = {"sample": "Sample", "flips": "Flips", "classes": "Classes"}
FILTERS = {"all": "All"} | html.NAMES
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

ROOM = 45_000
"""Characters of HTML that a list of flips takes at first, and more by each click on "Show more"."""

STILL_ROOM = 15_000
"""The same in a snapshot."""

PICTURES = 512
"""Thumbnails that are kept."""


class PredictionViewer(Panel):
    """Class probabilities of each sample, predictions that flipped, and the figures they add up to.

    Headline figures are those of `rectify_widgets.evaluate`, with intervals at 95 %.

    Args:
        before: a torch module that gives ``N × classes`` scores.
        after: the edited model, or None; it can be set later.
        inputs: `SamplePairs`, or a tensor ``N × C × H × W``.
        labels: ``N`` class numbers; None takes the pairs' labels or, without them, what ``before``
            predicts for their clean inputs.  Without pairs there is no verdict.
        target: class that the corruption pulls to, its number or name, for the attack success rate; of a
            model that tells several labels the label to look at, None the one that the corruption
            changes most.
        classes: class names, by number.
        groups: which group each sample belongs to, as in `rectify_widgets.evaluate`: accuracy of each
            (label, group) of the clean inputs, before and after, stands on the page "Classes".
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        controls: whether to show the slider for the samples; a larger widget may have one for all.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> viewer = rw.PredictionViewer(model, result.model, pairs, target=0, classes=classes)
        >>> viewer.page, viewer.filter, viewer.sort = "flips", "broken", "change"
        >>> viewer.close()
    """

    sheets = ("prediction",)
    handles = ("index", "page", "filter", "column", "confusion", "show_sample", "show_more")
    marks = ("index", "confusion")

    index = traitlets.Int(0).tag(sync=True)
    """The sample in view, from 0."""

    after = traitlets.Instance(nn.Module, allow_none=True)
    """The edited model, or None.  Predictions are kept for as long as a model lives."""

    page = CheckedTrait("sample", check_choice, choices=PAGES).tag(sync=True)
    """What is in view: ``"sample"``, ``"flips"`` or ``"classes"``."""

    filter = CheckedTrait("all", check_choice, choices=FILTERS)
    """Which flips are listed: ``"all"``, ``"fixed"``, ``"broken"`` or ``"changed"``."""

    column = traitlets.Unicode("all")
    """Which inputs are listed and compared by class: ``"all"``, ``"clean"`` or ``"corrupted"``;
    ``"all"`` or ``"input"`` where a tensor was given."""

    sort = CheckedTrait("sample", check_choice, choices=SORTS)
    """Order of the flips: ``"sample"``, ``"change"`` (of confidence, greatest first), ``"label"``,
    ``"before"`` or ``"after"`` (by class)."""

    confusion = traitlets.Tuple(
        traitlets.Unicode(), traitlets.Int(), traitlets.Int(), allow_none=True, default_value=None
    )
    """The cell of a heat map whose flips are listed below it, ``("clean", true class, predicted
    class)``, or None; −1 stands for all classes that have no row."""

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
        target: int | str | None = None,
        classes: Sequence[str] | None = None,
        groups: object = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        controls: bool = True,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._before = check_module("before", before)
        columns = check_samples("inputs", inputs)
        first = next(iter(columns.values()))
        source = "labels as given"
        if labels is None and isinstance(inputs, SamplePairs):
            labels, source = inputs.labels, "labels of the pairs"
        labelled = labels is not None
        if not labelled:
            lone = len(columns) == 1
            source = "no labels" if lone else "labels: the first model on clean inputs"
        self._compared = Comparison(
            columns,
            check_labels("labels", labels, count=len(first), hot=True).cpu().numpy()
            if labelled
            else None,
            source,
            labelled,
            check_goal(target, check_classes(classes)),
            check_classes(classes),
            check_channels("mean", mean, first.shape[1]),
            check_channels("std", std, first.shape[1]),
            groups=check_groups(groups, len(first)),
        )
        if groups is not None and not labelled and self._compared.lone:
            raise ValueError("groups: got them without labels, want labels too, to judge by")
        self._picture = lru_cache(PICTURES)(partial(html.thumbnail, self._compared))
        self._cache = PredictionCache()
        self._room = ROOM
        self.about = markup.some(self._compared.count, "sample")
        super().__init__(session)
        with self.building():
            self.opens = session is None
            if after is not None:
                self.after = check_module("after", after)
            self._build(controls=check_flag("controls", controls))
            self.predict()

    def _build(self, *, controls: bool) -> None:
        make = Controls(self)
        columns = dict(zip(self._compared.names, self._compared.columns, strict=True))
        self._columns = make.choices("column", {"all": "Both"} | columns)
        kinds = make.choices("filter", FILTERS)
        order = make.choice("sort", [(text, name) for name, text in SORTS.items()], "Sort")
        order.box.add_class("rw-sort")
        self._rows = {"flips": make.row(kinds, order.box)}
        if controls:
            self.samples = make.samples(self._compared.count)
            self._rows["sample"] = make.row(self.samples.box)
        self._stop = make.bar(), make.button("Cancel", "stop", "Stop predicting", "cancel")
        self._again = make.button("Try again", "refresh", "Predict once more", "predict")
        self._waiting = make.row(make.state(), *self._stop, self._again)
        pages = make.row(make.pages(PAGES, TITLE), self._columns)
        self.children = (pages, self._waiting, *self._rows.values(), self.canvas)
        self._wait(visible=False)
        self.draw()
        self.listen(self, lambda _: self.predict(), ["after"])
        self.listen(self, self._follow, ["index"])
        self.listen(self, self._restart, ["page", "filter", "column", "sort", "confusion"])

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
        """The flips of the chosen kind and column, in the chosen order."""
        if self._compared.flips is None:
            return None
        place = None if self.column == "all" else self._compared.names.index(self.column)
        return self._compared.flips.select(self.filter, place).sort(self.sort)

    def share_right(self, column: str) -> list[float]:
        """Share of the samples of a column that get their label, for each model in turn."""
        labels, columns = self._compared.labels, self._compared.columns
        if labels is None or column not in columns:
            return []
        known = self._compared.predictions
        return [float((found.classes[column] == labels).mean()) for found in known]

    # -- predicting -------------------------------------------------------------------------------

    def predict(self) -> Job[list[Predictions]]:
        """Predict what is not known yet for the current models, and show it."""
        models = [self._before] if self.after is None else [self._before, self.after]
        missing = [model for model in dict.fromkeys(models) if self._cache.get(model) is None]
        compared, columns = self._compared, self._compared.columns
        labels, label = compared.labels, compared.label
        wanted = compared.target if label is None else label

        def work(job: Job[list[Predictions]]) -> list[Predictions]:
            nonlocal labels, label, wanted
            known = []
            for place, model in enumerate(missing):
                hook = job.part(place / len(missing), (place + 1) / len(missing))
                found = predict(model, columns, Monitor(hook, job.cancelled), wanted)
                if label is None and found.label is not None:
                    labels, label = truth_of(labels, found.label), found.label
                    wanted = label
                if labels is None and not compared.lone:
                    labels = found.classes["Clean"]
                target = compared.target if label is None else 1
                known.append(replace(found, report=judge(found, labels, target, compared.groups)))
                job.call(partial(self._learn, model, known[-1], labels))
            return known

        def report(job: Job[list[Predictions]]) -> None:
            left = job.seconds_left()
            if left and left / (1.0 - job.fraction) > PATIENCE:
                self.report(job)
                self._wait(visible=True)

        self._wait(visible=False)
        if not missing:
            self._show_models(models)
        values = sum(inputs.numel() for inputs in columns.values()) * len(missing)
        return self.begin(
            work,
            lane=f"predictions {id(self)}",
            label=LABEL,
            short=values <= SHORT,
            on_done=lambda _: self._show_models(models) if missing else None,
            on_progress=report,
        )

    def _learn(self, model: nn.Module, predictions: Predictions, labels: Ints | None) -> None:
        """Keep what is known of a model; the first of all is shown at once."""
        self._cache.put(model, predictions)
        self._compared.look_at(predictions.label)
        self._compared.labels = labels
        if not self._compared.predictions:
            self._show_models([model])

    def refresh(self) -> Job[list[Predictions]]:
        """Predict everything anew: for a model that was changed in place."""
        self._cache.clear()
        if not self._compared.labelled:
            self._compared.labels = None
        return self.predict()

    def cancel(self) -> Job[list[Predictions]] | None:
        """Stop predicting; returns its job."""
        job = self._job
        if job is None or job.done:
            return None
        job.cancel()
        return job

    def failed(self, job: Job[object]) -> None:
        """Show what went wrong, and what is known of the model before its edits."""
        self._show_models([self._before])
        super().failed(job)
        self._wait(visible=True, failed=True)

    # -- showing ----------------------------------------------------------------------------------

    def _show_models(self, models: Sequence[nn.Module]) -> None:
        """Show what is known of these models: one, or the one before and the one after."""
        self._compared.update([self._cache.get(model) for model in models])
        flips = self._compared.flips
        self.set_trait("counts", self._compared.counts())
        words = markup.some(self._compared.count, "sample")
        words += "" if flips is None else f", {markup.some(len(flips), 'flip')}"
        self.set_trait("status", words)
        self.set_trait("progress", 1.0)
        self._wait(visible=False)
        self._restart(None)

    def html(self) -> str:
        """The figures and the page in view."""
        return self._page(self._room)

    def still(self) -> str:
        """The same; of a long list its start, since a snapshot does not scroll."""
        return markup.heading(TITLE) + view.still(self._page(STILL_ROOM), self._marks())

    def _page(self, room: int) -> str:
        """The figures and the page in view, with lists of so many characters."""
        compared, flips = self._compared, self.flips
        note = html.note(compared)
        if not compared.predictions:
            return note + ("" if self.status else '<span class="rw-soft">Predicting …</span>')
        key = f"{self.page} {self.filter} {self.column} {self.sort} {self.confusion}"
        listing = partial(
            html.flip_list, compared, picture=self._picture, key=key, opens=self.opens, room=room
        )
        if self.page == "sample":
            page = html.sample(compared, self.index, self._picture)
        elif compared.flips is None or flips is None:
            page = markup.heading("", html.NO_MODEL) + html.groups(compared)
        elif self.page == "flips":
            page = listing(flips)
        else:
            page = html.classes(compared, compared.flips, self.column, self.confusion, listing)
            page += html.groups(compared)
        return f"{note}{html.headline(compared)}<div>{page}</div>"

    def draw(self) -> None:
        """Show the figures and the page in view, with its controls."""
        for name, row in self._rows.items():
            show(row, visible=name == self.page)
        show(self._columns, visible=not self._compared.lone and self.page != "sample")
        super().draw()

    def _restart(self, _: object) -> None:
        """Show another page or another list, from its start."""
        self._room = ROOM
        self.draw()

    def _follow(self, _: object) -> None:
        """Show another sample; in a list it is marked only."""
        if self.page == "sample":
            self.draw()

    def _wait(self, *, visible: bool, failed: bool = False) -> None:
        """Show or hide the line for work that takes long: how far it is, or what went wrong."""
        for control in self._stop:
            show(control, visible=not failed)
        show(self._again, visible=failed)
        show(self._waiting, visible=visible)

    # -- clicks -----------------------------------------------------------------------------------

    def show_sample(self) -> None:
        """Open the chosen sample."""
        self.page = "sample"

    def show_more(self) -> None:
        """Make room for more flips in the list."""
        self._room += ROOM
        self.draw()

    # -- checks -----------------------------------------------------------------------------------

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        return check_index(proposal["value"], self._compared.count)

    @traitlets.validate("column")
    def _check_column(self, proposal: Mapping[str, object]) -> str:
        return check_choice("column", proposal["value"], ("all", *self._compared.names))

    @traitlets.validate("confusion")
    def _check_confusion(self, proposal: Mapping[str, Confusion | None]) -> Confusion | None:
        confusion = proposal["value"]
        if confusion is not None:
            check_choice("confusion", confusion[0], self._compared.names)
            for number in confusion[1:]:
                check_int("confusion", number, low=OTHERS)
        return confusion

    def forget(self) -> None:
        """Let go of models, inputs, predictions and pictures."""
        self._before = nn.Identity()
        self.set_trait("after", None)
        self._cache.clear()
        self._picture.cache_clear()
        self._compared.columns, self._compared.predictions = {}, []
        self._compared.flips = self._compared.labels = self._compared.groups = None
