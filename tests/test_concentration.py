"""The concentration score has the properties that its docstring claims; its page can be read."""

from __future__ import annotations

import math
from random import Random
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rectify_widgets.widgets.attribution.concentration import (
    PERCENTILES,
    Scores,
    axis_of,
    concentration,
    picks,
    share_above,
    spread_share,
)
from rectify_widgets.widgets.attribution.html import distribution_table, summary

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.floating[Any]]]"

planes = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12),
    elements=st.floats(-1e6, 1e6, width=32),
)
scores = arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1) | st.just(math.nan))


@given(planes)
def test_it_lies_between_zero_and_one(plane: Floats) -> None:
    assume(np.abs(plane).max() > 0)
    assert 0.0 <= concentration(plane) <= 1.0


@given(planes, st.floats(1e-20, 1e20))
def test_scale_and_sign_do_not_matter(
    plane: Floats,
    factor: float,
) -> None:
    assume(np.abs(plane).max() > 1e-3)
    wide = plane.astype(np.float64)
    assert concentration(wide * factor) == pytest.approx(concentration(wide), abs=1e-9)
    assert concentration(-wide) == concentration(wide)
    assert concentration(np.abs(wide)) == concentration(wide)


@given(planes, st.randoms(use_true_random=False))
def test_places_do_not_matter(plane: Floats, chance: Random) -> None:
    assume(np.abs(plane).max() > 0)
    order = list(range(plane.size))
    chance.shuffle(order)
    shuffled = plane.ravel()[order].reshape(plane.shape)
    assert concentration(shuffled) == pytest.approx(concentration(plane))


@given(planes)
def test_an_even_map_is_below_and_one_pixel_is_above_all(plane: Floats) -> None:
    assume(np.abs(plane).max() > 0)
    alone = np.zeros_like(plane)
    alone[0, 0] = 3.0
    assert concentration(np.full_like(plane, 0.2)) == pytest.approx(0.0, abs=1e-6)
    assert concentration(alone) == pytest.approx(1.0)
    assert -1e-6 <= concentration(plane) <= concentration(alone) + 1e-6


@given(st.integers(1, 63), st.integers(1, 63))
def test_fewer_pixels_are_more_concentrated(few: int, more: int) -> None:
    assume(few < more)
    maps = np.zeros((2, 64))
    maps[0, :few] = maps[1, :more] = 1.0
    upper, lower = (concentration(one.reshape(8, 8)) for one in maps)
    assert upper > lower
    assert spread_share(upper, 64) == pytest.approx(few / 64)


def test_a_locked_patch_stands_out_whatever_its_size() -> None:
    honest = np.abs(np.random.default_rng(0).normal(size=(28, 28)))
    for side in (2, 3, 5, 8):
        locked = honest * 0.2
        locked[:side, :side] += 5.0
        assert concentration(locked) > concentration(honest) + 0.1


def test_maps_without_weight_have_no_score() -> None:
    assert math.isnan(concentration(np.zeros((3, 3))))
    assert concentration(np.ones((1, 1))) == 1.0
    assert concentration(np.full((2, 2), 1e-320)) == pytest.approx(0.0)


@given(scores)
def test_picks_are_in_order_and_cover_the_percentiles(values: Scores) -> None:
    chosen = picks(values)
    known = values[np.isfinite(values)]
    if not known.size:
        assert chosen == ()
        return
    assert [p for pick in chosen for p in pick.percentiles] == list(PERCENTILES)
    assert [pick.score for pick in chosen] == sorted(pick.score for pick in chosen)
    assert chosen[0].score == known.min()
    assert chosen[-1].score == known.max()
    assert len({pick.place for pick in chosen}) == len(chosen)
    assert all(values[pick.place] == pick.score for pick in chosen)


def test_picks_of_a_small_set_are_merged() -> None:
    assert [pick.where for pick in picks(np.array([0.3, np.nan, 0.1]))] == [
        "0 to 25 %",
        "50 to 100 %",
    ]
    assert [pick.where for pick in picks(np.linspace(0, 1, 101))][3] == "50 %"


def test_share_above_counts_ties_half() -> None:
    a, b = np.array([1.0, 0.5, 0.2, np.nan]), np.array([0.5, 0.5, 0.6, 0.1])
    assert share_above(a, b) == pytest.approx(0.5)
    assert share_above(np.array([np.nan]), np.array([1.0])) is None


@given(st.lists(scores, max_size=3))
def test_the_axis_encloses_every_score(parts: list[Scores]) -> None:
    low, high = axis_of(parts)
    assert 0.0 <= low < high <= 1.0
    for part in parts:
        known = part[np.isfinite(part)]
        assert ((known >= low - 1e-12) & (known <= high + 1e-12)).all()


def test_the_distribution_is_told_in_numbers_and_words() -> None:
    rng = np.random.default_rng(0)
    rows = {
        ("Clean", "Before"): rng.uniform(0.3, 0.5, 40),
        ("Clean", "After"): rng.uniform(0.3, 0.5, 40),
        ("Corrupted", "Before"): rng.uniform(0.6, 0.8, 40),
        ("Corrupted", "After"): np.full(40, np.nan),
    }
    table = distribution_table(rows)
    assert table.count("<img") == 3
    assert "no map" in table
    assert 'alt="Distribution of the concentration of 40 maps, Corrupted, before' in table
    assert "0.3 <span>" in table
    words = summary(rows, pixels=784, scored=40, count=90)
    assert "before: 100.0 % (50 % is no difference)" in words
    assert "40 of 90 samples, drawn at random" in words
    assert "no score: 40" in words
