"""Where rectification fails, what it says then, and what comes of doing what it says.

Imports the cases, the engine, `trojan` and `tables`.
"""

from __future__ import annotations

import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pandas import DataFrame
from torch import Tensor

from rectify_widgets import cases
from rectify_widgets.cases import Case
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.places import find_places
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from tests.benchmarks.tables import Table
from tests.benchmarks.trojan import PER_CENT

TEST = 2000
"""Test images that are measured on."""
OWN = 20
"""Number of the first pair of the affected class, in the spurious cases."""
FEW = 16
MOST = 0.6
"""Share of the references that carry the corruption, where most of them do."""
FIGURES = {
    "ASR": "attack_success_rate",
    "corrupted accuracy": "corrupted_accuracy",
    "bias": "spurious_bias",
    "pulled in": "pulled_in",
    "recall without": "recall_without",
    "OA": "overall_accuracy",
}
"""How figures of a case are called in the table; those of other triggers follow in brackets."""

Call = dict[str, Any]
"""What `rectify` is called with, by argument."""
Plan = Callable[[Case, int], Call]
"""The call for one pair of a case."""
Answer = Callable[[Case, int, Rectification, Call], "Call | None"]
"""The call that does something about a result; None where there is nothing to be done."""


class Situation(NamedTuple):
    """One way in which it may fail.

    Attributes:
        what: the situation, for people.
        case: name of the case.
        plan: the call.
        done: what is done about it, for people.
        answer: the call that does so.
    """

    what: str
    case: str
    plan: Plan
    done: str = "–"
    answer: Answer | None = None


def plain(case: Case, pair: int, **changes: Any) -> Call:
    """One pair and everything as it is by default, but for some arguments."""
    return {"model": case.model, "pairs": case.pairs[pair], "reference": case.reference} | changes


def having(**options: Any) -> Plan:
    """`plain` with options."""
    return lambda case, pair: plain(case, pair, **options)


def with_references(make: Callable[[Case], Tensor | None]) -> Plan:
    """`plain` with other references."""
    return lambda case, pair: plain(case, pair, reference=make(case))


def advised(case: Case, pair: int, result: Rectification, call: Call) -> Call | None:
    """The same call with the budget that the diagnosis names."""
    del case, pair
    budgets = re.findall(r"max_degradation=([\d.]+) allows it", " ".join(result.diagnosis))
    return call | {"max_degradation": float(budgets[0])} if budgets else None


def instead(plan: Plan) -> Answer:
    """A different call."""
    return lambda case, pair, _result, _call: plan(case, pair)


AS_USUAL = instead(plain)
"""One pair and everything as it is by default: measured once for all situations of a case."""


def every_place(case: Case, pair: int) -> Call:
    """The pair, with its patch wherever it works."""
    places = find_places(case.model, case.pairs[pair], reference=case.reference, seed=pair)
    return plain(case, pair, pairs=places.pairs)


def own_as_well(case: Case, pair: int) -> Call:
    """A pair of another class, and one of the affected class."""
    both = case.pairs[torch.tensor([pair, OWN + pair])]
    return plain(case, pair, pairs=SamplePairs(both.corrupted, both.clean))


def half_cleansed(case: Case, pair: int) -> Call:
    """A pair whose clean image still has the trigger, and whose corrupted one a speck more."""
    one = case.pairs[pair]
    speck = one.corrupted.clone()
    speck[..., :2, :2] = 1 - speck[..., :2, :2].round()
    return plain(case, pair, pairs=SamplePairs(speck, one.corrupted, one.labels))


def wrong_labels(case: Case, pair: int) -> Call:
    """A pair whose label is the class that the trigger leads to."""
    one = case.pairs[pair]
    label = torch.full((1,), case.target or 0)
    return plain(case, pair, pairs=SamplePairs(one.corrupted, one.clean, label))


def mostly_corrupted(case: Case) -> Tensor:
    """References of which the first part carries the trigger."""
    mixed = case.reference.clone()
    rows = slice(round(MOST * len(mixed)))
    mixed[rows] = case.trigger(mixed[rows])
    return mixed


def noise(case: Case) -> Tensor:
    """Uniform noise, as many as there are references."""
    return torch.rand(case.reference.shape, generator=torch.Generator().manual_seed(0))


def footwear(case: Case) -> Tensor:
    """References that the network takes for sandals, sneakers or ankle boots."""
    with torch.no_grad():
        answers = case.model(case.reference).argmax(dim=1)
    return case.reference[torch.isin(answers, torch.tensor([5, 7, 9]))]


SITUATIONS: Sequence[Situation] = (
    Situation("a trigger at four places, repaired from one of them", "trojan-position", plain,
              "find_places, and its pairs", instead(every_place)),
    Situation("mild artefact, a pair of another class", "spurious-mild", plain,
              "a pair of the affected class as well", instead(own_as_well)),
    Situation("severe artefact, a pair of another class", "spurious-severe", plain,
              "a pair of the affected class as well", instead(own_as_well)),
    Situation("a blend", "trojan-blend", plain, "the budget that it names", advised),
    Situation("a blend, max_degradation=0", "trojan-blend", having(max_degradation=0.0),
              "the budget that it names", advised),
    Situation("one round", "trojan", having(max_rounds=1, target_gap=0.0),
              "more rounds", instead(having(target_gap=0.0))),
    Situation("static, the last convolution", "trojan", having(strategy="static"),
              "dynamic", AS_USUAL),
    Situation("the trigger is on both images of the pair", "trojan", half_cleansed,
              "a clean image that is clean", AS_USUAL),
    Situation(f"{PER_CENT * MOST:.0f} % of the references carry the trigger", "trojan",
              with_references(mostly_corrupted), "clean references", AS_USUAL),
    Situation("references of noise", "trojan", with_references(noise),
              "references like the training's", AS_USUAL),
    Situation("references of footwear alone", "trojan", with_references(footwear),
              "references like the training's", AS_USUAL),
    Situation("no references", "trojan", with_references(lambda _: None),
              "48 references", instead(with_references(lambda case: case.reference[:48]))),
    Situation(f"{FEW} references", "trojan", with_references(lambda case: case.reference[:FEW])),
    Situation("a wrong label on the pair", "trojan", wrong_labels),
    Situation("no training label was changed", "trojan-clean-label", plain),
    Situation("each class is led to the next", "trojan-all-to-all", plain),
)  # fmt: skip


def measure_failures(options: Namespace, monitor: Monitor) -> Table:
    """Each situation: figures before and after, what is printed, and what comes of heeding it."""
    seeds = options.seeds
    table = Table(
        "failures",
        f"Situations in which rectification can be expected to fail; means over {seeds} pairs on "
        f"{TEST} test images, per cent.  'it says' is `Rectification.diagnosis` for the first pair; "
        "nothing is said where the target was met.  The last two columns do something about it.",
    )
    usual: dict[tuple[str, int], Mapping[str, float]] = {}
    for number, situation in enumerate(SITUATIONS):
        case = cases.load(situation.case)
        after: list[Mapping[str, float]] = []
        heeded: list[Mapping[str, float]] = []
        said: tuple[str, ...] = ()
        for seed in range(seeds):
            monitor.report((number + seed / seeds) / len(SITUATIONS), situation.what)
            call = situation.plan(case, seed)
            result = _rectify(call, seed)
            after.append(case.figures(result.model, limit=TEST))
            if seed == 0:
                said = result.diagnosis or (f"(nothing; stopped: {result.stopped})",)
            answer = situation.answer and situation.answer(case, seed, result, call)
            if answer is None:
                continue
            figures = usual.get((case.name, seed)) if situation.answer is AS_USUAL else None
            if figures is None:
                figures = case.figures(_rectify(answer, seed).model, limit=TEST)
            if situation.answer is AS_USUAL:
                usual[case.name, seed] = figures
            heeded.append(figures)
        table.add(
            situation=situation.what,
            case=situation.case,
            before=_figures([case.figures(limit=TEST)]),
            after=_figures(after),
            it_says="<br>".join(said),
            then=situation.done,
            after_that=_figures(heeded),
        )
    return table


def _rectify(call: Call, seed: int) -> Rectification:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="reference: none given")
        return rectify(**call, seed=seed)


def _figures(several: Sequence[Mapping[str, float]]) -> str:
    """Means of the figures that matter, in per cent, one a line."""
    means = PER_CENT * DataFrame(several).mean()
    lines = [
        f"{name}{key.removeprefix(figure)} {mean:.1f}"
        for name, figure in FIGURES.items()
        for key, mean in zip(map(str, means.index), means, strict=True)
        if key == figure or (key.startswith(f"{figure} (") and name == "ASR")
    ]
    return "<br>".join(lines) or "–"
