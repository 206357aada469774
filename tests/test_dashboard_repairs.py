"""What a repair of the dashboard is asked for, and what it says: the corruption that was found, and edits of many layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.repair.result import Evidence, Rectification
from rectify_widgets.widgets import actions
from rectify_widgets.widgets.dashboard import workshop
from rectify_widgets.widgets.dashboard.dashboard import RectificationDashboard
from rectify_widgets.widgets.session import Session
from tests.test_timeline import joint
from tests.widget_fakes import (
    FakeEdit,
    fake_localization,
    fake_rectification,
    network,
    pairs,
    texts,
)

Make = Callable[..., RectificationDashboard]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(actions, "localize", fake_localization)
    made: list[RectificationDashboard] = []

    def build(given: SamplePairs | None = None, **options: Any) -> RectificationDashboard:
        session = Session(synchronous=True)
        made.append(RectificationDashboard(network(), given or pairs(), session=session, **options))
        return made[-1]

    yield build
    for dashboard in made:
        dashboard.close()


EVIDENCE = Evidence(
    1, 40, shared=False, shown=0.9, shown_pairs=1.0, unlike=0, classes=3, classes_seen=3,
    suspected=0.0, left=0.0, worst_left=None, changed=0.0, worst_changed=None,
    corruption="Warp(<1.2> pixels)",
)  # fmt: skip


@pytest.mark.parametrize("transferred", [True, False])
def test_it_says_what_the_corruption_was_taken_to_be(
    make: Make, monkeypatch: pytest.MonkeyPatch, transferred: bool
) -> None:
    evidence = replace(EVIDENCE, transferred=transferred)

    def found(*given: Any, **options: Any) -> Rectification:
        return replace(fake_rectification(*given, **options), evidence=evidence)

    monkeypatch.setattr(workshop, "rectify", found)
    dashboard = make()
    assert "corruption:" not in dashboard.canvas.html
    dashboard.rectify().wait()
    words = "corruption: Warp(&lt;1.2&gt; pixels)"
    words += "" if transferred else ", not put onto references"
    assert dashboard.canvas.html.endswith(f"· {words}</span>")
    assert words in dashboard.still()


def test_the_users_corruption_reaches_the_engine(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SamplePairs] = []

    def watched(work: Callable[..., Any]) -> Callable[..., Any]:
        def watch(model: Any, given: SamplePairs, **options: Any) -> Any:
            asked.append(given)
            return work(model, given, **options)

        return watch

    monkeypatch.setattr(actions, "localize", watched(fake_localization))
    monkeypatch.setattr(workshop, "rectify", watched(fake_rectification))
    given = SamplePairs.made(torch.sqrt, pairs().clean)
    dashboard = make(given, examples=pairs(2))
    dashboard.rectify().wait()
    assert [one.corrupt for one in asked] == [torch.sqrt, torch.sqrt]


def test_only_single_edits_say_what_a_layer_closes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def several(model: nn.Sequential, given: object, **options: Any) -> Rectification:
        result = fake_rectification(model, given, **options)
        (missed, _) = result.steps
        steps = [
            replace(missed, layer="0", gap_after=0.7),
            replace(missed, layer="2 layers", gap_after=0.1, refined=True),
            joint("3", 0.4, 0.3, of=2),
            joint("6", 0.2, 0.4, of=2),
        ]
        edits: list[Any] = [FakeEdit("3"), FakeEdit("6")]
        return replace(result, edits=edits, steps=steps, stopped="layers refined", gap_after=0.2)

    monkeypatch.setattr(workshop, "rectify", several)
    dashboard = make()
    dashboard.rectify().wait()
    assert dict(dashboard.layers.measured) == {"0": pytest.approx(0.3)}
    assert dashboard.status.startswith("Done after 2 edits, refined together over several layers")
    assert dashboard.layers.edited == ("3", "6")
    assert "2 layers" in texts(dashboard.history)


def test_options_reach_the_engine(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def watch(*given: Any, **options: Any) -> Rectification:
        asked.append(options)
        return fake_rectification(*given, **options)

    def look(*given: Any, **options: Any) -> Localization:
        looked.append(options["memory_limit"])
        return fake_localization(*given, **options)

    looked: list[int | None] = []
    monkeypatch.setattr(workshop, "rectify", watch)
    monkeypatch.setattr(actions, "localize", look)
    dashboard = make(target_gap=0.1, seed=4)
    dashboard._controls.toggle_options()
    fields = {field.description: field for field in dashboard._controls.options.values()}
    chosen = {
        "Budget, %": 2.5, "Rounds": 3, "Refining steps": 7, "Ranking": "projection",
        "Memory, MB": 1500, "Checkpoint": " run.safetensors ",
    }  # fmt: skip
    for text, value in chosen.items():
        fields[text].value = value
    dashboard.rectify().wait()
    wanted = {
        "target_gap": 0.1, "max_degradation": 0.025, "max_rounds": 3, "method": "projection",
        "strategy": "dynamic", "seed": 4, "refine_steps": 7, "layer": None,
        "memory_limit": 1_500_000_000, "checkpoint": "run.safetensors",
    }  # fmt: skip
    assert looked == [1_500_000_000]
    assert {name: asked[0].get(name) for name in wanted} == wanted
    assert dashboard.history.max_degradation == 0.025
    dashboard.strategy, dashboard.layer = "static", "6"
    assert fields["Strategy"].value == "static"
    dashboard.rectify().wait()
    assert (asked[1]["layer"], asked[1]["refine_steps"]) == ("6", 0)
    for text, value in (("Memory, MB", 0), ("Checkpoint", "")):
        fields[text].value = value
    dashboard.rectify().wait()
    assert (asked[2]["memory_limit"], asked[2]["checkpoint"]) == (None, None)
