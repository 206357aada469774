"""What is said and drawn of layers: pure, every number with its unit, everything escaped."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectify_widgets.widgets.editability.layer_facts import (
    Column,
    Facts,
    legend,
    share_text,
    tooltip,
)
from rectify_widgets.widgets.editability.layer_html import (
    STATIC_ROWS,
    STRIP,
    overlay,
    static_table,
    strip,
)
from rectify_widgets.widgets.editability.layer_rows import Row, list_rows
from rectify_widgets.widgets.editability.layer_tree import build_tree, tree_rows

NASTY = "<script>alert('x')</script>\""
SCORES = {"b.1": 0.8, "a": 0.2, "b.2": -0.1}
PAPER = {"a": 25185.2, "b.1": 0.0123, "b.2": 7.0}
NAMES = ["a", "b.1", "x", "b.2"]
REFUSED = {"x": "a layer of no use"}


def facts(**others: object) -> Facts:
    columns = (Column("edit-attribution", SCORES), Column("projection", PAPER, front=False))
    given: dict[str, object] = {"columns": columns, "edited": ("a",), "kinds": {"a": "Linear"}}
    return Facts(**(given | others))  # type: ignore[arg-type]


def numbers(html: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"{name}:(-?[\d.]+)%", html)]


def test_shares_in_per_cent_and_other_scores_to_three_digits() -> None:
    share, paper = facts().columns
    assert share.text(0.8) == "80.0 %"
    assert share.text(-0.1) == "−10.0 %"
    assert share.text(None) == "–"
    assert share_text(-0.0001) == "0.0 %"
    assert [paper.text(score) for score in PAPER.values()] == ["25 200", "0.0123", "7"]
    assert paper.text(2.5e7) == "2.5e+07"


def test_each_method_has_a_scale_of_its_own() -> None:
    share, paper = facts().columns
    assert share.limits() == (-0.1, 1.0)
    assert share.limits([1.3]) == (-0.1, 1.3)
    assert paper.limits([1.3]) == (0.0, 25185.2)
    assert Column("projection", {"a": 0.0}).limits() == (0.0, 1.0)


def test_a_small_share_has_a_short_bar() -> None:
    little = Facts((Column("trial", {"a": 0.05}),))
    html = overlay(list_rows(["a"], {}), little, "bars")
    assert numbers(html, "width") == [5.0]


def test_bars_start_at_zero_and_ticks_stand_at_what_was_measured() -> None:
    html = overlay(list_rows(NAMES, REFUSED), facts(measured={"b.1": 0.45}), "bars")
    front = re.findall(r'<i style="left:([\d.]+)%;width:([\d.]+)%;--c:var\(--rw-(\w+)\)', html)
    assert front[0] == ("9.1", "18.2", "orange")  # a, edited
    assert front[1] == ("0.0", "100.0", "orange")  # a by projection, of a scale of its own
    assert front[2] == ("9.1", "72.7", "orange")  # b.1, best
    assert front[4] == ("0.0", "9.1", "blue")  # b.2, below zero
    assert html.count("<b style=") == 1, "what was measured is no projection score"
    assert '<b style="left:50.0%"></b>' in html
    assert html.count("45.0 %") == 1
    assert "not editable: a layer of no use" in html
    assert "★" in html
    assert "●" in html


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(-50, 50), min_size=1))
def test_bars_never_leave_their_track(scores: dict[str, float]) -> None:
    for method in ("edit-attribution", "projection"):
        known = Facts((Column(method, scores),), measured=scores)
        html = overlay(list_rows("abcdef", {}), known, "bars")
        lefts, widths = numbers(html, "left"), numbers(html, "width")
        assert all(0.0 <= value <= 100.0 for value in (*lefts, *widths))
        for start, length in re.findall(r"left:([\d.]+)%;width:([\d.]+)%", html):
            assert float(start) + float(length) <= 100.11
        assert html.count("rw-lay-num") == 6


@pytest.mark.parametrize("view", ["bars", "table", "tree"])
@pytest.mark.parametrize(
    "known", [facts(), facts(measured={"a": 0.5}), Facts(), Facts(measured={"a": 1})]
)
def test_rows_have_as_many_cells_as_the_head(view: str, known: Facts) -> None:
    html = overlay([Row("a", "a"), Row("b.1", "b.1")], known, view)
    cells = []
    for line in html.split('<div class="rw-lay-row')[1:]:
        depth, count = 0, 0
        for tag in re.findall(r"<(/?)span", line):
            count += tag == "" and depth == 0
            depth += -1 if tag else 1
        cells.append(count)
    assert len(set(cells)) == 1
    wide = re.search(r"--rw-wide:([^;]*);", html)
    assert wide is not None
    assert len(re.sub(r"minmax\([^)]*\)", "m", wide.group(1)).split()) == cells[0]
    assert 'aria-hidden="true"' in html, "the buttons say it all"


def test_the_table_has_all_numbers() -> None:
    known = facts(
        measured={"b.1": 0.75}, choices={"b.1": ("contrast", 0.01)}, completeness={"b.1": 0.123}
    )
    html = overlay(list_rows(NAMES, REFUSED), known, "table")
    for text in ("80.0 %", "0.0123", "75.0 %", "contrast", "0.01", "12 %", "Linear", ">1<", ">3<"):
        assert text in html
    assert html.index("Measured") < html.index("projection"), "beside the method in front"


def test_notes_are_shown_where_the_models_differ() -> None:
    both = (
        Column("edit-attribution", SCORES, "after 1 edit"),
        Column("projection", PAPER, "as given", front=False),
    )
    html = overlay(list_rows(NAMES, {}), Facts(both), "bars")
    assert "predicted share of the gap, after 1 edit" in html
    assert "no unit, as given" in html
    assert ", as given</" in static_table(list_rows(NAMES, {}), Facts(both))


def test_groups_show_the_best_score_inside_and_the_signs_of_what_is_hidden() -> None:
    tree = build_tree(NAMES)
    known = facts(edited=("b.2",))
    shut = tree_rows(tree, REFUSED, ["b"])[1]
    assert shut.is_group
    assert known.columns[0].score(shut) == 0.8
    assert known.columns[1].score(shut) == 7.0
    assert known.signs(shut) == "★●"
    assert "b: 2 layers · best inside by edit-attribution 80.0 %" in tooltip(shut, known)
    assert "click to unfold" in tooltip(shut, known)
    wide = tree_rows(tree, REFUSED)[1]
    assert known.signs(wide) == ""
    assert "rw-lay-inside" in overlay([shut], known, "tree")
    none = Row("g", "g", refused=2, folded=True)
    assert "no layer that can be edited" in overlay([none], known, "tree")
    assert "2 that cannot be edited" in tooltip(none, known)


def test_tooltips_say_all_that_is_drawn() -> None:
    row = Row("a", "a")
    words = tooltip(row, facts(measured={"a": 0.5}))
    assert words == (
        "a (Linear) · edit-attribution 20.0 % · projection 25 200 · measured after the edit 50.0 % "
        "· edited"
    )
    assert tooltip(Row("x", "x", reason="why"), facts()) == "x cannot be edited: why"
    assert tooltip(Row("", "m"), Facts()) == "(the model itself)"


def test_the_legend_says_what_is_there() -> None:
    assert legend(Facts(), "bars") == ["● edited"]
    words = " · ".join(legend(facts(measured={"a": 1.2}), "tree"))
    for part in ("★", "❙ measured", "full bar: 120 % of the gap", "no unit", "hollow bar"):
        assert part in words
    assert legend(facts(), "table") == ["★ scores best", "● edited"]


def test_the_strip_is_bounded_and_says_what_it_shows() -> None:
    names = [f"l{number}" for number in range(1000)]
    scores = dict.fromkeys(names, 0.1) | {"l7": 0.9}
    known = Facts((Column("trial", dict(sorted(scores.items(), key=lambda item: -item[1]))),))
    html = strip(list_rows(names, {}), known, range(25))
    assert 200 < html.count("<span") <= STRIP
    assert 'aria-label="trial of all 1000 layers side by side; l7 scores best"' in html
    assert html.count("--rw-orange") == 1
    assert html.count("rw-lay-seen") == 7
    assert strip(list_rows(names, {}), Facts(), range(25)) == ""


def test_the_static_table_stands_alone() -> None:
    html = static_table(list_rows(NAMES, REFUSED), facts(measured={"b.1": 0.75}))
    for text in ("★ best", "● edited", "80.0 %", "75.0 %", "25 200", "a layer of no use", "Linear"):
        assert text in html
    assert html.index("<code>b.1") < html.index("<code>x") < html.index("<code>b.2")
    assert "predicted share of the gap" in html
    assert html.count("<img") == 3, "no bar for what is not above zero"
    heads = html.count("<th>")
    assert heads == 6
    for line in html.split("<tr")[2:]:
        assert line.count("<td") == heads or 'colspan="5"' in line
    many = static_table(list_rows([str(n) for n in range(STATIC_ROWS + 3)], {}), Facts())
    assert many.count("<tr") == STATIC_ROWS + 1
    assert "and 3 more rows" in many


def test_everything_from_outside_is_escaped() -> None:
    known = Facts(
        (Column("trial", {NASTY: 0.5}, NASTY), Column("projection", {NASTY: 1.0}, front=False)),
        kinds={NASTY: NASTY},
        choices={NASTY: (NASTY, 0.1)},
    )
    rows = [Row(NASTY, NASTY), Row("b", NASTY, reason=NASTY)]
    for html in (
        *(overlay(rows, known, view) for view in ("bars", "table", "tree")),
        static_table(rows, known),
        strip(rows, known, range(1)),
    ):
        assert "<script" not in html
        assert html.count('"') % 2 == 0
