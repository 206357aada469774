"""The dashboard's report: both files, the code that makes the same, and what stands in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rectify_widgets as rw
from rectify_widgets.widgets.dashboard.recipe import BY_HAND
from rectify_widgets.widgets.session import Session
from tests.test_dashboard_way import CARRIERS, executed, references, shortcut
from tests.widget_fakes import texts

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., rw.RectificationDashboard]
CLASSES = ["ant", "bee", "cat", "dog"]
MODEL, IMAGES = shortcut(), references()


def stamped(images: Tensor) -> Tensor:
    """With bright pixels in the middle."""
    found = images.clone()
    found[:, :, 5:8, 5:8] = 1.0
    return found


CLEAN = IMAGES[[row for row in range(len(IMAGES)) if row not in CARRIERS]]
with torch.no_grad():
    LABELS = MODEL(CLEAN).argmax(dim=1)
PAIRS = rw.SamplePairs.made(stamped, CLEAN[1:2])  # nothing to estimate, which takes seconds
EXAMPLES = rw.SamplePairs(stamped(CLEAN[20:]), CLEAN[20:], LABELS[20:])
GIVEN: dict[str, Any] = {"model": MODEL, "pairs": PAIRS, "reference": IMAGES, "classes": CLASSES}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.chdir(tmp_path)
    made: list[rw.RectificationDashboard] = []

    def build(**options: Any) -> rw.RectificationDashboard:
        usual = GIVEN | {"session": Session(synchronous=True), "attribution": "saliency"}
        made.append(rw.RectificationDashboard(**(usual | options)))
        return made[-1]

    yield build
    for dashboard in made:
        dashboard.close()


@pytest.fixture
def repaired(make: Make) -> rw.RectificationDashboard:
    """After a rectification, at the last step."""
    dashboard = make(examples=EXAMPLES, target="ant", max_rounds=1, refine_steps=0)
    assert dashboard.rectify().wait().edits
    dashboard.stage = "save"
    return dashboard


def facts_of(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def click(dashboard: rw.RectificationDashboard) -> None:
    dashboard._controls.buttons["write_report"].click()


def test_a_click_writes_the_page_and_its_facts(
    repaired: rw.RectificationDashboard, tmp_path: Path
) -> None:
    seen: list[float] = []
    repaired.observe(lambda change: seen.append(change["new"]), names="progress")
    click(repaired)
    assert repaired.error is None
    assert repaired.status == "Wrote repair.html and repair.json."
    assert seen[-1] == 1.0
    assert any(0 < one < 1 for one in seen)
    assert names(tmp_path) == ["repair.html", "repair.json"]
    facts = facts_of(tmp_path / "repair.html")
    assert facts["classes"] == CLASSES
    assert facts["target"] == 0
    assert facts["reproduce"]["seed"] == 0
    assert facts["reproduce"]["code"] == repaired.code
    assert repaired.result is not None
    assert facts["repair"]["gap_after"] == repaired.result.gap_after
    assert "report in repair.html" in repaired.way.html
    assert repaired.model is not None
    wanted = rw.evaluate(
        repaired.model, (EXAMPLES.clean, LABELS[20:]), (EXAMPLES.corrupted, LABELS[20:]), 0
    )
    figures = facts["measured"]["after"]["figures"]
    assert {name: one["value"] for name, one in figures.items()} == wanted.figures()


def test_the_code_writes_the_same_report(repaired: rw.RectificationDashboard) -> None:
    assert "result.report" not in repaired.code
    repaired.write_report("one.html").wait()
    assert "result.report(\n    'one.html', pairs, clean=(examples.clean," in repaired.code
    assert "# model, reference, pairs, examples, classes: what" in repaired.code
    first = facts_of(Path("one.html"))
    executed(repaired, **GIVEN, examples=EXAMPLES)
    again = facts_of(Path("one.html"))
    for name in ("model", "measured", "labels", "edits", "pairs"):
        assert again[name] == first[name], name
    repaired.undo().wait()
    assert "result.report" not in repaired.code, "that was another version"


def test_edits_of_several_calls_are_one_repair(make: Make) -> None:
    dashboard = make(max_rounds=1, refine_steps=0)
    dashboard.rectify().wait()
    dashboard.layer = "3"
    dashboard.edit().wait()
    assert len(dashboard.edits) > 1
    page = dashboard.write_report("both.html").wait()
    facts = facts_of(page)
    assert facts["repair"]["stopped"] == BY_HAND
    assert f"{BY_HAND.capitalize()}, {len(dashboard.edits)} edits: gap" in page.read_text("utf-8")
    assert [one["layer"] for one in facts["edits"]] == [one.layer for one in dashboard.edits]
    here = dashboard.history.timeline.here
    assert facts["repair"]["gap_after"] == here.gap
    assert facts["repair"]["degradation"] == here.degradation
    assert dashboard.result is not None
    assert len(facts["repair"]["trials"]) == len(dashboard.result.steps)
    assert len(facts["not_tried"]["not measured"]) == 4
    executed(dashboard, **GIVEN)
    again = facts_of(page)
    for name in ("model", "edits"):
        assert again[name] == facts[name], name
    for name in ("gap_before", "gap_after", "degradation", "stopped"):
        assert again["repair"][name] == facts["repair"][name], name


def test_it_measures_on_the_test_sets_that_it_was_given(make: Make) -> None:
    groups = {"half": [row % 2 for row in range(len(CLEAN))]}
    sets = {"clean": (CLEAN, LABELS), "corrupted": (stamped(CLEAN), LABELS), "groups": groups}
    dashboard = make(examples=EXAMPLES, **sets)
    dashboard.rectify().wait()
    facts = facts_of(dashboard.write_report().wait())
    assert facts["measured"]["before"]["samples"] == [len(CLEAN)] * 2
    assert {row["attribute"] for row in facts["groups"]} == {"half"}
    assert "clean=clean, corrupted=corrupted, groups=groups" in dashboard.code
    executed(dashboard, **GIVEN, **sets)


def test_a_report_that_is_there_is_replaced_and_the_status_says_so(
    repaired: rw.RectificationDashboard, tmp_path: Path
) -> None:
    (tmp_path / "repair.html").write_text("old", encoding="utf-8")
    click(repaired)
    assert repaired.error is None
    assert repaired.status == "Replaced repair.html and repair.json."
    assert facts_of(tmp_path / "repair.html")["classes"] == CLASSES


@pytest.mark.parametrize("name", ["nowhere/repair.html", "repair.pdf", "locked/repair.html"])
def test_a_path_that_cannot_be_written(
    repaired: rw.RectificationDashboard,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: "locked" not in str(path))  # root may
    repaired.report_file = name
    click(repaired)
    assert not repaired.busy
    assert repaired.status == "Report: not written"
    says = {
        "nowhere/repair.html": "no folder &#x27;nowhere&#x27;; make it first",
        "repair.pdf": "got &#x27;repair.pdf&#x27;, want a name that ends in .html",
        "locked/repair.html": f"cannot write into the folder &#x27;{tmp_path.resolve()}/locked&#x27;; choose another one",
    }
    assert f"path: {says[name]}" in texts(repaired)
    assert "Traceback" not in texts(repaired)
    assert names(tmp_path) == ["locked"]


def test_a_full_disk_is_told(
    repaired: rw.RectificationDashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        click(repaired)
    assert repaired.status == "Report: failed"
    assert "no space" in texts(repaired)
    assert names(tmp_path) == []
    assert repaired.recipe.reported_to(repaired.edits) is None
    click(repaired)
    assert repaired.error is None


def test_it_can_be_cancelled(repaired: rw.RectificationDashboard, tmp_path: Path) -> None:
    def stop(change: dict[str, Any]) -> None:
        if 0 < change["new"] < 1:
            assert not repaired._controls.buttons["cancel"].disabled
            assert repaired._controls.buttons["write_report"].disabled
            repaired.session.cancel()

    repaired.observe(stop, names="progress")
    with pytest.raises(rw.Cancelled):
        repaired.write_report().wait()
    assert repaired.status == "Report: cancelled"
    assert repaired.error is None
    assert names(tmp_path) == []
    assert "result.report" not in repaired.code


def test_it_belongs_to_the_last_step(repaired: rw.RectificationDashboard) -> None:
    def hidden() -> bool:
        return "rw-hidden" in repaired._controls.rows[1]._dom_classes

    assert not hidden()
    for stage in ("evaluate", "reveal"):
        repaired.stage = stage
        assert hidden()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"corrupted": (CLEAN, LABELS)}, ValueError, "^corrupted: got it without clean inputs"),
        ({"groups": [1, 2]}, ValueError, "^groups: got it without clean inputs"),
        ({"clean": (CLEAN, LABELS), "groups": [1]}, ValueError, r"^groups: got 1 values, want 57"),
        ({"examples": EXAMPLES, "groups": [1]}, ValueError, "^groups: got 1 values, want 37"),
    ],
)
def test_bad_test_sets(
    make: Make, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make(**options)


def test_without_edits_there_is_nothing_to_report(make: Make, tmp_path: Path) -> None:
    dashboard = make()
    dashboard.stage = "save"
    assert dashboard._controls.buttons["write_report"].disabled
    with pytest.raises(ValueError, match=r"^report: there are no edits"):
        dashboard.write_report()
    assert names(tmp_path) == []
