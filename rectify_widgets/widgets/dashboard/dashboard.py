"""`RectificationDashboard`: find the layer, edit it, and watch the behaviour go, in one widget.

Imports the four viewers that it is made of, and the workshop behind its buttons.  The viewers share
the dashboard's session and are linked to it through their traits: one sample, one layer, and one
version of the model are in view everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_module, check_type
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.model.running import unwrap
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.result import Rectification, Step
from rectify_widgets.widgets import actions, markup
from rectify_widgets.widgets.attribution.viewer import AttributionViewer
from rectify_widgets.widgets.checks import check_index, refuse_unknown
from rectify_widgets.widgets.dashboard.controls import DashboardControls
from rectify_widgets.widgets.dashboard.options import OPTIONS, OptionTraits
from rectify_widgets.widgets.dashboard.workshop import Revision, Workshop
from rectify_widgets.widgets.editability.viewer import EditabilityViewer
from rectify_widgets.widgets.history.viewer import HistoryViewer
from rectify_widgets.widgets.panel import Panel
from rectify_widgets.widgets.prediction.viewer import PredictionViewer
from rectify_widgets.widgets.session import Job, Session
from rectify_widgets.widgets.style import SHEETS

LOCATE_SHARE = 0.15
"""Share of the progress of a rectification that scoring the layers first takes."""


class RectificationDashboard(Panel, OptionTraits):
    """Layers, attribution maps, predictions and history of one model and its edits.

    Every button is a method that returns its job: ``await dashboard.rectify()`` in a notebook,
    ``dashboard.rectify().wait()`` anywhere.  The model that is passed in is never changed; the
    version in view, a copy with the edits so far, is `model`.

    Args:
        model: a torch module that gives ``N × classes`` scores.
        pairs: corrupted and clean samples to repair from.
        reference: inputs like those that the model was trained on: tensor, data set or loader.
        examples: further pairs to look at, which the repair never sees.
        classes: class names, by number.
        target: the class that the corruption leads to, its number or name, for the attack success rate;
            None leaves that out.  Of several labels, see `PredictionViewer`.
        attribution: how inputs are attributed, see `rectify_widgets.attribute`.
        validation: of `rectify_widgets.rectify`.
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        session: share the worker of another widget.
        **options: of `rectify_widgets.rectify`: ``method``, ``strategy``, ``max_rounds``,
            ``max_degradation``, ``target_gap``, ``refine_steps`` and the others of `RectifyOptions`.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> dashboard = RectificationDashboard(model, pairs, reference=reference)
        >>> result = dashboard.rectify().wait()
        >>> result.save("fix.safetensors")
    """

    sheets = ("dashboard",)

    layer = traitlets.Unicode(None, allow_none=True)
    """The chosen layer's dotted name."""

    index = traitlets.Int(0)
    """The sample in view, from 0: the pairs, then the examples."""

    file = traitlets.Unicode("edits.safetensors")
    """Where the Save button writes."""

    scores = traitlets.Dict(read_only=True)
    """Layer name to score, best first; empty until the layers are scored."""

    result = traitlets.Instance(Rectification, allow_none=True, read_only=True)
    """The last rectification, or None."""

    model = traitlets.Instance(nn.Module, allow_none=True, read_only=True)
    """The version in view: a copy with the edits so far, or the given model without any; None once
    the dashboard is closed."""

    def __init__(
        self,
        model: nn.Module,
        pairs: SamplePairs,
        *,
        reference: Any = None,
        examples: SamplePairs | None = None,
        classes: Sequence[str] | None = None,
        target: int | str | None = None,
        attribution: str = "integrated-gradients",
        validation: tuple[Tensor, Tensor] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        session: Session | None = None,
        **options: Any,
    ) -> None:
        refuse_unknown(type(self), [name for name in options if name not in OPTIONS], OPTIONS)
        self._original = check_module("model", model)
        check_type("pairs", pairs, SamplePairs, "SamplePairs")
        if examples is not None:
            check_type("examples", examples, SamplePairs, "SamplePairs or None")
        summary = [type(unwrap(model)).__name__, markup.some(len(pairs), "pair")]
        if isinstance(reference, Tensor):
            summary.append(markup.some(len(reference), "reference"))
        samples = pairs if examples is None else actions.join(pairs, examples)
        self._count = len(samples)
        self.about = ", ".join(summary)
        seed = RectifyOptions(**options).seed
        self._workshop = Workshop(model, pairs, reference, seed, validation)
        super().__init__(session)
        with self.building():
            self.set_options(**options)
            self.set_trait("model", model)
            shared: dict[str, Any] = {"session": self.session}
            display: dict[str, Any] = shared | {"classes": classes, "mean": mean, "std": std}
            self.layers = EditabilityViewer(
                model, pairs, reference=reference, method=self.method, seed=seed, controls=False,
                **shared,
            )  # fmt: skip
            self.maps = AttributionViewer(model, samples, method=attribution, **display)
            self.predictions = PredictionViewer(
                model, None, samples, target=target, controls=False, **display
            )
            self.history = HistoryViewer(model, controls=False, **shared)
            self._compose()
            self.layer = options.get("layer")

    def _compose(self) -> None:
        self._controls = DashboardControls(self)
        views = (self.layers, self.maps, self.predictions, self.history)
        for card in views:
            card.add_class("rw-card")
        cards = ipw.Box(views, layout=self.looks.get(ipw.Layout, width="100%"))
        cards.add_class("rw-cards")
        self.add_class("rw-dashboard")
        self.children = (self.canvas, *self._controls.rows, cards)
        for name, viewer in (
            ("layer", self.layers), ("index", self.maps), ("index", self.predictions),
            ("max_degradation", self.history), ("target_gap", self.history),
        ):  # fmt: skip
            self.link(name, viewer)
        self.listen(self, self._follow_layer, ["layer"])
        self.listen(self, self._update, ["busy"])
        self.listen(self.layers, self._take, ["scores"])
        self.listen(self.history, self._follow_model, ["model"])
        self.listen(self.history, self._update, ["step", "branch"])
        for viewer in views[1:]:
            self.listen(viewer, self._take, ["error"])
        self.set_trait("status", "Ready. Rectify finds and edits the layers for you.")
        self._update(None)
        self.draw()

    # -- what can be read -------------------------------------------------------------------------

    @property
    def edits(self) -> list[RankOneEdit]:
        """The edits of the version in view, in order."""
        return self.history.edits

    # -- the buttons ------------------------------------------------------------------------------

    def locate(self) -> Job[Localization]:
        """Score every layer of the version in view."""
        edits, method = self.edits, self.method
        return self.act(
            lambda job: self._workshop.locate(job, edits, method),
            "Locate",
            lambda job: self._show_scores(job.result(), len(edits)),
        )

    def edit(self) -> Job[Revision]:
        """Edit the chosen layer (or, where none is chosen, the best one) once."""
        edits, layer = self.edits, self.layer
        parent = self.history.timeline.here.number

        def show(job: Job[Revision]) -> None:
            revision = job.result()
            name, before = revision.edits[0].layer, revision.start.gap
            after = (revision.verdicts or revision.earlier)[-1]
            closed = {name: 1.0 - after.gap / before} if before > 0 else {}
            self._add(revision, parent, closed)
            self.set_trait(
                "status",
                f"Edited {name}: gap {markup.percent(before)} → {markup.percent(after.gap)}, "
                f"degradation {markup.percent(after.degradation)}.",
            )

        return self.act(lambda job: self._workshop.edit(job, edits, layer), "Edit", show)

    def rectify(self) -> Job[Rectification]:
        """Edit the version in view until the gap is under its target.

        Cancelling keeps the edits that were kept by then.
        """
        edits, scored = self.edits, bool(self.scores)
        parent = self.history.timeline.here.number
        options, done = self.options(self.layer), list[Revision]()

        def work(job: Job[Rectification]) -> Rectification:
            start = 0.0 if scored else LOCATE_SHARE
            if not scored:
                found = self._workshop.locate(job, edits, options.method, stop=start)
                job.call(lambda: self._show_scores(found, len(edits)))
            revision, result = self._workshop.rectify(job, edits, options, start=start)
            done.append(revision)
            return result

        def show(job: Job[Rectification]) -> None:
            result = job.result()
            self.set_trait("result", result)
            self._add(done[0], parent, shares(result.steps), result.steps)
            self.set_trait("status", markup.outcome(result))
            self.draw()

        return self.act(work, "Rectify", show)

    def undo(self) -> Job[Any]:
        """Take the last edit back.

        Raises:
            ValueError: there is nothing to undo.
            RuntimeError: something is under way.
        """
        return self._go(self.history.undo, "Took an edit back")

    def redo(self) -> Job[Any]:
        """Make the edit again that was taken back.

        Raises:
            ValueError: there is nothing to redo.
            RuntimeError: something is under way.
        """
        return self._go(self.history.redo, "Made an edit again")

    def save(self, path: str | Path | None = None) -> Job[Path]:
        """Write the edits of the version in view, for `rectify_widgets.load_edits`.

        Args:
            path: of the safetensors file; None takes `file`.

        Raises:
            TypeError, ValueError: there are no edits, or no such folder.
        """
        job = self.history.save(goal := self.file if path is None else path)
        count = markup.some(len(self.edits), "edit")
        self.set_trait("status", f"Saved {count} to {Path(goal).name}.")
        return job

    # -- behind the buttons -----------------------------------------------------------------------

    def act(self, work: Any, label: str, show: Any) -> Job[Any]:
        """As `Panel.act`; scoring a whole set of maps would keep the work waiting, so it ends."""
        self.check_idle()
        if self.maps.page == "set":
            self.maps.cancel()
        return super().act(work, label, show)

    def _go(self, move: Callable[[], Job[Any]], words: str) -> Job[Any]:
        self.check_idle()
        job = move()
        self.set_trait("status", f"{words}: {self.history.status}")
        return job

    def _show_scores(self, localization: Localization, edits: int) -> None:
        note = f"after {markup.some(edits, 'edit')}" if edits else "of the model as given"
        self.layers.measured = {}
        self.layers.show(localization, note)
        self.set_trait("status", self.layers.status)

    def _add(
        self,
        revision: Revision,
        parent: int,
        closed: Mapping[str, float],
        trials: Sequence[Step] = (),
    ) -> None:
        """Put new edits into the history, after the version that they were made from.

        ``closed`` is the share of the gap that the edit of a layer closed.
        """
        self.history.append(
            revision.edits, revision.verdicts, trials=trials, parent=parent, model=revision.model
        )
        numbers = [version.number for version in self.history.timeline.lineage(parent)]
        self.history.measured(dict(zip(numbers, revision.earlier, strict=True)))
        self.layers.measured = {**self.layers.measured, **closed}

    def _follow_model(self, change: Mapping[str, nn.Module | None]) -> None:
        """The version in view comes into all views."""
        self.set_trait("model", self._original if change["new"] is None else change["new"])
        self.layers.edited = tuple(dict.fromkeys(edit.layer for edit in self.edits))
        self.maps.after = change["new"]
        self.predictions.after = change["new"]

    def _take(self, change: Mapping[str, Any]) -> None:
        """Scores and errors of a viewer are those of the dashboard too."""
        if change["new"] is not None:
            self.set_trait(change["name"], change["new"])

    def _follow_layer(self, change: Mapping[str, str | None]) -> None:
        """Grad-CAM looks at the chosen layer, if that is a convolution."""
        name = change["new"]
        part = None if name is None else unwrap(self._original).get_submodule(name)
        self.maps.layer = name if isinstance(part, nn.Conv2d) else None

    def _update(self, _: object) -> None:
        """Offer what can be done now; the next step stands out."""
        timeline = self.history.timeline
        disabled = {"rectify", "locate", "edit", "undo", "redo"} if self.busy else {"cancel"}
        disabled |= set() if timeline.step else {"undo", "save"}
        disabled |= {"redo"} if timeline.step == len(timeline.path) - 1 else set()
        after = "save" if timeline.step else "rectify"
        self._controls.update(disabled, "cancel" if self.busy else after)

    # -- checks -----------------------------------------------------------------------------------

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Mapping[str, str | None]) -> str | None:
        return self.layers.check_layer(proposal["value"])

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        return check_index(proposal["value"], self._count)

    # -- static views -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait for the views that are being computed."""
        for view in (self.history, self.maps, self.predictions):
            view.settle()

    def sheets_with_parts(self) -> tuple[str, ...]:
        """The sheets of all widgets."""
        return SHEETS

    def html(self) -> str:
        """The title; the viewers below it say the rest."""
        title = '<span class="rw-title">Rectification</span>'
        words = self.about.replace(", ", " · ")
        if self.result is not None and (corruption := markup.corruption(self.result)):
            words += f" · {corruption}"
        return f'{title} <span class="rw-soft">{escape(words)}</span>'

    def still(self) -> str:
        """All views, one under the other."""
        state = markup.status_line(self.status) + markup.error_box(self.error)
        views = (self.layers, self.maps, self.predictions)
        columns = "".join(f"<div>{view.still()}</div>" for view in views)
        page = f'<div>{self.html()}{state}</div><div><div class="rw-columns">{columns}</div></div>'
        edited = len(self.history.timeline) > 1
        return page + (f"<div>{self.history.still()}</div>" if edited else "")

    def forget(self) -> None:
        """Let go of the model and of the references."""
        self.set_trait("model", None)
        self._workshop.forget()


def shares(steps: Sequence[Step]) -> dict[str, float]:
    """Share of the gap that the best single edit of each layer closed in the first round."""
    closed: dict[str, float] = {}
    for step in steps:
        if step.round > 1 or step.refined:  # refined edits close it together with other layers
            continue
        if step.gap_after is not None and step.gap_before > 0:
            share = 1.0 - step.gap_after / step.gap_before
            closed[step.layer] = max(share, closed.get(step.layer, share))
    return closed
