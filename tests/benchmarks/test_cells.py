"""One cell of the comparison: what is planned, which pairs are drawn, what is measured.

On toy data; the oracle of a measurement is the engine or the peer called by hand.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets import cases
from rectify_widgets.baselines import run
from rectify_widgets.cases.case import Case
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks import cells, fakes
from tests.benchmarks.cells import CLOSELY, PASSES, STILL
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
    Cell,
    drawn,
    plan,
    pools,
)
from tests.benchmarks.sources import fingerprint
from tests.engine.test_edit_keeping import bits, same
from tests.test_baselines import QUICK

pytestmark = pytest.mark.usefixtures("one_thread")

MORE: dict[str, dict[str, Any]] = {"last_layer": {"strength": None}}
"""What `QUICK` leaves nothing to choose of."""


@pytest.fixture(scope="module")
def toy() -> Case:
    return fakes.case()


# -- the plan -------------------------------------------------------------------------------------


def test_the_plan_has_every_cell_once() -> None:
    found = plan(["trojan"], seeds=3, counts=[1, 5])
    assert len(found) == len(set(found)) == 4 * (1 + 2 * 3 * 12)
    assert {cell.case for cell in found} == set(GROUPS["trojan"])
    assert {cell.seed for cell in found} == {0, 1, 2}
    assert {cell.method for cell in found} == {BEFORE, *OWN[:3], *PEERS}
    assert plan(["trojan", "trojan"], seeds=3, counts=[1, 5]) == found


def test_defaults_of_the_plan() -> None:
    def counts(group: str, **given: Any) -> list[int]:
        return sorted({cell.n for cell in plan([group], **given)} - {0})

    assert counts("leakage") == [1, 5, 10, 20]
    assert counts("visibility") == counts("position") == [1]
    assert counts("visibility", counts=[5, 1]) == [1, 5]
    assert {cell.seed for cell in plan(["leakage"])} == set(range(5))
    layers = plan(["layers"])
    assert {cell.case for cell in layers} == set(LAYER_CASES)
    assert len(layers) == 5 * len(LAYER_CASES) == 30
    assert set(LAYER_CASES) >= {one for one in cases.names() if one in GROUPS["trojan"]}


def test_places_are_sought_where_there_are_several() -> None:
    found = plan(["trojan", "visibility", "position"], methods=[EVERYWHERE], seeds=2)
    assert [cell.case for cell in found if cell.method == EVERYWHERE] == ["trojan-position"] * 2


def test_the_closed_form_alone_has_its_row_everywhere() -> None:
    found = plan(list(GROUPS), methods=["dynamic", CLOSED_FORM], seeds=2)
    cells_of = {
        method: [(c.case, c.pool, c.n, c.seed) for c in found if c.method == method]
        for method in ("dynamic", CLOSED_FORM)
    }
    assert cells_of["dynamic"] == cells_of[CLOSED_FORM] != []


def test_some_cases_alone() -> None:
    whole = plan(["trojan", "layers"], seeds=2)
    part = plan(["trojan", "layers"], seeds=2, only=[fakes.BLEND])
    assert part == [cell for cell in whole if cell.case == fakes.BLEND]


def test_what_matters_most_comes_first() -> None:
    found = plan(["spurious", "layers"], seeds=2, counts=[20, 1])
    kinds = [
        "before"
        if cell.method == BEFORE
        else "layers"
        if cell.method == LAYERS
        else f"{'own' if cell.method in OWN else 'peers'}, {cell.pool}, {cell.n}"
        for cell in found
    ]
    order = list(dict.fromkeys(kinds))
    assert order[0] == "before"
    peers = [kind for kind in order if kind.startswith("peers")]
    assert peers == order[-4:]
    assert peers == [
        f"peers, {AFFECTED}, 20",
        f"peers, {AFFECTED}, 1",
        f"peers, {OTHERS}, 20",
        f"peers, {OTHERS}, 1",
    ]


def test_cells_are_tuned_by_seed_0() -> None:
    cell = Cell("leakage", "p_clarc", EVERY, 5, 3, 100)
    assert cell.tuned_by == Cell("leakage", "p_clarc", EVERY, 5, 0, 100)
    assert not cell.tunes
    first = cell.tuned_by
    assert first is not None
    assert first.tunes
    assert first.tuned_by is None
    own = Cell("leakage", "dynamic", EVERY, 5, 3)
    assert own.tuned_by is None
    assert not own.tunes
    assert "tuning" in str(first)
    assert Cell.of({**cell.fields(), "figures": {}}) == cell


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": ["trojans"]}, "did you mean 'trojan'"),
        ({"methods": ["p-clarc"]}, "did you mean 'p_clarc'"),
        ({"only": ["leakage"]}, "cases: got 'leakage'"),
        ({"counts": [0]}, "n: got 0"),
        ({"seeds": 0}, "seeds: got 0"),
        ({"layer_pairs": 0}, "pairs: got 0"),
    ],
)
def test_a_plan_of_what_is_not_there(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**{"groups": ["trojan"], **given})


def test_draws_are_seeded_nested_and_without_repeats(toy: Case) -> None:
    def rows(n: int, seed: int) -> list[int]:
        chosen: list[int] = drawn(toy, Cell(toy.name, "dynamic", EVERY, n, seed)).tolist()
        return chosen

    assert rows(5, 3)[:1] == rows(1, 3)
    assert rows(5, 3) != rows(5, 4)
    assert sorted(rows(fakes.PAIRS, 0)) == list(range(fakes.PAIRS))
    assert len({rows(1, seed)[0] for seed in range(200)}) == fakes.PAIRS
    with pytest.raises(ValueError, match=f"n: got 13, want at most {fakes.PAIRS}"):
        rows(13, 0)
    with pytest.raises(ValueError, match="pairs: got 13"):
        drawn(toy, Cell(toy.name, LAYERS, EVERY, 1, 12))


def test_pairs_of_the_affected_class_are_drawn_apart() -> None:
    case = cases.load("spurious-mild")
    assert case.pairs.labels is not None
    assert pools(case.name) == (AFFECTED, OTHERS)
    for pool in pools(case.name):
        rows = drawn(case, Cell(case.name, "dynamic", pool, 5, 1))
        labels = set(case.pairs.labels[rows].tolist())
        assert (case.target in labels) == (pool == AFFECTED)
        assert len(labels) == 1 or pool == OTHERS


# -- measuring ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OWN[:3])
def test_our_own_cells_are_what_rectify_gives(toy: Case, method: str) -> None:
    cell = Cell(toy.name, method, EVERY, 3, 2)
    found = cells.measure(toy, cell, None)
    rows = torch.randperm(fakes.PAIRS, generator=fakes.seeded(2))[:3]
    told: dict[str, dict[str, Any]] = {
        "dynamic": {"strategy": "dynamic"},
        "static": {"strategy": "static"},
        CLOSED_FORM: {"strategy": "dynamic", "refine_steps": 0},
    }
    options = told[method]
    result = rectify(toy.model, toy.pairs[rows], reference=toy.reference, seed=2, **options)
    assert found["figures"] == toy.figures(result.model)
    assert method == "static" or found["figures"] != toy.figures()
    assert found["edits"] == [edit.layer for edit in result.edits]
    assert found["stopped"] == result.stopped
    assert 0 < found["seconds"] <= found["took"] + 0.1
    assert Cell.of(found) == cell
    assert "failure" not in found


@pytest.mark.parametrize(("found_again", "passes"), [((), 1), (((0, 0),), 2), (((0, 0),) * 9, 3)])
def test_everywhere_is_dynamic_from_every_place_until_there_is_none(
    toy: Case,
    monkeypatch: pytest.MonkeyPatch,
    found_again: tuple[tuple[int, int], ...],
    passes: int,
) -> None:
    """The toy's patch works in one place alone, so other places are made up."""
    asked: list[Any] = []
    left = [*found_again[: passes - 1], *([()] if passes < PASSES else [])]

    def find_places(model: nn.Module, pairs: SamplePairs, **given: Any) -> SimpleNamespace:
        asked.append((model, pairs.clean, given))
        first = len(asked) == 1
        return SimpleNamespace(
            pairs=toy.pairs[:3] if first else toy.pairs[2:5],
            found=((1, 1),) if first else left[len(asked) - 2],
        )

    monkeypatch.setattr(cells, "find_places", find_places)
    cell = Cell(toy.name, EVERYWHERE, EVERY, 1, 2)
    found = cells.measure(toy, cell, None)
    results = [rectify(toy.model, toy.pairs[:3], reference=toy.reference, seed=2)]
    while len(results) < passes:
        results.append(rectify(results[-1].model, toy.pairs[2:5], reference=toy.reference, seed=2))
    given = {"reference": toy.reference, "seed": 2}
    assert [asked[0][2], *(more for *_, more in asked[1:])] == [
        given,
        *[given | {"least": STILL, "samples": CLOSELY}] * (len(asked) - 1),
    ]
    assert len(asked) == len(left) + 1
    assert asked[0][0] is toy.model
    for (model, clean, _), before in zip(asked[1:], results, strict=False):
        assert same(model, bits(before.model))
        assert torch.equal(clean, toy.pairs.clean[drawn(toy, cell)])
    assert found["figures"] == toy.figures(results[-1].model)
    assert found["edits"] == [edit.layer for result in results for edit in result.edits]
    assert found["stopped"] == results[-1].stopped


def test_the_unrepaired_network_and_the_limit(toy: Case) -> None:
    whole = cells.measure(toy, Cell(toy.name, BEFORE, EVERY, 0, 0), None)
    part = cells.measure(toy, Cell(toy.name, BEFORE, EVERY, 0, 0, 50), None)
    assert whole["figures"] == toy.figures()
    assert part["figures"] == toy.figures(limit=50) != whole["figures"]


@pytest.mark.parametrize("name", PEERS)
def test_what_a_peer_chose_is_taken_back(name: str) -> None:
    """The options of seed 0, given, make seed 0's model again in one trial."""
    tiny = fakes.tiny_case()
    rows = drawn(tiny, Cell(tiny.name, name, EVERY, 2, 0))
    tuned = run(
        name,
        tiny.model,
        tiny.pairs[rows],
        reference=tiny.reference,
        validation=tiny.validation,
        seed=0,
        **{**QUICK[name], **MORE.get(name, {})},
    )
    found = cells.measure(tiny, Cell(tiny.name, name, EVERY, 2, 0), dict(tuned.options))
    assert "failure" not in found, found["failure"]
    assert found["tried"] == 1 < len(tuned.trials)
    assert json.loads(json.dumps(found["options"])) == dict(tuned.options)
    assert found["figures"] == tiny.figures(tuned.model)


def test_a_failure_is_a_result(toy: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        warnings.warn("it began badly", stacklevel=1)
        raise RuntimeError("no inverse")

    monkeypatch.setattr(cells, "run", fails)
    found = cells.measure(toy, Cell(toy.name, "p_clarc", EVERY, 1, 0), None)
    assert found["failure"] == "RuntimeError: no inverse"
    assert found["warnings"] == ["it began badly"]
    assert "figures" not in found


def test_fingerprints_tell_networks_and_pairs_apart(toy: Case) -> None:
    other = fakes.case()
    assert fingerprint(other) == fingerprint(toy)
    swapped: Tensor = other.pairs.clean.clone()
    swapped[0] += 0.5
    pairs = SamplePairs(other.pairs.corrupted, swapped, other.pairs.labels)
    assert fingerprint(replace(other, pairs=pairs)) != fingerprint(toy)
    assert fingerprint(fakes.changed(fakes.case())) != fingerprint(toy)
