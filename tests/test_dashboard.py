"""The dashboard and its viewers by their traits, with the synchronous session and a fake engine.

The real engine behind the same widgets is in tests/browser and in the tutorial.
"""

from __future__ import annotations

import gc
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import pytest
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.editability import Localization
from rectify_widgets.engine.history import Rectification, Step
from rectify_widgets.engine.pairs import SamplePairs
from rectify_widgets.engine.progress import Cancelled
from rectify_widgets.widgets import actions
from rectify_widgets.widgets.attribution import AttributionViewer
from rectify_widgets.widgets.dashboard import RectificationDashboard
from rectify_widgets.widgets.editability import EditabilityViewer, row_rules, shorten
from rectify_widgets.widgets.prediction import PredictionViewer
from rectify_widgets.widgets.session import Session

LAYERS = ("0", "3", "6")
SCORES = {"3": 0.8, "0": 0.2, "6": -0.1}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def pairs(count: int = 4) -> SamplePairs:
    clean = torch.rand(count, 1, 9, 9, generator=torch.Generator().manual_seed(2))
    corrupted = clean.clone()
    corrupted[:, :, :2, :2] = 1.0
    return SamplePairs(corrupted, clean)


class FakeEdit:
    """Adds to the bias of the last layer, so that predictions change."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def apply(self, model: nn.Sequential) -> None:
        with torch.no_grad():
            model[6].bias[2] += 10.0  # type: ignore[index, operator]


def fake_localization(model: object, given: object, **options: Any) -> Localization:
    options["progress"](0.5, "scoring")
    return Localization(SCORES, options["method"], {}, {}, {"9": "a layer of no use"}, LAYERS)


def fake_rectification(model: nn.Sequential, given: object, **options: Any) -> Rectification:
    edit = FakeEdit("3")
    edit.apply(model)
    step = Step(1, "3", 0.8, "key", 0.1, 1.0, 0.01, 0.0, 0.002, 0.01, True, "the gap falls", 0.1)
    missed = Step(1, "6", 0.1, "key", 0.1, 1.0, None, 0.0, None, None, False, "too costly", 0.1)
    edits: list[Any] = [edit]
    flagged = torch.empty(0, dtype=torch.int64)
    options["progress"](0.5, "round 1")
    return Rectification(
        model, edits, [missed, step], "dynamic", "target", 1.0, 0.01, 0.002, flagged, {"all": 1.5}
    )


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "localize", fake_localization)
    monkeypatch.setattr(actions, "rectify", fake_rectification)
    monkeypatch.setattr(
        actions, "solve_edit", lambda model, given, *, layer, **rest: FakeEdit(layer or "3")
    )


Make = Callable[..., RectificationDashboard]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[RectificationDashboard] = []

    def build(**options: Any) -> RectificationDashboard:
        options = {"session": Session(synchronous=True)} | options
        dashboard = RectificationDashboard(
            options.pop("model", None) or network(),
            options.pop("pairs", None) or pairs(),
            **options,
        )
        made.append(dashboard)
        return dashboard

    yield build
    for dashboard in made:
        dashboard.close()


def texts(widget: ipw.Widget) -> str:
    """All HTML inside a widget."""
    own = widget.value if isinstance(widget, ipw.HTML) else ""
    return own + "".join(texts(child) for child in getattr(widget, "children", ()))


# -- the dashboard --------------------------------------------------------------------------------


def test_it_shows_maps_and_predictions_at_once(make: Make) -> None:
    dashboard = make(classes=["ape", "bee", "cat"])
    html = texts(dashboard)
    assert html.count("map of the corrupted input") == 1
    assert html.count("map of the clean input") == 1
    assert "Clean input" in html
    assert "bee" in html
    assert dashboard.status.startswith("Ready")
    assert dashboard.error is None
    assert dashboard.scores == {}
    assert dashboard.result is None


def test_locate_scores_the_layers_and_chooses_the_best(make: Make) -> None:
    dashboard = make()
    found = dashboard.locate().wait()
    assert isinstance(found, Localization)
    assert dict(dashboard.scores) == SCORES
    assert dashboard.layer == "3"
    assert "3 scores best" in dashboard.status
    assert dashboard.progress == 1.0
    assert not dashboard.busy


def test_rectify_gives_a_result_and_the_views_after(make: Make) -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dashboard = make(model=model)
    result = dashboard.rectify().wait()
    assert result is dashboard.result
    assert dict(dashboard.scores) == SCORES
    assert dashboard.model is not model
    assert [edit.layer for edit in dashboard.edits] == ["3"]
    html = texts(dashboard)
    assert "Target reached after 1 edit (1.5 s): gap 100.0 % → 1.0 %" in dashboard.status
    assert "✓ kept" in html
    assert "↺ rolled back: too costly" in html
    assert "After, %" in html
    assert html.count("map of the corrupted input, after") == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rows = dashboard.predictions.share_right("Clean")
    assert len(rows) == 2


def test_edit_and_undo(make: Make) -> None:
    dashboard = make()
    dashboard.layer = "0"
    with pytest.raises(ValueError, match="no edits yet"):
        dashboard.undo()
    dashboard.edit().wait()
    assert [edit.layer for edit in dashboard.edits] == ["0"]
    assert dashboard.layers.edited == ("0",)
    first = dashboard.model
    dashboard.rectify().wait()
    assert dashboard.model is not first
    assert len(dashboard.edits) == 2
    dashboard.undo().wait()
    assert dashboard.result is None
    assert torch.equal(dashboard.model[6].bias, first[6].bias)  # type: ignore[index]
    dashboard.undo().wait()
    assert dashboard.edits == []
    assert dashboard.maps.after is None
    assert dashboard.predictions.after is None
    assert "Took back the edit of 0" in dashboard.status


def test_save_needs_edits(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard = make()
    with pytest.raises(ValueError, match="no edits yet"):
        dashboard.save(tmp_path / "fix.safetensors")
    saved: list[Any] = []
    monkeypatch.setattr(actions, "save_edits", lambda edits, path: saved.append((edits, path)))
    dashboard.edit().wait()
    assert dashboard.save(str(tmp_path / "fix.safetensors")).wait() == tmp_path / "fix.safetensors"
    assert saved[0][0] == dashboard.edits
    assert dashboard.status == "Saved 1 edit to fix.safetensors."


def test_what_the_engine_raises_is_raised_kept_and_shown(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("reference: got <nothing>")

    dashboard = make()
    monkeypatch.setattr(actions, "localize", fail)
    job = dashboard.locate()
    with pytest.raises(ValueError, match="got <nothing>"):
        job.wait()
    assert isinstance(dashboard.error, ValueError)
    assert "got &lt;nothing&gt;" in texts(dashboard)
    assert dashboard.status == "Locate: failed"
    assert not dashboard.busy
    dashboard.edit().wait()
    assert dashboard.error is None
    assert "nothing" not in texts(dashboard)


def test_a_click_shows_what_a_method_would_raise(make: Make) -> None:
    dashboard = make()
    dashboard._press("undo")
    assert "no edits yet" in texts(dashboard)
    assert isinstance(dashboard.error, ValueError)


def test_buttons_say_what_can_be_done(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard = make()
    buttons = dashboard._controls.buttons
    state: list[dict[str, bool]] = []

    def look(*_: object, **options: Any) -> Localization:
        state.append({name: button.disabled for name, button in buttons.items()})
        with pytest.raises(RuntimeError, match="Locate is under way"):
            dashboard.rectify()
        return fake_localization(*_, **options)

    monkeypatch.setattr(actions, "localize", look)
    idle = {"rectify": False, "locate": False, "edit": False, "undo": True, "cancel": True}
    assert {name: button.disabled for name, button in buttons.items()} == idle
    buttons["locate"].click()
    assert state == [{name: name != "cancel" for name in buttons}]
    buttons["rectify"].click()
    assert {name: b.disabled for name, b in buttons.items()} == idle | {"undo": False}
    buttons["undo"].click()
    assert {name: button.disabled for name, button in buttons.items()} == idle
    assert dashboard.cancel() is None


def test_traits_of_the_viewers_are_linked(make: Make) -> None:
    dashboard = make()
    dashboard.index = 2
    assert (dashboard.maps.index, dashboard.predictions.index) == (2, 2)
    dashboard.maps.samples.value = 1
    assert dashboard.index == 1
    assert "sample 1" in texts(dashboard)
    dashboard.layer = "0"
    assert dashboard.layers.layer == "0"
    assert dashboard.maps.layer == "0"
    dashboard.layers._rows["6"].click()
    assert dashboard.layer == "6"
    assert dashboard.maps.layer is None, "a linear layer has no Grad-CAM"
    seen: list[Any] = []
    dashboard.observe(lambda change: seen.append(change["new"]), names="scores")
    dashboard.locate().wait()
    assert seen == [SCORES]
    for name in ("scores", "result", "status", "progress", "error", "busy"):
        with pytest.raises(traitlets.TraitError):
            setattr(dashboard, name, getattr(dashboard, name))


def test_examples_are_looked_at_but_never_used(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def watch(model: object, given: SamplePairs, **options: Any) -> Localization:
        used.append(len(given))
        return fake_localization(model, given, **options)

    monkeypatch.setattr(actions, "localize", watch)
    dashboard = make(pairs=pairs(1), examples=pairs(5)[1:])
    assert dashboard.maps.samples.max == 4
    dashboard.index = 4
    dashboard.locate().wait()
    assert used == [1]


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_degredation": 0.1}, TypeError, "did you mean 'max_degradation'"),
    ({"referense": None}, TypeError, "did you mean 'reference'"),
    ({"model": print}, TypeError, "torch.nn.Module"),
    ({"pairs": [1]}, TypeError, "SamplePairs"),
    ({"examples": [1]}, TypeError, "SamplePairs"),
    ({"examples": SamplePairs(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))}, ValueError, "8"),
    ({"method": "trail"}, ValueError, "did you mean 'trial'"),
    ({"attribution": "saliancy"}, ValueError, "did you mean 'saliency'"),
    ({"strategy": "dynamik"}, ValueError, "did you mean 'dynamic'"),
    ({"max_rounds": 0}, ValueError, "at least 1"),
    ({"max_degradation": 2.0}, ValueError, "0.0 to 1.0"),
    ({"target_gap": "small"}, TypeError, "target_gap"),
    ({"classes": "abc"}, TypeError, "list of class names"),
    ({"seed": -1}, ValueError, "seed"),
    ({"mean": [0.5, 0.5]}, ValueError, "one a channel"),
    ({"std": 0.5}, TypeError, "std"),
    ({"session": "thread"}, TypeError, "Session"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_bad_arguments_are_named(
    make: Make, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    before = threading.active_count()
    with pytest.raises(kind, match=message):
        make(**options)
    assert threading.active_count() == before


def test_bad_traits_are_named_and_refused(make: Make) -> None:
    dashboard = make()
    with pytest.raises(ValueError, match="0 to 3"):
        dashboard.index = 4
    with pytest.raises(ValueError, match=r"layer: '33' is unknown \(did you mean '3'"):
        dashboard.layer = "33"
    with pytest.raises(ValueError, match="did you mean 'occlusion'"):
        dashboard.maps.method = "oclusion"
    with pytest.raises(ValueError, match="opacity"):
        dashboard.maps.opacity = 1.5
    assert (dashboard.index, dashboard.layer) == (0, None)


def test_repr_is_short_and_says_the_status(make: Make) -> None:
    assert repr(make()).startswith("RectificationDashboard(Ready")


# -- static views ---------------------------------------------------------------------------------


def test_the_snapshot_is_plain_html(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    dashboard = make(classes=["<ape>", "bee", "cat"])
    dashboard.rectify().wait()
    dashboard.snapshot()
    page = dashboard.static_html()
    assert "application/vnd.jupyter.widget" not in page
    assert "<script" not in page
    assert "<ape>" not in page
    assert "http" not in re.sub('"data:[^"]*"', "", page)
    for piece in ("★ best", "✓ kept", "map of the clean input, after", "Target reached"):
        assert piece in page
    images = re.findall("<img [^>]*>", page)
    assert all(' alt="' in image and " width=" in image for image in images)
    assert len(page) < 100_000


def test_snapshots_before_anything_is_scored(make: Make) -> None:
    assert "Not scored yet" in make().static_html()


# -- the viewers alone ----------------------------------------------------------------------------


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(synchronous=True)
    yield made
    made.close()


def test_attribution_viewer_of_plain_inputs(session: Session) -> None:
    viewer = AttributionViewer(
        network(), torch.rand(3, 1, 9, 9), session=session, method="saliency"
    )
    html = texts(viewer)
    assert "saliency map of the input input" not in html
    assert "Clean" not in html
    assert "class " in html
    viewer.close()


def test_maps_are_cached_and_the_cache_is_bounded(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rectify_widgets import explain
    from rectify_widgets.widgets import attribution

    calls: list[int] = []
    real = explain.attribute

    def count(model: nn.Module, inputs: Tensor, **options: Any) -> Tensor:
        calls.append(len(inputs))
        return real(model, inputs, **options)

    monkeypatch.setattr(attribution, "attribute", count)
    monkeypatch.setattr(attribution, "CACHED", 3)
    viewer = AttributionViewer(network(), pairs(5), session=session, method="saliency")
    for index in (1, 0, 1, 0):
        viewer.index = index
    assert calls == [2, 2]
    viewer.opacity = 0.3
    viewer.signed = False
    assert len(calls) == 2, "a new look needs no new maps"
    for index in (2, 3, 4, 0):
        viewer.index = index
    assert len(calls) == 6
    viewer.after = network()
    assert len(calls) == 7, "the maps before the edit are still good"
    viewer.close()


def test_grad_cam_follows_the_layer(session: Session) -> None:
    viewer = AttributionViewer(network(), pairs(), session=session, method="grad-cam", layer="0")
    first = texts(viewer)
    viewer.layer = "3"
    assert texts(viewer) != first
    with pytest.raises(ValueError, match="no module 'x'"):
        viewer.layer = "x"
    viewer.layer = "6"
    assert isinstance(viewer.error, ValueError)
    assert "name a convolution" in texts(viewer)
    viewer.layer = None
    assert viewer.error is None
    viewer.close()


def test_a_target_is_explained_for_every_input(session: Session) -> None:
    viewer = AttributionViewer(
        network(), pairs(), session=session, target=2, classes=["ape", "bee", "cat"]
    )
    assert texts(viewer).count(">for cat<") == 2
    viewer.target = 7
    assert "0 to 2" in texts(viewer)
    viewer.close()


def test_editability_viewer_of_a_localization(session: Session) -> None:
    found = fake_localization(None, None, method="trial", progress=lambda *_: None)
    viewer = EditabilityViewer(found, session=session)
    assert viewer.layer == "3"
    assert "a layer of no use" in texts(viewer)
    with pytest.raises(ValueError, match="cannot be edited: a layer of no use"):
        viewer.layer = "9"
    with pytest.raises(ValueError, match="want a model"):
        viewer.locate()
    viewer.close()


def test_rows_carry_length_sign_and_number() -> None:
    rules = row_rules("rw-e1", LAYERS, SCORES, ["0"])
    assert len(rules) == 3
    best = next(rule for rule in rules if "★" in rule)
    assert "--a: 11.1%; --b: 100.0%" in best
    assert '"● 0.20"' in rules[0]
    assert '"−0.10"' in rules[2]
    assert "--a: 0.0%; --b: 11.1%" in rules[2]
    assert row_rules("rw-e1", LAYERS, {}, []) == []
    assert shorten("short") == "short"
    long = "features.denseblock4.denselayer16.conv2"
    assert len(shorten(long)) == 26
    assert shorten(long).endswith("denselayer16.conv2"[-17:])


def test_prediction_viewer_without_labels_gives_no_verdict(session: Session) -> None:
    viewer = PredictionViewer(network(), None, torch.rand(2, 1, 9, 9), session=session)
    html = texts(viewer)
    assert "✓" not in html
    assert "●" in html
    viewer.close()


def test_prediction_viewer_judges_by_labels(session: Session) -> None:
    model = network().eval()
    x = torch.rand(3, 1, 9, 9)
    labels = model(x).argmax(dim=1)
    viewer = PredictionViewer(model, model, x, labels=labels, session=session)
    assert viewer.share_right("Input") == [1.0, 1.0]
    with pytest.raises(ValueError, match="labels"):
        PredictionViewer(model, None, x, labels=labels[:2], session=session)
    viewer.close()


# -- in the background ----------------------------------------------------------------------------


def test_cancel_and_latest_wins_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(model: object, given: object, **options: Any) -> Rectification:
        for step in range(1000):
            options["progress"](step / 1000, f"step {step}")
            if options["cancel"]():
                raise Cancelled("cancelled")
            time.sleep(0.005)
        raise AssertionError("never cancelled")

    monkeypatch.setattr(actions, "rectify", slow)
    dashboard = RectificationDashboard(network(), pairs(), attribution="saliency")
    job = dashboard.rectify()
    for index in (1, 2, 3):
        dashboard.index = index
    view = dashboard.job
    assert view is not None
    view.wait(5)
    assert "sample 3" in texts(dashboard.maps), "a sample is shown while the work goes on"
    assert not job.done
    start = time.monotonic()
    assert dashboard.cancel() is job
    with pytest.raises(Cancelled):
        job.wait(5)
    assert time.monotonic() - start < 0.3
    assert not dashboard.busy
    assert dashboard.status == "Rectify: cancelled"
    assert dashboard.error is None
    assert dashboard.progress == 0.0
    dashboard.close()


def test_closing_frees_threads_widgets_and_models() -> None:
    def open_and_close() -> weakref.ref[nn.Module]:
        model = network()
        dashboard = RectificationDashboard(model, pairs(), attribution="saliency")
        dashboard.rectify().wait()
        dashboard.close()
        return weakref.ref(model)

    open_and_close()
    gc.collect()
    threads = threading.active_count()
    widgets = len(ipw.widget._instances)
    models = [open_and_close() for _ in range(10)]
    gc.collect()
    assert threading.active_count() == threads
    assert len(ipw.widget._instances) == widgets
    assert [reference() for reference in models] == [None] * 10
