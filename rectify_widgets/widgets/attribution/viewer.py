"""`AttributionViewer`: attribution maps of clean and corrupted inputs side by side.

Imports `explain`'s names, the panel, the maps and their HTML.  One colour scale serves all maps in
view.  Maps are computed in the session and cached by model object (`data.MapCache`), so that showing
them again, or going back to a model, costs a redraw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ipywidgets as ipw
import numpy as np
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_module, check_number
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import copied, unwrap
from rectify_widgets.explain import ATTRIBUTION_METHODS, find_layer
from rectify_widgets.widgets import controls, markup
from rectify_widgets.widgets.attribution import data, html
from rectify_widgets.widgets.attribution.concentration import Pick, Scores
from rectify_widgets.widgets.attribution.data import Attributions, Query, SampleMaps, SetScores
from rectify_widgets.widgets.checks import (
    CheckedTrait,
    check_channels,
    check_classes,
    check_goal,
    check_index,
    check_samples,
    refuse_unknown,
)
from rectify_widgets.widgets.controls import Controls
from rectify_widgets.widgets.panel import Panel
from rectify_widgets.widgets.session import Job, Session

TITLE = "What the model looks at"
PAGES = {"sample": "One sample", "set": "Whole set"}
RANKINGS = {"before": "Before", "after": "After"}

GRAD_CAM = "grad-cam"
"""The one method that looks at a layer."""

LISTED = 200
"""Most classes that the list of targets names; of more, those in view and the chosen one."""

TileMaps = Mapping[str, Mapping[int, SampleMaps]]
"""Maps of the samples of the set that are shown, by model and number."""


class AttributionViewer(Panel):
    """Which input values speak for a class: maps of a sample, clean and corrupted side by side.

    A second page shows the whole set: how concentrated its maps are (see
    `rectify_widgets.widgets.attribution.concentration`), and the samples that stand at fixed
    percentiles of that score, so that nobody chooses them.

    Args:
        model: a torch module that gives ``N × classes`` scores.
        inputs: `SamplePairs`, or a tensor ``N × C × H × W``.
        after: the model as edited, for a second row of maps; it can be set later.
        method: of `rectify_widgets.explain.attribute`; None is ``"integrated-gradients"``, or for
            inputs of 200 × 200 pixels or more ``"grad-cam"``, which takes one pass.
        layer: dotted name of the layer for Grad-CAM; None takes the last convolution.
        target: number or name of the class or label to explain; None explains what each input is
            predicted as, of several labels the one that the model is surest of.
        classes: class names, by number.
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        opacity: of the maps over their images, 0 to 1.
        signed: show what speaks against the class in blue, otherwise magnitudes only.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> maps = rw.AttributionViewer(model, pairs, classes=classes)
        >>> maps.index, maps.method = 1, "occlusion"
        >>> maps.after = result.model  # a second row
        >>> maps.close()
    """

    sheets = ("attribution",)
    handles = ("opacity", "open_sample")

    index = traitlets.Int(0).tag(sync=True)
    """The sample in view, from 0."""

    method = CheckedTrait("integrated-gradients", check_choice, choices=ATTRIBUTION_METHODS).tag(
        sync=True
    )
    """The attribution method."""

    layer = traitlets.Unicode(None, allow_none=True).tag(sync=True)
    """The layer that Grad-CAM looks at; None is the last convolution."""

    target = traitlets.Int(None, allow_none=True).tag(sync=True)
    """The class that is explained; None is each input's own prediction."""

    opacity = CheckedTrait(0.85, check_number, low=0.0, high=1.0)
    """Opacity of the maps over their images, 0 to 1."""

    signed = traitlets.Bool(True)
    """Whether signs are shown, or magnitudes only."""

    after = traitlets.Instance(nn.Module, allow_none=True)
    """The edited model, or None."""

    page = CheckedTrait("sample", check_choice, choices=PAGES).tag(sync=True)
    """What is in view: "sample", or "set" for the distribution over all samples."""

    ranking = CheckedTrait("before", check_choice, choices=RANKINGS)
    """Whose percentiles the page of the set shows where `after` is set: "before" or "after"."""

    def __init__(
        self,
        model: nn.Module,
        inputs: SamplePairs | Tensor,
        *,
        after: nn.Module | None = None,
        method: str | None = None,
        layer: str | None = None,
        target: int | str | None = None,
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
        self._pictures = html.Pictures(
            columns, check_channels("mean", mean, channels), check_channels("std", std, channels)
        )
        self._attributions = Attributions(columns.values())
        self._maps: tuple[int, Mapping[str, SampleMaps]] | None = None
        self._scores: Mapping[str, SetScores] = {}
        self._tiles: TileMaps = {}
        self._lane = f"maps {id(self)}"
        self._built = self._compares = False
        self._in_view: tuple[int, ...] = ()
        self.about = markup.some(self._count, "sample")
        super().__init__(session)
        with self.building():
            self.method = data.default_method(model, some) if method is None else method
            self.layer = layer
            self.target = check_goal(target, self._classes)
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
        """Make the controls, linked to the traits, above the view."""
        make = Controls(self)
        layers = _layer_options(unwrap(self._model), self.layer)
        self.samples = make.samples(self._count)
        self.methods = make.choice("method", ATTRIBUTION_METHODS, "Method")
        self.layers = make.choice("layer", layers, "Layer")
        self.targets = make.choice("target", self._target_options(self.target), "Explain")
        signed = make.field(
            ipw.Checkbox, "signed", "Signed", "Show what speaks against the class in blue",
            width="84px", indent=False,
        )  # fmt: skip
        self._percentiles = make.choices("ranking", RANKINGS, "Percentiles of")
        self._stop = make.button("Stop", "stop", "Stop scoring; what is scored stays", "cancel")
        self._continue = make.button("Continue", "play", "Score the rest of the set", "refresh")
        self._scoring = make.row(make.state(), make.bar(), self._stop, self._continue)
        self._built = True
        self.children = (
            make.pages(PAGES, TITLE),
            make.row(self.samples.box),
            make.row(
                self.methods.box, self.layers.box, self.targets.box, signed, name="map-controls"
            ),
            self._scoring,
            self._percentiles,
            self.canvas,
        )

    # -- traits -----------------------------------------------------------------------------------

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        return check_index(proposal["value"], self._count)

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Mapping[str, str | None]) -> str | None:
        name = proposal["value"]
        if name is not None:
            find_layer(unwrap(self._model), name)
            if self._built:
                self._offer_layer(name)
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

    def _changed(self, change: Mapping[str, object]) -> None:
        name = change["name"]
        self._arrange()
        if name == "layer" and self.method != GRAD_CAM:
            return
        if (name == "index" and self.page == "set") or (name == "ranking" and self.page != "set"):
            return
        self.refresh()

    def _arrange(self) -> None:
        """Show the controls that go with the page and the method."""
        one = self.page == "sample"
        controls.show(self.samples.box, visible=one and self._count > 1)
        controls.show(self.layers.box, visible=self.method == GRAD_CAM)
        controls.show(self._percentiles, visible=not one and self.after is not None)
        done = min((part.done for part in self._scores.values()), default=0)
        running = self.busy
        controls.show(
            self._scoring, visible=not one and (running or done < len(self._attributions.order))
        )
        controls.show(self._stop, visible=running)
        controls.show(self._continue, visible=not running)

    def _offer_layer(self, name: str) -> None:
        """List a layer that is no convolution, such as a whole block, once somebody names it."""
        if name not in self.layers.values:
            self.layers.offer([*self.layers.list.options, (name, name)])

    def _offer_targets(self, chosen: int | None) -> None:
        """List the targets there are: all classes, or of too many those in view and the chosen."""
        options = self._target_options(chosen)
        if [value for _, value in options] != self.targets.values:
            self.targets.offer(options)

    def _target_options(self, chosen: int | None) -> list[tuple[str, int | None]]:
        count = self._class_count or 0
        numbers = set(range(count)) if count <= LISTED else set(self._in_view)
        numbers |= {chosen} if chosen is not None else set()
        names = [(markup.class_name(self._classes, n), n) for n in sorted(numbers)]
        return [("own prediction", None), *names]

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
        found = {}
        for row, part in self._scores.items():
            for place, column in enumerate(self._columns):
                scores = np.full(self._count, np.nan)
                scores[self._attributions.order] = part.values[place]
                found[column, row] = scores
        return found

    def _rows(self) -> dict[str, nn.Module]:
        """Names of the rows of maps, with their models."""
        if self.after is None:
            return {"Map": self._model}
        self._compares = True
        return {"Before": self._model, "After": self.after}

    def _query(self) -> Query:
        return Query(self.method, self.layer if self.method == GRAD_CAM else None, self.target)

    def _refresh_sample(self) -> Job[dict[str, SampleMaps]]:
        index, query, rows = self.index, self._query(), self._rows()

        def work(job: Job[dict[str, SampleMaps]]) -> dict[str, SampleMaps]:
            return {
                row: self._attributions.maps(job, model, [index], query)[index]
                for row, model in rows.items()
            }

        def show(job: Job[dict[str, SampleMaps]]) -> None:
            self._maps = index, job.result()
            self._learn_classes(job.result().values())
            self.set_trait("status", f"{query.method} of sample {index + 1}")
            self.draw()

        self.set_trait("busy", False)  # the scoring of the set, if there was any, is superseded
        return self.begin(work, lane=self._lane, label="Attribution maps", short=True, on_done=show)

    def _refresh_set(self, *, finish: bool) -> Job[TileMaps]:
        query, rows, known = self._query(), self._rows(), self._attributions
        scores = {row: known.scores(model, query) for row, model in rows.items()}
        left = finish and any(part.done < len(known.order) for part in scores.values())

        def work(job: Job[TileMaps]) -> TileMaps:
            # Whenever a long job asks whether to stop, short ones pass, and they look at the same
            # model: this one works on copies, so that their hooks never meet.
            running = {row: copied(model) for row, model in rows.items()} if left else rows
            if left:
                models = {row: (rows[row], running[row], scores[row]) for row in rows}
                known.score(job, models, query, self.draw)
            picked = self._picked(scores[self._ranking(scores)]).values()
            samples = sorted({index for some in picked for index, _ in some})
            return {
                row: known.maps(job, model, samples, query, running[row])
                for row, model in rows.items()
            }

        def show(job: Job[TileMaps]) -> None:
            self._scores, self._tiles = scores, job.result()
            self._learn_classes(one for part in self._tiles.values() for one in part.values())
            self.set_trait("busy", False)
            done, total = min(part.done for part in scores.values()), len(self._attributions.order)
            self.set_trait("progress", done / total)
            stopped = f" of {total}, stopped" if done < total else ""
            some = markup.some(done, "sample")
            self.set_trait("status", f"{query.method}: {some} scored{stopped}")
            self.draw()

        self.set_trait("progress", 0.0)
        if left:
            self._scores, self._tiles = scores, {}
            self.set_trait("status", "Scoring waits for its turn …")
        self.set_trait("busy", left)
        self._arrange()
        self._action = job = self.begin(
            work, lane=self._lane, label="Scores of the set", short=not left, on_done=show,
            on_progress=self.report,
        )  # fmt: skip
        if left:
            self.draw()
        return job

    def _picked(self, scores: SetScores) -> dict[str, list[tuple[int, Pick]]]:
        return data.picked(scores, list(self._columns), self._attributions.order)

    def _ranking(self, rows: Iterable[str]) -> str:
        """Name of the row whose percentiles are shown."""
        names = list(rows) or [""]
        return names[-1] if self.ranking == "after" else names[0]

    def _learn_classes(self, maps: Iterable[SampleMaps]) -> None:
        """Bring the list of targets up to date with the classes that the model has."""
        known = list(maps)
        if known:
            self._class_count = known[0].classes
            self._in_view = tuple({number for one in known for number in one.explained})
            self._offer_targets(self.target)

    def failed(self, job: Job[Any]) -> None:
        """Show the failure where the maps would be; what is scored when one stops is shown."""
        super().failed(job)
        if self.page == "sample":
            self._maps = None
        elif job.was_cancelled and self._scores:
            self._refresh_set(finish=False)
            return
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
        super().draw()
        self._arrange()

    def html(self) -> str:
        """The page in view."""
        if self.error is not None:
            return markup.error_box(self.error)
        style = html.MapStyle(self.method, self.opacity, self.signed, self._classes)
        if self.page == "set":
            ranking = self._ranking(self._scores)
            picked = self._picked(self._scores[ranking]) if self._scores else {}
            return html.set_page(
                self._pictures, self._scores, self._tiles, picked,
                ranking=ranking, style=style, count=self._count,
            )  # fmt: skip
        if self._maps is not None:
            return html.sample_page(self._pictures, *self._maps, style, compares=self._compares)
        waiting = self._job is None or not self._job.done
        return f'<span class="rw-soft">{"Computing maps …" if waiting else "Cancelled."}</span>'

    def still(self) -> str:
        """The page in view, with its heading."""
        return markup.heading(TITLE, self.method) + super().still()

    def forget(self) -> None:
        """Let go of models, inputs and maps."""
        self._model = nn.Identity()
        self.set_trait("after", None)
        self._attributions.forget()
        self._columns.clear()
        self._maps, self._scores, self._tiles = None, {}, {}


def _layer_options(model: nn.Module, chosen: str | None) -> list[tuple[str, str | None]]:
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    last = f"last convolution ({names[-1]})" if names else "the model has no convolution"
    if chosen is not None and chosen not in names:
        names.append(chosen)
    return [(last, None), *((name, name) for name in names)]
