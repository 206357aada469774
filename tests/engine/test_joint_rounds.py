"""What `rectify` keeps of edits that were refined together, what it says of each, and how they are saved."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from rectify_widgets.engine.base.files import write_tensors
from rectify_widgets.engine.edit.edits import FORMAT, Edits, load_edits, pack_edits
from rectify_widgets.engine.find.problem import MAX_REFERENCES
from rectify_widgets.engine.measure.judge import Judge
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.repair.joint import JOINT
from rectify_widgets.engine.repair.measuring import EditMeasure
from rectify_widgets.engine.repair.refining import update
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.engine.repair.rounds import LEAST_GAIN, REFINED
from tests.engine.refining_spy import Seen, run
from tests.engine.test_edit_keeping import bits, same
from tests.engine.test_no_trace import same_but_for_edits
from tests.engine.toy import Toy, samples, stamped


@pytest.fixture(scope="module")
def always(trojan: Toy) -> tuple[Rectification, Seen, float]:
    """The closed form always falls short, so that the first round refines."""
    before, began = bits(trojan.model), time.perf_counter()
    result, seen = run(trojan, 1.0, refine_steps=60, max_degradation=0.02)
    took = time.perf_counter() - began
    assert same(trojan.model, before)
    assert result.edits
    return result, seen, took


@pytest.fixture(scope="module")
def later(trojan: Toy) -> tuple[Rectification, Seen]:
    """Closed forms first, and refined edits of many layers in the last of three rounds."""
    return run(trojan, None, refine_steps=60)


def measures(toy: Toy, result: Rectification) -> EditMeasure:
    return EditMeasure(toy.model, toy.pairs[0], toy.reference, exclude=result.flagged)


# --- all of them are kept, each with what it does ------------------------------------------------


def test_refined_edits_are_kept_together(always: tuple[Rectification, Seen, float]) -> None:
    result, seen, _ = always
    kept = [step for step in result.steps if step.accepted]
    assert len(kept) == len(result.edits) > 1
    assert len({step.layer for step in kept}) > 1
    for step in kept:
        assert (step.round, step.direction, step.refined) == (1, JOINT, True)
        assert step.reason == f"refined together with {len(kept) - 1} others"
    assert result.stopped == REFINED  # no round follows
    assert {step.round for step in result.steps} == {1}
    closed = [step for step in result.steps if not step.refined]
    assert (
        result.steps[: len(closed)] == closed
    )  # they come first, and the best of them was not kept
    assert not any(step.accepted for step in closed)
    assert sum(step.reason == "many layers together did better" for step in closed) == 1
    for edit in result.edits:
        whole = update(seen.found[-1][edit.layer], edit.delta)
        left, sizes, right = torch.linalg.svd(whole.flatten(1), full_matrices=False)
        parts = [sizes[i] * torch.outer(left[:, i], right[i]) for i in range(len(sizes))]
        delta = edit.delta.flatten(1)
        assert any(torch.allclose(delta, part, atol=1e-5) for part in parts)


@pytest.mark.parametrize("when", ["always", "later"])
def test_every_figure_is_that_of_a_direct_measurement(
    trojan: Toy, when: str, request: pytest.FixtureRequest
) -> None:
    """The gap after each edit, and without it alone."""
    result = request.getfixturevalue(when)[0]
    ruler, model = measures(trojan, result), copy.deepcopy(trojan.model)
    kept = [step for step in result.steps if step.accepted]
    gap = result.gap_before
    for edit, step in zip(result.edits, kept, strict=True):
        edit.apply(model)
        verdict = ruler.measure(model)
        assert step.gap_before == pytest.approx(gap, abs=1e-5)
        assert step.gap_after == pytest.approx(gap := verdict.gap, abs=1e-5)
        assert step.degradation_after == pytest.approx(verdict.degradation, abs=1e-5)
        assert step.worst_class == pytest.approx(verdict.worst_class, abs=1e-5)
    assert result.gap_after == pytest.approx(gap, abs=1e-5)
    for number, step in enumerate(kept):
        if not step.refined:
            assert step.gap_without is None
            continue
        rest = copy.deepcopy(trojan.model)
        for edit in (*result.edits[:number], *result.edits[number + 1 :]):
            edit.apply(rest, force=True)
        assert step.gap_without == pytest.approx(ruler.measure(rest).gap, abs=1e-4)
    assert all(step.gap_without is None for step in result.steps if not step.accepted)
    # Together they are within the budget and better than what was kept before them.
    last, before = ruler.measure(model), copy.deepcopy(trojan.model)
    Edits([edit for edit in result.edits if not edit.refined]).apply(before)
    assert last.within(result.max_degradation)
    assert last.objective < ruler.measure(before).objective - LEAST_GAIN


def test_what_is_refined_and_for_what(
    trojan: Toy, always: tuple[Rectification, Seen, float]
) -> None:
    result, seen, _ = always
    assert all(goal is seen.goals[0] for goal in seen.goals)
    goal, loop = seen.goals[0], seen.loops[0]
    layers = {layer.name for layer in editable_layers(trojan.model, trojan.reference)}
    assert seen.starts[0].keys() == seen.found[0].keys() == layers
    assert all(float(left.abs().max()) == 0 for left, _ in seen.starts[0].values())
    about = [(rest["steps"], rest["seed"], rest["turn"]) for rest in seen.options]
    assert about == [(60, 1, turn) for turn in range(len(about))]
    # On the half that does not judge, and on that it is decided which edits are idle.
    judged, rehearsed = (one._inputs for one in (loop._judge, cast("Judge", loop._rehearsal)))
    unflagged = [i for i in range(len(trojan.reference)) if i not in result.flagged.tolist()]
    assert len(goal.references) + len(judged["clean"]) == len(unflagged)

    def as_set(images: Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    assert as_set(goal.references) | as_set(judged["clean"]) == as_set(trojan.reference[unflagged])
    assert as_set(rehearsed["clean"]) <= as_set(goal.references)
    assert goal.corrupt is not None
    torch.testing.assert_close(goal.corrupt(trojan.x), stamped(trojan.x))
    assert torch.equal(goal.shown[0], trojan.pairs[0].corrupted)
    assert torch.equal(goal.shown[1], trojan.pairs[0].clean)
    assert not goal.original  # nothing has been edited yet


def test_after_other_edits_the_original_answers(
    trojan: Toy, later: tuple[Rectification, Seen]
) -> None:
    result, seen = later
    flags = [edit.refined for edit in result.edits]
    assert flags == sorted(flags)
    assert 0 < sum(flags) < len(flags)
    original = seen.goals[-1].original
    assert original.keys() == {edit.layer for edit in result.edits if not edit.refined}
    for name, weight in original.items():
        torch.testing.assert_close(weight, trojan.model.get_parameter(f"{name}.weight").detach())


def test_further_references_are_learnt_from(trojan: Toy) -> None:
    """Those beyond the ones that are judged on, without what carries the corruption."""
    more = samples(MAX_REFERENCES + 40, seed=30)[0]
    more[::40] = stamped(more[::40])
    result, seen = run(
        trojan, 1.0, reference=more, refine_steps=1, max_rounds=1, ridges=(0.1,), directions="key"
    )
    loop, (goal,) = seen.loops[0], seen.goals[:1]
    assert len(loop.problem.spare) == 40
    flagged = loop.state.spare_flagged
    spare = [one for row, one in enumerate(loop.problem.spare) if row not in flagged]
    assert torch.equal(goal.references[-len(spare) :], torch.stack(spare))
    assert len(goal.references) == len(loop.solving.references) + len(spare)
    corner = stamped(goal.references)
    assert not bool((corner == goal.references).flatten(1).all(dim=1).any())
    assert len(result.flagged) + len(flagged) >= len(more) // 40


def test_the_result_is_the_model_plus_the_edits(
    trojan: Toy, always: tuple[Rectification, Seen, float], later: tuple[Rectification, Seen]
) -> None:
    for result in (always[0], later[0]):
        same_but_for_edits(result, trojan.model)
        again, edits = copy.deepcopy(trojan.model), Edits(result.edits)
        edits.apply(again)
        assert same(again, bits(result.model))
        edits.revert(again)
        assert same(again, bits(trojan.model))
        for step in range(len(result.edits) + 1):
            Edits(result.edits[:step]).apply(again)
            assert same(result.at(step), bits(again))
            Edits(result.edits[:step]).revert(again)


def test_in_half_precision(trojan: Toy) -> None:
    model = copy.deepcopy(trojan.model).bfloat16()
    result, _ = run(trojan, 1.0, model=model, refine_steps=60, max_degradation=0.05)
    assert result.stopped == REFINED
    again, edits = copy.deepcopy(model), Edits(result.edits)
    edits.apply(again)
    assert same(again, bits(result.model))
    edits.revert(again)
    assert same(again, bits(model))
    assert trojan.rates(result.model)[1] < 0.5 < trojan.rates(model)[1]


def test_time_is_counted_apart(always: tuple[Rectification, Seen, float]) -> None:
    result, seen, took = always
    assert result.seconds["refining"] >= seen.took > 0
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert sum(result.seconds.values()) <= took


# --- how edits tell of it ------------------------------------------------------------------------


def test_saved_edits_stay_refined(
    trojan: Toy, always: tuple[Rectification, Seen, float], tmp_path: Path
) -> None:
    result, _, _ = always
    result.save(tmp_path / "fix.safetensors")
    loaded = load_edits(tmp_path / "fix.safetensors")
    assert [edit.refined for edit in loaded] == [edit.refined for edit in result.edits]
    closed, _ = run(trojan, None, max_rounds=1, refine_steps=0)
    closed.edits[0].save(tmp_path / "closed.safetensors")
    assert not load_edits(tmp_path / "closed.safetensors")[0].refined


def test_a_file_from_before_loads_as_not_refined(
    always: tuple[Rectification, Seen, float], tmp_path: Path
) -> None:
    tensors, about = pack_edits(Edits(always[0].edits))
    words = json.loads(about)
    assert any(item.pop("refined") for item in words)
    for item in words:
        item.pop("refined", None)
    file = tmp_path / "old.safetensors"
    write_tensors(file, FORMAT, tensors, {"edits": json.dumps(words)})
    loaded = load_edits(file)
    assert [edit.refined for edit in loaded] == [False] * len(loaded)
    for old, edit in zip(loaded, always[0].edits, strict=True):
        assert torch.equal(old.delta, edit.delta)


def test_edits_and_steps_say_so(always: tuple[Rectification, Seen, float]) -> None:
    result, _, _ = always
    assert {step.refined for step in result.steps} == {True, False}
    for step in result.steps:
        assert step.settings == (JOINT if step.refined else f"{step.direction} {step.ridge:g}")
        assert step.settings in str(result)
        assert step.settings in result._repr_html_()
    kept = [step for step in result.steps if step.accepted]
    for edit, step in zip(result.edits, kept, strict=True):
        assert edit.settings == step.settings
        assert repr(edit).endswith(f", {JOINT})") == edit.refined
    assert list(result.to_frame()["refined"]) == [step.refined for step in result.steps]
