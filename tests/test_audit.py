"""The audit report: facts against the repair, a page that is whole, escaped and asks nobody."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import rectify_widgets as rw
from rectify_widgets.engine.measure.intervals import wilson
from rectify_widgets.widgets.audit import facts as audit_facts
from tests.engine import toy
from tests.engine.traces import changes, record

NASTY = "<script>alert('x')</script>&\""
NAMES = [NASTY, "one", "two", "three", "four"]
VOID = {"meta", "img", "br", "path", "rect", "circle"}


@pytest.fixture(scope="module")
def stage() -> toy.Toy:
    return toy.load()


@pytest.fixture(scope="module")
def result(stage: toy.Toy) -> rw.Rectification:
    return rw.rectify(stage.model, stage.pairs, reference=stage.reference, seed=3, max_rounds=2)


def options(stage: toy.Toy) -> dict[str, Any]:
    return {
        "clean": (stage.x, stage.y),
        "corrupted": (toy.stamped(stage.x), stage.y),
        "target": toy.TARGET,
        "groups": {NASTY: [NASTY if number % 3 else "plain" for number in range(len(stage.y))]},
        "classes": NAMES,
        "title": NASTY,
        "code": NASTY,
        "shown": 2,
    }


@pytest.fixture(scope="module")
def page(
    stage: toy.Toy, result: rw.Rectification, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return result.report(
        tmp_path_factory.mktemp("audit") / "repair.html", stage.pairs, **options(stage)
    )


@pytest.fixture(scope="module")
def facts(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def test_the_figures_are_those_of_evaluate(
    stage: toy.Toy, result: rw.Rectification, facts: dict[str, Any]
) -> None:
    for when, model in (("before", stage.model), ("after", result.model)):
        report = rw.evaluate(
            model, (stage.x, stage.y), (toy.stamped(stage.x), stage.y), toy.TARGET, confidence=0.95
        )
        found = facts["measured"][when]["figures"]
        assert {name: one["value"] for name, one in found.items()} == report.figures()
        assert tuple(found["overall_accuracy"]["interval"]) == report.intervals["overall_accuracy"]


def test_classes_and_groups_are_those_of_groupby(
    stage: toy.Toy, result: rw.Rectification, facts: dict[str, Any]
) -> None:
    with torch.no_grad():
        right = [(m(stage.x).argmax(dim=1) == stage.y) for m in (stage.model, result.model)]
    table = pd.DataFrame(
        {"label": stage.y, "group": [n % 3 > 0 for n in range(len(stage.y))]}
        | {"before": right[0], "after": right[1]}
    )
    sums = table.groupby("label")[["before", "after"]].sum()
    rows = facts["labels"]
    assert [row["right_before"] for row in rows] == sums["before"].tolist()
    assert [row["right_after"] for row in rows] == sums["after"].tolist()
    for row in rows:
        assert row["interval_after"] == pytest.approx(wilson(row["right_after"], row["samples"]))
    by_group = table.groupby(["label", "group"])["after"].sum().to_dict()
    assert {
        (r["label"], r["group"] == NASTY): r["right_after"] for r in facts["groups"]
    } == by_group


def test_the_edits_are_those_of_the_repair(
    stage: toy.Toy, result: rw.Rectification, facts: dict[str, Any], tmp_path: Path
) -> None:
    assert result.edits
    assert [edit["layer"] for edit in facts["edits"]] == [edit.layer for edit in result.edits]
    for edit, found in zip(result.edits, facts["edits"], strict=True):
        weight = stage.model.get_submodule(edit.layer).weight
        assert found["norm"] == pytest.approx(float(edit.delta.norm()), rel=1e-5)
        share = edit.delta.norm() / weight.detach().norm()  # type: ignore[operator]
        assert found["relative_norm"] == pytest.approx(float(share), rel=1e-5)
    assert len({edit["fingerprint"] for edit in facts["edits"]}) == len(result.edits)
    result.save(tmp_path / "fix.safetensors")
    again = audit_facts.fingerprint(
        {"left": (edit := rw.load_edits(tmp_path / "fix.safetensors")[0]).left, "right": edit.right}
    )
    assert again == facts["edits"][0]["fingerprint"]
    model = facts["model"]
    assert model["fingerprint_before"] != model["fingerprint_after"]
    before = audit_facts.model_facts(stage.model, result.model)
    assert before["fingerprint_before"] == model["fingerprint_before"]


def test_it_can_be_made_again_from_what_it_says(
    stage: toy.Toy, result: rw.Rectification, facts: dict[str, Any]
) -> None:
    scope: dict[str, Any] = {"rw": rw, "model": stage.model, "pairs": stage.pairs}
    call = facts["reproduce"]["call"]
    assert "seed=3" in call
    exec(call, scope | {"reference": stage.reference}, scope)  # noqa: S102 - our own text
    again = audit_facts.model_facts(stage.model, scope["result"].model)
    assert again["fingerprint_after"] == facts["model"]["fingerprint_after"]
    assert set(facts["reproduce"]["versions"]) >= {"Python", "rectify_widgets", "torch"}


class Tags(HTMLParser):
    """Tags that are open, and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "a", "form")
        self.links += [text or "" for name, text in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            assert dict(attrs)["alt"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_asks_nobody(page: Path, facts: dict[str, Any]) -> None:
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert len(tags.links) == 2 * 5
    assert all(link.startswith("data:image/") for link in tags.links)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"url\(|@import", text)
    assert re.findall(r"https?://[^\"]+", text).count("http://www.w3.org/2000/svg") == len(
        re.findall("https?://", text)
    )
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text
    for edit in facts["edits"]:
        assert edit["fingerprint"][:16] in text
    for row in facts["labels"]:
        if row["change"] < -0.01:
            assert f"({row['right_before']} → {row['right_after']} of" in text


def test_what_was_not_measured_is_said(
    stage: toy.Toy, result: rw.Rectification, tmp_path: Path
) -> None:
    file = result.report(tmp_path / "a.html", stage.pairs)
    known = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert known["measured"] == {}
    assert known["labels"] is None
    assert len(known["not_tried"]["not measured"]) == 4
    assert "No labelled test set was given" in file.read_text(encoding="utf-8")
    tried = {step.layer for step in result.steps} | {edit.layer for edit in result.edits}
    layers = " ".join(known["not_tried"]["layers"])
    for name in rw.editable_layers(stage.model).editable:
        assert (name in layers) == (name not in {e.layer for e in result.edits}), (name, tried)


def test_several_labels_and_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = rw.adapt(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), task="multilabel")
    clean = torch.rand(12, 1, 4, 4)
    bad = clean.clone()
    bad[:, :, 0, 0] += 3.0
    pairs = rw.SamplePairs(bad[:2], clean[:2])
    found = rw.rectify(model, pairs, reference=clean)
    truth = (torch.rand(12, 3) > 0.5).long()
    file = found.report(
        tmp_path / "labels.html", pairs, clean=(clean, truth), groups=torch.arange(12) % 2,
        classes=["red", "green", "blue"],
    )  # fmt: skip
    known = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert {row["present"] for row in known["labels"]} == {True, False}
    assert "without green" in file.read_text(encoding="utf-8")


def test_nothing_is_left_behind(stage: toy.Toy, result: rw.Rectification, tmp_path: Path) -> None:
    held = options(stage)
    marks = record(result.model, stage.x, stage.pairs.corrupted)
    seen: list[float] = []
    result.report(tmp_path / "a.html", stage.pairs, progress=lambda f, _: seen.append(f), **held)
    assert all(later >= one - 1e-9 for one, later in pairwise(seen))
    assert seen[-1] == 1.0
    with pytest.raises(rw.Cancelled):
        result.report(tmp_path / "b.html", stage.pairs, cancel=lambda: True, **held)
    assert not changes(marks, record(result.model, stage.x, stage.pairs.corrupted))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "a.json"]


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"path": "repair.pdf"}, ValueError, r"^path: got 'repair.pdf', want a name that ends in"),
    ({"path": 3}, TypeError, r"^path: got int"),
    ({"pairs": None}, TypeError, r"^pairs: got NoneType, want SamplePairs"),
    ({"groups": [1, 2]}, ValueError, r"^groups: got it without clean inputs"),
    ({"target": "cat"}, ValueError, r"^target: got 'cat' without names"),
    ({"shown": 0}, ValueError, r"^shown: got 0"),
    ({"title": 3}, TypeError, r"^title: got int"),
    ({"attribution": "x"}, ValueError, r"^attribution: "),
    ({"classes": "abc"}, TypeError, r"^classes: got str"),
]


@pytest.mark.parametrize(("wrong", "error", "says"), BAD, ids=lambda x: str(x)[:30])
def test_bad_input(
    stage: toy.Toy, result: rw.Rectification, tmp_path: Path,
    wrong: dict[str, Any], error: type[Exception], says: str,
) -> None:  # fmt: skip
    given: dict[str, Any] = {"path": "repair.html", "pairs": stage.pairs} | wrong
    path = given.pop("path")
    goal = tmp_path / path if isinstance(path, str) else path
    with pytest.raises(error, match=says):
        result.report(goal, given.pop("pairs"), **given)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_page(
    stage: toy.Toy, result: rw.Rectification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.html"
    file.write_text("old", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        result.report(file, stage.pairs)
    assert [one.name for one in tmp_path.iterdir()] == ["a.html"]
    assert file.read_text(encoding="utf-8") == "old"
