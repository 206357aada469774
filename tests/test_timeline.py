"""The tree of versions, against a model made of plain lists."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rectify_widgets.engine.repair.result import Step
from rectify_widgets.widgets.history.timeline import GIVEN, Timeline


class Edit:
    settings = "key 0.1"

    def __init__(self, layer: str) -> None:
        self.layer = layer


def edit(layer: str) -> Any:
    return Edit(layer)


def joint(layer: str, gap: float, without: float, *, of: int, round_: int = 1) -> Step:
    """A kept edit that was made together with others."""
    why = f"refined together with {of - 1} others"
    return Step(
        round_, layer, 0.5, "joint", 0.0, 1.0, gap, 0.0, 0.01, 0.01, True, why, 0.1,
        refined=True, gap_without=without,
    )  # fmt: skip


def trial(round_: int, layer: str, *, kept: bool = False, gap: float | None = None) -> Step:
    loss = None if gap is None else 0.01
    why = "best of this round" if kept else "closes too little of the gap"
    return Step(round_, layer, 0.5, "key", 0.1, 1.0, gap, 0.0, loss, loss, kept, why, 0.1)


class Walk(RuleBasedStateMachine):
    """Branches as lists of version numbers, each from 0; we are at one place of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.timeline = Timeline()
        self.branches = [[0]]
        self.branch = self.place = 0
        self.made: list[Any] = [None]

    @property
    def line(self) -> list[int]:
        return self.branches[self.branch]

    @rule()
    def add(self) -> None:
        one = edit(f"layer{len(self.made)}")
        version = self.timeline.add(one)
        assert version.number == len(self.made)
        self.made.append(one)
        if self.place < len(self.line) - 1:
            self.branches.append(self.line[: self.place + 1])
            self.branch = len(self.branches) - 1
        self.line.append(version.number)
        self.place += 1

    @rule()
    def undo(self) -> None:
        if self.place == 0:
            with pytest.raises(ValueError, match="as given"):
                self.timeline.undo()
        else:
            self.timeline.undo()
            self.place -= 1

    @rule()
    def redo(self) -> None:
        if self.place == len(self.line) - 1:
            with pytest.raises(ValueError, match="last step"):
                self.timeline.redo()
        else:
            self.timeline.redo()
            self.place += 1

    @precondition(lambda self: self.place > 0)
    @rule()
    def undo_and_redo(self) -> None:
        before = (self.timeline.here, self.timeline.path, self.timeline.edits)
        self.timeline.undo()
        self.timeline.redo()
        assert (self.timeline.here, self.timeline.path, self.timeline.edits) == before

    @rule(step=st.integers(-2, 8))
    def go(self, step: int) -> None:
        if 0 <= step < len(self.line):
            self.timeline.go(step)
            self.place = step
        else:
            with pytest.raises(ValueError, match=f"step: got {step}, want 0 to"):
                self.timeline.go(step)

    @rule()
    def branch_off(self) -> None:
        if self.place == len(self.line) - 1:
            with pytest.raises(ValueError, match="go back to an earlier step"):
                self.timeline.branch_off()
        else:
            self.branches.append(self.line[: self.place + 1])
            self.branch = self.timeline.branch_off()
            assert self.branch == len(self.branches) - 1

    @rule(data=st.data())
    def view(self, data: st.DataObject) -> None:
        self.branch = data.draw(st.integers(0, len(self.branches) - 1))
        self.timeline.view(self.branch)
        self.place = len(self.line) - 1

    @rule(data=st.data())
    def visit(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.made) - 1))
        if number not in self.line:
            self.branch = next(i for i, line in enumerate(self.branches) if number in line)
        self.timeline.visit(number)
        self.place = self.line.index(number)

    @invariant()
    def same_as_the_lists(self) -> None:
        timeline = self.timeline
        assert [version.number for version in timeline.path] == self.line
        assert (timeline.branch, timeline.step) == (self.branch, self.place)
        assert timeline.here is timeline[self.line[self.place]]
        assert timeline.edits == [self.made[number] for number in self.line[1 : self.place + 1]]
        assert [tip.number for tip in timeline.branches] == [line[-1] for line in self.branches]

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.timeline) == len(self.made)
        reachable = {v.number for tip in self.timeline.branches for v in lineage(self, tip.number)}
        assert reachable == set(range(len(self.made)))
        for parent, child in itertools.pairwise(self.timeline.path):
            assert child.parent == parent.number
            assert child.edit is self.made[child.number]


def lineage(walk: Walk, number: int) -> Any:
    return walk.timeline.lineage(number)


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_new_timeline_is_the_model_as_given() -> None:
    timeline = Timeline(gap=0.9)
    assert (timeline.here.title, timeline.here.gap, timeline.edits) == (GIVEN, 0.9, [])
    assert timeline.here.edit is None
    assert timeline.branches == timeline.path == (timeline.here,)
    assert repr(timeline) == "Timeline(1 versions, 1 branches, step 0 of 0)"
    for number in (-1, 1):
        with pytest.raises(ValueError, match="want 0 to 0"):
            timeline[number]
        with pytest.raises(ValueError, match="want 0 to 0"):
            timeline.view(number)


def test_trials_go_to_the_version_that_their_round_kept() -> None:
    timeline = Timeline()
    trials = [
        trial(1, "a"),
        trial(1, "b", kept=True, gap=0.4),
        trial(2, "c", kept=True, gap=0.1),
        trial(2, "d", gap=0.3),
        trial(3, "e"),
    ]
    first, second = timeline.extend([edit("b"), edit("c")], trials=trials)
    assert first.trials == tuple(trials[:2])
    assert second.trials == tuple(trials[2:4])
    assert timeline[second.number].fruitless == (trials[4],)
    assert timeline[first.number].fruitless == ()
    assert [v.gap for v in timeline.path] == [None, 0.4, 0.1]
    assert [v.degradation for v in timeline.path] == [None, 0.01, 0.01]
    timeline.extend([], trials=[trial(1, "f")])
    assert [t.layer for t in timeline[second.number].fruitless] == ["e", "f"]


def test_edits_made_together_are_a_version_each() -> None:
    """The other trials of their round lead to the first; each says what all leave without it."""
    timeline = Timeline()
    alone = trial(1, "a", kept=True, gap=0.9)
    refused, many = trial(2, "b", gap=0.8), trial(2, "14 layers", gap=0.3)
    together = [
        joint(name, gap, without, of=3, round_=2)
        for name, gap, without in (("b", 0.7, 0.5), ("c", 0.8, 0.19), ("b", 0.2, 0.2))
    ]
    trials = [alone, refused, many, *together]
    versions = timeline.extend([edit(name) for name in "abcb"], trials=trials)
    assert [version.trials for version in versions] == [
        (alone,), (refused, many, together[0]), (together[1],), (together[2],),
    ]  # fmt: skip
    assert [version.gap for version in versions] == [0.9, 0.7, 0.8, 0.2]
    assert versions[0].contribution is None
    assert [v.contribution for v in versions[1:]] == pytest.approx([0.3, -0.01, 0.0])
    timeline.extend([edit("d")], [(0.1, 0.0)], trials=[joint("d", 0.15, 0.25, of=1)])
    assert timeline.here.gap == 0.1, "as measured anew"
    assert timeline.here.contribution == pytest.approx(0.1), "of the repair that it belongs to"


def test_figures_given_count_more_than_those_of_the_trials() -> None:
    timeline = Timeline()
    (version,) = timeline.extend(
        [edit("b")], [(0.3, None)], trials=[trial(1, "b", kept=True, gap=0.4)]
    )
    assert (version.gap, version.degradation) == (0.3, None)
    timeline.measured({0: (1.0, 0.0), version.number: (0.2, 0.01)})
    assert [(v.gap, v.degradation) for v in timeline] == [(1.0, 0.0), (0.2, 0.01)]
    assert timeline.here.gap == 0.2
    with pytest.raises(ValueError, match="figures: got 0 for 1 edits"):
        timeline.extend([edit("c")], [])
    with pytest.raises(ValueError, match="trials: got 1 that were kept for 2 edits"):
        timeline.extend([edit("c"), edit("d")], trials=[trial(1, "c", kept=True, gap=0.1)])
    assert len(timeline) == 2, "nothing was added by the calls that failed"


def test_a_branch_leaves_from_where_its_first_edit_was_made() -> None:
    timeline = Timeline()
    timeline.extend([edit(name) for name in "abc"])
    timeline.go(1)
    timeline.add(edit("x"))
    assert [v.title for v in timeline.path] == [GIVEN, "a", "x"]
    assert timeline.last_shared(1, 0) == 1
    timeline.view(0)
    assert [e.layer for e in timeline.edits] == ["a", "b", "c"]
