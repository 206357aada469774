"""Charts: the plotly dictionaries against plotly itself, and the still pictures of them."""

from __future__ import annotations

import base64
import io
import json
import re
from html import unescape

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from rectify_widgets.widgets import charts


def curve(here: float | None = 1) -> charts.Chart:
    return charts.lines(
        [
            charts.Line("Gap", [0, 1, 2], [90.7, float("nan"), 2.9], "blue", " %"),
            charts.Line("Degradation", [0, 1, 2], [0, 0.1, None], "orange", " %"),
        ],
        'gap <falls> from "90.7 %"',
        levels={"budget": 1.0},
        here=here,
        x_names=["given", "stem", "head"],
        y_title="per cent",
    )


def table() -> charts.Chart:
    return charts.heatmap(
        [[0, -3], [3, 1]], "b", rows="xy", columns="xy", texts=[["0", "−3"], ["+3", "+1"]]
    )


def pixels(tag: str) -> np.ndarray:
    found = re.search(r"base64,([^\"]+)", tag)
    assert found is not None
    picture = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGBA")
    return np.asarray(picture)


@pytest.mark.parametrize("chart", [curve(), table()])
def test_a_chart_is_a_valid_plotly_figure_of_plain_data(chart: charts.Chart) -> None:
    figure = go.Figure(chart.figure)  # refuses what plotly does not know
    assert len(figure.data) == len(chart.figure["data"])
    assert json.loads(json.dumps(chart.figure)) == chart.figure
    assert "NaN" not in json.dumps(chart.figure), "JSON in a notebook has no NaN"
    assert len(json.dumps(chart.figure)) < 10_000


def test_gaps_levels_and_looks_reach_the_figure() -> None:
    gap, loss = curve().figure["data"]
    assert gap["y"] == [90.7, None, 2.9]
    assert {gap["line"]["dash"], loss["line"]["dash"]} == {"solid", "dash"}, "not by colour alone"
    assert gap["marker"]["symbol"] != loss["marker"]["symbol"]
    level, here = curve().figure["layout"]["shapes"]
    assert (level["y0"], here["x0"]) == (1.0, 1)
    assert [note["text"] for note in curve().figure["layout"]["annotations"]] == ["budget"]


def test_every_cell_has_its_number_in_ink_that_reads() -> None:
    notes = table().figure["layout"]["annotations"]
    assert {(note["x"], note["y"]): note["text"] for note in notes} == {
        (0, 0): "0", (1, 0): "−3", (0, 1): "+3", (1, 1): "+1",
    }  # fmt: skip
    inks = {note["text"]: note["font"]["color"] for note in notes}
    assert inks["−3"] == inks["+3"] != inks["0"] == inks["+1"]


def test_a_table_of_zeros_is_drawn_too() -> None:
    still = charts.heatmap([[0.0]], "nothing", rows="a", columns="a", texts=[["0"]])
    assert still.figure["data"][0]["zmax"] == 1.0
    assert pixels(charts.picture(still)).size


@pytest.mark.parametrize("chart", [curve(), table()])
def test_the_still_picture_is_small_transparent_and_says_what_it_shows(chart: charts.Chart) -> None:
    tag = charts.picture(chart, width=400)
    assert unescape(re.search(r'alt="([^"]*)"', tag)[1]) == chart.alt  # type: ignore[index]
    assert 'width="400"' in tag
    assert f'height="{chart.height}"' in tag
    assert len(tag) < 40_000
    shown = pixels(tag)
    assert shown.shape[:2] == (2 * chart.height, 800)
    assert shown[0, 0, 3] == 0, "the corner shows the page"
    assert (shown[..., 3] > 200).mean() > 0.001


def test_the_still_picture_shows_both_colours_of_a_table() -> None:
    shown = pixels(charts.picture(table()))
    for colour in ((0x3B, 0x78, 0xB0), (0xD5, 0x5E, 0x00)):
        distance = np.abs(shown[..., :3].astype(int) - colour).sum(axis=-1)
        assert (distance < 40).mean() > 0.05


def test_a_moved_marker_redraws_the_live_chart_but_not_its_still_picture() -> None:
    view = charts.ChartView()
    charts._still.cache_clear()
    for here in (0, 1, 2):
        view.show(curve(here))
        data = view.outputs[0]["data"]  # type: ignore[index]
        assert data["application/vnd.plotly.v1+json"]["layout"]["shapes"][-1]["x0"] == here
        assert data["text/plain"] == curve().alt
        assert "<img" in data["text/html"]
    assert charts._still.cache_info().misses == 1
    assert charts.picture(curve(0)) != charts.picture(curve(2))
    view.show(None)
    assert view.outputs == ()
    view.close()
