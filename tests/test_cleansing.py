"""Painting masked pixels out: each fill against its formula, and bad input refused."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from skimage.restoration import inpaint_biharmonic
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.reveal import fills
from rectify_widgets.reveal.cleansing import AGREEING, cleanse
from rectify_widgets.reveal.fills import FILLS
from tests.engine.traces import untouched

COUNT, SIDE = 3, 20
NAMES = (*FILLS, "reference", "best")


def images(channels: int = 3, side: int = SIDE) -> Tensor:
    return torch.rand(COUNT, channels, side, side, generator=torch.Generator().manual_seed(2))


def references() -> Tensor:
    return torch.rand(12, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def box(rows: slice, columns: slice, side: int = SIDE) -> Tensor:
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[rows, columns] = True
    return mask


MASK = box(slice(5, 9), slice(12, 15))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 18 * 18, 4)
    ).train()


@pytest.mark.parametrize("fill", [*NAMES, 0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_outside_of_the_widened_mask_changes(fill: str | float, dtype: torch.dtype) -> None:
    x, masks = images().to(dtype), torch.stack([MASK, MASK.T, MASK.flip(0)])
    model = network().to(dtype)
    with untouched(model, x, masks):
        clean = cleanse(x, masks, fill, model, references().to(dtype), grow=2)
    wide = functional.max_pool2d(masks[:, None].float(), 5, stride=1, padding=2) > 0
    assert clean.dtype == dtype
    assert clean.shape == x.shape
    changed = clean != x
    assert not (changed & ~wide).any()
    assert changed.any(dim=1)[wide[:, 0]].double().mean() > 0.9


def test_one_mask_serves_all_inputs() -> None:
    x = images()
    assert torch.equal(cleanse(x, MASK), cleanse(x, MASK.expand(COUNT, -1, -1)))


def test_a_number_is_filled_in() -> None:
    clean = cleanse(images(), MASK, -2.5, grow=0)
    assert (clean[:, :, MASK] == -2.5).all()


def test_the_ring_is_the_mean_next_to_each_region() -> None:
    x, mask = images().double(), MASK | box(slice(15, 16), slice(0, 2))
    clean = cleanse(x, mask, "ring", grow=0)
    near = [(r, c) for r, c in product(range(4, 10), range(11, 16)) if not mask[r, c]]
    corner = [(14, 0), (14, 1), (14, 2), (15, 2), (16, 0), (16, 1), (16, 2)]
    for pixels, inside in ((near, (6, 13)), (corner, (15, 1))):
        mean = torch.stack([x[:, :, r, c] for r, c in pixels]).mean(dim=0)
        torch.testing.assert_close(clean[:, :, inside[0], inside[1]], mean)


def test_the_biharmonic_fill_is_scikit_images() -> None:
    x = functional.avg_pool2d(images().double(), 5, stride=1, padding=2)  # so that none is clipped
    clean = cleanse(x, MASK, "biharmonic", grow=0)
    for mine, whole in zip(clean.numpy(), x.numpy(), strict=True):
        expected = inpaint_biharmonic(whole, MASK.numpy(), channel_axis=0)
        np.testing.assert_allclose(mine, expected, atol=1e-9)


def test_a_large_region_continues_a_slope() -> None:
    side = 260
    slope = torch.linspace(0, 1, side).double().expand(1, 1, side, side)
    mask = box(slice(20, 220), slice(30, 230), side)
    assert int(mask.sum()) > fills.LARGE
    damaged = torch.where(mask, torch.zeros(()).double(), slope)
    clean = cleanse(damaged, mask, "biharmonic")
    assert float((clean - slope).abs().max()) < 0.01


def test_the_blur_weighs_known_pixels_by_distance() -> None:
    x, mask = images().double(), box(slice(7, 8), slice(3, 4))
    clean = cleanse(x, mask, "blur", grow=0)  # one pixel deep: sigma is 1
    total, weights = torch.zeros(COUNT, 3).double(), 0.0
    for r, c in product(range(1, 14), range(-3, 10)):
        if (r, c) == (7, 3):
            continue
        weight = math.exp(-((r - 7) ** 2 + (c - 3) ** 2) / 2)
        if c >= 0:
            total, weights = total + weight * x[:, :, r, c], weights + weight
    # scipy mirrors at the border, where weights are below 1e-3 of the largest
    torch.testing.assert_close(clean[:, :, 7, 3], total / weights, atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    "mask",
    [
        box(slice(12, 17), slice(8, 12), 40),
        box(slice(0, 3), slice(37, 40), 40),
        box(slice(3, 24), slice(8, 28), 40),  # fits nowhere as a whole
    ],
)
def test_texture_continues_a_repeating_pattern(mask: Tensor) -> None:
    tile = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    whole = tile.repeat(1, 1, 10, 10)
    damaged = torch.where(mask, torch.ones(()), whole)
    assert torch.equal(cleanse(damaged, mask, "texture", grow=0), whole)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(
    "left", [box(slice(6, 7), slice(6, 8), 8), box(slice(0, 8), slice(3, 4), 8)]
)
def test_a_picture_of_which_little_is_left_is_filled(fill: str, left: Tensor) -> None:
    x = images(side=8)
    clean = cleanse(x, ~left, fill, grow=0)
    seen = x[:, :, left]
    low, high = seen.amin(dim=2)[..., None, None], seen.amax(dim=2)[..., None, None]
    assert bool(((clean >= low - 1e-6) & (clean <= high + 1e-6)).all())


def test_texture_takes_the_best_fitting_place() -> None:
    x, mask = images().double()[:1], box(slice(8, 10), slice(9, 12))
    clean = cleanse(x, mask, "texture", grow=0)
    rows, columns = np.nonzero(mask.numpy())
    ring = [(r, c) for r, c in product(range(6, 12), range(7, 14)) if not mask[r, c]]

    def error(down: int, right: int) -> float:
        if not (0 <= 8 + down <= 18 and 0 <= 9 + right <= 17):
            return math.inf
        if mask[rows + down, columns + right].any():
            return math.inf
        seen = [
            (r, c)
            for r, c in ring
            if 0 <= r + down < SIDE and 0 <= c + right < SIDE and not mask[r + down, c + right]
        ]
        if len(seen) < len(ring) / 2:
            return math.inf
        return sum(
            float((x[0, :, r, c] - x[0, :, r + down, c + right]).square().sum()) for r, c in seen
        ) / len(seen)

    down, right = min(product(range(-9, 12), range(-10, 12)), key=lambda shift: error(*shift))
    assert torch.equal(clean[0, :, rows, columns], x[0, :, rows + down, columns + right])


def test_a_reference_lends_its_pixels_unless_it_carries_the_same() -> None:
    x, others = images(), references()
    truth = x[:1].clone()
    corrupted = torch.where(MASK, torch.ones(()), truth)
    others[4], others[7] = truth[0], corrupted[0]  # the clean picture, and the picture itself
    assert torch.equal(cleanse(corrupted, MASK, "reference", reference=others, grow=0), truth)


def test_best_prefers_what_the_fills_agree_on() -> None:
    x, model, others = images(), network(), references()
    best = cleanse(x, MASK, "best", model, others)
    names = ("reference", *FILLS)
    options = {name: cleanse(x, MASK, name, reference=others) for name in names}
    with torch.no_grad():
        answers = {name: model.eval()(one).softmax(dim=1) for name, one in options.items()}
    taken = []
    for row in range(COUNT):
        apart = {
            name: sum(float((answers[name] - one)[row].abs().sum()) / 2 for one in answers.values())
            / (len(names) - 1)
            for name in names
        }
        limit = min(apart.values()) + AGREEING
        taken.append(next(name for name in names if apart[name] <= limit))
        assert torch.equal(best[row], options[taken[-1]][row])


class Outlier(nn.Module):
    """Sure of class 1 for some pictures, of class 0 for all others."""

    def __init__(self, odd: Tensor) -> None:
        super().__init__()
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        is_odd = (x[:, None] == self.odd).flatten(2).all(dim=2).any(dim=1)
        return 9.0 * nn.functional.one_hot(is_odd.long(), 2)


@pytest.mark.parametrize("odd", ["texture", "biharmonic"])
def test_best_leaves_out_a_fill_that_stands_alone(odd: str) -> None:
    x = images()
    assert torch.equal(cleanse(x, MASK, "best"), cleanse(x, MASK, "texture"))
    best = cleanse(x, MASK, "best", Outlier(cleanse(x, MASK, odd)))
    other = "biharmonic" if odd == "texture" else "texture"
    assert torch.equal(best, cleanse(x, MASK, other))


BAD: list[tuple[str, dict[str, object], type[Exception], str]] = [
    ("no region", {"masks": torch.zeros(SIDE, SIDE, dtype=torch.bool)}, ValueError, "no region"),
    ("one without", {"masks": torch.stack([MASK, MASK, MASK & ~MASK])}, ValueError, "input 2"),
    ("all", {"masks": torch.ones(SIDE, SIDE, dtype=torch.bool)}, ValueError, "covers the whole"),
    ("all when widened", {"masks": box(slice(1, 19), slice(1, 19))}, ValueError, "by 1 pixels"),
    ("another shape", {"masks": MASK[1:]}, ValueError, r"\(19, 20\)"),
    ("another number", {"masks": MASK.expand(2, -1, -1)}, ValueError, "3 × 20 × 20"),
    ("numbers", {"masks": MASK.float()}, TypeError, "torch.float32"),
    ("an array", {"masks": MASK.numpy()}, TypeError, "as_tensor"),
    ("NaN", {"inputs": images() / 0 * 0}, ValueError, "finite"),
    ("no batch", {"inputs": images()[0]}, ValueError, r"\[None\]"),
    ("unknown fill", {"fill": "textur"}, ValueError, "did you mean 'texture'"),
    ("no fill", {"fill": None}, TypeError, "fill"),
    ("infinite fill", {"fill": math.inf}, ValueError, "fill"),
    ("no reference", {"fill": "reference"}, ValueError, "reference: got None"),
    ("few references", {"reference": references()[:7]}, ValueError, "at least 8"),
    ("NaN reference", {"reference": references() * math.nan}, ValueError, "reference"),
    (
        "references that all carry it",
        {"inputs": images()[:1], "fill": "reference", "reference": images()[:1].repeat(9, 1, 1, 1)},
        ValueError,
        "without the corruption",
    ),
    ("other references", {"reference": references()[:, :1]}, ValueError, "reference"),
    ("growth", {"grow": -1}, ValueError, "grow"),
    ("not a model", {"model": abs}, TypeError, "torch.nn.Module"),
    ("progress", {"progress": 3}, TypeError, "function"),
]


@pytest.mark.parametrize(("_name", "changes", "kind", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_named(
    _name: str, changes: dict[str, object], kind: type[Exception], message: str
) -> None:
    model = network()
    arguments: dict[str, object] = {"inputs": images(), "masks": MASK, "model": model} | changes
    with untouched(model), pytest.raises(kind, match=message):
        cleanse(**arguments)  # type: ignore[arg-type]


def test_it_can_be_stopped_and_says_how_far_it_is() -> None:
    model, seen = network(), list[float]()
    cleanse(images(), MASK, model=model, progress=lambda share, _: seen.append(share))
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == 1
    answers = iter([False] * 5)
    with untouched(model), pytest.raises(Cancelled):
        cleanse(images(), MASK, model=model, cancel=lambda: next(answers, True))


def test_scattered_pixels_are_filled_one_by_one() -> None:
    """No two rows or columns are whole, so that only single pixels find a source."""
    x = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(9, 9, generator=torch.Generator().manual_seed(5)) < 0.8
    assert not mask.all()
    clean = cleanse(x, mask, "texture", grow=0)
    known = set(x[0, 0][~mask].tolist())
    assert set(clean[0, 0][mask].tolist()) <= known
