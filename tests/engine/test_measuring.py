"""One scale for every copy of a model, the same as that of a rectification; models by step."""

from __future__ import annotations

import copy
import pickle
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.measure import judge
from rectify_widgets.engine.repair.measuring import EditMeasure
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.engine.repair.solving import solve_edit
from tests.engine.test_edit_keeping import bits, same
from tests.engine.toy import Toy, stamped


@pytest.fixture(scope="module")
def repaired(trojan: Toy) -> Rectification:
    """Edits of several rounds; some references carry the corruption and are found."""
    result = rectify(
        trojan.model, trojan.pairs[0], reference=mixed(trojan), max_rounds=3, target_gap=0.0,
        refine_steps=60,
    )  # fmt: skip
    assert len(result.edits) >= 2
    assert len(result.flagged)
    return result


def mixed(toy: Toy) -> Tensor:
    """References of which a few carry the corruption already."""
    return torch.cat([stamped(toy.reference[:6]), toy.reference[6:]])


def measure(toy: Toy, repaired: Rectification, **options: Any) -> EditMeasure:
    return EditMeasure(
        toy.model, toy.pairs[0], mixed(toy), **{"exclude": repaired.flagged, **options}
    )


# --- the model at a step -------------------------------------------------------------------------


def test_every_step_is_the_model_with_that_many_edits(trojan: Toy, repaired: Rectification) -> None:
    by_hand = copy.deepcopy(trojan.model)
    weights = bits(repaired.model)
    for step in range(len(repaired.edits) + 1):
        if step:
            repaired.edits[step - 1].apply(by_hand)
        model = repaired.at(step)
        assert same(model, bits(by_hand)), step
        assert model is not repaired.model
        shared = {p.data_ptr() for p in model.parameters()}
        assert not shared & {p.data_ptr() for p in repaired.model.parameters()}
    assert same(repaired.model, weights)
    assert same(repaired.at(len(repaired.edits)), weights)
    assert same(repaired.at(0), bits(trojan.model))


def test_steps_of_a_copy_that_was_sent_elsewhere(trojan: Toy, repaired: Rectification) -> None:
    edits, model = pickle.loads(pickle.dumps((repaired.edits, repaired.model)))  # noqa: S301
    assert same(replace(repaired, edits=edits, model=model).at(0), bits(trojan.model))


def test_a_step_can_be_edited_on_from_there(repaired: Rectification) -> None:
    model = repaired.at(1)
    for edit in repaired.edits[1:]:
        edit.apply(model)
    assert same(model, bits(repaired.model))
    repaired.edits[0].revert(repaired.at(1))


def test_a_layer_that_was_edited_twice_goes_back_step_by_step(
    trojan: Toy, repaired: Rectification
) -> None:
    model = copy.deepcopy(trojan.model)
    name, edits, states = repaired.edits[0].layer, [], [bits(model)]
    for direction in ("key", "contrast"):
        options = {"layer": name, "reference": trojan.reference[:40], "direction": direction}
        edits.append(solve_edit(model, trojan.pairs[0], ridge=0.1, **options))  # type: ignore[arg-type]
        edits[-1].apply(model)
        states.append(bits(model))
    twice = replace(repaired, edits=edits, model=model)
    for step, state in enumerate(states):
        assert same(twice.at(step), state), step


def test_steps_that_are_not_there(repaired: Rectification) -> None:
    for step in (-1, len(repaired.edits) + 1):
        with pytest.raises(ValueError, match=r"^step: got"):
            repaired.at(step)
    for wrong in (True, 1.0, "1", None):
        with pytest.raises(TypeError, match=r"^step: got"):
            repaired.at(wrong)  # type: ignore[arg-type]


def test_a_rectification_knows_what_was_asked_for(repaired: Rectification) -> None:
    assert (repaired.max_degradation, repaired.target_gap) == (0.01, 0.0)


# --- the measure -------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_rectification(trojan: Toy, repaired: Rectification) -> None:
    ruler = measure(trojan, repaired)
    assert ruler.measure(trojan.model).gap == pytest.approx(repaired.gap_before, abs=1e-6)
    kept = [step for step in repaired.steps if step.accepted]
    for number, step in enumerate(kept, start=1):
        found = ruler.measure(repaired.at(number))
        reported = (step.gap_after, step.degradation_after, step.worst_class)
        assert (found.gap, found.degradation, found.worst_class) == pytest.approx(
            reported, abs=1e-6
        )
    assert ruler.count == (len(trojan.reference) - len(repaired.flagged) + 1) // 2
    assert repr(ruler) == f"EditMeasure({ruler.count} references)"


def test_shifted_images_count_in_both(trojan: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of the other tests are too small to be shifted."""
    costs = []
    for step in (judge.STEP, 4):
        monkeypatch.setattr(judge, "STEP", step)
        result = rectify(
            trojan.model, trojan.pairs[0], reference=trojan.reference, strategy="static",
            layer="head", max_degradation=1.0,
        )  # fmt: skip
        ruler = EditMeasure(trojan.model, trojan.pairs[0], trojan.reference, exclude=result.flagged)
        costs.append(ruler.measure(result.model).degradation)
        assert costs[-1] == pytest.approx(result.degradation, abs=1e-6)
    assert costs[0] != pytest.approx(costs[1], abs=1e-5)


def test_with_labelled_data_too(trojan: Toy) -> None:
    validation = (trojan.x[:100], trojan.y[:100])
    options: dict[str, Any] = {"validation": validation, "seed": 3}
    result = rectify(
        trojan.model, trojan.pairs[0], reference=trojan.reference, max_rounds=1, **options
    )
    ruler = EditMeasure(
        trojan.model, trojan.pairs[0], trojan.reference, exclude=result.flagged, **options
    )
    found = ruler.measure(result.model)
    assert (found.gap, found.degradation) == pytest.approx(
        (result.gap_after, result.degradation), abs=1e-6
    )


def test_what_is_left_out_counts(trojan: Toy, repaired: Rectification) -> None:
    all_of_them = measure(trojan, repaired, exclude=None)
    without = measure(trojan, repaired)
    assert all_of_them.count == len(trojan.reference) // 2
    assert all_of_them.measure(repaired.model).gap != without.measure(repaired.model).gap
    as_list = measure(trojan, repaired, exclude=repaired.flagged.tolist())
    assert as_list.measure(repaired.model) == without.measure(repaired.model)


def test_the_same_references_in_a_data_set(trojan: Toy, repaired: Rectification) -> None:
    stored = EditMeasure(
        trojan.model, trojan.pairs[0], TensorDataset(mixed(trojan)), exclude=repaired.flagged
    )
    assert stored.measure(repaired.model) == measure(trojan, repaired).measure(repaired.model)


def test_without_references_the_pairs_serve(trojan: Toy, repaired: Rectification) -> None:
    ruler = EditMeasure(trojan.model, trojan.pairs, None)
    assert ruler.count == len(trojan.pairs)
    assert ruler.measure(trojan.model).gap > 0.9
    with torch.no_grad():
        left = repaired.model(trojan.pairs.corrupted).softmax(1)
        left -= trojan.model(trojan.pairs.clean).softmax(1)
    wanted = 0.5 * float(left.abs().sum(1).mean())
    assert ruler.measure(repaired.model).gap == pytest.approx(wanted, abs=1e-6)
    assert wanted < 0.2


def test_no_trace(trojan: Toy, repaired: Rectification) -> None:
    model = copy.deepcopy(trojan.model).train()
    before, state = bits(model), torch.get_rng_state()
    ruler = EditMeasure(model, trojan.pairs[0], trojan.reference)
    ruler.measure(model)
    assert same(model, before)
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    # The original may be changed afterwards: the measure has its answers.
    figures = ruler.measure(repaired.model)
    with torch.no_grad():
        next(model.parameters()).zero_()
    assert ruler.measure(repaired.model) == figures


def test_hooks(trojan: Toy, repaired: Rectification) -> None:
    reported: list[float] = []
    stop = threading.Event()

    def note(fraction: float, message: str) -> None:
        assert message
        reported.append(fraction)

    ruler = measure(trojan, repaired, progress=note, cancel=stop)
    ruler.measure(repaired.model, progress=note, cancel=stop)
    assert reported == [0.0, 0.5, 0.0, 0.5]
    stop.set()
    with pytest.raises(Cancelled):
        ruler.measure(repaired.model, cancel=stop)
    with pytest.raises(Cancelled):
        measure(trojan, repaired, cancel=stop)


def test_bad_calls(trojan: Toy, repaired: Rectification) -> None:
    def make(**options: Any) -> EditMeasure:
        given = {"model": trojan.model, "pairs": trojan.pairs, "reference": trojan.reference}
        return EditMeasure(**{**given, **options})

    with pytest.raises(TypeError, match=r"^model: got int"):
        make(model=3)
    with pytest.raises(TypeError, match=r"^pairs: got"):
        make(pairs=trojan.x)
    with pytest.raises(TypeError, match=r"^seed: got"):
        make(seed=0.5)
    with pytest.raises(ValueError, match=r"^exclude: got numbers from 0 to 999"):
        make(exclude=[0, 999])
    with pytest.raises(ValueError, match=r"^exclude: got numbers from -1"):
        make(exclude=[-1])
    with pytest.raises(ValueError, match=r"^exclude: got all"):
        make(exclude=list(range(len(trojan.reference))))
    for wrong in (["a"], 3, torch.ones(len(trojan.reference), dtype=torch.bool), [0.5]):
        with pytest.raises(TypeError, match=r"^exclude: got"):
            make(exclude=wrong)
    with pytest.raises(ValueError, match=r"^exclude: got numbers from 0 to 0, want those of 0"):
        make(reference=None, exclude=[0])
    with pytest.raises(TypeError, match=r"^validation: got"):
        make(validation=trojan.x)
    ruler = measure(trojan, repaired)
    with pytest.raises(TypeError, match=r"^model: got"):
        ruler.measure(None)  # type: ignore[arg-type]
    other = nn.Sequential(nn.Flatten(), nn.Linear(100, 3))
    with pytest.raises(ValueError, match=r"^model: its output has 3 classes, want 5"):
        ruler.measure(other)
