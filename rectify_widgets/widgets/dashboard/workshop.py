"""What the dashboard's buttons have done in the background.  Imports the engine and `actions`.

A `Workshop` knows the model as given and what it is repaired from.  Each of its methods is the work
of one job: it takes the job's hooks, calls the engine, and returns what the widget shows.  None of
them touches a widget or changes the model: they work on copies of it, so that maps of any version
can be drawn meanwhile (see `session`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.measure.judge import Verdict
from rectify_widgets.engine.model.running import copied
from rectify_widgets.engine.repair.measuring import EditMeasure
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification, Step
from rectify_widgets.engine.repair.solving import solve_edit
from rectify_widgets.widgets import actions
from rectify_widgets.widgets.dashboard.recipe import BY_HAND
from rectify_widgets.widgets.session import Job


@dataclass(frozen=True, eq=False)
class Revision:
    """New edits of some version of a model.

    Attributes:
        edits: in order.
        model: a copy with all edits up to the last of them.
        earlier: what was measured of the model as given and after each edit up to the version that
            they start from, on the same scale.
        verdicts: what was measured after each edit; None where the trials say it.
    """

    edits: tuple[RankOneEdit, ...]
    model: nn.Module
    earlier: tuple[Verdict, ...]
    verdicts: tuple[Verdict, ...] | None

    @property
    def start(self) -> Verdict:
        """What was measured of the version that the edits start from."""
        return self.earlier[-1]


@dataclass(eq=False)
class Workshop:
    """A model as given, which is never changed, and what `rectify` is to repair it from."""

    model: nn.Module
    pairs: SamplePairs
    reference: Any
    seed: int
    validation: tuple[Tensor, Tensor] | None
    _flagged: Tensor | None = None
    _measure: EditMeasure | None = None
    _verdicts: dict[tuple[int, ...], Verdict] = field(default_factory=dict)

    def edited(self, edits: Sequence[RankOneEdit]) -> nn.Module:
        """A copy of the unwrapped model with these edits; it shares nothing with it."""
        model = copied(self.model)
        for edit in edits:
            edit.apply(model)
        return model

    def locate(
        self,
        job: Job[Any],
        edits: Sequence[RankOneEdit],
        method: str,
        *,
        memory_limit: int | None = None,
        stop: float = 1.0,
    ) -> Localization:
        """Score every layer of the model with these edits, up to ``stop`` of the job's progress."""
        return actions.locate(
            job, self.edited(edits), self.pairs, span=(0.0, stop), reference=self.reference,
            method=method, memory_limit=memory_limit, seed=self.seed,
        )  # fmt: skip

    def edit(self, job: Job[Any], edits: Sequence[RankOneEdit], layer: str | None) -> Revision:
        """Solve the edit of one layer, whatever it costs, and measure it."""
        edit = solve_edit(
            self.edited(edits), self.pairs, layer=layer, reference=self.reference,
            progress=job.part(0.0, 0.8), cancel=job.cancelled,
        )  # fmt: skip
        job.check()
        return self._measured(job, edits, (edit,))

    def rectify(
        self,
        job: Job[Any],
        edits: Sequence[RankOneEdit],
        options: RectifyOptions,
        *,
        checkpoint: str | None = None,
        start: float = 0,
    ) -> tuple[Revision, Rectification]:
        """Edit the model with these edits further, from ``start`` of the job's progress.

        A rectification that was cancelled gives the edits that it had kept.  The checkpoint is for
        a run that is killed, so that it is removed at the end.
        """
        result = rectify(
            self.edited(edits), self.pairs, reference=self.reference, validation=self.validation,
            progress=job.part(start, 0.95 + 0.05 * start), cancel=job.cancelled,
            checkpoint=checkpoint, **asdict(options),
        )  # fmt: skip
        if checkpoint is not None:
            Path(checkpoint).unlink(missing_ok=True)
        if len(result.flagged) or not edits:
            self._exclude(result.flagged)
        if not edits:  # measured already, on the same references
            given = Verdict(result.gap_before, 0.0, 0.0, 0.0)
            return Revision(tuple(result.edits), result.model, (given,), None), result
        return self._measured(job, edits, tuple(result.edits)), result

    def measure(self, edits: Sequence[RankOneEdit], job: Job[Any] | None = None) -> list[Verdict]:
        """Gap and degradation of the model as given and after each of these edits.

        Short jobs have their turn in between; nothing is cancelled, since the edits are there.
        """
        cancel = None if job is None else lambda: job.cancelled() and False
        if self._measure is None:
            self._measure = EditMeasure(
                self.model, self.pairs, self.reference, seed=self.seed, exclude=self._flagged,
                validation=self.validation, cancel=cancel,
            )  # fmt: skip
        verdicts = []
        for count in range(len(edits) + 1):
            known = tuple(map(id, edits[:count]))
            if known not in self._verdicts:
                model = self.edited(edits[:count])
                self._verdicts[known] = self._measure.measure(model, cancel=cancel)
            verdicts.append(self._verdicts[known])
        return verdicts

    def repaired(
        self,
        job: Job[Any],
        edits: Sequence[RankOneEdit],
        outcome: Rectification | None,
        trials: Sequence[Step],
    ) -> Rectification:
        """These edits as one result, on a copy of the model that nothing else uses.

        Args:
            job: is under way.
            edits: in order.
            outcome: of the one rectification that made them, or None if they come of several calls.
            trials: all of these calls.
        """
        model = self.edited(edits)
        if outcome is not None:
            return replace(outcome, model=model)
        verdicts = self.measure(edits, job)
        job.check()
        flagged = torch.empty(0, dtype=torch.int64) if self._flagged is None else self._flagged
        return Rectification(
            model, list(edits), list(trials), BY_HAND, BY_HAND,
            verdicts[0].gap, verdicts[-1].gap, verdicts[-1].degradation, flagged,
        )  # fmt: skip

    def forget(self) -> None:
        """Let go of the references that are measured on."""
        self._measure = self.reference = None
        self._verdicts.clear()

    def _measured(
        self, job: Job[Any], before: Sequence[RankOneEdit], edits: tuple[RankOneEdit, ...]
    ) -> Revision:
        job.progress(job.fraction, "measuring the edits")
        every = (*before, *edits)
        verdicts = self.measure(every, job)
        start = len(before) + 1
        return Revision(edits, self.edited(every), tuple(verdicts[:start]), tuple(verdicts[start:]))

    def _exclude(self, flagged: Tensor) -> None:
        """Leave these references out of every measurement from now on."""
        if self._flagged is None or not torch.equal(self._flagged, flagged):
            self._flagged, self._measure = flagged, None
            self._verdicts.clear()
