"""What a history draws, from timelines made by hand: steps, trials, words, curves."""

from __future__ import annotations

import pytest

from rectify_widgets.engine.repair.result import Step
from rectify_widgets.widgets.history import html
from rectify_widgets.widgets.history.timeline import Timeline
from tests.test_timeline import edit as named
from tests.test_timeline import trial


def test_hundreds_of_trials_stay_readable() -> None:
    timeline = Timeline()
    many = [trial(1, f"layer{number}") for number in range(300)]
    timeline.extend([named("x")], trials=[*many, trial(1, "x", kept=True, gap=0.1)])
    table = html.steps(timeline)
    assert table.count("<tr") == 1 + 3 + 1 + html.TRIALS + 1, (
        "head, steps and notes, head, the first trials and the kept one"
    )
    assert "✓ kept: best of this round" in table
    assert "… and 260 more." in table
    assert "300 trials rolled back: too little of the gap (300)" in table


def test_titles_and_reasons_are_escaped() -> None:
    bad = "<img src=x onerror=alert(1)>"
    timeline = Timeline()
    step = Step(1, bad, 0.5, bad, 0.1, 1.0, 0.5, 0.0, 0.0, 0.0, False, bad, 0.1)
    timeline.extend([named(bad)], [(0.5, 0.0)])
    timeline.extend([], trials=[step])
    assert "<img" not in html.page(timeline, 0.1, 0.1)


def test_figures_that_are_missing_leave_gaps() -> None:
    timeline = Timeline()
    timeline.extend([named("a"), named("b")], [(None, 0.01), (0.2, None)])
    page = html.page(timeline, None, None)
    assert 'aria-label="Gap over 2 steps: 20.0 % after step 2."' in page
    assert "<title>Step 1: not measured</title>" in page
    assert "<title>Step 2: Gap 20.00 %</title>" in page
    assert html.caption(timeline) == "Step 2 of 2, after editing b: gap 20.0 %."
    assert "<svg" not in html.page(Timeline(), None, None), "there is nothing to draw"


@pytest.mark.parametrize(
    ("target", "said"), [(0.408253, "40.8"), (0.02, "2"), (0.0025, "0.25"), (1.0, "100")]
)
def test_a_level_is_said_with_three_figures(target: float, said: str) -> None:
    timeline = Timeline()
    timeline.extend([named("a")], [(0.2, 0.01)])
    assert f">target {said} %<" in html.page(timeline, target, None)
