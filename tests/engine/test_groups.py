"""Accuracy of each (label, group) against pandas, and Wilson's interval against scipy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch.utils.data import DataLoader, TensorDataset

import rectify_widgets as rw
from rectify_widgets.engine.measure.groups import LISTED
from rectify_widgets.engine.measure.intervals import wilson
from rectify_widgets.engine.measure.metrics import evaluate_predictions
from tests.engine.test_metrics import Echo, saying


@settings(max_examples=60)
@given(st.integers(1, 400), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_is_that_of_scipy(count: int, data: st.DataObject, level: float) -> None:
    hits = data.draw(st.integers(0, count))
    expected = binomtest(hits, count).proportion_ci(level, method="wilson")
    assert wilson(hits, count, level) == pytest.approx(tuple(expected), abs=1e-12)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_rows_are_those_of_groupby(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, earlier, later = (rng.integers(0, 3, count) for _ in range(3))
    place = rng.choice(["left", "right", "none"], count)
    predicted = [torch.tensor(answers) for answers in (earlier, later)]
    before = evaluate_predictions((predicted[0], torch.tensor(labels)), groups=place)
    after = evaluate_predictions(
        (predicted[1], torch.tensor(labels)), groups=place, before=before
    ).groups
    assert after is not None
    table = pd.DataFrame(
        {"label": labels, "group": place, "old": earlier == labels, "new": later == labels}
    )
    found = table.groupby(["label", "group"])
    expected = found[["old", "new"]].mean()
    assert [(row.label, row.group) for row in after.rows] == list(expected.index)
    assert [row.samples for row in after.rows] == found.size().tolist()
    assert [row.accuracy_before for row in after.rows] == pytest.approx(expected["old"].tolist())
    assert [row.accuracy for row in after.rows] == pytest.approx(expected["new"].tolist())
    assert after.worst.accuracy == expected["new"].min()
    assert after.gap == pytest.approx(table["new"].mean() - expected["new"].min())
    assert after.gap_before == pytest.approx(table["old"].mean() - expected["old"].min())
    change = expected["new"] - expected["old"]
    assert {(row.label, row.group) for row in after.losers} == set(change[change < -0.01].index)
    assert after.to_frame()["accuracy"].tolist() == pytest.approx(expected["new"].tolist())


KINDS: list[Callable[[list[int]], Any]] = [
    list, tuple, torch.tensor, np.array, pd.Series, lambda v: {"where": v},
    lambda v: pd.DataFrame({"where": v}),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loaded", [False, True])
def test_every_kind_of_metadata_says_the_same(kind: Callable[[Any], Any], loaded: bool) -> None:
    labels, answers = torch.tensor([0, 0, 1, 1, 1]), [0, 1, 1, 1, 0]
    data: Any = (saying(answers), labels)
    if loaded:
        data = DataLoader(TensorDataset(*data), batch_size=2)
    table = rw.evaluate(Echo(), data, groups=kind([7, 8, 7, 8, 8]), batch_size=2).groups
    assert table is not None
    assert [(row.label, row.group, row.right, row.samples) for row in table.rows] == [
        (0, 7, 1, 1), (0, 8, 0, 1), (1, 7, 1, 1), (1, 8, 1, 2),
    ]  # fmt: skip
    assert table.worst.words(["cat", "dog"]).startswith("cat, ")
    assert table.gap == pytest.approx(0.6)


def test_several_attributes_and_labels() -> None:
    truth = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]])
    predicted = torch.tensor([[1, 1], [0, 1], [0, 1], [0, 0]])
    groups = {"age": ["old", "old", "new", "new"], "device": [1, 2, 1, 2]}
    table = evaluate_predictions((predicted, truth), groups=groups).groups
    assert table is not None
    found = {(r.attribute, r.label, r.present, r.group): (r.right, r.samples) for r in table.rows}
    assert len(table.rows) == len(found) == 14
    assert found["age", 0, True, "old"] == (1, 2)
    assert found["age", 1, False, "old"] == (0, 1)
    assert found["device", 1, True, 2] == (1, 1)
    assert table.worst.accuracy == 0.0
    assert "without label" in " ".join(row.words() for row in table.rows)
    assert "device: 2" in str(table)


def test_a_group_that_loses_more_than_a_point_is_named() -> None:
    truth = torch.zeros(200, dtype=torch.long)
    groups = ["a"] * 100 + ["<b>"] * 100
    before = evaluate_predictions((truth, truth), groups=groups)
    lost = truth.clone()
    lost[:1] = 1  # one point exactly: not named
    lost[100:102] = 1
    report = evaluate_predictions((lost, truth), groups=groups, before=before)
    assert report.groups is not None
    assert [row.group for row in report.groups.losers] == ["<b>"]
    assert "Loses 2.0 points: label 0, group <b> (100 → 98 of 100 right)." in str(report)
    page = report._repr_html_()
    assert "group &lt;b&gt;" in page
    assert "<b>" not in page
    same = evaluate_predictions((truth, truth), groups=groups, before=before)
    assert "No group loses more than a point." in str(same)
    alone = evaluate_predictions((truth, truth), groups=groups)
    assert "oses" not in str(alone)


def test_many_groups_are_cut_to_the_worst() -> None:
    count = 3 * LISTED
    predicted = torch.zeros(count, dtype=torch.long)
    truth = (torch.arange(count) >= count - 5).long()
    report = evaluate_predictions((predicted, truth), groups=list(range(count)))
    assert report.groups is not None
    heads, rows = report.groups.cells()
    assert len(heads) == len(rows[0])
    assert len(rows) == LISTED
    assert {str(number) for number in range(count - 5, count)} <= {row[1] for row in rows}
    assert f"The {LISTED} of {count} groups" in str(report)


def test_the_report_before_must_be_on_the_same_inputs() -> None:
    truth = torch.tensor([0, 1, 1])
    before = evaluate_predictions((truth, truth), groups=["a", "a", "b"])
    with pytest.raises(ValueError, match=r"^before: its groups are not those"):
        evaluate_predictions((truth, truth), groups=["a", "b", "b"], before=before)
    bare = replace(before, groups=None)
    with pytest.raises(ValueError, match=r"^before: it has no groups"):
        evaluate_predictions((truth, truth), groups=["a", "b", "b"], before=bare)


def test_groups_of_a_loader_that_leaves_some_out() -> None:
    truth = torch.tensor([0, 1, 1])
    data = DataLoader(TensorDataset(saying([0, 1, 1]), truth), batch_size=2, drop_last=True)
    with pytest.raises(ValueError, match=r"^groups: got 3 values, want 2"):
        rw.evaluate(Echo(), data, groups=["a", "b", "b"])
    assert rw.evaluate(Echo(), data, groups=["a", "b"]).groups is not None


def test_the_worst_group_of_the_shipped_spurious_correlation() -> None:
    case = rw.cases.load("spurious-severe")
    images, labels = (part[:1000] for part in case.clean)
    tagged = case.corrupted[0][:1000]
    table = rw.evaluate(
        case.model,
        (torch.cat([images, tagged]), labels.repeat(2)),
        groups=[*["no tag"] * 1000, *["tag"] * 1000],
    ).groups
    assert table is not None
    assert len(table.rows) == 20
    figures = case.figures(limit=1000)
    assert table.worst.accuracy == pytest.approx(figures["worst_group_accuracy"])
    dress = {row.group: row.accuracy for row in table.rows if row.label == case.target}
    assert dress["tag"] - dress["no tag"] == pytest.approx(figures["spurious_bias"])


def test_the_accuracy_of_each_label_is_that_of_the_clean_inputs() -> None:
    truth, corrupted = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 1])
    report = evaluate_predictions((truth, truth), (truth, corrupted), groups=["a", "b", "b"])
    assert report.by_label is not None
    assert [(r.label, r.right, r.samples) for r in report.by_label.rows] == [(0, 2, 2), (1, 1, 1)]
