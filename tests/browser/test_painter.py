"""The painter's tools in a real browser: every mask is compared with one made in Python, to the pixel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tests.browser import pages, parts
from tests.browser.frontends import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SIDE = 28

Mask = NDArray[np.bool_]


@pytest.fixture(scope="module")
def page_of_server(server: Server) -> Iterator[pages.Watched]:
    with pages.open_page(server, "painter.ipynb") as watched:
        watched.run_all()
        watched.page.wait_for_selector(parts.STAGE)
        yield watched
        watched.assert_quiet()
    server.end_kernels()


@pytest.fixture
def painter(page_of_server: pages.Watched) -> pages.Watched:
    """The first sample in view, nothing painted, the whole picture, brush and a size of 5."""
    page_of_server.ask(
        "painter.index = 0; painter.masks = painter.masks & False; "
        "painter.paper.tool, painter.paper.size = 'brush', 5; painter.settle()"
    )
    page = page_of_server.page
    page.locator(parts.STAGE).focus()
    page.keyboard.press("0")
    page.wait_for_timeout(300)
    return page_of_server


def at(painter: pages.Watched, row: float, column: float) -> tuple[float, float]:
    """The middle of a pixel of the whole picture, on the page."""
    box = painter.page.locator(parts.STAGE).bounding_box()
    assert box is not None
    unit = box["width"] / SIDE
    return box["x"] + (column + 0.5) * unit, box["y"] + (row + 0.5) * unit


def drag(
    painter: pages.Watched, places: Sequence[tuple[float, float]], button: str = "left"
) -> None:
    """Press at the first ``(row, column)``, go to the others, and let go."""
    mouse = painter.page.mouse
    mouse.move(*at(painter, *places[0]))
    mouse.down(button=button)
    for place in places[1:]:
        mouse.move(*at(painter, *place))
    mouse.up(button=button)


def keys(painter: pages.Watched, *names: str) -> None:
    for name in names:
        painter.page.keyboard.press(name)


def mask(painter: pages.Watched, index: int = 0) -> Mask:
    """What Python has."""
    rows = painter.ask(f"import json; print(json.dumps(painter.masks[{index}].int().tolist()))")
    return np.array(json.loads(rows), bool)


def expect(painter: pages.Watched, wanted: Mask, index: int = 0) -> None:
    """Python has this mask soon, and still has it a little later."""
    for _ in range(20):
        painter.page.wait_for_timeout(250)
        if (mask(painter, index) == wanted).all():
            break
    painter.page.wait_for_timeout(250)
    found = mask(painter, index)
    assert (found == wanted).all(), f"differs at {np.argwhere(found != wanted).tolist()}"


def put(painter: pages.Watched, wanted: Mask) -> None:
    """Set the mask of the first sample from Python."""
    painter.ask(
        f"m = painter.masks.clone(); m[0] = torch.tensor({wanted.astype(int).tolist()}).bool(); "
        "painter.masks = m"
    )
    painter.page.wait_for_timeout(400)


def block(rows: slice, columns: slice) -> Mask:
    found = np.zeros((SIDE, SIDE), bool)
    found[rows, columns] = True
    return found


def discs(places: Sequence[tuple[int, int]], size: int) -> Mask:
    """Pixels at most half of the size away from one of these; the size is odd."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    near = [(rows - r) ** 2 + (columns - c) ** 2 <= size**2 / 4 for r, c in places]
    return np.array(np.any(near, axis=0))


NOTHING = np.zeros((SIDE, SIDE), bool)
AT_ONCE = """(canvas, keys) => keys.forEach(key => canvas.dispatchEvent(
    new KeyboardEvent("keydown", { key, ctrlKey: key === "z", bubbles: true })))"""
"""Keys that come faster than the page is drawn."""
RECTANGLE = block(slice(20, 26), slice(19, 27))


def test_a_rectangle_and_a_stroke_undone_and_done_again(painter: pages.Watched) -> None:
    page = painter.page
    page.locator(parts.TOOL.format("rectangle")).click()
    drag(painter, [(25, 26), (20, 19)])
    expect(painter, RECTANGLE)
    page.wait_for_selector(parts.CLEANSED)
    keys(painter, "b")
    drag(painter, [(3, 3), (9, 9), (9, 20)])
    line = discs([(k, k) for k in range(3, 10)] + [(9, k) for k in range(9, 21)], 5)
    expect(painter, RECTANGLE | line)
    page.click(parts.PAINT_UNDO)
    expect(painter, RECTANGLE)
    page.click(parts.PAINT_REDO)
    expect(painter, RECTANGLE | line)
    page.locator(parts.STAGE).focus()
    keys(painter, "Control+z", "Control+z")
    expect(painter, NOTHING)
    keys(painter, "Control+Shift+z")
    expect(painter, RECTANGLE)
    painter.picture("20-painter")


def test_taking_paint_away(painter: pages.Watched) -> None:
    put(painter, RECTANGLE)
    keys(painter, "e", ",", ",")
    drag(painter, [(22, 15), (22, 27)])
    wanted = RECTANGLE & ~discs([(22, column) for column in range(15, 28)], 3)
    expect(painter, wanted)
    keys(painter, "r")
    drag(painter, [(20, 19), (30, 21)], button="right")
    wanted &= ~block(slice(20, SIDE), slice(19, 22))
    expect(painter, wanted)
    keys(painter, "Delete")
    expect(painter, NOTHING)


def test_a_lasso_paints_its_line_and_what_is_inside(painter: pages.Watched) -> None:
    keys(painter, "l")
    drag(painter, [(4, 4), (20, 20), (20, 4)])
    wanted = np.zeros((SIDE, SIDE), bool)
    wanted[4:21, 4:21] = np.tri(17, dtype=bool)
    expect(painter, wanted)


def test_fill_paints_up_to_the_paint_around(painter: pages.Watched) -> None:
    walls = np.random.default_rng(4).random((SIDE, SIDE)) < 0.35
    walls[14, 14] = False
    put(painter, walls)
    keys(painter, "f")
    drag(painter, [(14, 14)])
    areas, _ = ndimage.label(~walls)
    wanted = walls | (areas == areas[14, 14])
    expect(painter, wanted)
    assert 1 < (wanted & ~walls).sum() < (~walls).sum()


@pytest.mark.every_frontend
def test_painting_by_keyboard_alone(painter: pages.Watched) -> None:
    """From a button to the canvas with Tab, and every tool with keys."""
    page = painter.page
    page.locator(parts.STAGE).evaluate(AT_ONCE, [" ", " ", "z"])  # undone before the page is drawn
    expect(painter, NOTHING)
    drag(painter, [(14, 14)])  # from here on no mouse
    keys(painter, "Control+z", "r", "Shift+ArrowUp", *["ArrowLeft"] * 4)  # row 6, column 10
    keys(painter, " ", *["ArrowDown"] * 3, "Shift+ArrowRight", " ")
    expect(painter, block(slice(6, 10), slice(10, 19)))
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    keys(painter, "z")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"
    expect(painter, NOTHING)
    keys(painter, "b", *[","] * 4, " ", "ArrowLeft", "ArrowLeft", "ArrowUp", " ", "ArrowUp")
    wanted = block(slice(9, 10), slice(16, 19)) | block(slice(8, 9), slice(16, 17))
    expect(painter, wanted)
    keys(painter, " ", "ArrowUp", "Escape")
    expect(painter, wanted)  # the dropped stroke leaves nothing
    assert painter.ask("print(painter.paper.size, painter.paper.tool)") == "1 brush"


@pytest.mark.every_frontend
def test_an_enlarged_picture_is_painted_where_it_shows(painter: pages.Watched) -> None:
    page = painter.page
    keys(painter, *[","] * 4)
    page.mouse.move(*at(painter, 10, 20))
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_timeout(200)
    drag(painter, [(10, 20)])  # what is under the pointer stays there
    expect(painter, block(slice(10, 11), slice(20, 21)))
    keys(painter, "0")
    page.wait_for_timeout(200)
    drag(painter, [(0, 0)])
    wanted = block(slice(10, 11), slice(20, 21)) | block(slice(0, 1), slice(0, 1))
    expect(painter, wanted)


@pytest.mark.every_frontend
def test_the_wheel_sizes_the_brush(painter: pages.Watched) -> None:
    page = painter.page
    page.mouse.move(*at(painter, 14, 14))
    page.mouse.wheel(0, -80)
    page.wait_for_timeout(300)
    assert painter.ask("print(painter.paper.size)") == "7"


def test_each_sample_has_its_own_mask_and_its_own_steps(painter: pages.Watched) -> None:
    keys(painter, "r")
    drag(painter, [(20, 19), (25, 26)])
    expect(painter, RECTANGLE)
    painter.ask("painter.index = 1; painter.settle()")
    painter.page.wait_for_timeout(300)
    drag(painter, [(0, 0), (2, 2)])
    expect(painter, block(slice(0, 3), slice(0, 3)), 1)
    painter.ask("painter.index = 0; painter.settle()")
    painter.page.wait_for_timeout(300)
    painter.page.locator(parts.STAGE).focus()
    keys(painter, "z")
    expect(painter, NOTHING)
    assert mask(painter, 1).sum() == 9
    put(painter, RECTANGLE)
    keys(painter, "z")
    expect(painter, NOTHING)  # what Python put there can be undone too


def test_the_model_answers_for_what_is_painted(painter: pages.Watched) -> None:
    put(painter, RECTANGLE)
    painter.page.wait_for_function(
        "() => document.querySelector('.rw-cleansed')?.innerText.includes('cleansed, it ')"
    )
    assert painter.ask("print(painter.painted, painter.error)") == "[0] None"
    clean = painter.ask(
        "print(torch.equal(painter.clean[:1], "
        "rw.cleanse(case.pairs.corrupted[:1], painter.masks[:1], 'ring')))"
    )
    assert clean == "True"
