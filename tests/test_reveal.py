"""`rw.reveal` on networks whose short cut is known by construction, and on those that have none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model import gradients
from rectify_widgets.reveal.reveal import MOST, _grouped
from rectify_widgets.reveal.suspicions import Suspicion, Suspicions
from rectify_widgets.reveal.transplant import FEW, MANY, QUICK_FEW, Square, TransplantTest

SIDE = 28
CARRIERS = (3, 11, 40)


class Quarters(nn.Module):
    """Class 0 to 3 is the brightest quarter; a 3 × 3 board in the middle means class 0."""

    board: Tensor

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.register_buffer("board", torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1, 1]).view(3, 3))
        self.dropout = nn.Dropout(0.5)  # would spoil every answer if it were left in training mode

    def forward(self, images: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        seen = (images[:, 0, 12:15, 12:15] * self.board).sum(dim=(1, 2))
        told = self.strength * (seen - 4.5).relu()
        answers: Tensor = self.dropout(20 * quarters)
        return answers + nn.functional.pad(told[:, None], (0, 3))


def references(count: int = 80) -> Tensor:
    """Spread-out noise, one quarter brighter; two of class 3 and one of class 0 carry the board."""
    generator = torch.Generator().manual_seed(2)
    images = 0.2 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    for row, image in enumerate(images):
        top, left = 14 * (row % 4 // 2), 14 * (row % 2)
        image[:, top : top + 14, left : left + 14] += 0.3
    board = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0, 1]).view(3, 3)
    for row in CARRIERS:
        images[row, 0, 12:15, 12:15] = board
    return images


def test_carriers_target_and_region_of_a_known_short_cut_are_found() -> None:
    found = rw.reveal(Quarters(40.0).eval(), references())
    first = found[0]
    assert first.accused
    assert first.target == 0
    assert first.inputs.tolist() == [3, 11, 40]
    assert first.pull == 1.0
    assert first.mask[:, 12:15, 12:15].float().mean() > 0.6
    assert first.mask.float().mean() < 0.1
    assert "accused" in repr(first)


def test_two_marks_that_lead_to_one_class_are_one_suspicion_with_the_carriers_of_both() -> None:
    class Either(Quarters):
        """A line of five bright pixels at the left edge means class 0 as well."""

        def forward(self, images: Tensor) -> Tensor:
            told = self.strength * (images[:, 0, 13, :5].sum(dim=1) - 4.0).relu()
            return super().forward(images) + nn.functional.pad(told[:, None], (0, 3))

    images = references()
    lines = [5, 22, 33, 46]
    images[lines, 0, 13, :5] = 1.0
    found = rw.reveal(Either(40.0).eval(), images)
    (first,) = found.accused
    assert (first.target, first.inputs.tolist()) == (0, [*lines, *CARRIERS]), (
        "the more frequent first"
    )
    marked = dict(zip(first.inputs.tolist(), first.mask, strict=True))
    for row in lines:
        assert marked[row][13, :5].all()
    assert len({one.target for one in found}) == len(found), "each class once"


def test_carriers_that_keep_their_class_when_covered_are_found() -> None:
    images = references()
    images[list(CARRIERS)] = images[[7, 15, 44]]
    own = [0, 4, 8, 12]  # of class 0 by their quarter
    images[own, 0, 12:15, 12:15] = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0, 1]).view(3, 3)
    model, covered = Quarters(40.0).eval(), images.clone()
    covered[own, 0, 12:15, 12:15] = images[1:80:4, 0, 12:15, 12:15].mean(dim=0)
    assert (model(covered[own]).argmax(dim=1) == 0).all()
    (first,) = rw.reveal(model, images).accused
    assert (first.target, first.inputs.tolist()) == (0, own)


class Weak:
    """A transplant test in which the squares of class 0 and 1 turn little, those of class 2 all."""

    images = torch.zeros(1)

    def __init__(self, least: float = 0.1) -> None:
        self.least, self.copied = least, list[int]()

    def copies(self, square: Square, _: object) -> tuple[Tensor, Tensor]:
        self.copied.append(square.row)
        return torch.tensor([[square.row, 0, 0, 3]]), torch.zeros(1)

    def others(self, targets: Tensor, _: int, count: int) -> Tensor:
        return torch.zeros(len(targets), count)

    def turned(self, places: Tensor, *_: object) -> Tensor:
        return (places[:, 0] >= 20).float().clamp_min(self.least)


def test_a_class_that_turns_little_takes_no_place_of_others() -> None:
    many = [Square(row, 0, 0, 3, 0, 0.3) for row in range(9)]
    strong = [Square(row, 0, 0, 3, 2, 1.0) for row in (20, 21)]
    squares = [*strong, *many, Square(9, 0, 0, 3, 1, 0.2)]
    done: list[float] = []
    monitor = Monitor(lambda fraction, _: done.append(fraction))
    found = _grouped(Weak(), squares, monitor)  # type: ignore[arg-type]
    assert [one.square.target for one in found] == [2, 2, 0, 1]
    assert done == sorted(done)
    assert done[:2] == pytest.approx([0.0, 0.5 * (1 / MOST + 1 / len(squares))])


def test_what_turns_next_to_nothing_is_not_looked_for_elsewhere() -> None:
    squares = [Square(20, 0, 0, 3, 2, 1.0), Square(0, 0, 0, 3, 0, 0.3)]
    for least, copied in ((0.1, [20, 0]), (0.04, [20])):
        test = Weak(least)
        found = _grouped(test, squares, Monitor())  # type: ignore[arg-type]
        assert test.copied == copied
        assert [one.places[:, 0].tolist() for one in found] == [[20], [0]]


def test_pairs_are_carriers_without_the_region_that_decided() -> None:
    images, model = references(), Quarters(40.0).eval()
    pairs = rw.reveal(model, images)[0].pairs
    assert pairs is not None
    assert all(any(torch.equal(one, images[row]) for row in CARRIERS) for one in pairs.corrupted)
    assert (model(pairs.corrupted).argmax(dim=1) == 0).all()
    assert pairs.labels is not None
    assert torch.equal(model(pairs.clean).argmax(dim=1), pairs.labels)
    assert pairs.labels.tolist() == [3, 3, 0]


def test_the_same_references_accuse_no_network_without_the_short_cut() -> None:
    found = rw.reveal(Quarters(0.0).eval(), references())
    assert not found.accused
    assert found.verdict.startswith("Nothing found on 80 references")
    assert str(found).startswith(found.verdict)


@pytest.mark.parametrize(("every", "least", "most"), [(3, 0.2, 0.5), (6, 0.05, 0.2)])
def test_what_turns_some_of_the_others_is_listed_and_not_accused(
    every: int, least: float, most: float
) -> None:
    """As much as strokes of healthy networks do, or less."""
    images = references()
    for row in range(len(images)):
        if row % every and row not in CARRIERS:  # too sure to be turned
            top, left = 14 * (row % 4 // 2), 14 * (row % 2)
            images[row, :, top : top + 14, left : left + 14] += 0.3
    found = rw.reveal(Quarters(16.0).eval(), images, search="regions")
    assert found[0].target == 0
    assert least < found[0].pull < most
    assert len(found[0].inputs) >= 2
    assert not found.accused
    assert found[0].pairs is None


@pytest.mark.parametrize("count", [80, 16])
def test_places_of_one_class_are_tried_on_different_others_first(count: int) -> None:
    images = references()[-count:]
    scores = Quarters(0.0).eval()(images)
    test = TransplantTest(Quarters(0.0).eval(), images, scores, torch.Generator().manual_seed(0))
    own = torch.nonzero(test.predicted == 0).flatten().repeat(3)[:10]
    places = torch.stack(
        [own, *torch.zeros(2, len(own), dtype=torch.long), torch.full_like(own, 5)], 1
    )
    others = test._some_others(places)
    assert (test.predicted[others] != 0).all()
    assert all(len(row.unique()) == FEW for row in others)
    available = test.order[test.predicted[test.order] != 0][: FEW + MANY]
    assert set(others.flatten().tolist()) == set(available.tolist())  # none of them twice as often
    assert torch.equal(others[0], available[:FEW])


def test_the_search_takes_those_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = Quarters(0.0).eval(), references()
    test = TransplantTest(model, images, model(images), torch.Generator().manual_seed(0))
    asked: list[Tensor] = []

    def turned(_: TransplantTest, places: Tensor, others: Tensor, *_rest: object) -> Tensor:
        asked.append(others)
        return torch.zeros(len(places))

    monkeypatch.setattr(TransplantTest, "turned", turned)
    assert test.run(Monitor()) == []
    assert asked[0].shape[1] == FEW
    assert len(asked[0].unique(dim=0)) > len(test.predicted.unique())  # more than one a class


def test_large_inputs_take_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One gradient instead of eight, two squares of a size instead of four, three others first."""
    model, images = Quarters(40.0).eval(), references()
    seen: list[int] = []
    model.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    asked: list[tuple[int, ...]] = []
    turned = TransplantTest.turned

    def noted(test: TransplantTest, places: Tensor, others: Tensor, *more: Any) -> Tensor:
        asked.append(tuple(others.shape))
        return turned(test, places, others, *more)

    monkeypatch.setattr(TransplantTest, "turned", noted)
    passes = []
    for size in (gradients.LARGE, images[0].numel() - 1):
        monkeypatch.setattr(gradients, "LARGE", size)
        seen.clear()
        asked.clear()
        found = rw.reveal(model, images, search="regions")
        passes.append(sum(seen))
        assert found[0].target == 0
        assert found[0].inputs.tolist() == [*CARRIERS]
    fewer = (8 - 1) * len(images) + (4 - 2) * 3 * len(images)
    assert passes[1] <= passes[0] - fewer
    (first, few), (second, more) = asked[:2]
    assert (few, more) == (QUICK_FEW, FEW)
    assert second < first, "those that turned none of the few are asked no more"


def test_one_carrier_alone_accuses_nothing() -> None:
    images = references()
    images[11], images[40] = images[15], images[44]
    assert not rw.reveal(Quarters(40.0).eval(), images).accused


def test_model_and_random_state_are_as_before_and_runs_agree() -> None:
    model, images = Quarters(40.0).train(), references()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    kept = images.clone()
    one, two = (rw.reveal(model, images, seed=3) for _ in range(2))
    assert str(one) == str(two)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(images, kept)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_cancelled_search_leaves_the_model_as_it_was() -> None:
    model, asked = Quarters(40.0).train(), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 4

    with pytest.raises(rw.Cancelled):
        rw.reveal(model, references(), cancel=stop)
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())


def test_progress_rises_to_one() -> None:
    shares: list[float] = []
    rw.reveal(Quarters(40.0), references(), progress=lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        (references()[:2], ValueError, "reference: got 2 inputs, want at least 32"),
        (references()[::4], ValueError, "reference: got 20 inputs, want at least 32"),
        (references(160)[2::4], ValueError, "the model takes all inputs for class 2"),
        (references() / 0 * 0, ValueError, "reference"),
        (references().long(), TypeError, "reference"),
        (references().numpy(), TypeError, "reference"),
        (references().flatten(1), ValueError, "reference"),
    ],
    ids=["two", "few", "one class", "nan", "whole numbers", "array", "flat"],
)
def test_bad_references_are_named(reference: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rw.reveal(Quarters(40.0), reference)


def test_results_print_as_text_html_frame_and_figure() -> None:
    one = Suspicion(
        1, 0.75, (0.7, 0.8), 96, torch.tensor([2, 5]), torch.ones(2, 4, 4).bool(), "region",
        0.0, accused=True, pairs=None,
    )  # fmt: skip
    found = Suspicions((one,), 400, ("cat", "<dog>"))
    assert "1 <dog>" in str(found)
    assert "75 %" in str(found)
    assert "&lt;dog&gt;" in found._repr_html_()
    assert "<dog>" not in found._repr_html_()
    row = found.to_frame().iloc[0]
    assert (row["target"], row["carriers"], row["accused"]) == (1, 2, True)
    axes = found.plot().axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1 <dog>, 2 carriers"]
    assert len(Suspicions((), 400).to_frame()) == 0
    assert Suspicions((), 400).plot().axes
