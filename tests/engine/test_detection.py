"""Finding the inputs that carry the corruption of a pair."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find import corrupted as detection
from rectify_widgets.engine.find.corrupted import (
    THRESHOLD,
    UNCHANGED,
    CorruptedInputs,
    carrying,
    corruption_scores,
    find_corrupted,
    pick_voters,
)
from rectify_widgets.engine.find.problem import pose_problem
from rectify_widgets.engine.find.proposals import StatisticsSource, propose_edits
from rectify_widgets.engine.model.running import eval_mode
from tests.engine.models import Plain, images, make
from tests.engine.toy import TARGET, Toy, samples, stamped


def mixture(count: int, every: int, seed: int = 8) -> tuple[Tensor, Tensor]:
    """Inputs of which one in ``every`` carries the patch, and which ones they are."""
    x, _ = samples(count, seed)
    corrupted = torch.arange(count) % every == 3
    return torch.where(corrupted.reshape(-1, 1, 1, 1), stamped(x), x), corrupted


def precision_and_recall(flagged: Tensor, corrupted: Tensor) -> tuple[float, float]:
    hits = float((flagged & corrupted).sum())
    return hits / max(float(flagged.sum()), 1.0), hits / float(corrupted.sum())


@pytest.mark.parametrize("every", [100, 20, 11])
@pytest.mark.parametrize("number", [0, 2])
def test_one_pair_finds_the_others(trojan: Toy, every: int, number: int) -> None:
    """The inputs themselves serve as references, corrupted ones among them."""
    x, corrupted = mixture(200, every)
    found = find_corrupted(trojan.model, trojan.pairs[number], x)
    _, recall = precision_and_recall(found.flagged, corrupted)
    assert recall > 0.9
    assert float((found.flagged & ~corrupted).float().mean()) < 0.03
    # All but a few of the corrupted ones come before all others.
    ranked = found.scores.argsort(descending=True)[: int(corrupted.sum())]
    assert float(corrupted[ranked].float().mean()) > 0.85


def test_four_pairs_are_more_precise(trojan: Toy) -> None:
    x, corrupted = mixture(200, 11)
    found = find_corrupted(trojan.model, trojan.pairs, x, reference=trojan.reference)
    precision, recall = precision_and_recall(found.flagged, corrupted)
    assert precision > 0.8
    assert recall > 0.9


def test_where_there_are_none_few_are_flagged(trojan: Toy) -> None:
    x, _ = samples(200, 8)
    found = find_corrupted(trojan.model, trojan.pairs, x)
    assert float(found.flagged.float().mean()) < 0.03


def test_scores_are_0_like_the_clean_input_and_1_like_the_corrupted(trojan: Toy) -> None:
    pair = trojan.pairs[1]
    both = torch.cat([pair.clean, pair.corrupted])
    found = find_corrupted(trojan.model, pair, both, reference=trojan.reference)
    assert found.scores.tolist() == pytest.approx([0.0, 1.0], abs=1e-5)
    assert found.flagged.tolist() == [False, True]
    assert len(found) == 2
    assert found.threshold == THRESHOLD
    assert repr(found) == "CorruptedInputs(1 of 2 inputs carry the corruption)"


def test_the_threshold_can_be_moved(trojan: Toy) -> None:
    x, _ = mixture(60, 10)
    found = [
        find_corrupted(trojan.model, trojan.pairs[0], x, reference=trojan.reference, threshold=at)
        for at in (0.2, 0.5, 0.9)
    ]
    for one in found:
        assert torch.equal(one.scores, found[0].scores)
        assert torch.equal(one.flagged, one.scores > one.threshold)
    counts = [int(one.flagged.sum()) for one in found]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_inputs_may_come_in_many_ways(trojan: Toy) -> None:
    x, _ = mixture(50, 10)
    statistics = KeyStatistics.collect(trojan.model, trojan.reference)

    def scores(inputs: object, batch_size: int = 256) -> Tensor:
        found: CorruptedInputs = find_corrupted(
            trojan.model, trojan.pairs[0], inputs,  # type: ignore[arg-type]
            reference=trojan.reference, statistics=statistics, batch_size=batch_size,
        )  # fmt: skip
        return found.scores

    wanted = scores(x)
    assert wanted.shape == (50,)
    labelled = TensorDataset(x, torch.zeros(50))
    for inputs, size in ((x, 7), (labelled, 9), (DataLoader(labelled, batch_size=11), 1)):
        torch.testing.assert_close(scores(inputs, size), wanted, rtol=1e-4, atol=1e-5)


def test_a_model_in_bfloat16_and_training_mode(trojan: Toy) -> None:

    model = copy.deepcopy(trojan.model).bfloat16().train()
    x, corrupted = mixture(100, 10)
    found = find_corrupted(model, trojan.pairs, x)
    precision, recall = precision_and_recall(found.flagged, corrupted)
    assert precision > 0.7
    assert recall > 0.8
    assert model.training


def test_references_that_the_corruption_changes_are_not_looked_at(
    trojan: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, corrupted = mixture(200, 11)
    looked: list[int] = []

    def spied(*given: Any) -> Tensor:
        looked.append(len(given[3]))
        return corruption_scores(*given)

    monkeypatch.setattr(detection, "corruption_scores", spied)
    with eval_mode(trojan.model) as module:
        problem = pose_problem(module, trojan.pairs[0], x)
        source = StatisticsSource(problem, None, None, seed=0)
        sources = problem.sources(0)
        found = propose_edits(problem, source, problem.probe(0), sources, Monitor())
        voters = pick_voters(found.options)
        carry, spare = carrying(problem, voters, Monitor())
        every = corruption_scores(module, problem.pairs, voters, x, Monitor()) > THRESHOLD
        before, after = (module(some).softmax(dim=1) for some in (x, problem.carriers))
    alike = (before - after).abs().sum(dim=1) / 2 < UNCHANGED
    assert looked == [int(alike.sum()), 0]
    assert looked[0] < 120
    assert torch.equal(carry, every & alike)
    assert len(spare) == 0
    assert precision_and_recall(carry, corrupted)[1] > 0.9


def test_the_target_class_is_not_what_is_found(trojan: Toy) -> None:
    """Clean inputs of the class that the patch pulls to look like any other clean input."""
    x, y = samples(200, 9)
    scores = find_corrupted(trojan.model, trojan.pairs, x, reference=trojan.reference).scores
    assert float((scores[y == TARGET] > THRESHOLD).float().mean()) < 0.1


def test_progress_and_cancel(trojan: Toy) -> None:
    reported: list[float] = []
    limit = 10_000

    def run() -> CorruptedInputs:
        return find_corrupted(
            trojan.model, trojan.pairs[0], trojan.reference[:40], batch_size=10,
            progress=lambda at, _: reported.append(at), cancel=lambda: len(reported) >= limit,
        )  # fmt: skip

    run()
    assert reported == sorted(reported)
    assert (reported[0], reported[-1]) == (0.0, 1.0)
    for limit in range(0, len(reported), 6):
        reported.clear()
        with pytest.raises(Cancelled):
            run()
        assert len(reported) == limit


def test_identical_seeds_identical_scores(trojan: Toy) -> None:
    x, _ = mixture(60, 10)
    found = [
        find_corrupted(trojan.model, trojan.pairs[0], x, reference=trojan.reference, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0].scores, found[1].scores)
    assert not torch.equal(found[0].scores, found[2].scores)


def test_nothing_to_find_where_nothing_is_reached() -> None:

    class Blind(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * torch.tensor([1.0, 1.0, 0.0]).reshape(1, 3, 1, 1))

    clean = images(1)
    corrupted = clean.clone()
    corrupted[:, 2, 3:5, 3:5] = 1.0
    with pytest.raises(ValueError, match="reaches none of the layers"):
        find_corrupted(make(Blind), SamplePairs(corrupted, clean), images(20))
