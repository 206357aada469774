"""One run of the comparison: what is planned, which pairs are drawn, what is measured.

On toy data; the oracle of a measurement is the engine or the peer called by hand.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rectify_widgets import baselines, cases
from rectify_widgets.cases.case import Case
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks import fakes, measure
from tests.benchmarks.layers import spearman
from tests.benchmarks.measure import CLOSELY, PASSES, STILL
from tests.benchmarks.plan import (
    AFFECTED,
    BEFORE,
    CLOSED_FORM,
    EVERY,
    EVERYWHERE,
    GROUPS,
    LAYER_CASES,
    LAYERS,
    OTHERS,
    OWN,
    PEERS,
    Run,
    draw_rows,
    plan,
    pools,
)
from tests.benchmarks.sources import fingerprint
from tests.engine.test_edit_keeping import bits, same
from tests.test_baselines import QUICK

pytestmark = pytest.mark.usefixtures("one_thread")

MORE: dict[str, dict[str, Any]] = {"last_layer": {"strength": None}}
"""What `QUICK` leaves nothing to choose of."""


quick = partial(rectify, max_rounds=2, refine_steps=10)
"""`rectify` in a second; what is asked for beyond that is passed on."""


@pytest.fixture(scope="module")
def toy() -> Case:
    return fakes.case()


# -- the plan -------------------------------------------------------------------------------------


def test_the_plan_has_every_run_once() -> None:
    runs = plan(["trojan"], seeds=3, counts=[1, 5])
    assert len(runs) == len(set(runs)) == 4 * (1 + 2 * 3 * (3 + len(PEERS)))
    assert {run.case for run in runs} == set(GROUPS["trojan"])
    assert {run.seed for run in runs} == {0, 1, 2}
    assert {run.method for run in runs} == {BEFORE, *OWN[:3], *PEERS}
    assert plan(["trojan", "trojan"], seeds=3, counts=[1, 5]) == runs
    part = plan(["trojan"], seeds=3, counts=[1, 5], only=[fakes.BLEND])
    assert part == [run for run in runs if run.case == fakes.BLEND]


def test_defaults_of_the_plan() -> None:
    def counts(group: str, **options: Any) -> list[int]:
        return sorted({run.n for run in plan([group], **options)} - {0})

    assert counts("leakage") == [1, 5, 10, 20]
    assert counts("visibility") == counts("position") == [1]
    assert counts("visibility", counts=[5, 1]) == [1, 5]
    assert {run.seed for run in plan(["leakage"])} == set(range(5))
    layers = plan(["layers"])
    assert {run.case for run in layers} == set(LAYER_CASES)
    assert len(layers) == 5 * len(LAYER_CASES) == 30
    assert set(LAYER_CASES) >= {one for one in cases.names() if one in GROUPS["trojan"]}


def test_settings_have_rows_in_their_own_groups() -> None:
    everywhere = plan(["trojan", "visibility", "position"], methods=[EVERYWHERE], seeds=2)
    assert [run.case for run in everywhere if run.method == EVERYWHERE] == ["trojan-position"] * 2
    runs = plan(list(GROUPS), methods=["dynamic", CLOSED_FORM], seeds=2)
    own, closed = (
        [replace(run, method="") for run in runs if run.method == method]
        for method in ("dynamic", CLOSED_FORM)
    )
    assert own == closed != []


def test_what_matters_most_comes_first() -> None:
    runs = plan(["spurious", "layers"], seeds=2, counts=[20, 1])
    kinds = [
        run.method
        if run.method in {BEFORE, LAYERS}
        else f"{'own' if run.method in OWN else 'peers'}, {run.pool}, {run.n}"
        for run in runs
    ]
    order = list(dict.fromkeys(kinds))
    assert order[0] == BEFORE
    assert [kind for kind in order if kind.startswith("peers")] == order[-4:]
    assert order[-4:] == [f"peers, {pool}, {n}" for pool in (AFFECTED, OTHERS) for n in (20, 1)]
    for place, run in enumerate(runs):
        assert run.tuned_by is None or run.tuned_by in runs[:place]


def test_runs_are_tuned_by_seed_0() -> None:
    run = Run("leakage", "p_clarc", EVERY, 5, 3, 100)
    first = Run("leakage", "p_clarc", EVERY, 5, 0, 100)
    assert (run.tuned_by, run.tunes) == (first, False)
    assert (first.tuned_by, first.tunes) == (None, True)
    own = Run("leakage", "dynamic", EVERY, 5, 3)
    assert (own.tuned_by, own.tunes) == (None, False)
    assert Run.of({**run.fields(), "figures": {}}) == run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["trojans"]}, "did you mean 'trojan'"),
        ({"methods": ["p-clarc"]}, "did you mean 'p_clarc'"),
        ({"only": ["leakage"]}, "cases: got 'leakage'"),
        ({"counts": [0]}, "n: got 0"),
        ({"seeds": 0}, "seeds: got 0"),
        ({"layer_pairs": 0}, "pairs: got 0"),
    ],
)
def test_a_plan_of_what_is_not_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**{"groups": ["trojan"], **options})


def test_draws_are_seeded_nested_and_without_repeats(toy: Case) -> None:
    def rows(n: int, seed: int) -> list[int]:
        chosen: list[int] = draw_rows(toy, Run(toy.name, "dynamic", EVERY, n, seed)).tolist()
        return chosen

    assert rows(5, 3)[:1] == rows(1, 3)
    assert rows(5, 3) != rows(5, 4)
    assert sorted(rows(fakes.PAIRS, 0)) == list(range(fakes.PAIRS))
    assert len({rows(1, seed)[0] for seed in range(200)}) == fakes.PAIRS
    with pytest.raises(ValueError, match=f"n: got 13, want at most {fakes.PAIRS}"):
        rows(13, 0)
    with pytest.raises(ValueError, match="pairs: got 13"):
        draw_rows(toy, Run(toy.name, LAYERS, seed=12))


def test_pairs_of_the_affected_class_are_drawn_apart() -> None:
    case = cases.load("spurious-mild")
    assert case.pairs.labels is not None
    assert pools(case.name) == (AFFECTED, OTHERS)
    for pool in pools(case.name):
        rows = draw_rows(case, Run(case.name, "dynamic", pool, 5, 1))
        labels = set(case.pairs.labels[rows].tolist())
        assert (case.target in labels) == (pool == AFFECTED)
        assert len(labels) == 1 or pool == OTHERS


# -- measuring ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dynamic", {"strategy": "dynamic"}),
        ("static", {"strategy": "static"}),
        (CLOSED_FORM, {"strategy": "dynamic", "refine_steps": 0}),
    ],
)
def test_our_own_runs_are_what_rectify_gives(
    toy: Case, monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(measure, "rectify", quick)
    run = Run(toy.name, method, EVERY, 3, 2)
    record = measure.measure(toy, run, None)
    rows = torch.randperm(fakes.PAIRS, generator=torch.Generator().manual_seed(2))[:3]
    result = quick(toy.model, toy.pairs[rows], reference=toy.reference, seed=2, **options)
    assert record["figures"] == toy.figures(result.model)
    assert method == "static" or record["figures"] != toy.figures()
    assert record["edits"] == [edit.layer for edit in result.edits]
    assert record["stopped"] == result.stopped
    assert 0 < record["seconds"] <= record["took"] + 0.1
    assert Run.of(record) == run
    assert "failure" not in record


@pytest.mark.parametrize(("found_again", "passes"), [((), 1), (((0, 0),) * 9, 3)])
def test_everywhere_is_dynamic_from_every_place_until_there_is_none(
    toy: Case,
    monkeypatch: pytest.MonkeyPatch,
    found_again: tuple[tuple[int, int], ...],
    passes: int,
) -> None:
    """The toy's patch works in one place alone, so other places are made up."""
    asked: list[Any] = []
    left = [*found_again[: passes - 1], *([()] if passes < PASSES else [])]

    def find_places(model: nn.Module, pairs: SamplePairs, **options: Any) -> SimpleNamespace:
        asked.append((model, pairs.clean, options))
        first = len(asked) == 1
        return SimpleNamespace(
            pairs=toy.pairs[:3] if first else toy.pairs[2:5],
            found=((1, 1),) if first else left[len(asked) - 2],
        )

    monkeypatch.setattr(measure, "find_places", find_places)
    monkeypatch.setattr(measure, "rectify", quick)
    run = Run(toy.name, EVERYWHERE, EVERY, 1, 2)
    record = measure.measure(toy, run, None)
    common: dict[str, Any] = {"reference": toy.reference, "seed": 2}
    results = [quick(toy.model, toy.pairs[:3], **common)]
    while len(results) < passes:
        results.append(quick(results[-1].model, toy.pairs[2:5], **common))
    again = common | {"least": STILL, "samples": CLOSELY}
    assert [options for *_, options in asked] == [common, *[again] * len(left)]
    assert asked[0][0] is toy.model
    for (model, clean, _), before in zip(asked[1:], results, strict=False):
        assert same(model, bits(before.model))
        assert torch.equal(clean, toy.pairs.clean[draw_rows(toy, run)])
    assert record["figures"] == toy.figures(results[-1].model)
    assert record["edits"] == [edit.layer for result in results for edit in result.edits]
    assert record["stopped"] == results[-1].stopped


def test_the_unrepaired_network_and_the_limit(toy: Case) -> None:
    whole = measure.measure(toy, Run(toy.name, BEFORE, n=0), None)
    part = measure.measure(toy, Run(toy.name, BEFORE, n=0, limit=50), None)
    assert whole["figures"] == toy.figures()
    assert part["figures"] == toy.figures(limit=50) != whole["figures"]


@pytest.mark.parametrize("name", PEERS)
def test_what_a_peer_chose_is_taken_back(name: str) -> None:
    """The options of seed 0, given, make seed 0's model again in one trial."""
    tiny = fakes.tiny_case()
    run = Run(tiny.name, name, EVERY, 2, 0)
    tuned = baselines.run(
        name,
        tiny.model,
        tiny.pairs[draw_rows(tiny, run)],
        reference=tiny.reference,
        validation=tiny.validation,
        seed=0,
        **{**QUICK[name], **MORE.get(name, {})},
    )
    record = measure.measure(tiny, run, dict(tuned.options))
    assert "failure" not in record, record["failure"]
    assert record["tried"] == 1 < len(tuned.trials)
    assert json.loads(json.dumps(record["options"])) == dict(tuned.options)
    assert record["figures"] == tiny.figures(tuned.model)


def test_a_failure_is_a_result(toy: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        warnings.warn("it began badly", stacklevel=1)
        raise RuntimeError("no inverse")

    monkeypatch.setattr(baselines, "run", fails)
    record = measure.measure(toy, Run(toy.name, "p_clarc"), None)
    assert record["failure"] == "RuntimeError: no inverse"
    assert record["warnings"] == ["it began badly"]
    assert "figures" not in record


def test_one_thread_measures_and_the_others_come_back(
    toy: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def rank_layers(*_: object) -> dict[str, Any]:
        threads.append(torch.get_num_threads())
        return {}

    monkeypatch.setattr(measure, "rank_layers", rank_layers)
    torch.set_num_threads(2)
    assert measure.measure(toy, Run(toy.name, LAYERS), None)["layers"] == {}
    assert (threads, torch.get_num_threads()) == ([1], 2)


def test_rank_correlation_of_the_measured_layers() -> None:
    measured = {"a": 0.1, "b": 0.2, "c": 0.4}
    assert spearman({"a": 1.0, "b": 5.0, "c": 6.0, "d": 0.0}, measured) == pytest.approx(1.0)
    assert spearman({"a": 3.0, "b": 2.0, "c": 1.0}, measured) == pytest.approx(-1.0)
    assert spearman({"a": 1.0, "b": 1.0, "c": 2.0}, measured) == pytest.approx(0.75**0.5)
    assert spearman({"a": 1.0, "b": 1.0, "c": 1.0}, measured) == 0.0


def test_fingerprints_tell_networks_and_pairs_apart(toy: Case) -> None:
    other = fakes.case()
    assert fingerprint(other) == fingerprint(toy)
    swapped = other.pairs.clean.clone()
    swapped[0] += 0.5
    pairs = SamplePairs(other.pairs.corrupted, swapped, other.pairs.labels)
    assert fingerprint(replace(other, pairs=pairs)) != fingerprint(toy)
    assert fingerprint(fakes.changed(fakes.case())) != fingerprint(toy)
