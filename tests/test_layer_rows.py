"""The rows of layers and the tree of modules: pure, and true of any names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectify_widgets.widgets.editability.layer_list import PAGE, page_count, page_of
from rectify_widgets.widgets.editability.layer_rows import ROOT, Row, interleave, list_rows, shorten
from rectify_widgets.widgets.editability.layer_tree import (
    SELF,
    build_tree,
    first_folds,
    group_names,
    groups_around,
    tree_rows,
)

PARTS = st.sampled_from(["a", "b", "conv", "0", "1", "2", "10"])
NAMES = st.lists(
    st.lists(PARTS, min_size=1, max_size=4).map(".".join), min_size=1, max_size=12, unique=True
)
WHY = "of no use"


def deep(blocks: int = 30) -> list[str]:
    return [f"stage{k}.{b}.conv{c}" for k in range(3) for b in range(blocks) for c in (1, 2)]


# -- names ----------------------------------------------------------------------------------------


@given(st.text(max_size=60), st.integers(8, 40))
def test_a_shortened_name_fits_and_keeps_both_ends(name: str, width: int) -> None:
    short = shorten(name, width)
    if name and len(name) <= width:
        assert short == name
    elif name:
        assert len(short) == width
        assert name.startswith(short.partition("…")[0])
        assert name.endswith(short[width // 3 + 1 :])


def test_names_that_are_hard_to_write() -> None:
    assert shorten("") == shorten(ROOT)
    assert shorten("features.denseblock4.denselayer16.conv2").endswith("nselayer16.conv2")
    assert Row("a", "a", 1).text() == "    a"
    assert Row("g", "g", 1, inside=("g.a", "g.b"), folded=True).text() == "  ▸ g (2)"
    assert Row("g", "g", inside=("g.a",), folded=False).text() == "▾ g (1)"


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
    rows = list_rows(["a", "x", "b", "c"], {"x": WHY}, {"c": 0.9, "a": 0.1})
    assert [row.name for row in rows] == ["c", "a", "b", "x"]
    assert [row.reason for row in rows] == ["", "", "", WHY]
    assert [row.name for row in list_rows(["a", "x", "b"], {"x": WHY})] == ["a", "x", "b"]


def test_pages() -> None:
    rows = list_rows(deep(), {deep()[0]: WHY})
    assert page_count(rows) == -(-180 // PAGE)
    assert page_count([]) == 1
    assert page_of(rows, deep()[PAGE]) == 1
    assert page_of(rows, deep()[0]) is None, "no layer to choose"
    assert page_of(rows, None) is None


# -- trees ----------------------------------------------------------------------------------------


@given(NAMES, st.data())
def test_every_layer_is_in_the_tree_exactly_once(names: list[str], data: st.DataObject) -> None:
    refused = dict.fromkeys(data.draw(st.sets(st.sampled_from(names))), WHY)
    tree = build_tree(names)
    assert sorted(tree.layers) == sorted(names)
    rows = tree_rows(tree, refused)
    layers = [row for row in rows if not row.is_group]
    assert sorted(row.name for row in layers) == sorted(names)
    assert {row.name for row in layers if row.reason} == set(refused)
    for part in {name.rpartition(".")[0] for name in names}:
        inside = [
            row.name for row in layers if row.name.rpartition(".")[0] == part and row.label != SELF
        ]
        assert inside == [n for n in names if n in inside], "the order within a group is kept"
    assert [row.name for row in rows if row.is_group] == group_names(tree)
    for row in rows:
        if row.is_group:
            assert len(row.inside) + row.refused > 1, "a group of one is written in one line"


@given(NAMES, st.data())
def test_folding_hides_exactly_what_is_inside(names: list[str], data: st.DataObject) -> None:
    tree = build_tree(names)
    groups = group_names(tree)
    folded = data.draw(st.sets(st.sampled_from(groups))) if groups else set()
    seen = {row.name for row in tree_rows(tree, {}, folded) if row.is_layer}
    for name in names:
        around = groups_around(tree, name)
        assert (name in seen) == (not set(around) & folded)
        assert around == [g for g in groups if name == g or name.startswith(f"{g}.")]


@given(NAMES, st.data())
def test_a_ranked_tree_has_the_same_rows(names: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    scores = {name: float(-place) for place, name in enumerate(chosen)}
    tree = build_tree(names)
    rows, ranked = tree_rows(tree, {}), tree_rows(tree, {}, (), scores)
    assert sorted(rows, key=repr) == sorted(ranked, key=repr)
    if chosen:
        top = ranked[0]
        assert chosen[0] in ((top.name,) if top.is_layer else top.inside)


def test_a_tree_in_words() -> None:
    names = ["stem", *deep(2)[:4], "attention.q", "attention", "head.1", ""]
    rows = tree_rows(build_tree(names), {"attention": WHY})
    assert [row.text() for row in rows] == [
        "stem",
        "▾ stage0 (4)",
        "  ▾ 0 (2)",
        "      conv1",
        "      conv2",
        "  ▾ 1 (2)",
        "      conv1",
        "      conv2",
        "▾ attention (1)",
        "    q",
        "    (itself)",
        "head.1",
        "(the model itself)",
    ]


def test_a_deep_network_begins_folded() -> None:
    tree = build_tree(deep(60))
    folded = first_folds(tree, 24)
    rows = tree_rows(tree, {}, folded)
    assert [row.text() for row in rows] == [f"▸ stage{k} (120)" for k in range(3)]
    assert len(rows[0].inside) == 120
    shallow = build_tree(deep(2))
    assert first_folds(shallow, 24) == []
    middle = build_tree(deep(4))
    assert len(tree_rows(middle, {}, first_folds(middle, 24))) == 15
