"""Confusion matrices and their difference, against a recount sample by sample."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rectify_widgets.widgets.prediction import class_page, confusion
from rectify_widgets.widgets.prediction.confusion import OTHERS, Ints

Case = tuple[Ints, Ints, Ints, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Labels, predictions before and after, and the number of classes."""
    classes, count = draw(st.integers(2, 12)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels, before, after = rng.integers(0, classes, (3, count))
    return labels, before, after, classes


@given(cases())
def test_a_matrix_is_a_recount(case: Case) -> None:
    labels, before, _, classes = case
    matrix = confusion.confusion(labels, before, classes)
    for truth in range(classes):
        for told in range(classes):
            assert matrix[truth, told] == sum((labels == truth) & (before == told))


@given(cases(), st.integers(1, 14))
def test_the_difference_sums_to_zero_for_each_true_class(case: Case, limit: int) -> None:
    labels, before, after, classes = case
    found = confusion.difference(labels, before, after, classes, limit)
    assert not found.matrix.sum(axis=1).any()
    assert len(found.classes) == (classes if classes <= limit else limit + 1)
    assert found.samples.sum() == len(labels)
    assert found.before.sum() == (before == labels).sum()
    assert found.after.sum() == (after == labels).sum()
    assert (found.before <= found.samples).all()


@given(cases(), st.integers(1, 14))
def test_each_cell_is_a_recount(case: Case, limit: int) -> None:
    labels, before, after, classes = case
    found = confusion.difference(labels, before, after, classes, limit)
    shown = [number for number in found.classes.tolist() if number != OTHERS]
    assert shown == sorted(shown)

    def named(number: int) -> int:
        return number if number in shown else OTHERS

    expected = dict.fromkeys(
        [(row, column) for row in found.classes.tolist() for column in found.classes.tolist()], 0
    )
    for truth, old, new in zip(labels.tolist(), before.tolist(), after.tolist(), strict=True):
        expected[named(truth), named(new)] += 1
        expected[named(truth), named(old)] -= 1
    cells = {
        (row, column): found.matrix[i, j]
        for i, row in enumerate(found.classes.tolist())
        for j, column in enumerate(found.classes.tolist())
    }
    assert cells == expected


@given(cases(), st.integers(1, 14))
def test_the_classes_shown_are_those_that_change_most(case: Case, limit: int) -> None:
    labels, before, after, classes = case
    change = confusion.confusion(labels, after, classes) - confusion.confusion(
        labels, before, classes
    )
    shown = confusion.busiest(change, limit).tolist()

    def activity(number: int) -> int:
        places = [(number, other) for other in range(classes)]
        places += [(other, number) for other in range(classes) if other != number]
        return sum(abs(int(change[place])) for place in places)

    left = set(range(classes)) - set(shown)
    assert len(shown) == min(limit, classes)
    assert min(map(activity, shown)) >= max(map(activity, left), default=0)


def test_a_view_says_what_changed_and_what_it_leaves_out() -> None:
    labels = np.repeat(np.arange(30), 4)
    before = labels.copy()
    after = labels.copy()
    after[labels == 7] = 3
    view = class_page.describe("Clean", labels, before, after, count=30, classes=None)
    assert "4 of 120 predictions differ" in view.head
    assert "20 of 30 classes that change most" in view.head
    assert "class 7 as class 3 +4" in view.chart
    assert "class 7 as class 7 −4" in view.chart
    cells = re.findall("<td[^>]*>([^<]*)</td>", view.chart)
    assert len(cells) == 21 * 21
    assert re.findall('<th scope="row">([^<]*)', view.chart)[-1] == "all others"
    assert sorted(filter(None, cells)) == ["+4", "−4"]
    assert "all others" in view.table


def test_a_view_without_labels_compares_with_what_was_predicted() -> None:
    before, after = np.array([0, 0, 1]), np.array([0, 1, 1])
    view = class_page.describe("Input", None, before, after, count=2, classes=["<ape>", "bee"])
    assert "Predicted before" in view.table
    assert "Right" not in view.table
    assert "&lt;ape&gt;" in view.table
    assert "&lt;ape&gt; as bee +1" in view.chart
    same = class_page.describe("Input", None, before, before, count=2, classes=None)
    assert "nothing changed" in same.head
