"""The layers as a list and as a tree, and what is said and drawn of them: pure, all escaped."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.editability.data import (
    SELF,
    Entry,
    Knowledge,
    Layers,
    Scores,
    build_tree,
    first_folds,
    group_names,
    interleave,
    list_entries,
    tree_entries,
)
from rectify_widgets.widgets.editability.html import layer_table, legend
from rectify_widgets.widgets.view import still

PARTS = st.sampled_from(["a", "b", "conv", "0", "1", "2", "10"])
NAMES = st.lists(
    st.lists(PARTS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=12, unique=True
)
WHY = "of no use"


def first_cell(line: str) -> str:
    """What stands in the first cell of a row."""
    first = line.partition("<td>")[2].partition("</td>")[0]
    return re.sub("<[^>]*>", "", first).replace("&nbsp;" * 4, "  ")


def deep(blocks: int = 30) -> list[str]:
    return [f"stage{k}.{b}.conv{c}" for k in range(3) for b in range(blocks) for c in (1, 2)]


# -- names ----------------------------------------------------------------------------------------


@given(st.text(max_size=60), st.integers(8, 40))
def test_a_shortened_name_fits_and_keeps_both_ends(name: str, width: int) -> None:
    short = markup.shorten(name, width)
    if len(name) <= width:
        assert short == name
    else:
        assert len(short) == width
        assert name.startswith(short.partition("…")[0])
        assert name.endswith(short[width // 3 + 1 :])


# -- layers that cannot be edited, in their place --------------------------------------------------


def test_refused_layers_stand_where_they_were_registered() -> None:
    registered = ["", "embed", "stem", "body", "body.1", "body.2", "head", "unused"]
    order = ["stem", "body.1", "head"]
    found = interleave(order, ["unused", "body.2", "embed"], registered)
    assert found == ["embed", "stem", "body.1", "body.2", "head", "unused"]


@pytest.mark.parametrize(
    ("order", "refused", "wanted"),
    [
        (["0", "3", "6"], ["9"], ["0", "3", "6", "9"]),
        (["0", "3", "6"], ["4"], ["0", "3", "4", "6"]),
        (["3", "6"], ["1"], ["1", "3", "6"]),
        (["a.1.x", "a.2.x", "b.1"], ["a.2.y"], ["a.1.x", "a.2.x", "a.2.y", "b.1"]),
        (["a.1.x", "a.3.x", "b.1"], ["a.2.y"], ["a.1.x", "a.2.y", "a.3.x", "b.1"]),
        (["a.x", "b.x"], ["norm"], ["a.x", "b.x", "norm"]),
        ([], ["norm"], ["norm"]),
    ],
)
def test_without_a_model_their_names_tell(
    order: list[str], refused: list[str], wanted: list[str]
) -> None:
    assert interleave(order, refused) == wanted


@given(NAMES, st.data())
def test_interleaving_keeps_everything_and_the_order(names: list[str], data: st.DataObject) -> None:
    refused = data.draw(st.sets(st.sampled_from(names)))
    order = [name for name in names if name not in refused]
    known = data.draw(st.lists(st.sampled_from(names), unique=True))
    mixed = interleave(order, refused, known)
    assert sorted(mixed) == sorted(names)
    assert [name for name in mixed if name in order] == order


# -- lists ----------------------------------------------------------------------------------------


def test_ranked_rows_put_refused_layers_last() -> None:
    rows = list_entries(["a", "x", "b", "c"], {"x": WHY}, {"c": 0.9, "a": 0.1})
    assert [row.name for row in rows] == ["c", "a", "b", "x"]
    assert [row.reason for row in rows] == ["", "", "", WHY]
    assert [row.name for row in list_entries(["a", "x", "b"], {"x": WHY})] == ["a", "x", "b"]


# -- trees ----------------------------------------------------------------------------------------


@given(NAMES, st.data())
def test_every_layer_is_in_the_tree_exactly_once(names: list[str], data: st.DataObject) -> None:
    refused = dict.fromkeys(data.draw(st.sets(st.sampled_from(names))), WHY)
    tree = build_tree(names)
    rows = tree_entries(tree, refused)
    layers = [row for row in rows if not row.is_group]
    assert sorted(row.name for row in layers) == sorted(names)
    assert {row.name for row in layers if row.reason} == set(refused)
    for part in {name.rpartition(".")[0] for name in names}:
        inside = [
            row.name for row in layers if row.name.rpartition(".")[0] == part and row.label != SELF
        ]
        assert inside == [n for n in names if n in inside], "the order within a group is kept"
    assert [row.name for row in rows if row.is_group] == list(group_names(tree))
    for row in rows:
        if row.is_group:
            assert len(row.inside) + row.refused > 1, "a group of one is written in one line"


@given(NAMES, st.data())
def test_folding_hides_exactly_what_is_inside(names: list[str], data: st.DataObject) -> None:
    layers = Layers(names, {}, {})
    tree, groups = layers.tree, layers.groups
    folded = data.draw(st.sets(st.sampled_from(groups))) if groups else set()
    seen = {row.name for row in tree_entries(tree, {}, folded) if row.is_layer}
    for name in names:
        around = layers.around(name)
        assert (name in seen) == (not set(around) & folded)
        assert around == [g for g in groups if name == g or name.startswith(f"{g}.")]


@given(NAMES, st.data())
def test_a_ranked_tree_has_the_same_rows(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    scores = {name: float(-place) for place, name in enumerate(chosen)}
    tree = build_tree(names)
    rows, ranked = tree_entries(tree, {}), tree_entries(tree, {}, (), scores)
    assert sorted(rows, key=repr) == sorted(ranked, key=repr)
    if chosen:
        top = ranked[0]
        assert chosen[0] in ((top.name,) if top.is_layer else top.inside)


def test_a_tree_in_words() -> None:
    names = ["stem", *deep(2)[:4], "attention.q", "attention", "head.1", ""]
    rows = tree_entries(build_tree(names), {"attention": WHY})
    html = layer_table(rows, Knowledge(), "tree")
    assert [first_cell(line) for line in html.split("<tr")[2:]] == [
        "stem",
        "▾ stage0 (4)",
        "  ▾ 0 (2)",
        "    conv1",
        "    conv2",
        "  ▾ 1 (2)",
        "    conv1",
        "    conv2",
        "▾ attention (1)",
        "  q",
        "  (itself)",
        "head.1",
        "(the model itself)",
    ]


def test_a_deep_network_begins_folded() -> None:
    tree = build_tree(deep(60))
    folded = first_folds(tree, 24)
    rows = tree_entries(tree, {}, folded)
    assert [(row.label, row.folded) for row in rows] == [(f"stage{k}", True) for k in range(3)]
    assert len(rows[0].inside) == 120
    shallow = build_tree(deep(2))
    assert first_folds(shallow, 24) == []
    middle = build_tree(deep(4))
    assert len(tree_entries(middle, {}, first_folds(middle, 24))) == 15


# -- what is known and drawn -----------------------------------------------------------------------

NASTY = "<script>alert('x')</script>\""
SCORES = {"b.1": 0.8, "a": 0.2, "b.2": -0.1}
PAPER = {"a": 25185.2, "b.1": 0.0123, "b.2": 7.0}
LAYERS = ["a", "b.1", "x", "b.2"]
REFUSED = {"x": "a layer of no use"}


def known_of(**others: object) -> Knowledge:
    columns = (Scores("edit-attribution", SCORES), Scores("projection", PAPER, front=False))
    given: dict[str, object] = {"scores": columns, "edited": ("a",), "kinds": {"a": "Linear"}}
    return Knowledge(**(given | others))  # type: ignore[arg-type]


def drawn_bars(html: str) -> list[tuple[float, float]]:
    """Start and length of each bar, in per cent of its track."""
    found = re.findall(r'x="(-?[\d.]+)%" y="2" width="(-?[\d.]+)%"', html)
    return [(float(start), float(length)) for start, length in found]


def test_shares_in_per_cent_and_other_scores_to_three_digits() -> None:
    share, paper = known_of().scores
    assert share.text(0.8) == "80.0 %"
    assert share.text(-0.1) == "−10.0 %"
    assert share.text(None) == "–"
    assert share.text(-0.0001) == "0.0 %"
    assert [paper.text(score) for score in PAPER.values()] == ["25 200", "0.0123", "7"]
    assert paper.text(2.5e7) == "2.5e+07"


def test_each_method_has_a_scale_of_its_own() -> None:
    share, paper = known_of().scores
    assert share.limits() == (-0.1, 1.0)
    assert share.limits([1.3]) == (-0.1, 1.3)
    assert paper.limits([1.3]) == (0.0, 25185.2)
    assert Scores("projection", {"a": 0.0}).limits() == (0.0, 1.0)


def test_a_small_share_has_a_short_bar() -> None:
    little = Knowledge((Scores("trial", {"a": 0.05}),))
    html = layer_table(list_entries(["a"], {}), little, "bars")
    assert drawn_bars(html) == [(0.0, 5.0)]


def test_bars_start_at_zero_and_ticks_stand_at_what_was_measured() -> None:
    html = layer_table(list_entries(LAYERS, REFUSED), known_of(measured={"b.1": 0.45}), "bars")
    assert drawn_bars(html) == [
        (9.1, 18.2),  # a
        (0.0, 100.0),  # a by projection, of a scale of its own
        (9.1, 72.7),  # b.1
        (0.0, 0.0),
        (0.0, 9.1),  # b.2, below zero
        (0.0, 0.0),
    ]
    colours = re.findall(r'height="8" fill="([^"]*)"', html)
    marked, plain = render.FOR, render.AGAINST
    assert colours == [marked, marked, marked, marked, plain, plain], "edited, best, neither"
    ticks = re.findall(r'x="([^"]*)" width="4"', html)
    assert ticks == ["50.0%"], "what was measured is no projection score"
    assert "45.0 %</td>" in html
    assert "not editable: a layer of no use" in html
    assert "★" in html
    assert "●" in html


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(-50, 50), min_size=1))
def test_bars_never_leave_their_track(scores: dict[str, float]) -> None:
    for method in ("edit-attribution", "projection"):
        known = Knowledge((Scores(method, scores),), measured=scores)
        html = layer_table(list_entries("abcdef", {}), known, "bars")
        drawn = drawn_bars(html)
        assert len(drawn) == len(scores)
        assert all(0.0 <= start <= start + length <= 100.11 for start, length in drawn)
        assert html.count("<svg") == 6


@pytest.mark.parametrize("view", ["bars", "table", "tree"])
@pytest.mark.parametrize(
    "known", [known_of(), known_of(measured={"a": 0.5}), Knowledge(), Knowledge(measured={"a": 1})]
)
def test_rows_have_as_many_cells_as_the_head(view: str, known: Knowledge) -> None:
    html = layer_table([*list_entries(LAYERS, REFUSED)], known, view)
    heads = html.count("<th ") + html.count("<th>")
    for line in html.split("<tr")[2:]:
        assert line.count("<td") == heads or f'colspan="{heads - 2}"' in line


def test_the_table_has_all_numbers() -> None:
    known = known_of(
        measured={"b.1": 0.75}, choices={"b.1": ("contrast", 0.01)}, completeness={"b.1": 0.123}
    )
    html = layer_table(list_entries(LAYERS, REFUSED), known, "table")
    for words in ("80.0 %", "0.0123", "75.0 %", "contrast", "0.01", "12 %", "Linear", ">1<", ">3<"):
        assert words in html
    assert html.index("Measured") < html.index("projection"), "beside the method in front"


def test_notes_are_shown_where_the_models_differ() -> None:
    both = (
        Scores("edit-attribution", SCORES, "after 1 edit"),
        Scores("projection", PAPER, "as given", front=False),
    )
    html = layer_table(list_entries(LAYERS, {}), Knowledge(both), "bars")
    assert "predicted share of the gap, after 1 edit" in html
    assert "no unit, as given" in html
    alone = layer_table(list_entries(LAYERS, {}), Knowledge(both[:1]), "bars")
    assert "after 1 edit</" not in alone


def test_groups_show_the_best_score_inside_and_the_signs_of_what_is_hidden() -> None:
    tree = build_tree(LAYERS)
    known = known_of(edited=("b.2",))
    shut = tree_entries(tree, REFUSED, ["b"])[1]
    assert shut.is_group
    assert known.scores[0].of(shut) == 0.8
    assert known.scores[1].of(shut) == 7.0
    assert known.signs(shut) == "★●"
    assert "b: 2 layers · best inside by edit-attribution 80.0 %" in known.describe(shut)
    assert "click to unfold" in known.describe(shut)
    wide = tree_entries(tree, REFUSED)[1]
    assert known.signs(wide) == ""
    assert 'fill="none" stroke=' in layer_table([shut], known, "tree")
    none = Entry("g", "g", refused=2, folded=True)
    assert "no layer that can be edited" in layer_table([none], known, "tree")
    assert "2 that cannot be edited" in known.describe(none)


def test_tooltips_say_all_that_is_drawn() -> None:
    row = Entry("a", "a")
    words = known_of(measured={"a": 0.5}).describe(row)
    assert words == (
        "a (Linear) · edit-attribution 20.0 % · projection 25 200 · measured after the edit 50.0 % "
        "· edited"
    )
    assert known_of().describe(Entry("x", "x", reason="why")) == "x cannot be edited: why"
    assert Knowledge().describe(Entry("", "m")) == "(the model itself)"


def test_the_legend_says_what_is_there() -> None:
    assert legend(Knowledge(), "bars") == ["Not scored yet", "● edited"]
    words = " · ".join(legend(known_of(measured={"a": 1.2}), "tree"))
    for part in ("★", "❙ measured", "full bar: 120 % of the gap", "no unit", "hollow bar"):
        assert part in words
    assert legend(known_of(), "table") == ["★ scores best", "● edited"]


def test_the_static_table_stands_alone() -> None:
    html = still(
        layer_table(list_entries(LAYERS, REFUSED), known_of(measured={"b.1": 0.75}), "bars"), {}
    )
    for words in ("★", "● edited", "80.0 %", "75.0 %", "25 200", "a layer of no use", "Linear"):
        assert words in html
    assert html.index("<code>b.1") < html.index("<code>x") < html.index("<code>b.2")
    assert "predicted share of the gap" in html
    assert html.count("<img") == 6
    assert "data-" not in re.sub('"data:[^"]*"', "", html)
    many = layer_table(list_entries([str(n) for n in range(500)], {}), Knowledge(), "bars")
    assert still(many, {}).count("<tr") == 501


def test_everything_from_outside_is_escaped() -> None:
    known = Knowledge(
        (Scores("trial", {NASTY: 0.5}, NASTY), Scores("projection", {NASTY: 1.0}, front=False)),
        kinds={NASTY: NASTY},
        choices={NASTY: (NASTY, 0.1)},
    )
    entries = [
        Entry(NASTY, NASTY),
        Entry("b", NASTY, reason=NASTY),
        Entry(NASTY, NASTY, inside=(NASTY,), folded=True),
    ]
    for view in ("bars", "table", "tree"):
        html = layer_table(entries, known, view)
        for page in (html, still(html, {"layer": NASTY})):
            assert "<script" not in page
            assert page.count('"') % 2 == 0


def test_an_edit_that_does_great_harm_leaves_room_for_the_other_bars() -> None:
    scores = {"a": 0.5, "b": -30.0, "c": -0.5}
    known = Knowledge((Scores("trial", scores),), measured={"c": -2.0})
    html = layer_table(list_entries("abc", {}), known, "bars")
    assert drawn_bars(html) == [(33.3, 33.3), (0.0, 33.3), (0.0, 33.3)]
    assert html.count("◂") == 2, "one bar is cut off, and the legend says so"
    assert "◂ −3000.0 %" in html
    assert re.findall(r'x="([^"]*)" width="4"', html) == ["0.0%"]
    assert "◂" not in layer_table(list_entries("a", {}), known_of(), "bars")
