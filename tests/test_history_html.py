"""What a history draws, from timelines made by hand: tables, words, curves."""

from __future__ import annotations

import re

import pytest

from rectify_widgets.engine.repair.result import Step
from rectify_widgets.widgets.charts import Line, lines
from rectify_widgets.widgets.history import history_html
from rectify_widgets.widgets.history.curves import drawing, nice_ticks
from rectify_widgets.widgets.history.timeline import Timeline
from tests.test_timeline import edit as named
from tests.test_timeline import trial


def test_hundreds_of_trials_stay_readable() -> None:
    timeline = Timeline()
    many = [trial(1, f"layer{number}") for number in range(300)]
    timeline.extend([named("x")], trials=[*many, trial(1, "x", kept=True, gap=0.1)])
    fold = history_html.step_notes(timeline, timeline.here)
    assert fold.count("<tr") == history_html.TRIALS + 2, (
        "head, the kept one, and the first of the rest"
    )
    assert "✓ kept: best of this round" in fold
    assert "… and 260 more." in fold
    assert "300 trials rolled back: too little of the gap (300)" in fold


def test_titles_and_reasons_are_escaped() -> None:
    bad = "<img src=x onerror=alert(1)>"
    timeline = Timeline()
    step = Step(1, bad, 0.5, bad, 0.1, 1.0, 0.5, 0.0, 0.0, 0.0, False, bad, 0.1)
    timeline.extend([named(bad)], [(0.5, 0.0)])
    timeline.extend([], trials=[step])
    for html in (
        history_html.steps_table(timeline),
        history_html.step_notes(timeline, timeline.here),
    ):
        assert "<img" not in html


def test_figures_that_are_missing_leave_gaps() -> None:
    timeline = Timeline()
    timeline.extend([named("a"), named("b")], [(None, 0.01), (0.2, None)])
    chart = history_html.gap_chart(timeline, None)
    assert chart.figure["data"][0]["y"] == [None, None, 20.0]
    assert chart.alt == "Gap over 2 steps: 20.0 % after step 2."
    assert history_html.caption(timeline) == "Step 2 of 2, after editing b: gap 20.0 %."
    assert drawing(chart).count("rw-dot") == 1


@pytest.mark.parametrize(
    ("target", "told"), [(0.408253, "40.8"), (0.02, "2"), (0.0025, "0.25"), (1.0, "100")]
)
def test_a_level_is_told_with_three_figures(target: float, told: str) -> None:
    timeline = Timeline()
    timeline.extend([named("a")], [(0.2, 0.01)])
    assert f">target {told} %<" in drawing(history_html.gap_chart(timeline, target))


def test_the_drawing_says_what_the_chart_says() -> None:
    chart = lines(
        [Line("Gap", [0, 1, 2], [100.0, None, 5.0]), Line("other", [1, 2], [40.0, 30.0], "grey")],
        "in words", levels={"target 2 %": 2.0, "high": 95.0}, here=1, x_title="Step",
        y_title="Gap, %", x_names=["0", "1", "2"], height=200,
    )  # fmt: skip
    html = drawing(chart)
    assert 'role="img" aria-label="in words"' in html
    assert html.count("<polyline") == 3, "the gap in the curve stays open"
    assert html.count("rw-here") == 1
    (place,) = re.findall(r'rw-here" style="left:([\d.]+)%', html)
    assert float(place) == pytest.approx(50.0)
    assert 'title="Gap, step 2: 5.00 %"' in html
    assert "target 2 %" in html
    assert html.count("rw-below") == 1
    assert "rw-curves-legend" in html
    assert "height:200px" in html


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
    assert nice_ticks(low, high) == ticks
