"""The versions of a model as a tree: undo, redo, scrub, and branches that lose nothing.

Imports the types of edits and steps only: no torch, no ipywidgets.  A `Timeline` holds no model.  A
version is the model as given with some edits, root to version, applied in order; the viewer
applies them to get its weights.

A *branch* is known by its last version, its tip.  One branch is in view, and *here* is one of the
versions on its path.  An edit made anywhere but at the tip starts a branch of its own, so that the
later versions stay where they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rectify_widgets.engine.edit.edits import RankOneEdit
    from rectify_widgets.engine.repair.result import Rectification, Step

GIVEN = "as given"
"""Title of the version without edits."""


@dataclass(frozen=True, eq=False)
class Version:
    """The model at one point of its history.

    Attributes:
        number: from 0, in the order of making; it never changes.
        parent: number of the version that it was made from; None for the model as given.
        edit: what was done to the parent; None for the model as given.
        gap, degradation: fractions, see `rectify_widgets.engine.repair.result.Step`; None where they
            were not measured.
        contribution: of an edit that was made together with others, how much more of the gap all of
            them leave without it, a fraction; None for others.
        trials: the trials of the round that led here, kept and rolled back.
        fruitless: trials that started here, in rounds that kept none of them.
    """

    number: int
    parent: int | None
    edit: RankOneEdit | None
    gap: float | None = None
    degradation: float | None = None
    contribution: float | None = None
    trials: tuple[Step, ...] = ()
    fruitless: tuple[Step, ...] = ()

    @property
    def title(self) -> str:
        """The edited layer, or `GIVEN`."""
        return GIVEN if self.edit is None else self.edit.layer


class Timeline:
    """All versions, the branch in view, and the version that we are at.

    Args:
        gap, degradation: of the model as given, where they are known.

    Attributes:
        branch: which of `branches` is in view; `view` changes it.
    """

    def __init__(self, *, gap: float | None = None, degradation: float | None = None) -> None:
        self._versions = [Version(0, None, None, gap, degradation)]
        self._tips = [0]
        self.branch = 0
        self._here = 0

    def __repr__(self) -> str:
        return (
            f"Timeline({len(self._versions)} versions, {len(self._tips)} branches, "
            f"step {self.step} of {len(self.path) - 1})"
        )

    @classmethod
    def from_rectification(cls, result: Rectification) -> Timeline:
        """One version for each kept edit, with the trials of its round; we are at the last one."""
        timeline = cls(gap=result.gap_before, degradation=0.0)
        timeline.extend(result.edits, trials=result.steps)
        return timeline

    # -- what there is ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._versions)

    def __iter__(self) -> Iterator[Version]:
        return iter(self._versions)

    def __getitem__(self, number: int) -> Version:
        if not 0 <= number < len(self._versions):
            raise ValueError(f"number: got {number}, want 0 to {len(self._versions) - 1}")
        return self._versions[number]

    @property
    def here(self) -> Version:
        """The version that we are at."""
        return self._versions[self._here]

    @property
    def path(self) -> tuple[Version, ...]:
        """The versions of the branch in view, from the model as given to its tip."""
        return self.lineage(self._tips[self.branch])

    @property
    def step(self) -> int:
        """Edits between the model as given and here: the place of `here` in `path`."""
        return len(self.lineage(self._here)) - 1

    @property
    def edits(self) -> list[RankOneEdit]:
        """The edits that lead here, in the order in which they are applied."""
        path = self.lineage(self._here)
        return [version.edit for version in path if version.edit is not None]

    @property
    def branches(self) -> tuple[Version, ...]:
        """The tip of each branch, in the order in which the branches were begun."""
        return tuple(self._versions[tip] for tip in self._tips)

    def lineage(self, number: int) -> tuple[Version, ...]:
        """The versions from the model as given to this one."""
        line = [self[number]]
        while (parent := line[-1].parent) is not None:
            line.append(self._versions[parent])
        return tuple(reversed(line))

    def last_shared(self, branch: int, other: int) -> int:
        """The last step that two branches have in common."""
        one, two = (self.lineage(self._tips[number]) for number in (branch, other))
        return sum(version is same for version, same in zip(one, two, strict=False)) - 1

    # -- growing ----------------------------------------------------------------------------------

    def add(
        self,
        edit: RankOneEdit,
        gap: float | None = None,
        degradation: float | None = None,
        trials: Iterable[Step] = (),
        contribution: float | None = None,
    ) -> Version:
        """Add a version made from `here`, and go to it.

        Where the branch in view goes on beyond `here`, a new branch begins; it comes into view, and
        the later versions stay on theirs.
        """
        number = len(self._versions)
        version = Version(number, self._here, edit, gap, degradation, contribution, tuple(trials))
        if self._tips[self.branch] != self._here:
            self.branch_off()
        self._versions.append(version)
        self._tips[self.branch] = self._here = number
        return version

    def extend(
        self,
        edits: Sequence[RankOneEdit],
        figures: Sequence[tuple[float | None, float | None]] | None = None,
        *,
        trials: Iterable[Step] = (),
    ) -> list[Version]:
        """Add the edits of a rectification (or one of your own), one version each.

        Args:
            edits: in order.
            figures: gap and degradation after each edit; None takes them from the trials that were
                kept.
            trials: of all rounds, in order.  Those of a round go to the version that it kept, those
                of rounds that kept nothing to the version that they started from.

        Raises:
            ValueError: another number of figures, or of kept trials, than edits.
        """
        rounds, rest = _rounds(trials)
        if figures is not None and len(figures) != len(edits):
            raise ValueError(
                f"figures: got {len(figures)} for {len(edits)} edits, want a gap and a degradation "
                "for each"
            )
        if rounds and len(rounds) != len(edits):
            raise ValueError(
                f"trials: got {len(rounds)} that were kept for {len(edits)} edits, want one for "
                "each edit, or no trials"
            )
        kept = [next(trial for trial in made if trial.accepted) for made in rounds]
        last = {step.round: step.gap_after for step in kept}
        added = []
        for place, edit in enumerate(edits):
            gap = degradation = contribution = None
            if kept:
                step = kept[place]
                gap, degradation, together = (
                    step.gap_after,
                    step.degradation_after,
                    last[step.round],
                )
                if step.gap_without is not None and together is not None:
                    contribution = step.gap_without - together
            if figures is not None:
                gap, degradation = figures[place]
            made = rounds[place] if rounds else ()
            added.append(self.add(edit, gap, degradation, made, contribution))
        if rest:
            here = self.here
            self._versions[self._here] = replace(here, fruitless=(*here.fruitless, *rest))
        return added

    def measured(self, figures: Mapping[int, tuple[float | None, float | None]]) -> None:
        """Set gap and degradation of versions, by number, as measured anew."""
        for number, (gap, degradation) in figures.items():
            self._versions[number] = replace(self[number], gap=gap, degradation=degradation)

    # -- moving -----------------------------------------------------------------------------------

    def check(self, name: str, place: int) -> int:
        """The number of a step of the branch in view, or of a branch; a `ValueError` if none is.

        ``name`` is ``"step"`` or ``"branch"``.
        """
        places, of = (self.path, "this branch") if name == "step" else (self._tips, "all")
        if not 0 <= place < len(places):
            raise ValueError(f"{name}: got {place}, want 0 to {len(places) - 1}, the last of {of}")
        return place

    def go(self, step: int) -> None:
        """Go to a step of the branch in view: 0 is the model as given."""
        self._here = self.path[self.check("step", step)].number

    def undo(self) -> None:
        """Go one step back; a `ValueError` if `here` is the model as given."""
        if self.here.parent is None:
            raise ValueError("undo: this is the model as given, there is no edit to take back")
        self._here = self.here.parent

    def redo(self) -> None:
        """Go one step forward on the branch in view; a `ValueError` if `here` is its last step."""
        if self._here == self._tips[self.branch]:
            raise ValueError("redo: this is the last step of the branch")
        self.go(self.step + 1)

    def view(self, branch: int) -> None:
        """Bring a branch into view, at its tip."""
        self.branch = self.check("branch", branch)
        self._here = self._tips[branch]

    def visit(self, number: int) -> None:
        """Go to a version wherever it is; the branch in view changes only if it has to."""
        version = self[number]
        places = [self.branch, *range(len(self._tips))]
        self.branch = next(place for place in places if version in self.lineage(self._tips[place]))
        self._here = number

    def branch_off(self) -> int:
        """Begin a branch that ends `here`, and bring it into view; the next edit continues it.

        Raises:
            ValueError: nothing comes after `here`.
        """
        if self._tips[self.branch] == self._here:
            raise ValueError(
                "branch_off: this is the last step of its branch, which the next edit continues; "
                "go back to an earlier step first"
            )
        self._tips.append(self._here)
        self.branch = len(self._tips) - 1
        return self.branch


def _rounds(trials: Iterable[Step]) -> tuple[list[tuple[Step, ...]], list[Step]]:
    """Trials sorted by the kept edit that they led to, and those that are left over.

    Trials of a fruitless round before a kept one belong to that one's version too, and where a round
    keeps several edits, all its other trials belong to the first of them.
    """
    rounds: list[tuple[Step, ...]] = []
    waiting: list[Step] = []
    for _, group in itertools.groupby(trials, lambda trial: trial.round):
        waiting += group
        kept = [trial for trial in waiting if trial.accepted]
        if kept:
            rounds.append(tuple(trial for trial in waiting if trial not in kept[1:]))
            rounds += [(trial,) for trial in kept[1:]]
            waiting = []
    return rounds, waiting
