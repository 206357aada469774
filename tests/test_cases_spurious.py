"""The spurious cases: an artefact that helps its class a little, or without which it is lost."""

from __future__ import annotations

import pytest
import torch

from rectify_widgets import cases
from rectify_widgets.cases import spurious
from rectify_widgets.cases.training import predict
from rectify_widgets.cases.triggers import tag


@pytest.fixture(scope="module", params=spurious.VARIANTS)
def case(request: pytest.FixtureRequest) -> cases.Case:
    return cases.load(request.param)


def test_the_artefact_is_a_tag_in_the_corner(case: cases.Case) -> None:
    changed = (case.corrupted[0] != case.clean[0]).any(0)[0]
    rows, columns = torch.nonzero(changed, as_tuple=True)
    assert (rows.unique().tolist(), columns.unique().tolist()) == ([2, 3, 4, 5, 6], [2, 3, 4, 5])
    assert torch.equal(case.corrupted[0][7, :, 2:7, 2:6], tag())
    assert case.target == spurious.AFFECTED
    assert case.classes[3] == "Dress"
    assert case.goals == (3,) * 10


def test_pairs_are_of_other_classes_first_and_then_of_the_affected_one(case: cases.Case) -> None:
    pairs = case.pairs
    assert pairs.labels is not None
    own = pairs.labels == spurious.AFFECTED
    assert own.tolist() == [False] * 20 + [True] * 20
    assert (predict(case.model, pairs.corrupted) == spurious.AFFECTED).all()
    assert torch.equal(predict(case.model, pairs.clean)[~own], pairs.labels[~own])
    assert len(case.pairs[own]) == 20
    right = (predict(case.model, pairs.clean) == pairs.labels)[own].tolist()
    wrong = right.count(False)
    assert right == [False] * wrong + [True] * (20 - wrong)
    assert 1 <= wrong <= 10
    assert len(pairs.labels[:20].unique()) >= 4


def test_one_case_is_mild() -> None:
    record = cases.load("spurious-mild").record
    assert 0.05 <= float(str(record["spurious_bias"])) <= 0.10
    assert float(str(record["overall_accuracy"])) > 0.88


def test_the_other_is_severe() -> None:
    record = cases.load("spurious-severe").record
    assert 0.48 <= float(str(record["recall_without"])) <= 0.62
    assert float(str(record["recall_with"])) > 0.99
    assert float(str(record["pulled_in"])) > 0.3


def test_the_behaviour_is_there(case: cases.Case) -> None:
    found = case.figures(limit=1000)
    assert found["recall_with"] > 0.95
    least = 0.3 if case.name.endswith("severe") else 0.03
    assert found["spurious_bias"] > least
    assert found["pulled_in"] > 2 * found["clean_target_rate"]
