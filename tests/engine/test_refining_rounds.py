"""What refining does in `rectify`: when it happens, what is kept of it, and how edits tell of it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.files import write_tensors
from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.edit.edits import FORMAT, Edits, load_edits, pack_edits
from rectify_widgets.engine.find.candidates import Candidate
from rectify_widgets.engine.find.problem import SPLIT
from rectify_widgets.engine.measure.judge import Judge, Verdict
from rectify_widgets.engine.repair import rounds
from rectify_widgets.engine.repair.checkpoint import State
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.refining import LAYERS, REFINE_STEPS, TURNS, WEAKER, Goal, refine
from rectify_widgets.engine.repair.result import Rectification, Step
from rectify_widgets.engine.repair.rounds import LEAST_GAIN, STAGES, Rounds
from tests.engine.calls import LONG
from tests.engine.test_edit_keeping import bits, same
from tests.engine.test_no_trace import same_but_for_edits
from tests.engine.toy import Toy
from tests.engine.traces import Tiny


class Seen:
    """What a rectification measured and refined."""

    def __init__(self, patch: pytest.MonkeyPatch, enough: float | None) -> None:
        self.verdicts: list[Verdict | None] = []
        self.tried: list[Tensor] = []
        self.calls: list[tuple[Candidate, Goal, dict[str, Any], Candidate, Tensor]] = []
        self.judges: list[Judge] = []
        self.took = 0.0
        measure = Judge.measure_below

        def measured(judge: Judge, model: nn.Module, *rest: Any) -> Verdict | None:
            self.verdicts.append(measure(judge, model, *rest))
            self.judges.append(judge)
            self.tried.append(model.get_parameter(f"{rest[-1]}.weight").detach().clone())
            return self.verdicts[-1]

        def refining(model: nn.Module, start: Candidate, goal: Goal, **rest: Any) -> Candidate:
            began = time.perf_counter()
            found = refine(model, start, goal, **rest)
            self.took += time.perf_counter() - began
            self.calls.append((start, goal, rest, found, found.weight))
            return found

        patch.setattr(Judge, "measure_below", measured)
        patch.setattr(rounds, "refine", refining)
        if enough is not None:
            patch.setattr(rounds, "ENOUGH", enough)


def run(toy: Toy, enough: float | None, **options: Any) -> tuple[Rectification, Seen]:
    given: dict[str, Any] = {"reference": toy.reference, "max_rounds": 3, "target_gap": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        spy = Seen(patch, enough)
        return rectify(toy.model, toy.pairs[0], **{**given, **options}), spy


@pytest.fixture(scope="module")
def always(trojan: Toy) -> tuple[Rectification, Seen, float]:
    """The closed form always falls short."""
    before, began = bits(trojan.model), time.perf_counter()
    result, seen = run(trojan, 1.0, max_rounds=2)
    took = time.perf_counter() - began
    assert same(trojan.model, before)
    return result, seen, took


def by_round(result: Rectification, seen: Seen) -> dict[int, list[tuple[Step, Verdict | None]]]:
    found: dict[int, list[tuple[Step, Verdict | None]]] = {}
    for step, verdict in zip(result.steps, seen.verdicts, strict=True):
        found.setdefault(step.round, []).append((step, verdict))
    return found


# --- refined edits are tried, and the best is kept -----------------------------------------------


def test_refined_edits_are_tried_and_the_best_of_the_round_is_kept(
    always: tuple[Rectification, Seen, float],
) -> None:
    result, seen, _ = always
    kept, bar = [], result.gap_before  # at first nothing is disturbed
    for tried in by_round(result, seen).values():
        flags = [step.refined for step, _ in tried]
        assert flags == sorted(flags)  # the closed form comes first
        assert 1 <= sum(flags) <= LAYERS * (TURNS + 1)
        good = {
            verdict.objective: step
            for step, verdict in tried
            if verdict
            and verdict.within(max(0.01, step.degradation_before))
            and verdict.objective <= bar - LEAST_GAIN
        }
        (best,) = [step for step, _ in tried if step.accepted]
        assert best is good[min(good)]
        assert best.reason == "best of this round"
        kept.append(best)
        bar = min(good)
        for step, verdict in tried:
            assert step.gap_after == (verdict and verdict.gap)
    assert [edit.refined for edit in result.edits] == [step.refined for step in kept]
    assert any(edit.refined for edit in result.edits)
    assert any(step.reason.endswith(", refined, did better") for step in result.steps)


def test_what_is_refined_and_for_what(
    trojan: Toy, always: tuple[Rectification, Seen, float]
) -> None:
    result, seen, _ = always
    refined = [(i, step) for i, step in enumerate(result.steps) if step.refined]
    assert len(refined) == len(seen.calls)  # none was over the budget to the last
    halves = trojan.reference[[i for i in range(128) if i not in result.flagged.tolist()]]
    for (row, step), (start, goal, rest, found, weight) in zip(refined, seen.calls, strict=True):
        assert (step.layer, step.direction, step.ridge) == (
            start.layer.name, start.direction, start.ridge
        )  # fmt: skip
        assert rest["steps"] == REFINE_STEPS
        assert rest["seed"] == step.round
        assert found.refined
        assert torch.equal(seen.tried[row], weight)  # just that is what was measured
        if rest["turn"] > 0:
            continue
        # It begins at the best closed form of its layer in that round.
        others = [
            (verdict.objective, one)
            for one, verdict in zip(result.steps, seen.verdicts, strict=True)
            if verdict and not one.refined and (one.round, one.layer) == (step.round, step.layer)
        ]
        best = min(others, key=lambda one: one[0])[1]
        assert (best.direction, best.ridge) == (start.direction, start.ridge)
        assert not start.refined
        # On the half that does not judge, for what the model as given answers.
        judged = seen.judges[row]._inputs
        assert len(goal.references) + len(judged["clean"]) == len(halves)
        both = torch.cat([goal.references, judged["clean"]])
        assert {part.numpy().tobytes() for part in both} == {p.numpy().tobytes() for p in halves}
        assert not torch.equal(goal.carriers, goal.references)
        with torch.no_grad():
            wanted = trojan.model(goal.references).softmax(dim=1)
        torch.testing.assert_close(goal.wanted, wanted)
    for edit in result.edits:
        ends = [found for _, _, _, found, _ in seen.calls if found.layer.name == edit.layer]
        if edit.refined:
            assert any(torch.equal(edit.left, found.left.reshape(-1)) for found in ends)


def test_the_result_is_the_model_plus_the_edits(
    trojan: Toy, always: tuple[Rectification, Seen, float]
) -> None:
    result, _, _ = always
    same_but_for_edits(result, trojan.model)
    assert same(result.at(0), bits(trojan.model))
    result.at(1)


def test_time_is_told_apart(always: tuple[Rectification, Seen, float]) -> None:
    result, seen, took = always
    assert result.seconds["refining"] >= seen.took > 0
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert sum(result.seconds.values()) <= took


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
    ("gap", "target", "short"),
    [
        (0.41, 0.02, True),
        (0.39, 0.02, False),
        (0.40, 0.02, False),
        (0.79, 0.0, True),
        (0.0, 0.0, False),
        (0.45, 0.5, False),  # the target is reached
        (0.51, 0.25, True),
        (0.51, 0.26, False),  # near it
        (None, 0.02, True),
        (None, 0.39, True),
        (None, 0.41, False),
    ],
)
def test_falls_short(gap: float | None, target: float, short: bool) -> None:
    loop = Rounds.__new__(Rounds)
    start = Verdict(0.8, 0.0, 0.0, 0.0)
    loop.state, loop._options = State(start, start, {}), RectifyOptions(target_gap=target)
    verdict = None if gap is None else Verdict(gap, 0.0, 0.0, 0.0)
    best = None if verdict is None else (cast("Candidate", None), verdict, 0)
    assert loop._falls_short(best) is short


def test_only_rounds_whose_closed_form_falls_short_refine(trojan: Toy) -> None:
    result, seen = run(trojan, None)
    kinds = set()
    for tried in by_round(result, seen).values():
        closed = [
            verdict
            for step, verdict in tried
            if verdict and not step.refined and verdict.within(max(0.01, step.degradation_before))
        ]
        best = min(closed, key=lambda verdict: verdict.objective)
        halved = best.gap <= 0.5 * tried[0][0].gap_before
        assert any(step.refined for step, _ in tried) == (not halved)
        kinds.add(halved)
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"refine_steps": 0}, None),
        ({"reference": SPLIT - 1}, None),
        ({"strategy": "static"}, None),
        ({"strategy": "static", "refine_steps": 3}, 3),
        ({"refine_steps": 4}, 4),
        ({}, 100),
    ],
)
def test_how_many_steps(trojan: Toy, options: dict[str, Any], count: int | None) -> None:
    given = dict(options)
    if "reference" in given:
        given["reference"] = trojan.reference[: given["reference"]]
    result, seen = run(trojan, 1.0, max_rounds=1, **given)
    assert {rest["steps"] for _, _, rest, _, _ in seen.calls} == ({count} if count else set())
    assert any(step.refined for step in result.steps) == bool(count)
    layers = {start.layer.name for start, *_ in seen.calls}
    assert len(layers) <= (1 if options.get("strategy") == "static" else LAYERS)
    if options.get("refine_steps") == 0 or "reference" in options:
        assert result.seconds["refining"] == 0


@pytest.mark.parametrize("never", [False, True])
def test_over_the_budget_it_is_refined_again(
    trojan: Toy, monkeypatch: pytest.MonkeyPatch, never: bool
) -> None:
    if never:
        monkeypatch.setattr(Verdict, "within", lambda *_: False)
    result, seen = run(trojan, 1.0, max_degradation=0.0, refine_steps=5)
    rows = [row for row, step in enumerate(result.steps) if step.refined]
    over = "over the degradation budget"
    last, turns, weaker = None, set(), 0
    for start, _, rest, found, weight in seen.calls:
        row = rows.pop(0)
        step = result.steps[row]
        if rest["turn"] == TURNS - 1 and step.reason == over:
            # Half of it is tried at last.
            before = trojan.model.get_parameter(f"{found.layer.name}.weight").detach()
            half = seen.tried[rows.pop(0)] - before
            assert torch.allclose(half, WEAKER * (weight - before), atol=1e-6)
            weaker += 1
        if last is not None and last[1].reason == over and last[2] < TURNS - 1:
            assert start is last[0]
            assert rest["turn"] == last[2] + 1
        else:
            assert not start.refined
            assert rest["turn"] == 0
        last = (found, step, rest["turn"])
        turns.add(rest["turn"])
    assert not rows
    assert turns >= {0, 1}  # how often the toy needs a third one depends on the machine
    if never:
        assert turns == set(range(TURNS))
        assert weaker > 0
    assert bool(result.edits) != never
    assert result.degradation <= 0.0


def test_references_left_out_may_leave_too_few(trojan: Toy) -> None:
    result, seen = run(trojan, 1.0, max_rounds=1, reference=trojan.reference[:64])
    assert len(result.flagged) > 0
    assert not seen.calls


def test_the_call_of_the_other_tests_refines() -> None:
    result = LONG["rectify with refining"](Tiny())
    assert sum(step.refined for step in result.steps) == LAYERS
    assert len(result.edits) == 1


def test_cancelled_while_refining(trojan: Toy) -> None:
    reported: list[tuple[float, str]] = []
    result, _ = run(
        trojan, 1.0, max_rounds=2, progress=lambda *what: reported.append(what),
        cancel=lambda: sum(text.startswith("refining") for _, text in reported) > LAYERS * REFINE_STEPS + 3,
    )  # fmt: skip
    assert result.stopped == "cancelled"
    assert len(result.edits) == 1  # of the first round
    assert not [step for step in result.steps if step.round == 2 and step.accepted]
    same_but_for_edits(result, trojan.model)
    at = [fraction for fraction, text in reported if text.startswith("refining")]
    assert len(set(at)) == len(at)
    assert [fraction for fraction, _ in reported] == sorted(fraction for fraction, _ in reported)


# --- what edits tell of it -----------------------------------------------------------------------


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
    for step in result.steps:
        assert step.settings == f"{step.direction} {step.ridge:g}" + ", refined" * step.refined
        assert step.settings in str(result)
        assert step.settings in result._repr_html_()
    kept = [step for step in result.steps if step.accepted]
    for edit, step in zip(result.edits, kept, strict=True):
        assert edit.settings == step.settings
        assert repr(edit).endswith(", refined)") == edit.refined
    assert list(result.to_frame()["refined"]) == [step.refined for step in result.steps]
    assert replace(kept[0], direction="contrast", ridge=0.01, refined=True).settings == (
        "contrast 0.01, refined"
    )
