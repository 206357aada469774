"""The widget benchmark: its counting on made-up messages, its network, and a small real kernel."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.benchmarks import __main__ as command
from tests.benchmarks import backdoor, widgets
from tests.benchmarks.kernel import Kernel, Reply, kernel
from tests.benchmarks.tables import Table


def message(kind: str, **content: object) -> dict[str, Any]:
    return {"header": {"msg_type": kind}, "msg_type": kind, "content": content}


def update(text: str, method: str = "update") -> dict[str, Any]:
    return message("comm_msg", comm_id="a", data={"method": method, "state": {"value": text}})


def test_a_reply_counts_comms_messages_and_bytes() -> None:
    reply = Reply()
    reply.take(message("comm_open", comm_id="a", data={"state": {}}), 0.1, 100)
    reply.take(update("x"), 0.2, 30)
    reply.take(update("x", method="echo_update"), 0.3, 1000)
    reply.take(message("stream", text="7"), 0.4, 1000)
    reply.take(message("error", traceback=["a", "b"]), 0.4, 1000)
    reply.take(message("execute_result", data={}), 0.4, 1000)
    reply.take(message("status", execution_state="busy"), 0.4, 1000)
    assert reply.done is None
    reply.take(message("status", execution_state="idle"), 0.5, 1000)
    assert (reply.opened, reply.seconds, reply.size) == (1, [0.1, 0.2], 130)
    assert (reply.printed, reply.errors) == ("7", ["a\nb"])
    assert reply.seconds[-1] < 0.5 == reply.done
    assert len(reply.outputs) == 1
    assert "'x'" in reply.texts[-1]


def replies() -> list[Reply]:
    return [
        Reply(printed=f"{computing}\n", opened=2, seconds=[0.01, seconds], size=size)
        for seconds, computing, size in ((0.3, 100, 1000), (0.5, 250, 3000), (0.2, 100, 2000))
    ]


def test_rows_of_acts_leave_the_network_out() -> None:
    table = Table("widgets", "")
    widgets._add_acts(table, "a click", replies())
    widgets._add_acts(table, "another", replies(), computing=50.0, most=300)
    first, second = table.rows
    assert first == {
        "what": "a click", "figure": "300 / 500 ms", "network": "100 ms", "beyond": "200 / 250 ms",
        "comms": 2, "messages": 2, "wire": "3 KB", "target": "beyond ≤ 150 ms",
    }  # fmt: skip
    assert second["beyond"] == "250 / 450 ms"
    assert second["target"] == "beyond ≤ 300 ms"


class Page(Kernel):
    """Answers each cell with the same reply."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.cells = reply, list[str]()

    def run(self, code: str, limit: float = 0.0) -> Reply:
        del limit
        self.cells.append(code)
        return self.reply


def test_an_act_without_a_view_is_an_error() -> None:
    assert widgets.act(Page(replies()[0]), "w.index = 1").size == 1000
    with pytest.raises(RuntimeError, match=r"nothing in the view changed after 'w.index = 1'"):
        widgets.act(Page(Reply(printed="0")), "w.index = 1")


def test_a_widget_says_how_many_comms_it_opens() -> None:
    table, page = Table("widgets", ""), Page(replies()[0])
    kinds = widgets.acts(2)["RectificationDashboard"]
    widgets._measure_widget(page, table, "RectificationDashboard", kinds)
    assert [row["what"] for row in table.rows] == ["RectificationDashboard: opened", *kinds]
    assert table.rows[0]["comms"] == 2
    assert table.rows[0]["target"] == "≤ 120 comms"
    shown = [cell.split("\n")[0] for cell in page.cells if "clock.read())" in cell]
    steps = [f"w.history.step = {step}" for step in (2, 1, 0, 1, 2, 3)]
    assert shown == ["w.index = 1", "w.index = 2", *steps]


def test_figures() -> None:
    assert widgets.both([3.0, 1.0, 2.0]) == "2 / 3 ms"
    html = '<img src="data:image/png;base64,AAAA" alt="x"><img src="data:image/png;base64,AA=">'
    assert widgets.largest_picture(html) == len("data:image/png;base64,AAAA")
    assert widgets.largest_picture("none") == 0


def test_growth_tells_a_leak_from_a_warm_up() -> None:
    leak = [(3, 5, 100.0 + place / 10) for place in range(200)]
    assert widgets.grown(leak) == "+0 threads, +0 widgets, +10.0 and +10.0 MB"
    warm = [(3 + place // 100, 5, 100.0 + min(place, 100) / 10) for place in range(200)]
    assert widgets.grown(warm) == "+1 threads, +0 widgets, +10.0 and +0.0 MB"


def test_size_of_a_notebook_counts_outputs() -> None:
    output = message("display_data", data={"text/html": "é" * 1000}, metadata={})
    sizes = [widgets.notebook_size([("w", outputs)]) for outputs in ([], [output])]
    assert 2000 < sizes[1] - sizes[0] < 2500


def test_the_backdoor_is_there() -> None:
    made = backdoor.Backdoor.of(32, 6, 16)
    assert torch.equal(backdoor.images(2, 32, 5), backdoor.images(2, 32, 5))
    changed = (made.pairs.corrupted != made.pairs.clean).any(1)
    assert not changed[:, :-3, :].any()
    with torch.no_grad():
        reference = made.model(made.reference).argmax(1)
        triggered = made.model(backdoor.trigger(made.reference)).argmax(1)
    assert (triggered == backdoor.TARGET).float().mean() > 0.8
    assert (reference == backdoor.TARGET).float().mean() < 0.5
    assert made.localization().best == "stem"
    assert set(widgets.EDITED) < set(made.layers)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jupyter_client.manager", None)
    with pytest.raises(ImportError, match="extra `lab`"), kernel():
        pass


def test_it_is_among_the_commands() -> None:
    assert "widgets" in command.BENCHMARKS


@pytest.mark.slow
def test_a_widget_in_a_real_kernel() -> None:
    with kernel() as page:
        opened = page.run("import ipywidgets as ipw\nw = ipw.HTML('none')\nw")
        assert opened.opened == 3  # with its layout and style
        assert "application/vnd.jupyter.widget-view+json" in str(opened.outputs[0]["content"])
        reply = page.run("w.value = 7 * '<b>x</b>'\nprint(1 + 1)")
        assert (reply.printed, reply.opened, len(reply.seconds)) == ("2\n", 0, 1)
        assert 0.0 < reply.seconds[0] < 5.0
        assert reply.size > 7 * len("<b>x</b>")
        assert "<b>x</b>" in reply.texts[0]
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            page.run("1 / 0")
        with pytest.raises(TimeoutError, match=r"still running after 0\.5 s"):
            page.run("import time; time.sleep(60)", limit=0.5)
