"""Locate and Cancel in the editability viewer alone: progress, errors in place, earlier scores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as ipw
import pytest

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.widgets import actions
from rectify_widgets.widgets.editability.viewer import EditabilityViewer
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import SCORES, fake_localization, network, pairs, texts

Make = Callable[..., EditabilityViewer]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(actions, "localize", fake_localization)
    made: list[EditabilityViewer] = []

    def build(**options: Any) -> EditabilityViewer:
        options = {"session": Session(synchronous=True)} | options
        made.append(EditabilityViewer(network(), pairs(), **options))
        return made[-1]

    yield build
    for viewer in made:
        viewer.close()


def widgets(viewer: ipw.Widget) -> list[ipw.Widget]:
    return [viewer, *(w for child in getattr(viewer, "children", ()) for w in widgets(child))]


def button(viewer: ipw.Widget, text: str) -> ipw.Button:
    (found,) = (w for w in widgets(viewer) if getattr(w, "description", "") == text)
    return found


def test_errors_are_shown_in_place(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = make()
    viewer.locate().wait()

    def fail(*_: object, **__: object) -> None:
        raise ValueError("reference: got <nothing>")

    monkeypatch.setattr(actions, "localize", fail)
    with pytest.raises(ValueError, match="got <nothing>"):
        viewer.locate("trial").wait()
    assert "got &lt;nothing&gt;" in texts(viewer)
    assert (viewer.status, viewer.busy, viewer.progress) == ("Locate: failed", False, 0.0)
    assert dict(viewer.scores) == SCORES, "earlier scores stay"
    assert viewer.method == "edit-attribution"
    monkeypatch.setattr(actions, "localize", fake_localization)
    viewer.locate().wait()
    assert viewer.error is None
    assert "nothing" not in texts(viewer)
    assert viewer.cancel() is None


def test_progress_and_cancel_while_it_runs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()

    def slow(*_: object, progress: Any, cancel: Any, **__: object) -> None:
        progress(0.4, "solving conv")
        started.set()
        while not cancel():
            time.sleep(0.005)
        raise Cancelled("cancelled")

    monkeypatch.setattr(actions, "localize", slow)
    viewer = make(session=Session())
    locate, cancel = button(viewer, "Locate"), button(viewer, "Cancel")
    assert (locate.disabled, cancel.disabled) == (False, True)
    locate.click()
    assert started.wait(10)
    assert viewer.busy
    assert "solving conv · 40 %" in texts(viewer)
    assert (locate.disabled, cancel.disabled) == (True, False)
    with pytest.raises(RuntimeError, match="Locate is under way"):
        viewer.locate()
    job = viewer.job
    assert job is not None
    begun = time.perf_counter()
    cancel.click()
    with pytest.raises(Cancelled):
        job.wait(10)
    assert time.perf_counter() - begun < 0.3
    assert viewer.status == "Locate: cancelled"
    assert not viewer.busy
    assert viewer.error is None
    assert cancel.disabled
    viewer.session.close()
    with pytest.raises(RuntimeError, match="closed"):
        viewer.locate()
    assert not viewer.busy


def test_viewers_of_one_session_do_not_cancel_each_other(make: Make) -> None:
    session = Session()
    one, other = make(session=session), make(session=session)
    first, second = one.locate(), other.locate()
    first.wait(10)
    second.wait(10)
    assert one.scores == other.scores == SCORES
    session.close()


def test_controls_can_be_left_out(make: Make) -> None:
    viewer = make(controls=False)
    words = [getattr(w, "description", "") for w in widgets(viewer)]
    assert "Locate" not in words
    assert "Method" not in words
    viewer.locate().wait()
    assert dict(viewer.scores) == SCORES
