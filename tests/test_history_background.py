"""`HistoryViewer` with a worker: scrubbing beside long work, latest wins, and its end."""

from __future__ import annotations

import gc
import threading
import weakref

from torch import nn

from rectify_widgets.widgets.history.viewer import HistoryViewer
from rectify_widgets.widgets.session import Job, Session
from tests.test_history_viewer import bits, rectification, same


def test_scrubbing_while_something_long_is_under_way() -> None:
    session = Session()
    viewer = HistoryViewer(rectification(), session=session)
    assert session.latest is not None
    session.latest.wait(20)
    asked, go_on = threading.Event(), threading.Event()

    def long(job: Job[str]) -> str:
        asked.set()
        while not go_on.wait(0.005):
            job.check()
        return "undisturbed"

    work = session.submit(long, label="long")
    assert asked.wait(20)
    for step in (2, 1, 2, 1):
        viewer.step = step
    assert viewer.job is not None
    viewer.job.wait(20)
    assert viewer.model is not None
    assert same(viewer.model, bits(rectification().at(1)))
    assert not work.done
    go_on.set()
    assert work.wait(20) == "undisturbed"
    viewer.close()
    session.close()


def test_the_latest_step_wins() -> None:
    session = Session()
    seen: list[nn.Module | None] = []
    viewer = HistoryViewer(rectification(), session=session)
    viewer.settle()
    viewer.observe(lambda change: seen.append(change["new"]), names=["model"])
    hold = threading.Event()
    session.submit(lambda _: hold.wait(20), short=True)
    jobs = []
    for step in (2, 1, 2, 1):
        viewer.step = step
        jobs.append(viewer.job)
    hold.set()
    last = jobs[-1]
    assert last is not None
    last.wait(20)
    assert len(seen) == 1
    assert seen[0] is viewer.model
    assert [job is not None and job.was_cancelled for job in jobs] == [True, True, True, False]
    viewer.close()
    session.close()


def test_closing_frees_the_models() -> None:
    result = rectification()
    viewer = HistoryViewer(result)
    viewer.settle()
    viewer.step = 1
    viewer.settle()
    models = [weakref.ref(model) for model in viewer._models.values()]
    owner = weakref.ref(result)
    viewer.close()
    del result
    gc.collect()
    assert len(models) == 2
    assert [model() for model in models] == [None, None]
    assert owner() is None
    assert (viewer.model, viewer.edits) == (None, [])
