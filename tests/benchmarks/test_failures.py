"""The tables of two behaviours and of failures: what is called, counted and written down."""

from __future__ import annotations

import functools
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rectify_widgets import cases
from rectify_widgets.cases.figures import classes
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.corrupted import find_corrupted
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from tests.benchmarks import failures, fakes, several, trojan
from tests.benchmarks.tables import spread

Calls = list[tuple[nn.Module, SamplePairs, dict[str, Any]]]


class Fake:
    """A rectification that changes nothing and has a given diagnosis."""

    def __init__(self, model: nn.Module, said: tuple[str, ...]) -> None:
        self.model, self.diagnosis, self.edits, self.stopped = model, said, [1, 2], "target"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Every call of `rectify`, none of which does anything; test sets of fifty images."""
    made: Calls = []

    def rectify(model: nn.Module, pairs: SamplePairs, **options: Any) -> Fake:
        made.append((model, pairs, options))
        blind = options.get("max_degradation") == 0.0
        said = ("max_degradation=0.02 allows it.",) if blind else ()
        return Fake(nn.Sequential(model), said)

    monkeypatch.setattr(cases, "load", functools.cache(cases.load))  # unpacking takes longest
    for module in (failures, several):
        monkeypatch.setattr(module, "rectify", rectify)
        monkeypatch.setattr(module, "TEST", 50)
    return made


def test_the_second_repair_starts_from_the_first(calls: Calls) -> None:
    table = several.measure_several(Namespace(seeds=1), Monitor())
    assert len(calls) == 2 * 5
    first, then, other, last, both = calls[:5]
    given = first[0]
    assert isinstance(given, type(other[0]))
    assert then[0][0] is given  # type: ignore[index]
    assert last[0][0] is other[0]  # type: ignore[index]
    assert both[0] is other[0]
    assert [len(call[1]) for call in calls[:5]] == [1, 1, 1, 1, 2]
    assert torch.equal(first[1].corrupted, last[1].corrupted)
    assert torch.equal(then[1].corrupted, other[1].corrupted)
    assert torch.equal(both[1].corrupted, torch.cat([first[1].corrupted, other[1].corrupted]))
    assert [row["when"] for row in table.rows[:6]] == [
        "before",
        "after the first (patch)",
        "after the second (cross)",
        "after the first (cross)",
        "after the second (patch)",
        "after both",
    ]
    assert [row["edits"] for row in table.rows[1:6]] == [
        f"{edits}.0 ± 0.0" for edits in (2, 4, 2, 4, 2)
    ]
    before, after = table.rows[0], table.rows[2]
    assert before["tag: bias"] == "–"
    assert after["patch: ASR"] == f"{before['patch: ASR']:.2f} ± 0.00"


def test_situations_are_measured_and_what_is_advised_is_done(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [one for one in failures.SITUATIONS if one.case in {"trojan-blend", "spurious-mild"}]
    monkeypatch.setattr(failures, "SITUATIONS", few)
    table = failures.measure_failures(Namespace(seeds=1), Monitor())
    rows = {str(row["situation"]): row for row in table.rows}
    assert list(rows) == [one.what for one in failures.SITUATIONS]
    strict = rows["a blend, max_degradation=0"]
    assert strict["it_says"] == "max_degradation=0.02 allows it."
    assert [call[2]["max_degradation"] for call in calls if "max_degradation" in call[2]] == [
        0.0,
        0.02,
    ]
    assert strict["after"] == strict["before"] == strict["after_that"]
    assert rows["a blend"]["it_says"] == "(nothing; stopped: target)"
    assert rows["a blend"]["after_that"] == "–"
    assert [len(call[1]) for call in calls] == [1, 2, 1, 1, 1]


def test_figures_are_means_by_name() -> None:
    found = failures._figures(
        [
            {"overall_accuracy": 0.9, "attack_success_rate": 0.5, "attack_success_rate (b)": 0.1},
            {"overall_accuracy": 0.8, "attack_success_rate": 0.3, "attack_success_rate (b)": 0.3},
        ]
    )
    assert found == "ASR 40.0<br>ASR (b) 20.0<br>OA 85.0"
    assert failures._figures([]) == "–"


@pytest.mark.slow
def test_the_situations_are_what_they_are_called() -> None:
    case = cases.load("trojan")
    spoilt = failures.half_cleansed(case, 0)["pairs"]
    answers = classes(case.model, torch.cat([spoilt.corrupted, spoilt.clean]))
    assert answers.tolist() == [case.target, case.target]
    wrong = failures.wrong_labels(case, 0)["pairs"]
    assert wrong.labels is not None
    assert int(wrong.labels[0]) == case.target != int(classes(case.model, wrong.clean)[0])
    mixed = failures.mostly_corrupted(case)
    changed = (mixed != case.reference).flatten(1).any(dim=1)
    assert float(changed.float().mean()) == pytest.approx(failures.MOST, abs=0.01)
    assert set(classes(case.model, failures.footwear(case)).tolist()) == {5, 7, 9}
    places = cases.load("trojan-position")
    joint = failures.every_place(places, 1)["pairs"]
    assert classes(places.model, joint.corrupted).eq(places.target or 0).float().mean() > 0.5
    spots = {tuple(one.nonzero()[0].tolist()) for one in joint.corrupted != joint.clean}
    assert len(spots) == len(joint) > 4
    severe = cases.load("spurious-severe")
    assert severe.pairs.labels is not None
    both = failures.own_as_well(severe, 0)["pairs"]
    assert torch.equal(both.clean[1:], severe.pairs.clean[failures.OWN :][:1])
    assert int(severe.pairs.labels[failures.OWN]) == severe.target
    assert int(severe.pairs.labels[0]) != severe.target


def test_a_budget_is_only_taken_where_one_is_named() -> None:
    case = cases.load("trojan")
    call = failures.plain(case, 0, model=nn.Identity(), max_rounds=2)

    def after(*said: str) -> failures.Call | None:
        result: Any = Fake(call["model"], said)
        assert not isinstance(result, Rectification)
        return failures.advised(case, 0, result, call)

    assert after("nothing of the kind") is None
    heeded = after("the budget: max_degradation=0.015 allows it.")
    assert heeded is not None
    assert heeded == call | {"max_degradation": 0.015}


def test_tables_of_a_trojan_on_a_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is what `rectify` gives, called by hand; one round each, since there are many."""
    toy = fakes.tiny_case()
    quick = functools.partial(rectify, max_rounds=1, refine_steps=0)
    options = Namespace(
        pairs=2, only=["mlp", "corner"], data=Path(), network_seed=3, cache=None, budget=0.02
    )
    made: list[tuple[str, str, int]] = []

    def train(network: str, trigger: str, data: Path, seed: int, cache: None) -> Any:
        made.append((network, trigger, seed))
        return toy

    monkeypatch.setattr(trojan, "train_trojan", train)
    monkeypatch.setattr(trojan, "rectify", quick)
    monkeypatch.setattr(cases, "load", lambda _: toy)
    monkeypatch.setattr(trojan, "CHOICES", [(("key",), (0.1,))])
    mixed, marked = trojan.contaminated(toy, 0.1, 3)
    assert int(marked.sum()) == round(0.1 * len(toy.reference)) > 0
    assert torch.equal(mixed[~marked], toy.reference[~marked])
    assert torch.equal(mixed[marked], toy.trigger(toy.reference[marked]))

    def row(**options: Any) -> tuple[list[float], list[float]]:
        results = [quick(toy.model, toy.pairs[pair], seed=pair, **options) for pair in range(2)]
        figures = [toy.figures(result.model) for result in results]
        lost = [toy.figures()["overall_accuracy"] - one["overall_accuracy"] for one in figures]
        return [one["attack_success_rate"] for one in figures], lost

    clean, dirty = trojan.measure_networks(options, Monitor()).rows
    assert made == [("mlp", "corner", 3)]
    for one, references in ((clean, toy.reference), (dirty, mixed)):
        attacks, lost = row(reference=references, max_degradation=0.02)
        assert one["ASR"] == f"{spread(attacks, 100.0)} ({100 * max(attacks):.2f})"
        assert str(one["OA_lost"]).startswith(spread(lost, 100.0))
    dynamic, *_, static = trojan.measure_ablation(options, Monitor()).rows
    attacks, _ = row(reference=toy.reference, strategy="static", directions=("key",), ridges=(0.1,))
    assert (static["ASR"], static["ridge"]) == (spread(attacks, 100.0), "0.1")
    assert (dynamic["strategy"], static["method"]) == ("dynamic", "last convolution")
    none, *_, tenth = trojan.measure_detection(options, Monitor()).rows
    assert (none["recall"], tenth["corrupted"]) == ("100.00 ± 0.00", "10%")
    flagged = [
        find_corrupted(
            toy.model, toy.pairs[seed], trojan.contaminated(toy, 0.1, seed)[0], seed=seed
        ).flagged[trojan.contaminated(toy, 0.1, seed)[1]]
        for seed in range(2)
    ]
    assert tenth["recall"] == spread((float(one.float().mean()) for one in flagged), 100.0)
    with pytest.raises(SystemExit, match="want one of 'plain-cnn"):
        trojan.measure_networks(Namespace(**vars(options) | {"only": ["mlp"]}), Monitor())
