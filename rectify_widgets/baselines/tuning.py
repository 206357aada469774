"""The one tuner that all methods share, and the frame in which each of them runs.

Imports torch and the engine.  A method names for each of its options the values to choose from, the
published default first.  The tuner starts from the defaults and searches one option (or a few that hang
together) at a time: it tries the others of its values, keeps the best, and goes on to the next.  Judged is

    accuracy on corrupted validation inputs − 2 · (loss of accuracy on clean ones),

where the corruption is that of the pairs, transplanted onto the validation inputs.  Test data are
never seen.  Layers that the corruption does not reach are passed over.  Without a validation split
the defaults are taken.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from rectify_widgets.baselines.baseline import Baseline, Trial
from rectify_widgets.baselines.latent import Followed
from rectify_widgets.baselines.task import Task, weights_are_finite
from rectify_widgets.engine.base.checks import check_choice, check_int, check_number
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.corruption import transplant
from rectify_widgets.engine.edit.closed_form import Unreached
from rectify_widgets.engine.model.running import copied, eval_mode, predict_all

PENALTY = 2.0
"""What a point of clean accuracy weighs against a point of corrupted accuracy."""

Options: TypeAlias = Mapping[str, Any]
Axes: TypeAlias = Sequence[Sequence[Options]]
"""What is searched at a time: choices of one or more options, the published default first."""
Attempt: TypeAlias = Callable[[nn.Module, Task, Options, Monitor], None]
"""Changes a copy of the model, in evaluation mode, with one choice of options."""


class Referee:
    """Scores a model on the validation split, with and without the transplanted corruption."""

    def __init__(self, task: Task, validation: tuple[Tensor, Tensor]) -> None:
        self._clean, self._labels = validation
        self._corrupted = transplant(task.own, self._clean, opacity=task.opacity, seed=task.seed)
        with eval_mode(task.model) as module:
            self._before = self._accuracy(module, self._clean)

    def score(self, model: nn.Module) -> tuple[float, float, float | None]:
        """Corrupted accuracy, clean accuracy and the score of both; None for weights like NaN."""
        with eval_mode(model) as module:
            corrupted = self._accuracy(module, self._corrupted)
            clean = self._accuracy(module, self._clean)
        if not weights_are_finite(model):
            return corrupted, clean, None
        return corrupted, clean, corrupted - PENALTY * max(self._before - clean, 0.0)

    def _accuracy(self, model: nn.Module, inputs: Tensor) -> float:
        hits = predict_all(model, inputs).argmax(dim=1) == self._labels
        return float(hits.double().mean())


def run(method: str, task: Task, axes: Axes, attempt: Attempt, monitor: Monitor) -> Baseline:
    """Tune, and hand back the model that did best.

    Raises:
        ValueError: the weights come out infinite or NaN with every choice.
        Cancelled: the ``cancel`` hook said so.
    """
    monitor.report(0.0, f"{method}: starting")
    if task.validation is None:
        options = _defaults(axes)
        model = make(task, attempt, options, monitor)
        if not weights_are_finite(model):
            raise ValueError(
                f"model: {method} makes its weights infinite or NaN with {options}; give a "
                "validation split to choose from, or smaller steps"
            )
        tried: tuple[Trial, ...] = ()
    else:
        search = _Search(method, task, axes, attempt, Referee(task, task.validation), monitor)
        model, options, tried = search.run()
    monitor.report(1.0, f"{method}: done")
    seconds = time.perf_counter() - task.began
    return Baseline(model, method, dict(options), tried, seconds)


class _Search:
    """One option at a time, from the defaults."""

    def __init__(
        self,
        method: str,
        task: Task,
        axes: Axes,
        attempt: Attempt,
        referee: Referee,
        monitor: Monitor,
    ) -> None:
        self._method, self._task, self._axes = method, task, axes
        self._attempt, self._referee, self._monitor = attempt, referee, monitor
        self._count = 1 + sum(len(values) - 1 for values in axes)
        self._started = 0
        self._tried: list[Trial] = []
        self._best: tuple[float, nn.Module, dict[str, Any]] | None = None
        self._unreached: Unreached | None = None

    def run(self) -> tuple[nn.Module, dict[str, Any], tuple[Trial, ...]]:
        """The best model, its options and the whole table."""
        held = _defaults(self._axes)
        self._try(held)
        for values in self._axes:
            if self._best is not None:
                held = self._best[2]
            for value in values[1:]:
                self._try({**held, **value})
        if self._unreached is not None and not self._tried:
            raise self._unreached
        if self._best is None:
            raise ValueError(
                f"model: {self._method} makes its weights infinite or NaN with each of "
                f"{len(self._tried)} choices of options; want smaller steps"
            )
        return self._best[1], self._best[2], tuple(self._tried)

    def _try(self, options: dict[str, Any]) -> None:
        done, self._started = self._started, self._started + 1
        part = self._monitor.part(done / self._count, (done + 1) / self._count)
        part.report(0.0, f"{self._method}: trying {done + 1} of {self._count}")
        began = time.perf_counter()
        try:
            model = make(self._task, self._attempt, options, part)
        except Unreached as reason:  # of the layers to choose from, one that has no part in it
            self._unreached = reason
            return
        seconds = time.perf_counter() - began
        corrupted, clean, score = self._referee.score(model)
        self._tried.append(Trial(dict(options), corrupted, clean, score, seconds))
        if score is not None and (self._best is None or score > self._best[0]):
            self._best = (score, model, dict(options))


def _defaults(axes: Axes) -> dict[str, Any]:
    return {name: value for values in axes for name, value in values[0].items()}


def grid(**options: Sequence[Any]) -> list[dict[str, Any]]:
    """Every choice of these options together, the first of each first."""
    return [
        dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())
    ]


def make(task: Task, attempt: Attempt, options: Options, monitor: Monitor) -> nn.Module:
    """A copy of the model, changed by one attempt."""
    model = copied(task.model)
    with eval_mode(model) as module:
        attempt(module, task, options, monitor)
    for part in model.modules():  # what was put in has the flag of what it was put behind
        if isinstance(part, Followed):
            part.training = part.layer.training
            part.then.train(part.training)
    return model


def numbers(argument: str, given: float | None, defaults: Sequence[float]) -> list[float]:
    """The values of a numeric option, 0 or more: the given one alone, or the defaults."""
    return list(defaults) if given is None else [check_number(argument, given, low=0.0)]


def counts(argument: str, given: int | None, defaults: Sequence[int]) -> list[int]:
    """The values of a count, 1 or more: the given one alone, or the defaults."""
    return list(defaults) if given is None else [check_int(argument, given, low=1)]


def names(argument: str, given: str | None, defaults: Sequence[str]) -> list[str]:
    """The values of a named choice: the given one alone, or the defaults."""
    return list(defaults) if given is None else [check_choice(argument, given, defaults)]


def generator(task: Task) -> torch.Generator:
    """The random numbers of one attempt: the same for every choice of options."""
    return torch.Generator().manual_seed(task.seed)
