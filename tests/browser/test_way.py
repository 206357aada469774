"""The whole way in a real browser: from references alone to saved edits, by mouse and by keyboard.

At the end the code that the page shows is run, and its edits are compared with those of the clicks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.browser import pages, parts
from tests.browser.frontends import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def way(server: Server) -> Iterator[pages.Watched]:
    with pages.open_page(server, "way.ipynb", height=1400) as watched:
        watched.run_all()
        watched.page.wait_for_selector(f"{parts.CLOUD} path")
        yield watched
        watched.assert_quiet()
    server.end_kernels()


def selected(way: pages.Watched) -> list[int]:
    way.page.wait_for_timeout(400)
    rows: list[int] = json.loads(way.ask("print(list(dashboard.suspicions.selected))"))
    return rows


def test_from_references_to_a_file(way: pages.Watched) -> None:
    page = way.page
    page.click(parts.REVEAL)
    page.wait_for_selector(parts.SUSPICION, timeout=120_000)
    page.wait_for_selector(".rw-sus-tile")
    way.picture("30-reveal")
    box = page.locator(parts.CLOUD).bounding_box()
    assert box is not None
    left, top = box["x"] + 3, box["y"] + 3
    right, bottom = left + box["width"] - 6, top + box["height"] - 6
    page.mouse.move(left, top)
    page.mouse.down()
    for place in ((right, top), (right, bottom), (left, bottom)):
        page.mouse.move(*place)
    page.mouse.up()
    assert selected(way) == list(range(100)), "a lasso around everything"
    page.keyboard.press("Escape")
    assert selected(way) == []
    page.keyboard.press("ArrowRight")
    here = page.locator(f"{parts.CLOUD} [data-here]").get_attribute("data-point")
    page.keyboard.press(" ")
    assert selected(way) == [int(here or -1)]
    page.keyboard.press("ArrowRight")
    assert page.locator(f"{parts.CLOUD} [data-here]").get_attribute("data-point") != here
    page.keyboard.press("Escape")
    assert selected(way) == []
    page.click(parts.ON)
    page.wait_for_selector(f"{parts.WAY_TAB.format('cleanse')}[data-chosen]")
    page.wait_for_selector(parts.CLEANSED)
    way.picture("31-cleanse")
    page.click(parts.ON)
    page.wait_for_selector(f"{parts.WAY_TAB.format('locate')}[data-chosen]")
    page.click(parts.RECTIFY)
    page.wait_for_selector(parts.MAP_AFTER, timeout=120_000)
    page.locator(parts.WAY_TAB.format("locate")).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"{parts.WAY_TAB.format('evaluate')}[data-chosen]")
    way.picture("32-evaluate")
    page.click(parts.SAVE)
    page.wait_for_selector(f"{parts.WAY_TAB.format('save')}:has-text('saved')")
    page.click(parts.WAY_TAB.format("save"))
    page.wait_for_selector(parts.REPORT)
    page.wait_for_timeout(500)
    height = "document.querySelector('.rw-dashboard').getBoundingClientRect().height"
    before = page.evaluate(height)
    page.locator(parts.REPORT_FILE).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{parts.STATUS}:has-text('Wrote repair.html and repair.json')")
    assert page.evaluate(height) == before
    assert {"repair.html", "repair.json"} <= {one.name for one in way.server.folder.iterdir()}
    page.click(parts.SHOW_CODE)
    code = page.locator(parts.CODE).inner_text()
    way.theme("JupyterLab Dark")
    way.picture("33-code-dark")
    same = way.ask(
        f"names = {{'model': case.model, 'reference': images, 'classes': case.classes}}; exec({code!r}, names); "
        "print(len(names['edits']), all(torch.equal(a.left, b.left) and torch.equal(a.right, b.right)"
        " for a, b in zip(names['edits'], dashboard.edits, strict=True)))"
    )
    count, equal = same.split()
    assert int(count) > 0
    assert equal == "True"


def test_a_narrow_page_cuts_nothing_off(way: pages.Watched) -> None:
    page = way.page
    page.set_viewport_size({"width": 700, "height": 1400})
    page.wait_for_timeout(500)
    wide = page.evaluate(
        "[...document.querySelectorAll('.rw-dashboard, .rw-dashboard *')]"
        ".filter(c => c.getBoundingClientRect().width > 0)"
        ".filter(c => c.getBoundingClientRect().right > "
        "document.querySelector('.rw-dashboard').getBoundingClientRect().right + 1)"
        ".map(c => c.className || c.tagName)"
    )
    assert wide == []
    way.picture("34-narrow")
