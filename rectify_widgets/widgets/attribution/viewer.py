"""`AttributionViewer`: attribution maps of clean and corrupted inputs side by side.

Imports `explain`'s names, the base panel, the maps and their HTML.  One colour scale serves all
maps in view.  Maps are computed in the session and kept by model object (`maps.MapCache`), so that
another look at them, or another turn at a model, costs a redraw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_module, check_number
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import unwrap
from rectify_widgets.explain import ATTRIBUTION_METHODS, find_layer
from rectify_widgets.widgets import markup
from rectify_widgets.widgets.attribution import map_html, maps
from rectify_widgets.widgets.attribution.concentration import Scores
from rectify_widgets.widgets.attribution.map_controls import GRAD_CAM, MapControls
from rectify_widgets.widgets.attribution.map_html import Shown
from rectify_widgets.widgets.attribution.maps import MapCache, Query, View
from rectify_widgets.widgets.attribution.set_html import TileViews
from rectify_widgets.widgets.attribution.set_page import SetPage
from rectify_widgets.widgets.base import (
    Panel,
    check_channels,
    check_classes,
    check_index,
    check_samples,
    refuse_unknown,
)
from rectify_widgets.widgets.jobs import Job
from rectify_widgets.widgets.session import Session

TITLE = "What the model looks at"
PAGES = {"sample": "One sample", "set": "Whole set"}
RANKINGS = {"before": "Before", "after": "After"}


class AttributionViewer(Panel):
    """Which input values speak for a class: maps of a sample, clean and corrupted side by side.

    A second page shows the whole set: how concentrated its maps are (see
    `rectify_widgets.widgets.concentration.concentration`), and the samples that stand at fixed
    percentiles of that score, so that nobody chooses them.

    Args:
        model: a torch module that gives ``N × classes`` scores.
        inputs: `SamplePairs`, or a tensor ``N × C × H × W``.
        after: the model as edited, for a second row of maps; it can be set later.
        method: of `rectify_widgets.explain.attribute`.
        layer: dotted name of the layer for Grad-CAM; None takes the last convolution.
        target: the class to explain; None explains what each input is predicted as.
        classes: class names, by number.
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        opacity: of the maps over their images, 0 to 1.
        signed: show what speaks against the class in blue, else magnitudes only.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.
    """

    sheets = ("attribution",)

    index = traitlets.Int(0)
    """The sample in view, from 0."""

    method = traitlets.Unicode("integrated-gradients")
    """The attribution method."""

    layer = traitlets.Unicode(None, allow_none=True)
    """The layer that Grad-CAM looks at; None is the last convolution."""

    target = traitlets.Int(None, allow_none=True)
    """The class that is explained; None is each input's own prediction."""

    opacity = traitlets.Float(0.85)
    """Opacity of the maps over their images, 0 to 1."""

    signed = traitlets.Bool(True)
    """Whether signs are shown, or magnitudes only."""

    after = traitlets.Instance(nn.Module, allow_none=True)
    """The edited model, or None."""

    page = traitlets.Unicode("sample")
    """What is in view: "sample", or "set" for the distribution over all samples."""

    ranking = traitlets.Unicode("before")
    """Whose percentiles the page of the set shows where `after` is set: "before" or "after"."""

    def __init__(
        self,
        model: nn.Module,
        inputs: SamplePairs | Tensor,
        *,
        after: nn.Module | None = None,
        method: str = "integrated-gradients",
        layer: str | None = None,
        target: int | None = None,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        opacity: float = 0.85,
        signed: bool = True,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._model = check_module("model", model)
        columns = check_samples("inputs", inputs)
        some = next(iter(columns.values()))
        self._columns, self._count = columns, len(some)
        self._classes = check_classes(classes)
        self._class_count = len(self._classes) if self._classes is not None else None
        channels = some.shape[1]
        self._pictures = map_html.Pictures(
            columns, check_channels("mean", mean, channels), check_channels("std", std, channels)
        )
        self._cache = MapCache()
        self._shown: Shown | None = None
        self._built = False
        self._in_view: tuple[int, ...] = ()
        self.about = markup.some(self._count, "sample")
        super().__init__(session)
        with self.building():
            self.method, self.layer, self.target = method, layer, target
            self.opacity, self.signed = opacity, signed
            if after is not None:
                self.after = check_module("after", after)
            self._build()
            asked = ["index", "method", "layer", "target", "after", "page", "ranking"]
            self.listen(self, self._changed, asked)
            self.listen(self, lambda _: self.draw(), ["opacity", "signed"])
            self._arrange()
            self.refresh()

    def _build(self) -> None:
        """Make the controls, linked to the traits, and the two pages."""
        pages = self.choices("page", PAGES, "")
        ranking = self.choices("ranking", RANKINGS, "Percentiles of")
        self._controls = MapControls(self, self._count, unwrap(self._model), self._classes)
        self.samples = self._controls.samples
        self._grid = ipw.HTML(layout=ipw.Layout(width="100%", margin="0"))
        self._set = SetPage(
            self._pictures,
            self._count,
            ranking=ranking,
            open_sample=self.open_sample,
            stop=self.cancel,
            go_on=self.refresh,
        )
        head = ipw.HBox(
            [ipw.HTML(markup.heading(TITLE)), pages],
            layout=ipw.Layout(width="100%", flex_flow="row wrap", justify_content="space-between"),
        )
        self._built = True
        self.fill([head, self._controls, self._grid, self._set])

    # -- traits -----------------------------------------------------------------------------------

    @traitlets.validate("method")
    def _check_method(self, proposal: Mapping[str, str]) -> str:
        return check_choice("method", proposal["value"], ATTRIBUTION_METHODS)

    @traitlets.validate("page")
    def _check_page(self, proposal: Mapping[str, str]) -> str:
        return check_choice("page", proposal["value"], PAGES)

    @traitlets.validate("ranking")
    def _check_ranking(self, proposal: Mapping[str, str]) -> str:
        return check_choice("ranking", proposal["value"], RANKINGS)

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        return check_index(proposal["value"], self._count)

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Mapping[str, str | None]) -> str | None:
        name = proposal["value"]
        if name is not None:
            find_layer(unwrap(self._model), name)
            if self._built:
                self._controls.offer_layer(name)
        return name

    @traitlets.validate("target")
    def _check_target(self, proposal: Mapping[str, int | None]) -> int | None:
        target = proposal["value"]
        if target is not None:
            check_int("target", target, low=0)
            if self._class_count is not None and target >= self._class_count:
                raise ValueError(
                    f"target: got {target}, want 0 to {self._class_count - 1}: one of "
                    f"{self._class_count} classes"
                )
        if self._built:
            self._offer_targets(target)
        return target

    @traitlets.validate("opacity")
    def _check_opacity(self, proposal: Mapping[str, float]) -> float:
        return check_number("opacity", proposal["value"], low=0.0, high=1.0)

    def _changed(self, change: Mapping[str, object]) -> None:
        name = change["name"]
        self._arrange()
        if name == "layer" and self.method != GRAD_CAM:
            return
        if (name == "index" and self.page == "set") or (name == "ranking" and self.page != "set"):
            return
        self.refresh()

    def _arrange(self) -> None:
        """Show the controls and the page that go with the traits."""
        one = self.page == "sample"
        self._controls.arrange(one=one)
        self._grid.layout.display = None if one else "none"
        self._set.layout.display = "none" if one else None
        self._set.show_ranking(shown=self.after is not None)

    # -- work -------------------------------------------------------------------------------------

    def open_sample(self, index: int) -> Job[Any] | None:
        """Show one sample in full; what the buttons under the tiles do."""
        self.index = index
        self.page = "sample"
        return self._job

    def refresh(self) -> Job[Any]:
        """Compute what is in view, or take it from the cache, and show it.

        On the page of the set it scores what is not scored yet.
        """
        return self._refresh_sample() if self.page == "sample" else self._refresh_set(finish=True)

    def cancel(self) -> Job[Any] | None:
        """Stop what is being computed for this view; returns its job, None if there is none."""
        job = self._job
        if job is None or job.done:
            return None
        job.cancel()
        return job

    @property
    def concentration(self) -> dict[tuple[str, str], Scores]:
        """Scores of the set, as far as they are known: one a sample, NaN where there is none.

        Keys are a column ("Clean", "Corrupted" or "Input") and a row ("Map", "Before" or "After").
        """
        return self._set.by_sample()

    def _rows(self) -> dict[str, nn.Module]:
        """Names of the rows of maps, with their models."""
        if self.after is None:
            return {"Map": self._model}
        return {"Before": self._model, "After": self.after}

    def _query(self) -> Query:
        return Query(self.method, self.layer if self.method == GRAD_CAM else None, self.target)

    def _refresh_sample(self) -> Job[Shown]:
        index, query, rows, cache = self.index, self._query(), self._rows(), self._cache
        columns = list(self._columns.values())

        def work(job: Job[Shown]) -> Shown:
            views = {
                row: maps.views_of(job, cache, model, columns, [index], query)[index]
                for row, model in rows.items()
            }
            return Shown(index, views)

        def show(job: Job[Shown]) -> None:
            self._shown = job.result()
            self._learn_classes(self._shown.views.values())
            self.set_trait("status", f"{query.method} of sample {index}")
            self.draw()

        return self.begin(work, lane=self._lane, label="Attribution maps", short=True, on_done=show)

    def _refresh_set(self, *, finish: bool) -> Job[TileViews]:
        query, page, cache = self._query(), self._set, self._cache
        task = maps.set_task(
            cache,
            self._rows(),
            list(self._columns.values()),
            page.order.tolist(),
            query,
            lambda scores: page.picked(scores[self._ranking(scores)]),
            finish=finish,
        )

        def work(job: Job[TileViews]) -> TileViews:
            return maps.score_set(job, cache, task, self.draw)

        def show(job: Job[TileViews]) -> None:
            tiles = job.result()
            self._learn_classes(view for part in tiles.values() for view in part.values())
            self.set_trait("progress", 1.0)
            self.set_trait("status", page.finish(task.scores, tiles, query.method))
            self.draw()

        self.set_trait("progress", 0.0)
        if task.left:
            page.start(task.scores)
            self.draw()
        return self.begin(
            work,
            lane=self._lane,
            label="Scores of the set",
            short=not task.left,
            on_done=show,
            on_progress=self._report,
        )

    def _ranking(self, rows: Iterable[str]) -> str:
        """Name of the row whose percentiles are shown."""
        names = list(rows) or [""]
        return names[-1] if self.ranking == "after" else names[0]

    @property
    def _lane(self) -> str:
        return f"maps {id(self)}"

    def _report(self, job: Job[Any]) -> None:
        self.set_trait("progress", min(max(job.fraction, 0.0), 1.0))
        self.set_trait("status", self._set.report(job))

    def _learn_classes(self, views: Iterable[View]) -> None:
        """Bring the list of targets up to date with what the model was seen to tell apart."""
        seen = list(views)
        if seen:
            self._class_count = seen[0].classes
            self._in_view = tuple({number for view in seen for number in view.explained})
            self._offer_targets(self.target)

    def _offer_targets(self, chosen: int | None) -> None:
        self._controls.offer_targets(self._class_count or 0, self._in_view, chosen)

    def failed(self, job: Job[Any]) -> None:
        """Show the failure where the maps would be; what is scored when one stops is shown."""
        super().failed(job)
        if self.page == "sample":
            self._shown = None
            self.draw()
        elif job.was_cancelled and self._set.scores:
            self._set.stop(self.method)
            self._refresh_set(finish=False)
        else:
            self.draw()

    def settle(self) -> None:
        """Wait for the view that is being computed; its failure shows in the view itself."""
        job = None
        while self._job is not job:
            job = self._job
            super().settle()

    # -- views ------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Show what is computed with the current opacity and sign."""
        if self.page == "sample":
            self._grid.value = self._sample_html(still=False)
        elif self.error is not None:
            self._set.show_error(self.error)
        else:
            self._set.draw(self._look(), self._ranking(self._set.scores))

    def static_html(self) -> str:
        """The page in view, with its heading."""
        head = markup.heading(TITLE, self.method)
        if self.page == "sample":
            return head + self._sample_html(still=True)
        if self.error is not None:
            return head + markup.error_box(self.error)
        return head + self._set.static_html(self._look(), self._ranking(self._set.scores))

    def _look(self) -> map_html.Look:
        return map_html.Look(self.method, self.opacity, self.signed, self._classes)

    def _sample_html(self, *, still: bool) -> str:
        if self.error is not None:
            return markup.error_box(self.error)
        if self._shown is None and self._job is not None and self._job.done:
            return '<span class="rw-soft">Cancelled.</span>'
        return map_html.sample_html(self._pictures, self._shown, self._look(), still=still)

    def forget(self) -> None:
        """Let go of the maps."""
        self._cache.clear()
        self._shown = None
        if self._built:
            self._set.forget()
