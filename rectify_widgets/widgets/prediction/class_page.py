"""The page of classes: which are taken for which, after minus before.

Imports ipywidgets, the charts and the pure rooms of confusion matrices.  `describe` makes what is
shown; `ClassPage` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import ipywidgets as ipw
import numpy as np

from rectify_widgets.widgets import charts, markup
from rectify_widgets.widgets.prediction import confusion, prediction_html

LIMIT = 20
"""Classes in one heat map; of more, those that change most are shown, and the rest together."""

NAMED = 3
"""Changes that the words beside a heat map name."""


@dataclass(frozen=True)
class View:
    """One column of inputs: words above its heat map, the heat map, and a table beside it."""

    head: str
    chart: str
    table: str


def describe(
    name: str,
    labels: confusion.Ints | None,
    before: confusion.Ints,
    after: confusion.Ints,
    *,
    count: int,
    classes: Sequence[str] | None,
) -> View:
    """What changed for one column of inputs.

    Args:
        name: of the column.
        labels: ``N`` true classes; None compares with what was predicted before.
        before, after: ``N`` predicted classes.
        count: number of classes of the model.
        classes: their names.
    """
    truth = before if labels is None else labels
    found = confusion.difference(truth, before, after, count, LIMIT)
    names = [prediction_html.row_name(int(number), classes) for number in found.classes]
    rows = "Predicted before" if labels is None else "True class"
    words = changes(found, names)
    moved = int((before != after).sum())
    note = f"{moved} of {markup.some(len(before), 'prediction')} differ"
    if len(found.classes) < found.classes_in_all:
        note += (
            f"; the {LIMIT} of {found.classes_in_all} classes that change most, the others together"
        )
    chart = charts.heatmap(
        found.matrix.tolist(),
        f"{name} inputs, number of predictions after minus before, by {rows.lower()} and predicted "
        f"class: {words}",
        rows=names,
        columns=names,
        texts=[[prediction_html.signed(int(value)) for value in row] for row in found.matrix],
        row_title=rows,
        column_title="Predicted class",
    )
    head = (
        f"{markup.heading(f'{name} inputs' if name != 'Input' else 'Inputs', note)}<br>"
        f'<span class="rw-soft">{escape(words)}</span>'
    )
    return View(head, chart, prediction_html.recall(found, classes, judged=labels is not None))


def changes(found: confusion.Difference, names: Sequence[str]) -> str:
    """The greatest changes in words; not escaped."""
    size = np.abs(found.matrix).ravel()
    order = np.argsort(-size, kind="stable")[:NAMED]
    told = []
    for place in order[size[order] > 0]:
        row, column = divmod(int(place), len(names))
        change = prediction_html.signed(int(found.matrix[row, column]))
        told.append(f"{names[row]} as {names[column]} {change}")
    return "; ".join(told) or "nothing changed"


def still(views: Sequence[View]) -> str:
    """The columns as HTML, side by side where there is room."""
    cards = "".join(f"<div>{view.head}<br>{view.chart}{view.table}</div>" for view in views)
    return f'<div class="rw-class-page rw-columns">{cards}</div>'


class ClassPage(ipw.HBox):
    """A heat map with a table for each column of inputs, side by side where there is room."""

    def __init__(self, columns: int) -> None:
        self._heads = [ipw.HTML() for _ in range(columns)]
        self._charts = [ipw.HTML() for _ in range(columns)]
        self._tables = [ipw.HTML() for _ in range(columns)]
        self._cards = [
            _card(*parts) for parts in zip(self._heads, self._charts, self._tables, strict=True)
        ]
        super().__init__(self._cards, layout=ipw.Layout(width="100%", flex_flow="row wrap"))
        self.add_class("rw-class-page")

    def show(self, views: Sequence[View | None]) -> None:
        """Show the columns that have a view, and hide the others."""
        for card, head, chart, table, view in zip(
            self._cards, self._heads, self._charts, self._tables, views, strict=True
        ):
            card.layout.display = "none" if view is None else None
            if view is not None:
                head.value, chart.value, table.value = view.head, view.chart, view.table


def _card(head: ipw.HTML, chart: ipw.HTML, table: ipw.HTML) -> ipw.VBox:
    """The words above, and the table beside the chart where there is room, else below it."""
    place = ipw.VBox([chart], layout=ipw.Layout(flex="0 1 auto", min_width="0"))
    table.layout.flex, table.layout.max_width = "0 1 auto", "100%"
    view = ipw.HBox([place, table], layout=ipw.Layout(width="100%", flex_flow="row wrap"))
    view.add_class("rw-class-view")
    return ipw.VBox([head, view], layout=ipw.Layout(flex="1 1 340px", min_width="0", width="auto"))
