"""Charts: where curves, levels and marks stand, and what a table of signed numbers says."""

from __future__ import annotations

import base64
import re
from html import unescape
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from rectify_widgets.widgets import charts, render, view

SVG = "{http://www.w3.org/2000/svg}"


def curves(**options: object) -> str:
    given = {
        "levels": {"budget": 1.0, "high": 95.0},
        "x_names": ["given", "stem", "head"],
        "y_title": "per <cent>",
        "handles": [view.to_set(key=f"s{step}", step=step) for step in range(3)],
    }
    return charts.lines(
        [
            charts.Line("Gap", [0, 1, 2], [90.7, float("nan"), 2.9], "blue", " %"),
            charts.Line("Loss", [1, 2], [40.0, 30.0], "grey", " %", ["", view.to_set(branch=1)]),
        ],
        'gap <falls> from "90.7 %"',
        **(given | options),  # type: ignore[arg-type]
    )


def drawn(html: str) -> ET.Element:
    """The picture of a still view, parsed: a browser shows nothing of a drawing that is no XML."""
    found = re.search(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]*)"', html)
    assert found is not None
    root = ET.fromstring(base64.b64decode(found[1]))  # noqa: S314 - our own drawing
    assert root.get("aria-label") == unescape(found[2])
    return root


def numbers(path: str | None) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", path or "")]


def test_points_stand_where_their_numbers_are() -> None:
    root = drawn(view.still(curves(), {}))
    lines = {line.get("stroke"): line for line in root.iter(f"{SVG}polyline")}
    gap = [
        numbers(line.get("points"))
        for line in root.iter(f"{SVG}polyline")
        if line.get("stroke") == render.AGAINST
    ]
    assert [len(points) for points in gap] == [2, 2], "the missing value leaves a gap"
    (x0, y0), (x2, y2) = gap
    ticks = {
        text.text or "": float(text.get("y", 0)) - 4
        for text in root.iter(f"{SVG}text")
        if text.get("text-anchor") == "end" and (text.text or "").isdigit()
    }
    assert sorted(ticks) == ["0", "100", "50"]
    for y, value in ((y0, 90.7), (y2, 2.9)):
        share = (ticks["0"] - y) / (ticks["0"] - ticks["100"])
        assert 100 * share == pytest.approx(value, abs=0.1)
    names = {text.text: float(text.get("x", 0)) for text in root.iter(f"{SVG}text")}
    assert (names["given"], names["head"]) == (x0, x2)
    assert len({line.get("stroke-dasharray") for line in lines.values()}) == 2, "not colour alone"
    assert {"Gap", "Loss"} <= names.keys(), "a legend"
    assert ">Loss<" not in charts.lines([charts.Line("Loss", [0], [1.0])], "", x_names=["a"])


def test_levels_have_their_name_inside_the_area() -> None:
    root = drawn(view.still(curves(), {}))
    marks = {text.text: float(text.get("y", 0)) for text in root.iter(f"{SVG}text")}
    levels = [
        numbers(path.get("d"))[1]
        for path in root.iter(f"{SVG}path")
        if path.get("stroke-dasharray")
    ]
    budget, high = levels
    assert marks["budget"] < budget, "above its line"
    assert marks["high"] > high, "below it, where there is no room above"


def test_the_chosen_place_is_marked_by_the_page() -> None:
    html = curves()
    assert "data-chosen" not in html.partition("</style>")[2]
    for step in (0, 2):
        root = drawn(view.still(html, {"step": step}))
        (chosen,) = [group for group in root.iter(f"{SVG}g") if "data-chosen" in group.attrib]
        title = chosen.findtext(f"{SVG}title") or ""
        assert title.endswith(
            f"{['given', '', 'head'][step]}: {'Gap 90.70 %' if not step else 'Gap 2.90 %, Loss 30.00 %'}"
        )
    assert html.count("data-set=") == 4, "three places, and one point of its own"
    assert "data-" not in view.still(html, {}).partition("base64")[0]


def test_titles_say_what_is_missing_and_everything_is_escaped() -> None:
    html = charts.lines([charts.Line("<a>", [0], [None])], "<b>", x_names=["<c>"], y_title="<d>")
    assert "&lt;c&gt;: not measured" in html
    for name in "abcd":
        assert f"<{name}>" not in html


def test_names_of_many_places_do_not_overlap() -> None:
    names = [f"layer {number}" for number in range(80)]
    html = charts.lines([charts.Line("a", range(80), [1.0] * 80)], "", x_names=names)
    places = [
        float(text.get("x", 0))
        for text in drawn(view.still(html, {})).iter(f"{SVG}text")
        if (text.text or "").startswith("layer")
    ]
    assert 3 < len(places) < 10
    assert min(np.diff(places)) > 8 * charts.LETTER


@pytest.mark.parametrize(("count", "every"), [(3, 1), (30, 2), (41, 5), (101, 10), (301, 50)])
def test_many_places_have_room(count: int, every: int) -> None:
    """Markers and the mark of the chosen place do not touch the next one; round places are named."""
    names = [str(number) for number in range(count)]
    html = charts.lines([charts.Line("a", range(count), [1.0] * count)], "", x_names=names)
    root = drawn(view.still(html, {}))
    (line,) = root.iter(f"{SVG}polyline")
    points = np.array([numbers(point) for point in (line.get("points") or "").split()])
    apart = np.diff(points[:, 0]).min()
    marks = [float(rect.get("width", 0)) for rect in root.iter(f"{SVG}rect") if rect.get("class")]
    assert len(marks) == count
    assert max(marks) <= apart + 0.2, "coordinates are rounded to a tenth"
    dots = [path.get("d") or "" for path in root.iter(f"{SVG}path") if "a" in (path.get("d") or "")]
    assert len(dots) == count
    assert 0.3 < 2 * numbers(dots[0].partition("a")[2])[0] <= min(8, 0.7 * apart)
    named = [int(t.text or 0) for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "middle"]
    assert named == list(range(0, count, every))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 100.0, [0.0, 50.0, 100.0]),
        (0.0, 93.1, [0.0, 50.0, 100.0]),
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (-0.04, 1.0, [-0.5, 0.0, 0.5, 1.0]),
        (0.0, 0.0, [0.0, 0.5, 1.0]),
    ],
)
def test_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert charts.round_ticks(low, high) == ticks


# -- tables ---------------------------------------------------------------------------------------


def table(values: list[list[int]], handles: dict[tuple[int, int], str] | None = None) -> str:
    names = [f"<{number}>" for number in range(len(values))]
    return charts.heatmap(
        np.array(values), "in words", names=names, row_title="True", column_title="Said",
        handle=lambda row, column: (handles or {}).get((row, column), ""),
    )  # fmt: skip


def cells(html: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Background and ink of the cells, by what stands in them."""
    found = re.findall(r"background:rgb\((\d+),(\d+),(\d+)\);color:(#\w+)\">([^<]+)<", html)
    inks = {"#fff": np.full(3, 255), "#111": np.full(3, 17)}
    return {text: (np.array([int(r), int(g), int(b)]), inks[ink]) for r, g, b, ink, text in found}


def test_cells_say_their_number_in_colour_and_ink_that_reads() -> None:
    html = table([[-8, -6, -4, -2], [2, 4, 6, 8], [1, -1, 0, 0], [0, 0, 0, 0]])
    found = cells(html)
    assert len(found) == 10
    for text, (back, ink) in found.items():
        light = [
            float(
                np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
                @ [0.2126, 0.7152, 0.0722]
            )
            for c in (back / 255, ink / 255)
        ]
        assert (max(light) + 0.05) / (min(light) + 0.05) > 3.5, text
        assert (back[0] > back[2]) == (text[0] == "+"), "orange above zero, blue below"
    assert html.count(f"background:{charts.EMPTY}") == 6
    assert 'title="&lt;1&gt; → &lt;3&gt;: +8"' in html
    assert 'aria-label="in words"' in html
    assert "<3>" not in html


def test_cells_with_handles_and_many_columns() -> None:
    one = table([[1, 0], [0, 0]], {(0, 0): view.to_set(cell=[0, 0]), (1, 1): view.to_set(cell=1)})
    assert one.count("data-set=") == 1, "where nothing stands there is nothing to pick"
    assert "data-chosen" in view.still(one, {"cell": (0, 0)})
    assert "vertical-rl" not in one
    assert "vertical-rl" in table([[0] * 7] * 7)
    assert "nan" not in table([[0]])
