"""`SuspicionViewer`: what decides although it is no part of an object, and the references around it.

Imports the panel and its controls, the painter, `rectify_widgets.reveal`, and the data, the HTML and the
scatter of this folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_module, check_type
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import copied, model_device, model_dtype
from rectify_widgets.reveal.references import gather_references
from rectify_widgets.reveal.reveal import ALL, CARRIERS, CHANGES, CLUSTERS, REGIONS, reveal
from rectify_widgets.reveal.suspicions import Suspicion, Suspicions
from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.checks import (
    CheckedTrait,
    check_channels,
    check_classes,
    refuse_unknown,
)
from rectify_widgets.widgets.controls import Controls, show
from rectify_widgets.widgets.painter.viewer import MaskPainter
from rectify_widgets.widgets.panel import Panel
from rectify_widgets.widgets.session import Job, Session
from rectify_widgets.widgets.suspicion import html
from rectify_widgets.widgets.suspicion.data import (
    SHOWN,
    Landscape,
    Transplants,
    landscape,
    transplants,
)
from rectify_widgets.widgets.suspicion.scatter import Scatter, draw
from rectify_widgets.widgets.view import still

SEARCHES = {
    ALL: "Everything, in turn",
    CARRIERS: "What some carry",
    REGIONS: "Regions that some carry",
    CLUSTERS: "Clusters of odd members",
    CHANGES: "Changes that none carries",
}
FEWEST = 2
"""References without which there is nothing to compare; a search wants more."""
TITLE = "Suspicions"


class SuspicionViewer(Panel):
    """What a search for unreliable behaviours found: list, carriers, transplants, and all references.

    A row of the list chooses a suspicion.  The references that carry it, with the region framed, and
    those that it turned stand below; in the map of all references a lasso, a click or the
    keyboard selects some, and `paint` takes these, or the carriers, to a `MaskPainter`.

    Args:
        model: the classifier; left as it was.
        reference: unlabelled inputs, ``N × C × H × W``, some of which may carry what is looked for.
        found: what `rectify_widgets.reveal` has found on these references, or None to search here.
        search: of `rectify_widgets.reveal`.
        seed: of the search.
        classes: class names, by number.
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> viewer = rw.SuspicionViewer(
        ...     model, torch.cat([reference, pairs.corrupted]), classes=classes
        ... )
        >>> found = viewer.reveal().wait()
        >>> viewer.pairs
        SamplePairs(6 of 1 × 12 × 12, labels given)
        >>> viewer.close()
    """

    sheets = ("suspicion",)
    handles = ("rank",)
    marks = ("rank",)

    rank = traitlets.Int(None, allow_none=True).tag(sync=True)
    """Place of the chosen suspicion in the list, from 0; None where there is none."""

    suspicion = traitlets.Instance(Suspicion, allow_none=True, read_only=True)
    """The chosen suspicion."""

    pairs = traitlets.Instance(SamplePairs, allow_none=True, read_only=True)
    """Pairs of the chosen suspicion, for `rectify`; None where it is not accused."""

    found = traitlets.Instance(Suspicions, allow_none=True, read_only=True)
    """All suspicions; None until a search has ended."""

    selected = traitlets.Tuple(()).tag(sync=True)
    """Row numbers of the references that are selected, ascending."""

    search = CheckedTrait(CARRIERS, check_choice, choices=tuple(SEARCHES)).tag(sync=True)
    """What `reveal` looks for: ``"all"``, ``"carriers"``, ``"regions"``, ``"clusters"`` or ``"changes"``."""

    def __init__(
        self,
        model: nn.Module,
        reference: Inputs,
        *,
        found: Suspicions | None = None,
        search: str = CARRIERS,
        seed: int = 0,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._model: nn.Module | None = check_module("model", model)
        self._images = gather_references(reference, FEWEST)
        if found is not None:
            check_type("found", found, Suspicions, "Suspicions or None")
            _check_fit(found, len(self._images))
        check_choice("search", search, tuple(SEARCHES))
        self.seed = check_int("seed", seed, low=0)
        self._classes = check_classes(classes)
        channels = self._images.shape[1]
        self._norm = check_channels("mean", mean, channels), check_channels("std", std, channels)
        self.searched: tuple[str, int] | None = None
        self._land: Landscape | None = None
        self._moved: dict[int, Transplants | None] = {}
        self.about = markup.some(len(self._images), "reference")
        super().__init__(session)
        with self.building():
            self.search = search
            self._build()
            self.set_trait("status", "Ready. Reveal searches the references.")
            self._survey()
            if found is not None:
                self.show(found)
            else:
                self.draw()

    def _build(self) -> None:
        make = Controls(self)
        self._start = make.button(
            "Reveal", "search", "Search the references for what decides although it should not",
            "reveal", primary=True,
        )  # fmt: skip
        self._stop = make.button("Cancel", "stop", "Stop what is under way", "cancel")
        self._bar = make.bar()
        top = make.row(
            make.choices("search", SEARCHES, "Look for"), self._start, self._stop, self._bar
        )
        self.scatter = Scatter(layout=make.layout(width="100%"))
        self._legend = make.text()
        self._carriers = make.button(
            "Select carriers", "check", "Select the references that carry the chosen suspicion",
            "select_carriers",
        )  # fmt: skip
        self._none = make.button("Select none", "times", "Select no reference", "select_none")
        heading = make.text(
            markup.heading("References", "draw around some, or go with arrow keys and Space")
        )
        side = ipw.VBox(
            [heading, self.scatter, make.row(self._carriers, self._none), self._legend],
            layout=make.layout(flex="0 1 420px", min_width="280px", width="auto"),
        )
        self.canvas.layout = make.layout(flex="1 1 440px", min_width="300px", width="auto")
        body = ipw.HBox([self.canvas, side], layout=make.layout(flex_flow="row wrap", width="100%"))
        body.add_class("rw-suspicions")
        title = make.text(markup.heading(TITLE))
        self.children = (make.row(title, make.state()), top, body)
        self.listen(self, lambda _: self._offer(), ["busy", "found", "suspicion", "selected"])
        self.listen(self, lambda _: self._choose(), ["rank"])
        self.listen(self, self._follow_selected, ["selected"])
        self.listen(self.scatter, self._picked, ["selected"])
        self._offer()

    # -- what can be done -------------------------------------------------------------------------

    def reveal(self) -> Job[Suspicions]:
        """Search the references in the background; the job's result is what was found.

        Raises:
            RuntimeError: a search is under way already.
        """
        model, images, search, seed = self._model, self._images, self.search, self.seed
        if model is None:
            raise RuntimeError("this viewer is closed")

        def work(job: Job[Suspicions]) -> Suspicions:
            job.check()
            return reveal(
                copied(model), images, search=search, seed=seed, progress=job.progress,
                cancel=job.cancelled,
            )  # fmt: skip

        def done(job: Job[Suspicions]) -> None:
            self.searched = search, seed
            self.show(job.result())

        return self.act(work, "Reveal", done)

    def show(self, found: Suspicions) -> None:
        """Show what was found already; the first suspicion is chosen if there is one."""
        _check_fit(check_type("found", found, Suspicions, "Suspicions"), len(self._images))
        self._moved.clear()
        with self.hold_trait_notifications():
            self.set_trait("found", found)
            self.rank = None
        self.set_trait("status", f"{found.searched} references searched")
        if len(found):
            self.rank = 0
        else:
            self._choose()

    @property
    def images(self) -> Tensor:
        """All references, ``N × C × H × W``."""
        return self._images

    def select_carriers(self) -> None:
        """Select the references that carry the chosen suspicion."""
        if self.suspicion is not None:
            self.selected = tuple(self.suspicion.inputs.tolist())

    def select_none(self) -> None:
        """Select no reference."""
        self.selected = ()

    def paint(self, **options: Any) -> MaskPainter:
        """A `MaskPainter` of the selected references, or of the carriers where none is selected.

        Masks of the chosen suspicion are painted already.

        Args:
            **options: of `MaskPainter`.

        Raises:
            ValueError: nothing is selected, and the chosen suspicion has no carriers.
        """
        rows, masks = self.chosen()
        common: dict[str, Any] = {"model": self._model, "classes": self._classes}
        common |= dict(zip(("mean", "std"), self._norm, strict=True))
        return MaskPainter(self._images[rows], masks=masks, **(common | options))

    def chosen(self) -> tuple[list[int], Tensor]:
        """Row numbers of the selected references, or of the carriers, and their boolean masks.

        Raises:
            ValueError: nothing is selected, and the chosen suspicion has no carriers.
        """
        one = self.suspicion
        carriers = [] if one is None else one.inputs.tolist()
        rows = list(self.selected) or carriers
        if not rows:
            raise ValueError(
                "selected: got no reference, want some, or a suspicion that references carry"
            )
        masks = self._images.new_zeros(len(rows), *self._images.shape[-2:]).bool()
        if one is not None and len(one.mask):
            for place, row in enumerate(rows):
                if row in carriers:
                    masks[place] = one.mask[carriers.index(row)].to(masks.device)
        return rows, masks

    # -- behind the view --------------------------------------------------------------------------

    def _survey(self) -> None:
        """Place the references in a plane."""
        model = self._model
        if model is None:
            return

        def work(job: Job[Landscape]) -> Landscape:
            plain = copied(model)
            placed = self._images.to(device=model_device(plain), dtype=model_dtype(plain))
            return landscape(plain, placed, Monitor(job.progress, job.cancelled))

        def done(job: Job[Landscape]) -> None:
            self._land = job.result()
            self._legend.value = html.legend(self._land.explained)
            self._scatter()
            self._choose()

        self.begin(work, lane=f"survey {id(self)}", label="Survey", short=True, on_done=done)

    def _choose(self) -> None:
        """Show another suspicion; what it turns is computed once."""
        found, rank = self.found, self.rank
        one = None if found is None or rank is None else found[rank]
        self.set_trait("suspicion", one)
        self.set_trait("pairs", None if one is None else one.pairs)
        self._scatter()
        self.draw()
        land, model = self._land, self._model
        if one is None or rank is None or land is None or rank in self._moved or model is None:
            return

        def work(job: Job[Transplants | None]) -> Transplants | None:
            monitor = Monitor(job.progress, job.cancelled)
            classes = land.predicted.tolist()
            return transplants(copied(model), self._images, classes, one, monitor)

        def done(job: Job[Transplants | None]) -> None:
            if self.found is found:
                self._moved[rank] = job.result()
                self.draw()

        self.begin(work, lane=f"turned {id(self)}", label="Transplant", short=True, on_done=done)

    def _scatter(self) -> None:
        if self._land is not None:
            self.scatter.svg = self._points()

    def _points(self, selected: Sequence[int] = ()) -> str:
        one, land = self.suspicion, self._land
        if land is None:
            return ""
        names = [markup.class_name(self._classes, int(number)) for number in land.predicted]
        target = None if one is None else one.target
        return draw(land, names, target, [] if one is None else one.inputs.tolist(), selected)

    def _pixels(self, row: int) -> render.Pixels:
        return self._rgb(self._images[row], row)

    def _rgb(self, image: Any, row: int) -> render.Pixels:
        """A picture on the scale of one of the references, ``H × W × 3``."""
        return render.to_rgb(image, *self._norm, render.display_limits(self._images[row]))

    def html(self) -> str:
        """The list, and what belongs to the chosen suspicion and to the selected references."""
        found, one = self.found, self.suspicion
        thumbs = [] if found is None else [self._thumb(each) for each in found]
        words = html.suspicion_list(found, thumbs, self._classes)
        if one is not None:
            carriers = [
                (row, html.framed(self._pixels(row), one.mask[place] if len(one.mask) else None))
                for place, row in enumerate(one.inputs[:SHOWN].tolist())
            ]
            moved = None if self.rank is None else self._moved.get(self.rank)
            pictures = []
            if moved is not None:
                pictures = [
                    self._rgb(image, max(row, 0))
                    for image, row in zip(moved.pictures, moved.rows, strict=True)
                ]
            words += html.details(one, carriers, moved, pictures, self._classes)
        tiles = [
            (row, self._pixels(row), self._name(row)) for row in self.selected[: html.MOST_TILES]
        ]
        return words + html.selection(tiles, len(self.selected), len(self._images))

    def _thumb(self, one: Suspicion) -> render.Pixels | None:
        """The first carrier, framed, or a picture with the change."""
        if len(one.inputs):
            row = int(one.inputs[0])
            return html.framed(self._pixels(row), one.mask[0] if len(one.mask) else None)
        return None if one.pairs is None else self._rgb(one.pairs.corrupted[0], 0)

    def _name(self, row: int) -> str:
        if self._land is None:
            return "…"
        return markup.class_name(self._classes, int(self._land.predicted[row]))

    def still(self) -> str:
        """List, details and map, one under the other."""
        points = self._points(self.selected)
        words = "" if self._land is None else html.legend(self._land.explained)
        return (
            f"<div>{markup.heading(TITLE, self.status)}</div>{super().still()}"
            f"<div>{still(points, {})}<br>{words}</div>"
        )

    def settle(self) -> None:
        """Wait for the map and for what the chosen suspicion turns."""
        super().settle()  # the map, whose end may begin the transplants
        super().settle()

    def failed(self, job: Job[Any]) -> None:
        """Say so, in the list's place too."""
        super().failed(job)
        self.draw()

    def _offer(self) -> None:
        """Offer what can be done now."""
        self._start.disabled = self.busy
        self._start.button_style = "primary" if self.found is None else ""
        show(self._stop, visible=self.busy)
        show(self._bar, visible=self.busy)
        one = self.suspicion
        self._carriers.disabled = one is None or not len(one.inputs)
        self._none.disabled = not self.selected

    def _picked(self, change: Mapping[str, Sequence[int]]) -> None:
        """Take over what the page selected."""
        self.press(lambda: setattr(self, "selected", tuple(change["new"])))

    def _follow_selected(self, change: Mapping[str, Sequence[int]]) -> None:
        self.scatter.selected = list(change["new"])
        self.draw()

    @traitlets.validate("rank")
    def _check_rank(self, proposal: Mapping[str, int | None]) -> int | None:
        rank, found = proposal["value"], self.found
        if rank is None:
            return None
        count = 0 if found is None else len(found)
        if not 0 <= rank < count:
            want = (
                f"want 0 to {count - 1}, or None" if count else "want None: nothing was found yet"
            )
            raise ValueError(f"rank: got {rank}, {want}")
        return rank

    @traitlets.validate("selected")
    def _check_selected(self, proposal: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        rows = sorted({check_int("selected", row, low=0) for row in proposal["value"]})
        if rows and rows[-1] >= len(self._images):
            raise ValueError(
                f"selected: got {rows[-1]}, want row numbers of {len(self._images)} references"
            )
        return tuple(rows)

    def forget(self) -> None:
        """Let go of the model, the references and what was found."""
        self._model, self._land = None, None
        self._images = self._images[:0].clone()
        self._moved.clear()
        for name in ("found", "suspicion", "pairs"):
            self.set_trait(name, None)


def _check_fit(found: Suspicions, count: int) -> None:
    """Raise a ``ValueError`` for suspicions of other references."""
    if found.searched != count:
        raise ValueError(
            f"found: got suspicions of {found.searched} references, want those of the {count} given"
        )
