"""The dashboard in a real JupyterLab: mouse, keyboard, both themes, and a kernel that goes away.

Every test notes console errors and requests to other hosts, and leaves screenshots in the ignored
folder beside this file.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import lab as labs

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(bool(labs.missing()), reason=labs.missing() or "Chromium is there"),
]

TUTORIAL = labs.ROOT / "notebooks" / "01_remove_a_trojan.ipynb"

OWN = (
    """import torch
import rectify_widgets as rw
torch.set_num_threads(1)
case = rw.cases.load("trojan")""",
    """dashboard = rw.RectificationDashboard(
    case.model, case.pairs[:1], examples=case.pairs[1:8], reference=case.reference[:200],
    classes=case.classes, attribution="saliency",
)
dashboard""",
    "",  # the tests write into this cell, so that the notebook's own state can be asked
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("notebooks")
    labs.write_notebook(path / "own.ipynb", OWN)
    if TUTORIAL.exists():
        shutil.copy(TUTORIAL, path / TUTORIAL.name)
    return path


@pytest.fixture(scope="module")
def lab(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[labs.Lab]:
    with labs.Lab(folder, tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture
def own(lab: labs.Lab) -> Iterator[labs.Watched]:
    with labs.open_page(lab, "own.ipynb") as watched:
        watched.run_all()
        watched.page.wait_for_selector(".rw-maps img")
        yield watched
    lab.end_kernels()


def status(watched: labs.Watched) -> str:
    return str(watched.page.locator(".rw-status").first.inner_text())


def wait_for_status(watched: labs.Watched, *words: str, seconds: float = 120) -> str:
    """Wait until the status line has one of these words; an error in place fails the test."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        text = status(watched)
        if any(word in text for word in words):
            return text
        problem = watched.page.query_selector(".rw-error")
        assert problem is None, problem.inner_text()
        watched.page.wait_for_timeout(50)
    raise TimeoutError(f"want {words}, the status is {status(watched)!r}")


def ask(watched: labs.Watched, code: str) -> str:
    """Run code in the last cell, as a user would, and give what it prints."""
    page = watched.page
    cell = page.locator(".jp-CodeCell").last
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(code)
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(200)
    limit = time.monotonic() + 60
    while "[*]" in cell.locator(".jp-InputPrompt").inner_text():
        assert time.monotonic() < limit, f"{code!r} does not end"
        page.wait_for_timeout(50)
    output = cell.locator(".jp-OutputArea-output")
    return str(output.first.inner_text()).strip() if output.count() else ""


def picture(page: Any, selector: str = ".rw-maps") -> str:
    return str(page.locator(f"{selector} img").nth(1).get_attribute("src"))


def assert_quiet(watched: labs.Watched) -> None:
    assert watched.errors == []
    assert watched.foreign == []


def test_rectify_scrub_cancel_and_undo(own: labs.Watched) -> None:
    page = own.page
    own.picture("1-ready")
    assert ask(own, "print(dashboard.status)").startswith("Ready")

    page.click(".rw-rectify")
    wait_for_status(own, "%")
    assert page.locator(".rw-cancel").is_enabled()
    assert not page.locator(".rw-rectify").is_enabled()
    before = picture(page)
    start = time.monotonic()
    page.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    while picture(page) == before:
        assert time.monotonic() - start < 10
        page.wait_for_timeout(10)
    print(f"another sample during a rectification after {time.monotonic() - start:.2f} s")
    assert "Rectify" in status(own)
    own.picture("2-running")
    start = time.monotonic()
    page.click(".rw-cancel")
    wait_for_status(own, "stopping", "ancelled")
    print(f"Cancel answered after {time.monotonic() - start:.2f} s")
    wait_for_status(own, "ancelled")
    print(f"Cancel done after {time.monotonic() - start:.2f} s")

    page.click(".rw-rectify")
    wait_for_status(own, "after")
    page.wait_for_selector("text=After, %")
    page.wait_for_selector('img[alt*="corrupted input, after"]')
    own.picture("3-light")
    assert ask(own, "print(dashboard.index, len(dashboard.edits) > 0)") == "1 True"
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

    while page.locator(".rw-undo").is_enabled():
        page.click(".rw-undo")
        wait_for_status(own, "Took back")
    assert ask(own, "print(dashboard.edits, dashboard.maps.after)") == "[] None"
    assert_quiet(own)


def test_layers_by_mouse_and_by_keyboard_alone(own: labs.Watched) -> None:
    page = own.page
    page.locator(".rw-locate").focus()
    page.keyboard.press("Enter")
    wait_for_status(own, "scores best")
    assert page.locator(".rw-chosen").count() == 1
    page.locator(".rw-row").nth(1).click()
    name = page.locator(".rw-row").nth(1).inner_text()
    assert ask(own, "print(dashboard.layer)") == name
    page.locator(".rw-row").nth(2).focus()
    page.keyboard.press("Space")
    name = page.locator(".rw-row").nth(2).inner_text()
    assert ask(own, "print(dashboard.layer)") == name
    choice = page.locator(".rw-card select").first
    assert choice.evaluate("s => s.options[s.selectedIndex].text") == name
    choice.focus()  # the notebook takes arrow keys for itself, unless the list is open
    for key in ("Space", "ArrowDown", "Enter"):
        page.keyboard.press(key)
        page.wait_for_timeout(300)
    name = page.locator(".rw-row").nth(3).inner_text()
    assert page.locator(".rw-chosen").inner_text() == name
    page.locator(".rw-edit").focus()
    page.keyboard.press("Enter")
    wait_for_status(own, "Edited")
    assert ask(own, "print(dashboard.edits[0].layer)") == name
    assert ask(own, "found = await dashboard.locate(); print(found.best)")
    own.picture("7-edited", ".rw-cards")
    assert_quiet(own)


def test_methods_and_errors_in_place(own: labs.Watched) -> None:
    page = own.page
    method = page.locator(".rw-card select").nth(1)
    for name in ("grad-cam", "occlusion", "smoothgrad", "integrated-gradients", "input-x-gradient"):
        before = picture(page)
        method.select_option(name)
        page.wait_for_selector(f'img[alt^="{name} map"]')
        assert picture(page) == before, "the input itself does not change"
    own.picture("8-method", ".rw-cards")
    ask(
        own,
        "def broken(*a, **k): raise ValueError('no such thing')\n"
        "from rectify_widgets.widgets import actions; actions.localize = broken",
    )
    page.click(".rw-locate")
    page.wait_for_selector(".rw-error")
    assert "no such thing" in page.locator(".rw-error").inner_text()
    own.picture("9-error")
    assert_quiet(own)


def test_a_snapshot_outlives_the_kernel(lab: labs.Lab) -> None:
    with labs.open_page(lab, "own.ipynb") as watched:
        watched.run_all()
        ask(watched, "dashboard.locate().wait(); dashboard.snapshot()")
        watched.page.wait_for_selector(".rw-static .rw-maps img")
        watched.command("docmanager:save")
        watched.page.wait_for_timeout(1500)
        assert_quiet(watched)
    lab.end_kernels()
    with labs.open_page(lab, "own.ipynb") as again:
        static = again.page.wait_for_selector(".rw-static")
        assert "Editability of the layers" in static.inner_text()
        assert "★ best" in static.inner_text()
        assert again.page.locator(".rw-static img").first.evaluate("i => i.naturalWidth") > 0
        again.page.locator(".rw-static").scroll_into_view_if_needed()
        again.picture("10-reopened")
        assert again.foreign == []
    lab.end_kernels()


@pytest.mark.skipif(not TUTORIAL.exists(), reason="the first tutorial is not written yet")
def test_the_first_tutorial_runs_and_its_dashboard_answers(lab: labs.Lab) -> None:
    with labs.open_page(lab, TUTORIAL.name) as watched:
        watched.run_all(seconds=240)
        page = watched.page
        page.locator(".rw-rectify").first.scroll_into_view_if_needed()
        watched.picture("11-tutorial")
        assert page.locator(".rw-maps img").count() > 0
        if page.locator(".rw-undo").first.is_enabled():
            page.locator(".rw-undo").first.click()
            wait_for_status(watched, "Took back")
        page.locator(".rw-rectify").first.click()
        wait_for_status(watched, "%")
        page.locator(".rw-cancel").first.click()
        wait_for_status(watched, "ancelled")
        assert_quiet(watched)
    lab.end_kernels()
