"""The second half of the dashboard: the four viewers linked, and the buttons that locate, edit and undo.

Imports the four viewers, and the workshop behind the buttons.  The viewers share the session and are
linked through their traits: one sample, one layer, and one version of the model are in view everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.model.running import unwrap
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.result import Rectification, Step
from rectify_widgets.widgets import actions, markup
from rectify_widgets.widgets.attribution.viewer import AttributionViewer
from rectify_widgets.widgets.checks import check_index
from rectify_widgets.widgets.dashboard.controls import DashboardControls
from rectify_widgets.widgets.dashboard.options import OptionTraits
from rectify_widgets.widgets.dashboard.recipe import Recipe
from rectify_widgets.widgets.dashboard.workshop import Revision, Workshop
from rectify_widgets.widgets.editability.viewer import EditabilityViewer
from rectify_widgets.widgets.history.viewer import HistoryViewer
from rectify_widgets.widgets.panel import Panel, close_tree
from rectify_widgets.widgets.prediction.viewer import PredictionViewer
from rectify_widgets.widgets.session import Job, Session

LOCATE_SHARE = 0.15
"""Share of the progress of a rectification that scoring the layers first takes."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What one set of pairs is repaired from, and the viewers of that repair."""

    pairs: SamplePairs
    workshop: Workshop
    layers: EditabilityViewer
    maps: AttributionViewer
    predictions: PredictionViewer
    history: HistoryViewer
    cards: ipw.Box


class Repair(Panel, OptionTraits):
    """Layers, attribution maps, predictions and history of one model and its edits.

    `repair_from` begins with a set of pairs, and begins anew with another one.
    """

    layer = traitlets.Unicode(None, allow_none=True).tag(sync=True)
    """The chosen layer's dotted name."""

    index = traitlets.Int(0).tag(sync=True)
    """The sample in view, from 0: the pairs, then the examples."""

    file = traitlets.Unicode("edits.safetensors")
    """Where the Save button writes."""

    checkpoint = traitlets.Unicode(None, allow_none=True)
    """File in which `rectify` keeps how far it is until it has ended, see `rectify_widgets.rectify`: a
    dashboard that is started anew goes on from there after the kernel was killed.  None for none."""

    scores = traitlets.Dict(read_only=True)
    """Layer name to score, best first; empty until the layers are scored."""

    result = traitlets.Instance(Rectification, allow_none=True, read_only=True)
    """The last rectification, or None; None once the dashboard is closed too."""

    model = traitlets.Instance(nn.Module, allow_none=True, read_only=True)
    """The version in view: a copy with the edits so far, or the given model without any; None once
    the dashboard is closed."""

    def __init__(
        self,
        model: nn.Module,
        reference: Any,
        *,
        examples: SamplePairs | None,
        target: int | str | None,
        attribution: str | None,
        validation: tuple[Tensor, Tensor] | None,
        display: Mapping[str, Any],
        session: Session | None,
        options: Mapping[str, Any],
    ) -> None:
        self._original, self._reference = model, reference
        self._examples, self._target = examples, target
        self._attribution, self._validation = attribution, validation
        self._display = dict(display)
        self._seed = RectifyOptions(**options).seed
        self._bench: Bench | None = None
        self._bench_undo: list[Callable[[], None]] = []
        self.recipe = Recipe(
            validation=validation is not None, reference=reference, seed=self._seed
        )
        super().__init__(session)
        with self.building():
            self.set_options(**options)
            self.set_trait("model", model)
            self._controls = DashboardControls(self)
            self.listen(self, self._follow_layer, ["layer"])
            self.listen(self, self._update, ["busy"])

    def repair_from(self, pairs: SamplePairs) -> None:
        """Begin a repair from these pairs; what was edited from others is gone.

        Raises:
            RuntimeError: something is under way.
            ValueError: pairs of another sample shape than the examples.
        """
        self.check_idle()
        examples = self._examples
        samples = pairs if examples is None else actions.join(pairs, examples)
        workshop = Workshop(self._original, pairs, self._reference, self._seed, self._validation)
        self._drop()
        model, shared = self._original, {"session": self.session}
        display: dict[str, Any] = shared | self._display
        layers = EditabilityViewer(
            model, pairs, reference=self._reference, method=self.method, seed=self._seed,
            controls=False, **shared,
        )  # fmt: skip
        maps = AttributionViewer(model, samples, method=self._attribution, **display)
        maps.samples.mark(range(len(pairs)), "repair pair")
        predictions = PredictionViewer(
            model, None, samples, target=self._target, controls=False, **display
        )
        history = HistoryViewer(model, controls=False, session=self.session)
        views = (layers, maps, predictions, history)
        for card in views:
            card.add_class("rw-card")
        cards = ipw.Box(views, layout=self.looks.get(ipw.Layout, width="100%"))
        cards.add_class("rw-cards")
        self._bench = Bench(pairs, workshop, *views, cards)
        start = len(self._undo_links)
        self._link()
        self._bench_undo = self._undo_links[start:]
        self._update(None)

    def _drop(self) -> None:
        """Close the viewers of other pairs."""
        if self._bench is None:
            return
        for undo in self._bench_undo:
            undo()
            self._undo_links.remove(undo)
        cards, self._bench = self._bench.cards, None
        self.index, self.layer = 0, None
        for name, value in (("scores", {}), ("result", None), ("model", self._original)):
            self.set_trait(name, value)
        close_tree(cards)

    def _link(self) -> None:
        """Link the viewers of new pairs."""
        for name, viewer in (
            ("layer", self.layers), ("index", self.maps), ("index", self.predictions),
            ("max_degradation", self.history), ("target_gap", self.history),
        ):  # fmt: skip
            self.link(name, viewer)
        self.listen(self.layers, self._take, ["scores"])
        self.listen(self.history, self._follow_model, ["model"])
        self.listen(self.history, self._update, ["step", "branch"])
        self.listen(self.history, self._moved, ["status"])
        for viewer in (self.maps, self.predictions, self.history):
            self.listen(viewer, self._take, ["error"])

    # -- what can be read -------------------------------------------------------------------------

    @property
    def bench(self) -> Bench:
        """Pairs and viewers of the repair.

        Raises:
            ValueError: there are no pairs yet.
        """
        if self._bench is None:
            raise ValueError(
                "pairs: got none yet, want some to repair from; take those of a suspicion, or paint "
                "over odd inputs"
            )
        return self._bench

    @property
    def layers(self) -> EditabilityViewer:
        """How editable each layer is."""
        return self.bench.layers

    @property
    def maps(self) -> AttributionViewer:
        """What the model looks at, before and after."""
        return self.bench.maps

    @property
    def predictions(self) -> PredictionViewer:
        """What the model predicts, before and after."""
        return self.bench.predictions

    @property
    def history(self) -> HistoryViewer:
        """Edits and trials."""
        return self.bench.history

    @property
    def pairs(self) -> SamplePairs | None:
        """What is repaired from; None as long as there is nothing."""
        return None if self._bench is None else self._bench.pairs

    @property
    def edits(self) -> list[RankOneEdit]:
        """The edits of the version in view, in order."""
        return [] if self._bench is None else self._bench.history.edits

    # -- the buttons ------------------------------------------------------------------------------

    def locate(self) -> Job[Localization]:
        """Score every layer of the version in view."""
        workshop, edits = self.bench.workshop, self.edits
        method, limit = self.method, self.memory_limit
        return self.act(
            lambda job: workshop.locate(job, edits, method, memory_limit=limit),
            "Locate",
            lambda job: self._show_scores(job.result(), len(edits)),
        )

    def edit(self) -> Job[Revision]:
        """Edit the chosen layer (or, where none is chosen, the best one) once."""
        workshop, edits, layer = self.bench.workshop, self.edits, self.layer
        parent = self.history.timeline.here.number

        def show(job: Job[Revision]) -> None:
            revision = job.result()
            name, before = revision.edits[0].layer, revision.start.gap
            after = (revision.verdicts or revision.earlier)[-1]
            closed = {name: 1.0 - after.gap / before} if before > 0 else {}
            self.recipe.edited(edits, revision.edits, layer)
            self._add(revision, parent, closed)
            self.set_trait(
                "status",
                f"Edited {name}: gap {markup.percent(before)} → {markup.percent(after.gap)}, "
                f"degradation {markup.percent(after.degradation)}.",
            )

        return self.act(lambda job: workshop.edit(job, edits, layer), "Edit", show)

    def rectify(self) -> Job[Rectification]:
        """Edit the version in view until the gap is under its target.

        Cancelling keeps the edits that were kept by then.
        """
        workshop, edits, scored = self.bench.workshop, self.edits, bool(self.scores)
        parent = self.history.timeline.here.number
        options, checkpoint = self.options(self.layer), self.checkpoint
        done = list[Revision]()

        def work(job: Job[Rectification]) -> Rectification:
            start = 0.0 if scored else LOCATE_SHARE
            if not scored:
                found = workshop.locate(
                    job, edits, options.method, memory_limit=options.memory_limit, stop=start
                )
                job.call(lambda: self._show_scores(found, len(edits)))
            revision, result = workshop.rectify(
                job, edits, options, checkpoint=checkpoint, start=start
            )
            done.append(revision)
            return result

        def show(job: Job[Rectification]) -> None:
            result = job.result()
            self.set_trait("result", result)
            self.recipe.rectified(edits, result, options)
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
        return self._go(self.bench.history.undo, "Took an edit back")

    def redo(self) -> Job[Any]:
        """Make the edit again that was taken back.

        Raises:
            ValueError: there is nothing to redo.
            RuntimeError: something is under way.
        """
        return self._go(self.bench.history.redo, "Made an edit again")

    def save(self, path: str | Path | None = None) -> Job[Path]:
        """Write the edits of the version in view, for `rectify_widgets.load_edits`.

        Args:
            path: of the safetensors file; None takes `file`.

        Raises:
            TypeError, ValueError: there are no edits, or no such folder.
        """
        job = self.history.save(goal := self.file if path is None else path)
        self.recipe.saved(self.edits, str(goal))
        count = markup.some(len(self.edits), "edit")
        self.set_trait("status", f"Saved {count} to {Path(goal).name}.")
        return job

    # -- behind the buttons -----------------------------------------------------------------------

    def act(self, work: Any, label: str, show: Any) -> Job[Any]:
        """As `Panel.act`; scoring a whole set of maps would keep the work waiting, so it ends."""
        self.check_idle()
        if self._bench is not None and self.maps.page == "set":
            self.maps.cancel()
        return super().act(work, label, show)

    def _go(self, move: Callable[[], Job[Any]], words: str) -> Job[Any]:
        self.check_idle()
        job = move()
        self.set_trait("progress", 0.0)  # of the work before it
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
        if change["new"] is not None or change["old"] is self.error:
            self.set_trait(change["name"], change["new"])

    def _moved(self, change: Mapping[str, str]) -> None:
        """What was said of another step is not true any more."""
        if not self.busy:
            self.set_trait("status", change["new"])

    def _follow_layer(self, change: Mapping[str, str | None]) -> None:
        """Grad-CAM looks at the chosen layer, if that is a convolution."""
        if self._bench is None:
            return
        name = change["new"]
        part = None if name is None else unwrap(self._original).get_submodule(name)
        self.maps.layer = name if isinstance(part, nn.Conv2d) else None

    def _update(self, _: object) -> None:
        """Offer what can be done now; the next step stands out."""
        changing = {"rectify", "locate", "edit", "undo", "redo", "write_report"}
        disabled = set(changing) if self.busy else {"cancel"}
        after = "rectify"
        if self._bench is None:
            disabled |= changing | {"save"}
        else:
            timeline = self.history.timeline
            disabled |= set() if timeline.step else {"undo", "save", "write_report"}
            disabled |= {"redo"} if timeline.step == len(timeline.path) - 1 else set()
            after = "save" if timeline.step else "rectify"
        self._controls.update(disabled, "cancel" if self.busy else after)

    # -- checks -----------------------------------------------------------------------------------

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Mapping[str, str | None]) -> str | None:
        name = proposal["value"]
        return None if name is None else self.layers.check_layer(name)

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        bench, more = self._bench, self._examples
        count = 1 if bench is None else len(bench.pairs) + (0 if more is None else len(more))
        return check_index(proposal["value"], count)

    # -- the end ----------------------------------------------------------------------------------

    def forget(self) -> None:
        """Let go of the models, the pairs and the references."""
        self._bench = self._examples = self._validation = None
        self._bench_undo.clear()
        self.recipe.given()  # it holds the edits
        for name in ("model", "result"):
            self.set_trait(name, None)


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
