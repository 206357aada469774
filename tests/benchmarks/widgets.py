"""The widgets as a browser meets them: time to the new view, bytes on the wire, what closing frees.

Imports the kernel's client and the tables; what it looks at is set up by `stage` inside a kernel.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks.kernel import Answer, Page, Update, kernel
from tests.benchmarks.tables import Table

States: TypeAlias = list[dict[str, object]]
"""What a reader chooses in one control, one after the other."""

INPUTS = 12
"""Pairs to look at."""

CAME_AND_WENT = 100
"""Widgets of each kind that are opened and closed, twice: what a leak takes, it takes again."""

METHODS = ("input-x-gradient", "integrated-gradients", "grad-cam")
EDITED = ("stem", "stage2.block0.shortcut", "classifier")

SET_UP = f"""
import rectify_widgets as rw
from tests.benchmarks.stage import *
stage = stage(count={INPUTS})
clock = Clock()
options = dict(classes=CLASSES)
"""

OPEN = {
    "AttributionViewer": "w = AttributionViewer(stage.model, stage.pairs, method='saliency', "
    "**options)",
    "PredictionViewer": "w = PredictionViewer(stage.model, result.model, stage.pairs, **options)",
    "EditabilityViewer": "w = EditabilityViewer(stage.localization())",
    "HistoryViewer": "w = HistoryViewer(result)",
    "RectificationDashboard": "w = RectificationDashboard(stage.model, stage.pairs[:1], "
    "examples=stage.pairs[1:], reference=stage.reference, attribution='saliency', **options)",
}
"""Cell that opens each widget on 224 × 224 inputs; the cell after it displays ``w``."""


@dataclass
class Clicks:
    """What was measured of one kind of click, in milliseconds and bytes."""

    name: str
    view: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    size: list[int] = field(default_factory=list)

    def add(self, answer: Answer, computing: float) -> None:
        """Note one click: what came back, and the seconds that the network took of them."""
        self.view.append(1000 * answer.seconds)
        self.model.append(1000 * computing)
        self.size.append(answer.size)

    def row(self) -> dict[str, str]:
        """Median and worst, in all and beyond what the network itself takes."""
        beyond = [view - model for view, model in zip(self.view, self.model, strict=True)]
        return {
            "what": self.name,
            "figure": both(self.view, "ms"),
            "network": f"{statistics.median(self.model):.0f} ms",
            "beyond": both(beyond, "ms"),
            "wire": f"{max(self.size) / 1000:.0f} KB",
            "target": "beyond ≤ 150 ms",
        }


def both(values: Sequence[float], unit: str, digits: int = 0) -> str:
    """Median and worst, as ``12 / 15 ms``."""
    return f"{statistics.median(values):.{digits}f} / {max(values):.{digits}f} {unit}"


def slope(values: Sequence[float]) -> float:
    """Least-squares growth from one value to the next."""
    return statistics.linear_regression(range(len(values)), values).slope


def largest_picture(text: str) -> int:
    """Bytes of the largest picture in a message, as it is sent."""
    return max((len(data) for data in re.findall(r"data:image/[^\"')\\\\ ]+", text)), default=0)


def holds(*words: str) -> Callable[[Update], bool]:
    """A message that has all of these words."""
    return lambda update: all(word in update.text for word in words)


def any_view(update: Update) -> bool:
    """A message that changes a picture, a table or the look of something."""
    state = update.state
    return "</" in str(state.get("value", "")) or bool({"_dom_classes", "outputs"} & set(state))


def notebook(cells: Sequence[tuple[str, list[dict[str, Any]]]], state: int) -> int:
    """Bytes of a notebook of cells with their outputs, and as many of widget state."""
    document = {
        "cells": [
            {
                "cell_type": "code",
                "execution_count": count,
                "id": f"cell-{count}",
                "metadata": {},
                "outputs": outputs,
                "source": source,
            }
            for count, (source, outputs) in enumerate(cells, 1)
        ],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return len(json.dumps(document, indent=1, ensure_ascii=False).encode()) + state


class Shown:
    """One widget on a page, and clicks on it."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        page.settle()
        before = page.received
        page.run(OPEN[name])
        page.run("w")
        page.run("w.settle()")
        page.settle()
        self.size = page.received - before
        self.root = page.run("print(w.model_id)")

    def control(self, kind: str, description: str) -> str:
        """Id of a slider, list or button by its description."""
        return self.page.find(self.root, kind, description=description)

    def pick(self, comm: str, state: dict[str, object], wanted: Callable[[Update], bool]) -> Answer:
        """Change a control and wait for the view."""
        return self.page.view(self.page.set(comm, **state), wanted)

    def series(
        self,
        clicks: Clicks,
        control: tuple[str, str],
        states: States,
        wanted: Callable[[dict[str, object]], Callable[[Update], bool]],
    ) -> Clicks:
        """The same control again and again."""
        for state in states:
            comm = self.control(*control)
            self.page.run("clock.read();")
            answer = self.pick(comm, state, wanted(state))
            clicks.add(answer, float(self.page.run("print(clock.read())")))
        return clicks

    def options(self, description: str) -> list[str]:
        """What a list offers."""
        comm = self.control("Dropdown", description)
        return [str(label) for label in self.page.models[comm]["_options_labels"]]

    def close(self) -> None:
        """Close it, so that the next one is alone."""
        self.page.run("w.close()")
        self.page.settle()


def measure_widgets(repeats: int, progress: Monitor) -> Table:
    """Everything that is promised of the widgets, in one fresh kernel (and one for memory)."""
    table = Table(
        "widgets",
        "A real kernel, driven by the messages of a browser.  224 × 224 colour inputs, residual "
        "network of 15 layers, one thread.  Median / worst; `network` is what its forward and "
        f"backward passes take of it, `wire` the most bytes of one click.  {repeats} repeats.",
    )
    with kernel() as page:
        progress.report(0.02, "a network with a planted behaviour")
        page.run(SET_UP)
        page.run("result = stage.rectified()")
        steps = [_maps, _predictions, _layers, _history, _dashboard, _under_way, _saved]
        for number, step in enumerate(steps):
            progress.report(0.1 + 0.5 * number / len(steps), step.__name__.strip("_"))
            step(page, table, repeats)
    with kernel() as page:
        _memory(page, table, progress.part(0.6, 1.0))
    return table


def _maps(page: Page, table: Table, repeats: int) -> None:
    shown = Shown(page, "AttributionViewer")
    sizes: list[int] = [
        largest_picture(str(page.models[comm].get("value", ""))) for comm in page.inside(shown.root)
    ]
    samples: States = [{"value": place} for place in range(1, repeats + 1)]

    def map_of_sample(state: dict[str, object]) -> Callable[[Update], bool]:
        return holds(f"sample {state['value']}", "map of the")

    first = Clicks("maps: another sample")
    shown.series(first, ("IntSlider", "Sample"), samples, map_of_sample)
    again = Clicks("maps: a sample seen before")
    back: States = [{"value": place} for place in range(repeats - 1, -1, -1)]
    shown.series(again, ("IntSlider", "Sample"), back, map_of_sample)
    labels = shown.options("Method")
    method = Clicks("maps: another method")
    states: States = [{"index": labels.index(name)} for name in METHODS]
    shown.series(
        method,
        ("Dropdown", "Method"),
        states,
        lambda s: holds(f"{labels[int(str(s['index']))]} map"),
    )
    layer = Clicks("maps: another layer (Grad-CAM)")
    count = min(len(shown.options("Layer")), repeats + 1)
    layers: States = [{"index": place} for place in range(1, count)]
    shown.series(layer, ("Dropdown", "Layer"), layers, lambda _: holds("grad-cam map"))
    for clicks in (first, again, method, layer):
        table.add(**clicks.row())
    table.add(
        what="a picture of 224 × 224", figure=f"{max(sizes) / 1000:.0f} KB", network="–",
        beyond="–", wire="–", target="≤ 100 KB",
    )  # fmt: skip
    shown.close()


def _predictions(page: Page, table: Table, repeats: int) -> None:
    shown = Shown(page, "PredictionViewer")
    samples: States = [{"value": place} for place in range(1, repeats + 1)]
    clicks = Clicks("predictions: another sample")
    table.add(**shown.series(clicks, ("IntSlider", "Sample"), samples, lambda _: any_view).row())
    shown.close()


def _layers(page: Page, table: Table, repeats: int) -> None:
    shown = Shown(page, "EditabilityViewer")
    states: States = [{"index": place} for place in range(2, repeats + 2)]
    clicks = Clicks("layers: another layer")
    table.add(**shown.series(clicks, ("Dropdown", "Layer"), states, lambda _: any_view).row())
    shown.close()


def _history(page: Page, table: Table, repeats: int) -> None:
    shown = Shown(page, "HistoryViewer")
    states: States = [{"value": place % 2} for place in range(repeats + 1)]
    start = int(page.run("print(w.step)"))
    clicks = Clicks("history: another step")
    shown.series(clicks, ("IntSlider", "Step"), states[1 - start :], lambda _: any_view)
    table.add(**clicks.row())
    shown.close()


def _dashboard(page: Page, table: Table, repeats: int) -> None:
    shown = Shown(page, "RectificationDashboard")
    for layer in EDITED:
        page.run(f"w.layer = {layer!r}; w.edit().wait(); w.settle()")
    page.settle()
    samples: States = [{"value": place} for place in range(1, repeats + 1)]
    clicks = Clicks("dashboard: another sample")
    shown.series(
        clicks, ("IntSlider", "Sample"), samples,
        lambda s: holds(f"sample {s['value']}", "map of the"),
    )  # fmt: skip
    table.add(**clicks.row())
    last = len(EDITED)
    steps: States = [{"value": place} for place in range(last - 1, -1, -1)]
    clicks = Clicks("dashboard: a step back")
    shown.series(clicks, ("IntSlider", "Step"), steps, lambda _: holds("map of the"))
    table.add(**clicks.row())
    clicks = Clicks("dashboard: a step seen before")
    forward: States = [{"value": place} for place in range(1, last + 1)]
    shown.series(clicks, ("IntSlider", "Step"), forward, lambda _: holds("map of the"))
    table.add(**clicks.row())
    table.add(
        what="the whole dashboard", figure=f"{shown.size / 1000:.0f} KB", network="–", beyond="–",
        wire="–", target="–",
    )  # fmt: skip
    shown.close()


def _under_way(page: Page, table: Table, repeats: int) -> None:
    shown = Shown(page, "RectificationDashboard")
    idle = Clicks("idle")
    states: States = [{"value": place} for place in (1, 2, 3)]
    shown.series(
        idle, ("IntSlider", "Sample"), states,
        lambda s: holds(f"sample {s['value']}", "map of the"),
    )  # fmt: skip
    busy = Clicks("another sample while a rectification runs")
    cells, answered, ended = [], [], []
    place = 3
    for _ in range(max(repeats // 2, 1)):
        page.until(page.click(shown.control("Button", "Rectify")), holds("%"))
        samples = shown.control("IntSlider", "Sample")
        for _ in range(repeats):
            place = (place + 1) % INPUTS
            sent = page.set(samples, value=place)
            seconds = page.until(sent, holds(f"sample {place}", "map of the"))
            busy.add(Answer(seconds, 0), statistics.median(idle.model) / 1000)
            began = time.perf_counter()
            page.run("1 + 1")
            cells.append(1000 * (time.perf_counter() - began))
            time.sleep(0.3)
        sent = page.click(shown.control("Button", "Cancel"))
        stopping, cancelled = holds("stopping"), holds("ancelled")
        answered.append(
            1000 * page.until(sent, lambda u: stopping(u) or cancelled(u))  # noqa: B023 - used now
        )
        ended.append(1000 * page.until(sent, cancelled))
        page.run("w.settle()")
    table.add(**busy.row() | {"wire": "–", "target": "beyond ≤ 300 ms"})
    for what, values, target in (
        ("a cell while a rectification runs", cells, "–"),
        ("Cancel: the answer", answered, "≤ 300 ms"),
        ("Cancel: the work has ended", ended, "–"),
    ):
        table.add(
            what=what, figure=both(values, "ms"), network="–", beyond="–", wire="–", target=target
        )
    shown.close()


def _saved(page: Page, table: Table, _: int) -> None:
    cells = []
    for number, (name, code) in enumerate(OPEN.items()):
        cell = f"{code}\nw{number} = w\nw"
        page.run(cell)
        cells.append((cell, page.outputs))
        page.run("w.settle(); w.snapshot()")
        cells.append((f"{name}.snapshot()", page.outputs))
    page.settle()
    state = int(page.run("print(widget_state())"))
    for what, extra in (("without", 0), ("with", state)):
        table.add(
            what=f"a notebook with all five and their snapshots, {what} widget state",
            figure=f"{notebook(cells, extra) / 1e6:.2f} MB", network="–", beyond="–", wire="–",
            target="< 1.5 MB",
        )  # fmt: skip


def _memory(page: Page, table: Table, progress: Monitor) -> None:
    page.run("from tests.benchmarks.stage import *\nmade = makers(stage(32, 4, 8))")
    names = json.loads(page.run("import json; print(json.dumps(list(made)))"))
    for number, name in enumerate(names):
        progress.report(number / len(names), f"{2 * CAME_AND_WENT} × {name}")
        code = f"print(json.dumps(open_and_close(made[{name!r}], {2 * CAME_AND_WENT})))"
        seen = json.loads(page.run(code, seconds=1200))
        table.add(
            what=f"{name}: {CAME_AND_WENT} opened and closed, and again",
            figure=grown(seen), network="–", beyond="–", wire="–", target="no growth",
        )  # fmt: skip


def grown(seen: Sequence[tuple[int, int, float]]) -> str:
    """Growth of threads, widgets and megabytes in the first half and in the second.

    Memory is compared by the slope of each half, since single readings jump with the allocator.
    """
    half = len(seen) // 2
    threads, widgets, memory = zip(*seen, strict=True)
    first, second = (half * slope(part) for part in (memory[:half], memory[half:]))
    return (
        f"{threads[-1] - threads[0]:+d} threads, {widgets[-1] - widgets[0]:+d} widgets, "
        f"{first:+.1f} and {second:+.1f} MB"
    )
