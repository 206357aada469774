"""How reliable a classifier is on a labelled test set.  Imports torch only.

All figures are fractions from 0 to 1; the printed table shows per cent.  Test sets are streamed: of
each input only its predicted class and its label are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_int, check_labels, check_module, check_number
from rectify_widgets.engine.base.progress import SILENT, Cancel, Monitor, Progress
from rectify_widgets.engine.base.ranks import Ranks, check_distributed
from rectify_widgets.engine.base.tables import html_table
from rectify_widgets.engine.data.inputs import Labelled, count_inputs, labelled
from rectify_widgets.engine.model.heads import answers as answers_of
from rectify_widgets.engine.model.heads import check_truth
from rectify_widgets.engine.model.running import eval_mode, predict_all, with_head

TITLES = {
    "overall_accuracy": "overall accuracy",
    "attack_success_rate": "attack success rate",
    "corrupted_accuracy": "corrupted accuracy",
    "clean_target_rate": "clean target rate",
}
_RESAMPLES = 1000
_DRAWN = 1_000_000
"""Values drawn at once: as many resamples at a time as that allows."""


@dataclass(frozen=True)
class Report:
    """Result of `evaluate`.  A figure is None where the data for it was not given.

    Where a model tells several labels, an accuracy is the mean over samples and labels, and the target
    is a label: predicted as the target means that the label is said to be present, and inputs of other
    classes are those that do not have it.

    Attributes:
        overall_accuracy: accuracy on the clean inputs (OA).
        attack_success_rate: share of corrupted inputs predicted as the target, without those whose
            true label is the target (ASR).
        corrupted_accuracy: share of corrupted inputs that get their true label.
        clean_target_rate: share of *clean* inputs of other classes predicted as the target.  No
            repair need bring the attack success rate below this floor.
        intervals: bootstrap interval of each figure, where a confidence was asked for.
        samples: number of clean and of corrupted inputs.
        labels: accuracy of each label on the clean inputs; empty where classes exclude each other.
    """

    overall_accuracy: float
    attack_success_rate: float | None = None
    corrupted_accuracy: float | None = None
    clean_target_rate: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: tuple[int, int] = (0, 0)
    labels: tuple[float, ...] = ()

    def figures(self) -> dict[str, float]:
        """The figures that were measured, by attribute name."""
        values = {name: getattr(self, name) for name in TITLES}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        rows = [f"{TITLES[name]:<20} {text}" for name, text in self._texts().items()]
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        rows = ((escape(TITLES[name]), escape(text)) for name, text in self._texts().items())
        return html_table(rows, align="lr")

    def _texts(self) -> dict[str, str]:
        texts = {}
        for name, value in self.figures().items():
            texts[name] = f"{100 * value:6.2f} %"
            if name in self.intervals:
                low, high = self.intervals[name]
                texts[name] += f"  [{100 * low:.2f}, {100 * high:.2f}]"
        return texts


def evaluate(
    model: nn.Module,
    clean: Labelled,
    corrupted: Labelled | None = None,
    target: int | None = None,
    *,
    confidence: float | None = None,
    batch_size: int = 256,
    seed: int = 0,
    distributed: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Report:
    """Measure a classifier on clean and corrupted test inputs.

    Args:
        model: the classifier; left as it was.
        clean: inputs ``N × C × H × W`` and their ``N`` true labels (``N × L`` zeros and ones where
            the model tells several, see `adapt`), or a data set or a loader of (input, label), which
            is streamed and may be larger than memory.
        corrupted: inputs with the corruption and their *true* labels, likewise; None leaves these
            figures out.
        target: class or label that the corruption pulls to, a whole number; None leaves the attack
            success rate out.
        confidence: level of the bootstrap intervals, such as 0.95; None for none.
        batch_size: inputs in one forward pass.
        seed: of the bootstrap.
        distributed: divide the inputs among the processes of ``torch.distributed``, every one of
            which makes this call; see `rectify_widgets.engine.base.ranks`.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Raises:
        TypeError, ValueError: bad input, or no corrupted input of a class other than the target.
        Cancelled: ``cancel`` returned True.
    """
    check_module("model", model)
    check_int("batch_size", batch_size, low=1)
    _check_level(confidence, seed)
    target = check_target(target, None)
    ranks = check_distributed(distributed)
    monitor = Monitor(progress, cancel)
    sets = {"clean": clean} if corrupted is None else {"clean": clean, "corrupted": corrupted}
    with ranks.together():
        like, _ = next(labelled("clean", clean, batch_size))
        if corrupted is not None:  # refuse bad input before an hour has passed
            next(labelled("corrupted", corrupted, batch_size, like=like))
        with eval_mode(model) as module:
            headed = with_head(module, like)
            own = [
                _answers(
                    headed, argument, data, target, batch_size, like, ranks,
                    monitor.part(number / len(sets), (number + 1) / len(sets)),
                )
                for number, (argument, data) in enumerate(sets.items())
            ]  # fmt: skip
            monitor.report(1.0, "evaluated")
    outcomes = [_in_order(ranks.gather(rows)) for rows in own]
    return evaluate_predictions(
        outcomes[0], outcomes[1] if corrupted is not None else None, target,
        confidence=confidence, seed=seed,
    )  # fmt: skip


def _in_order(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and truth in the order of the inputs, from all ranks."""
    predicted, true = rows[rows[:, 0].argsort(), 1:].chunk(2, dim=1)
    return (predicted, true) if predicted.shape[1] > 1 else (predicted[:, 0], true[:, 0])


def _answers(
    model: nn.Module,
    argument: str,
    data: Labelled,
    target: int | None,
    batch_size: int,
    like: Tensor,
    ranks: Ranks,
    monitor: Monitor,
) -> Tensor:
    """Number, predictions and truth of every input of this rank, ``N × 3`` or ``N × (1 + 2 L)``."""
    rows: list[Tensor] = []
    total, done = count_inputs(data), 0
    stream = labelled(argument, data, batch_size, like=like, ranks=ranks)
    for number, (inputs, labels) in enumerate(stream):
        share = done * ranks.size / total if total else 0.0
        monitor.report(share, f"evaluating {argument} inputs")
        scores = scored(model, inputs, batch_size, monitor)
        where = f"{argument}[1]" if isinstance(data, tuple | list) else f"{argument}: its labels"
        check_truth(where, labels, scores)
        check_target(target, scores.shape[1])
        first = (number * ranks.size + ranks.rank) << 32
        order = first + torch.arange(len(labels))
        parts = order, answers_of(scores), labels.cpu()
        rows.append(torch.cat([part.reshape(len(labels), -1) for part in parts], dim=1))
        done += len(labels)
    if not rows:  # the other ranks have all the inputs
        width = answers_of(predict_all(model, like[:1])).numel()
        rows.append(torch.empty(0, 1 + 2 * width, dtype=torch.long))
    return torch.cat(rows)


def evaluate_predictions(
    clean: tuple[Tensor, Tensor],
    corrupted: tuple[Tensor, Tensor] | None = None,
    target: int | None = None,
    *,
    confidence: float | None = None,
    seed: int = 0,
) -> Report:
    """The figures of `evaluate` from predicted classes.

    Args:
        clean: the ``N`` classes predicted for the clean inputs, and their true labels; or ``N × L``
            zeros and ones for both.
        corrupted: the classes predicted for corrupted inputs, and their *true* labels.
        target, confidence, seed: as in `evaluate`.

    Raises:
        TypeError, ValueError: bad input, or no corrupted input of a class other than the target.
    """
    _check_level(confidence, seed)
    target = check_target(target, None)
    predicted, truth = _on_cpu("clean", clean)
    right = (predicted == truth).double()
    outcomes = {"overall_accuracy": _each(right)}
    if target is not None:
        outcomes["clean_target_rate"] = _pulled(predicted, truth, target)
    if corrupted is not None:
        predicted, truth = _on_cpu("corrupted", corrupted)
        outcomes["corrupted_accuracy"] = _each(predicted == truth)
        if target is not None:
            outcomes["attack_success_rate"] = _pulled(predicted, truth, target)
            if not len(outcomes["attack_success_rate"]):
                raise ValueError(
                    f"corrupted: all its labels are the target {target}, want other classes too"
                )
    # Nothing to average where all clean inputs are of the target class.
    values = {name: hits.double() for name, hits in outcomes.items() if len(hits)}
    rates: Any = {name: float(hits.mean()) for name, hits in values.items()}
    intervals = {}
    if confidence is not None:
        intervals = {
            name: bootstrap(hits, confidence=confidence, seed=seed) for name, hits in values.items()
        }
    return Report(
        **rates,
        intervals=intervals,
        samples=(len(right), 0 if corrupted is None else len(corrupted[1])),
        labels=tuple(right.mean(dim=0).tolist()) if right.ndim > 1 else (),
    )


def _each(right: Tensor) -> Tensor:
    """Each sample's accuracy, ``N``: 0 or 1, or the share of its labels."""
    return right.double().mean(dim=1) if right.ndim > 1 else right.double()


def _pulled(predicted: Tensor, truth: Tensor, target: int) -> Tensor:
    """Whether inputs that are not of the target class, or without that label, are predicted to be."""
    if truth.ndim == 1:
        return (predicted == target)[truth != target]
    check_target(target, truth.shape[1])
    return predicted[:, target].bool()[truth[:, target] == 0]


def scored(model: nn.Module, inputs: Tensor, batch_size: int, monitor: Monitor = SILENT) -> Tensor:
    """Scores on the CPU.  Infinite ones are allowed (a masked class), NaN is not."""
    scores = predict_all(model, inputs, batch_size, monitor).cpu()
    if bool(scores.isnan().any()):
        raise ValueError("model: some of its scores are NaN, want a model with finite weights")
    return scores


def check_target(target: object, classes: int | None) -> int | None:
    """``target`` if it is None or a class number (below ``classes``, where that is known)."""
    if target is None:
        return None
    if isinstance(target, Tensor) and not target.ndim and not target.is_floating_point():
        target = target.item()
    number = check_int("target", target, low=0)
    if classes is not None and number >= classes:
        raise ValueError(f"target: got {number}, want a class from 0 to {classes - 1}")
    return number


def _check_level(confidence: object, seed: object) -> None:
    check_int("seed", seed, low=0)
    if confidence is not None:
        check_number("confidence", confidence, low=0.5, high=0.9999)


def _on_cpu(argument: str, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Predicted classes and labels, on the CPU."""
    predicted, labels = data
    predicted = check_labels(f"{argument}[0]", predicted, count=len(predicted), hot=True)
    labels = check_labels(f"{argument}[1]", labels, count=len(predicted), hot=True)
    if labels.shape != predicted.shape:
        raise ValueError(
            f"{argument}[1]: got shape {tuple(labels.shape)}, want {tuple(predicted.shape)} as predicted"
        )
    if not len(labels):
        raise ValueError(f"{argument}: got no predictions, want at least one")
    return predicted.cpu(), labels.cpu()


def bootstrap(values: Tensor, *, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; 1,000 resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    means = torch.cat(
        [
            values[torch.randint(count, (len(rows), count), generator=generator)].mean(dim=1)
            for rows in torch.arange(_RESAMPLES).split(max(_DRAWN // count, 1))
        ]
    )
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means.double(), torch.tensor([tail, 1 - tail]).double())
    return float(low), float(high)
