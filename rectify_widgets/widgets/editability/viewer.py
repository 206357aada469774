"""`EditabilityViewer`: how editable each layer is, as bars, a table or a tree to choose from.

Imports the engine's localisation, the base panel and the rooms that build rows and HTML.  Each row
is a button, so a layer is chosen by mouse or keyboard in every front end, without a script of our
own; bars and numbers are one piece of HTML drawn over the buttons, which lets clicks through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_module, check_number
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import RANKING_METHODS, Localization
from rectify_widgets.widgets import actions, markup
from rectify_widgets.widgets.base import refuse_unknown
from rectify_widgets.widgets.editability import layer_html, layer_tree
from rectify_widgets.widgets.editability.layer_facts import Column, Facts
from rectify_widgets.widgets.editability.layer_index import Found, LayerIndex, check_found
from rectify_widgets.widgets.editability.layer_list import (
    ORDERS,
    VIEWS,
    LayerList,
    ListTools,
    page_count,
    page_of,
)
from rectify_widgets.widgets.editability.layer_rows import Row
from rectify_widgets.widgets.editability.locating import LocateControls
from rectify_widgets.widgets.jobs import Job
from rectify_widgets.widgets.session import Session
from rectify_widgets.widgets.stepper import ChoiceStepper
from rectify_widgets.widgets.working import Working

TREE_ROWS = 24
"""Rows of a tree to begin with: groups are unfolded, outer ones first, while there is room."""

WIDE_NAME, NARROW_NAME = 28, 22
"""Longest layer names that are shown whole, in characters: alone, and as a part of something."""


class EditabilityViewer(Working):
    """How much of the gap an edit of each layer closes.

    Args:
        model: a torch module, or what `rectify_widgets.localize` has found already: one
            `Localization`, a list of them, or a dict by method.
        pairs: corrupted and clean samples; needed with a model.
        reference: inputs like those that the model was trained on.
        method: of `rectify_widgets.localize`; the first one found is in front where there is no
            model.
        seed: of the scoring.
        controls: whether to show the method, Locate, Cancel and the status line.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.

    Example:
        >>> viewer = EditabilityViewer(model, pairs, reference=reference)
        >>> viewer.locate().wait()
        >>> viewer.locate("projection").wait()  # a second column of bars
        >>> viewer.layer, viewer.order, viewer.view = "stage3.conv2", "rank", "tree"
    """

    sheets = ("editability",)

    layer = traitlets.Unicode(None, allow_none=True)
    """The chosen layer's dotted name; a click on a row chooses its layer."""

    method = traitlets.Unicode("edit-attribution")
    """The method in front: `scores`, the rank and ★ are its own, and `locate` uses it."""

    scores = traitlets.Dict(read_only=True)
    """Layer name to score by the method in front, best first; empty until `locate` has run."""

    order = traitlets.Unicode("network")
    """``"network"`` or ``"rank"``: best first, those that cannot be edited last."""

    view = traitlets.Unicode("bars")
    """``"bars"``, ``"table"`` (all numbers) or ``"tree"`` (modules in groups)."""

    edited = traitlets.Tuple(())
    """Names of layers to mark as edited."""

    measured = traitlets.Dict()
    """Layer name to the share of the gap, 0 to 1, that its edit was seen to close."""

    folded = traitlets.Tuple(())
    """Names of the tree's groups that are folded; a click on a group folds or unfolds it."""

    page = traitlets.Int(0)
    """The page of rows in view, from 0; choosing a layer turns to its page."""

    def __init__(
        self,
        model: nn.Module | Found,
        pairs: SamplePairs | None = None,
        *,
        reference: Any = None,
        method: str = "edit-attribution",
        seed: int = 0,
        controls: bool = True,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._pairs, self._reference = pairs, reference
        self._seed = check_int("seed", seed, low=0)
        check_choice("method", method, RANKING_METHODS)
        if not isinstance(controls, bool):
            raise TypeError(f"controls: got {controls!r}, want True or False")
        self._model: nn.Module | None = None
        self._found: dict[str, Localization] = {}
        self._notes: dict[str, str] = {}
        found: list[Localization] = []
        if isinstance(model, Localization | list | tuple | Mapping):
            found = check_found("model", model)
            self._layers = LayerIndex.of_found(found)
            self._layers.check_found("model", found)
            method = found[0].method
        else:
            self._model = check_module("model", model)
            if not isinstance(pairs, SamplePairs):
                raise TypeError(f"pairs: got {type(pairs).__name__}, want SamplePairs")
            self._layers = LayerIndex.of_model(self._model, pairs)
        self.about = markup.some(len(self._layers.order), "layer")
        super().__init__(session)
        with self.building():
            self.method = method
            self.folded = tuple(layer_tree.first_folds(self._layers.tree, TREE_ROWS))
            self._build(found, controls=controls)
            if found:
                self.show(found)

    def _build(self, found: Sequence[Localization], *, controls: bool) -> None:
        self._heading = ipw.HTML(markup.heading("Editability of the layers"))
        options = [
            ("choose a layer", None),
            *((name or "(the model)", name) for name in self._layers.order),
        ]
        self._choice = ChoiceStepper(self, "layer", options, "Layer")
        self._tools = ListTools(self, self._layers.groups)
        self._list = LayerList(self._choose, self._turn, WIDE_NAME if controls else NARROW_NAME)
        head: list[ipw.Widget] = [self._heading]
        self._controls: LocateControls | None = None
        if controls and (self._model is not None or len(found) > 1):
            can_score = self._model is not None
            methods = RANKING_METHODS if can_score else [one.method for one in found]
            self._controls = LocateControls(self, methods, self._click if can_score else None)
            self.listen(self, self._show_state, ["status", "progress", "error", "busy"])
            head.append(self._controls)
        if self._model is not None:
            self.set_trait("status", "Ready. Locate scores the layers.")
        self.fill([*head, self._choice, self._tools, self._list])
        self.listen(self, lambda _: self._reveal(), ["layer", "view", "order"])
        self.listen(self, lambda _: self._take_front(), ["method"])
        self.listen(self, lambda _: self._draw(), ["edited", "measured", "folded", "page"])
        self._reveal()

    # -- what can be asked ------------------------------------------------------------------------

    @property
    def localization(self) -> Localization | None:
        """What the method in front has found, or None."""
        return self._found.get(self.method)

    @property
    def localizations(self) -> dict[str, Localization]:
        """What each method has found so far."""
        return {method: self._found[method] for method in RANKING_METHODS if method in self._found}

    def check_layer(self, name: str | None) -> str | None:
        """The name if it is an editable layer's or None; else a `ValueError` that says why not."""
        return None if name is None else self._layers.check("layer", name)

    def locate(self, method: str | None = None) -> Job[Localization]:
        """Score every layer in the background, by ``method`` or by the one in front.

        The scores are added to those of other methods, and theirs comes to the front.

        Raises:
            ValueError: no such method; this viewer has no model to score.
            RuntimeError: the layers are being scored already.
        """
        model, pairs = self._model, self._pairs
        if model is None or pairs is None:
            raise ValueError("model: this viewer shows a Localization, want a model to score")
        chosen = self.method if method is None else check_choice("method", method, RANKING_METHODS)

        def work(job: Job[Localization]) -> Localization:
            return actions.locate(
                job, model, pairs, reference=self._reference, method=chosen, seed=self._seed
            )

        return self.act(work, "Locate", lambda job: self.show(job.result()))

    def show(self, localization: Found, note: str = "") -> None:
        """Show scores that are there already; the best layer is chosen if none was.

        Args:
            localization: takes the place of earlier scores by the same method, and comes to the
                front; of several the first does.
            note: of which model the scores are.
        """
        found = check_found("localization", localization)
        self._layers.check_found("localization", found)
        for one in found:
            self._found[one.method], self._notes[one.method] = one, note
            self._layers.kinds = {**one.kinds, **self._layers.kinds}
        if self.method == found[0].method:
            self._take_front()
        else:
            self.method = found[0].method
        if self.layer is None:
            self.layer = found[0].best

    def static_html(self) -> str:
        """The layers as a table with bars: all methods, what was measured, what is not editable."""
        title = markup.heading("Editability of the layers", self._notes.get(self.method, ""))
        unscored = "" if self._found else '<p class="rw-soft">Not scored yet.</p>'
        facts, rows = self._facts(), self._rows_in_order()
        return title + unscored + layer_html.static_table(rows, facts)

    def forget(self) -> None:
        """Let go of the model and the samples."""
        self._model = self._pairs = self._reference = None

    # -- behind the views -------------------------------------------------------------------------

    @property
    def _rows(self) -> dict[str, ipw.Button]:
        """The buttons in view, by the name of their layer or group."""
        return self._list.buttons

    def _facts(self) -> Facts:
        columns = [
            Column(method, one.scores, self._notes[method], method == self.method)
            for method, one in self.localizations.items()
        ]
        columns.sort(key=lambda column: not column.front)
        facts = Facts(columns, self.measured, self.edited, self._layers.kinds)
        if (front := self.localization) is not None:
            facts = replace(facts, choices=front.choices, completeness=front.completeness)
        return facts

    def _rows_in_order(self) -> list[Row]:
        ranking = self.scores if self.order == "rank" and self.scores else None
        return self._layers.rows(self.view, ranking, self.folded)

    def _draw(self) -> None:
        """Show the page of rows in view."""
        rows = self._rows_in_order()
        page = min(self.page, page_count(rows) - 1)
        self._list.show(rows, self._facts(), self.view, page)
        self._list.mark(self.layer)
        self._tools.show(self.view)
        if page != self.page:
            self.page = page

    def _reveal(self) -> None:
        """Unfold the groups around the chosen layer and turn to its page."""
        if self.layer is None:
            self._choice.choice.index = 0  # "choose a layer"
        if self.view == "tree" and self.layer is not None:
            around = self._layers.around(self.layer)
            self.folded = tuple(name for name in self.folded if name not in around)
        page = page_of(self._rows_in_order(), self.layer)
        self.page = self.page if page is None else page
        self._draw()

    def _choose(self, row: Row) -> None:
        """What a click on a row does: choose its layer, fold or unfold its group."""
        if row.is_layer:
            self.layer = row.name
        elif row.folded:
            self.folded = tuple(name for name in self.folded if name != row.name)
        elif row.is_group:
            self.folded = (*self.folded, row.name)

    def _turn(self, by: int) -> None:
        self.page = (self.page + by) % page_count(self._rows_in_order())

    def _take_front(self) -> None:
        """Show what the method in front has found."""
        front, note = self.localization, self._notes.get(self.method, "")
        self._heading.value = markup.heading("Editability of the layers", note)
        self.set_trait("scores", {} if front is None else dict(front.scores))
        if front is None:
            self.set_trait("status", f"{self.method}: not scored yet")
        else:
            text = Column(self.method, front.scores).text(front.scores[front.best])
            self.set_trait("status", f"{front.best} scores best, {text}")
        self._draw()

    def _click(self, name: str) -> None:
        self.press(getattr(self, name))

    def _show_state(self, _: object) -> None:
        if self._controls is not None:
            self._controls.show(
                status=self.status, progress=self.progress, error=self.error, busy=self.busy
            )

    # -- checks -----------------------------------------------------------------------------------

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Mapping[str, str | None]) -> str | None:
        return self.check_layer(proposal["value"])

    @traitlets.validate("method")
    def _check_method(self, proposal: Mapping[str, str]) -> str:
        method = check_choice("method", proposal["value"], RANKING_METHODS)
        if self._model is None and self._found and method not in self._found:
            raise ValueError(
                f"method: {method!r} has not been scored, and this viewer has no model to score; "
                f"it shows {', '.join(self._found)}"
            )
        return method

    @traitlets.validate("order", "view")
    def _check_look(self, proposal: Mapping[str, Any]) -> str:
        name = proposal["trait"].name
        return check_choice(name, proposal["value"], ORDERS if name == "order" else VIEWS)

    @traitlets.validate("edited")
    def _check_edited(self, proposal: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        return tuple(self._layers.check("edited", name) for name in proposal["value"])

    @traitlets.validate("measured")
    def _check_measured(self, proposal: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return {
            self._layers.check("measured", name): check_number(
                f"measured[{name!r}]", share, low=-math.inf
            )
            for name, share in proposal["value"].items()
        }

    @traitlets.validate("folded")
    def _check_folded(self, proposal: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        return tuple(
            check_choice("folded", name, self._layers.groups) for name in proposal["value"]
        )

    @traitlets.validate("page")
    def _check_page(self, proposal: Mapping[str, int]) -> int:
        page, count = check_int("page", proposal["value"], low=0), page_count(self._rows_in_order())
        if page >= count:
            raise ValueError(f"page: got {page}, want 0 to {count - 1}: one of {count} pages")
        return page
