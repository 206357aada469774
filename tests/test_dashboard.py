"""The dashboard and its viewers by their traits, with the synchronous session and a fake engine."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import traitlets
from torch import nn

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.repair.measuring import EditMeasure
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.widgets import actions
from rectify_widgets.widgets.dashboard import workshop
from rectify_widgets.widgets.dashboard.dashboard import RectificationDashboard
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import (
    SCORES,
    FakeEdit,
    fake_localization,
    fake_rectification,
    network,
    pairs,
    texts,
)


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "localize", fake_localization)
    monkeypatch.setattr(workshop, "rectify", fake_rectification)
    monkeypatch.setattr(
        workshop, "solve_edit", lambda model, given, *, layer, **rest: FakeEdit(layer or "3")
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


# -- the dashboard --------------------------------------------------------------------------------


def test_it_shows_maps_and_predictions_at_once(make: Make) -> None:
    dashboard = make(classes=["ape", "bee", "cat"])
    html = texts(dashboard)
    assert html.count("map of the corrupted input") == 1
    assert html.count("map of the clean input") == 1
    assert "Clean input" in html
    assert "bee" in html
    assert dashboard.status.startswith("Ready")
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
    assert "too costly" in html
    assert "After, %" in html
    assert html.count("map of the corrupted input, after") == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rows = dashboard.predictions.share_right("Clean")
    assert len(rows) == 2


def test_edit_undo_and_redo(make: Make) -> None:
    dashboard = make()
    dashboard.layer = "0"
    with pytest.raises(ValueError, match="there is no edit to take back"):
        dashboard.undo()
    revision = dashboard.edit().wait()
    assert [edit.layer for edit in dashboard.edits] == ["0"]
    assert dashboard.layers.edited == ("0",)
    assert dashboard.model is revision.model
    assert "Edited 0: gap" in dashboard.status
    assert dashboard.layers.measured.keys() == {"0"}
    first = dashboard.model
    dashboard.rectify().wait()
    assert dashboard.model is not first
    assert [edit.layer for edit in dashboard.edits] == ["0", "3"]
    with pytest.raises(ValueError, match="last step"):
        dashboard.redo()
    assert dashboard.progress == 1.0
    assert dashboard.undo().wait() is first
    assert dashboard.progress == 0.0, "that was the progress of the rectification"
    assert dashboard.model is dashboard.maps.after is dashboard.predictions.after is first
    dashboard.undo().wait()
    assert dashboard.edits == []
    assert dashboard.maps.after is None
    assert dashboard.predictions.after is None
    assert dashboard.redo().wait() is first


def test_the_history_is_scrubbed_in_all_views_at_once(make: Make) -> None:
    dashboard = make()
    for layer in ("0", "3", "6"):
        dashboard.layer = layer
        dashboard.edit().wait()
    biases = []
    for step in (0, 1, 2, 3):
        dashboard.history.step = step
        assert len(dashboard.edits) == step
        assert dashboard.maps.after is dashboard.predictions.after is dashboard.history.model
        assert dashboard.layers.edited == ("0", "3", "6")[:step]
        biases.append(dashboard.model[6].bias[2].item())  # type: ignore[index]
    assert [bias - biases[0] for bias in biases] == pytest.approx([0, 10, 20, 30], abs=1e-4)


def test_an_edit_of_an_earlier_step_begins_a_branch(make: Make) -> None:
    dashboard = make()
    for layer in ("0", "3"):
        dashboard.layer = layer
        dashboard.edit().wait()
    dashboard.history.step = 1
    dashboard.layer = "6"
    dashboard.edit().wait()
    assert [edit.layer for edit in dashboard.edits] == ["0", "6"]
    assert dashboard.history.branch == 1
    dashboard.history.branch = 0
    assert [edit.layer for edit in dashboard.edits] == ["0", "3"]


def test_edits_go_where_their_work_began(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrubbing while a rectification runs does not move its edits to another version."""
    dashboard = make()
    dashboard.layer = "0"
    dashboard.edit().wait()

    def scrub(*given: Any, **options: Any) -> Rectification:
        dashboard.history.step = 0
        return fake_rectification(*given, **options)

    monkeypatch.setattr(workshop, "rectify", scrub)
    dashboard.rectify().wait()
    assert [edit.layer for edit in dashboard.edits] == ["0", "3"]
    assert dashboard.history.step == 2


def test_every_version_is_measured_against_the_model_as_given(make: Make) -> None:
    dashboard = make()
    dashboard.edit().wait()
    dashboard.rectify().wait()
    gaps = [version.gap for version in dashboard.history.timeline.path]
    assert all(gap is not None and 0 <= gap <= 1 for gap in gaps)
    assert len(gaps) == 3
    models = [dashboard.bench.workshop.edited(dashboard.edits[:count]) for count in range(3)]
    measure = EditMeasure(network(), pairs(), None)
    assert gaps == pytest.approx([measure.measure(model).gap for model in models])


def test_save_needs_edits(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard = make()
    with pytest.raises(ValueError, match="there are no edits"):
        dashboard.save(tmp_path / "fix.safetensors")
    saved: list[Any] = []
    goal = "rectify_widgets.widgets.history.viewer.save_edits"
    monkeypatch.setattr(goal, lambda *given: saved.append(given))
    dashboard.edit().wait()
    assert dashboard.save(str(tmp_path / "fix.safetensors")).wait() == tmp_path / "fix.safetensors"
    assert saved[0][0] == dashboard.edits
    assert "Saved 1 edit to fix.safetensors" in dashboard.status
    monkeypatch.chdir(tmp_path)
    dashboard.file = "other.safetensors"
    dashboard._controls.buttons["save"].click()
    assert saved[1][1] == Path("other.safetensors")


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


def test_a_click_shows_what_a_method_would_raise(make: Make) -> None:
    dashboard = make()
    dashboard.press(dashboard.undo)
    assert "no edit to take back" in texts(dashboard)
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

    def off() -> set[str]:
        return {name for name, button in buttons.items() if button.disabled}

    assert off() == {"undo", "redo", "cancel", "save"}
    buttons["locate"].click()
    assert state == [{name: name != "cancel" for name in buttons}]
    assert buttons["rectify"].button_style == "primary"
    buttons["rectify"].click()
    assert off() == {"redo", "cancel"}
    assert [name for name in buttons if buttons[name].button_style] == ["save"], "the next step"
    buttons["undo"].click()
    assert off() == {"undo", "cancel", "save"}
    buttons["redo"].click()
    assert off() == {"redo", "cancel"}
    assert dashboard.cancel() is None


def test_traits_of_the_viewers_are_linked(make: Make) -> None:
    dashboard = make()
    dashboard.index = 2
    assert dashboard.maps.index == dashboard.predictions.index == 2
    dashboard.maps.samples.slider.value = 2
    assert dashboard.index == 1
    assert "sample 2" in texts(dashboard)
    dashboard.layer = "0"
    assert dashboard.layers.layer == "0"
    assert dashboard.maps.layer == "0"
    dashboard.layers.canvas.act({"set": {"layer": "6"}})
    assert dashboard.layer == "6"
    assert dashboard.maps.layer is None, "a linear layer has no Grad-CAM"
    seen: list[Any] = []
    dashboard.observe(lambda change: seen.append(change["new"]), names=["scores", "model"])
    dashboard.locate().wait()
    assert seen == [SCORES]
    revision = dashboard.edit().wait()
    dashboard.undo().wait()
    assert seen[1:] == [revision.model, dashboard._original]
    for name in ("scores", "result", "model", "status", "progress", "error", "busy"):
        with pytest.raises(traitlets.TraitError):
            setattr(dashboard, name, getattr(dashboard, name))


def test_wrapped_models_keep_their_layer_names(make: Make) -> None:
    dashboard = make(model=nn.DataParallel(network()))
    dashboard.locate().wait()
    assert dashboard.maps.layer == "3"
    dashboard.maps.method = "grad-cam"
    dashboard.edit().wait()
    assert dashboard.error is None
    assert "Sequential" in texts(dashboard)


def test_examples_are_looked_at_but_never_used(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def watch(model: object, given: SamplePairs, **options: Any) -> Localization:
        used.append(len(given))
        return fake_localization(model, given, **options)

    monkeypatch.setattr(actions, "localize", watch)
    dashboard = make(pairs=pairs(1), examples=pairs(5)[1:])
    assert dashboard.maps.samples.slider.max == 5
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
    ({"refine_steps": -1}, ValueError, "at least 0"),
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


def test_repr_is_short_and_does_not_depend_on_how_far_work_is(make: Make) -> None:
    dashboard = make()
    before = repr(dashboard)
    dashboard.rectify().wait()
    assert repr(dashboard) == before == "RectificationDashboard(Sequential, 4 pairs)"


# -- static views ---------------------------------------------------------------------------------


def test_the_snapshot_is_plain_html(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    dashboard = make(classes=["<ape>", "bee", "cat"])
    assert "Not scored yet" in dashboard.still()
    dashboard.rectify().wait()
    dashboard.snapshot()
    page = dashboard.still()
    assert "application/vnd.jupyter.widget" not in page
    assert "<script" not in page
    assert "<ape>" not in page
    assert "http" not in re.sub('"data:[^"]*"', "", page)
    for piece in ("★ scores best", "too costly", "map of the clean input, after", "Target reached"):
        assert piece in page
    images = re.findall("<img [^>]*>", page)
    assert all(' alt="' in image and " width=" in image for image in images)
    assert len(page) < 100_000


# -- in the background ----------------------------------------------------------------------------


def test_cancel_and_latest_wins_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(model: object, given: object, **options: Any) -> Rectification:
        for step in range(1000):
            options["progress"](step / 1000, f"step {step}")
            if options["cancel"]():
                raise Cancelled("cancelled")
            time.sleep(0.005)
        raise AssertionError("never cancelled")

    monkeypatch.setattr(workshop, "rectify", slow)
    dashboard = RectificationDashboard(network(), pairs(), attribution="saliency")
    job = dashboard.rectify()
    for index in (1, 2, 3):
        dashboard.index = index
    view = dashboard.job
    assert view is not None
    view.wait(5)
    assert "sample 4" in texts(dashboard.maps), "a sample is shown while the work goes on"
    assert not job.done
    start = time.monotonic()
    assert dashboard.cancel() is job
    with pytest.raises(Cancelled):
        job.wait(5)
    assert time.monotonic() - start < 0.3
    assert (dashboard.busy, dashboard.progress) == (False, 0.0)
    assert (dashboard.status, dashboard.error) == ("Rectify: cancelled", None)
    dashboard.close()
