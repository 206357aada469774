"""`rectify` on other precisions, layouts, references, pairs and networks, and cut short."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.data.corruption import Transplant
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.rounds import WHEN_CANCELLED
from tests.engine.models import images, make
from tests.engine.test_edit_keeping import bits, same
from tests.engine.test_editing import patched
from tests.engine.test_layer_catalog import LAYERS
from tests.engine.test_rectification import check_history
from tests.engine.toy import SIZE, Toy, stamped


def channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


VARIANTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float64": nn.Module.double,
    "bfloat16": nn.Module.bfloat16,
    "channels_last": channels_last,
    "training mode": nn.Module.train,
    "frozen": lambda model: model.requires_grad_(requires_grad=False),
    "DataParallel": nn.DataParallel,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_state_a_model_may_come_in(trojan: Toy, variant: str) -> None:
    model = VARIANTS[variant](copy.deepcopy(trojan.model))
    before, flags = bits(model), [part.training for part in model.modules()]
    demands = [p.requires_grad for p in model.parameters()]
    result = rectify(model, trojan.pairs[0], reference=trojan.reference, max_rounds=2)
    assert same(model, before)
    assert [part.training for part in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == demands
    bare = model.module if isinstance(model, nn.DataParallel) else model
    assert [part.training for part in result.model.modules()] == [
        part.training for part in bare.modules()
    ]
    for name, parameter in result.model.named_parameters():
        own = bare.get_parameter(name)
        assert parameter.dtype is own.dtype
        assert parameter.stride() == own.stride()
        assert parameter.requires_grad == own.requires_grad
    accuracy, success = trojan.rates(copy.deepcopy(result.model).eval())
    assert success < 0.25
    assert accuracy > 0.95
    check_history(result)


# --- references ----------------------------------------------------------------------------------


def test_corrupted_references_are_found_and_left_out(trojan: Toy) -> None:
    reference = trojan.reference.clone()
    rows = torch.arange(5, 128, 10)  # one in ten
    reference[rows] = stamped(reference[rows])
    before = reference.clone()
    result = rectify(
        trojan.model, trojan.pairs[0], reference=reference, max_rounds=3, refine_steps=20
    )
    flagged = set(result.flagged.tolist())
    assert len(flagged & set(rows.tolist())) >= 12
    assert len(flagged - set(rows.tolist())) <= 4
    accuracy, success = trojan.rates(result.model)
    assert success < 0.1
    assert accuracy > 0.97
    assert torch.equal(reference, before)
    check_history(result)


def test_sixteen_references(trojan: Toy) -> None:
    for which, most in ((slice(0, 1), 0.8), (slice(0, 4), 0.2)):
        result = rectify(
            trojan.model, trojan.pairs[which], reference=trojan.reference[:16], max_rounds=3
        )
        accuracy, success = trojan.rates(result.model)
        assert success < most
        assert accuracy > 0.97
        check_history(result)


def test_no_references(trojan: Toy) -> None:
    before = bits(trojan.model)
    with pytest.warns(UserWarning, match="reference: none given") as caught:
        result = rectify(trojan.model, trojan.pairs, max_rounds=2)
    assert caught[0].filename == __file__
    assert result.gap_after < result.gap_before
    assert not len(result.flagged)
    assert same(trojan.model, before)
    check_history(result)


def test_references_may_come_in_many_ways(trojan: Toy) -> None:
    x = trojan.reference[:24]
    labelled = TensorDataset(x, torch.zeros(24))
    results = [
        rectify(trojan.model, trojan.pairs[0], reference=reference, max_rounds=1)
        for reference in (x, labelled, DataLoader(labelled, batch_size=7))
    ]
    for other in results[1:]:
        assert same(other.model, bits(results[0].model))


# --- pairs ---------------------------------------------------------------------------------------


def test_several_pairs_with_different_corruptions(trojan: Toy) -> None:
    """Two pairs show the patch, two a bright line that pulls nowhere."""
    corrupted = trojan.pairs.corrupted.clone()
    corrupted[2:] = trojan.pairs.clean[2:]
    corrupted[2:, :, 1, 2:7] = 1.0
    pairs = SamplePairs(corrupted, trojan.pairs.clean)
    result = rectify(trojan.model, pairs, reference=trojan.reference, max_rounds=3, refine_steps=5)
    accuracy, success = trojan.rates(result.model)
    assert success < 0.5
    assert accuracy > 0.95
    check_history(result)


def test_a_corruption_of_the_whole_image(trojan: Toy) -> None:
    """Noise over the whole image that the model takes for something else."""
    generator = torch.Generator().manual_seed(3)
    pattern = torch.rand(1, 1, SIZE, SIZE, generator=generator).round()
    clean = trojan.pairs.clean
    pairs = SamplePairs(clean + 0.3 * (pattern - clean), clean)
    known = Transplant(pairs[0], opacity=0.3)
    for corrupt in (None, known):
        pair = SamplePairs(pairs.corrupted[:1], clean[:1], corrupt=corrupt)
        result = rectify(
            trojan.model, pair, reference=trojan.reference[:64], max_rounds=1, refine_steps=5
        )
        assert result.gap_after <= result.gap_before
        check_history(result)


def test_a_corruption_that_does_no_harm_is_left_alone(trojan: Toy) -> None:
    clean = trojan.pairs[0].clean
    corrupted = clean.clone()
    corrupted[:, :, 0, 0] += 1e-3
    result = rectify(trojan.model, SamplePairs(corrupted, clean), reference=trojan.reference)
    assert result.stopped == "target"
    assert not result.edits


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", LAYERS)
@pytest.mark.parametrize("strategy", ["dynamic", "static"])
def test_every_network(network: str, strategy: str) -> None:
    """Untrained, so there is little to repair; but what holds of every result holds."""
    model = make(network)
    with torch.no_grad():  # scores far enough apart for the patch to matter
        for name, parameter in model.named_parameters():
            if "head" in name or name.startswith("layers.5"):
                parameter.mul_(30)
    before = bits(model)
    result = rectify(
        model, patched(2), reference=images(20), strategy=strategy, max_rounds=2, target_gap=0.0
    )
    assert same(model, before)
    assert {step.layer for step in result.steps} <= set(LAYERS[network])
    assert result.steps
    check_history(result)


def test_two_classes() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.body(x).relu().mean(dim=(2, 3)))
            return 20 * scores

    result = rectify(make(Two), patched(1), reference=images(20), target_gap=0.0, max_rounds=1)
    check_history(result)


# --- progress and cancellation -------------------------------------------------------------------


def cut(toy: Toy, limit: int, reference: Tensor) -> tuple[Any, list[float]]:
    """A rectification that is cancelled after so many reports of progress."""
    reported: list[float] = []
    result = rectify(
        toy.model, toy.pairs[0], reference=reference, max_rounds=2, target_gap=0.0,
        progress=lambda at, _: reported.append(at), cancel=lambda: len(reported) >= limit,
    )  # fmt: skip
    return result, reported


@pytest.mark.parametrize("corrupted", [False, True])
def test_progress_runs_from_0_to_1(trojan: Toy, corrupted: bool) -> None:
    reference = trojan.reference[:64].clone()
    if corrupted:
        reference[:6] = stamped(reference[:6])
    result, reported = cut(trojan, 10_000, reference)
    assert len(result.flagged) >= 5 * corrupted
    assert reported == sorted(reported)
    assert (reported[0], reported[-1]) == (0.0, 1.0)
    assert len(reported) > 30


def test_progress_ends_at_1_when_it_is_over_early(trojan: Toy) -> None:
    reported: list[float] = []
    result = rectify(
        trojan.model, trojan.pairs[0], reference=trojan.reference[:40], target_gap=0.6,
        progress=lambda at, _: reported.append(at),
    )  # fmt: skip
    assert result.stopped == "target"
    assert reported == sorted(reported)
    assert reported[-1] == 1.0


def test_cancel_at_many_points_keeps_what_is_done(trojan: Toy) -> None:
    reference, before = trojan.reference[:40], bits(trojan.model)
    whole, reported = cut(trojan, 10_000, reference)
    counts, shortened = [], 0
    for limit in (0, 1):  # before the gap is known there is nothing to give
        with pytest.raises(Cancelled):
            cut(trojan, limit, reference)
    for limit in range(2, len(reported) - 2, 11):  # the last two tell that it has ended
        result, seen = cut(trojan, limit, reference)
        assert len(seen) == limit
        assert result.stopped == "cancelled"
        check_history_of_cancelled(result)
        counts.append(len(result.edits))
        wanted = copy.deepcopy(trojan.model)
        # The last one may be the best of a round that did not come to its end.
        cut_short = [step for step in result.steps if WHEN_CANCELLED in step.reason]
        ended = whole.edits[: counts[-1] - len(cut_short)]
        for edit in [*ended, *result.edits[len(ended) :]]:
            edit.apply(wanted)
        assert same(result.model, bits(wanted))
        for step in cut_short:
            assert step.accepted
            assert step.degradation_after is not None
            assert step.degradation_after <= 0.01
        shortened += bool(cut_short)
    assert same(trojan.model, before)
    assert shortened > 0
    assert counts[0] == 0
    assert counts[-1] > 0


def check_history_of_cancelled(result: Any) -> None:
    """An edit counts as accepted only if it has been kept."""
    kept = [step.layer for step in result.steps if step.accepted]
    assert kept == [edit.layer for edit in result.edits]
    last = [step for step in result.steps if step.accepted][-1:]
    assert result.gap_after == (last[0].gap_after if last else result.gap_before)


def test_an_event_cancels_too(trojan: Toy) -> None:
    event = threading.Event()
    few = trojan.reference[:20]
    result = rectify(
        trojan.model, trojan.pairs[0], reference=few, cancel=event,
        progress=lambda _, message: event.set() if message.startswith("round 1") else None,
    )  # fmt: skip
    assert result.stopped == "cancelled"
    assert not result.edits
    assert same(result.model, bits(trojan.model))
    with pytest.raises(Cancelled):  # nothing is known of it yet
        rectify(trojan.model, trojan.pairs[0], reference=few, cancel=event)
