"""`EditabilityViewer`: how editable each layer is, as bars, a table or a tree to choose from.

Imports the engine's localisation, the panel with its controls, and the data and HTML of this folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import nn

from rectify_widgets.engine.base.checks import (
    check_choice,
    check_flag,
    check_int,
    check_module,
    check_number,
    check_type,
)
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.widgets import actions, markup
from rectify_widgets.widgets.checks import CheckedTrait, refuse_unknown
from rectify_widgets.widgets.controls import Controls
from rectify_widgets.widgets.editability import html
from rectify_widgets.widgets.editability.data import (
    Knowledge,
    Layers,
    Localizations,
    Scores,
    check_localizations,
    first_folds,
)
from rectify_widgets.widgets.panel import Panel
from rectify_widgets.widgets.session import Job, Session

VIEWS = {"bars": "Bars", "table": "Table", "tree": "Tree"}
ORDERS = {"network": "Network", "rank": "Best first"}

TREE_ENTRIES = 24
"""Entries of a tree to begin with: groups are unfolded, outer ones first, while there is room."""


class EditabilityViewer(Panel):
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
        >>> layers = rw.EditabilityViewer(model, pairs, reference=reference)
        >>> found = layers.locate().wait()
        >>> found = layers.locate("projection").wait()  # a second column of bars
        >>> layers.layer, layers.order, layers.view = "conv2", "rank", "tree"
        >>> layers.close()
    """

    sheets = ("editability",)
    handles = ("layer", "fold", "fold_all", "unfold_all")
    marks = ("layer",)

    layer = traitlets.Unicode(None, allow_none=True).tag(sync=True)
    """The chosen layer's dotted name; a click on a row chooses its layer."""

    method = traitlets.Unicode("edit-attribution").tag(sync=True)
    """The method in front: `scores`, the rank and ★ are its own, and `locate` uses it."""

    scores = traitlets.Dict(read_only=True)
    """Layer name to score by the method in front, best first; empty until `locate` has run."""

    order = CheckedTrait("network", check_choice, choices=ORDERS)
    """``"network"`` or ``"rank"``: best first, those that cannot be edited last."""

    view = CheckedTrait("bars", check_choice, choices=VIEWS)
    """``"bars"``, ``"table"`` (all numbers) or ``"tree"`` (modules in groups)."""

    edited = traitlets.Tuple(())
    """Names of layers to mark as edited."""

    measured = traitlets.Dict()
    """Layer name to the share of the gap, 0 to 1, that its edit was seen to close."""

    folded = traitlets.Tuple(())
    """Names of the tree's groups that are folded; a click on a group folds or unfolds it."""

    def __init__(
        self,
        model: nn.Module | Localizations,
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
        check_flag("controls", controls)
        self._model: nn.Module | None = None
        self._localizations: dict[str, Localization] = {}
        self._notes: dict[str, str] = {}
        given: list[Localization] = []
        if isinstance(model, Localization | list | tuple | Mapping):
            given = check_localizations("model", model)
            self._layers = Layers.of_localizations(given)
            self._layers.check_scores("model", given)
            method = given[0].method
        else:
            self._model = check_module("model", model)
            pairs = check_type("pairs", pairs, SamplePairs, "SamplePairs")
            self._layers = Layers.of_model(self._model, pairs)
        self.about = markup.some(len(self._layers.order), "layer")
        super().__init__(session)
        with self.building():
            self.method = method
            self.folded = tuple(first_folds(self._layers.tree, TREE_ENTRIES))
            self.children = (*self._build_controls(given, controls=controls), self.canvas)
            self.listen(self, lambda _: self._unfold(), ["layer", "view"])
            self.listen(self, lambda _: self._use_scores(), ["method"])
            self.listen(
                self, lambda _: self.draw(), ["view", "order", "edited", "measured", "folded"]
            )
            if given:
                self.show(given)
            else:
                self.set_trait("status", "Ready. Locate scores the layers.")
                self.draw()

    def _build_controls(self, given: Sequence[Localization], *, controls: bool) -> list[ipw.Widget]:
        make, can_score = Controls(self), self._model is not None
        self._heading = make.text()
        look = make.row(make.choices("view", VIEWS, "View"), make.choices("order", ORDERS, "Order"))
        if not controls or (not can_score and len(given) < 2):
            return [self._heading, look]
        methods = list(RANKING_METHODS) if can_score else [one.method for one in given]
        method = make.field(
            ipw.Dropdown, "method", "Method", "The method in front", width="220px", options=methods
        )
        if not can_score:
            return [self._heading, make.row(method), look]
        tip = "Score how editable each layer is, by the method in front"
        locate = make.button("Locate", "search", tip, "locate", primary=True)
        cancel = make.button("Cancel", "stop", "Stop scoring; earlier scores stay", "cancel")

        def follow(_: object) -> None:
            locate.disabled, cancel.disabled = self.busy, not self.busy

        self.listen(self, follow, ["busy"])
        follow(None)
        buttons = make.row(method, locate, cancel, make.bar())
        return [self._heading, buttons, make.state(), look]

    # -- what can be asked ------------------------------------------------------------------------

    @property
    def localization(self) -> Localization | None:
        """What the method in front has found, or None."""
        return self._localizations.get(self.method)

    @property
    def localizations(self) -> dict[str, Localization]:
        """What each method has found so far."""
        known = self._localizations
        return {method: known[method] for method in RANKING_METHODS if method in known}

    def check_layer(self, name: str | None) -> str | None:
        """The name if it is an editable layer's or None; raises a `ValueError` with the reason otherwise."""
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

    def show(self, localization: Localizations, note: str = "") -> None:
        """Show scores that are there already; the best layer is chosen if none was.

        Args:
            localization: takes the place of earlier scores by the same method, and comes to the
                front; of several the first does.
            note: of which model the scores are.
        """
        several = check_localizations("localization", localization)
        self._layers.check_scores("localization", several)
        for one in several:
            self._localizations[one.method], self._notes[one.method] = one, note
            self._layers.kinds = {**one.kinds, **self._layers.kinds}
        with self.canvas.hold_sync():
            if self.method == several[0].method:
                self._use_scores()
            else:
                self.method = several[0].method
            if self.layer is None:
                self.layer = several[0].best

    def fold(self, group: str) -> None:
        """Fold a group of the tree, or unfold it."""
        others = tuple(name for name in self.folded if name != group)
        self.folded = others if group in self.folded else (*others, group)

    def fold_all(self) -> None:
        """Show the outermost groups of the tree."""
        self.folded = self._layers.groups

    def unfold_all(self) -> None:
        """Show every layer of the tree."""
        self.folded = ()

    def html(self) -> str:
        """All layers in one list: every method, what was measured, what cannot be edited."""
        layers, scores = self._layers, self.scores if self.order == "rank" else {}
        entries = layers.entries(self.view, scores or None, self.folded)
        folding = html.folding() if self.view == "tree" and layers.groups else ""
        return folding + html.layer_table(entries, self._knowledge(), self.view)

    def draw(self) -> None:
        """Show the current state, and of which model it is."""
        self._heading.value = self._title()
        super().draw()

    def still(self) -> str:
        """The current view without handles, below its heading."""
        return self._title() + super().still()

    def forget(self) -> None:
        """Let go of the model, the samples and the edits that were scored."""
        self._localizations.clear()
        self._model = self._pairs = self._reference = None

    # -- behind the view --------------------------------------------------------------------------

    def _title(self) -> str:
        return markup.heading("Editability of the layers", self._notes.get(self.method, ""))

    def _knowledge(self) -> Knowledge:
        scores = [
            Scores(method, one.scores, self._notes[method], method == self.method)
            for method, one in self.localizations.items()
        ]
        scores.sort(key=lambda one: not one.front)
        front = self.localization
        found = () if front is None else (front.choices, front.completeness)
        return Knowledge(scores, self.measured, self.edited, self._layers.kinds, *found)

    def _unfold(self) -> None:
        """Unfold the groups around the chosen layer."""
        if self.view == "tree" and self.layer is not None:
            around = self._layers.around(self.layer)
            self.folded = tuple(name for name in self.folded if name not in around)

    def _use_scores(self) -> None:
        """Show the scores of the method in front."""
        front = self.localization
        self.set_trait("scores", {} if front is None else dict(front.scores))
        status = f"{self.method}: not scored yet"
        if front is not None:
            text = Scores(self.method, front.scores).text(front.scores[front.best])
            status = f"{front.best} scores best, {text}"
        self.set_trait("status", status)
        self.draw()

    # -- checks -----------------------------------------------------------------------------------

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Mapping[str, str | None]) -> str | None:
        return self.check_layer(proposal["value"])

    @traitlets.validate("method")
    def _check_method(self, proposal: Mapping[str, str]) -> str:
        method = check_choice("method", proposal["value"], RANKING_METHODS)
        known = self._localizations
        if self._model is None and known and method not in known:
            raise ValueError(
                f"method: {method!r} has not been scored, and this viewer has no model to score; "
                f"it shows {', '.join(known)}"
            )
        return method

    @traitlets.validate("edited")
    def _check_edited(self, proposal: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        return tuple(self._layers.check("edited", name) for name in proposal["value"])

    @traitlets.validate("measured")
    def _check_measured(self, proposal: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        for name, share in proposal["value"].items():
            self._layers.check("measured", name)
            check_number(f"measured[{name!r}]", share, low=-math.inf)
        return dict(proposal["value"])

    @traitlets.validate("folded")
    def _check_folded(self, proposal: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        return tuple(
            check_choice("folded", name, self._layers.groups) for name in proposal["value"]
        )
