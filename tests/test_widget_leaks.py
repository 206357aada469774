"""Many of each widget come and go, and leave nothing: no thread, widget, comm, model or memory.

The engine is the real one, on a network of three layers; every widget has its first view drawn by
its own worker before it is closed.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import comm
import ipywidgets as ipw
import pytest
import torch
from torch import nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.widgets.attribution.viewer import AttributionViewer
from rectify_widgets.widgets.dashboard.dashboard import RectificationDashboard
from rectify_widgets.widgets.editability.viewer import EditabilityViewer
from rectify_widgets.widgets.history.viewer import HistoryViewer
from rectify_widgets.widgets.painter.viewer import MaskPainter
from rectify_widgets.widgets.panel import Panel
from rectify_widgets.widgets.prediction.viewer import PredictionViewer
from rectify_widgets.widgets.suspicion.viewer import SuspicionViewer
from tests.widget_fakes import LAYERS, SCORES, network, pairs

COUNT = 20
BATCHES = 4
STATM = Path("/proc/self/statm")
PAGE = 4096

Make = Callable[[nn.Module, SamplePairs], Panel]


pytestmark = pytest.mark.usefixtures("one_thread")


def rectified(model: nn.Module, given: SamplePairs) -> Rectification:
    return rectify(model, given[:1], reference=given.clean, strategy="static", layer="6")


def located() -> Localization:
    return Localization(SCORES, "trial", {}, {}, {"9": "a layer of no use"}, LAYERS)


WIDGETS: dict[str, Make] = {
    "AttributionViewer": lambda model, given: AttributionViewer(model, given, method="saliency"),
    "PredictionViewer": lambda model, given: PredictionViewer(model, network(), given),
    "EditabilityViewer": EditabilityViewer,
    "EditabilityViewer of scores": lambda model, given: EditabilityViewer(located()),
    "MaskPainter": lambda model, given: MaskPainter(given.clean, model=model),
    "SuspicionViewer": lambda model, given: SuspicionViewer(model, given.clean),
    "HistoryViewer": lambda model, given: HistoryViewer(rectified(model, given)),
    "RectificationDashboard": lambda model, given: RectificationDashboard(
        model, given, attribution="saliency"
    ),
    "RectificationDashboard of references": lambda model, given: RectificationDashboard(
        model, reference=given.clean, attribution="saliency"
    ),
    "RectificationDashboard of odd inputs": lambda model, given: RectificationDashboard(
        model, given.corrupted, attribution="saliency"
    ),
}


def worked(model: nn.Module, given: SamplePairs) -> Panel:
    """A dashboard that has scored, repaired and edited."""
    made = RectificationDashboard(
        model, given, reference=given.clean, examples=pairs(2), attribution="saliency",
        validation=(given.clean, torch.arange(4) % 3), clean=(given.clean + 0, torch.arange(4) % 3),
        max_rounds=1, refine_steps=0,
    )  # fmt: skip
    for work in (made.locate, made.rectify, made.edit):
        work().wait()
    return made


def compared(model: nn.Module, given: SamplePairs) -> Panel:
    made = AttributionViewer(model, given, after=network(), method="saliency")
    made.page = "set"
    return made


def tensors() -> set[int]:
    """Identities of all tensors that hold numbers; masks that were painted are a user's work."""
    gc.collect()
    found = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return {id(one) for one in found if one.numel() and one.dtype != torch.bool}


def come_and_go(make: Make) -> tuple[weakref.ref[nn.Module], weakref.ref[torch.Tensor]]:
    model, given = network(), pairs()
    panel = make(model, given)
    panel.settle()
    panel.close()
    return weakref.ref(model), weakref.ref(given.clean)


def state() -> dict[str, int]:
    """What could grow, counted after the rubbish is collected."""
    gc.collect()
    return {
        "threads": threading.active_count(),
        "widgets": len(ipw.widget._instances),
        "comms": len(comm.get_comm_manager().comms),
        "objects": len(gc.get_objects()),
        "bytes": int(STATM.read_text().split()[1]) * PAGE if STATM.exists() else 0,
    }


WITH_TENSORS = {**WIDGETS, "a worked dashboard": worked, "two models' maps": compared}
del WITH_TENSORS["EditabilityViewer of scores"]


@pytest.mark.parametrize("make", WITH_TENSORS.values(), ids=WITH_TENSORS)
def test_a_closed_one_that_is_referred_to_holds_no_tensor(make: Make) -> None:
    gone: Panel = make(network(), pairs())
    gone.settle()
    gone.close()
    before = tensors()
    panel = make(network(), pairs())
    panel.settle()
    assert tensors() - before
    panel.close()
    assert not tensors() - before, panel


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDGETS)
def test_many_come_and_go(name: str) -> None:
    for _ in range(COUNT // BATCHES):  # until the libraries have what they keep
        come_and_go(WIDGETS[name])
    before = state()
    start, gone, memory = before, [], []
    for _ in range(BATCHES):
        gone += [come_and_go(WIDGETS[name]) for _ in range(COUNT // BATCHES)]
        after = state()
        memory.append(after["bytes"] - start["bytes"])
        start = after
    assert all(reference() is None for pair in gone for reference in pair)
    gone.clear()
    after = state()
    growth = {what: after[what] - before[what] for what in before}
    print(name, growth, memory)
    assert (growth["threads"], growth["widgets"], growth["comms"]) == (0, 0, 0)
    assert growth["objects"] < COUNT // 2, "what a library keeps, not what a widget leaves"
    # What a widget leaves behind shows in every batch; what an allocator takes, in some.
    assert min(memory) < 4_000 * COUNT // BATCHES


@pytest.mark.slow
def test_closed_in_the_middle_of_its_work() -> None:
    def come_and_go_at_once() -> None:
        dashboard = RectificationDashboard(network(), pairs(), attribution="saliency")
        job = dashboard.rectify()
        dashboard.close()
        assert job.done

    come_and_go_at_once()
    before = state()
    for _ in range(20):
        come_and_go_at_once()
    after = state()
    for what in ("threads", "widgets", "comms"):
        assert after[what] == before[what], what


def test_the_count_can_fail() -> None:
    before = state()
    kept = WIDGETS["AttributionViewer"](network(), pairs())
    kept.settle()
    after = state()
    assert after["threads"] > before["threads"]
    assert after["widgets"] > before["widgets"]
    kept.close()
    assert state()["widgets"] == before["widgets"]
