"""Kinds of flips, and choosing, sorting and paging them, against counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectify_widgets.widgets.prediction import flips
from rectify_widgets.widgets.prediction.flips import FILTERED, KINDS, SAME, SORTS, Flips, Ints

Told = tuple[Ints, flips.Floats]
CLASSES = 4

classes = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Told], list[Told], Ints | None]:
    """Predictions of two columns before and after, and labels or none."""
    count = draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def told() -> Told:
        chances = rng.dirichlet(np.ones(CLASSES), count).astype(np.float32)
        return chances.argmax(axis=1), chances

    labels = rng.integers(0, CLASSES, count) if draw(st.booleans()) else None
    return [told(), told()], [told(), told()], labels


def rows(found: Flips) -> list[tuple[int, int]]:
    return list(zip(found.samples.tolist(), found.columns.tolist(), strict=True))


def test_each_kind() -> None:
    labels = np.array([0, 0, 0, 0, 0])
    before = np.array([0, 1, 0, 1, 1])
    after = np.array([0, 1, 1, 0, 2])
    kinds = flips.kinds_of(before, after, labels)
    assert [SAME if kind == SAME else KINDS[kind] for kind in kinds] == [
        SAME, SAME, "broken", "fixed", "changed",
    ]  # fmt: skip
    blind = flips.kinds_of(before, after, None)
    assert [kind == SAME for kind in blind] == [True, True, False, False, False]
    assert set(blind[2:].tolist()) == {KINDS.index("changed")}


@given(cases())
def test_every_prediction_is_of_exactly_one_kind(
    case: tuple[list[Told], list[Told], Ints | None],
) -> None:
    before, after, labels = case
    found = flips.find(before, after, labels)
    listed = dict(zip(rows(found), found.kinds.tolist(), strict=True))
    assert len(listed) == len(found), "none is listed twice"
    for column, ((old, _), (new, _)) in enumerate(zip(before, after, strict=True)):
        for sample, (first, last) in enumerate(zip(old, new, strict=True)):
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
def test_what_a_flip_carries(case: tuple[list[Told], list[Told], Ints | None]) -> None:
    before, after, labels = case
    found = flips.find(before, after, labels)
    for place, (sample, column) in enumerate(rows(found)):
        (old, chances), (new, now) = before[column], after[column]
        assert found.before[place] == old[sample]
        assert found.after[place] == new[sample]
        assert found.sure_before[place] == chances[sample].max()
        assert found.sure_after[place] == now[sample].max()
        of = old[sample] if labels is None else labels[sample]
        assert found.labels[place] == (flips.UNKNOWN if labels is None else of)
        assert found.change[place] == now[sample, of] - chances[sample, of]


@given(cases(), st.sampled_from(FILTERED), st.sampled_from([None, 0, 1]), st.sampled_from(SORTS))
def test_filter_then_sort_is_sort_then_filter(
    case: tuple[list[Told], list[Told], Ints | None], kind: str, column: int | None, by: str
) -> None:
    found = flips.find(*case)
    one = flips.arrange(flips.keep(found, kind, column), by)
    other = flips.keep(flips.arrange(found, by), kind, column)
    assert rows(one) == rows(other)
    assert set(rows(one)) <= set(rows(found))
    if kind != "all":
        assert set(one.kinds.tolist()) <= {KINDS.index(kind)}
    if column is not None:
        assert set(one.columns.tolist()) <= {column}


@given(cases(), st.sampled_from(SORTS))
def test_sorting_loses_nothing_and_sorts(
    case: tuple[list[Told], list[Told], Ints | None], by: str
) -> None:
    found = flips.find(*case)
    listed = flips.arrange(found, by)
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


@given(cases(), st.integers(1, 7))
def test_sheets_make_up_the_list(
    case: tuple[list[Told], list[Told], Ints | None], size: int
) -> None:
    found = flips.find(*case)
    sheets = [
        flips.sheet(found, number, size) for number in range(flips.sheet_count(len(found), size))
    ]
    assert [row for sheet in sheets for row in rows(sheet)] == rows(found)
    assert all(len(sheet) == size for sheet in sheets[:-1])
    assert len(sheets[-1]) or not len(found)


@given(cases())
def test_the_tally_counts_the_list(case: tuple[list[Told], list[Told], Ints | None]) -> None:
    found = flips.find(*case)
    for column, numbers in enumerate(flips.tally(found, 2)):
        for kind, number in zip(KINDS, numbers, strict=True):
            assert number == len(flips.keep(found, kind, column))


@pytest.mark.parametrize(("count", "sheets"), [(0, 1), (1, 1), (12, 1), (13, 2), (24, 2), (25, 3)])
def test_sheet_count(count: int, sheets: int) -> None:
    assert flips.sheet_count(count, 12) == sheets
