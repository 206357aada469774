"""Traits that a user links: in Python, in the page (``jslink``), and in a notebook that is saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ipywidgets as ipw
import pytest
import traitlets
from torch import nn

import rectify_widgets as rw
from rectify_widgets.widgets.panel import Panel, close_tree
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import network, pairs

LINKED = {
    rw.AttributionViewer: {"index", "layer", "method", "target", "page"},
    rw.EditabilityViewer: {"layer", "method"},
    rw.PredictionViewer: {"index", "page"},
    rw.HistoryViewer: {"step", "branch"},
    rw.MaskPainter: {"index"},
    rw.SuspicionViewer: {"rank", "selected", "search"},
    rw.RectificationDashboard: {"index", "layer", "method", "stage"},
}
"""What of each widget can be linked in the page."""


@pytest.fixture
def panels() -> Iterator[dict[type[Panel], Panel]]:
    session, model, some = Session(synchronous=True), network(), pairs(4)
    made: dict[type[Panel], Panel] = {
        rw.AttributionViewer: rw.AttributionViewer(model, some, session=session),
        rw.EditabilityViewer: rw.EditabilityViewer(model, some, session=session),
        rw.PredictionViewer: rw.PredictionViewer(model, None, some, session=session),
        rw.HistoryViewer: rw.HistoryViewer(model, session=session),
        rw.MaskPainter: rw.MaskPainter(some.corrupted, session=session),
        rw.SuspicionViewer: rw.SuspicionViewer(model, some.corrupted, session=session),
        rw.RectificationDashboard: rw.RectificationDashboard(model, some, session=session),
    }
    yield made
    for panel in made.values():
        close_tree(panel)
    session.close()


@pytest.mark.parametrize("kind", LINKED, ids=lambda kind: kind.__name__)
def test_traits_that_are_linked_are_part_of_the_state(
    panels: dict[type[Panel], Panel], kind: type[Panel]
) -> None:
    panel = panels[kind]
    state = panel.get_state()
    for name in LINKED[kind]:
        assert state[name] == getattr(panel, name)
        other = ipw.Text()
        link = ipw.jslink((panel, name), (other, "value"))  # refuses traits that are not synced
        link.close()
        close_tree(other)
    saved = ipw.Widget.get_manager_state(widgets=[panel])["state"][panel.model_id]["state"]
    assert LINKED[kind] <= json.loads(json.dumps(saved)).keys()


def test_a_value_from_the_page_is_taken(panels: dict[type[Panel], Any]) -> None:
    maps = panels[rw.AttributionViewer]
    maps.set_state({"index": 2, "method": "saliency"})
    assert (maps.index, maps.method, maps.error) == (2, "saliency", None)
    assert "sample 3" in maps.canvas.html
    assert maps.samples.slider.value == 3


def test_a_value_from_the_page_that_is_refused_is_shown_and_taken_back(
    panels: dict[type[Panel], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = panels[rw.AttributionViewer]
    sent: list[object] = []
    monkeypatch.setattr(maps, "send_state", sent.append)
    maps.set_state({"index": 9, "method": "saliency"})
    assert (maps.index, maps.method) == (0, "saliency"), "the other one is taken"
    maps.set_state({"index": 9})
    assert maps.index == 0
    assert "want 0 to 3" in maps.canvas.html
    assert sent.count("index") == 2


def test_a_slider_drives_two_widgets_and_an_output(panels: dict[type[Panel], Any]) -> None:
    maps, predictions = panels[rw.AttributionViewer], panels[rw.PredictionViewer]
    traitlets.link((maps, "index"), (predictions, "index"))
    seen: list[int] = []

    def note(at: int) -> None:
        seen.append(at)

    output = ipw.interactive_output(note, {"at": maps.samples.slider})
    maps.samples.slider.value = 4
    assert maps.index == predictions.index == 3
    assert seen == [1, 4]
    output.close()


def test_layers_without_a_map_can_be_linked(panels: dict[type[Panel], Any]) -> None:
    layers, maps = panels[rw.EditabilityViewer], panels[rw.AttributionViewer]
    maps.method = "grad-cam"
    traitlets.link((layers, "layer"), (maps, "layer"))
    layers.layer = "0"
    assert maps.layer == "0"
    layers.layer = "6"  # a linear layer
    assert "its output of shape (2, 3) for two samples has no places" in maps.canvas.html
    layers.layer = "3"
    assert maps.error is None
    assert "grad-cam map" in maps.canvas.html


def test_every_control_says_what_it_does(panels: dict[type[Panel], Any]) -> None:
    dashboard = panels[rw.RectificationDashboard]
    dashboard._controls.toggle_options()
    kinds = (
        ipw.Button, ipw.Dropdown, ipw.ToggleButtons, ipw.IntSlider, ipw.Play, ipw.FloatProgress,
        ipw.Text, ipw.BoundedIntText, ipw.BoundedFloatText, ipw.Checkbox,
    )  # fmt: skip
    seen = set()

    def look(widget: ipw.Widget) -> None:
        if isinstance(widget, kinds):
            seen.add(type(widget))
            assert widget.tooltip, widget
        for child in getattr(widget, "children", ()):
            look(child)

    for panel in panels.values():
        look(panel)
    assert seen >= {ipw.Button, ipw.Dropdown, ipw.ToggleButtons, ipw.IntSlider, ipw.Play}


CONVOLUTIONAL = nn.Sequential(
    nn.Conv2d(1, 2, 3, stride=32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)
)
LINEAR = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    ("model", "side", "method", "wanted"),
    [
        (CONVOLUTIONAL, 224, None, "grad-cam"),
        (CONVOLUTIONAL, 64, None, "integrated-gradients"),
        (LINEAR, 224, None, "integrated-gradients"),
        (CONVOLUTIONAL, 224, "saliency", "saliency"),
    ],
)
def test_large_inputs_are_looked_at_by_grad_cam(
    model: nn.Module, side: int, method: str | None, wanted: str
) -> None:
    clean = nn.functional.interpolate(pairs(1).clean, (side, side))
    session = Session(synchronous=True)
    viewer = rw.AttributionViewer(model, clean, method=method, session=session)
    assert viewer.error is None
    assert viewer.method == viewer.methods.list.value == wanted
    viewer.close()
    session.close()


@pytest.fixture
def dashboard() -> Iterator[rw.RectificationDashboard]:
    session = Session(synchronous=True)
    some = pairs(5)
    made = rw.RectificationDashboard(
        network(), some[:2], examples=some[2:], reference=some.clean, session=session,
        max_rounds=1, refine_steps=0,
    )  # fmt: skip
    yield made
    made.close()
    session.close()


def test_what_was_said_of_another_step_is_gone_after_scrubbing(
    dashboard: rw.RectificationDashboard,
) -> None:
    dashboard.layer = "0"
    dashboard.edit()
    assert dashboard.status.startswith("Edited 0: gap")
    dashboard.history.step = 0
    assert dashboard.status == dashboard.history.status
    assert dashboard.status.startswith("Step 0")


def test_an_error_of_a_sample_goes_with_it(dashboard: rw.RectificationDashboard) -> None:
    dashboard.maps.method = "grad-cam"
    dashboard.maps.layer = "6"
    assert isinstance(dashboard.error, ValueError)
    dashboard.maps.layer = "0"
    assert dashboard.error is None


def test_pairs_that_are_repaired_from_are_marked(dashboard: rw.RectificationDashboard) -> None:
    said = []
    for place in range(5):
        dashboard.index = place
        said.append("repair pair" in dashboard.maps.samples.note.value)
    assert said == [True, True, False, False, False]
