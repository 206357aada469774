"""The dashboard in a real JupyterLab: mouse, keyboard, both themes, and a kernel that goes away.

Every test notes console errors and requests to other hosts, and leaves screenshots in the ignored
folder beside this file.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.browser import pages, parts
from tests.browser.frontends import TUTORIAL, Server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.usefixtures("cells"),
]


BREAK = """
import sys
def broken(*_, **__): raise ValueError("no such thing")
for module in [m for name, m in sys.modules.items() if name.startswith("rectify_widgets")]:
    if hasattr(module, "localize"): module.localize = broken
"""


KEEP = """tags => {
    const { sharedModel } = window.jupyterapp.shell.currentWidget.model;
    const unwanted = ({ cell_type, metadata }) =>
        cell_type === 'code' && !tags.some(tag => (metadata.tags ?? []).includes(tag));
    for (let place = sharedModel.cells.length - 1; place >= 0; place--) {
        if (unwanted(sharedModel.getCell(place).toJSON())) sharedModel.deleteCell(place);
    }
}"""
"""Leaves those cells of code that have one of the tags; the others are run elsewhere."""


ROOM = """() => {
    const steps = document.querySelector('.rw-history-card .rw-steps');
    steps.querySelectorAll('details').forEach(trials => { trials.open = true; });
    const tables = [...steps.querySelectorAll('details table')];
    const end = steps.getBoundingClientRect().right;
    return Math.min(...tables.map(table => end - table.getBoundingClientRect().right));
}"""
"""Opens the trials of all rounds; the room that is left beside the widest table, in pixels."""


def sample(page: Any) -> str:
    """Which sample the maps in view are of."""
    return str(page.locator(parts.MAP).first.get_attribute("alt"))


def measured(page: Any, what: str, script: str, limit: float = 10.0) -> float:
    """Seconds until the page itself says that ``script`` is true; printed, not judged."""
    start = time.monotonic()
    page.wait_for_function(script, timeout=1000 * limit, polling=10)
    seconds = time.monotonic() - start
    print(f"{what}: {seconds:.2f} s")
    return seconds


def shows(alt: str) -> str:
    return f"() => document.querySelector('img[alt*=\"{alt}\"]') !== null"


def assert_fits(page: Any) -> None:
    """Nothing inside the cards is cut off."""
    overflow = page.evaluate(
        "[...document.querySelectorAll('.rw-card, .rw-card *')]"
        ".filter(c => c.scrollWidth > c.clientWidth + 1 && c.clientWidth > 0)"
        ".filter(c => !['visible', 'auto', 'scroll'].includes(getComputedStyle(c).overflowX))"
        ".map(c => `${c.className}: ${c.scrollWidth} in ${c.clientWidth}`)"
    )
    assert overflow == []


# --- pages of their own; one that stays open for other tests comes after them, as Playwright asks for


def test_a_snapshot_outlives_the_kernel(server: Server) -> None:
    with pages.open_page(server, "saved.ipynb") as watched:
        watched.run_all()
        watched.run_cell("dashboard.locate().wait(); dashboard.snapshot()")
        watched.page.wait_for_selector(f"{parts.STATIC} {parts.MAP}")
        watched.save()
        size = (server.folder / "saved.ipynb").stat().st_size
        print(f"the saved notebook: {size / 1e6:.2f} MB")
        assert size < 1_500_000
        watched.assert_quiet()
    server.end_kernels()
    with pages.open_page(server, "saved.ipynb") as again:
        static = again.page.wait_for_selector(parts.STATIC)
        assert "Editability of the layers" in static.inner_text()
        assert "★" in static.inner_text()
        image = again.page.locator(f"{parts.STATIC} img").first
        assert image.evaluate("i => i.naturalWidth") > 0
        again.page.locator(parts.STATIC).first.scroll_into_view_if_needed()
        again.picture("12-reopened")
        assert again.foreign == []
    server.end_kernels()


def test_the_first_tutorial_runs_and_its_dashboard_answers(server: Server) -> None:
    with pages.open_page(server, TUTORIAL.name) as watched:
        page = watched.page
        page.wait_for_selector(parts.STATIC)  # as it was committed
        page.evaluate(KEEP, ["setup", "dashboard"])
        watched.run_all(seconds=240)
        page.locator(parts.RECTIFY).scroll_into_view_if_needed()
        watched.picture("13-tutorial")
        assert page.locator(parts.MAP).count() > 0
        if page.locator(parts.UNDO).is_enabled():
            page.click(parts.UNDO)
            watched.wait_for_status("Took an edit back")
        page.click(parts.RECTIFY)
        watched.wait_for_status("Rectify: ")
        page.wait_for_selector(f"{parts.CANCEL}:enabled")
        page.click(parts.CANCEL)
        watched.wait_for_status("ancelled")
        watched.assert_quiet()
    server.end_kernels()


# --- one page, each time with a new dashboard


def test_the_page_answers_while_a_rectification_runs(own: pages.Watched) -> None:
    page = own.page
    assert own.run_cell("print(dashboard.status)").startswith("Ready")
    page.click(parts.RECTIFY)
    own.wait_for_status("Rectify: ")
    page.wait_for_selector(f"{parts.CANCEL}:enabled")
    for place in (1, 2, 3):
        page.locator(parts.SAMPLE).first.focus()
        page.keyboard.press("ArrowRight")
        measured(page, "another sample during a rectification", shows(f"sample {place + 1}"))
    start = time.monotonic()
    assert own.run_cell("print(dashboard.index, dashboard.busy)") == "3 True"
    print(f"a cell during a rectification: {time.monotonic() - start:.2f} s")
    assert "Rectify" in own.status()
    start = time.monotonic()
    page.click(parts.CANCEL)
    own.wait_for_status("stopping", "ancelled")
    print(f"Cancel answered after {time.monotonic() - start:.2f} s")
    own.wait_for_status("ancelled")
    print(f"Cancel done after {time.monotonic() - start:.2f} s")
    own.assert_quiet()


def test_a_cell_that_is_run_again_leaves_one_dashboard(own: pages.Watched) -> None:
    page = own.page
    count = "import ipywidgets; dashboard.settle(); print(len(ipywidgets.widget._instances))"
    once = own.ask(count)
    for _ in range(3):
        own.run_again(1)
        page.wait_for_selector(parts.MAP)
    assert own.ask(count) == once
    page.click(parts.LOCATE)
    own.wait_for_status("scores best")
    page.click(parts.WAY_TAB.format("evaluate"))
    page.wait_for_timeout(300)
    assert own.ask("print(dashboard.stage)") == "evaluate"
    own.picture("14-run-again")
    own.assert_quiet()


def test_both_themes_and_widths(own: pages.Watched) -> None:
    page = own.page
    own.rectify()
    own.picture("5-light")
    for width in (1500, 1250, 1000):
        page.set_viewport_size({"width": width, "height": 1400})
        page.wait_for_timeout(300)
        assert page.evaluate(ROOM) >= 0, f"a round's trials are wider than the history at {width}"
    page.set_viewport_size({"width": 1280, "height": 1400})
    own.theme("JupyterLab Dark")
    own.picture("6-dark")
    page.set_viewport_size({"width": 800, "height": 2600})
    page.wait_for_timeout(500)
    own.picture("7-dark-800")
    own.theme("JupyterLab Light")
    own.picture("8-light-800")
    assert_fits(page)
    page.set_viewport_size({"width": 1280, "height": 1400})
    page.locator(parts.SAMPLE).first.focus()
    page.keyboard.press("ArrowRight")
    measured(page, "another sample, before and after", shows("sample 2"))
    page.locator(parts.STEP).first.click()
    none = "() => document.querySelector('img[alt*=\"corrupted input, after\"]') === null"
    measured(page, "back to the first step", none)
    own.assert_quiet()


def test_by_keyboard_alone(own: pages.Watched) -> None:
    page = own.page
    page.locator(parts.LOCATE).focus()
    page.keyboard.press("Enter")
    own.wait_for_status("scores best")
    assert page.locator(parts.CHOSEN).count() == 1
    page.locator(parts.LAYER).nth(2).focus()
    page.keyboard.press("Space")
    page.wait_for_timeout(300)
    name = page.locator(parts.LAYER).nth(2).get_attribute("data-key")
    assert own.ask("print(dashboard.layer)") == name
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(300)
    name = page.locator(parts.LAYER).nth(3).get_attribute("data-key")
    assert page.locator(parts.CHOSEN).get_attribute("data-key") == name
    page.locator(parts.EDIT).focus()
    page.keyboard.press("Enter")
    own.wait_for_status("Edited")
    assert own.ask("print(dashboard.edits[0].layer)") == name
    page.locator(parts.UNDO).focus()
    page.keyboard.press("Enter")
    own.wait_for_status("Took an edit back")
    page.locator(parts.REDO).focus()
    page.keyboard.press("Enter")
    own.wait_for_status("Made an edit again")
    assert own.ask("print(dashboard.history.step)") == "1"
    assert own.run_cell("found = await dashboard.locate(); print(found.best)")
    own.picture("9-edited", parts.CARDS)
    own.assert_quiet()


def test_methods_and_errors_in_place(own: pages.Watched) -> None:
    page = own.page
    methods = page.locator(parts.METHODS).first
    for name in ("grad-cam", "occlusion", "smoothgrad", "integrated-gradients", "input-x-gradient"):
        methods.select_option(name)
        measured(page, name, f"() => document.querySelector('img[alt^=\"{name} map\"]') !== null")
        assert "sample 1" in sample(page)
    own.picture("10-method", parts.CARDS)
    own.ask(BREAK)
    page.click(parts.LOCATE)
    page.wait_for_selector(parts.ERROR)
    assert "no such thing" in page.locator(parts.ERROR).first.inner_text()
    own.picture("11-error")
    own.assert_quiet()
