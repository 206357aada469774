"""The one tuner that all methods share.  Imports torch and the engine.

A method names for each of its options the values to choose from, the published default first.  The
tuner starts from the defaults and searches one option (or a few that hang together) at a time: it
tries the others of its values, keeps the best, and goes on to the next.  The score is

    accuracy on corrupted validation inputs − 2 · (loss of accuracy on clean ones),

where the corruption is that of the pairs, transplanted onto the validation inputs.  Test data are
never seen.  Layers that the corruption does not reach are passed over.  Without a validation split
the defaults are taken.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rectify_widgets.baselines.latent import LayerWrapper
from rectify_widgets.baselines.method import Attempt, Method, Options, TuningTrial
from rectify_widgets.baselines.task import Task, accuracy
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.closed_form import Unreached
from rectify_widgets.engine.model.running import copied, eval_mode

PENALTY = 2.0
"""What a point of clean accuracy weighs against a point of corrupted accuracy."""
SCREENED = 5
"""Choices of the last axis that screening leaves."""


class Validator:
    """Scores a model on the validation split, with and without the corruption.

    Where nothing carries the corruption over, see `Problem.corruption`, the pairs are the corrupted ones.
    """

    def __init__(self, task: Task, validation: tuple[Tensor, Tensor]) -> None:
        inputs, labels = self._clean = validation
        problem = task.problem
        self._corrupted = problem.pairs.corrupted, problem.labels
        if problem.corruption is not None:
            self._corrupted = problem.corruption(inputs).to(inputs), labels
        with eval_mode(task.problem.model) as module:
            self._before = accuracy(module, self._clean)

    def score(self, model: nn.Module) -> tuple[float, float, float | None]:
        """Corrupted accuracy, clean accuracy and the score of both; None for weights like NaN."""
        with eval_mode(model) as module:
            corrupted, clean = accuracy(module, self._corrupted), accuracy(module, self._clean)
        if not _is_finite(model):
            return corrupted, clean, None
        return corrupted, clean, corrupted - PENALTY * max(self._before - clean, 0.0)


def tune(
    method: Method, task: Task, given: Options, monitor: Monitor
) -> tuple[nn.Module, Options, tuple[TuningTrial, ...]]:
    """The changed copy that did best, its options, and every choice that was tried.

    Raises:
        TypeError, ValueError: an option that is given and is none of the method's values; weights
            that come out infinite or NaN with every choice.
        Unreached: the corruption reaches none of the layers to choose from.
        Cancelled: the ``cancel`` hook answered True.
    """
    monitor.report(0.0, f"{method.name}: starting")
    axes = [
        grid({
            name: option.values(task)
            if given.get(name) is None
            else [option.check(task, name, given[name])]
            for name, option in axis.items()
        })
        for axis in method.axes
    ]  # fmt: skip
    trials: list[TuningTrial] = []
    if task.validation is None:
        options = _defaults(axes)
        model = changed_copy(method.attempt, task, options, monitor)
        if not _is_finite(model):
            raise ValueError(
                f"model: {method.name} makes its weights infinite or NaN with {options}; give a "
                "validation split to choose from, or smaller steps"
            )
    else:
        validator, search = Validator(task, task.validation), monitor
        if method.screen is not None:
            search = monitor.part(0.2, 1.0)
            axes[-1] = screened(method.screen, task, axes[-1], validator, monitor.part(0.0, 0.2))
        model, options = _search(method, task, axes, validator, trials, search)
    monitor.report(1.0, f"{method.name}: done")
    return model, options, tuple(trials)


def screened(
    attempt: Attempt, task: Task, choices: list[Options], validator: Validator, monitor: Monitor
) -> list[Options]:
    """Up to five of the choices: the first, then those with which a cheap attempt does best.

    Methods that train at a layer cannot try all layers.  Projecting the corruption's direction out
    of a layer costs no training and shows on the validation split how much of the corruption, and of
    other features, lies along it.
    """
    if len(choices) <= SCREENED:
        return choices
    scores: list[float] = []
    for number, options in enumerate(choices):
        monitor.report(number / len(choices), f"screening {number + 1} of {len(choices)}")
        try:
            score = validator.score(changed_copy(attempt, task, options, monitor))[2]
        except Unreached:
            score = None
        scores.append(float("-inf") if score is None else score)
    best = sorted(range(1, len(choices)), key=lambda row: -scores[row])
    return [choices[row] for row in (0, *best[: SCREENED - 1])]


def _search(
    method: Method,
    task: Task,
    axes: Sequence[Sequence[Options]],
    validator: Validator,
    trials: list[TuningTrial],
    monitor: Monitor,
) -> tuple[nn.Module, Options]:
    """One axis at a time, from the defaults; fills in ``trials``."""
    total = 1 + sum(len(axis) - 1 for axis in axes)
    best: tuple[float, nn.Module, Options] | None = None
    unreached: Unreached | None = None
    started = 0
    for row, axis in enumerate(axes):
        held = _defaults(axes) if best is None else best[2]
        for choice in axis[1 if row else 0 :]:  # the first of each is among what is held
            options = {**held, **choice}
            part = monitor.part(started / total, (started + 1) / total)
            started += 1
            part.report(0.0, f"{method.name}: trying {started} of {total}")
            began = time.perf_counter()
            try:
                model = changed_copy(method.attempt, task, options, part)
            except Unreached as reason:  # one of several layers, perhaps
                unreached = reason
                continue
            seconds = time.perf_counter() - began
            corrupted, clean, score = validator.score(model)
            trials.append(TuningTrial(options, corrupted, clean, score, seconds))
            if score is not None and (best is None or score > best[0]):
                best = score, model, options
    if unreached is not None and not trials:
        raise unreached
    if best is None:
        raise ValueError(
            f"model: {method.name} makes its weights infinite or NaN with each of {len(trials)} "
            "choices of options; want smaller steps"
        )
    return best[1], best[2]


def _defaults(axes: Sequence[Sequence[Options]]) -> Options:
    return {name: value for axis in axes for name, value in axis[0].items()}


def grid(values: Mapping[str, Sequence[Any]]) -> list[Options]:
    """Every choice of these options together, the first of each first."""
    return [
        dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values())
    ]


def changed_copy(attempt: Attempt, task: Task, options: Options, monitor: Monitor) -> nn.Module:
    """A copy of the model, changed by one attempt."""
    model = copied(task.problem.model)
    training = {name: part.training for name, part in model.named_modules()}
    with eval_mode(model) as module:
        attempt(module, task, options, monitor)
    for name, part in model.named_modules():
        part.training = training.get(name, part.training)  # a new layer's: that of the old one
        if isinstance(part, LayerWrapper):  # a module behind a layer has the layer's flag
            part.training = part.layer.training
            part.then.train(part.training)
    return model


def _is_finite(model: nn.Module) -> bool:
    """Whether every parameter and buffer is finite."""
    tensors = (*model.parameters(), *model.buffers())
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
