"""`MaskPainter`: masks painted over inputs, and the clean counterparts that come of them.

Imports the panel and its controls, the canvas, `rectify_widgets.reveal` and `html` for what is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, TypeVar

import ipywidgets as ipw
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_module, check_number
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import copied
from rectify_widgets.explain import check_images
from rectify_widgets.reveal.cleansing import BEST, REFERENCE, cleanse
from rectify_widgets.reveal.fills import FILLS
from rectify_widgets.reveal.masks import SuggestedMasks, suggest_masks
from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.checks import (
    check_channels,
    check_classes,
    check_index,
    refuse_unknown,
)
from rectify_widgets.widgets.controls import Choice, Controls, show
from rectify_widgets.widgets.painter.canvas import PaintCanvas
from rectify_widgets.widgets.painter.html import Study, side
from rectify_widgets.widgets.panel import Panel
from rectify_widgets.widgets.prediction.data import predict
from rectify_widgets.widgets.session import Job, Session

T = TypeVar("T")

TITLE = "Paint what should not be there"

Fill = str | float
"""What takes the place of painted pixels, see `rectify_widgets.cleanse`."""


class MaskPainter(Panel):
    """Masks painted by hand, pixel by pixel, and live beside them the cleansed input.

    The page draws by itself: brush, eraser, rectangle, lasso, fill, undo and redo, zoom; every tool
    works with the keyboard alone, and the keys stand beside the canvas.  When a stroke ends, `masks`
    has it, the input is cleansed, and a model, if there is one, answers for both.

    Args:
        inputs: ``N × C × H × W``.
        masks: boolean ``N × H × W`` to start from, such as suggested ones; None starts empty.
        model: a torch module that gives ``N × classes`` scores, or None.
        reference: unlabelled inputs, at least eight, from which ``fill="reference"`` takes what it
            puts in; None leaves that fill out.
        fill: what takes the place of painted pixels, see `rectify_widgets.cleanse`.
        grow: pixels by which masks are widened for cleansing; `masks` is what was painted.
        classes: class names, by number.
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> painter = rw.MaskPainter(pairs.corrupted, model=model, classes=classes)
        >>> suggested = rw.suggest_masks(model, pairs.corrupted)
        >>> painter.masks = suggested  # or paint, in a cell of its own
        >>> painter.pairs
        SamplePairs(4 of 1 × 12 × 12, labels from the model)
        >>> painter.close()
    """

    sheets = ("prediction", "painter")

    index = traitlets.Int(0).tag(sync=True)
    """The sample in view, from 0."""

    masks = traitlets.Instance(Tensor)
    """Boolean ``N × H × W``, True where something is painted.  Observe it, read it, or set it."""

    fill = traitlets.Any(BEST)
    """What takes the place of painted pixels: a name, or a number in input space."""

    def __init__(
        self,
        inputs: Tensor,
        *,
        masks: Tensor | None = None,
        model: nn.Module | None = None,
        reference: Inputs | None = None,
        fill: Fill = BEST,
        grow: int = 1,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._inputs = check_images(inputs).detach()
        count, channels, height, width = self._inputs.shape
        self._model = None if model is None else check_module("model", model)
        self._reference = reference
        self._grow = check_int("grow", grow, low=0)
        self._fills = (BEST, *FILLS, *(() if reference is None else (REFERENCE,)))
        self._classes = check_classes(classes)
        self._norm = check_channels("mean", mean, channels), check_channels("std", std, channels)
        given = torch.zeros(count, height, width, dtype=torch.bool) if masks is None else masks
        given, fill = self._checked_masks(given), self._checked_fill(fill)
        self._clean: dict[int, tuple[Tensor, Fill, Tensor]] = {}
        self._study: Study | None = None
        self._offer: Choice | None = None
        self._stroking, self._note = False, ""
        self.about = markup.some(count, "sample")
        super().__init__(session)
        with self.building():
            self.set_trait("masks", given)
            self.fill = fill
            self._build()
            self._open()

    def _build(self) -> None:
        make = Controls(self)
        count, _, height, width = self._inputs.shape
        self.paper = PaintCanvas(
            (height, width), self._stroke, layout=make.layout(flex="0 1 448px", min_width="280px")
        )
        self.samples = make.samples(count)
        self._offer = make.choice("fill", self._options(self.fill), "Fill")
        self._offer.box.add_class("rw-fills")
        self._stop = make.bar(), make.button("Cancel", "stop", "Stop what is under way", "cancel")
        self._ask = make.button(
            "Suggest", "magic", "Mark what the model's answer hangs on, where nothing is painted yet",
            "suggest",
        )  # fmt: skip
        show(self._ask, visible=self._model is not None)
        controls = make.row(self._offer.box, self._ask, *self._stop)
        self.canvas.layout = make.layout(flex="1 1 320px", min_width="280px", width="auto")
        body = ipw.HBox(
            [self.paper, self.canvas],
            layout=make.layout(flex_flow="row wrap", width="100%"),
        )
        body.add_class("rw-painter")
        title = make.text(markup.heading(TITLE))
        samples = make.row(self.samples.box)
        self.children = (make.row(title, make.state()), samples, controls, body)
        self._wait(visible=False)
        self.listen(self, lambda change: setattr(self._ask, "disabled", change["new"]), ["busy"])
        self.listen(self, lambda _: self._open(), ["index"])
        self.listen(self, self._follow, ["masks"])
        self.listen(self, lambda _: self.study(), ["fill"])

    # -- what can be read -------------------------------------------------------------------------

    @property
    def inputs(self) -> Tensor:
        """What is painted on, ``N × C × H × W``."""
        return self._inputs

    @property
    def painted(self) -> list[int]:
        """The samples in whose masks something is painted, in order."""
        return [int(row) for row in self.masks.flatten(1).any(dim=1).nonzero().flatten()]

    @property
    def clean(self) -> Tensor:
        """The inputs with painted pixels replaced, ``N × C × H × W``; others are as they were.

        What is not known yet is cleansed first: see `cleanse_all`, which does not block.
        """
        return self.cleanse_all().wait()

    @property
    def pairs(self) -> SamplePairs:
        """The painted samples as corrupted, and their clean counterparts, for `rectify`.

        Raises:
            ValueError: nothing is painted.
        """
        rows = self.painted
        if not rows:
            raise ValueError("masks: got no painted pixel, want at least one in one sample")
        return SamplePairs(self._inputs[rows], self.clean[rows])

    def cleanse_all(self) -> Job[Tensor]:
        """Cleanse every painted sample in the background; the job's result is `clean`."""
        rows, masks, fill = self.painted, self.masks, self.fill
        known = {row: self._known(row, masks[row], fill) for row in rows}
        todo = [row for row, clean in known.items() if clean is None]

        def work(job: Job[Tensor]) -> Tensor:
            result = self._inputs.clone()
            if todo:
                model = None if self._model is None else copied(self._model)
                found = self._cleanse(todo, masks[todo], fill, model, job)
                for row, clean in zip(todo, found, strict=True):
                    known[row] = clean
                    self._clean[row] = masks[row], fill, clean
            for row, clean in known.items():
                if clean is not None:
                    result[row] = clean
            return result

        return self.begin(
            work,
            lane=f"all {id(self)}",
            label="Cleanse",
            on_done=lambda _: self._rested(),
            on_progress=self._progress,
        )

    def _cleanse(
        self, rows: Sequence[int], masks: Tensor, fill: Fill, model: nn.Module | None, job: Job[T]
    ) -> Tensor:
        """Clean counterparts of these samples."""
        return cleanse(
            self._inputs[list(rows)],
            masks,
            fill,
            model,
            self._reference,
            grow=self._grow,
            progress=job.part(0.0, 0.9),
            cancel=job.cancelled,
        )

    def _known(self, row: int, mask: Tensor, fill: Fill) -> Tensor | None:
        """The clean counterpart of a sample, if it was made with this mask and this fill."""
        if row not in self._clean:
            return None
        old_mask, old_fill, clean = self._clean[row]
        return clean if old_fill == fill and torch.equal(old_mask, mask) else None

    def suggest(self) -> Job[SuggestedMasks]:
        """Put suggested masks on the sample in view and on those where nothing is painted.

        The job's result are the suggestions for these, in order, see
        `rectify_widgets.suggest_masks`.  What is painted meanwhile stays, and the page can undo.

        Raises:
            ValueError: no model was given.
            RuntimeError: it is under way already.
        """
        if self._model is None:
            raise ValueError("model: got None, want the model whose answer the masks should change")
        model, before = self._model, self.masks
        rows = sorted({*range(len(before))} - {*self.painted} | {self.index})

        def work(job: Job[SuggestedMasks]) -> SuggestedMasks:
            job.check()
            return suggest_masks(
                copied(model), self._inputs[rows], progress=job.progress, cancel=job.cancelled
            )

        def done(job: Job[SuggestedMasks]) -> None:
            found, masks = job.result(), self.masks.clone()
            for row, mask in zip(rows, found, strict=True):
                if mask.any() and torch.equal(masks[row], before[row]):
                    masks[row] = mask
            missing = len(rows) - int(found.found.sum())
            self._note = f"in {missing} nothing local carries the answer" if missing else ""
            self.masks = masks

        job = self.act(work, "Suggest", done)
        self._wait(visible=self.busy)
        return job

    # -- showing ----------------------------------------------------------------------------------

    def study(self) -> Job[Study]:
        """Cleanse the sample in view, have the model answer, and show both."""
        row, mask, fill = self.index, self.masks[self.index], self.fill
        pixels = partial(self._pixels, row)

        def work(job: Job[Study]) -> Study:
            columns = {"input": self._inputs[row : row + 1]}
            if mask.any():
                clean = self._known(row, mask, fill)
                if clean is None:
                    clean = self._cleanse([row], mask[None], fill, self._model, job)[0]
                    self._clean[row] = mask, fill, clean
                columns["clean"] = clean[None]
            shares: tuple[render.Floats, ...] = ()
            if self._model is not None:
                found = predict(self._model, columns, Monitor(job.part(0.9, 1.0), job.cancelled))
                shares = tuple(found.probabilities[name][0] for name in columns)
            shown = [pixels(batch[0]) for batch in columns.values()]
            return Study(row, mask, shown[0], shown[1] if shown[1:] else None, shares)

        def done(job: Job[Study]) -> None:
            self._study = job.result()
            self._rested()

        return self.begin(
            work,
            lane=f"study {id(self)}",
            label="Cleanse",
            short=True,
            on_done=done,
            on_progress=self._progress,
        )

    def _pixels(self, row: int, image: Tensor) -> render.Pixels:
        """An image on the scale of one of the inputs, ``H × W × 3``."""
        return render.to_rgb(image, *self._norm, render.display_limits(self._inputs[row]))

    def html(self) -> str:
        """The cleansed input, and what the model answers."""
        return "" if self._study is None else self._side(self._study, live=True)

    def still(self) -> str:
        """The same with the painted input before it, since no canvas is there."""
        shown = "" if self._study is None else self._side(self._study, live=False)
        return f"<div>{markup.heading(TITLE, self.status)}</div>{shown}"

    def _side(self, study: Study, *, live: bool) -> str:
        fill = self.fill if isinstance(self.fill, str) else f"{self.fill:g}"
        return side(study, fill, self._classes, live=live)

    def _rested(self) -> None:
        """Show what is known now."""
        if not self.busy:
            done = f"{len(self.painted)} of {markup.some(len(self._inputs), 'sample')} painted"
            self.set_trait("status", f"{done} · {self._note}" if self._note else done)
            self._wait(visible=False)
        self.draw()

    def _progress(self, job: Job[T]) -> None:
        """Say how far work is that takes long."""
        if job.seconds_left():
            self.report(job)
            self._wait(visible=True)

    def _wait(self, *, visible: bool) -> None:
        for control in self._stop:
            show(control, visible=visible)

    def cancel(self) -> Job[Any] | None:
        """Stop what is under way; returns its job."""
        job = super().cancel() or self._job
        if job is None or job.done:
            return None
        job.cancel()
        return job

    def failed(self, job: Job[Any]) -> None:
        """Show what went wrong; a clean counterpart that is no longer true is not shown."""
        self._study = None
        super().failed(job)
        self._wait(visible=False)
        self.draw()

    # -- changes ----------------------------------------------------------------------------------

    def _open(self) -> None:
        """Have another sample painted on."""
        row = self.index
        self.paper.show(row, self._pixels(row, self._inputs[row]), self.masks[row])
        self.study()

    def _stroke(self, row: int, mask: Tensor) -> None:
        """Take over what the page painted."""
        masks = self.masks.clone()
        masks[row] = mask
        self._stroking, self._note = True, ""
        try:
            self.masks = masks
        finally:
            self._stroking = False

    def _follow(self, change: Mapping[str, Tensor]) -> None:
        """Show other masks on the page, unless they come from there."""
        row = self.index
        if torch.equal(change["old"][row], change["new"][row]):
            self._rested()
            return
        if not self._stroking:
            self.paper.replace(row, self.masks[row])
        self.study()

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        return check_index(proposal["value"], len(self._inputs))

    @traitlets.validate("masks")
    def _check_masks(self, proposal: Mapping[str, object]) -> Tensor:
        return self._checked_masks(proposal["value"])

    @traitlets.validate("fill")
    def _check_fill(self, proposal: Mapping[str, object]) -> Fill:
        fill = self._checked_fill(proposal["value"])
        if self._offer is not None and fill not in self._offer.values:
            self._offer.offer(self._options(fill))
        return fill

    def _checked_masks(self, masks: object) -> Tensor:
        count, _, height, width = self._inputs.shape
        want = f"a boolean tensor of shape {count} × {height} × {width}"
        if not isinstance(masks, Tensor):
            raise TypeError(f"masks: got {type(masks).__name__}, want {want}")
        if masks.dtype is not torch.bool:
            raise TypeError(f"masks: got dtype {masks.dtype}, want {want}; a comparison makes one")
        if tuple(masks.shape) != (count, height, width):
            raise ValueError(f"masks: got shape {tuple(masks.shape)}, want {want}")
        return masks.detach().cpu().clone()

    def _checked_fill(self, fill: object) -> Fill:
        if isinstance(fill, Real):
            return check_number("fill", fill, low=-math.inf)
        return check_choice("fill", fill, self._fills)

    def _options(self, fill: Fill) -> list[tuple[str, Fill]]:
        """What the list of fills offers, a number too if it is the one chosen."""
        numbers = [] if isinstance(fill, str) else [(f"constant {fill:g}", fill)]
        return [*((name, name) for name in self._fills), *numbers]

    def forget(self) -> None:
        """Let go of the model, the inputs and what was made of them."""
        self._model, self._reference, self._study = None, None, None
        self._inputs = self._inputs[:0].clone()
        self._clean.clear()
