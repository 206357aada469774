"""`HistoryViewer`: every version of a model under repair, to scrub, undo, redo and branch.

Imports the engine's history, the base panel, the timeline and its renderers.  The tree of versions
is `timeline.Timeline`; here it gets controls, and a model for the step in view.  That model is made
anew from the model as given and the edits, in a short job: never from one that is being worked on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import nn

from rectify_widgets.engine.base.checks import check_int, check_module, check_number
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.measure.judge import Verdict
from rectify_widgets.engine.model.running import copied
from rectify_widgets.engine.repair.result import Rectification, Step
from rectify_widgets.widgets import actions, charts, markup
from rectify_widgets.widgets.base import Panel, check_path, refuse_unknown
from rectify_widgets.widgets.history import history_html
from rectify_widgets.widgets.history.curves import drawing
from rectify_widgets.widgets.history.history_controls import HistoryControls
from rectify_widgets.widgets.history.history_rows import StepRows
from rectify_widgets.widgets.history.timeline import Timeline
from rectify_widgets.widgets.jobs import Job
from rectify_widgets.widgets.session import Session
from rectify_widgets.widgets.stepper import SampleStepper

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
        >>> history = HistoryViewer(result)
        >>> traitlets.dlink((history, "model"), (maps, "after"))  # maps follow every step
        >>> history.step = 1
    """

    sheets = ("history",)

    step = traitlets.Int(0)
    """The step in view: 0 is the model as given, 1 the first edit of the branch."""

    branch = traitlets.Int(0)
    """The branch in view, from 0 in the order of their beginning; choosing one shows its end."""

    model = traitlets.Instance(nn.Module, allow_none=True, read_only=True)
    """The model at the step in view, a copy; None at step 0.  It follows `step` as soon as the copy
    is made, and going back gives the same object again while it is kept (`COPIES`)."""

    max_degradation = traitlets.Float(None, allow_none=True)
    """The budget line, a fraction, or None."""

    target_gap = traitlets.Float(None, allow_none=True)
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
            verdicts: what was measured after each edit, see `rectify_widgets.engine.repair.yardstick`;
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

    def save(self, path: str | Path) -> Job[Path]:
        """Write the edits up to the step in view, for `rectify_widgets.load_edits`.

        Raises:
            TypeError, ValueError: ``path`` is no path to a file, or there are no edits.
        """
        goal, edits = check_path("path", path), self.edits
        if not edits:
            raise ValueError("save: there are no edits at step 0; go to a later step first")

        def show(job: Job[Path]) -> None:
            what = markup.some(len(edits), "edit")
            self.set_trait("status", f"Saved {what} to {job.result().name}.")

        return self.begin(
            lambda job: actions.save(job, edits, goal),
            lane=f"save {id(self)}",
            label="Save",
            short=True,
            on_done=show,
        )

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

        return self.begin(
            work,
            lane=f"history {id(self)}",
            label=f"Step {self.step}",
            short=True,
            on_done=lambda job: self._show_model(number, job.result()),
        )

    # -- behind the buttons -----------------------------------------------------------------------

    def _build(self, *, controls: bool) -> None:
        self.add_class("rw-history-card")
        self._heading, self._caption, self._problem = ipw.HTML(), ipw.HTML(), ipw.HTML()
        self._stepper = SampleStepper(self, 1, name="step", label="Step")
        self._controls = HistoryControls(
            self._pressed, lambda branch: setattr(self, "branch", branch), alone=controls
        )
        wide = {"flex": "1 1 270px", "min_width": "0", "width": "auto"}
        self._gap, self._degradation = (ipw.HTML(layout=ipw.Layout(**wide)) for _ in range(2))
        self._curves = ipw.HBox(
            [self._gap, self._degradation],
            layout=ipw.Layout(flex_flow="row wrap", width="100%", margin="4px 0 8px"),
        )
        self._rows = StepRows(lambda step: setattr(self, "step", step))
        steering = [self._heading, self._stepper, self._controls]
        self.fill([*steering, self._caption, self._problem, self._curves, self._rows])
        self.listen(self, self._moved, ["step"])
        self.listen(self, self._branched, ["branch"])
        self.listen(self, lambda _: self.draw(), ["max_degradation", "target_gap"])
        self.listen(self, lambda _: self._show_words(), ["error", "status"])

    def _pressed(self, name: str) -> None:
        if name == "save":
            self.press(lambda: self.save(self._controls.file.value))
        else:
            self.press(getattr(self, name))

    def _moved(self, _: object) -> None:
        if not self._syncing:
            self._timeline.go(self.step)
            self._sync()

    def _branched(self, _: object) -> None:
        if not self._syncing:
            self._timeline.view(self.branch)
            self._sync()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Traits and controls follow the timeline meanwhile, not the other way round."""
        self._syncing = True
        try:
            yield
        finally:
            self._syncing = False

    def _sync(self) -> Job[nn.Module | None]:
        """Have traits, controls and views follow the timeline, and the model soon after."""
        timeline = self._timeline
        count = len(timeline.path)
        with self._quietly():
            if count > self._stepper.slider.max:
                self._stepper.resize(count)
            self.branch, self.step = timeline.branch, timeline.step
            self._stepper.resize(count)
        self.set_trait("status", history_html.caption(timeline))
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

    # -- views ------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Show the timeline as it is."""
        timeline = self._timeline
        self._heading.value = markup.heading("History", history_html.counts(timeline))
        self._controls.show(timeline)
        measured = any(v.gap is not None or v.degradation is not None for v in timeline)
        self._curves.layout.display = None if measured else "none"
        if measured:
            gap = history_html.gap_chart(timeline, self.target_gap)
            loss = history_html.degradation_chart(timeline, self.max_degradation)
            self._gap.value, self._degradation.value = drawing(gap), drawing(loss)
        self._rows.show(timeline)
        self._show_words()

    def _show_words(self) -> None:
        self._caption.value = markup.status_line(self.status)
        self._problem.value = markup.error_box(self.error)

    def static_html(self) -> str:
        """The curves as still pictures, and the steps of the branch in view as a table."""
        timeline = self._timeline
        pictures = "".join(
            f"<div>{charts.picture(chart, width=470)}</div>"
            for chart in (
                history_html.gap_chart(timeline, self.target_gap),
                history_html.degradation_chart(timeline, self.max_degradation),
            )
        )
        return (
            markup.heading("History", history_html.counts(timeline))
            + f'<p class="rw-soft">{escape(history_html.caption(timeline))}</p>'
            + f'<div class="rw-columns">{pictures}</div>'
            + history_html.steps_table(timeline)
        )

    # -- checks -----------------------------------------------------------------------------------

    @traitlets.validate("step")
    def _check_step(self, proposal: Mapping[str, int]) -> int:
        return _check_place("step", proposal["value"], len(self._timeline.path), "this branch")

    @traitlets.validate("branch")
    def _check_branch(self, proposal: Mapping[str, int]) -> int:
        return _check_place("branch", proposal["value"], len(self._timeline.branches), "all")

    @traitlets.validate("max_degradation", "target_gap")
    def _check_level(self, proposal: Mapping[str, Any]) -> float | None:
        if proposal["value"] is None:
            return None
        return check_number(proposal["trait"].name, proposal["value"], low=0.0, high=1.0)

    def forget(self) -> None:
        """Let go of the models and the edits."""
        self._models.clear()
        self._job = None  # its result is a model
        self._timeline = Timeline()
        self._source = nn.Identity()
        self.set_trait("model", None)


def _check_place(argument: str, value: object, count: int, of: str) -> int:
    """``value`` if it is one of ``count`` places."""
    place = check_int(argument, value, low=0)
    if place >= count:
        raise ValueError(f"{argument}: got {place}, want 0 to {count - 1}, the last of {of}")
    return place
