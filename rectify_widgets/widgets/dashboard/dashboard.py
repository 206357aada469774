"""`RectificationDashboard`: the whole way, from a suspicion or none to a saved repair, in one widget.

Imports the viewer of suspicions, the painter, and the repair with its four viewers.  Each step has its
viewer below the same row of tabs; a viewer is made when its step is first in view.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as ipw
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_module, check_type
from rectify_widgets.engine.data.inputs import Labelled
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import copied, unwrap
from rectify_widgets.explain import check_images
from rectify_widgets.reveal.cleansing import cleanse
from rectify_widgets.reveal.suspicions import Suspicions
from rectify_widgets.widgets import markup
from rectify_widgets.widgets.checks import CheckedTrait, refuse_unknown
from rectify_widgets.widgets.controls import Controls, show
from rectify_widgets.widgets.dashboard import way
from rectify_widgets.widgets.dashboard.options import OPTIONS
from rectify_widgets.widgets.dashboard.reporting import Reporting
from rectify_widgets.widgets.painter.viewer import MaskPainter
from rectify_widgets.widgets.panel import close_tree
from rectify_widgets.widgets.session import Job, Session
from rectify_widgets.widgets.style import SHEETS
from rectify_widgets.widgets.suspicion.viewer import SuspicionViewer
from rectify_widgets.widgets.view import View, still

GROW = 1
"""Pixels by which painted masks are widened for cleansing."""

NO_REFERENCES = "Reveal searches unlabelled inputs like those that the model is used on; hand some over as reference=."
NO_INPUTS = (
    "There is nothing to paint on. Choose a suspicion that references carry, or select references in "
    "Reveal, and continue there; or hand over odd inputs instead of pairs."
)
NO_PAIRS = (
    "A repair starts from pairs: take those of a suspicion in Reveal, or paint some in Cleanse."
)


class RectificationDashboard(Reporting):
    """Reveal, cleanse, locate, rectify, evaluate and save: the way to a repaired model.

    It starts where its material allows: with pairs at the repair, with odd inputs at the painter, and
    with references alone at the search.  Every step can be skipped, each says what it needs, what it
    found and what comes next, and *Show code* gives the Python that does the same.

    Every button is a method that returns its job: ``dashboard.rectify().wait()`` gives the result,
    or raises what went wrong (see `Job` for why not ``await``).  The model that is passed in is never changed; the
    version in view, a copy with the edits so far, is `model`.

    Args:
        model: a torch module that gives ``N × classes`` scores.
        pairs: corrupted and clean samples to repair from; or ``N × C × H × W`` odd inputs to paint
            over; or None to begin with a search of the references.
        reference: inputs like those that the model was trained on: tensor, data set or loader.
        examples: further pairs to look at, which the repair never sees.
        classes: class names, by number.
        target: the class that the corruption leads to, its number or name, for the attack success rate;
            None leaves that out.  Of several labels, see `PredictionViewer`.
        attribution: how inputs are attributed, see `AttributionViewer`.
        validation: of `rectify_widgets.rectify`.
        clean, corrupted, groups: test sets that `write_report` measures on, see `rectify_widgets.evaluate`; no
            edit looks at them.  Without them it takes the examples, where these have labels.
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        session: share the worker of another widget.
        **options: of `rectify_widgets.rectify`: ``method``, ``strategy``, ``max_rounds``,
            ``max_degradation``, ``target_gap``, ``refine_steps``, ``memory_limit`` and the others of
            `RectifyOptions`.  Its ``checkpoint`` is a trait.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> dashboard = rw.RectificationDashboard(
        ...     model, pairs, reference=reference, classes=classes
        ... )
        >>> result = dashboard.rectify().wait()
        >>> result.save("fix.safetensors")
        >>> dashboard.close()
    """

    sheets = ("dashboard",)
    handles = ("stage",)

    stage = CheckedTrait("reveal", check_choice, choices=tuple(way.STEPS)).tag(sync=True)
    """The step in view: ``"reveal"``, ``"cleanse"``, ``"locate"``, ``"rectify"``, ``"evaluate"`` or
    ``"save"``."""

    show_code = traitlets.Bool(False)
    """Whether `code` is in view."""

    suspicions = traitlets.Instance(SuspicionViewer, allow_none=True, read_only=True)
    """The viewer of the first step, once that has been in view."""

    painter = traitlets.Instance(MaskPainter, allow_none=True, read_only=True)
    """The painter of the second step, where there is something to paint on."""

    def __init__(
        self,
        model: nn.Module,
        pairs: SamplePairs | Tensor | None = None,
        *,
        reference: Any = None,
        examples: SamplePairs | None = None,
        classes: Sequence[str] | None = None,
        target: int | str | None = None,
        attribution: str | None = None,
        validation: tuple[Tensor, Tensor] | None = None,
        clean: Labelled | None = None,
        corrupted: Labelled | None = None,
        groups: object = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        session: Session | None = None,
        **options: Any,
    ) -> None:
        refuse_unknown(type(self), [name for name in options if name not in OPTIONS], OPTIONS)
        check_module("model", model)
        odd = check_images(pairs) if isinstance(pairs, Tensor) else None
        if pairs is None and reference is None:
            raise ValueError(
                "pairs: got None without references, want SamplePairs, odd inputs N × C × H × W, or "
                "reference= to search"
            )
        if pairs is not None and odd is None:
            check_type(
                "pairs", pairs, SamplePairs, "SamplePairs, odd inputs N × C × H × W, or None"
            )
        if examples is not None:
            check_type("examples", examples, SamplePairs, "SamplePairs or None")
        self._count = len(reference) if isinstance(reference, Tensor) else None
        summary = [type(unwrap(model)).__name__]
        if pairs is not None:
            summary.append(markup.some(len(pairs), "pair" if odd is None else "odd input"))
        if self._count is not None:
            summary.append(markup.some(self._count, "reference"))
        self.about = ", ".join(summary)
        self._origin: list[int] | None = None
        self._taken: tuple[Any, ...] | None = None
        self._source = ""
        super().__init__(
            model, reference, examples=examples, target=target, attribution=attribution,
            validation=validation, display={"classes": classes, "mean": mean, "std": std},
            session=session, options=options,
        )  # fmt: skip
        with self.building():
            self.measure_on(clean=clean, corrupted=corrupted, groups=groups)
            self._compose()
            if isinstance(pairs, SamplePairs):
                self.repair_from(pairs)
                self._source = "given"
                self.layer = options.get("layer")
                self.set_trait("status", "Ready. Rectify finds and edits the layers for you.")
                self.stage = "locate"
            elif odd is not None:
                self._paint(odd)
                self.set_trait("status", "Ready. Paint what should not be there.")
                self.stage = "cleanse"
            else:
                self.set_trait("status", "Ready. Reveal searches the references.")
                self._show()

    def _compose(self) -> None:
        self.add_class("rw-dashboard")
        self.way = View(self, self.sheets, layout=self.looks.get(ipw.Layout, width="100%"))
        make = Controls(self)
        self._listing, self._missing = make.text(), make.text()
        self.children = (
            self.canvas, self.way, *self._controls.top, self._listing, self._missing,
            *self._controls.rows,
        )  # fmt: skip
        self.listen(
            self, lambda _: self._show(), ["stage", "show_code", "busy", "scores", "model", "error"]
        )
        self._update(None)
        self.draw()

    # -- from step to step ------------------------------------------------------------------------

    def repair_from(self, pairs: SamplePairs) -> None:
        """Begin a repair from these pairs; what was edited from others is gone.

        Raises:
            RuntimeError: something is under way.
            ValueError: pairs of another sample shape than the examples.
        """
        super().repair_from(pairs)
        self.recipe.given()
        self._source = "handed over"
        self.children = (*self.children, self.bench.cards)
        self._show()

    def _link(self) -> None:
        super()._link()
        self.listen(self.predictions, lambda _: self._show(), ["status"])
        self.listen(self.history, lambda _: self._show(), ["step", "branch", "status"])

    def _drop(self) -> None:
        if self._bench is not None:
            self.children = tuple(one for one in self.children if one is not self._bench.cards)
        super()._drop()

    def reveal(self) -> Job[Suspicions]:
        """Search the references, see `SuspicionViewer.reveal`.

        Raises:
            ValueError: no references were given.
            RuntimeError: a search is under way already.
        """
        self.stage = "reveal"
        if self.suspicions is None:
            raise ValueError("reference: got None, want inputs to search")
        return self.suspicions.reveal()

    def go_on(self) -> None:
        """Take what this step found to the next one, or skip it where it found nothing."""
        self.check_idle()
        if self.stage == "reveal":
            self.take()
        elif self.stage == "cleanse" and self._is_new():
            self.cleanse()
        else:
            steps = list(way.STEPS)
            self.stage = steps[min(steps.index(self.stage) + 1, len(steps) - 1)]

    def take(self) -> None:
        """Take the chosen suspicion: its pairs, and what carries it to the painter.

        Where references are selected, these are painted on instead, and the pairs come of that.
        """
        viewer = self.suspicions
        one = None if viewer is None else viewer.suspicion
        if viewer is not None and (viewer.selected or (one is not None and len(one.inputs))):
            rows, masks = viewer.chosen()
            self._paint(viewer.images[rows], masks, rows)
        if viewer is None or viewer.selected or one is None or one.pairs is None:
            self.stage = "cleanse"
            return
        found, rank = viewer.found, viewer.rank
        self.repair_from(one.pairs)
        self._source = f"from suspicion {(rank or 0) + 1}"
        search, seed = viewer.searched or (viewer.search, viewer.seed)
        self.recipe.suspected(search, seed, rank or 0)
        self._taken = self._painted()
        self.set_trait("status", "" if found is None else f"Took {len(one.pairs)} pairs.")
        self.stage = "cleanse" if len(one.inputs) else "locate"
        self._show()

    def cleanse(self) -> Job[SamplePairs]:
        """Make pairs of what is painted, and begin a repair from them.

        Raises:
            ValueError: nothing is painted.
            RuntimeError: something is under way.
        """
        painter = self.painter
        rows = [] if painter is None else painter.painted
        if painter is None or not rows:
            raise ValueError("masks: got no painted pixel, want at least one in one input")
        odd, masks, fill = painter.inputs[rows], painter.masks[rows], painter.fill
        model, reference, origin = self._original, self._reference, self._origin
        taken = self._painted()

        def work(job: Job[SamplePairs]) -> SamplePairs:
            clean = cleanse(
                odd, masks, fill, copied(model), reference, grow=GROW, progress=job.progress,
                cancel=job.cancelled,
            )  # fmt: skip
            return SamplePairs(odd, clean)

        def done(job: Job[SamplePairs]) -> None:
            self.repair_from(job.result())
            self._source, self._taken = "painted", taken
            sources = rows if origin is None else [origin[row] for row in rows]
            options = {"fill": fill, "grow": GROW}
            self.recipe.painted(sources, masks, options, references=origin is not None)
            self.set_trait("status", f"Made {markup.some(len(rows), 'pair')}.")
            self.stage = "locate"
            self._show()

        return self.act(work, "Cleanse", done)

    def _paint(
        self, odd: Tensor, masks: Tensor | None = None, rows: list[int] | None = None
    ) -> None:
        """Have these inputs painted on; ``rows`` are their numbers where they are references."""
        old = self.painter
        painter = MaskPainter(
            odd, masks=masks, model=self._original, reference=self._reference, grow=GROW,
            session=self.session, **self._display,
        )  # fmt: skip
        self._origin = rows
        self.children = (*(one for one in self.children if one is not old), painter)
        self.set_trait("painter", painter)
        painter.observe(lambda _: self._show(), names="masks")
        if old is not None:
            close_tree(old)

    def _painted(self) -> tuple[Any, ...] | None:
        """What the painter holds, to be compared."""
        painter = self.painter
        return None if painter is None else (id(painter), painter.masks, painter.fill)

    def _is_new(self) -> bool:
        """Whether something is painted that no pairs were made of."""
        now, taken = self._painted(), self._taken
        if now is None or self.painter is None or not self.painter.painted:
            return False
        return taken is None or now[::2] != taken[::2] or not torch.equal(now[1], taken[1])

    @property
    def code(self) -> str:
        """Python that makes the same edits, from ``model`` and what else was given."""
        if self._bench is None:
            return "# There are no pairs yet, and so nothing to repair.\n"
        return self.recipe.code(self.edits)

    def toggle_code(self) -> None:
        """Show the code, or hide it again."""
        self.show_code = not self.show_code

    def cancel(self) -> Job[Any] | None:
        """Stop what is under way; returns its job."""
        for part in (self.suspicions, self.painter):
            if not self.busy and part is not None and part.busy:
                return part.cancel()
        return super().cancel()

    # -- what is in view --------------------------------------------------------------------------

    def _show(self) -> None:
        """Show the step in view, and what is known of all."""
        if self.stage == "reveal" and self.suspicions is None and self._reference is not None:
            viewer = SuspicionViewer(
                self._original, self._reference, seed=self._seed, session=self.session,
                **self._display,
            )  # fmt: skip
            self._count = len(viewer.images)
            self.set_trait("suspicions", viewer)
            self.children = (*self.children, viewer)
            self.listen(viewer, lambda _: self._show(), ["suspicion", "found", "selected"])
        cards = None if self._bench is None else self._bench.cards
        places = {"reveal": self.suspicions, "cleanse": self.painter}
        content = places.get(self.stage, cards)
        for one in (self.suspicions, self.painter, cards):
            if one is not None:
                show(one, visible=one is content)
        repairing = self.stage in way.REPAIR
        self._controls.arrange(
            repairing=repairing, last=self.stage == "save",
            busy=self.busy or self.error is not None,
        )  # fmt: skip
        words = {"reveal": NO_REFERENCES, "cleanse": NO_INPUTS}.get(self.stage, NO_PAIRS)
        self._missing.value = "" if content is not None else way.missing(words)
        self._listing.value = way.listing(self.code) if self.show_code else ""
        facts, onward = self._facts(), self._controls.onward
        onward.disabled = self.busy or self.stage == "save"
        ready = facts.found is not None if self.stage == "reveal" else facts.painting or facts.pairs
        onward.button_style = "primary" if ready and not repairing else ""
        with self.way.hold_sync():
            self.way.html = way.header(facts, self.stage)
            self.way.marks = {"stage": self.stage}

    def _facts(self) -> way.Facts:
        viewer, painter, bench = self.suspicions, self.painter, self._bench
        path = () if bench is None else bench.history.timeline.path
        here = None if bench is None else bench.history.timeline.here
        references = 0 if self._reference is None else self._count
        right = () if bench is None else tuple(bench.predictions.share_right("Corrupted"))
        return way.Facts(
            references=references,
            found=None if viewer is None else viewer.found,
            chosen=None if viewer is None else viewer.suspicion,
            painting=None if painter is None else (len(painter.painted), len(painter.masks)),
            pairs=0 if bench is None else len(bench.pairs),
            source=self._source,
            best=next(iter(self.scores), None),
            edits=len(self.edits),
            gaps=(path[0].gap if path else None, None if here is None else here.gap),
            degradation=None if here is None else here.degradation,
            right=right,
            saved=self.recipe.saved_to(self.edits),
            report=self.recipe.reported_to(self.edits),
        )

    def html(self) -> str:
        """The title; the steps below it say the rest."""
        title = '<span class="rw-title">Rectification</span>'
        words = self.about.replace(", ", " · ")
        if self.result is not None and (corruption := markup.corruption(self.result)):
            words += f" · {corruption}"
        return f'{title} <span class="rw-soft">{escape(words)}</span>'

    # -- static views -----------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait for the views that are being computed."""
        parts = (self.suspicions, self.painter)
        bench = self._bench
        views = () if bench is None else (bench.history, bench.maps, bench.predictions)
        for view in (*parts, *views):
            if view is not None:
                view.settle()

    def sheets_with_parts(self) -> tuple[str, ...]:
        """The sheets of all widgets."""
        return SHEETS

    def still(self) -> str:
        """All views, one under the other."""
        state = markup.status_line(self.status) + markup.error_box(self.error)
        steps = still(self.way.html, {"stage": self.stage})
        page = f"<div>{self.html()}{steps}{state}</div>"
        for part in (self.suspicions, self.painter):
            page += "" if part is None else part.still()
        if self._bench is None:
            return page
        views = (self.layers, self.maps, self.predictions)
        columns = "".join(f"<div>{view.still()}</div>" for view in views)
        page += f'<div><div class="rw-columns">{columns}</div></div>'
        edited = len(self.history.timeline) > 1
        return page + (f"<div>{self.history.still()}</div>" if edited else "")

    def forget(self) -> None:
        """Let go of the model, the references and the viewers."""
        super().forget()
        for name in ("suspicions", "painter"):
            self.set_trait(name, None)
        self._original = nn.Identity()
        self._reference, self._taken = None, None
