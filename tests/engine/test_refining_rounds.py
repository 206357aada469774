"""When `rectify` refines, how often, and what is left where that fails or is cancelled."""

from __future__ import annotations

import copy
import math
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.candidates import Candidate
from rectify_widgets.engine.find.estimates import estimate_memory
from rectify_widgets.engine.find.problem import SPLIT, counts_of, pose_problem
from rectify_widgets.engine.measure.judge import Verdict
from rectify_widgets.engine.model import memory
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.memory import limit_for, measure_sizes, refining_peak
from rectify_widgets.engine.repair import refining, rounds
from rectify_widgets.engine.repair.checkpoint import State
from rectify_widgets.engine.repair.diagnosis import OVER_BUDGET
from rectify_widgets.engine.repair.joint import together
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.refining import REFINE_STEPS, Goal, refine
from rectify_widgets.engine.repair.rounds import (
    REFINED,
    REPEATS,
    STAGES,
    TURNS,
    WHEN_CANCELLED,
    Rounds,
)
from rectify_widgets.engine.repair.trials import Trials
from tests.engine.calls import LONG
from tests.engine.refining_spy import Refined, Seen, run
from tests.engine.test_no_trace import same_but_for_edits
from tests.engine.toy import Toy, samples
from tests.engine.traces import Tiny


def test_stages_within_stages_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def cancelled(seconds: float) -> None:
        wait(seconds)
        raise Cancelled

    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: now))
    loop = Rounds.__new__(Rounds)
    loop._seconds, loop._nested = dict.fromkeys(STAGES, 0.0), 0.0
    with loop._clock("evaluation"):
        wait(1)
        with loop._clock("refining"):
            wait(2)
            with loop._clock("sweep"):
                wait(4)
        wait(8)
        with pytest.raises(Cancelled), loop._clock("refining"):
            cancelled(16)
        wait(32)
    with loop._clock("solving"):
        wait(64)
    with loop._clock("evaluation"):
        wait(128)
    expected = {"evaluation": 169, "refining": 18, "sweep": 4, "solving": 64, "statistics": 0}
    assert loop._seconds == expected


# --- when ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "cost", "target", "short"),
    [
        (0.41, 0.0, 0.02, True),
        (0.39, 0.0, 0.02, False),
        (0.40, 0.0, 0.02, False),
        (0.79, 0.0, 0.0, True),
        (0.0, 0.0, 0.0, False),
        (0.45, 0.0, 0.5, False),  # the target is reached
        (0.51, 0.0, 0.25, True),
        (0.51, 0.0, 0.26, False),  # near it
        (0.39, 0.005, 0.02, False),  # within half of the budget
        (0.39, 0.006, 0.02, True),
        (0.03, 0.006, 0.02, False),  # costly, but near the target
        (None, 0.0, 0.02, True),
        (None, 0.0, 0.39, True),
        (None, 0.0, 0.41, False),
    ],
)
def test_falls_short(gap: float | None, cost: float, target: float, short: bool) -> None:
    loop = Rounds.__new__(Rounds)
    start = Verdict(0.8, 0.0, 0.0, 0.0)
    options = RectifyOptions(target_gap=target, max_degradation=0.01)
    loop.state, loop._options = State(start, start, {}), options
    verdict = None if gap is None else Verdict(gap, 0.0, cost, 0.0)
    best = None if verdict is None else (cast("Candidate", None), verdict, 0)
    assert loop._falls_short(best) is short


def test_only_rounds_whose_closed_form_falls_short_refine(trojan: Toy) -> None:
    result, seen = run(trojan, None, refine_steps=60)
    refined = {rest["seed"] for rest in seen.options}
    for number in {step.round for step in result.steps}:
        steps = [step for step in result.steps if step.round == number]
        closed = [
            step for step in steps
            if not step.refined and (step.accepted or step.reason == "many layers together did better")
        ]  # fmt: skip
        (best,) = closed
        assert best.gap_after is not None
        assert (number in refined) == (best.gap_after > 0.5 * best.gap_before)
    assert refined == {3}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"refine_steps": 0}, None),
        ({"reference": SPLIT - 1}, None),
        ({"strategy": "static", "refine_steps": None}, None),
        ({"strategy": "static", "refine_steps": 3}, 3),
        ({"refine_steps": 4}, 4),
        ({"refine_steps": None}, REFINE_STEPS),
    ],
)
def test_how_many_steps(
    trojan: Toy, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], count: int | None
) -> None:
    given = dict(options)
    if "reference" in given:
        given["reference"] = trojan.reference[: given["reference"]]
    asked: list[int] = []

    def refining(model: nn.Module, layers: Any, start: Refined, goal: Goal, **rest: Any) -> Refined:
        asked.append(rest["steps"])
        assert len(layers) == (1 if given.get("strategy") == "static" else 7)
        return refine(model, layers, start, goal, **{**rest, "steps": 2})

    monkeypatch.setattr(rounds, "ENOUGH", 1.0)
    monkeypatch.setattr(rounds, "refine", refining)
    result = rectify(
        trojan.model, trojan.pairs[0],
        **{"reference": trojan.reference, "max_rounds": 1, "target_gap": 0.0, **given},
    )  # fmt: skip
    assert set(asked) == ({count} if count else set())
    assert any(step.refined for step in result.steps) == bool(count)
    if options.get("refine_steps") == 0 or "reference" in options:
        assert result.seconds["refining"] == 0


@pytest.mark.parametrize("refused", range(TURNS + 1))
def test_over_the_budget_they_are_refined_again(
    trojan: Toy, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """More strictly each time, from where they are; at last the best closed form is kept."""
    judged: list[Verdict] = []
    objection, kept = Rounds._objection, list[list[Candidate]]()

    def objecting(loop: Rounds, verdict: Verdict | None, bar: float) -> str | None:
        if verdict is None or not seen or not seen[0].options:  # of a closed form
            return objection(loop, verdict, bar)
        judged.append(verdict)
        return OVER_BUDGET if len(judged) <= refused else None

    def keeping(edits: list[Candidate]) -> Any:
        kept.append(edits)
        return together(edits)

    seen: list[Seen] = []
    monkeypatch.setattr(Rounds, "_objection", objecting)
    monkeypatch.setattr(rounds, "together", keeping)
    monkeypatch.setattr(Seen, "__init__", _remembered(seen))
    result, spy = run(trojan, 1.0, max_rounds=1, refine_steps=5)
    turns = min(refused + 1, TURNS)
    assert [rest["turn"] for rest in spy.options] == list(range(turns))
    assert {rest["seed"] for rest in spy.options} == {1}
    assert spy.starts[1:] == spy.found[:-1]  # on from where they are
    over = [step for step in result.steps if step.reason == OVER_BUDGET and step.refined]
    assert len(over) == refused
    assert not any(step.accepted for step in over)
    for step, edits, verdict in zip(over, kept, judged, strict=False):
        assert step.layer == f"{len({edit.layer.name for edit in edits})} layers"
        assert (step.gap_after, step.gap_before) == (verdict.gap, result.gap_before)
    assert all(edit.refined for edit in result.edits) == (refused < TURNS)
    if refused == TURNS:
        (edit,) = result.edits  # the best closed form
        assert not edit.refined


ROOMY = "more than half of the budget for what is left"


@pytest.mark.parametrize(
    ("first", "left", "below", "keeps", "refused"),
    [
        (None, 0.0, [True, True, True], [9.0, 4.5, 2.25], "worse"),
        (None, 0.0, [True, False], [9.0, 4.5], ROOMY),
        (None, 0.0, [False], [9.0], None),
        (None, 1.0, [True], [9.0], None),
        (OVER_BUDGET, 0.0, [False, True, False], [9.0, 18.0, 9.0], ROOMY),
    ],
    ids=["far below", "near it then", "near it at once", "little is left", "over it at first"],
)
def test_far_below_the_budget_they_are_refined_more_boldly(
    trojan: Toy,
    monkeypatch: pytest.MonkeyPatch,
    first: str | None,
    left: float,
    below: list[bool],
    keeps: list[float],
    refused: str | None,
) -> None:
    """And the last that did better is kept, on cancel too."""
    objection, judged = Rounds._objection, list[Verdict]()

    def objecting(loop: Rounds, verdict: Verdict | None, bar: float) -> str | None:
        if verdict is None or not seen or not seen[0].options:  # of a closed form
            return objection(loop, verdict, bar)
        assert not judged or first or bar == judged[-1].objective
        judged.append(verdict)
        return {1: first, TURNS: refused if refused == "worse" else None}.get(len(judged))

    def within(verdict: Verdict, budget: float) -> bool:
        number = judged.index(verdict) if verdict in judged else None
        return inside(verdict, budget) if number is None or budget > 0.005 else below[number]

    seen: list[Seen] = []
    inside = Verdict.within
    monkeypatch.setattr(Rounds, "_objection", objecting)
    monkeypatch.setattr(Seen, "__init__", _remembered(seen))
    monkeypatch.setattr(Verdict, "within", within)
    monkeypatch.setattr(rounds, "LEFT", left)
    options: dict[str, Any] = {"max_rounds": 1, "refine_steps": 5}
    result, spy = run(trojan, 1.0, **options)
    assert [rest["keep"] for rest in spy.options] == keeps
    assert [rest["turn"] for rest in spy.options] == list(range(len(keeps)))
    best = judged[len(keeps) - 1 - bool(refused)]
    assert (result.gap_after, result.degradation) == (best.gap, best.degradation)
    lost = [step.reason for step in result.steps if step.refined and not step.accepted]
    assert lost == [one for one in (first, refused) if one]

    seen.clear()
    judged.clear()
    result, spy = run(trojan, 1.0, **options, cancel=lambda: len(judged) == len(keeps) - 1 > 0)
    assert (result.stopped == "cancelled") == (len(keeps) > 1)
    assert (result.gap_after, result.degradation) == (best.gap, best.degradation)


def _remembered(seen: list[Seen]) -> Any:
    first = Seen.__init__

    def init(self: Seen, *args: Any) -> None:
        first(self, *args)
        seen.append(self)

    return init


def test_where_refining_fails_the_closed_form_is_kept(trojan: Toy) -> None:
    """A change of noise, that is: the rounds go on without it, and try it no more than twice."""

    def noise(*args: Any, **_: Any) -> Refined:
        draw = torch.Generator().manual_seed(0)
        return {
            name: (torch.randn(left.shape, generator=draw), right)
            for name, (left, right) in args[2].items()
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "ENOUGH", 1.0)
        patch.setattr(rounds, "refine", noise)
        result = rectify(
            trojan.model, trojan.pairs[0], reference=trojan.reference, max_rounds=4,
            target_gap=0.0, refine_steps=5,
        )  # fmt: skip
    refined = [step for step in result.steps if step.refined]
    assert [step.round for step in refined] == list(range(1, REPEATS + 1))
    assert {step.reason for step in refined} == {"gap and disturbance together do not fall"}
    assert len(result.edits) > REPEATS
    assert not any(edit.refined for edit in result.edits)
    same_but_for_edits(result, trojan.model)


def test_a_layer_of_zeros_has_nothing_to_refine(trojan: Toy) -> None:
    model = copy.deepcopy(trojan.model)
    with torch.no_grad():
        model.get_parameter("block2.short.weight").zero_()
    result, seen = run(
        trojan, 1.0, model=model, strategy="static", layer="block2.short", refine_steps=3
    )
    assert seen.found == [{}]
    assert not any(step.refined for step in result.steps)


def test_references_left_out_may_leave_too_few(trojan: Toy) -> None:
    result, seen = run(trojan, 1.0, max_rounds=1, reference=trojan.reference[:64])
    assert len(result.flagged) > 0
    assert not seen.goals


def test_pairs_alone_are_refined_on_too(trojan: Toy) -> None:
    """Where no form carries the corruption over, the pairs show it and references hold the rest."""
    x, y = samples(90, seed=9)
    places = [slice(row, row + 6) for row in (0, 2, 4)]
    one = x[y == 1][:12]
    corrupted = one.clone()
    for row in range(12):
        corrupted[row, :, places[row % 3]] = x[y == 2][row, :, places[row % 3]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rectify_widgets.engine.find.transfer.LEAST", 1e9)
        result, seen = run(trojan, 1.0, pairs=SamplePairs(corrupted, one), max_degradation=0.05)
    assert result.evidence is not None
    assert not result.evidence.transferred
    assert seen.goals[0].corrupt is None
    assert torch.equal(seen.goals[0].shown[0], corrupted)
    ruled = [step for step in result.steps if step.refined]
    assert ruled


def test_the_call_of_the_other_tests_refines() -> None:
    result = LONG["rectify with refining"](Tiny())
    assert any(step.refined for step in result.steps)


@pytest.mark.parametrize(
    "when", ["refining", "leaving out an edit of stem", "measuring block2.conv1", "measuring stem"]
)
def test_cancelled_in_the_joint_stage(trojan: Toy, when: str) -> None:
    reported: list[tuple[float, str]] = []
    result, _ = run(
        trojan, 1.0, max_rounds=2, refine_steps=60, max_degradation=0.02,
        progress=lambda *what: reported.append(what),
        cancel=lambda: bool(reported) and reported[-1][1].startswith(when),
    )  # fmt: skip
    assert result.stopped == "cancelled"
    kept = [step for step in result.steps if step.accepted]
    assert [step.layer for step in kept] == [edit.layer for edit in result.edits]
    assert kept
    assert all(step.reason.endswith(WHEN_CANCELLED) for step in kept)
    assert kept[-1].gap_after == result.gap_after < result.gap_before
    assert result.degradation <= 0.02
    same_but_for_edits(result, trojan.model)
    fractions = [fraction for fraction, _ in reported]
    assert fractions == sorted(fractions)


def test_cancelled_after_it(trojan: Toy) -> None:
    """What is kept by then stays: the whole set, with its figures."""
    texts = list[str]()
    result, _ = run(
        trojan, 1.0, refine_steps=60, max_degradation=0.02,
        progress=lambda _, text: texts.append(text),
        cancel=lambda: bool(texts) and texts[-1].startswith("stopped"),
    )  # fmt: skip
    assert result.stopped == REFINED
    assert len(result.edits) > 1
    assert all(edit.refined for edit in result.edits)
    # Once on the references that were learnt from, for all edits, and once for those kept.
    assert sum(text.startswith("leaving out") for text in texts) > 2 * len(result.edits)
    same_but_for_edits(result, trojan.model)


def test_a_trial_that_was_broken_off_has_the_figures_that_are_known(trojan: Toy) -> None:
    layer = editable_layers(trojan.model, trojan.reference[:1]).editable["head"]
    edit = Candidate(layer, "key", 0.1, torch.ones(1, 5), torch.ones(1, 2), 0.5, 0.0)
    start, broken = Verdict(0.9, 0.0, 0.0, 0.0), Verdict(0.3, 0.4, math.nan, math.nan)
    step = Trials(1, {"head": 0.5}).step(edit, broken, start, "no net gain", time.perf_counter())
    assert (step.gap_before, step.gap_after, step.accepted) == (0.9, 0.3, False)
    assert (step.degradation_after, step.worst_class, step.sufferer, step.objective) == (None,) * 4


def test_refining_keeps_to_the_limit(trojan: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of fewer samples at a time, with the same result; and none where not one fits."""
    sizes: list[int] = []
    whole = refining._gradients

    def spied(factors: Any, loss: Any, count: int, size: int) -> list[Tensor]:
        sizes.append(size)
        return whole(factors, loss, count, size)

    monkeypatch.setattr(refining, "_gradients", spied)
    monkeypatch.setattr(rounds, "ENOUGH", 1.0)  # always refined
    monkeypatch.setattr(memory, "LESSON", 400)  # so that nothing else takes as much
    about: dict[str, Any] = {"reference": trojan.reference, "target_gap": 0.0, "max_rounds": 1}
    steps: dict[str, Any] = {**about, "refine_steps": 3}
    usual = rectify(trojan.model, trojan.pairs[:1], **steps)
    assert set(sizes) == {256}
    pairs, example = trojan.pairs[:1], trojan.reference[:1]
    with torch.no_grad():
        layers = pose_problem(trojan.model, pairs, trojan.reference).layers
        found = measure_sizes(trojan.model, layers, example, copied=True)
    counts = counts_of(1, len(trojan.reference), trojan.reference)
    limit = limit_for(refining_peak(found, counts, 5))
    sizes.clear()
    less = rectify(trojan.model, pairs, **steps, memory_limit=limit)
    assert set(sizes) == {5}
    for one, other in zip(usual.edits, less.edits, strict=True):
        torch.testing.assert_close(one.delta, other.delta, rtol=1e-3, atol=1e-5)
    few, told = limit_for(refining_peak(found, counts, 1)) - 1, list[str]()
    steps["progress"] = lambda _, message: told.append(message)
    with pytest.raises(ValueError, match=r"memory_limit: .* give more, or refine_steps=0"):
        rectify(trojan.model, pairs, **steps, memory_limit=few)
    assert not [message for message in told if "round" in message], "refused at once"
    estimate = estimate_memory(
        trojan.model, example.shape[1:], references=len(trojan.reference), memory_limit=limit
    )
    assert estimate.phases["refining"] == refining_peak(found, counts, 5)
