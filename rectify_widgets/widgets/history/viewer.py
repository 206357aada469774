"""`HistoryViewer`: every version of a model under repair, to scrub, undo, redo and branch.

Imports the engine's history, the panel, the timeline and its HTML.  The tree of versions is
`timeline.Timeline`; here it gets controls, and a model for the step in view.  That model is made anew
from the model as given and the edits, in a short job: never from one that is being worked on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import nn

from rectify_widgets.engine.base.checks import check_module, check_number
from rectify_widgets.engine.edit.edits import RankOneEdit, save_edits
from rectify_widgets.engine.measure.judge import Verdict
from rectify_widgets.engine.model.running import copied
from rectify_widgets.engine.repair.result import Rectification, Step
from rectify_widgets.widgets import markup, view
from rectify_widgets.widgets.checks import CheckedTrait, check_path, refuse_unknown
from rectify_widgets.widgets.controls import Controls, show
from rectify_widgets.widgets.history import html
from rectify_widgets.widgets.history.timeline import Timeline
from rectify_widgets.widgets.panel import Panel
from rectify_widgets.widgets.session import Job, Session

COPIES = 4
"""Models that are kept, one a version; the one not seen for longest is dropped first."""


class HistoryViewer(Panel):
    """The steps of a repair with what each brought and cost, and the model at any of them.

    Args:
        rectification: what `rectify` made; or a torch module as it was given, whose history is yet
            to come (see `append`).
        max_degradation, target_gap: for the budget line and the target line, fractions; None takes
            those of the rectification.
        controls: show the buttons for undo, redo and saving too.  A larger widget with buttons of
            its own leaves them out; they are methods in any case.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> import traitlets
        >>> history, maps = rw.HistoryViewer(result), rw.AttributionViewer(model, pairs)
        >>> link = traitlets.dlink((history, "model"), (maps, "after"))  # maps follow every step
        >>> history.step = 1
        >>> history.close(), maps.close()
        (None, None)
    """

    sheets = ("history",)
    handles = ("step", "branch", "show_branch")
    marks = ("step", "branch")

    step = traitlets.Int(0).tag(sync=True)
    """The step in view: 0 is the model as given, 1 the first edit of the branch."""

    branch = traitlets.Int(0).tag(sync=True)
    """The branch in view, from 0 in the order of their beginning; choosing one shows its end."""

    model = traitlets.Instance(nn.Module, allow_none=True, read_only=True)
    """The model at the step in view, a copy; None at step 0.  It follows `step` as soon as the copy
    is made, and going back gives the same object again while it is kept (`COPIES`)."""

    file = traitlets.Unicode("edits.safetensors")
    """Where the button saves the edits to."""

    max_degradation = CheckedTrait(None, check_number, low=0.0, high=1.0)
    """The budget line, a fraction, or None."""

    target_gap = CheckedTrait(None, check_number, low=0.0, high=1.0)
    """The target line, a fraction, or None."""

    def __init__(
        self,
        rectification: Rectification | nn.Module,
        *,
        max_degradation: float | None = None,
        target_gap: float | None = None,
        controls: bool = True,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._source = rectification
        if isinstance(rectification, Rectification):
            self._timeline = Timeline.from_rectification(rectification)
            self.about = (
                f"{markup.some(len(rectification.edits), 'edit')} in "
                f"{markup.some(len(rectification.steps), 'trial')}"
            )
            if max_degradation is None:
                max_degradation = rectification.max_degradation
            if target_gap is None:
                target_gap = rectification.target_gap
        elif isinstance(rectification, nn.Module):
            self._timeline = Timeline()
            self.about = type(rectification).__name__
        else:
            raise TypeError(
                f"rectification: got {type(rectification).__name__}, want a Rectification, or the "
                "torch.nn.Module that is to be edited"
            )
        self._models: OrderedDict[int, nn.Module] = OrderedDict()
        self._syncing = False
        super().__init__(session)
        with self.building():
            self.max_degradation, self.target_gap = max_degradation, target_gap
            self._build(controls=controls)
            self._sync()

    # -- what can be read -------------------------------------------------------------------------

    @property
    def timeline(self) -> Timeline:
        """All versions, for reading; they change through the methods of this widget."""
        return self._timeline

    @property
    def edits(self) -> list[RankOneEdit]:
        """The edits up to the step in view, in order."""
        return self._timeline.edits

    # -- growing ----------------------------------------------------------------------------------

    def append(
        self,
        edits: Sequence[RankOneEdit],
        verdicts: Sequence[Verdict] | None = None,
        *,
        trials: Iterable[Step] = (),
        parent: int | None = None,
        model: nn.Module | None = None,
    ) -> Job[nn.Module | None]:
        """Add edits that were made, and go to the last of them.

        Args:
            edits: in order, one version each; none, where a rectification kept none of its trials.
            verdicts: what was measured after each edit, see `rectify_widgets.engine.repair.measuring`;
                None takes gap and degradation from the trials that were kept.
            trials: all trials of a rectification, see `Timeline.extend`.
            parent: number of the version that the edits were made from (``timeline.here.number``
                as the work began); None is the one in view.  Where other steps follow it already, a
                branch begins.
            model: the model with all these edits, if it is at hand; it is kept, so it must not be
                changed any more.

        Raises:
            ValueError: verdicts or trials do not fit the edits, or there is no such parent.
        """
        before = self._timeline.here.number
        figures = None if verdicts is None else [(v.gap, v.degradation) for v in verdicts]
        if parent is not None:
            self._timeline.visit(parent)
        try:
            self._timeline.extend(edits, figures, trials=trials)
        except ValueError:
            self._timeline.visit(before)
            raise
        if model is not None and edits:
            self._keep(self._timeline.here.number, check_module("model", model))
        return self._sync()

    def measured(self, verdicts: Mapping[int, Verdict]) -> None:
        """Show new figures of versions, by number: 0 is the model as given.

        Raises:
            ValueError: there is no such version.
        """
        self._timeline.measured({n: (v.gap, v.degradation) for n, v in verdicts.items()})
        self.draw()

    # -- the buttons ------------------------------------------------------------------------------

    def undo(self) -> Job[nn.Module | None]:
        """Go one step back; the job's result is the model there.

        Raises:
            ValueError: this is the model as given.
        """
        self._timeline.undo()
        return self._sync()

    def redo(self) -> Job[nn.Module | None]:
        """Go one step forward; the job's result is the model there.

        Raises:
            ValueError: this is the last step of the branch.
        """
        self._timeline.redo()
        return self._sync()

    def branch_off(self) -> Job[nn.Module | None]:
        """Begin a branch at the step in view; the later steps stay on theirs.

        An edit made at an earlier step does so by itself.

        Raises:
            ValueError: this is the last step of the branch already.
        """
        self._timeline.branch_off()
        return self._sync()

    def show_branch(self, branch: int) -> None:
        """Show the end of a branch, as setting `branch` does."""
        self.branch = branch

    def save(self, path: str | Path) -> Job[Path]:
        """Write the edits up to the step in view, for `rectify_widgets.load_edits`.

        Raises:
            TypeError, ValueError: ``path`` is no path to a file, or there are no edits.
        """
        goal, edits = check_path("path", path), self.edits
        if not edits:
            raise ValueError("save: there are no edits at step 0; go to a later step first")

        def report(job: Job[Path]) -> None:
            what = markup.some(len(edits), "edit")
            self.set_trait("status", f"Saved {what} to {job.result().name}.")

        def work(_: Job[Path]) -> Path:
            save_edits(edits, goal)
            return goal

        lane = f"save {id(self)}"
        return self.begin(work, lane=lane, label="Save", short=True, on_done=report)

    def refresh(self) -> Job[nn.Module | None]:
        """Make the model of the step in view, or take it from those that are kept."""
        number = self._timeline.here.number
        edits, source = self.edits, self._source
        kept = self._models.get(number)
        if kept is not None or not edits:
            self._show_model(number, kept)

        def work(job: Job[nn.Module | None]) -> nn.Module | None:
            if kept is not None or not edits:
                return kept
            model = source.at(0) if isinstance(source, Rectification) else copied(source)
            for edit in edits:
                job.check()
                edit.apply(model)
            return model

        def show(job: Job[nn.Module | None]) -> None:
            self._show_model(number, job.result())

        lane, label = f"history {id(self)}", f"Step {self.step}"
        return self.begin(work, lane=lane, label=label, short=True, on_done=show)

    # -- behind the buttons -----------------------------------------------------------------------

    def _build(self, *, controls: bool) -> None:
        self.add_class("rw-history-card")
        make = Controls(self)
        self._heading = make.text()
        self._steps = make.samples(1, name="step", label="Step", first=0)
        self._branches = make.choice("branch", [("", 0)], "Branch")
        tip = "Begin a branch at this step; later steps are kept"
        self._buttons = {"branch_off": make.button("Branch off", "code-fork", tip, "branch_off")}
        rows = [make.row(self._steps.box, self._buttons["branch_off"], self._branches.box)]
        if controls:
            tip = "Where Save writes the edits to"
            file = make.field(ipw.Text, "file", "File", tip, width="240px")
            tip = "Write the edits up to this step to the file"
            save = make.button("Save", "save", tip, lambda: self.save(self.file))
            undo = make.button("Undo", "undo", "Go one step back", "undo")
            redo = make.button("Redo", "repeat", "Go one step forward", "redo")
            self._buttons |= {"undo": undo, "redo": redo, "save": save}
            rows.append(make.row(make.unit(undo, redo), make.unit(file, save)))
        self.children = (self._heading, *rows, make.state(), self.canvas)
        self.listen(self, self._go, ["step", "branch"])
        self.listen(self, lambda _: self.draw(), ["max_degradation", "target_gap"])

    def _go(self, change: Mapping[str, Any]) -> None:
        if not self._syncing:
            go = self._timeline.go if change["name"] == "step" else self._timeline.view
            go(change["new"])
            self._sync()

    def _sync(self) -> Job[nn.Module | None]:
        """Have traits, controls and view follow the timeline, and the model soon after."""
        timeline = self._timeline
        count, tips = len(timeline.path), range(len(timeline.branches))
        self._syncing = True  # traits and controls follow the timeline, not the other way round
        try:
            self._steps.resize(max(count, self._steps.slider.max + 1))
            self._branches.offer([(html.branch_name(timeline, tip), tip) for tip in tips])
            self.branch, self.step = timeline.branch, timeline.step
            self._steps.resize(count)
        finally:
            self._syncing = False
        show(self._branches.box, visible=len(tips) > 1)
        start, end = not timeline.step, timeline.step == count - 1
        off = {"undo": start, "save": start, "redo": end, "branch_off": end}
        for name, button in self._buttons.items():
            button.disabled = off[name]
        self.set_trait("status", html.caption(timeline))
        self.draw()
        return self.refresh()

    def _keep(self, number: int, model: nn.Module) -> None:
        self._models[number] = model
        self._models.move_to_end(number)
        while len(self._models) > COPIES:
            self._models.popitem(last=False)

    def _show_model(self, number: int, model: nn.Module | None) -> None:
        if model is not None:
            self._keep(number, model)
        self.set_trait("model", model)

    # -- what is shown ----------------------------------------------------------------------------

    def html(self) -> str:
        """The curves and the steps of the branch in view; the same at every step of it."""
        return html.page(self._timeline, self.target_gap, self.max_degradation)

    def draw(self) -> None:
        """Show the timeline as it is."""
        self._heading.value = self._title()
        super().draw()

    def still(self) -> str:
        """The same with its words, for a place without controls."""
        timeline = self._timeline
        page = html.page(timeline, self.target_gap, self.max_degradation, timeline.step)
        words = f'<p class="rw-soft">{escape(html.caption(timeline))}</p>'
        return f"{self._title()}{words}{view.still(page, self._marks())}"

    def _title(self) -> str:
        return markup.heading("History", html.counts(self._timeline))

    # -- checks -----------------------------------------------------------------------------------

    @traitlets.validate("step", "branch")
    def _check_place(self, proposal: Mapping[str, Any]) -> int:
        return self._timeline.check(proposal["trait"].name, proposal["value"])

    def forget(self) -> None:
        """Let go of the models and the edits."""
        self._models.clear()
        self._timeline = Timeline()
        self._source = nn.Identity()
        self.set_trait("model", None)
