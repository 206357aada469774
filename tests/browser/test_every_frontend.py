"""What every front end must pass: the dashboard from its first view to an undo, with the mouse.

``--frontend=NAME`` runs it in one of them, ``python -m tests.browser.versions`` with another kernel.
"""

from __future__ import annotations

import os

import pytest

from tests.browser import pages, parts

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.every_frontend]

VERSION = "RECTIFY_WIDGETS_IPYKERNEL"
"""Environment variable: the kernel's version must begin with it."""


def assert_kernel(own: pages.Watched) -> None:
    found = own.ask("import ipykernel; print(ipykernel.__version__)")
    print(f"ipykernel {found} in {own.server.name}")
    wanted = os.environ.get(VERSION, "")
    assert f"{found}.".startswith(f"{wanted}." if wanted else "")


def test_the_dashboard_from_first_view_to_undo(own: pages.Watched) -> None:
    page = own.page
    assert_kernel(own)
    assert own.ask("print(dashboard.status)").startswith("Ready")
    own.picture("1-ready")

    row = page.locator(parts.LAYER).nth(1)
    row.click()
    page.wait_for_selector(parts.CHOSEN)
    assert own.ask("print(dashboard.layer)") == row.get_attribute("data-key")

    page.click(parts.LOCATE)
    own.wait_for_status("scores best")
    assert own.ask("print(len(dashboard.scores))") == str(page.locator(parts.LAYER).count())

    page.click(parts.RECTIFY)
    own.wait_for_status("Rectify: ")
    page.wait_for_selector(f"{parts.CANCEL}:enabled")
    assert not page.locator(parts.RECTIFY).is_enabled()
    own.picture("2-running")
    page.click(parts.CANCEL)
    own.wait_for_status("ancelled")
    own.undo_all()  # a cancelled rectification keeps the edits that it had kept

    own.rectify()
    own.picture("3-rectified")
    last = int(own.ask("print(dashboard.history.step)"))
    assert last > 0
    page.locator(parts.STEP).first.click()
    page.wait_for_selector(parts.MAP_AFTER, state="detached")
    assert own.ask("print(dashboard.history.step, dashboard.model is case.model)") == "0 True"
    page.locator(parts.STEP_ON).focus()  # Notebook keeps a slider's arrow keys for itself
    page.keyboard.press("Enter")
    page.wait_for_selector(parts.MAP_AFTER)
    assert own.ask("print(dashboard.history.step, len(dashboard.edits))") == "1 1"
    own.picture("4-scrubbed")
    page.locator(parts.STEP).nth(last).click()
    own.wait_for_step(last)

    own.undo_all()
    assert own.ask("print(dashboard.edits, dashboard.error)") == "[] None"
    own.assert_quiet()
