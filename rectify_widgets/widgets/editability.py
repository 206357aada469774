"""`EditabilityViewer`: how editable each layer is, as bars to choose from.

Imports the engine's localisation, the base panel and the renderers.  Each bar is a button, so a
layer is chosen by mouse or keyboard in every front end, without a script of our own: what differs
from row to row (length, colour, number) reaches the style sheet as custom properties.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import ipywidgets as ipw
import traitlets
from torch import nn

from rectify_widgets.engine.checks import check_choice, check_module, nearest
from rectify_widgets.engine.editability import Localization
from rectify_widgets.engine.layers import editable_layers
from rectify_widgets.engine.localization import METHODS
from rectify_widgets.engine.pairs import SamplePairs
from rectify_widgets.widgets import actions, markup
from rectify_widgets.widgets.base import Panel, refuse_unknown
from rectify_widgets.widgets.jobs import Job
from rectify_widgets.widgets.session import Session

ROWS = 80
"""Most layers with a row of their own; the list above the bars always has all of them."""

NAME_WIDTH = 26
"""Longest layer name that is shown whole, in characters."""

UNITS = {
    "edit-attribution": ("Share of the gap", "predicted"),
    "projection": ("Score of the paper", "without a unit"),
    "trial": ("Share of the gap", "measured"),
}

_numbers = itertools.count(1)


class EditabilityViewer(Panel):
    """How much of the gap an edit of each layer closes.

    Args:
        model: a torch module, or a `Localization` that is there already.
        pairs: corrupted and clean samples; needed with a model.
        reference: inputs like those that the model was trained on.
        method: of `rectify_widgets.localize`.
        seed: of the scoring.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.
    """

    layer = traitlets.Unicode(None, allow_none=True)
    """The chosen layer's dotted name."""

    scores = traitlets.Dict(read_only=True)
    """Layer name to score, best first; empty until `locate` has run."""

    edited = traitlets.Tuple(())
    """Names of layers to mark as edited."""

    def __init__(
        self,
        model: nn.Module | Localization,
        pairs: SamplePairs | None = None,
        *,
        reference: Any = None,
        method: str = "edit-attribution",
        seed: int = 0,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._pairs, self._reference, self._seed = pairs, reference, seed
        self.method = check_choice("method", method, METHODS)
        self._model: nn.Module | None = None
        self.localization: Localization | None = None
        if isinstance(model, Localization):
            self.localization = model
            self._order, self._refused = model.order, dict(model.refused)
        else:
            self._model = check_module("model", model)
            if not isinstance(pairs, SamplePairs):
                raise TypeError(f"pairs: got {type(pairs).__name__}, want SamplePairs")
            catalog = editable_layers(model, pairs.clean[:1])
            self._order, self._refused = tuple(catalog.editable), dict(catalog.refused)
        super().__init__(session)
        self._note = ""
        self._marker = f"rw-e{next(_numbers)}"
        with self.building():
            self._build()
            if self.localization is not None:
                self.show(self.localization)

    def _build(self) -> None:
        self.add_class(self._marker)
        self._heading = ipw.HTML(markup.heading("Editability of the layers"))
        self._head = ipw.HTML()
        self._sheet = ipw.HTML(layout=ipw.Layout(display="none"))
        self._choice = ipw.Dropdown(
            options=[("choose a layer", None), *((name, name) for name in self._order)],
            description="Layer",
            layout=ipw.Layout(width="auto"),
            style={"description_width": "56px"},
        )
        row_layout = ipw.Layout(width="100%", height="24px")
        row_style = ipw.ButtonStyle()
        self._rows: dict[str, ipw.Button] = {}
        for name in self._order[:ROWS]:
            row = ipw.Button(description=shorten(name), layout=row_layout, style=row_style)
            row.add_class("rw-row")
            row.add_class(f"rw-r{len(self._rows)}")
            row.on_click(lambda _, name=name: setattr(self, "layer", name))
            self._rows[name] = row
        box = ipw.VBox(list(self._rows.values()), layout=ipw.Layout(max_height="560px"))
        box.add_class("rw-rows")
        more = len(self._order) - len(self._rows)
        signs = "★ scores best · ● edited" + (f" · {more} more in the list above" if more else "")
        note = f'<span class="rw-soft">{signs}</span>'
        foot = ipw.HTML(note + markup.refused_list(self._refused))
        self.fill([self._heading, self._choice, self._sheet, self._head, box, foot])
        self.link("layer", self._choice, "value")
        self.listen(self, self._mark, ["layer"])
        self.listen(self, lambda _: self._draw(), ["edited"])
        self._draw()

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Mapping[str, str | None]) -> str | None:
        return self.check_layer(proposal["value"])

    def check_layer(self, name: str | None) -> str | None:
        """The name if it is an editable layer's or None; else a `ValueError` that says why not."""
        if name is not None and name not in self._order:
            why = self._refused.get(name)
            reason = (
                f"cannot be edited: {why}" if why else f"is unknown{nearest(name, self._order)}"
            )
            raise ValueError(f"layer: {name!r} {reason}")
        return name

    def locate(self) -> Job[Localization]:
        """Score every layer, in the background."""
        model, pairs = self._model, self._pairs
        if model is None or pairs is None:
            raise ValueError("model: this viewer shows a Localization, want a model to score")

        def work(job: Job[Localization]) -> Localization:
            return actions.locate(
                job, model, pairs, reference=self._reference, method=self.method, seed=self._seed
            )

        self.set_trait("status", "Scoring the layers …")
        return self.begin(
            work,
            lane="layers",
            label="Locate",
            on_done=lambda job: self.show(job.result()),
            on_progress=lambda job: self.set_trait("progress", job.fraction),
        )

    def show(self, localization: Localization, note: str = "") -> None:
        """Show scores that are there already; the best layer is chosen if none was."""
        self.localization = localization
        self.set_trait("scores", dict(localization.scores))
        best = localization.best
        self.set_trait("status", f"{best} scores best, {localization.scores[best]:.2f}")
        self._note = ", ".join(filter(None, [self._unit()[1], note]))
        self._heading.value = markup.heading("Editability of the layers", self._note)
        if self.layer is None:
            self.layer = best
        self._draw()

    def static_html(self) -> str:
        """The scores as a table with bars."""
        title = markup.heading("Editability of the layers", self._note)
        if not self.scores:
            return title + '<p class="rw-soft">Not scored yet.</p>'
        order = [name for name in self._order if name in self.scores]
        return title + markup.score_table(
            self.scores, order, edited=self.edited, unit=self._unit()[0]
        )

    def _unit(self) -> tuple[str, str]:
        return UNITS[self.localization.method if self.localization is not None else self.method]

    def _mark(self, change: Mapping[str, str | None]) -> None:
        if (old := self._rows.get(change["old"] or "")) is not None:
            old.remove_class("rw-chosen")
        if (new := self._rows.get(change["new"] or "")) is not None:
            new.add_class("rw-chosen")

    def _draw(self) -> None:
        """Send the numbers of all rows as one small style sheet."""
        widest = max((len(row.description) for row in self._rows.values()), default=8)
        rules = [f".{self._marker} {{ --rw-names: {widest + 1}ch; }}"]
        rules += row_rules(self._marker, list(self._rows), self.scores, self.edited)
        self._sheet.value = f"<style>{''.join(rules)}</style>"
        self._head.value = (
            '<div class="rw-bars-head"><span>Layer</span>'
            f"<span>{self._unit()[0]}</span><span>Score</span></div>"
        )
        best = next(iter(self.scores), None)
        for name, row in self._rows.items():
            score = self.scores.get(name)
            text = name if score is None else f"{name}: {score:.3g}"
            row.tooltip = text + (" (best)" if name == best else "")


def row_rules(
    marker: str, names: Iterable[str], scores: Mapping[str, float], edited: Iterable[str]
) -> list[str]:
    """CSS rules that give every row its bar (from ``--a`` to ``--b``), colour and number."""
    high = max([*scores.values(), 0.0])
    low = min([*scores.values(), 0.0])
    if high - low <= 0.0:
        high = 1.0
    best = next(iter(scores), None)
    marked = set(edited)
    rules = []
    for place, name in enumerate(names):
        if name not in scores:
            continue
        score = scores[name]
        start, stop = (100.0 * (end - low) / (high - low) for end in sorted((0.0, score)))
        sign = ("★" if name == best else "") + ("●" if name in marked else "")
        colour = "var(--rw-orange)" if sign else "var(--rw-blue)"
        rules.append(
            f".{marker} .rw-r{place} {{ --a: {start:.1f}%; --b: {stop:.1f}%; --c: {colour}; "
            f'--s: "{sign} {markup.score_text(score)}"; }}'
        )
    return rules


def shorten(name: str) -> str:
    """A layer name of at most `NAME_WIDTH` characters; the middle gives way."""
    if len(name) <= NAME_WIDTH:
        return name
    head = NAME_WIDTH // 3
    return f"{name[:head]}…{name[head + 1 - NAME_WIDTH :]}"
