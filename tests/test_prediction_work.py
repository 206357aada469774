"""What `PredictionViewer` has done in the background: kept, bounded, cancelled, failed, refused."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as ipw
import pytest
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.model import running as inspection
from rectify_widgets.widgets.prediction import data
from rectify_widgets.widgets.prediction import viewer as prediction
from rectify_widgets.widgets.prediction.viewer import PredictionViewer
from rectify_widgets.widgets.session import Session
from tests.prediction_fakes import CLEAN, SWAP, Make, Says, making, samples, saying
from tests.widget_fakes import network, pairs, texts


@pytest.fixture
def make() -> Iterator[Make]:
    with making() as build:
        yield build


# -- keeping what is known ------------------------------------------------------------------------


def test_switching_back_costs_nothing(make: Make) -> None:
    models = [Says(), Says(SWAP), Says((2, 1, 0, 3))]
    viewer = make(models[0])
    calls = []
    for model in (models[1], models[2], None, models[1], models[2], models[1]):
        viewer.after = model
        calls.append([one.calls for one in models])
    assert calls == [[3, 3, 0]] + 5 * [[3, 3, 3]]  # one sample more, to tell the head
    viewer.refresh()
    assert [one.calls for one in models] == [6, 6, 3]
    assert viewer.job is not None
    assert viewer.job.done


def test_refresh_sees_a_model_that_was_changed_in_place(make: Make) -> None:
    model = Says()
    viewer = make(model, inputs=samples(None))
    model.order = list(SWAP)
    viewer.refresh().wait()
    assert viewer.labels is not None
    assert viewer.labels.tolist() == [{0: 1, 1: 0}.get(number, number) for number in CLEAN]


def test_models_are_let_go(make: Make) -> None:
    viewer = make()
    viewer.after = Says(SWAP)
    gone = weakref.ref(viewer.after)
    viewer.after = None
    assert viewer.predict().wait() == []
    gc.collect()
    assert gone() is None
    assert len(viewer._cache._entries) == 1


def test_what_is_kept_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2 * 8 * 4 * 4  # two columns, eight samples, four classes
    monkeypatch.setattr(data, "CACHE_BYTES", 3 * size)
    models = [Says(), *(Says(SWAP) for _ in range(4))]
    viewer = make(models[0])
    for model in models[1:]:
        viewer.after = model
    assert len(viewer._cache._entries) == 3
    assert viewer._cache.get(models[0]) is not None
    assert viewer._cache.get(models[1]) is None
    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    viewer.after = models[1]
    assert len(viewer._cache._entries) == 2, "the two in view always stay"
    assert len(viewer.reports) == 2


def test_closing_frees_models_and_pictures() -> None:
    def open_and_close() -> list[weakref.ref[Any]]:
        model, after = Says(), Says(SWAP)
        viewer = PredictionViewer(model, after, samples(), session=None)
        assert viewer.job is not None
        viewer.job.wait()
        viewer.page = "classes"
        viewer.close()
        return [weakref.ref(model), weakref.ref(after), weakref.ref(viewer)]

    references = open_and_close()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


# -- in the background ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 9, 20, 10_000])
def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(inspection, "CHUNK", chunk)
    model = network().eval()
    x = torch.rand(7, 1, 9, 9, generator=torch.manual_seed(1))
    words: list[str] = []
    found = data.predict(model, {"Input": x}, Monitor(lambda _, said: words.append(said)))
    with torch.no_grad():
        scores = model(x)
    torch.testing.assert_close(torch.from_numpy(found.probabilities["Input"]), scores.softmax(1))
    assert found.classes["Input"].tolist() == scores.argmax(1).tolist()
    assert words[-1] == "7 of 7 inputs"


def test_infinite_scores() -> None:
    class Masks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, -torch.inf, 1.0], [0.0, torch.inf, torch.inf]])

    x = torch.zeros(2, 1, 2, 2)
    found = data.predict(Masks(), {"Input": x}, Monitor())
    assert found.classes["Input"].tolist() == [2, 1]
    assert found.probabilities["Input"][1].tolist() == [0.0, 0.5, 0.5]
    assert found.probabilities["Input"][0, 1] == 0.0


def hidden(widget: ipw.Widget) -> bool:
    return "rw-hidden" in widget._dom_classes


def wait_until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 5
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_long_work_says_how_long_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "CHUNK", 1)
    slow = Says(SWAP, seconds=0.02)
    count = 200
    viewer = PredictionViewer(Says(), None, saying([0] * count))
    assert viewer.job is not None
    viewer.job.wait()
    assert hidden(viewer._waiting)
    monkeypatch.setattr(prediction, "PATIENCE", 0.0)
    viewer.after = slow
    wait_until(lambda: "left" in texts(viewer._waiting))
    assert 0 < viewer.progress < 1
    assert "left" in viewer.status
    assert not hidden(viewer._waiting)
    assert not any(map(hidden, viewer._stop))
    assert hidden(viewer._again)
    start = time.monotonic()
    job = viewer.cancel()
    assert job is not None
    with pytest.raises(Cancelled):
        job.wait(5)
    assert time.monotonic() - start < 0.3
    assert "cancelled" in texts(viewer._waiting)
    assert all(map(hidden, viewer._stop))
    assert not hidden(viewer._again)
    assert viewer.error is None
    assert viewer.counts == {}, "what is known of the model before stays in view"
    assert slow.calls < count
    assert viewer.cancel() is None
    slow.seconds = 0.0
    viewer._again.click()
    assert viewer.job is not None
    viewer.job.wait(5)
    assert hidden(viewer._waiting)
    assert viewer.counts["input"]["changed"] == count
    viewer.close()


def test_the_latest_model_wins() -> None:
    viewer = PredictionViewer(Says(), None, samples())
    for model in (Says(SWAP, 0.05), Says((2, 1, 0, 3), 0.05), Says((3, 1, 2, 0))):
        viewer.after = model
    assert viewer.job is not None
    viewer.job.wait(5)
    assert viewer.flips is not None
    assert set(viewer.flips.after.tolist()) == {0, 3}
    viewer.close()


def test_many_inputs_wait_for_their_turn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    session = Session(synchronous=True)
    real = session.submit

    def note(work: Any, **options: Any) -> Any:
        if options["label"] == prediction.LABEL:
            seen.append(options["short"])
        return real(work, **options)

    monkeypatch.setattr(session, "submit", note)
    viewer = make(session=session)
    monkeypatch.setattr(prediction, "SHORT", 10)
    viewer.after = Says(SWAP)
    viewer.after = None
    assert seen == [True, False, True]


# -- what goes wrong ------------------------------------------------------------------------------


def test_what_a_model_raises_is_kept_and_shown(make: Make) -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise OSError("<out of order>")

    viewer = make(after=Breaks())
    assert isinstance(viewer.error, OSError)
    assert "&lt;out of order&gt;" in texts(viewer)
    assert viewer.status == "Predictions: failed"
    assert len(viewer.reports) == 1
    viewer.page = "flips"
    assert "nothing to compare with" in texts(viewer)
    viewer.after = Says(SWAP)
    assert viewer.error is None
    assert "out of order" not in texts(viewer)
    broken = make(Breaks())
    assert "out of order" in texts(broken)
    assert "Predicting" not in texts(broken)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"labels": torch.tensor([9] * 8)}, "labels: got class numbers from 9 to 9, want 0 to 3"),
    ({"target": 4}, "target: got 4, want a class from 0 to 3"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_only_the_model_can_tell_is_shown(
    make: Make, options: dict[str, Any], message: str
) -> None:
    viewer = make(**options)
    assert message in str(viewer.error)
    assert message in texts(viewer)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"label": [1]}, TypeError, "did you mean 'labels'"),
    ({"before": print}, TypeError, "before: got builtin"),
    ({"after": print}, TypeError, "after: got builtin"),
    ({"inputs": [1]}, TypeError, "want SamplePairs or a tensor"),
    ({"inputs": torch.rand(3, 4)}, ValueError, "N × C × H × W"),
    ({"labels": torch.rand(8)}, TypeError, "whole class numbers"),
    ({"target": 1.5}, TypeError, "target"),
    ({"target": "cat", "classes": None}, ValueError, "without names"),
    ({"target": "cat", "classes": ["cap", "dog"]}, ValueError, "did you mean"),
    ({"target": -1}, ValueError, "target"),
    ({"classes": "abc"}, TypeError, "list of class names"),
    ({"mean": [0.1, 0.2]}, ValueError, "one a channel"),
    ({"std": 1.0}, TypeError, "std"),
    ({"session": "mine"}, TypeError, "session"),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED)
def test_bad_arguments_are_named(
    make: Make, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make(**options)


TRAITS: list[tuple[str, object, str]] = [
    ("index", 8, "0 to 7"),
    ("page", "flip", "did you mean 'flips'"),
    ("filter", "brocken", "did you mean 'broken'"),
    ("column", "input", "'all', 'clean', 'corrupted'"),
    ("sort", "lable", "did you mean 'label'"),
    ("confusion", ("input", 0, 0), "want one of 'clean', 'corrupted'"),
    ("confusion", ("clean", -2, 0), "confusion"),
    ("after", "model", "Module"),
]


@pytest.mark.parametrize(("name", "value", "message"), TRAITS)
def test_bad_traits_are_refused(make: Make, name: str, value: object, message: str) -> None:
    viewer = make(after=Says(SWAP))
    before = getattr(viewer, name)
    with pytest.raises((ValueError, traitlets.TraitError), match=message):
        setattr(viewer, name, value)
    assert getattr(viewer, name) == before


def test_a_closed_viewer_takes_no_more_work(make: Make) -> None:
    viewer = PredictionViewer(Says(), None, pairs())
    viewer.close()
    with pytest.raises(RuntimeError, match="closed"):
        viewer.refresh()
