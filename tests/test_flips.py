"""Kinds of flips, and choosing and sorting them, against counts made by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rectify_widgets.widgets.prediction.confusion import OTHERS, Ints
from rectify_widgets.widgets.prediction.data import (
    KINDS,
    SAME,
    UNKNOWN,
    Flips,
    Predictions,
    find_flips,
    kinds_of,
)
from rectify_widgets.widgets.prediction.viewer import FILTERS, SORTS

Case = tuple[Predictions, Predictions, Ints | None]
CLASSES = 4
COLUMNS = ("Clean", "Corrupted")

classes = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Predictions of two columns before and after, and labels or none."""
    count = draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def predictions() -> Predictions:
        shares = {
            name: rng.dirichlet(np.ones(CLASSES), count).astype(np.float32) for name in COLUMNS
        }
        return Predictions({name: row.argmax(axis=1) for name, row in shares.items()}, shares)

    labels = rng.integers(0, CLASSES, count) if draw(st.booleans()) else None
    return predictions(), predictions(), labels


def rows(found: Flips) -> list[tuple[int, int]]:
    return list(zip(found.samples.tolist(), found.columns.tolist(), strict=True))


def test_each_kind() -> None:
    labels = np.array([0, 0, 0, 0, 0])
    before = np.array([0, 1, 0, 1, 1])
    after = np.array([0, 1, 1, 0, 2])
    kinds = kinds_of(before, after, labels)
    assert [SAME if kind == SAME else KINDS[kind] for kind in kinds] == [
        SAME, SAME, "broken", "fixed", "changed",
    ]  # fmt: skip
    blind = kinds_of(before, after, UNKNOWN)
    assert [kind == SAME for kind in blind] == [True, True, False, False, False]
    assert set(blind[2:].tolist()) == {KINDS.index("changed")}


@given(cases())
def test_every_prediction_is_of_exactly_one_kind(
    case: Case,
) -> None:
    before, after, labels = case
    found = find_flips(before, after, labels)
    listed = dict(zip(rows(found), found.kinds.tolist(), strict=True))
    assert len(listed) == len(found), "none is listed twice"
    for column, name in enumerate(COLUMNS):
        pairs = zip(before.classes[name], after.classes[name], strict=True)
        for sample, (first, last) in enumerate(pairs):
            truth = None if labels is None else labels[sample]
            tests = {
                "fixed": first != last and last == truth,
                "broken": first != last and first == truth,
                "changed": first != last and truth not in (first, last),
            }
            assert sum(tests.values()) + (first == last) == 1
            expected = next((KINDS.index(name) for name, yes in tests.items() if yes), None)
            assert listed.get((sample, column)) == expected


@given(cases())
def test_what_a_flip_carries(case: Case) -> None:
    before, after, labels = case
    found = find_flips(before, after, labels)
    for place, (sample, column) in enumerate(rows(found)):
        name = COLUMNS[column]
        old, chances = before.classes[name], before.probabilities[name]
        new, now = after.classes[name], after.probabilities[name]
        assert found.before[place] == old[sample]
        assert found.after[place] == new[sample]
        assert found.sure_before[place] == chances[sample].max()
        assert found.sure_after[place] == now[sample].max()
        of = old[sample] if labels is None else labels[sample]
        assert found.labels[place] == (UNKNOWN if labels is None else of)
        assert found.change[place] == now[sample, of] - chances[sample, of]


@given(
    cases(),
    st.sampled_from(list(FILTERS)),
    st.sampled_from([None, 0, 1]),
    st.sampled_from(list(SORTS)),
)
def test_filter_then_sort_is_sort_then_filter(
    case: Case, kind: str, column: int | None, by: str
) -> None:
    found = find_flips(*case)
    one = found.select(kind, column).sort(by)
    other = found.sort(by).select(kind, column)
    assert rows(one) == rows(other)
    assert set(rows(one)) <= set(rows(found))
    if kind != "all":
        assert set(one.kinds.tolist()) <= {KINDS.index(kind)}
    if column is not None:
        assert set(one.columns.tolist()) <= {column}


@given(cases(), st.sampled_from(list(SORTS)))
def test_sorting_loses_nothing_and_sorts(case: Case, by: str) -> None:
    found = find_flips(*case)
    listed = found.sort(by)
    assert sorted(rows(listed)) == rows(found)
    keys = {
        "sample": listed.samples,
        "change": -np.abs(listed.change),
        "label": listed.labels,
        "before": listed.before,
        "after": listed.after,
    }[by]
    entries = list(zip(keys.tolist(), rows(listed), strict=True))
    assert entries == sorted(entries)


@given(cases(), st.sets(st.integers(0, CLASSES - 1)))
def test_flips_of_a_cell_are_a_recount(case: Case, listed: set[int]) -> None:
    found = find_flips(*case)

    def named(number: int) -> int:
        return number if number in listed else OTHERS

    for truth in [*listed, OTHERS]:
        for predicted in [*listed, OTHERS]:
            wanted = []
            for place, row in enumerate(rows(found)):
                old, new = int(found.before[place]), int(found.after[place])
                label = old if case[2] is None else int(case[2][row[0]])
                if named(label) == truth and predicted in (named(old), named(new)):
                    wanted.append(row)
            shown = found.between(np.array(sorted(listed), dtype=np.int64), truth, predicted)
            assert rows(shown) == wanted
