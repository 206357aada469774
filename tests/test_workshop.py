"""What the dashboard's jobs do, on a small network with the real engine."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import copied
from rectify_widgets.engine.repair.measuring import EditMeasure
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.widgets.actions import join
from rectify_widgets.widgets.dashboard import workshop
from rectify_widgets.widgets.dashboard.workshop import Workshop
from rectify_widgets.widgets.session import Job, Session
from tests.widget_fakes import network, pairs

REFERENCE = torch.rand(96, 1, 9, 9, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model() -> nn.Module:
    """A network that a bright corner leads to its last class."""
    net: Any = network().eval()
    with torch.no_grad():
        net[0].weight.mul_(0.2)
        net[0].weight[0] = 1.0
        net[0].bias[0] = -7.0
        net[3].weight[0, 0] = 1.5
        net[6].weight[2, :4] = 6.0
    module: nn.Module = net
    return module


@pytest.fixture
def shop(model: nn.Module) -> Workshop:
    return Workshop(model, pairs(2), REFERENCE, 0, None)


def run(work: Any) -> Any:
    session = Session(synchronous=True)
    try:
        return session.submit(work, label="work").result()
    finally:
        session.close()


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_an_edit_is_solved_measured_and_leaves_the_model_alone(
    shop: Workshop, model: nn.Module
) -> None:
    before = state(model)
    revision = run(lambda job: shop.edit(job, (), "3"))
    assert same(before, state(model))
    assert [edit.layer for edit in revision.edits] == ["3"]
    assert revision.earlier == (revision.start,)
    assert revision.verdicts == (EditMeasure(model, pairs(2), REFERENCE).measure(revision.model),)
    assert same(state(shop.edited(revision.edits)), state(revision.model))


def test_edits_go_on_from_edits(shop: Workshop) -> None:
    first = run(lambda job: shop.edit(job, (), "3"))
    second = run(lambda job: shop.edit(job, first.edits, "6"))
    assert second.earlier == (first.start, *first.verdicts)
    both, once = second.model, first.model
    assert torch.equal(both[3].weight, once[3].weight)
    assert not torch.equal(both[6].weight, once[6].weight)


def test_a_rectification_has_the_figures_of_its_own_steps(shop: Workshop, model: nn.Module) -> None:
    revision, result = run(lambda job: shop.rectify(job, (), RectifyOptions(max_rounds=2)))
    alone = rectify(model, pairs(2), reference=REFERENCE, max_rounds=2)
    assert revision.start.gap == alone.gap_before
    assert revision.verdicts is None, "the trials say it"
    kept = [step for step in result.steps if step.accepted]
    assert len(kept) == len(alone.edits) == len(result.edits)
    measured = [(verdict.gap, verdict.degradation) for verdict in shop.measure(revision.edits)[1:]]
    said = [(step.gap_after, step.degradation_after) for step in kept]
    assert measured == [pytest.approx(figures, abs=1e-6) for figures in said]


def test_a_checkpoint_is_there_till_the_end(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed run leaves it behind, from which the next one goes on; an ended one does not."""
    file, left = tmp_path / "run.safetensors", list[bytes]()

    def kept(*given: Any, **options: Any) -> Any:
        result = rectify(*given, **options)
        left.append(file.read_bytes())
        return result

    def once() -> Any:
        options = RectifyOptions(max_rounds=2)
        return run(lambda job: shop.rectify(job, (), options, checkpoint=str(file)))

    monkeypatch.setattr(workshop, "rectify", kept)
    first, result = once()
    assert not file.exists()
    file.write_bytes(left[0])
    again, same_result = once()
    assert same(state(again.model), state(first.model))
    assert same_result.steps == result.steps, "nothing was tried anew"
    assert not file.exists()


def test_a_rectification_of_an_edited_model_is_measured_against_the_original(
    shop: Workshop,
) -> None:
    first = run(lambda job: shop.edit(job, (), "0"))
    revision, result = run(lambda job: shop.rectify(job, first.edits, RectifyOptions(max_rounds=1)))
    assert revision.earlier == (first.start, *first.verdicts)
    assert revision.verdicts is not None
    assert len(revision.verdicts) == len(result.edits)


def test_references_that_are_found_corrupted_change_the_scale_of_all(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(lambda job: shop.edit(job, (), "3"))

    def finds(*given: Any, **options: Any) -> Any:
        return replace(rectify(*given, **options), flagged=torch.arange(40))

    monkeypatch.setattr(workshop, "rectify", finds)
    revision, _ = run(lambda job: shop.rectify(job, first.edits, RectifyOptions(max_rounds=1)))
    again = EditMeasure(shop.model, pairs(2), REFERENCE, exclude=range(40))
    wanted = [again.measure(shop.edited(first.edits[:count])) for count in (0, 1)]
    assert revision.earlier == tuple(wanted)
    assert revision.earlier != (first.start, *first.verdicts)


def test_locate_scores_the_edited_model(shop: Workshop) -> None:
    plain = run(lambda job: shop.locate(job, (), "projection"))
    edit = run(lambda job: shop.edit(job, (), "0"))
    later = run(lambda job: shop.locate(job, edit.edits, "projection"))
    assert plain.scores.keys() == later.scores.keys()
    assert plain.scores != later.scores


def test_cancelling_an_edit_raises(shop: Workshop) -> None:
    def work(job: Job[Any]) -> Any:
        job.cancel()
        return shop.edit(job, (), "3")

    with pytest.raises(Cancelled):
        run(work)


def test_a_model_that_cannot_be_copied_is_an_error_in_words() -> None:
    class Locked(nn.Module):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("a lock")

    with pytest.raises(ValueError, match=r"model: it cannot be copied .*a lock.*__deepcopy__"):
        copied(Locked())
    whole = network()
    assert copied(nn.DataParallel(whole)) is not whole
    assert copy.deepcopy(whole).state_dict().keys() == copied(whole).state_dict().keys()


def test_pairs_are_joined_with_their_labels() -> None:
    one, two = pairs(2), pairs(3)
    assert len(join(one, two)) == 5
    assert join(one, two).labels is None
    labelled = SamplePairs(one.corrupted, one.clean, torch.tensor([1, 2]))
    joined = join(labelled, labelled).labels
    assert joined is not None
    assert joined.tolist() == [1, 2, 1, 2]
    other = torch.zeros(1, 1, 5, 5)
    with pytest.raises(ValueError, match="examples: got samples of shape"):
        join(one, SamplePairs(other + 1, other))
