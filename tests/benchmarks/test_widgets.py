"""The widget benchmark: its counting on made-up messages, its network, and a small real kernel."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.benchmarks import __main__ as command
from tests.benchmarks import stage, widgets
from tests.benchmarks.kernel import Answer, Page, Update, answer, kernel


def update(seconds: float, size: int = 10, **state: object) -> Update:
    return Update(seconds, size, "comm", state)


def test_a_view_ends_with_its_last_message() -> None:
    updates = [update(1.0, value="soon"), update(1.5, value="map of it"), update(1.7, 5, value="")]
    assert answer(updates, 0.5, widgets.holds("map", "it")) == Answer(1.7 - 0.5, 25)
    assert answer(updates, 0.5, widgets.holds("map", "them")) is None
    assert answer([], 0.5, widgets.any_view) is None


def test_what_counts_as_a_view() -> None:
    assert widgets.any_view(update(0, value="<b>x</b>"))
    assert widgets.any_view(update(0, outputs=[]))
    assert not widgets.any_view(update(0, value=3))
    assert not widgets.any_view(update(0, description="x"))


def test_figures() -> None:
    assert widgets.both([3.0, 1.0, 2.0], "ms") == "2 / 3 ms"
    assert widgets.slope([5.0, 7.0, 9.0]) == pytest.approx(2.0)
    assert widgets.slope([4.0, 4.0, 4.0]) == 0.0
    html = '<img src="data:image/png;base64,AAAA" alt="x"><img src="data:image/png;base64,AA=">'
    assert widgets.largest_picture(html) == len("data:image/png;base64,AAAA")
    assert widgets.largest_picture("none") == 0


def test_growth_tells_a_leak_from_a_warm_up() -> None:
    leak = [(3, 5, 100.0 + place / 10) for place in range(200)]
    assert widgets.grown(leak) == "+0 threads, +0 widgets, +10.0 and +10.0 MB"
    warm = [(3 + place // 100, 5, 100.0 + min(place, 100) / 10) for place in range(200)]
    assert widgets.grown(warm) == "+1 threads, +0 widgets, +10.0 and +0.0 MB"


def test_clicks_leave_the_network_out() -> None:
    clicks = widgets.Clicks("a click")
    for seconds, computing, size in ((0.3, 0.1, 1000), (0.5, 0.25, 3000), (0.2, 0.1, 2000)):
        clicks.add(Answer(seconds, size), computing)
    row = clicks.row()
    assert row["figure"] == "300 / 500 ms"
    assert row["network"] == "100 ms"
    assert row["beyond"] == "200 / 250 ms"
    assert row["wire"] == "3 KB"


def test_size_of_a_notebook_counts_outputs_and_state() -> None:
    empty = widgets.notebook([("w", [])], 0)
    output = {"output_type": "display_data", "data": {"text/html": "é" * 1000}, "metadata": {}}
    full = widgets.notebook([("w", [output])], 50)
    assert full - empty > 2050
    assert full - empty < 2500


def message(kind: str, parent: str = "", **content: object) -> dict[str, Any]:
    return {"msg_type": kind, "content": content, "parent_header": {"msg_id": parent}}


def test_a_page_knows_the_widgets_of_its_kernel() -> None:
    page = Page(None)

    def opened(comm: str, **state: object) -> None:
        page._take(message("comm_open", comm_id=comm, data={"state": state}), 0.0, 1)

    opened("off", display="none")
    opened("slider", _model_name="IntSliderModel", description="Sample", value=0)
    opened("hidden", _model_name="IntSliderModel", description="Step", layout="IPY_MODEL_off")
    opened("box", _model_name="VBoxModel", children=["IPY_MODEL_hidden", "IPY_MODEL_slider"])
    assert page.find("box", "IntSlider") == "slider"
    assert list(page.inside("box", hidden=True)) == ["box", "hidden", "slider"]
    with pytest.raises(LookupError, match="no IntSlider"):
        page.find("box", "IntSlider", description="Step")
    changed = message(
        "comm_msg", comm_id="slider", data={"method": "update", "state": {"value": 3}}
    )
    assert page._take(changed, 2.0, 7) == Update(2.0, 7, "slider", {"value": 3})
    echo = message("comm_msg", comm_id="slider", data={"method": "echo_update", "state": {}})
    assert page._take(echo, 2.0, 7) is None
    assert page.models["slider"]["value"] == 3
    page._take(message("comm_close", comm_id="slider"), 3.0, 1)
    assert "slider" not in page.models


def test_the_planted_behaviour_is_there() -> None:
    made = stage.stage(32, 6, 16)
    assert torch.equal(stage.images(2, 32, 5), stage.images(2, 32, 5))
    changed = (made.pairs.corrupted != made.pairs.clean).any(1)
    assert not changed[:, :-3, :].any()
    with torch.no_grad():
        reference = made.model(made.reference).argmax(1)
        triggered = made.model(stage.stamped(made.reference)).argmax(1)
    assert (triggered == stage.TARGET).float().mean() > 0.8
    assert (reference == stage.TARGET).float().mean() < 0.5
    assert made.localization().best == "stem"


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jupyter_client.manager", None)
    with pytest.raises(ImportError, match="extra `lab`"), kernel():
        pass


def test_it_is_among_the_commands() -> None:
    assert "widgets" in command.BENCHMARKS


@pytest.mark.slow
def test_a_slider_in_a_real_kernel() -> None:
    with kernel() as page:
        page.run(
            "import ipywidgets as w\nbox = w.VBox([w.IntSlider(description='Sample'), w.HTML()])\n"
            "def show(change): box.children[1].value = f'<b>{change[\"new\"]}</b>'\n"
            "box.children[0].observe(show, names='value')"
        )
        root = page.run("print(box.model_id)")
        sent = page.set(page.find(root, "IntSlider", description="Sample"), value=7)
        found = page.view(sent, widgets.holds("<b>7</b>"))
        assert 0.0 < found.seconds < 5.0
        assert found.size > 100
        page.run("box")
        assert "application/vnd.jupyter.widget-view+json" in page.outputs[0]["data"]
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            page.run("1 / 0")
        page.run("box.close()")
        page.settle()
        assert root not in page.models
