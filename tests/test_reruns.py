"""A cell that is run again, in a real kernel: its earlier widget goes, one that is in use stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

SETUP = """
import gc, json, sys, threading, time, weakref
import asyncio, comm, ipywidgets as ipw, torch, traitlets
from IPython.display import display
import rectify_widgets as rw
from tests.widget_fakes import network, pairs

torch.set_num_threads(1)
models = []

def model():
    one = network()
    models.append(weakref.ref(one))
    return one

def dashboard():
    given = pairs()
    return rw.RectificationDashboard(model(), given, reference=given.clean, attribution="saliency")

def viewer(**options):
    return rw.AttributionViewer(model(), pairs(), method="saliency", **options)

def painter():
    return rw.MaskPainter(pairs().clean, model=model())

def until_cancelled(job):
    while not job.cancelled():
        time.sleep(0.01)

def counts():
    gc.collect()
    return {
        "widgets": len(ipw.widget._instances),
        "comms": len(comm.get_comm_manager().comms),
        "threads": sum(one.name == "rectify-widgets" for one in threading.enumerate()),
        "models": sum(one() is not None for one in models),
    }
"""


class Notebook:
    """Cells by name; one that is run again has the same identity, as in a front end."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client

    def run(self, cell: str | None, code: str) -> str:
        """Run a cell, or code of no cell; returns what it prints and displays as text."""
        content = {
            "code": code, "silent": False, "store_history": True, "user_expressions": {},
            "allow_stdin": False, "stop_on_error": True,
        }  # fmt: skip
        message: dict[str, Any] = self.client.session.msg(
            "execute_request", content, metadata={} if cell is None else {"cellId": cell}
        )
        self.client.shell_channel.send(message)
        printed = ""
        while True:
            answer = self.client.get_iopub_msg(timeout=60)
            if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            found = answer["content"]
            if answer["msg_type"] == "stream":
                printed += found["text"]
            if answer["msg_type"] in ("display_data", "execute_result"):
                printed += found["data"]["text/plain"]
            if answer["msg_type"] == "error":
                printed += found["ename"]
            if answer["msg_type"] == "status" and found["execution_state"] == "idle":
                return printed

    def counts(self) -> dict[str, int]:
        """What there is now."""
        found: dict[str, int] = json.loads(self.run(None, "print(json.dumps(counts()))"))
        return found

    def hooked(self) -> bool:
        """Whether something looks at the cells that are run."""
        hooks = self.says("get_ipython().events.callbacks['post_run_cell']")
        return "reruns" in hooks or "_after_cell" in hooks

    def says(self, expression: str) -> str:
        """Value of an expression, evaluated beside the cells."""
        return self.run(None, f"print({expression})").strip()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Notebook]:
    manager, client = start_new_kernel(startup_timeout=60)
    try:
        found = Notebook(client)
        assert not found.run(None, SETUP)
        yield found
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def notebook(kernel: Notebook) -> Notebook:
    """The kernel with no widget and an empty history."""
    kernel.run(None, "ipw.Widget.close_all()")
    kernel.run(None, "%reset_selective -f ^(kept|w)$")
    kernel.run(None, "%reset -f out")
    kernel.run(None, "models.clear()")
    return kernel


CODES = (
    "viewer()",
    "w = viewer()\nw",
    "display(viewer())",
    "w = viewer()",
    "w = painter()\nw.settle()\nw",
)


def test_a_dashboard_that_is_run_ten_times(notebook: Notebook) -> None:
    notebook.run("a", "dashboard()")
    once = notebook.counts()
    assert once["models"] == 1
    for _ in range(9):
        assert "RectificationDashboard" in notebook.run("a", "dashboard()")
    assert notebook.counts() == once
    assert "RectificationDashboard" in notebook.says("Out[min(Out)]"), "what the history still has"


@pytest.mark.parametrize("code", CODES)
def test_what_was_replaced_goes(notebook: Notebook, code: str) -> None:
    notebook.run("a", code)
    once = notebook.counts()
    for _ in range(2):
        notebook.run("a", code)
    assert notebook.counts() == once
    assert once["models"] == 1


LEADS_EVERYWHERE = {
    "exception": "try: ipw.IntSlider(value='x')\nexcept traitlets.TraitError as e: kept = e",
    "loop": "kept = asyncio.get_running_loop()",
    "task": "kept = asyncio.ensure_future(asyncio.sleep(60))",
    "shell": "kept = [get_ipython(), get_ipython().kernel, get_ipython().displayhook]",
    "module": "kept = [sys.modules, ipw, ipw.IntSlider, ipw.IntSlider(), rw]",
    "kernel": "kept = (comm.get_comm_manager(), sys.stdout, threading.enumerate())",
}


@pytest.mark.parametrize("code", LEADS_EVERYWHERE.values(), ids=LEADS_EVERYWHERE)
def test_what_leads_to_everything_keeps_nothing(notebook: Notebook, code: str) -> None:
    notebook.run("a", "w = viewer()\nw")
    assert not notebook.run("b", code)
    once = notebook.counts()
    notebook.run("a", "w = viewer()\nw")
    assert notebook.counts() == once


STILL_TO_BE_CALLED = {
    "loop": "kept = asyncio.get_running_loop()\nkept.call_later(3600, w.settle)",
    "job": "kept = w.session.submit(until_cancelled)\nkept.call(w.settle)",
}


@pytest.mark.parametrize("code", STILL_TO_BE_CALLED.values(), ids=STILL_TO_BE_CALLED)
def test_what_is_still_to_be_called_keeps_nothing(notebook: Notebook, code: str) -> None:
    notebook.run("a", "w = viewer()\nw")
    notebook.run(None, "old = weakref.ref(w)")
    notebook.run("a", f"{code}\nw = viewer()\nw")
    assert notebook.says("old() is None or old().comm is None") == "True"


def test_work_under_way_is_cancelled(notebook: Notebook) -> None:
    code = "w = viewer()\nstarted.append(w.session.submit(until_cancelled))\nw"
    notebook.run(None, "started = []")
    for _ in range(2):
        notebook.run("a", code)
    notebook.run(None, "until = time.monotonic() + 20")
    notebook.run(None, "while not started[0].done and time.monotonic() < until: time.sleep(0.01)")
    assert notebook.says("[job.done for job in started]") == "[True, False]"
    assert notebook.counts()["threads"] == 1


DROP = "del kept"
UNNAMED = "\nkept = kept.model_id"
CLOSED = "ipw.widget._instances[kept].close()"
USES = {
    "name": ("kept = w", DROP),
    "containers": ("kept = [{'it': (w,)}]", DROP),
    "attribute": ("class Kept: pass\nkept = Kept()\nkept.it = w", DROP),
    "closure": ("kept = (lambda it: lambda: it)(w)", DROP),
    "method": ("kept = w.settle", DROP),
    "part": ("kept = w.canvas", DROP),
    "link": ("kept = ipw.IntSlider()\ntraitlets.link((kept, 'value'), (w, 'index'))", DROP),
    "shared worker": ("kept = viewer(session=w.session)", "kept.close()\ndel kept"),
    "box": (f"kept = ipw.VBox([w])\ndisplay(kept){UNNAMED}", CLOSED),
    "output": (f"kept = ipw.Output()\nkept.append_display_data(w){UNNAMED}", CLOSED),
    "displayed elsewhere": ("w", ""),
}


@pytest.mark.parametrize(("use", "drop"), USES.values(), ids=USES)
def test_what_is_in_use_stays(notebook: Notebook, use: str, drop: str) -> None:
    notebook.run("a", "w = viewer()\nw")
    notebook.run(None, "old = weakref.ref(w)")
    notebook.run("b", use)
    for _ in range(2):
        assert notebook.run("a", "w = viewer()\nw")
        assert notebook.says("old().comm is not None and not old().session.closed") == "True"
    notebook.run("b", drop)  # instead of what it was
    notebook.run("a", "w = viewer()\nw")
    assert notebook.says("old() is None or old().comm is None") == "True"


def test_a_part_that_is_displayed_elsewhere_keeps_the_whole(notebook: Notebook) -> None:
    notebook.run("a", "w = dashboard()\nw")
    notebook.run(None, "old = weakref.ref(w)")
    notebook.run("b", "w.maps")
    notebook.run("a", "w = dashboard()\nw")
    assert notebook.says("old().comm is not None and not old().session.closed") == "True"
    notebook.run("b", "w.maps")
    assert notebook.says("old() is None or old().comm is None") == "True"


def test_a_cell_that_fails_loses_nothing(notebook: Notebook) -> None:
    notebook.run("a", "w = viewer()\nw")
    notebook.run(None, "old = weakref.ref(w)")
    assert "ValueError" in notebook.run("a", "w = viewer(opacity=7)\nw")
    assert notebook.says("old() is w and w.comm is not None") == "True"
    assert "ZeroDivisionError" in notebook.run("a", "w = viewer()\n1 / 0")
    assert notebook.says("old() is None or old().comm is None") == "True"


def test_nothing_is_closed_where_the_front_end_names_no_cell(notebook: Notebook) -> None:
    before = notebook.counts()
    notebook.run(None, "viewer()")
    once = notebook.counts()
    notebook.run(None, "viewer()")
    after = notebook.counts()
    assert before["models"] == 0
    assert {what: after[what] - once[what] for what in once} == once
    assert not notebook.hooked()


def test_the_hook_goes_with_the_last_panel(notebook: Notebook) -> None:
    assert not notebook.hooked()
    notebook.run("a", "w = viewer(), viewer()")
    notebook.run("b", "w[0].close()")
    assert notebook.hooked()
    notebook.run("b", "w[1].close()")
    assert not notebook.hooked()
