"""`RectificationDashboard`: find the layer, edit it, and watch the behaviour go, in one widget.

Imports the three viewers that it is made of, and the actions behind its buttons.  The viewers
share the dashboard's session and are linked to it through their traits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.checks import check_choice, check_int, check_module, check_number
from rectify_widgets.engine.editability import Localization
from rectify_widgets.engine.editing import RankOneEdit
from rectify_widgets.engine.history import Rectification
from rectify_widgets.engine.inspection import unwrap
from rectify_widgets.engine.localization import METHODS
from rectify_widgets.engine.pairs import SamplePairs
from rectify_widgets.widgets import actions, markup
from rectify_widgets.widgets.attribution import AttributionViewer
from rectify_widgets.widgets.base import Panel, check_index, refuse_unknown
from rectify_widgets.widgets.controls import Controls
from rectify_widgets.widgets.editability import EditabilityViewer
from rectify_widgets.widgets.jobs import Job
from rectify_widgets.widgets.prediction import PredictionViewer
from rectify_widgets.widgets.session import Session

STRATEGIES = ("dynamic", "static")

LOCATE_SHARE = 0.15
"""Share of the progress of a rectification that scoring the layers first takes."""


class RectificationDashboard(Panel):
    """Layers, attribution maps and predictions of one model, before and after its edits.

    Every button is a method that returns its job: ``await dashboard.rectify()`` in a notebook,
    ``dashboard.rectify().wait()`` anywhere.  The model that is passed in is never changed; the
    edited copy is `model`.

    Args:
        model: a torch module that gives ``N × classes`` scores.
        pairs: corrupted and clean samples to repair from.
        reference: inputs like those that the model was trained on: tensor, data set or loader.
        examples: further pairs to look at, which the repair never sees.
        classes: class names, by number.
        target: the class that the maps explain; None explains each input's own prediction.
        method: how layers are scored, see `rectify_widgets.localize`.
        attribution: how inputs are attributed, see `rectify_widgets.explain.attribute`.
        strategy: ``"dynamic"`` or ``"static"``, see `rectify_widgets.rectify`.
        max_rounds, max_degradation, target_gap, validation, seed: of `rectify_widgets.rectify`.
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> dashboard = RectificationDashboard(model, pairs, reference=reference)
        >>> result = dashboard.rectify().wait()
        >>> result.save("fix.safetensors")
    """

    layer = traitlets.Unicode(None, allow_none=True)
    """The chosen layer's dotted name."""

    index = traitlets.Int(0)
    """The sample in view, from 0: the pairs, then the examples."""

    scores = traitlets.Dict(read_only=True)
    """Layer name to score, best first; empty until the layers are scored."""

    result = traitlets.Instance(Rectification, allow_none=True, read_only=True)
    """The last rectification, or None."""

    busy = traitlets.Bool(False, read_only=True)
    """Whether a button's work is under way."""

    def __init__(
        self,
        model: nn.Module,
        pairs: SamplePairs,
        *,
        reference: Any = None,
        examples: SamplePairs | None = None,
        classes: Sequence[str] | None = None,
        target: int | None = None,
        method: str = "edit-attribution",
        attribution: str = "integrated-gradients",
        strategy: str = "dynamic",
        max_rounds: int = 8,
        max_degradation: float = 0.01,
        target_gap: float = 0.02,
        validation: tuple[Tensor, Tensor] | None = None,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._original = check_module("model", model)
        if not isinstance(pairs, SamplePairs):
            raise TypeError(f"pairs: got {type(pairs).__name__}, want SamplePairs")
        if examples is not None and not isinstance(examples, SamplePairs):
            raise TypeError(f"examples: got {type(examples).__name__}, want SamplePairs or None")
        self._pairs, self._reference = pairs, reference
        self._method = check_choice("method", method, METHODS)
        self._seed = check_int("seed", seed, low=0)
        self._options = {
            "strategy": check_choice("strategy", strategy, STRATEGIES),
            "max_rounds": check_int("max_rounds", max_rounds, low=1),
            "max_degradation": check_number("max_degradation", max_degradation, low=0.0, high=1.0),
            "target_gap": check_number("target_gap", target_gap, low=0.0, high=1.0),
            "validation": validation,
        }
        self._groups: list[tuple[RankOneEdit, ...]] = []
        super().__init__(session)
        shown = pairs if examples is None else actions.join(pairs, examples)
        self._count = len(shown)
        common: dict[str, Any] = {"classes": classes, "session": self.session}
        with self.building():
            self.layers = EditabilityViewer(
                model, pairs, reference=reference, method=method, seed=seed, session=self.session
            )
            self.maps = AttributionViewer(
                model, shown, method=attribution, target=target, mean=mean, std=std, **common
            )
            self.predictions = PredictionViewer(model, None, shown, **common)
            self._compose()

    def _compose(self) -> None:
        self._controls = Controls(self._press)
        self._steps = ipw.HTML()
        self.predictions.samples.layout.display = "none"
        for card, flex in (
            (self.layers, "2 1 380px"),
            (self.maps, "1 1 306px"),
            (self.predictions, "1 1 306px"),
        ):
            card.layout.flex, card.layout.margin = flex, "0"
            card.layout.min_width, card.layout.max_width = "0", "100%"
            card.add_class("rw-card")
        cards = ipw.HBox(
            [self.layers, self.maps, self.predictions],
            layout=ipw.Layout(flex_flow="row wrap", width="100%", align_items="stretch"),
        )
        cards.add_class("rw-cards")
        self.fill([ipw.HTML(self._title()), self._controls, cards, self._steps])
        self.link("layer", self.layers)
        self.link("index", self.maps)
        self.link("index", self.predictions)
        self.listen(self, self._follow_layer, ["layer"])
        self.listen(self, self._show_state, ["status", "progress", "error", "busy"])
        self.listen(self.layers, self._take_scores, ["scores"])
        for viewer in (self.maps, self.predictions):
            self.listen(viewer, self._take_error, ["error"])
        self.set_trait("status", "Ready. Rectify finds and edits the layers for you.")
        self._show_state(None)

    # -- what can be read -------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model with the edits so far: a copy, or the given model while there are none."""
        return self.maps.after if self.maps.after is not None else self._original

    @property
    def edits(self) -> list[RankOneEdit]:
        """The edits so far, in order."""
        return [edit for group in self._groups for edit in group]

    # -- the buttons ------------------------------------------------------------------------------

    def locate(self) -> Job[Localization]:
        """Score every layer of the current model."""
        model = self.model

        def work(job: Job[Localization]) -> Localization:
            return actions.locate(job, model, self._pairs, **self._scoring())

        return self._act(work, "Locate", lambda job: self._show_scores(job.result()))

    def edit(self) -> Job[actions.Edited]:
        """Edit the chosen layer (or, where none is chosen, the best one) once."""
        model, layer = self.model, self.layer

        def work(job: Job[actions.Edited]) -> actions.Edited:
            return actions.edit_layer(job, model, self._pairs, layer, reference=self._reference)

        def show(job: Job[actions.Edited]) -> None:
            edited = job.result()
            self._groups.append(edited.edits)
            self._show_model(edited.model)
            self.set_trait("status", f"Edited {edited.edits[0].layer}.")

        return self._act(work, "Edit", show)

    def rectify(self) -> Job[Rectification]:
        """Find and edit layers until the gap is under its target; cancelling keeps what is done."""
        model, scored = self.model, bool(self.scores)

        def work(job: Job[Rectification]) -> Rectification:
            start = 0.0
            if not scored:
                start = LOCATE_SHARE
                found = actions.locate(job, model, self._pairs, span=(0, start), **self._scoring())
                job.call(lambda: self._show_scores(found))
            return actions.rectify_model(
                job,
                model,
                self._pairs,
                span=(start, 1.0),
                reference=self._reference,
                method=self._method,
                seed=self._seed,
                **self._options,
            )

        def show(job: Job[Rectification]) -> None:
            result = job.result()
            self.set_trait("result", result)
            self._steps.value = self._steps_html()
            if result.edits:
                self._groups.append(tuple(result.edits))
                self._show_model(result.model)
            self.set_trait("status", markup.outcome(result))

        return self._act(work, "Rectify", show)

    def undo(self) -> Job[actions.Edited]:
        """Take the last edit, or all edits of the last rectification, back.

        Raises:
            ValueError: there is nothing to undo.
        """
        if not self._groups:
            raise ValueError("undo: the model has no edits yet")
        remaining = [edit for group in self._groups[:-1] for edit in group]

        def work(job: Job[actions.Edited]) -> actions.Edited:
            return actions.replay(job, self._original, remaining)

        def show(job: Job[actions.Edited]) -> None:
            gone = self._groups.pop()
            self._show_model(job.result().model)
            if self.result is not None and tuple(self.result.edits) == gone:
                self.set_trait("result", None)
                self._steps.value = ""
            names = ", ".join(edit.layer for edit in gone)
            self.set_trait("status", f"Took back the edit of {names}.")

        return self._act(work, "Undo", show)

    def save(self, path: str | Path) -> Job[Path]:
        """Write the edits so far to a safetensors file, for `rectify_widgets.load_edits`.

        Raises:
            ValueError: there are no edits.
        """
        edits, goal = self.edits, Path(path)
        if not edits:
            raise ValueError("save: the model has no edits yet; rectify() or edit() first")

        def show(job: Job[Path]) -> None:
            self.set_trait(
                "status", f"Saved {markup.some(len(edits), 'edit')} to {job.result().name}."
            )

        return self._act(lambda job: actions.save(job, edits, goal), "Save", show)

    def cancel(self) -> Job[Any] | None:
        """Stop what is under way; returns its job."""
        job = self._action if self.busy else None
        if job is not None:
            self.set_trait("status", f"{job.label}: stopping …")
            job.cancel()
        return job

    # -- behind the buttons -----------------------------------------------------------------------

    _action: Job[Any] | None = None
    _doing = ""

    def _press(self, name: str) -> None:
        """What a click does: the method; what it raises is shown, since no cell would."""
        try:
            getattr(self, name)()
        except Exception as error:  # noqa: BLE001 - shown in place
            self.set_trait("error", error)

    def _act(self, work: Any, label: str, show: Any) -> Job[Any]:
        if self.busy:
            raise RuntimeError(f"{self._doing} is under way; wait for it, or cancel() it first")
        self._doing = label
        self.set_trait("busy", True)
        self.set_trait("progress", 0.0)
        self.set_trait("status", f"{label}: starting …")

        def finish(job: Job[Any]) -> None:
            self.set_trait("progress", 1.0)
            self.set_trait("busy", False)
            show(job)

        self._action = self.begin(
            work, lane="action", label=label, on_done=finish, on_progress=self._report
        )
        return self._action

    def failed(self, job: Job[Any]) -> None:
        """Show what went wrong and take new work."""
        self.set_trait("busy", False)
        self.set_trait("progress", 0.0)
        super().failed(job)

    def _report(self, job: Job[Any]) -> None:
        left = job.seconds_left()
        words = [f"{job.label}: {job.message}", f"{100 * job.fraction:.0f} %"]
        if left is not None:
            words.append(f"about {markup.duration(left)} left")
        self.set_trait("progress", min(max(job.fraction, 0.0), 1.0))
        self.set_trait("status", " · ".join(words))

    def _scoring(self) -> dict[str, Any]:
        return {"reference": self._reference, "method": self._method, "seed": self._seed}

    def _show_scores(self, localization: Localization) -> None:
        count = len(self.edits)
        note = f"after {markup.some(count, 'edit')}" if count else "of the model as given"
        self.layers.show(localization, note)
        self.set_trait("status", self.layers.status)

    def _show_model(self, model: nn.Module | None) -> None:
        self.layers.edited = tuple(dict.fromkeys(edit.layer for edit in self.edits))
        self.maps.after = model
        self.predictions.after = model

    def _take_scores(self, change: Mapping[str, Any]) -> None:
        self.set_trait("scores", change["new"])

    def _take_error(self, change: Mapping[str, Any]) -> None:
        if change["new"] is not None:
            self.set_trait("error", change["new"])

    def _follow_layer(self, change: Mapping[str, str | None]) -> None:
        """Grad-CAM looks at the chosen layer, if that is a convolution."""
        name = change["new"]
        part = None if name is None else unwrap(self._original).get_submodule(name)
        self.maps.layer = name if isinstance(part, nn.Conv2d) else None

    def _show_state(self, _: object) -> None:
        self._controls.show(
            status=self.status,
            progress=self.progress,
            error=self.error,
            busy=self.busy,
            can_undo=bool(self._groups),
        )

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Mapping[str, str | None]) -> str | None:
        return self.layers.check_layer(proposal["value"])

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        return check_index(proposal["value"], self._count)

    # -- static views -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait for the maps and predictions that are being computed."""
        self.maps.settle()
        self.predictions.settle()

    def static_html(self) -> str:
        """All views, one under the other."""
        views = [view.static_html() for view in (self.layers, self.maps, self.predictions)]
        columns = "".join(f"<div>{view}</div>" for view in views)
        pieces = [
            self._title() + markup.status_line(self.status) + markup.error_box(self.error),
            f'<div class="rw-columns">{columns}</div>',
            self._steps_html(),
        ]
        return "".join(f"<div>{piece}</div>" for piece in pieces if piece)

    def _title(self) -> str:
        facts = [type(unwrap(self._original)).__name__, markup.some(len(self._pairs), "pair")]
        if isinstance(self._reference, Tensor):
            facts.append(markup.some(len(self._reference), "reference"))
        return (
            '<span class="rw-title">Rectification</span> '
            f'<span class="rw-soft">{escape(" · ".join(facts))}</span>'
        )

    def _steps_html(self) -> str:
        if self.result is None:
            return ""
        title = markup.heading("History", "edits and trials of the last rectification")
        return f'<div class="rw-gap">{title}{markup.steps_table(self.result.steps)}</div>'

    def forget(self) -> None:
        """Let go of the edits."""
        self._groups.clear()
