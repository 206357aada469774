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


def picture(page: Any) -> str:
    return str(page.locator(parts.MAP).nth(1).get_attribute("src"))


def test_rectify_scrub_cancel_and_undo(own: pages.Watched) -> None:
    page = own.page
    own.picture("1-ready")
    assert own.run_cell("print(dashboard.status)").startswith("Ready")

    page.click(parts.RECTIFY)
    own.wait_for_status("%")
    assert page.locator(parts.CANCEL).is_enabled()
    assert not page.locator(parts.RECTIFY).is_enabled()
    before = picture(page)
    start = time.monotonic()
    page.locator(parts.SLIDER).first.focus()
    page.keyboard.press("ArrowRight")
    while picture(page) == before:
        assert time.monotonic() - start < 10
        page.wait_for_timeout(10)
    print(f"another sample during a rectification after {time.monotonic() - start:.2f} s")
    assert "Rectify" in own.status()
    own.picture("2-running")
    start = time.monotonic()
    page.click(parts.CANCEL)
    own.wait_for_status("stopping", "ancelled")
    print(f"Cancel answered after {time.monotonic() - start:.2f} s")
    own.wait_for_status("ancelled")
    print(f"Cancel done after {time.monotonic() - start:.2f} s")

    page.click(parts.RECTIFY)
    own.wait_for_status("after")
    page.wait_for_selector("text=After, %")
    page.wait_for_selector(parts.MAP_AFTER)
    own.picture("3-light")
    assert own.run_cell("print(dashboard.index, len(dashboard.edits) > 0)") == "1 True"
    own.theme("JupyterLab Dark")
    own.picture("4-dark")
    page.set_viewport_size({"width": 800, "height": 1700})
    page.wait_for_timeout(500)
    own.picture("5-dark-800")
    own.theme("JupyterLab Light")
    own.picture("6-light-800")
    overflow = page.evaluate(
        "[...document.querySelectorAll('.rw-card, .rw-card *')]"
        ".filter(c => c.scrollWidth > c.clientWidth + 1 && c.clientWidth > 0)"
        ".filter(c => getComputedStyle(c).overflowX != 'visible')"
        ".map(c => `${c.className}: ${c.scrollWidth} in ${c.clientWidth}`)"
    )
    assert overflow == []
    page.set_viewport_size({"width": 1280, "height": 1400})

    while page.locator(parts.UNDO).is_enabled():
        page.click(parts.UNDO)
        own.wait_for_status("Took back")
    assert own.run_cell("print(dashboard.edits, dashboard.maps.after)") == "[] None"
    own.assert_quiet()


def test_layers_by_mouse_and_by_keyboard_alone(own: pages.Watched) -> None:
    page = own.page
    page.locator(parts.LOCATE).focus()
    page.keyboard.press("Enter")
    own.wait_for_status("scores best")
    assert page.locator(parts.CHOSEN).count() == 1
    page.locator(parts.ROW).nth(1).click()
    name = page.locator(parts.ROW).nth(1).inner_text()
    assert own.run_cell("print(dashboard.layer)") == name
    page.locator(parts.ROW).nth(2).focus()
    page.keyboard.press("Space")
    name = page.locator(parts.ROW).nth(2).inner_text()
    assert own.run_cell("print(dashboard.layer)") == name
    choice = page.locator(f"{parts.CARD} select").first
    assert choice.evaluate("s => s.options[s.selectedIndex].text") == name
    choice.focus()  # the notebook takes arrow keys for itself, unless the list is open
    for key in ("Space", "ArrowDown", "Enter"):
        page.keyboard.press(key)
        page.wait_for_timeout(300)
    name = page.locator(parts.ROW).nth(3).inner_text()
    assert page.locator(parts.CHOSEN).inner_text() == name
    page.locator(parts.EDIT).focus()
    page.keyboard.press("Enter")
    own.wait_for_status("Edited")
    assert own.run_cell("print(dashboard.edits[0].layer)") == name
    assert own.run_cell("found = await dashboard.locate(); print(found.best)")
    own.picture("7-edited", parts.CARDS)
    own.assert_quiet()


def test_methods_and_errors_in_place(own: pages.Watched) -> None:
    page = own.page
    method = page.locator(f"{parts.CARD} select").nth(1)
    for name in ("grad-cam", "occlusion", "smoothgrad", "integrated-gradients", "input-x-gradient"):
        before = picture(page)
        method.select_option(name)
        page.wait_for_selector(f'img[alt^="{name} map"]')
        assert picture(page) == before, "the input itself does not change"
    own.picture("8-method", parts.CARDS)
    own.run_cell(
        "def broken(*a, **k): raise ValueError('no such thing')\n"
        "from rectify_widgets.widgets import actions; actions.localize = broken",
    )
    page.click(parts.LOCATE)
    page.wait_for_selector(parts.ERROR)
    assert "no such thing" in page.locator(parts.ERROR).inner_text()
    own.picture("9-error")
    own.assert_quiet()


def test_a_snapshot_outlives_the_kernel(server: Server) -> None:
    with pages.open_page(server, "own.ipynb") as watched:
        watched.run_all()
        watched.run_cell("dashboard.locate().wait(); dashboard.snapshot()")
        watched.page.wait_for_selector(f"{parts.STATIC} {parts.MAP}")
        watched.save()
        watched.assert_quiet()
    server.end_kernels()
    with pages.open_page(server, "own.ipynb") as again:
        static = again.page.wait_for_selector(parts.STATIC)
        assert "Editability of the layers" in static.inner_text()
        assert "★ best" in static.inner_text()
        assert again.page.locator(f"{parts.STATIC} img").first.evaluate("i => i.naturalWidth") > 0
        again.page.locator(parts.STATIC).scroll_into_view_if_needed()
        again.picture("10-reopened")
        assert again.foreign == []
    server.end_kernels()


def test_the_first_tutorial_runs_and_its_dashboard_answers(server: Server) -> None:
    with pages.open_page(server, TUTORIAL.name) as watched:
        watched.run_all(seconds=240)
        page = watched.page
        page.locator(parts.RECTIFY).first.scroll_into_view_if_needed()
        watched.picture("11-tutorial")
        assert page.locator(parts.MAP).count() > 0
        if page.locator(parts.UNDO).first.is_enabled():
            page.locator(parts.UNDO).first.click()
            watched.wait_for_status("Took back")
        page.locator(parts.RECTIFY).first.click()
        watched.wait_for_status("%")
        page.locator(parts.CANCEL).first.click()
        watched.wait_for_status("ancelled")
        watched.assert_quiet()
    server.end_kernels()
