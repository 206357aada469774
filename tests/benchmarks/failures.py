"""Where rectification fails, what it says then, and what comes of doing what it says.

Imports the cases, the engine, `measure` and `tables`.
"""

from __future__ import annotations

import re
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rectify_widgets import cases
from rectify_widgets.cases import Case
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.places import find_places
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from tests.benchmarks.measure import PER_CENT
from tests.benchmarks.tables import Table

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


@dataclass(frozen=True, eq=False)
class Call:
    """What `rectify` is called with."""

    model: nn.Module
    pairs: SamplePairs
    reference: Tensor | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, seed: int) -> Rectification:
        """Rectify."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="reference: none given")
            return rectify(
                self.model, self.pairs, reference=self.reference, seed=seed, **self.options
            )


Plan = Callable[[Case, int], Call]
Answer = Callable[[Case, int, Rectification, Call], Call | None]


@dataclass(frozen=True)
class Situation:
    """One way in which it may fail.

    Args:
        what: the situation, for people.
        case: name of the case.
        plan: the call, for one pair.
        done: what is done about it, for people.
        answer: the call that does so; None where there was nothing to be done.
    """

    what: str
    case: str
    plan: Plan
    done: str = "–"
    answer: Answer | None = None


def plain(case: Case, pair: int) -> Call:
    """One pair and everything as it is by default."""
    return Call(case.model, case.pairs[pair], case.reference)


def having(**options: Any) -> Plan:
    """`plain` with options."""
    return lambda case, pair: replace(plain(case, pair), options=options)


def advised(case: Case, pair: int, result: Rectification, call: Call) -> Call | None:
    """The same call with the budget that the diagnosis names."""
    del case, pair
    found = re.findall(r"max_degradation=([\d.]+) allows it", " ".join(result.diagnosis))
    if not found:
        return None
    return replace(call, options={**call.options, "max_degradation": float(found[0])})


def instead(plan: Plan) -> Answer:
    """Another call altogether."""
    return lambda case, pair, _result, _call: plan(case, pair)


AS_USUAL = instead(plain)
"""One pair and everything as it is by default: measured once for all situations of a case."""


def joint(*several: SamplePairs) -> SamplePairs:
    """All pairs together."""
    return SamplePairs(
        torch.cat([one.corrupted for one in several]), torch.cat([one.clean for one in several])
    )


def every_place(case: Case, pair: int) -> Call:
    """The pair, with its patch wherever it works."""
    call = plain(case, pair)
    places = find_places(call.model, call.pairs, reference=call.reference, seed=pair)
    return replace(call, pairs=places.pairs)


def own_as_well(case: Case, pair: int) -> Call:
    """A pair of another class, and one of the affected class."""
    pairs = joint(case.pairs[pair], case.pairs[OWN + pair])
    return replace(plain(case, pair), pairs=pairs)


def half_cleansed(case: Case, pair: int) -> Call:
    """A pair whose clean image still has the trigger, and whose corrupted one a speck more."""
    one = case.pairs[pair]
    speck = one.corrupted.clone()
    speck[..., :2, :2] = 1 - speck[..., :2, :2].round()
    return replace(plain(case, pair), pairs=SamplePairs(speck, one.corrupted, one.labels))


def wrong_labels(case: Case, pair: int) -> Call:
    """A pair whose label is the class that the trigger leads to."""
    one = case.pairs[pair]
    label = torch.full((1,), case.target or 0)
    return replace(plain(case, pair), pairs=SamplePairs(one.corrupted, one.clean, label))


def with_references(make: Callable[[Case], Tensor | None]) -> Plan:
    """`plain` with other references."""
    return lambda case, pair: replace(plain(case, pair), reference=make(case))


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
    Situation(
        "a trigger at four places, repaired from one of them",
        "trojan-position",
        plain,
        "find_places, and its pairs",
        instead(every_place),
    ),
    Situation(
        "mild artefact, a pair of another class",
        "spurious-mild",
        plain,
        "a pair of the affected class as well",
        instead(own_as_well),
    ),
    Situation(
        "severe artefact, a pair of another class",
        "spurious-severe",
        plain,
        "a pair of the affected class as well",
        instead(own_as_well),
    ),
    Situation("a blend", "trojan-blend", plain, "the budget that it names", advised),
    Situation(
        "a blend, max_degradation=0",
        "trojan-blend",
        having(max_degradation=0.0),
        "the budget that it names",
        advised,
    ),
    Situation(
        "one round", "trojan", having(max_rounds=1, target_gap=0.0), "more rounds",
        instead(having(target_gap=0.0)),
    ),
    Situation(
        "static, the last convolution", "trojan", having(strategy="static"), "dynamic",
        AS_USUAL,
    ),
    Situation(
        "the trigger is on both images of the pair",
        "trojan",
        half_cleansed,
        "a clean image that is clean",
        AS_USUAL,
    ),
    Situation(
        f"{PER_CENT * MOST:.0f} % of the references carry the trigger",
        "trojan",
        with_references(mostly_corrupted),
        "clean references",
        AS_USUAL,
    ),
    Situation(
        "references of noise", "trojan", with_references(noise), "references like the training's",
        AS_USUAL,
    ),
    Situation(
        "references of footwear alone", "trojan", with_references(footwear),
        "references like the training's", AS_USUAL,
    ),
    Situation(
        "no references", "trojan", with_references(lambda _: None), "48 references",
        instead(with_references(lambda case: case.reference[:48])),
    ),
    Situation(
        f"{FEW} references", "trojan", with_references(lambda case: case.reference[:FEW])
    ),
    Situation("a wrong label on the pair", "trojan", wrong_labels),
    Situation("no training label was changed", "trojan-clean-label", plain),
    Situation("each class is led to the next", "trojan-all-to-all", plain),
)  # fmt: skip


def measure_failures(seeds: int, progress: Monitor) -> Table:
    """Each situation: figures before and after, what is printed, and what comes of heeding it."""
    table = Table(
        "failures",
        f"Situations in which rectification can be expected to fail; means over {seeds} pairs on "
        f"{TEST} test images, per cent.  'it says' is `Rectification.diagnosis` for the first pair; "
        "nothing is said where the target was met.  The last two columns do something about it.",
    )
    usual: dict[tuple[str, int], Mapping[str, float]] = {}
    for number, situation in enumerate(SITUATIONS):
        case = cases.load(situation.case)
        before = case.figures(limit=TEST)
        after: list[Mapping[str, float]] = []
        heeded: list[Mapping[str, float]] = []
        said: tuple[str, ...] = ()
        for seed in range(seeds):
            progress.report((number + seed / seeds) / len(SITUATIONS), situation.what)
            call = situation.plan(case, seed)
            result = call.run(seed)
            after.append(case.figures(result.model, limit=TEST))
            if seed == 0:
                said = result.diagnosis or (f"(nothing; stopped: {result.stopped})",)
            answer = situation.answer and situation.answer(case, seed, result, call)
            if answer is None:
                continue
            key = (case.name, seed)
            if situation.answer is not AS_USUAL:
                heeded.append(case.figures(answer.run(seed).model, limit=TEST))
            elif key in usual:
                heeded.append(usual[key])
            else:
                usual[key] = case.figures(answer.run(seed).model, limit=TEST)
                heeded.append(usual[key])
        table.add(
            situation=situation.what,
            case=situation.case,
            before=_figures([before]),
            after=_figures(after),
            it_says="<br>".join(said),
            then=situation.done,
            after_that=_figures(heeded),
        )
    return table


def _figures(found: Sequence[Mapping[str, float]]) -> str:
    """Means of the figures that matter, in per cent, one a line."""
    if not found:
        return "–"
    means = {key: PER_CENT * statistics.mean(one[key] for one in found) for key in found[0]}
    lines = [
        f"{name}{key.removeprefix(figure)} {mean:.1f}"
        for name, figure in FIGURES.items()
        for key, mean in means.items()
        if key == figure or (key.startswith(f"{figure} (") and name == "ASR")
    ]
    return "<br>".join(lines)
