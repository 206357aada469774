"""What is said of a rectification that fell short: every sentence from a real run, and followed."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.data.corruption import Transplant
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.problem import pose_problem
from rectify_widgets.engine.repair.diagnosis import diagnose, gather_evidence
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Evidence, Rectification
from tests.engine.toy import CLASSES, TARGET, Toy, samples, stamped


def run(toy: Toy, pairs: SamplePairs | None = None, **options: Any) -> Rectification:
    given: dict[str, Any] = {
        "reference": toy.reference, "max_rounds": 3, "target_gap": 0.01,
        "refine_steps": None if "strategy" in options else 20, **options,
    }  # fmt: skip
    return rectify(toy.model, toy.pairs[0] if pairs is None else pairs, **given)


def evidence(result: Rectification) -> Evidence:
    assert result.evidence is not None
    return result.evidence


def said(result: Rectification, part: str) -> str:
    """The one sentence that contains ``part``."""
    found = [sentence for sentence in diagnose(result) if part in sentence]
    assert len(found) == 1, diagnose(result)
    return found[0]


def silent(result: Rectification, part: str) -> bool:
    return not any(part in sentence for sentence in diagnose(result))


def answers(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = model(x)
    return scores.argmax(dim=1)


@pytest.fixture(scope="module")
def short(trojan: Toy) -> Rectification:
    """One round: the behaviour is half gone."""
    return run(trojan, max_rounds=1)


@pytest.fixture(scope="module")
def long(trojan: Toy) -> Rectification:
    """All rounds there are, in closed form."""
    return run(trojan, max_rounds=8, refine_steps=0)


def test_refining_is_named_where_it_was_off(trojan: Toy, short: Rectification) -> None:
    off = run(trojan, max_rounds=1, refine_steps=0)
    assert "refine_steps=300" in said(off, "Refining was off (refine_steps=0)")
    assert silent(short, "Refining was off")


# --- nothing to say ------------------------------------------------------------------------------


def test_nothing_is_said_of_a_target_that_was_met(trojan: Toy) -> None:
    result = run(trojan, target_gap=0.5, reference=trojan.reference[:40])
    assert result.stopped == "target"
    assert result.edits
    assert evidence(result).shared
    assert result.diagnosis == ()
    assert str(result).splitlines()[-1].startswith("stopped: target")
    assert "<ul>" not in result._repr_html_()


def test_nothing_is_said_of_what_was_cancelled(trojan: Toy) -> None:
    texts: list[str] = []
    result = run(
        trojan, max_rounds=8, progress=lambda _, text: texts.append(text),
        cancel=lambda: any(text.startswith("round 2: trying") for text in texts),
    )  # fmt: skip
    assert result.stopped == "cancelled"
    assert result.diagnosis == ()


# --- what is left, and why it ended --------------------------------------------------------------


def judged(toy: Toy, result: Rectification, reference: Tensor) -> Tensor:
    """Mask of the references that the edits were judged on, which they were not solved for."""
    numbers = torch.arange(len(reference))
    with torch.no_grad():
        problem = pose_problem(toy.model, toy.pairs[0], reference)
    problem = replace(problem, answers=numbers)
    rows = numbers[~torch.isin(numbers, result.flagged)]
    mask = torch.zeros(len(reference), dtype=torch.bool)
    mask[problem.halves(rows, 0)[1].answers] = True
    assert int(mask.sum()) == len(rows) - len(rows) // 2
    return mask


def test_what_is_left_is_counted_on_the_references(trojan: Toy, short: Rectification) -> None:
    carriers = Transplant(trojan.pairs[0])(trojan.reference)
    clean = answers(trojan.model, trojan.reference)
    before = answers(trojan.model, carriers) != clean
    after = answers(short.model, carriers) != clean
    kept = judged(trojan, short, trojan.reference)
    assert evidence(short).shown == pytest.approx(float(before[kept].float().mean()))
    assert evidence(short).left == pytest.approx(float(after[kept].float().mean()))
    shares = {c: float(after[kept & (clean == c)].float().mean()) for c in range(CLASSES)}
    worst = max(shares, key=lambda c: shares[c])
    assert tuple(evidence(short).worst_left or ()) == pytest.approx((worst, shares[worst]))
    assert said(short, "still changes the class") == (
        f"The corruption still changes the class of {100 * evidence(short).left:.1f} % of the "
        f"references, most of all in class {worst} ({100 * shares[worst]:.1f} %); before the edits, "
        f"of {100 * evidence(short).shown:.1f} %."
    )


def test_where_only_probabilities_are_left_it_says_so(long: Rectification) -> None:
    assert long.stopped != "target"
    assert evidence(long).left < 0.1 * evidence(long).shown
    none = replace(long, evidence=replace(evidence(long), left=0.0))
    assert said(none, "none of the references any more").endswith("one of probabilities.")
    some = replace(long, evidence=replace(evidence(long), left=0.01))
    assert silent(some, "none of the references any more")


def test_more_rounds_are_advised_and_help(trojan: Toy, short: Rectification) -> None:
    assert short.stopped == "round limit"
    assert said(short, "The last round of max_rounds=1").endswith(
        f"{100 * short.gap_before:.1f} % to {100 * short.gap_after:.1f} %: allow more rounds."
    )
    assert run(trojan, max_rounds=2).gap_after < 0.9 * short.gap_after


@pytest.mark.parametrize(("left", "advised"), [(0.85, True), (0.95, False)])
def test_more_rounds_are_advised_only_where_much_comes_of_them(
    short: Rectification, left: float, advised: bool
) -> None:
    (kept,) = [step for step in short.steps if step.accepted]
    steps = [
        replace(step, gap_after=left * step.gap_before) if step is kept else step
        for step in short.steps
    ]
    assert silent(replace(short, steps=steps), "allow more") != advised


@pytest.mark.parametrize("budget", [0.0, 0.001])
def test_the_budget_that_is_advised_is_the_one_that_helps(trojan: Toy, budget: float) -> None:
    """A layer whose only good edits cost something."""
    options: dict[str, Any] = {"strategy": "static", "layer": "head", "directions": "key"}
    strict = run(trojan, max_degradation=budget, **options)
    sentence = said(strict, "The budget ruled out an edit of head")
    advised = float(re.findall(r"max_degradation=([\d.]+) allows it", sentence)[0])
    assert advised > budget
    looser = run(trojan, max_degradation=advised, **options)
    assert looser.gap_after < strict.gap_after
    meant = [
        step
        for step in strict.steps
        if step.reason == "over the degradation budget"
        and step.gap_after is not None
        and f"to {100 * step.gap_after:.1f} % for" in sentence
    ]
    assert meant
    assert (
        "the one that suffers most" not in sentence
    )  # no class of these references does by itself
    dear = [replace(meant[0], worst_class=0.2, sufferer=3)]
    sentence = said(replace(strict, steps=dear), "The budget ruled out")
    assert ", and of 20.00 % in class 3, the one that suffers most" in sentence
    assert "max_degradation=0.04 allows it" in sentence  # a class may lose five times as much


def test_an_edit_that_the_budget_ruled_out_would_have_been_kept(trojan: Toy) -> None:
    """Ruled out by the budget alone: the objective falls."""
    strict = run(trojan, max_degradation=0.0, strategy="static", layer="head")
    refused = [s for s in strict.steps if s.reason == "over the degradation budget"]
    free = run(trojan, max_degradation=1.0, strategy="static", layer="head")
    assert refused
    assert not [s for s in free.steps if s.reason == "over the degradation budget"]
    for step in refused:
        other = next(
            s for s in free.steps if (s.direction, s.ridge) == (step.direction, step.ridge)
        )
        assert "do not fall" not in other.reason


def test_a_layer_that_cannot_help(trojan: Toy) -> None:
    result = run(trojan, strategy="static")
    assert not result.edits
    tried = len(result.steps)
    assert said(result, f"Of {tried} edits tried in the last round, none lowers the gap")
    assert silent(result, "budget")
    assert silent(result, "spread over layers")


# --- pairs ---------------------------------------------------------------------------------------


def mistaken(toy: Toy) -> Tensor:
    """A corrupted input with one more pixel changed, far from the trigger."""
    x = toy.pairs[0].corrupted.clone()
    x[..., 0, 0] = 1 - x[..., 0, 0]
    return x


def test_a_pair_with_the_corruption_in_both_images(trojan: Toy) -> None:
    pair = trojan.pairs[0]
    both = SamplePairs(mistaken(trojan), pair.corrupted)
    result = run(trojan, both, target_gap=0.02)
    assert not result.edits
    assert trojan.rates(result.model)[1] > 0.95
    assert said(result, "none of the pairs")
    assert silent(result, "another class than its label")
    labelled = SamplePairs(both.corrupted, both.clean, answers(trojan.model, pair.clean))
    assert said(run(trojan, labelled, target_gap=0.02), "1 of 1 pairs another class than its label")
    # What it suggests: a pair that differs in what leads the model astray.
    assert run(trojan, target_gap=0.4).stopped == "target"


def test_a_corruption_that_does_not_carry_over(trojan: Toy) -> None:
    """A change that suits one input alone: half way to an image of another class."""
    x, y = samples(40, seed=9)
    one, other = x[y == 1][:1], x[y == 2][:1]
    rows = [
        k for k in range(2, 9)
        if answers(trojan.model, _left(one, other, k)) != answers(trojan.model, one)
    ]  # fmt: skip
    alone = SamplePairs(_left(one, other, rows[0]), one)
    residual = Transplant(alone, opacity=0.0)
    pair = SamplePairs(alone.corrupted, alone.clean, corrupt=residual)
    result = run(trojan, pair, max_rounds=1, target_gap=0.001)
    carriers = residual(trojan.reference)
    clean = answers(trojan.model, trojan.reference)
    share = float((answers(trojan.model, carriers) != clean).float().mean())
    assert share < 0.5
    assert evidence(result).shown == pytest.approx(share, abs=0.02)
    assert f"of {100 * evidence(result).shown:.1f} % of them" in said(
        result, "put onto the references"
    )


def _left(one: Tensor, other: Tensor, columns: int) -> Tensor:
    mixed = one.clone()
    mixed[..., :columns] = other[..., :columns]
    return mixed


@pytest.mark.parametrize("label", [TARGET, 3])
def test_a_class_that_pays_is_named(trojan: Toy, short: Rectification, label: int) -> None:
    """An edit that takes a class away costs its clean references their class."""
    model = copy.deepcopy(trojan.model)
    with torch.no_grad():
        problem = pose_problem(model, trojan.pairs[0], trojan.reference)
        model.get_submodule("head").bias[label] -= 1e3  # type: ignore[index,operator]
        found = gather_evidence(problem, problem, 0.0, shared=False)
    of_class = float((answers(trojan.model, trojan.reference) == label).float().mean())
    assert found.changed == pytest.approx(of_class)
    assert found.worst_changed == (label, 1.0)
    sentence = said(replace(short, evidence=found), f"of the clean references of class {label}")
    assert sentence.startswith("The edits change the class of 100.0 %")
    assert f"({100 * of_class:.1f} % of all)" in sentence
    assert silent(short, "clean references of class")


# --- references ----------------------------------------------------------------------------------


def test_references_that_are_corrupted_for_the_most_part(trojan: Toy) -> None:
    reference = trojan.reference.clone()
    rows = torch.arange(len(reference)) % 4 != 0
    reference[rows] = stamped(reference[rows])
    result = run(trojan, reference=reference)
    assert evidence(result).suspected > 0.5
    assert f"{100 * evidence(result).suspected:.1f} % of the references seem to" in said(
        result, "give references that are mostly clean"
    )
    clean = run(trojan, reference=trojan.reference)
    assert evidence(clean).suspected == 0
    assert trojan.rates(clean.model)[1] < trojan.rates(result.model)[1]


def test_references_that_were_left_out_are_not_counted(trojan: Toy) -> None:
    reference = trojan.reference.clone()
    reference[5::10] = stamped(reference[5::10])
    result = run(trojan, reference=reference, max_rounds=1)
    assert len(result.flagged) >= 10
    kept = judged(trojan, result, reference)
    carriers = Transplant(trojan.pairs[0])(reference)
    moved = answers(trojan.model, carriers) != answers(trojan.model, reference)
    assert evidence(result).shown == pytest.approx(float(moved[kept].float().mean()))
    assert evidence(result).shown > float(moved.float().mean()) + 0.02
    assert evidence(result).suspected == 0


def test_few_references_are_shared(trojan: Toy, short: Rectification) -> None:
    few = run(trojan, reference=trojan.reference[:20], max_rounds=1)
    assert said(few, "With 20 references, edits were solved and judged on the same ones")
    assert silent(short, "the same ones")


def test_no_references(trojan: Toy) -> None:
    with pytest.warns(UserWarning, match="none given"):
        result = run(trojan, reference=None, target_gap=0.0)
    assert said(result, "No references were given")
    assert said(result, "none of the pairs any more")
    with pytest.warns(UserWarning, match="none given"):
        met = run(trojan, reference=None, target_gap=0.5)
    assert (met.stopped, len(met.diagnosis)) == ("target", 1)  # nothing but that
    assert said(met, "No references were given")
    assert trojan.rates(result.model)[0] < trojan.rates(run(trojan).model)[0] - 0.05


def test_references_of_one_class_alone(trojan: Toy, short: Rectification) -> None:
    alone = trojan.reference[answers(trojan.model, trojan.reference) == 2]
    result = run(trojan, reference=alone, target_gap=0.0)
    assert said(result, f"the references 1 of its {CLASSES} classes")
    assert silent(result, "allow more")  # more of the same would cost the others more
    assert trojan.rates(result.model)[0] < trojan.rates(short.model)[0] - 0.1
    assert silent(short, "of its")


# --- where it is shown ---------------------------------------------------------------------------


def test_text_and_html_end_with_the_diagnosis(short: Rectification) -> None:
    assert len(short.diagnosis) >= 2
    assert str(short).splitlines()[-len(short.diagnosis) :] == [f"- {s}" for s in short.diagnosis]
    html = short._repr_html_()
    assert html.count("<li>") == len(short.diagnosis)
    assert html.endswith("</ul>")
