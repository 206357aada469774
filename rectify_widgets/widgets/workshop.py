"""What the dashboard's buttons have done in the background.  Imports the engine and the jobs.

A `Workshop` knows the model as given and what it is repaired from.  Each of its methods is the work
of one job: it takes the job's hooks, calls the engine, and returns what the widget shows.  None of
them touches a widget or changes the model: they work on copies of it, so that maps of any version
can be drawn meanwhile (see `session`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from rectify_widgets.engine.editability import Localization
from rectify_widgets.engine.editing import RankOneEdit
from rectify_widgets.engine.history import Rectification
from rectify_widgets.engine.inspection import unwrap
from rectify_widgets.engine.localization import localize
from rectify_widgets.engine.pairs import SamplePairs
from rectify_widgets.engine.rectification import rectify
from rectify_widgets.engine.solving import solve_edit
from rectify_widgets.engine.yardstick import Yardstick
from rectify_widgets.widgets.jobs import Job

Figures: TypeAlias = tuple[float, float]
"""Gap and degradation, fractions."""


@dataclass(frozen=True, eq=False)
class Made:
    """Edits that were made from some version of a model.

    Attributes:
        edits: in order.
        start: figures of the version that they were made from.
        figures: those after each edit.
        given: figures of the model as given.
    """

    edits: tuple[RankOneEdit, ...]
    start: Figures
    figures: tuple[Figures, ...]
    given: Figures


class Workshop:
    """A model, and what it is repaired from.

    Args:
        model: as given; never changed.
        pairs, reference, seed, validation: of `rectify_widgets.rectify`.
    """

    def __init__(
        self,
        model: nn.Module,
        pairs: SamplePairs,
        reference: Any,
        seed: int,
        validation: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._model = model
        self._pairs, self._reference = pairs, reference
        self._seed, self._validation = seed, validation
        self._flagged: Tensor | None = None
        self._yardstick: Yardstick | None = None

    def edited(self, edits: Sequence[RankOneEdit]) -> nn.Module:
        """A copy of the unwrapped model with these edits; it shares nothing with it."""
        model = copied(self._model)
        for edit in edits:
            edit.apply(model)
        return model

    def locate(
        self,
        job: Job[Any],
        edits: Sequence[RankOneEdit],
        method: str,
        *,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> Localization:
        """Score every layer of the model with these edits.

        ``span`` is the slice of the job's progress that it takes.
        """
        return locate(
            job,
            self.edited(edits),
            self._pairs,
            span=span,
            reference=self._reference,
            method=method,
            seed=self._seed,
        )

    def edit(
        self, job: Job[Any], edits: Sequence[RankOneEdit], layer: str | None
    ) -> Made:
        """Solve the edit of one layer, whatever it costs, and measure it."""
        model = self.edited(edits)
        edit = solve_edit(
            model,
            self._pairs,
            layer=layer,
            reference=self._reference,
            progress=job.part(0.0, 0.8),
            cancel=job.cancelled,
        )
        job.check()
        return self._measured(job, edits, (edit,))

    def rectify(
        self,
        job: Job[Any],
        edits: Sequence[RankOneEdit],
        *,
        span: tuple[float, float] = (0.0, 1.0),
        **options: Any,
    ) -> tuple[Made, Rectification]:
        """Edit the model with these edits further, until the target is reached.

        A rectification that was cancelled gives the edits that it had kept.
        """
        start, stop = span
        late = stop - 0.05 * (stop - start)
        result = rectify(
            self.edited(edits),
            self._pairs,
            reference=self._reference,
            seed=self._seed,
            validation=self._validation,
            progress=job.part(start, late),
            cancel=job.cancelled,
            **options,
        )
        if not edits:  # measured already, on the same references
            self._look_again(result.flagged)
            kept = [step for step in result.steps if step.accepted]
            figures = tuple((step.gap_after or 0.0, step.degradation_after or 0.0) for step in kept)
            given = (result.gap_before, 0.0)
            return Made(tuple(result.edits), given, figures, given), result
        if len(result.flagged):
            self._look_again(result.flagged)
        return self._measured(job, edits, tuple(result.edits)), result

    def measure(self, versions: Sequence[Sequence[RankOneEdit]]) -> list[Figures]:
        """Gap and degradation of the model with each of these lists of edits."""
        if self._yardstick is None:
            self._yardstick = Yardstick(
                self._model,
                self._pairs,
                self._reference,
                seed=self._seed,
                exclude=self._flagged,
                validation=self._validation,
            )
        verdicts = [self._yardstick.measure(self.edited(edits)) for edits in versions]
        return [(verdict.gap, verdict.degradation) for verdict in verdicts]

    def _measured(
        self, job: Job[Any], before: Sequence[RankOneEdit], made: tuple[RankOneEdit, ...]
    ) -> Made:
        job.progress(job.fraction, "measuring the edits")
        stages = [(*before, *made[:count]) for count in range(len(made) + 1)]
        given, start, *figures = self.measure([(), *stages])
        return Made(made, start, tuple(figures), given)

    def _look_again(self, flagged: Tensor) -> None:
        """Leave these references out of every measurement from now on."""
        if self._flagged is None or not torch.equal(self._flagged, flagged):
            self._flagged, self._yardstick = flagged, None


def locate(
    job: Job[Any],
    model: nn.Module,
    pairs: SamplePairs,
    *,
    span: tuple[float, float] = (0.0, 1.0),
    **options: Any,
) -> Localization:
    """Score every layer; ``span`` is the slice of the job's progress that it takes."""
    return localize(model, pairs, progress=job.part(*span), cancel=job.cancelled, **options)


def copied(model: nn.Module) -> nn.Module:
    """A copy of the unwrapped model that shares nothing with it."""
    try:
        with torch.inference_mode(mode=False):  # what is made inside it cannot be edited
            return copy.deepcopy(unwrap(model))
    except Exception as error:
        raise ValueError(
            f"model: it cannot be copied ({type(error).__name__}: {error}); detach tensors kept as "
            "attributes, or give modules that hold locks or files a __deepcopy__"
        ) from error


def join(first: SamplePairs, second: SamplePairs) -> SamplePairs:
    """Pairs followed by further pairs of the same sample shape."""
    if first.clean.shape[1:] != second.clean.shape[1:]:
        raise ValueError(
            f"examples: got samples of shape {tuple(second.clean.shape[1:])}, want "
            f"{tuple(first.clean.shape[1:])} as in pairs"
        )
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = torch.cat([first.labels, second.labels.to(first.labels)])
    return SamplePairs(
        torch.cat([first.corrupted, second.corrupted.to(first.corrupted)]),
        torch.cat([first.clean, second.clean.to(first.clean)]),
        labels,
    )
