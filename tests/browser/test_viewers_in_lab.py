"""The viewers without the dashboard, in a real JupyterLab: every page of each, by mouse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import pages, parts
from tests.browser.frontends import Server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.usefixtures("cells"),
]


@pytest.fixture(scope="module")
def viewers(server: Server) -> Iterator[pages.Watched]:
    """A page with the four viewers, one below the other."""
    with pages.open_page(server, "viewers.ipynb") as watched:
        watched.page.set_viewport_size({"width": 1280, "height": 4200})
        watched.run_all()
        watched.page.wait_for_selector(parts.MAP)
        yield watched
        watched.assert_quiet()
    server.end_kernels()


def choose(watched: pages.Watched, text: str) -> None:
    watched.page.locator(parts.CHOICE.format(text)).first.click()


def rows(watched: pages.Watched, count: int) -> None:
    """Wait until there are so many rows of layers and groups."""
    watched.page.wait_for_function(
        f"() => document.querySelectorAll('{parts.LAYER}').length === {count}"
    )


def test_maps_are_read_magnified_and_faded_in_the_page(viewers: pages.Watched) -> None:
    page = viewers.page
    one = page.locator(parts.MAP_GRID).first
    one.scroll_into_view_if_needed()
    box = one.bounding_box()
    assert box is not None
    place = box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"]
    page.mouse.move(*place)
    assert page.locator(parts.TIP).first.inner_text().startswith("row 16, column 11: ")
    widths = f"""() => [...document.querySelectorAll('{parts.MAP_GRID}')]
        .map(map => map.getBoundingClientRect().width)"""
    before = page.evaluate(widths)
    page.mouse.dblclick(*place)
    assert page.evaluate(widths) == [3 * width for width in before]
    page.mouse.dblclick(*place)
    assert page.evaluate(widths) == before
    overlay = page.locator(parts.OVERLAY).first
    fire = "(i, name) => i.dispatchEvent(new Event(name, {bubbles: true}))"
    overlay.evaluate("i => { i.value = 0.2; }")
    overlay.evaluate(fire, "input")
    assert one.evaluate("map => getComputedStyle(map).opacity") == "0.2"
    assert viewers.ask("print(maps.opacity)") == "0.85", "the kernel hears of it on release"
    overlay.evaluate(fire, "change")
    page.wait_for_timeout(500)
    assert viewers.ask("print(maps.opacity)") == "0.2"


def test_a_tile_of_the_whole_set_opens_its_sample(viewers: pages.Watched) -> None:
    choose(viewers, "Whole set")
    viewers.page.wait_for_selector(parts.SET_TILE)
    assert viewers.ask("print(maps.page)") == "set"
    viewers.picture("14-whole-set")
    tile = viewers.page.locator(parts.SET_OPEN).nth(1)
    name = tile.inner_text().split("\n")[-1]
    tile.click()
    viewers.page.wait_for_function(
        f"() => document.querySelector('img[alt*=\"{name.lower()}\"]') !== null"
    )
    assert viewers.ask("print(maps.page, maps.index)") == f"sample {int(name.split()[-1]) - 1}"


def test_groups_of_the_tree_fold(viewers: pages.Watched) -> None:
    choose(viewers, "Tree")
    rows(viewers, 21)  # 14 layers and 7 groups
    viewers.page.locator(f"{parts.LAYER}:has-text('stage2')").first.click()
    rows(viewers, 14)  # two blocks and five layers are inside
    viewers.page.locator(f"{parts.LAYER}:has-text('classifier')").first.click()
    assert viewers.ask("print(layers.layer)") == "classifier"
    viewers.picture("15-tree")
    choose(viewers, "Table")
    choose(viewers, "Best first")
    viewers.page.wait_for_timeout(1000)
    assert viewers.ask("print(layers.view, layers.order)") == "table rank"


def test_a_flip_opens_its_sample_and_classes_show_in_both_themes(viewers: pages.Watched) -> None:
    choose(viewers, "Flips")
    viewers.page.locator(parts.FLIP).nth(1).focus()
    viewers.page.keyboard.press("ArrowDown")
    flipped = viewers.ask("print(predictions.flips.samples[2])")
    assert viewers.ask("print(predictions.page, predictions.index)") == f"flips {flipped}"
    viewers.page.locator(parts.FLIP).nth(3).click()
    viewers.page.wait_for_timeout(1500)
    flipped = viewers.ask("print(predictions.flips.samples[3])")
    assert viewers.ask("print(predictions.page, predictions.index)") == f"sample {flipped}"
    choose(viewers, "Classes")
    viewers.page.locator(f"{parts.CHART} td[data-set]").first.click()
    viewers.page.wait_for_selector(parts.FLIP)
    assert viewers.ask("print(predictions.confusion is None)") == "False"
    for theme in ("Dark", "Light"):
        viewers.page.wait_for_selector(parts.CHART)
        viewers.theme(f"JupyterLab {theme}")
        viewers.page.wait_for_timeout(2500)
        viewers.picture(f"16-classes-{theme.lower()}")
        box = viewers.page.locator(parts.CHART).first.bounding_box()
        assert box is not None
        assert box["height"] > 150


def test_branching_off_keeps_the_later_step(viewers: pages.Watched) -> None:
    viewers.page.locator(parts.STEP).first.click()
    viewers.page.wait_for_selector(f"{parts.BRANCH}:enabled")
    viewers.page.click(parts.BRANCH)
    viewers.page.wait_for_function("() => document.body.innerText.includes('2 branches')")
    assert viewers.ask("print(history.branch, history.step, history.edits)") == "1 0 []"
    viewers.picture("17-branch")
    assert viewers.ask("history.branch = 0; print(len(history.edits))") == "1"
