"""All widgets on a model that answers with a dictionary, behind `adapt`.

What each shows is compared with what it shows of the same network answering plainly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.model.outputs import Adapted
from rectify_widgets.engine.model.running import unwrap
from rectify_widgets.widgets.session import Session
from tests.engine.calls import PAIRS, REFERENCE
from tests.engine.traces import Tiny
from tests.widget_fakes import texts

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(Tiny):
    """A small network that answers plainly or with a dictionary."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return scores if self.plain else {"hidden": x, "logits": scores}


def rectified(model: nn.Module) -> rw.Rectification:
    return rw.rectify(
        model, PAIRS, reference=REFERENCE, max_rounds=2, target_gap=0.0, max_degradation=0.5
    )


def maps(model: nn.Module, **options: Any) -> ipw.Widget:
    viewer = rw.AttributionViewer(model, PAIRS, after=rectified(model).model, **options)
    viewer.layer = "second" if viewer.method == "grad-cam" else None
    return viewer


def dashboard(model: nn.Module, **options: Any) -> ipw.Widget:
    """After a search, an edit, a rectification and a step back; Grad-CAM follows the layer."""
    board = rw.RectificationDashboard(model, PAIRS, reference=REFERENCE, **options)
    board.maps.method = "grad-cam"
    board.max_degradation = 0.5
    board.locate()
    board.layer = "third"
    assert board.maps.layer == "third"
    board.edit()
    board.rectify()
    assert len(board.history.timeline.edits) >= 1
    board.undo()
    return board


SHOWN: dict[str, Callable[..., ipw.Widget]] = {
    "saliency": lambda model, **o: maps(model, method="saliency", **o),
    "Grad-CAM": lambda model, **o: maps(model, method="grad-cam", **o),
    "editability": lambda model, **o: rw.EditabilityViewer(model, PAIRS, reference=REFERENCE, **o),
    "predictions": lambda model, **o: rw.PredictionViewer(
        model, rectified(model).model, PAIRS, **o
    ),
    "history": lambda model, **o: rw.HistoryViewer(rectified(model), **o),
    "dashboard": dashboard,
}


def shown(kind: str, model: nn.Module, page: Path) -> str:
    """What a widget shows, on the screen and as a page, without times and running numbers."""
    session = Session(synchronous=True)
    widget = SHOWN[kind](model, session=session)
    if kind == "editability":
        widget.view = "tree"
        widget.locate()
    found = texts(widget) + widget.to_html(page).read_text(encoding="utf-8")
    widget.close()
    session.close()
    return re.sub(r"\d+(\.\d+)? s\b|rw-h\d+", "…", found)


@pytest.mark.parametrize("kind", SHOWN)
def test_a_widget_shows_what_it_shows_of_the_plain_model(kind: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    found = shown(kind, rw.adapt(Net(plain=False), output="logits"), page)
    assert len(found) > 2000
    assert found == shown(kind, Net(plain=True), page)


def test_versions_of_a_rectification_are_adapted_too() -> None:
    result = rectified(rw.adapt(Net(plain=False), output="logits"))
    plain = rectified(Net(plain=True))
    assert len(result.edits) >= 1
    for step in range(len(result.edits) + 1):
        version = result.at(step)
        assert isinstance(version, Adapted)
        assert isinstance(unwrap(version), Net)
        assert torch.equal(version(REFERENCE), plain.at(step)(REFERENCE))


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion", "grad-cam"])
def test_attribution_is_that_of_the_plain_model(method: str) -> None:
    layer = "third" if method == "grad-cam" else None
    found, plain = (
        rw.attribute(model, REFERENCE[:2], method=method, layer=layer)
        for model in (rw.adapt(Net(plain=False), output="logits"), Net(plain=True))
    )
    assert float(plain.abs().max()) > 0
    assert torch.equal(found, plain)
