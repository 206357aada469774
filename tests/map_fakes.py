"""What the tests of attribution maps share.  No tests here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as ipw
import pytest
from torch import Tensor, nn

from rectify_widgets import explain
from rectify_widgets.widgets.attribution import data
from rectify_widgets.widgets.attribution.viewer import AttributionViewer
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import network, pairs, texts

Make = Callable[..., AttributionViewer]


@contextmanager
def making() -> Iterator[Make]:
    """Viewers with a synchronous session and a fast method, closed at the end."""
    made: list[AttributionViewer] = []

    def build(model: nn.Module | None = None, inputs: Any = None, **options: Any) -> Any:
        chosen: dict[str, Any] = {"session": Session(synchronous=True), "method": "saliency"}
        given = pairs() if inputs is None else inputs
        viewer = AttributionViewer(model or network(), given, **(chosen | options))
        made.append(viewer)
        return viewer

    yield build
    for viewer in made:
        viewer.close()


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of inputs of each call of `attribute` from now on."""
    seen: list[int] = []
    real = explain.attribute

    def count(model: nn.Module, inputs: Tensor, **options: Any) -> Tensor:
        seen.append(len(inputs))
        return real(model, inputs, **options)

    monkeypatch.setattr(data, "attribute", count)
    return seen


def view(viewer: ipw.Widget) -> str:
    """What a widget says, without the pictures' data and the style sheet."""
    return re.sub(r'src="[^"]*"|<style>.*?</style>', "", texts(viewer))


def tiles(viewer: AttributionViewer, column: str) -> list[int]:
    """Numbers of the samples that a column's tiles open, in order."""
    found = re.findall(rf'data-key="{column} (\d+)"', viewer.canvas.html)
    return [int(number) for number in found]


def hidden(widget: ipw.Widget) -> bool:
    """Whether a control is hidden."""
    return "rw-hidden" in widget._dom_classes


def press(box: ipw.HBox, what: str) -> None:
    """Click the button with that tooltip."""
    (button,) = (
        child for child in box.children if isinstance(child, ipw.Button) and child.tooltip == what
    )
    button.click()


def pictures(html: str) -> list[str]:
    """The data of all pictures."""
    return re.findall(r'src="(data:image/[^"]*)"', html)


def first(one: Tensor) -> Tensor:
    """Channels first already."""
    return one


def last(one: Tensor) -> Tensor:
    """From channels last."""
    return one.permute(0, 3, 1, 2)


def tokens(before: int, rows: int) -> Callable[[Tensor], Tensor]:
    """A square of tokens behind some that stand for no place."""
    return lambda one: one[:, before:].transpose(1, 2).reshape(len(one), -1, rows, rows)
