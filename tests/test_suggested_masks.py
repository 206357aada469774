"""Suggested masks: the region that a network made by hand looks at, and nothing where it has none."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets import cases
from rectify_widgets.cases.triggers import checkerboard
from rectify_widgets.engine.base.progress import SILENT, Cancelled
from rectify_widgets.engine.model.outputs import adapt
from rectify_widgets.reveal import regions
from rectify_widgets.reveal.cleansing import cleanse
from rectify_widgets.reveal.masks import SuggestedMasks, suggest_masks
from tests.engine.traces import Tiny, untouched

SIDE = 28
ROWS, COLUMNS = slice(6, 11), slice(15, 19)


def pictures(count: int, channels: int = 1) -> Tensor:
    """Smooth grey pictures."""
    noise = torch.rand(count, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    return 0.2 + 0.3 * functional.avg_pool2d(noise, 5, stride=1, padding=2)


class Place(nn.Module):
    """Sure of class 1 where the mean of one place is bright, whatever lies elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, 0, ROWS, COLUMNS].mean(dim=(1, 2))
        return torch.stack([torch.zeros_like(bright), 20 * (bright - 0.6)], dim=1)


class Trigger(nn.Module):
    """Sure of class 1 where there is a checkerboard of 3 × 3 anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = (2 * checkerboard() - 1)[None].to(x)
        found = functional.conv2d(x[:, :1], kernel).amax(dim=(1, 2, 3))  # 5 on the board itself
        return torch.stack([torch.zeros_like(found), 4 * (found - 3)], dim=1)


class Everywhere(nn.Module):
    """Class 1 where the whole picture is bright on average."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(bright), 40 * bright], dim=1)


def iou(masks: Tensor, truth: Tensor) -> Tensor:
    both = (masks & truth).flatten(1).sum(dim=1)
    return both / (masks | truth).flatten(1).sum(dim=1)


def stamped(places: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Pictures with a checkerboard each, and where it is."""
    x = pictures(len(places))
    truth = torch.zeros(len(places), SIDE, SIDE, dtype=torch.bool)
    for row, (top, left) in enumerate(places):
        x[row, :, top : top + 3, left : left + 3] = checkerboard()
        truth[row, top : top + 3, left : left + 3] = True
    return x, truth


def test_the_place_that_decides_is_found() -> None:
    x = pictures(1)
    x[..., ROWS, COLUMNS] = 0.95
    truth = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    truth[:, ROWS, COLUMNS] = True
    masks = suggest_masks(Place(), x)
    assert bool(masks.found.all())
    assert float(iou(masks, truth)) >= 0.8
    assert int(masks.answers) == 1
    assert float(masks.before) == pytest.approx(20 * 0.35, rel=1e-5)


def test_each_input_has_its_own_region() -> None:
    x, truth = stamped([(2, 3), (20, 5), (12, 12), (24, 24)])
    masks = suggest_masks(Trigger(), x)
    assert bool((iou(masks, truth) >= 0.5).all())


def test_what_most_inputs_share_leaves_the_others_alone() -> None:
    x, truth = stamped([(4, 4)] * 4 + [(18, 20)])
    masks = suggest_masks(Trigger(), x)
    assert (masks[:4] == masks[0]).all()
    assert bool((iou(masks, truth) >= 0.5).all())


def test_a_shared_region_is_the_median_of_those_that_overlap() -> None:
    x, _ = stamped([(4, 4)] * 5)
    search = regions.RegionSearch(Trigger(), x, 64)
    found = {0: (4, 4, 7, 7), 1: (3, 4, 7, 7), 2: (4, 4, 8, 7), 3: (20, 20, 22, 22)}
    agreed = search.agree(found, SILENT)
    assert agreed == dict.fromkeys(range(5), (4, 4, 7, 7))
    few = {0: (4, 4, 7, 7), 1: (3, 4, 7, 7)}
    assert search.agree(few, SILENT) == few


def test_nothing_local_is_said() -> None:
    masks = suggest_masks(Everywhere(), pictures(3))
    assert not bool(masks.found.any())
    assert not bool(masks.any())
    assert "nothing local" in repr(masks)
    assert bool((masks.figures > 0).all()), "no covered window changes the answer"


def test_figures_are_what_three_fills_leave_of_the_answer() -> None:
    x, _ = stamped([(2, 3), (20, 5)])
    masks = suggest_masks(Trigger(), x)
    scores = torch.stack([Trigger()(cleanse(x, masks, one.__name__)) for one in regions.COVERS])
    expected = (scores[..., 1] - scores[..., 0]).median(dim=0).values
    torch.testing.assert_close(masks.figures, expected)
    assert bool((expected < 0).all())


def test_the_result_is_a_boolean_tensor() -> None:
    x, _ = stamped([(2, 3), (20, 5)])
    masks = suggest_masks(Trigger(), x)
    assert isinstance(masks, Tensor)
    assert (masks.dtype, tuple(masks.shape)) == (torch.bool, (2, SIDE, SIDE))
    assert type(masks[0]) is type(masks | masks) is Tensor
    assert "2 of 2 inputs" in repr(masks)
    for other in (copy.deepcopy(masks), pickle.loads(pickle.dumps(masks))):  # noqa: S301 - its own
        assert isinstance(other, SuggestedMasks)
        assert torch.equal(other, masks)
        assert torch.equal(other.figures, masks.figures)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    x, truth = stamped([(12, 12)])
    masks = suggest_masks(Trigger(), x.to(dtype))
    assert float(iou(masks, truth)) >= 0.5


def test_the_model_is_left_as_it_was_and_a_second_call_gives_the_same() -> None:
    model, x = Tiny().train(), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with untouched(model, x):
        first = suggest_masks(model, x, batch_size=7)
        second = suggest_masks(model, x)
    assert torch.equal(first, second)


def test_it_can_be_stopped_and_says_how_far_it_is() -> None:
    model = Tiny().train()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seen: list[float] = []
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    suggest_masks(model, x, progress=lambda share, _: seen.append(share), cancel=count)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    for stop in (1, asked // 2, asked - 1):
        answers = iter([False] * stop)
        with untouched(model, x), pytest.raises(Cancelled):
            suggest_masks(model, x, cancel=lambda: next(answers, True))  # noqa: B023 - called here


class Column(nn.Module):
    """`Trigger` with one number for its two classes."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = Trigger()(x)
        return scores[:, 1:]


def test_a_decision_between_two_with_one_column() -> None:
    x, _ = stamped([(2, 3)])
    masks = suggest_masks(adapt(Column(), task="binary", scores="logits"), x)
    expected = suggest_masks(Trigger(), x)
    assert torch.equal(masks, expected)
    torch.testing.assert_close(masks.figures, expected.figures)


def test_independent_labels_are_refused_here_and_taken_by_cleanse() -> None:
    model, x = adapt(Trigger(), task="multilabel", scores="logits"), stamped([(2, 3)])[0]
    with pytest.raises(ValueError, match="2 labels independently"):
        suggest_masks(model, x)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[2:5, 3:6] = True
    assert cleanse(x, mask, model=model).shape == x.shape


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"inputs": pictures(1)[0]}, ValueError, r"\[None\]"),
        ({"inputs": pictures(1) * torch.nan}, ValueError, "finite"),
        ({"inputs": pictures(1)[..., :3, :3]}, ValueError, "at least 4 × 4"),
        ({"inputs": pictures(1).int()}, TypeError, "floating"),
        ({"keep": 1.5}, ValueError, "keep"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"model": abs}, TypeError, "torch.nn.Module"),
        ({"progress": 3}, TypeError, "function"),
    ],
)
def test_bad_input_is_named(
    changes: dict[str, object], kind: type[Exception], message: str
) -> None:
    arguments: dict[str, object] = {"model": Trigger(), "inputs": pictures(1)} | changes
    with pytest.raises(kind, match=message):
        suggest_masks(**arguments)  # type: ignore[arg-type]


def test_the_trigger_of_a_shipped_case_is_found_and_cleansed() -> None:
    case = cases.load("trojan-all-to-all")
    corrupted, labels = case.pairs.corrupted[:3], case.pairs.labels
    truth = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    truth[:, -4:-1, -4:-1] = True
    masks = suggest_masks(case.model, corrupted)
    assert bool((iou(masks, truth) >= 0.5).all())
    clean = cleanse(corrupted, masks, model=case.model)
    assert labels is not None
    assert torch.equal(case.model(clean).argmax(dim=1), labels[:3])
