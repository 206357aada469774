"""A tiny Trojan removed: what is kept, what is rolled back, and that the history tells it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import Edits, load_edits
from rectify_widgets.engine.edit.solver import DenseSolver
from rectify_widgets.engine.find.candidates import Candidate
from rectify_widgets.engine.find.problem import PROBE, QUICK_PROBE, QUICK_SOLVED, SOLVED
from rectify_widgets.engine.find.proposals import Proposals, propose_edits
from rectify_widgets.engine.model import gradients
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.repair import rounds
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import STEP_COLUMNS, Rectification
from rectify_widgets.engine.repair.rounds import REFINED, STAGES
from rectify_widgets.engine.repair.shortlist import shortlist
from rectify_widgets.engine.repair.solving import solve_edit
from tests.engine.test_edit_keeping import bits, same
from tests.engine.test_layer_catalog import LAYERS
from tests.engine.test_localization import distance
from tests.engine.toy import Toy, samples, stamped

STOPPED = {"target", "no layer helps", "round limit", "cancelled", REFINED}


def run(toy: Toy, which: int | slice = 0, **options: Any) -> Rectification:
    given: dict[str, Any] = {"reference": toy.reference, "max_rounds": 3, **options}
    if "strategy" not in options:
        given.setdefault("refine_steps", 60)
    return rectify(toy.model, toy.pairs[which], **given)


@pytest.fixture(scope="module")
def repaired(trojan: Toy) -> Rectification:
    """The result that most tests look at."""
    before = bits(trojan.model)
    result = run(trojan)
    assert same(trojan.model, before)
    return result


def check_history(result: Rectification) -> None:
    """What holds of every rectification."""
    kept = [step for step in result.steps if step.accepted]
    assert [(s.layer, s.direction, s.ridge) for s in kept] == [
        (e.layer, e.direction, e.ridge) for e in result.edits
    ]
    last = max((step.round for step in kept), default=0)
    for number in range(1, last + 1):  # one edit a round, or many of many layers in the last one
        together = [step for step in kept if step.round == number]
        assert all(step.refined for step in together) or len(together) == 1
        assert number == last or not any(step.refined for step in together)
    assert [s.round for s in result.steps] == sorted(s.round for s in result.steps)
    gap, loss = result.gap_before, 0.0
    for step in kept:
        assert (step.gap_before, step.degradation_before) == (gap, loss)
        assert step.gap_after is not None
        assert step.degradation_after is not None
        gap, loss = step.gap_after, step.degradation_after
    assert (result.gap_after, result.degradation) == (gap, loss)
    assert result.gap_after <= result.gap_before
    for step in result.steps:
        assert (step.gap_without is not None) == (step.accepted and step.refined)
        others = [k for k in kept if k.round < step.round]
        if step in kept and step.refined:
            continue  # measured after those before it
        assert step.gap_before == (others[-1].gap_after if others else result.gap_before)
        assert step.reason
        assert step.seconds >= 0
        assert (step.gap_after is None) == (step.degradation_after is None)
    assert result.stopped in STOPPED
    assert set(result.seconds) == set(STAGES)
    refined = any(step.refined for step in result.steps)
    assert all(seconds > 0 for name, seconds in result.seconds.items() if name != "refining")
    assert result.seconds["refining"] > 0 or not refined


# --- the Trojan is gone --------------------------------------------------------------------------


@pytest.mark.parametrize("which", [1, 3, slice(0, 4)])
def test_the_trojan_is_removed(trojan: Toy, which: int | slice) -> None:
    accuracy, success = trojan.rates(trojan.model)
    assert accuracy > 0.97
    assert success > 0.97
    result = run(trojan, which)
    after, left = trojan.rates(result.model)
    assert left < 0.1
    assert after > accuracy - 0.02
    assert result.gap_after < 0.2 * result.gap_before
    assert result.degradation <= 0.01
    check_history(result)


def test_history_and_result_agree(trojan: Toy, repaired: Rectification) -> None:
    check_history(repaired)
    assert repaired.strategy == "dynamic"
    assert 1 <= len({step.round for step in repaired.steps if step.accepted}) <= 3
    rejected = [step for step in repaired.steps if not step.accepted]
    assert rejected
    assert any("did better" in step.reason for step in rejected)
    assert {edit.layer for edit in repaired.edits} <= set(LAYERS["residual"])
    fresh = copy.deepcopy(trojan.model)
    Edits(repaired.edits).apply(fresh)
    assert same(fresh, bits(repaired.model))


def test_only_the_edited_weights_differ(trojan: Toy, repaired: Rectification) -> None:
    edited = {f"{edit.layer}.weight" for edit in repaired.edits}
    before, after = bits(trojan.model), bits(repaired.model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == edited
    assert repaired.model is not trojan.model
    pointers = {p.data_ptr() for p in trojan.model.parameters()}
    assert not pointers & {p.data_ptr() for p in repaired.model.parameters()}
    assert all(p.requires_grad for p in repaired.model.parameters())


def test_save_load_apply(trojan: Toy, repaired: Rectification, tmp_path: Path) -> None:
    repaired.save(tmp_path / "fix.safetensors")
    edits = load_edits(tmp_path / "fix.safetensors")
    fresh = copy.deepcopy(trojan.model)
    edits.apply(fresh)
    assert same(fresh, bits(repaired.model))
    edits.revert(fresh)
    assert same(fresh, bits(trojan.model))
    # The repaired copy can be taken back too.
    copied = copy.deepcopy(repaired.model)
    Edits(repaired.edits).revert(copied)
    assert same(copied, bits(trojan.model))


def test_same_seed_same_edits(trojan: Toy, repaired: Rectification) -> None:
    torch.manual_seed(123)  # the caller's random numbers play no part
    state = torch.get_rng_state()
    again = run(trojan)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(again.model, bits(repaired.model))
    reported = [
        [[getattr(s, c) for c in STEP_COLUMNS if c != "seconds"] for s in result.steps]
        for result in (again, repaired)
    ]
    assert reported[0] == reported[1]
    other = run(trojan, seed=1, max_rounds=1)
    assert not same(other.model, bits(repaired.model))


# --- judged as promised --------------------------------------------------------------------------


def test_gap_is_what_a_recount_gives(trojan: Toy) -> None:
    """With fewer than 64 references all of them judge, but for those that seem to be corrupted."""
    reference = trojan.reference[:40]
    result = run(trojan, reference=reference, max_rounds=20)
    assert result.stopped == "no layer helps"
    assert len(result.flagged) < 3
    reference = reference[[i for i in range(40) if i not in result.flagged.tolist()]]
    with torch.no_grad():
        clean = trojan.model(reference)
        for model, gap in ((trojan.model, result.gap_before), (result.model, result.gap_after)):
            assert gap == pytest.approx(distance(model(stamped(reference)), clean), abs=1e-5)
        answers, now = clean.argmax(dim=1), result.model(reference).argmax(dim=1)
        sure = clean.softmax(dim=1)
        rows = torch.arange(len(reference))
        losses = sure[rows, answers] - sure[rows, now]
        assert result.degradation == pytest.approx(float(losses.mean()), abs=1e-5)
        # Every kept edit makes gap and disturbance together smaller by a thousandth at least.
        model, before = copy.deepcopy(trojan.model), result.gap_before
        for edit in result.edits:
            edit.apply(model)
            after = distance(model(stamped(reference)), clean)
            after += 2 * distance(model(reference), clean)
            assert after <= before - 0.999e-3
            before = after


def test_later_edits_are_solved_from_statistics_of_the_edited_model(trojan: Toy) -> None:
    """Each kept edit of a late layer, whose positions are all used, against `solve_edit` anew."""
    catalog, fresh = editable_layers(trojan.model, trojan.reference), 0
    for number in (1, 3):
        result = run(trojan, number, reference=trojan.reference[:20], max_rounds=4)
        rows = [row for row in range(20) if row not in result.flagged.tolist()]
        model, later = copy.deepcopy(trojan.model), set[str]()
        for edit in result.edits:
            if edit.layer.startswith(("block2", "head")):
                anew = solve_edit(
                    model, trojan.pairs[number], layer=edit.layer, direction=edit.direction,
                    ridge=edit.ridge, reference=trojan.reference[:20][rows],
                )  # fmt: skip
                torch.testing.assert_close(edit.delta, anew.delta, rtol=1e-3, atol=1e-5)
                fresh += edit.layer in later
            edit.apply(model)
            later.update(catalog.after(edit.layer))
    assert fresh > 0


def test_budget(trojan: Toy) -> None:
    """A budget of nothing is kept to; without bounds edits are taken that cost more."""
    strict = run(trojan, max_degradation=0.0, max_rounds=2, refine_steps=5)
    assert strict.degradation <= 0.0
    check_history(strict)
    refused = [s for s in strict.steps if s.reason == "over the degradation budget"]
    assert refused
    for step in refused:
        assert step.degradation_after is not None
        assert step.worst_class is not None
        assert max(step.degradation_after, step.worst_class) > 0.0


def test_the_target_ends_it(trojan: Toy) -> None:
    easy = run(trojan, target_gap=0.6)
    assert easy.stopped == "target"
    assert len(easy.edits) == 1
    assert easy.gap_after <= 0.6
    done = run(trojan, target_gap=1.0)  # the pair's prediction flips all the same
    assert done.stopped == "target"
    assert len(done.edits) == 1
    pair = trojan.pairs[0]
    assert trojan.model(pair.corrupted).argmax() != trojan.model(pair.clean).argmax()
    assert done.model(pair.corrupted).argmax() == trojan.model(pair.clean).argmax()
    again = rectify(done.model, pair, reference=trojan.reference, target_gap=1.0)
    assert again.stopped == "target"
    assert not again.steps
    assert same(again.model, bits(done.model))
    assert again.gap_before == again.gap_after
    one = run(trojan, max_rounds=1, target_gap=0.0)
    assert one.stopped == "round limit"
    assert {step.round for step in one.steps} == {1}


def test_validation_counts_accuracy(trojan: Toy) -> None:
    x, y = samples(100, seed=20)
    result = run(trojan, validation=(x, y), max_rounds=2)
    with torch.no_grad():
        right = [float((m(x).argmax(1) == y).float().mean()) for m in (trojan.model, result.model)]
    assert result.degradation == pytest.approx(right[0] - right[1], abs=1e-6)
    assert trojan.rates(result.model)[1] < 0.2
    check_history(result)


def test_wrong_validation_labels_leave_nothing_to_lose(trojan: Toy) -> None:
    """Every label wrong: an edit can only gain accuracy, and none is over the budget."""
    x, y = samples(50, seed=20)
    result = run(trojan, validation=(x, (y + 1) % 5), max_rounds=1, max_degradation=0.0)
    assert not [s for s in result.steps if s.reason == "over the degradation budget"]
    assert result.degradation <= 0.0


# --- strategies and methods ----------------------------------------------------------------------


def test_static_edits_the_named_layer_once(trojan: Toy) -> None:
    result = run(trojan, strategy="static", layer="block2.conv1", max_rounds=8)
    assert result.strategy == "static"
    assert [edit.layer for edit in result.edits] == ["block2.conv1"]
    assert {step.layer for step in result.steps} == {"block2.conv1"}
    assert {step.round for step in result.steps} == {1}
    assert 1 <= len(result.steps) <= 10
    assert result.gap_after < result.gap_before
    check_history(result)


def test_static_takes_the_last_convolution_by_default(trojan: Toy) -> None:
    assert {s.layer for s in run(trojan, strategy="static").steps} == {"block2.short"}


@pytest.mark.parametrize("method", ["projection", "trial"])
def test_other_methods(trojan: Toy, method: str) -> None:
    result = run(trojan, method=method, max_rounds=1, reference=trojan.reference[:64])
    assert len(result.steps) <= 10
    first = {step.layer: step.score for step in result.steps}
    assert [step.layer for step in result.steps[: len(first)]] == list(first)
    assert list(first.values()) == sorted(first.values(), reverse=True)
    check_history(result)


# --- rendering -----------------------------------------------------------------------------------


def test_table_frame_and_html(repaired: Rectification) -> None:
    """Edits that were made together take one line, and then one for each of their layers."""
    lines = str(repaired).splitlines()
    many = [step for step in repaired.steps if step.accepted and step.refined]
    layers = {step.layer for step in many}
    assert len(layers) > 1
    trials = len(repaired.steps) - len(many) + 1
    assert len(lines) == 1 + trials + 1 + len(layers) + 1 + len(repaired.diagnosis)
    kept = [line for line in lines if "yes: " in line]
    assert len(kept) == len(repaired.edits) - len(many) + 1
    assert f"{len(layers)} layers" in kept[-1]
    assert kept[-1].endswith(f"yes: {len(many)} edits refined together")
    assert f"{many[0].gap_before:.3f} → {repaired.gap_after:.3f}" in kept[-1]
    below = {words[0]: words[1:] for words in map(str.split, lines[lines.index(kept[-1]) + 2 :])}
    for name in layers:
        without = [step.gap_without for step in many if step.layer == name]
        more = sum(gap - repaired.gap_after for gap in without if gap is not None)
        assert below[name] == [str(len(without)), f"{more:+.3f}"]
    assert lines[-1 - len(repaired.diagnosis)].startswith(
        f"stopped: {repaired.stopped}; gap {repaired.gap_before:.3f} → "
    )
    frame = repaired.to_frame()
    assert list(frame.columns) == list(STEP_COLUMNS)
    assert len(frame) == len(repaired.steps)
    assert frame["accepted"].sum() == len(repaired.edits)
    html = repaired._repr_html_()
    assert html.count("<tr") == 1 + trials + 1 + len(layers)
    assert html.count("✓") == len(kept)
    assert repr(repaired).startswith(f"Rectification({len(repaired.edits)} edits in ")


def test_an_empty_history_can_be_shown(trojan: Toy, repaired: Rectification) -> None:
    nothing = run(replace(trojan, model=repaired.model), target_gap=1.0)
    assert "0 edits kept" in str(nothing)
    assert nothing.to_frame().empty
    assert "<table>" in nothing._repr_html_()


def test_labels_may_be_given(trojan: Toy) -> None:
    pair = trojan.pairs[0]
    labels = torch.tensor([1])
    with torch.no_grad():
        assert trojan.model(pair.clean).argmax(dim=1).equal(labels)
    labelled = SamplePairs(pair.corrupted, pair.clean, labels)
    options: dict[str, Any] = {"reference": trojan.reference[:40], "max_rounds": 1}
    one, other = (rectify(trojan.model, p, **options) for p in (pair, labelled))
    assert same(one.model, bits(other.model))


@pytest.mark.parametrize(
    ("large", "wanted"),
    [(2**16, (8, PROBE, [1, 1 + SOLVED])), (10, (3, QUICK_PROBE, [1, 1 + QUICK_SOLVED]))],
)
def test_large_inputs_are_swept_in_fewer_steps_with_fewer_samples(
    trojan: Toy, monkeypatch: pytest.MonkeyPatch, large: int, wanted: object
) -> None:
    seen: list[object] = []

    def spied(*given: Any, **options: Any) -> Proposals:
        _, _, probe, sources, _ = given
        seen.append((options["steps"], len(probe), [len(clean) for _, clean in sources]))
        return propose_edits(*given, **options)

    monkeypatch.setattr(gradients, "LARGE", large)
    monkeypatch.setattr(rounds, "propose_edits", spied)
    run(trojan, max_rounds=1, refine_steps=0)
    assert seen
    assert all(one == wanted for one in seen)


def test_where_trials_take_long_layers_whose_first_edit_leaves_the_gap_are_not_tried_again(
    trojan: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[list[Candidate]] = []

    def kept(*given: Any, **options: Any) -> list[Candidate]:
        chosen.append(shortlist(*given, **options))
        return chosen[-1]

    monkeypatch.setattr(rounds, "shortlist", kept)
    monkeypatch.setattr(gradients, "LARGE", 10)
    result = run(trojan, target_gap=0.0, max_rounds=3, refine_steps=0)
    skipped = 0
    for number, some in enumerate(chosen, start=1):
        steps = iter([step for step in result.steps if step.round == number])
        hopeless: set[str] = set()
        for candidate in some:
            if candidate.layer.name in hopeless:
                skipped += 1
                continue
            step = next(steps)
            assert (step.layer, step.ridge) == (candidate.layer.name, candidate.ridge)
            if step.reason == "closes too little of the gap":
                hopeless.add(step.layer)
        assert not list(steps)
    assert skipped


def test_factors_that_hold_are_not_made_again(trojan: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    real = DenseSolver._factorise

    def counted(self: DenseSolver, ridge: float) -> torch.Tensor:
        made.append(ridge)
        return real(self, ridge)

    monkeypatch.setattr(DenseSolver, "_factorise", counted)
    first = run(trojan, target_gap=0.0, max_rounds=1)
    one = len(made)
    some = run(trojan, target_gap=0.0, max_rounds=2)
    both = len(made) - one
    assert [edit.layer for edit in first.edits] == [edit.layer for edit in some.edits[:1]]
    catalog = editable_layers(trojan.model, trojan.pairs.clean)
    after = catalog.after(some.edits[0].layer)
    ridges = len(set(made))
    assert len(after) < len(catalog.editable)
    assert both == one + ridges * len(after)
    made.clear()
    limited = run(trojan, target_gap=0.0, max_rounds=2, memory_limit=2**33)
    assert len(limited.edits) == len(some.edits)
    assert len(made) == one + ridges * len(catalog.editable)  # a limit leaves no room for them
    monkeypatch.setattr("rectify_widgets.engine.model.memory.MOST_KEPT", 0)
    made.clear()
    whole = run(trojan, target_gap=0.0, max_rounds=2)
    assert len(made) == one + ridges * len(catalog.editable)
    for mine, other in zip(some.edits, whole.edits, strict=True):
        assert torch.equal(mine.delta, other.delta)
