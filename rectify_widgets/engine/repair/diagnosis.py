"""Why a behaviour is still there after `rectify`, in sentences with figures.  Imports torch only.

`gather_evidence` counts on pairs and references; `diagnose` reads the `Evidence` together with the
trials.  A sentence says what was measured and, where there is a remedy, what to try.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.find.adversarial import AdversarialPerturbation
from rectify_widgets.engine.find.problem import SPLIT, Problem
from rectify_widgets.engine.measure.judge import CLASS_FACTOR, CLASS_SIZE, WEIGHT
from rectify_widgets.engine.model.heads import answers as answers_of
from rectify_widgets.engine.model.heads import any_label, changed, groups, seen
from rectify_widgets.engine.model.running import predict_all
from rectify_widgets.engine.repair.refining import REFINE_STEPS
from rectify_widgets.engine.repair.result import Evidence, Rectification, Step

LITTLE = 0.5
"""The corruption transfers badly where it shows on less than this share of what it does on the
pairs."""
HALF = 0.5
"""Least share of the classes that should be among the references."""
STANDS_OUT = 2.0
"""A class is named where what is left in it is this many times the mean."""
FALLING = 0.9
"""Where the last round left no more than this share of the gap, further rounds are worthwhile."""
NOTABLE = 0.1
"""Shares under this are not worth a sentence."""
SPREAD = 0.5
"""Where no edit closes so much of the gap, the behaviour is spread over layers."""
OVER_BUDGET = "over the degradation budget"
"""Reason of a trial that the budget alone ruled out."""


def gather_evidence(
    problem: Problem,
    judged: Problem,
    suspected: float,
    *,
    shared: bool,
    edited: bool = True,
    monitor: Monitor = SILENT,
) -> Evidence:
    """The evidence when the loop has ended, from the classes that the model predicts now and before.

    Args:
        problem: as it was posed.
        judged: the part of it that edits are judged on, whose references are counted.
        suspected: share of the references that seem to carry the corruption.
        shared: whether edits were solved on the same references.
        edited: whether the model has an edit; otherwise it predicts what it did.
        monitor: checked between batches.
    """

    def now(inputs: Tensor, before: Tensor) -> Tensor:
        scores = predict_all(problem.model, inputs, monitor=monitor) if edited else before
        return answers_of(scores)

    corrupted, clean = (answers_of(scores) for scores in problem.before.pairs)
    before, wanted = judged.before, judged.answers if problem.coupled else problem.labels
    led = answers_of(before.carriers) != wanted
    wrong = now(judged.carriers, before.carriers) != wanted
    other = now(judged.references, before.references) != judged.answers
    return Evidence(
        pairs=len(problem.pairs),
        references=len(problem.references) if problem.given else 0,
        shared=shared,
        shown=_share(any_label(led)),
        shown_pairs=_share(changed(corrupted, clean)),
        unlike=int(changed(clean, problem.labels).sum()),
        classes=problem.before.references.shape[1],
        classes_seen=len(seen(problem.answers)),
        suspected=suspected,
        left=_share(any_label(wrong)),
        worst_left=_worst(wrong, wanted),
        changed=_share(any_label(other)),
        worst_changed=_worst(other, judged.answers),
        corruption=problem.transfer.name,
        transferred=problem.coupled,
        adversarial=isinstance(problem.corruption, AdversarialPerturbation)
        and problem.pairs.corrupt is None,
        transfer=problem.transfer.shown,
    )


def _worst(hits: Tensor, wanted: Tensor) -> tuple[int, float] | None:
    """The class or label with the greatest share of hits, and that share, among those large enough."""
    shares = [
        (number, _share(hits[group] if hits.ndim == 1 else hits[group, number]))
        for number, group in groups(wanted)
        if int(group.sum()) >= CLASS_SIZE
    ]
    return max(shares, key=lambda item: item[1], default=None)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean()) if hits.numel() else 0.0


def diagnose(result: Rectification) -> tuple[str, ...]:
    """Short sentences on why the behaviour is still there; none where it is not, or after a cancel.

    Without references a met target proves little, and a sentence says so.
    """
    evidence = result.evidence
    if evidence is None:
        return ()
    if result.stopped == "target":
        if result.edits and evidence.references and evidence.transferred:
            return ()
        return (*_about_the_pairs(evidence), *_about_the_references(result, evidence))
    return (
        *_what_is_left(evidence),
        *(() if _one_sided(evidence) else _why_it_ended(evidence, result)),
        *_who_pays(evidence),
        *_about_the_pairs(evidence),
        *_about_the_references(result, evidence),
    )


def _what_is_left(evidence: Evidence) -> Iterator[str]:
    inputs = "references" if evidence.references and evidence.transferred else "pairs"
    if not evidence.left:
        yield (
            f"The corruption changes the class of none of the {inputs} any more (before the edits, "
            f"of {_percent(evidence.shown)}): the gap that is left is one of probabilities."
        )
        return
    where = ""
    if worst := _outstanding(evidence.worst_left, evidence.left):
        where = f", most of all in class {worst[0]} ({_percent(worst[1])})"
    yield (
        f"The corruption still changes the class of {_percent(evidence.left)} of the {inputs}{where}; "
        f"before the edits, of {_percent(evidence.shown)}."
    )


def _why_it_ended(evidence: Evidence, result: Rectification) -> Iterator[str]:
    rounds = max((step.round for step in result.steps), default=0)
    last = [step for step in result.steps if step.round == rounds]
    blocked = {
        step.gap_after: step
        for step in last
        if step.reason == OVER_BUDGET
        and step.gap_after is not None
        and step.gap_after < result.gap_after
    }
    if blocked and result.max_degradation is not None:
        yield _over_budget(blocked[min(blocked)], result)
    if result.stopped == "round limit" and result.strategy == "dynamic":
        kept = next((step for step in last if step.accepted), None)
        if kept is not None and (kept.gap_after or 0.0) < FALLING * kept.gap_before:
            yield (
                f"The last round of max_rounds={rounds} still lowered the gap from "
                f"{_percent(kept.gap_before)} to {_percent(kept.gap_after)}: allow more rounds."
            )
    yield from _about_refining(evidence, result)
    if result.strategy == "static" and result.edits:
        yield "One layer was edited once: strategy='dynamic' continues with others."
    if not last:
        yield "The corruption reaches no layer that can be edited."
    elif not any(step.accepted for step in last) and not blocked:
        yield (
            f"Of {len(last)} edits tried in the last round, none lowers the gap by more than "
            f"{WEIGHT:g} times the disturbance on clean inputs."
        )
    gaps = [step.gap_after for step in result.steps if step.round == 1]
    least = min((gap for gap in gaps if gap is not None), default=result.gap_before)
    closed = 1 - least / max(result.gap_before, 1e-9)
    if result.strategy == "dynamic" and NOTABLE < closed < SPREAD:
        yield (
            "The behaviour is spread over layers: of the edits tried first, the best one closes "
            f"{_percent(closed)} of the gap."
        )


def _about_refining(evidence: Evidence, result: Rectification) -> Iterator[str]:
    """That edits of all layers were not refined together, where this could have been asked for."""
    if result.strategy != "dynamic" or not result.steps or result.options is None:
        return
    off = not result.options.refine_steps
    wanted = [f"{SPLIT} references or more"] * evidence.shared + [
        f"refine_steps={REFINE_STEPS}"
    ] * off
    if wanted:
        yield (
            f"Refining was off{' (refine_steps=0)' * off}, so that every edit was made in closed "
            f"form: with {' and '.join(wanted)}, edits of all layers are refined together where no "
            "single one is enough."
        )


def _who_pays(evidence: Evidence) -> Iterator[str]:
    if worst := _outstanding(evidence.worst_changed, evidence.changed):
        yield (
            f"The edits change the class of {_percent(worst[1])} of the clean references of class "
            f"{worst[0]} ({_percent(evidence.changed)} of all)."
        )


def _one_sided(evidence: Evidence) -> bool:
    """Whether most classes are missing among the references, so that no figure is reliable."""
    return bool(evidence.references) and evidence.classes_seen < HALF * evidence.classes


def _outstanding(worst: tuple[int, float] | None, mean: float) -> tuple[int, float] | None:
    """The class and its share where that is notable, otherwise None."""
    return worst if worst and worst[1] > max(STANDS_OUT * mean, NOTABLE) else None


def _over_budget(step: Step, result: Rectification) -> str:
    """What the most effective trial that the budget ruled out would have done."""
    loss, worst = step.degradation_after or 0.0, step.worst_class or 0.0
    budget = result.max_degradation or 0.0
    needed = math.ceil(1000 * max(loss, worst / CLASS_FACTOR)) / 1000
    price = f"a degradation of {_percent(loss, 2)}"
    if worst > CLASS_FACTOR * budget:
        price += (
            f", and of {_percent(worst, 2)} in class {step.sufferer}, the one that suffers most"
        )
    return (
        f"The budget ruled out an edit of {step.layer} that brings the gap from "
        f"{_percent(step.gap_before)} to {_percent(step.gap_after)} for {price} (budget "
        f"{_percent(budget)}, {_percent(CLASS_FACTOR * budget)} in one class): "
        f"max_degradation={needed:g} allows it."
    )


def _about_the_pairs(evidence: Evidence) -> Iterator[str]:
    if evidence.unlike:
        yield (
            f"The model gives the clean input of {evidence.unlike} of {evidence.pairs} pairs another "
            "class than its label: the label is wrong, the input is not as clean as it should be, "
            "or the model does not know the class without the corruption."
        )
    if evidence.shown_pairs == 0:
        yield (
            "The corruption changes the class of none of the pairs: check whether the difference "
            "between corrupted and clean is what the model responds to."
        )
    elif not evidence.transferred:
        yield (
            "No form of corruption carries over what the pairs show: put onto references, "
            f"{evidence.corruption} changes the predictions by {_percent(evidence.transfer)} of what "
            "it changes them by on the pairs, so that edits were made and judged on the pairs "
            "alone.  Give the corruption as a function, SamplePairs(..., corrupt=...), or more pairs."
        )
    elif evidence.adversarial:
        yield (
            "No form of corruption carries over what the pairs show, so that each reference was "
            f"given a change of its own that leads to the same class, {evidence.corruption}: the "
            "figures are of these changes.  Give the corruption as a function, "
            "SamplePairs(..., corrupt=...), where you know it."
        )
    elif evidence.references and evidence.shown < LITTLE * evidence.shown_pairs:
        yield (
            f"The corruption changes the class of {_percent(evidence.shown_pairs)} of the pairs but, "
            f"put onto the references, of {_percent(evidence.shown)} of them: either it affects few "
            "inputs, or it does not transfer from the pairs to other inputs (give it as corrupt)."
        )


def _about_the_references(result: Rectification, evidence: Evidence) -> Iterator[str]:
    if evidence.suspected:
        yield (
            f"{_percent(evidence.suspected)} of the references seem to carry the corruption, too "
            "many to leave them out: if they do, give references that are mostly clean."
        )
    if not evidence.references:
        yield "No references were given: a few dozen unlabelled inputs make edits more precise."
    elif _one_sided(evidence):
        yield (
            f"The model gives the references {evidence.classes_seen} of its {evidence.classes} classes: "
            "what an edit costs the others is not measured; give references like the training "
            "inputs."
        )
    if evidence.references and evidence.shared and result.steps:
        yield (
            f"With {evidence.references} references, edits were solved and judged on the same ones; "
            f"{SPLIT} or more are divided."
        )


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100.0 * share:.{digits}f} %"
