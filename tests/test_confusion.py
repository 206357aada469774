"""Confusion matrices and their difference, against a recount sample by sample."""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectify_widgets.widgets.prediction import html
from rectify_widgets.widgets.prediction.confusion import (
    OTHERS,
    Ints,
    busiest,
    confusion_change,
    confusion_matrix,
)
from rectify_widgets.widgets.prediction.data import Comparison, Predictions

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
    matrix = confusion_matrix(labels, before, classes)
    for truth in range(classes):
        for number in range(classes):
            assert matrix[truth, number] == sum((labels == truth) & (before == number))


@given(cases(), st.integers(1, 14))
def test_the_difference_sums_to_zero_for_each_true_class(case: Case, limit: int) -> None:
    labels, before, after, classes = case
    found = confusion_change(labels, before, after, classes, limit)
    assert not found.matrix.sum(axis=1).any()
    folded = OTHERS in found.classes
    assert folded == (classes > limit)
    assert len(found.classes) <= limit + 1 if folded else len(found.classes) == classes
    assert found.samples.sum() == len(labels)
    assert found.before.sum() == (before == labels).sum()
    assert found.after.sum() == (after == labels).sum()
    assert (found.before <= found.samples).all()


@given(cases(), st.integers(1, 14))
def test_each_cell_is_a_recount(case: Case, limit: int) -> None:
    labels, before, after, classes = case
    found = confusion_change(labels, before, after, classes, limit)
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
    change = confusion_matrix(labels, after, classes) - confusion_matrix(labels, before, classes)
    shown = busiest(labels, before, after, classes, limit).tolist()

    def activity(number: int) -> int:
        places = [(number, other) for other in range(classes)]
        places += [(other, number) for other in range(classes) if other != number]
        return sum(abs(int(change[place])) for place in places)

    left = set(range(classes)) - set(shown)
    assert len(shown) == min(limit, sum(activity(number) > 0 for number in range(classes)))
    assert shown == sorted(shown)
    if shown:
        assert min(map(activity, shown)) >= max(map(activity, left), default=0)


def page(
    labels: Ints | None, before: Ints, after: Ints, count: int, names: list[str] | None
) -> str:
    """The page of classes of two models that predict this."""
    compared = Comparison(
        {"Clean": torch.zeros(len(before))}, labels, "", True, None, names, None, None
    )
    shares = {"Clean": np.full((len(before), count), 1 / count, np.float32)}
    compared.update([Predictions({"Clean": classes}, shares) for classes in (before, after)])
    assert compared.flips is not None
    return html.classes(compared, compared.flips, "all", None, lambda _: "")


def test_a_view_says_what_changed_and_what_it_leaves_out() -> None:
    labels = np.repeat(np.arange(30), 4)
    after = labels.copy()
    after[labels == 7] = 3
    view = page(labels, labels, after, 30, None)
    assert "4 of 120 predictions differ" in view
    assert "; the 2 of 30 classes that change, the others together" in view
    assert "class 7 as class 3 +4" in view
    assert "class 7 as class 7 −4" in view
    assert view.count('<th scope="row">') == 3
    assert '<th scope="row">all others</th>' in view
    assert re.findall("<td[^>]*data-set[^>]*>([^<]*)<", view) == ["+4", "−4"]
    assert "<tr><td>all others</td>" in view, "in the table beside it too"


def test_a_view_without_labels_compares_with_what_was_predicted() -> None:
    before, after = np.array([0, 0, 1]), np.array([0, 1, 1])
    view = page(None, before, after, 2, ["<ape>", "bee"])
    assert "Predicted before" in view
    assert "Right" not in view
    assert "&lt;ape&gt; as bee +1" in view
    assert "<ape>" not in view
    assert "nothing changed" in page(None, before, before, 2, None)


def test_of_many_classes_the_busiest_are_shown() -> None:
    labels = np.repeat(np.arange(50), 4)
    after = np.where(labels % 2 == 0, labels + 1, labels)  # 25 of them lose all, 25 gain
    view = page(labels, labels, after, 50, None)
    assert "; the 20 of 50 classes that change most, the others together" in view
    assert view.count('<th scope="row">') == 21


def test_nothing_changed_among_a_thousand_classes_lists_none() -> None:
    labels = np.arange(64)
    view = page(labels, labels, labels, 1000, None)
    assert "nothing changed among 1000 classes" in view
    assert "<table" not in view
    assert "most" not in view


def test_as_many_classes_as_imagenet_has_take_little_room() -> None:
    rng = np.random.default_rng(0)
    labels, before, after = rng.integers(0, 21_841, (3, 400))
    tracemalloc.start()
    found = confusion_change(labels, before, after, 21_841, html.CLASSES)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6, "a whole matrix takes 3.8 GB"
    assert len(found.classes) == html.CLASSES + 1
    assert found.samples.sum() == 400


def test_long_names_are_shortened_with_the_whole_name_at_the_pointer() -> None:
    name = "a class whose name takes as many as sixty characters, or so "
    assert len(name) == 60
    view = page(np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([1, 0, 1]), 2, [name, "bee"])
    cells = re.findall(r"<t[hd][^>]*>(?:<span[^>]*>)?([^<]+)<", view)
    assert max(map(len, cells)) <= html.NAME
    assert f'title="{name}"' in view
