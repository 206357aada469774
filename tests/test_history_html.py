"""What a history draws, from timelines made by hand: steps, trials, words, curves."""

from __future__ import annotations

import re
from html import unescape

import pytest

from rectify_widgets.engine.repair.result import Step
from rectify_widgets.widgets.history import html
from rectify_widgets.widgets.history.timeline import Timeline
from tests.test_timeline import edit as named
from tests.test_timeline import joint, trial


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


def together(count: int = 40) -> list[Step]:
    """That many edits of six layers; the last of them does without it what all do."""
    gaps = [0.9 * (1 - number / count) + 0.02 for number in range(1, count + 1)]
    return [
        joint(f"layer<{number % 6}>", gap, 0.02 + 0.001 * (count - 1 - number), of=count)
        for number, gap in enumerate(gaps)
    ]


def plain(page: str) -> list[list[str]]:
    """The cells of each row, without tags and in the order of the page."""
    rows = re.findall(r"<tr[^>]*>(.*?)(?=<tr|</tbody|</thead)", page)
    return [
        [unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t", row)]
        for row in rows
    ]


def test_each_of_many_edits_says_what_is_left_without_it() -> None:
    timeline, steps = Timeline(gap=0.92, degradation=0.0), together()
    timeline.extend([named(step.layer) for step in steps], trials=[trial(1, "14 layers"), *steps])
    rows = plain(html.steps(timeline))
    assert rows[0] == ["Step", "Layer", "Edit", "Gap", "Degradation", html.WITHOUT, "Outcome"]
    own = {row[0]: row[1:] for row in rows if len(row) == 7}
    assert own["0"] == ["as given", "", "92.0 %", "0.0 %", "", ""]
    assert own["1"][-2:] == ["+3.9", "✓ refined together with 39 others"]
    assert own["39"][-2:] == ["+0.1", "✓ likewise"]
    assert own["40"][-2:] == ["+0.0", "✓ likewise"]
    layers = {row[0]: row[1:] for row in rows if len(row) == 3}
    shares = {name: 0.0 for name in layers if name != "Layer"}
    for number, step in enumerate(steps):
        shares[step.layer] += 0.1 * (39 - number)
    assert list(layers) == ["Layer", *sorted(shares, key=lambda name: -shares[name])]
    assert layers["layer<0>"] == ["7", f"+{shares['layer<0>']:.1f}"]
    page = html.steps(timeline)
    assert "✓ 40 edits of 6 layers, most of all <code>layer&lt;0&gt;</code>" in page
    assert page.count("<details") == 2, "the layers and the other trials, under the first edit"
    (kept,) = [row for row in rows if row[-1].startswith("✓ kept")]
    assert kept == ["6 layers", "joint", "2.0 %", "1.0 %", "–", "✓ kept: 40 edits refined together"]
    (back,) = [row for row in rows if row[-1].startswith("↺")]
    assert back[0] == "14 layers"


def test_two_repairs_by_many_edits_stay_apart() -> None:
    timeline = Timeline()
    for _ in range(2):
        steps = together(6)
        edits = [named(step.layer) for step in steps]
        timeline.extend(edits, trials=[trial(1, "x"), *steps])
    page = html.steps(timeline)
    assert page.count("✓ 6 edits of 6 layers") == page.count("✓ refined together with 5") == 2
    assert page.count("✓ likewise") == 10


def test_steps_of_single_edits_have_no_such_column() -> None:
    timeline = Timeline()
    timeline.extend([named("x")], trials=[trial(1, "x", kept=True, gap=0.1)])
    assert html.WITHOUT not in html.steps(timeline)


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
