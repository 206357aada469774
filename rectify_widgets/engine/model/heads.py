"""Heads: what the numbers of a model's answer mean, and predictions on one form of them.  Imports torch only.

The engine works on *scores* whose softmax over the last dimension is a distribution:

- ``N × C``, one decision among ``C`` classes;
- ``N × L × 2``, ``L`` decisions: each label is absent (0) or present (1), independently of the others.

`Head` brings an answer into that form, and the functions below read it, so that nothing else
has to know which head a model has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rectify_widgets.engine.base.checks import check_hot, check_labels

TASKS = ("multiclass", "binary", "multilabel")
SCORES = ("logits", "probabilities")
SUMS_TO_ONE = 1e-3
"""Rows of probabilities add up to one within this, in half precision within ten times as much."""
MASK = 200.0
"""A class that is masked with −∞ gets a score so far below the least finite one of its row."""


@dataclass(frozen=True)
class Head:
    """How to read a model's answer.

    Attributes:
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        scores: ``"logits"`` or ``"probabilities"``.
    """

    task: str = "multiclass"
    scores: str = "logits"

    def read(self, answer: Tensor) -> Tensor:
        """Scores in the engine's form; gradients pass.

        The log-odds of a two-way decision are shared out evenly, ``(−z/2, z/2)``, so that the scores
        of both sides depend on the input.  Probabilities are clamped to what the type can tell
        from 0 and from 1.

        Args:
            answer: ``N × C`` for several classes, ``N × 1`` or ``N`` for ``"binary"``, ``N × L`` for
                ``"multilabel"``.

        Raises:
            ValueError: another shape, or numbers outside 0…1 that should be probabilities.
        """
        shape = tuple(answer.shape)
        if self.task == "binary":
            if answer.ndim == 1 or (answer.ndim == 2 and shape[1] == 1):
                return _two_way(self._log_odds(answer.reshape(len(answer))))
            raise ValueError(
                f"task: got 'binary' for a model whose scores have shape {shape}, want one column; "
                "two columns that exclude each other are task='multiclass'"
            )
        if answer.ndim != 2 or not shape[1]:
            raise ValueError(
                f"task: got {self.task!r} for a model whose scores have shape {shape}, want N × "
                f"{'labels' if self.task == 'multilabel' else 'classes'}"
            )
        if self.task == "multilabel":
            return _two_way(self._log_odds(answer))
        if self.scores == "logits":
            return answer
        answer = _wide(self._checked(answer))
        return answer.clamp_min(torch.finfo(answer.dtype).tiny).log()

    def _log_odds(self, answer: Tensor) -> Tensor:
        if self.scores == "logits":
            return answer
        answer = _wide(self._checked(answer))
        kind = torch.finfo(answer.dtype)
        return answer.clamp_min(kind.tiny).log() - (1 - answer).clamp_min(kind.eps / 2).log()

    @staticmethod
    def _checked(answer: Tensor) -> Tensor:
        values = answer.detach()
        if bool(((values < -SUMS_TO_ONE) | (values > 1 + SUMS_TO_ONE)).any()):
            low, high = float(values.min()), float(values.max())
            raise ValueError(
                f"scores: got 'probabilities' for a model that answers with numbers from {low:.3g} to "
                f"{high:.3g}; say scores='logits', rw.adapt(model, ..., scores='logits')"
            )
        return answer


def _wide(values: Tensor) -> Tensor:
    """Half-precision values in float32, in which their logarithms fit."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _two_way(odds: Tensor) -> Tensor:
    return torch.stack([-odds / 2, odds / 2], dim=-1)


PLAIN = Head()
"""Several classes, logits."""
ONE_COLUMN = Head("binary")


def unmasked(scores: Tensor) -> Tensor:
    """Scores without −∞, which stands for a class that is masked; other scores stay to the bit."""
    masked = scores.detach().isneginf()
    if not bool(masked.any()):
        return scores
    least = scores.detach().masked_fill(masked, torch.inf).amin(dim=-1, keepdim=True)
    floor = torch.where(least.isfinite(), least - MASK, -torch.inf)
    return torch.where(masked, floor, scores)


def guess_head(answer: Tensor, task: str | None = None, scores: str | None = None) -> Head:
    """The head that answers of a model look like; what is given is not guessed.

    One column is a two-way decision, rows from 0 to 1 that add up to one are
    probabilities of classes, and one column (or labels) of values from 0 to 1 are probabilities.

    Args:
        answer: ``N × C``, ``N × 1`` or ``N`` numbers that the model answers with.
        task, scores: of the head, where they are known.
    """
    values = _wide(answer.detach())
    if task is None:
        single = answer.ndim == 1 or (answer.ndim == 2 and answer.shape[1] == 1)
        task = "binary" if single else "multiclass"
    if scores is None:
        fits = within_one(values)
        if task == "multiclass" and fits:
            room = SUMS_TO_ONE if answer.dtype == values.dtype else 10 * SUMS_TO_ONE
            fits = answer.ndim == 2 and bool(((values.sum(dim=1) - 1).abs() <= room).all())
        scores = "probabilities" if fits else "logits"
    return Head(task, scores)


def within_one(answer: Tensor) -> bool:
    """Whether all numbers lie in 0…1, as probabilities do."""
    return bool(((answer >= 0) & (answer <= 1)).all())


def describe_guess(answer: Tensor, head: Head, *, certain: bool) -> str:
    """What a guessed head rests on, and the call that says so or otherwise.

    Empty where there is no doubt: numbers beyond 0…1 are logits where the task is ``certain`` or there
    are several columns.
    """
    low, high = float(answer.min()), float(answer.max())
    call = f"rw.adapt(model, task={head.task!r}, scores={head.scores!r})"
    other = SCORES[SCORES.index(head.scores) - 1]
    several = head.task == "multiclass"
    if head.scores == "logits" and (several or certain):
        if not (several and within_one(answer) and low < high):
            return ""
        labels = "rw.adapt(model, task='multilabel', scores='probabilities')"
        return (
            f"model: its scores lie in {low:.3g} to {high:.3g} and their rows do not add up to one, so "
            f"they are taken as logits of a multiclass task; say so with {call}, or {labels} if they "
            "are probabilities of labels that do not exclude each other"
        )
    if head.task == "multiclass":
        why = "every row of its scores lies in 0…1 and adds up to one"
    else:
        column = "one column" if head.task == "binary" else "its labels' columns"
        why = f"its scores are {column} of numbers from {low:.3g} to {high:.3g}"
    return (
        f"model: {why}, so they are taken as {head.scores} of a {head.task} task; say so with "
        f"{call}, or scores={other!r} if they are not"
    )


# --- reading scores ------------------------------------------------------------------------------


def answers(scores: Tensor) -> Tensor:
    """What is predicted: ``N`` classes, or ``N × L`` zeros and ones."""
    return scores.argmax(dim=-1)


def probabilities(scores: Tensor) -> Tensor:
    """The distributions, in the shape of the scores."""
    return scores.softmax(dim=-1)


def chosen(values: Tensor, labels: Tensor) -> Tensor:
    """Values (scores or probabilities) of these classes or label states, in the shape of ``labels``."""
    return values.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def runner_up(scores: Tensor, labels: Tensor) -> Tensor:
    """The best class other than ``labels``; of a label, its other state."""
    return scores.scatter(-1, labels.unsqueeze(-1), -torch.inf).argmax(dim=-1)


def check_truth(argument: str, value: object, scores: Tensor) -> Tensor:
    """``value`` as what is true of some samples: ``N`` classes or ``N × L`` zeros and ones, as ``scores``.

    Args:
        argument: the caller's name for it.
        value: true classes or labels.
        scores: of a sample or more, in the engine's form.
    """
    count = len(value) if isinstance(value, Tensor) and value.ndim else 0
    if scores.ndim > 2:
        return check_hot(argument, value, count=count, labels=scores.shape[1])
    return check_labels(argument, value, count=count, classes=scores.shape[1])


def to_explain(scores: Tensor) -> Tensor:
    """``N × classes`` as they are, or the log-odds of ``N × labels``."""
    return scores[..., 1] - scores[..., 0] if scores.ndim > 2 else scores


def any_label(hits: Tensor) -> Tensor:
    """``N``: whether it holds of the decision, or of at least one label."""
    return hits.flatten(1).any(dim=1) if hits.ndim > 1 else hits


def changed(one: Tensor, other: Tensor) -> Tensor:
    """``N``: whether predictions differ, of several labels in at least one."""
    return any_label(one != other)


def variation(one: Tensor, other: Tensor) -> Tensor:
    """Total variation distance of each decision, ``N`` or ``N × L``."""
    return 0.5 * (one - other).abs().sum(dim=-1)


def most(values: Tensor) -> Tensor:
    """``N``: the value of the decision, of several labels the greatest one."""
    return values.flatten(1).amax(dim=1) if values.ndim > 1 else values


def worst_mean(values: Tensor) -> float:
    """The mean over samples; of several labels, that of the label where it is greatest."""
    return float(values.mean(dim=0).max())


def least(values: Tensor) -> Tensor:
    """``N``: the value of the decision, of several labels the least one."""
    return values.flatten(1).amin(dim=1) if values.ndim > 1 else values


def groups(given: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each class and the samples of it, ``N``; or each label, once without and once with it.

    Args:
        given: ``N`` classes, or ``N × L`` states of labels.
    """
    if given.ndim == 1:
        yield from ((int(one), given == one) for one in given.unique())
        return
    for number in range(given.shape[1]):
        present = given[:, number].bool()
        yield number, ~present
        yield number, present


def seen(given: Tensor) -> list[int]:
    """The classes that at least one sample has, or the labels that are present in one."""
    if given.ndim == 1:
        return [int(one) for one in given.unique()]
    return [int(one) for one in given.bool().any(dim=0).nonzero()]


def most_common(given: Tensor, marked: Tensor) -> int:
    """How many of the marked predictions are of one class, or of one label."""
    if given.ndim > 1:
        return int(marked.sum(dim=0).max())
    return int(given[marked].bincount(minlength=1).max())


def label_weights(before: Tensor, after: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Weights of the labels' margins, ``N × L``, along a corruption and where there is none.

    Along it each label counts by how far the corruption changes its probability; without it these
    count as much as all labels alike.  None and None for a single decision.

    Args:
        before, after: scores with the corruption and without it.
    """
    if before.ndim == 2:
        return None, None
    far = variation(probabilities(before), probabilities(after)) + 1e-6
    path = far / far.sum(dim=1, keepdim=True)
    return path, 0.5 * path + 0.5 / far.shape[1]
