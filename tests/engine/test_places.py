"""Where else a patch works: the map, the places, and the pairs that come of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets import cases
from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.data.corruption import Transplant
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.places import MOST, TRIED, _Patches, find_places
from tests.engine.models import images

PATCH = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def stamp(inputs: Tensor, row: int, column: int, opacity: float = 1.0) -> Tensor:
    stamped = inputs.clone()
    there = (..., slice(row, row + 2), slice(column, column + 2))
    stamped[there] = (1 - opacity) * stamped[there] + opacity * PATCH
    return stamped


class Obeys(nn.Module):
    """Class 1 where the patch lies on even rows and columns, or 0; a strided network does the like.

    Args:
        stride: of the places that count.
        least: response from which the patch counts.
    """

    def __init__(self, stride: int = 2, least: float = 1.9) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 2, stride=stride, bias=False)
        self.conv.weight = nn.Parameter((2 * PATCH - 1)[None, None])
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        answer = self.conv(x).flatten(1).amax(dim=1)
        return torch.stack([torch.full_like(answer, self.least), answer], dim=1)


def gray(count: int, seed: int = 0, size: int = 9) -> Tensor:
    """Images with too little contrast to look like the patch."""
    return 0.3 + 0.2 * images(count, seed, channels=1, size=size)


def pair(row: int = 4, column: int = 6, opacity: float = 1.0) -> SamplePairs:
    clean = gray(1)
    return SamplePairs(stamp(clean, row, column, opacity), clean, torch.tensor([0]))


def of_opacity(pairs: SamplePairs, opacity: float) -> SamplePairs:
    """The same pairs, and how opaque their patches are."""
    known = Transplant(pairs, opacity=opacity)
    return SamplePairs(pairs.corrupted, pairs.clean, pairs.labels, corrupt=known)


def test_all_places_that_work_and_no_others_are_found() -> None:
    places = find_places(Obeys(), pair(), reference=gray(20, 1), samples=8)
    wanted = {(row, column) for row in range(0, 8, 2) for column in range(0, 8, 2)}
    assert set(places.found) == wanted
    assert places.own == (4, 6)
    assert (len(places.rows), len(places.columns)) == tuple(places.shares.shape) == (8, 8)
    for i, row in enumerate(places.rows):
        for j, column in enumerate(places.columns):
            assert float(places.shares[i, j]) == float((row, column) in wanted)
    assert repr(places) == "Places(16 of 64 places work, own place row 4, column 6)"


def test_the_pairs_are_those_given_and_the_patch_in_every_other_place() -> None:
    given = pair()
    places = find_places(Obeys(), given, reference=gray(20, 1))
    others = [place for place in places.found if place != places.own]
    wanted = torch.cat([given.corrupted, *(stamp(given.clean, *place) for place in others)])
    assert torch.equal(places.pairs.corrupted, wanted)
    assert torch.equal(places.pairs.clean, given.clean.expand_as(wanted))
    assert places.pairs.labels is not None
    assert places.pairs.labels.tolist() == [0] * len(wanted)


def test_a_share_is_that_of_the_references_led_astray() -> None:
    """Half of the references hide the patch: they have it in a place already."""
    reference = torch.cat([gray(4, 1), stamp(gray(4, 2), 0, 0)])
    places = find_places(Obeys(), pair(), reference=reference, samples=8, least=0.6)
    assert float(places.shares.max()) == 0.5
    assert places.found == ()
    assert len(places.pairs) == 1
    assert "0 of 64 places work" in repr(places)


def test_several_pairs_put_their_patches_in_turn() -> None:
    clean = gray(2)
    weak = clean[1:].clone()
    weak[..., 4:6, 6:8] += 0.01  # leads nothing astray
    pairs = SamplePairs(torch.cat([stamp(clean[:1], 4, 6), weak]), clean, torch.tensor([0, 0]))
    given = of_opacity(pairs, 1.0)
    places = find_places(Obeys(), given, reference=gray(8, 1), samples=8, least=0.4)
    assert sorted(places.shares.unique().tolist()) == [0.0, 0.5]
    assert torch.equal(places.pairs.clean[2:5], clean[[0, 1, 0]])


def test_a_semi_transparent_patch_stays_so() -> None:
    given = of_opacity(pair(opacity=0.7), 0.7)
    places = find_places(Obeys(least=1.2), given, reference=gray(8, 1))
    assert len(places.found) == 16
    first = places.found[0]
    torch.testing.assert_close(places.pairs.corrupted[1:2], stamp(given.clean, *first, 0.7))


def test_what_a_sparse_patch_leaves_alone_stays() -> None:
    clean, others = gray(1), gray(2, 1)
    corrupted = clean.clone()
    corrupted[..., 1, 1] = corrupted[..., 5, 5] = 1.0
    found = _Patches(of_opacity(SamplePairs(corrupted, clean), 1.0), others).put(0, others, 3, 2)
    wanted = others.clone()
    wanted[..., 3, 2] = wanted[..., 7, 6] = 1.0
    assert torch.equal(found, wanted)


def test_a_moved_residual_stays_in_the_range_of_the_data() -> None:
    clean, bright = 0.1 * gray(1), gray(2, 1) + 0.45
    given = SamplePairs(stamp(clean, 4, 6), clean)
    found = _Patches(of_opacity(given, 0.0), bright).put(0, bright, 0, 0)
    assert float(found.max()) == 1.0


def test_places_lie_apart_on_large_inputs() -> None:
    clean = gray(1, size=120)
    given = SamplePairs(stamp(clean, 31, 50), clean, torch.tensor([0]))
    places = find_places(Obeys(stride=1), given, reference=gray(2, 1, size=120), samples=2)
    assert 0.6 * TRIED < places.shares.numel() <= TRIED
    assert (31 in places.rows, 50 in places.columns) == (True, True)
    assert len(places.found) == places.shares.numel()
    assert len(places.pairs) == 1 + MOST


def test_a_picture_of_the_map() -> None:
    places = find_places(Obeys(), pair(), reference=gray(8, 1))
    (axes, bar) = places.plot().axes
    (picture,) = axes.images
    assert torch.equal(torch.as_tensor(picture.get_array()), places.shares)
    assert "row" in axes.get_ylabel()
    assert "share of references" in bar.get_ylabel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"least": 1.5}, r"least: got 1\.5"),
        ({"samples": 0}, "samples: got 0"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_numbers(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_places(Obeys(), pair(), reference=gray(4), **change)  # type: ignore[arg-type]


def test_what_cannot_be_moved_is_refused() -> None:
    clean = gray(1)
    with pytest.raises(ValueError, match=r"pairs: the corruption takes up 100% of the input"):
        find_places(Obeys(), SamplePairs(clean + 0.1, clean))
    with pytest.raises(ValueError, match=r"pairs: got samples of shape \(81,\), want images"):
        find_places(Obeys(), SamplePairs(clean.flatten(1) + 0.1, clean.flatten(1)))


def test_cancel_is_asked_in_every_row() -> None:
    asked = []

    def cancel() -> bool:
        asked.append(1)
        return len(asked) > 12

    with pytest.raises(Cancelled):
        find_places(Obeys(), pair(), reference=gray(8, 1), cancel=cancel)


@pytest.mark.slow
def test_the_shipped_case_shows_the_places_that_it_was_trained_on() -> None:
    case = cases.load("trojan-position")
    places = find_places(case.model, case.pairs[0], reference=case.reference)
    for row, column in ((24, 24), (1, 1), (12, 12), (24, 1)):
        assert float(places.shares[row, column]) >= 0.85
    assert 20 <= len(places.found) <= 0.2 * places.shares.numel()
    effects = [float(places.shares[row, column]) for row, column in places.found]
    assert effects == sorted(effects, reverse=True)
    assert effects[-1] < effects[0]
