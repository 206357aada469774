"""What is left of a behaviour in an edited model, and what the edits cost.  Imports torch only.

Measured against the *original* model's predictions on references without the corruption, so that no
label is needed:

- *gap*: mean total variation distance between the class probabilities on references with the
  corruption and the original's probabilities without it (0: the corruption changes nothing); of
  several labels, each reference counts by the one that changes most;
- *disturbance*: the same distance on references without the corruption;
- *degradation*: expected loss of accuracy on references without the corruption.  Where a prediction
  flips from ``a`` to ``b``, the original model's own probabilities say what that costs,
  ``p(a) − p(b)``: next to nothing on the boundary, a whole error where it was sure.  Networks are
  too sure, so that these may be averages over slightly shifted inputs, see `steady_probabilities`.
  With labelled validation data it is the measured loss of accuracy instead;
- *worst class*: the same degradation within the class that suffers most.

Where a model tells several labels, disturbance and degradation are those of the label for which they
are greatest, and the classes are the absence and the presence of each label.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.measure.replay import ROOM, Replay
from rectify_widgets.engine.model.heads import (
    answers,
    chosen,
    groups,
    most,
    probabilities,
    variation,
    worst_mean,
)
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import batched, predict_all

WEIGHT = 2.0
"""Weight of a point of disturbance relative to a point of gap."""
CLASS_FACTOR = 5.0
"""The worst class may lose this many times the budget of the mean."""
CLASS_SIZE = 10
"""Classes with fewer references are too small to judge by themselves."""
STEP = 28
"""Images are shifted by one pixel for each so many of their side."""


@dataclass(frozen=True)
class Verdict:
    """What a `Judge` measured; all numbers are fractions, except the number of a class.

    Where it was broken off, ``disturbance`` is what was measured till then, and the rest is NaN.
    """

    gap: float
    disturbance: float
    degradation: float
    worst_class: float
    sufferer: int | None = None

    @property
    def finished(self) -> bool:
        """Whether all of it was measured."""
        return not math.isnan(self.degradation)

    @property
    def objective(self) -> float:
        """Gap plus weighted disturbance: what the loop minimises."""
        return self.gap + WEIGHT * self.disturbance

    def within(self, budget: float) -> bool:
        """Whether the degradation, of the mean and of the worst class, is within the budget."""
        return self.degradation <= budget and self.worst_class <= CLASS_FACTOR * budget


class Judge:
    """Measures a model on fixed references.

    Args:
        model: the original model.
        references: ``M × C × H × W`` without the corruption.
        carriers, origins: inputs with the corruption, and the same without it.
        validation: labelled inputs on which degradation is measured instead, or None.
        monitor: checked between batches.
        room: bytes that `sharing` may keep for each kind of inputs.
        scores: of the original model on references and origins, where they are known.
        steady: whether the cost of a flip is taken from `steady_probabilities`.
    """

    def __init__(
        self,
        model: nn.Module,
        references: Tensor,
        carriers: Tensor,
        origins: Tensor,
        validation: tuple[Tensor, Tensor] | None = None,
        monitor: Monitor = SILENT,
        *,
        room: int = ROOM,
        scores: tuple[Tensor, Tensor] | None = None,
        steady: bool = False,
    ) -> None:
        self._room = min(room, ROOM)
        self._inputs = {"corrupted": carriers, "clean": references}
        self._replay: Replay | None = None
        if scores is None:
            plain = predict_all(model, references, monitor=monitor)
            same = origins is references
            scores = plain, plain if same else predict_all(model, origins, monitor=monitor)
        self._original, self._wanted = map(probabilities, scores)
        self._steady = self._original
        if steady and validation is None:
            self._steady = steady_probabilities(model, references, scores[0], monitor)
        self._answers = answers(scores[0])
        self._validation = validation
        if validation is None:
            self._groups, self._start = self._answers, torch.zeros_like(self._answers).float()
        else:
            inputs, labels = validation
            self._inputs["validation"] = inputs
            self._groups = labels
            given = answers(predict_all(model, inputs, monitor=monitor))
            self._start = -(given == labels).float()

    @property
    def inputs(self) -> int:
        """How many go through the model for one measurement."""
        return sum(map(len, self._inputs.values()))

    @contextmanager
    def sharing(
        self, model: nn.Module, layers: Sequence[EditableLayer], monitor: Monitor
    ) -> Iterator[None]:
        """Measure edits of these layers, one at a time, without running what comes before them.

        Within the block only the edited layer may differ from the model as it is now.
        """
        try:
            self._replay = Replay(model, self._inputs, layers, room=self._room, monitor=monitor)
            yield
        finally:
            self._replay = None

    def measure(
        self, model: nn.Module, monitor: Monitor = SILENT, edited: str | None = None
    ) -> Verdict:
        """Measure ``model``; reports to the monitor and checks it between batches.

        ``edited`` names the layer that is being tried, where work is shared.
        """
        monitor.report(0.0, "measuring the gap")
        gap = self.gap(model, monitor, edited)
        monitor.report(0.5, "measuring the degradation")
        return self._finish(model, gap, monitor, edited)

    def measure_below(
        self,
        model: nn.Module,
        bar: float,
        monitor: Monitor = SILENT,
        edited: str | None = None,
        most: float = math.inf,
    ) -> Verdict | None:
        """Measure ``model``; None where its gap alone is already ``bar`` or more.

        It is broken off where the objective is ``most`` or more whatever is still to come.
        """
        gap = self.gap(model, monitor, edited, bar)
        return None if gap >= bar else self._finish(model, gap, monitor, edited, most)

    def original(self, carriers: Tensor) -> Verdict:
        """The verdict on the original model, from its scores of the inputs with the corruption."""
        return Verdict(_finite(self._gap(carriers, slice(None))), 0.0, 0.0, 0.0)

    def gap(
        self,
        model: nn.Module,
        monitor: Monitor = SILENT,
        edited: str | None = None,
        bar: float = math.inf,
    ) -> float:
        """The gap alone, see `measure`; a number from ``bar`` on where it is at least as large."""
        done, gap = 0, 0.0
        for scores in self._batches(model, "corrupted", monitor, edited):
            gap += self._gap(scores, slice(done, done := done + len(scores)))
            if gap >= bar:  # what the rest adds is not negative
                break
        return _finite(gap)

    def _gap(self, scores: Tensor, rows: slice) -> float:
        """What some of the inputs with the corruption add to the gap."""
        apart = most(variation(probabilities(scores), self._wanted[rows]))
        return float(apart.double().sum()) / len(self._wanted)

    def _batches(
        self, model: nn.Module, kind: str, monitor: Monitor, edited: str | None
    ) -> Iterator[Tensor]:
        if edited is not None and self._replay is not None:
            return self._replay.batches(model, kind, edited, monitor)
        return batched(model, self._inputs[kind], monitor=monitor)

    def _finish(
        self,
        model: nn.Module,
        gap: float,
        monitor: Monitor,
        edited: str | None,
        most: float = math.inf,
    ) -> Verdict:
        parts: list[Tensor] = []
        done, disturbed = 0, torch.zeros(())
        for scores in self._batches(model, "clean", monitor, edited):
            parts.append(scores)
            own = self._original[done : (done := done + len(scores))]
            disturbed = disturbed + variation(probabilities(scores), own).double().sum(dim=0)
            disturbance = float(disturbed.max()) / len(self._original)
            if done < len(self._original) and gap + WEIGHT * disturbance >= most:
                return Verdict(gap, disturbance, math.nan, math.nan)
        losses = self._losses(model, torch.cat(parts), monitor, edited) - self._start
        worst, sufferer = self._worst(losses)
        return Verdict(gap, _finite(disturbance), worst_mean(losses), worst, sufferer)

    def _losses(
        self, model: nn.Module, scores: Tensor, monitor: Monitor, edited: str | None
    ) -> Tensor:
        """Cost of each sample's current prediction; to be compared with that at the start."""
        if self._validation is not None:
            given = answers(torch.cat([*self._batches(model, "validation", monitor, edited)]))
            return -(given == self._validation[1]).float()
        return chosen(self._steady, self._answers) - chosen(self._steady, answers(scores))

    def _worst(self, losses: Tensor) -> tuple[float, int | None]:
        """Loss of the class or label that suffers most, and its number (None if none loses)."""
        worst, sufferer = 0.0, None
        for number, group in groups(self._groups):
            members = losses[group] if losses.ndim == 1 else losses[group, number]
            if len(members) >= CLASS_SIZE:
                # One flip in a small class is chance, not a trend: the costliest is left out.
                rest = members.sum() - members.max().clamp_min(0)
                share = float(rest / len(members))
                if share > worst:
                    worst, sufferer = share, number
        return worst, sufferer


def steady_probabilities(
    model: nn.Module, images: Tensor, scores: Tensor, monitor: Monitor = SILENT
) -> Tensor:
    """Class probabilities, the mean over images as they are and shifted a little to each of four sides.

    They are better calibrated than those of the images alone (test-time augmentation; Ashukha et al.
    2020, "Pitfalls of In-Domain Uncertainty Estimation", ICLR).  ``scores`` are those of the images as
    they are; these alone count where images are smaller than `STEP`, or no images.
    """
    steps = [size // STEP for size in images.shape[2:]]
    moves = [
        (sign * step, axis)
        for axis, step in enumerate(steps, start=2)
        for sign in (-1, 1)
        if step and len(steps) == 2
    ]
    shifted = (predict_all(model, images.roll(*move), monitor=monitor) for move in moves)
    return torch.stack([probabilities(one) for one in (scores, *shifted)]).mean(dim=0)


def _finite(distance: float) -> float:
    """A mean distance; 1 where it is not finite."""
    return distance if math.isfinite(distance) else 1.0
