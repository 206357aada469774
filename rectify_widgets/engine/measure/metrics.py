"""How reliable a classifier is on a labelled test set.  Imports torch only.

All figures are fractions from 0 to 1; the printed table shows per cent.  Test sets are streamed: of
each input only its predicted class and its label are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rectify_widgets.engine.base.checks import (
    check_int,
    check_labels,
    check_module,
    check_number,
    check_type,
)
from rectify_widgets.engine.base.progress import SILENT, Cancel, Monitor, Progress
from rectify_widgets.engine.base.ranks import Ranks, check_distributed
from rectify_widgets.engine.base.tables import html_table
from rectify_widgets.engine.data.inputs import Labelled, count_inputs, labelled
from rectify_widgets.engine.measure.groups import GroupTable, check_groups, group_table
from rectify_widgets.engine.measure.intervals import interval
from rectify_widgets.engine.model.heads import answers as answers_of
from rectify_widgets.engine.model.heads import check_truth
from rectify_widgets.engine.model.running import MOST, eval_mode, predict_all, with_head

TITLES = {
    "overall_accuracy": "overall accuracy",
    "attack_success_rate": "attack success rate",
    "corrupted_accuracy": "corrupted accuracy",
    "clean_target_rate": "clean target rate",
}


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
        intervals: interval of each figure, where a confidence was asked for; see `evaluate`.
        samples: number of clean and of corrupted inputs.
        labels: accuracy of each label on the clean inputs; empty where classes exclude each other.
        groups: accuracy of each (label, group) of the clean inputs, where groups were given.
        by_label: accuracy of each label of the clean inputs, with Wilson intervals.

    Example:
        >>> report = rw.evaluate(model, (x, y), (x_bad, y), target=0)
        >>> report.overall_accuracy, report.attack_success_rate
        (1.0, 1.0)
    """

    overall_accuracy: float
    attack_success_rate: float | None = None
    corrupted_accuracy: float | None = None
    clean_target_rate: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: tuple[int, int] = (0, 0)
    labels: tuple[float, ...] = ()
    groups: GroupTable | None = None
    by_label: GroupTable | None = field(default=None, compare=False, repr=False)

    def figures(self) -> dict[str, float]:
        """The figures that were measured, by attribute name."""
        values = {name: getattr(self, name) for name in TITLES}
        return {name: value for name, value in values.items() if value is not None}

    def beside(self, before: Report) -> Report:
        """The same, with labels and groups of another model's report on these inputs beside its own.

        Raises:
            ValueError: that report has other groups, or other inputs in them.
        """
        tables = {
            name: mine.against(theirs)
            for name in ("groups", "by_label")
            if (mine := getattr(self, name)) and (theirs := getattr(before, name))
        }
        return replace(self, **tables)

    def __str__(self) -> str:
        rows = [f"{TITLES[name]:<20} {text}" for name, text in self._texts().items()]
        return "\n".join(rows if self.groups is None else [*rows, "", str(self.groups)])

    def _repr_html_(self) -> str:
        rows = ((escape(TITLES[name]), escape(text)) for name, text in self._texts().items())
        groups = "" if self.groups is None else self.groups._repr_html_()
        return html_table(rows, align="lr") + groups

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
    groups: object = None,
    before: Report | None = None,
    confidence: float | None = None,
    batch_size: int | None = None,
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
        groups: which group each clean input belongs to: ``N`` hashable values (a list, a tensor, an
            array or a pandas ``Series``) in the order in which the inputs come, or a dict or a frame
            of such, for several attributes.  The report then has the accuracy of each (label, group),
            with Wilson intervals.
        before: report of the model before its edits, on the same inputs with the same groups; its
            figures stand beside those of this one, and a group that loses more than a point is named.
        confidence: level of the intervals, such as 0.95; None for none (0.95 for groups).  They are
            Wilson's; the accuracy of inputs with several labels has a bootstrap interval.
        batch_size: inputs in one forward pass; None takes what suits their size, 256 at most.
        seed: of the bootstrap.
        distributed: divide the inputs among the processes of ``torch.distributed``, every one of
            which makes this call; see `rectify_widgets.engine.base.ranks`.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Raises:
        TypeError, ValueError: bad input, or no corrupted input of a class other than the target.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> print(rw.evaluate(result.model, (x, y), (x_bad, y), target=0))
        overall accuracy     100.00 %
        attack success rate    0.00 %
        corrupted accuracy   100.00 %
        clean target rate      0.00 %
    """
    check_module("model", model)
    if batch_size is not None:
        check_int("batch_size", batch_size, low=1)
    _check_level(confidence, seed)
    _check_before(before, groups)
    check_groups(groups, None if _streamed(clean) else count_inputs(clean))
    target = check_target(target, None)
    ranks = check_distributed(distributed)
    monitor = Monitor(progress, cancel)
    sets = {"clean": clean} if corrupted is None else {"clean": clean, "corrupted": corrupted}
    with ranks.together():
        like, _ = next(labelled("clean", clean, batch_size or MOST))
        if corrupted is not None:  # refuse bad input before an hour has passed
            next(labelled("corrupted", corrupted, batch_size or MOST, like=like))
        with eval_mode(model, "clean") as module:
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
        groups=groups, before=before, confidence=confidence, seed=seed,
    )  # fmt: skip


def _streamed(clean: object) -> bool:
    """Whether the number of inputs is known after the last one only: a loader may leave some out."""
    return isinstance(clean, DataLoader)


def _in_order(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and truth in the order of the inputs, from all ranks."""
    predicted, true = rows[rows[:, 0].argsort(), 1:].chunk(2, dim=1)
    return (predicted, true) if predicted.shape[1] > 1 else (predicted[:, 0], true[:, 0])


def _answers(
    model: nn.Module,
    argument: str,
    data: Labelled,
    target: int | None,
    batch_size: int | None,
    like: Tensor,
    ranks: Ranks,
    monitor: Monitor,
) -> Tensor:
    """Number, predictions and truth of every input of this rank, ``N × 3`` or ``N × (1 + 2 L)``."""
    rows: list[Tensor] = []
    total, done = count_inputs(data), 0
    stream = labelled(argument, data, batch_size or MOST, like=like, ranks=ranks)
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
    groups: object = None,
    before: Report | None = None,
    confidence: float | None = None,
    seed: int = 0,
) -> Report:
    """The figures of `evaluate` from predicted classes.

    Args:
        clean: the ``N`` classes predicted for the clean inputs, and their true labels; or ``N × L``
            zeros and ones for both.
        corrupted: the classes predicted for corrupted inputs, and their *true* labels.
        target, groups, before, confidence, seed: as in `evaluate`.

    Raises:
        TypeError, ValueError: bad input, or no corrupted input of a class other than the target.
    """
    _check_level(confidence, seed)
    _check_before(before, groups)
    target = check_target(target, None)
    predicted, truth = _on_cpu("clean", clean)
    right = (predicted == truth).double()
    named, level = check_groups(groups, len(right)), confidence or 0.95
    table = None if named is None else group_table(right, truth, named, level)
    by_label = group_table(right, truth, {"": [None] * len(right)}, level)
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
            name: interval(hits, confidence=confidence, seed=seed) for name, hits in values.items()
        }
    report = Report(
        **rates,
        intervals=intervals,
        samples=(len(right), 0 if corrupted is None else len(corrupted[1])),
        labels=tuple(right.mean(dim=0).tolist()) if right.ndim > 1 else (),
        groups=table,
        by_label=by_label,
    )
    return report if before is None else report.beside(before)


def _check_before(before: object, groups: object) -> None:
    if before is None:
        return
    report = check_type("before", before, Report, "a Report of evaluate(..., groups=...)")
    if groups is None or report.groups is None:
        whose = "this call" if groups is None else "it"
        raise ValueError(f"before: {whose} has no groups, want groups=... in both calls")


def _each(right: Tensor) -> Tensor:
    """Each sample's accuracy, ``N``: 0 or 1, or the share of its labels."""
    return right.double().mean(dim=1) if right.ndim > 1 else right.double()


def _pulled(predicted: Tensor, truth: Tensor, target: int) -> Tensor:
    """Whether inputs that are not of the target class, or without that label, are predicted to be."""
    if truth.ndim == 1:
        return (predicted == target)[truth != target]
    check_target(target, truth.shape[1])
    return predicted[:, target].bool()[truth[:, target] == 0]


def scored(
    model: nn.Module, inputs: Tensor, batch_size: int | None, monitor: Monitor = SILENT
) -> Tensor:
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
