"""The widgets as a browser meets them: time to the new view, comms and bytes, what closing frees.

Imports the kernel's client and the tables; what it measures is set up by `backdoor` in a kernel.
Widgets are driven by their public traits and methods alone, however they are built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from statistics import linear_regression, median
from typing import Any

from nbformat import v4

from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks.backdoor import NAMES
from tests.benchmarks.kernel import Kernel, Reply, kernel
from tests.benchmarks.tables import Table

INPUTS = 12
"""Pairs to look at."""
METHODS = ("input-x-gradient", "integrated-gradients", "grad-cam")
EDITED = ("stem", "stage2.block0.shortcut", "classifier")
"""Layers that are edited by hand in the dashboard."""
CAME_AND_WENT = 100
"""Widgets of each kind that are opened and closed, twice: what a leak takes, it takes again."""
COMMS = 120
"""Most comms of a dashboard."""

SET_UP = f"""
from tests.benchmarks.backdoor import *
backdoor = Backdoor.of(count={INPUTS})
layers, clock, make = backdoor.layers, NetworkClock(), backdoor.widgets()
"""


def acts(repeats: int) -> dict[str, dict[str, list[str]]]:
    """What is done in each widget, one after the other: by kind, the statements."""
    samples = [f"w.index = {place}" for place in range(1, repeats + 1)]
    back = [f"w.index = {place}" for place in reversed(range(repeats))]
    layers = [f"w.layer = layers[{place}]" for place in range(1, repeats + 1)]
    steps = [f"w.history.step = {step}" for step in range(len(EDITED) + 1)]
    return {
        "AttributionViewer": {
            "maps: another sample": samples,
            "maps: a sample seen before": back,
            "maps: another method": [f"w.method = {method!r}" for method in METHODS],
            "maps: another layer (Grad-CAM)": layers,
        },
        "PredictionViewer": {"predictions: another sample": samples},
        "EditabilityViewer": {"layers: another layer": layers},
        "HistoryViewer": {"history: another step": ["w.step = 1 - w.step"] * repeats},
        "RectificationDashboard": {
            "dashboard: another sample": samples,
            "dashboard: a step back": steps[-2::-1],
            "dashboard: a step seen before": steps[1:],
        },
    }


def measure_widgets(repeats: int, progress: Monitor) -> Table:
    """Everything that is promised of the widgets, in one fresh kernel (and one for memory)."""
    table = Table(
        "widgets",
        "A real kernel, driven by cells that set public traits.  224 × 224 colour inputs, residual "
        "network of 15 layers, one thread.  Median / worst; `network` is what its forward and "
        "backward passes take of it, `comms` the widgets that a browser builds, `messages` and "
        f"`wire` the most of one act.  {repeats} repeats.",
    )
    with kernel() as page:
        progress.report(0.02, "a network with a backdoor")
        page.run(SET_UP)
        for number, (name, kinds) in enumerate(acts(repeats).items()):
            progress.report(0.1 + 0.08 * number, name)
            _measure_widget(page, table, name, kinds)
        progress.report(0.5, "while a rectification runs")
        _measure_under_way(page, table, repeats)
        _measure_saved(page, table)
    with kernel() as page:
        _measure_memory(page, table, progress.part(0.6, 1.0))
    return table


def _measure_widget(
    page: Kernel, table: Table, name: str, kinds: Mapping[str, Sequence[str]]
) -> None:
    opened = page.run(f"w = make[{name!r}]()\ndisplay(w)\nw.settle()")
    target = f"≤ {COMMS} comms" if name == "RectificationDashboard" else "–"
    _add(table, f"{name}: opened", "–", opened, target=target)
    if name == "AttributionViewer":
        size = f"{largest_picture(' '.join(opened.texts)) / 1000:.0f} KB"
        _add(table, "a picture of 224 × 224", size, target="≤ 100 KB")
    if name == "RectificationDashboard":
        for layer in EDITED:
            page.run(f"w.layer = {layer!r}; w.edit().wait(); w.settle()")
    for what, statements in kinds.items():
        page.run("clock.read()")
        replies = [act(page, statement) for statement in statements]
        _add_acts(table, what, replies)
    page.run("w.close()")


def act(page: Kernel, statement: str) -> Reply:
    """Do something and wait for the view; prints the milliseconds that the network took.

    Raises:
        RuntimeError: no message of a widget came back.
    """
    reply = page.run(f"{statement}\nw.settle()\nprint(1000 * clock.read())")
    if not reply.seconds:
        raise RuntimeError(f"nothing in the view changed after {statement!r}")
    return reply


def _add_acts(
    table: Table,
    what: str,
    replies: Sequence[Reply],
    *,
    computing: float | None = None,
    most: int = 150,
) -> None:
    """The view is complete with its last message; ``computing`` milliseconds are the network's."""
    views = [1000 * reply.seconds[-1] for reply in replies]
    network = [float(reply.printed) if computing is None else computing for reply in replies]
    beyond = [view - own for view, own in zip(views, network, strict=True)]
    _add(
        table, what, both(views), *replies, network=f"{median(network):.0f} ms",
        beyond=both(beyond), target=f"beyond ≤ {most} ms",
    )  # fmt: skip


def _add(
    table: Table, what: str, figure: str, *replies: Reply, network: str = "–", beyond: str = "–",
    target: str = "–",
) -> None:  # fmt: skip
    """A row; of several replies the most comms, messages and bytes."""
    counts = [(reply.opened, len(reply.seconds), reply.size) for reply in replies]
    comms, messages, size = map(max, zip(*counts, strict=True)) if counts else ("–", "–", None)
    wire = "–" if size is None else f"{int(size) / 1000:.0f} KB"
    table.add(
        what=what, figure=figure, network=network, beyond=beyond, comms=comms, messages=messages,
        wire=wire, target=target,
    )  # fmt: skip


def _measure_under_way(page: Kernel, table: Table, repeats: int) -> None:
    page.run(f"w = make[{NAMES[-1]!r}]()\ndisplay(w)\nw.settle()\nclock.read()")
    idle = median(float(act(page, f"w.index = {place}").printed) for place in (1, 2, 3))
    busy, cells, answers, ends = [], [], [], []
    place = 3
    for _ in range(max(repeats // 2, 1)):
        page.run("job = w.rectify()")
        for _ in range(repeats):
            place = (place + 1) % (INPUTS - 1)
            busy.append(act(page, f"w.index = {place}"))
            done = page.run("1 + 1").done
            assert done is not None
            cells.append(1000 * done)
        if page.run("print(job.done)").printed.strip() == "True":
            raise RuntimeError("the rectification ended before it was cancelled")
        cancelled = page.run("w.cancel()\nwait_for(job)")
        answers.append(1000 * cancelled.seconds[0])
        ends.append(1000 * cancelled.seconds[-1])
        page.run("w.settle()")
    what = "another sample while a rectification runs"
    _add_acts(table, what, busy, computing=idle, most=300)
    _add(table, "a cell while a rectification runs", both(cells))
    _add(table, "Cancel: the answer", both(answers), target="≤ 300 ms")
    _add(table, "Cancel: the work has ended", both(ends))
    page.run("w.close()")


def _measure_saved(page: Kernel, table: Table) -> None:
    """All five widgets in one notebook, with their snapshots."""
    cells = [
        (code, page.run(code).outputs)
        for name in NAMES
        for code in (f"w_{name} = w = make[{name!r}]()\nw", "w.settle(); w.snapshot()")
    ]
    size, state = notebook_size(cells), int(page.run("print(widget_state())").printed)
    for what, extra in (("without", 0), ("with", state)):
        _add(
            table, f"a notebook with all five and their snapshots, {what} widget state",
            f"{(size + extra) / 1e6:.2f} MB", target="< 1.5 MB",
        )  # fmt: skip


def _measure_memory(page: Kernel, table: Table, progress: Monitor) -> None:
    page.run("from tests.benchmarks.backdoor import *\nmake = Backdoor.of(32, 4, 8).widgets()")
    for number, name in enumerate(NAMES):
        progress.report(number / len(NAMES), f"{2 * CAME_AND_WENT} × {name}")
        counts = page.run(f"print(open_and_close(make[{name!r}], {2 * CAME_AND_WENT}))").printed
        what = f"{name}: {CAME_AND_WENT} opened and closed, and again"
        _add(table, what, grown(json.loads(counts)), target="no growth")


def both(milliseconds: Sequence[float]) -> str:
    """Median and worst, as ``12 / 15 ms``."""
    return f"{median(milliseconds):.0f} / {max(milliseconds):.0f} ms"


def grown(counts: Sequence[tuple[int, int, float]]) -> str:
    """Growth of threads, widgets and megabytes in the first half and in the second.

    Memory is compared by the slope of each half, since single readings jump with the allocator.
    """
    half = len(counts) // 2
    threads, widgets, memory = zip(*counts, strict=True)
    first, second = (
        half * linear_regression(range(half), part).slope
        for part in (memory[:half], memory[-half:])
    )
    return (
        f"{threads[-1] - threads[0]:+d} threads, {widgets[-1] - widgets[0]:+d} widgets, "
        f"{first:+.1f} and {second:+.1f} MB"
    )


def notebook_size(cells: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> int:
    """Bytes of a notebook of cells with their outputs, as the messages bring them."""
    code = [
        v4.new_code_cell(source, outputs=list(map(v4.output_from_msg, outputs)))  # type: ignore[no-untyped-call]
        for source, outputs in cells
    ]
    return len(v4.writes_json(v4.new_notebook(cells=code)).encode())  # type: ignore[no-untyped-call]


def largest_picture(text: str) -> int:
    """Bytes of the largest picture in a message, as it is sent."""
    return max((len(data) for data in re.findall(r"data:image/[^\"')\\ ]+", text)), default=0)
