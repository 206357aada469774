"""`EditMeasure`: gap and degradation of any edited copy of a model, on one scale.  Imports torch only.

Where edits are made one by one, in several runs, or are reverted in between, their figures are
comparable only if all of them are measured against the same original on the same references.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_int, check_module
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs, check_pairs
from rectify_widgets.engine.find.problem import pose_problem
from rectify_widgets.engine.measure.judge import Judge, Verdict
from rectify_widgets.engine.model.outputs import Adapted
from rectify_widgets.engine.model.running import (
    eval_mode,
    model_device,
    model_dtype,
    predict,
    with_head,
)
from rectify_widgets.engine.repair.rectification import check_validation


class EditMeasure:
    """Measures edited copies of a model against that model, on fixed references.

    With the arguments of a `rectify` call, and its ``flagged`` as ``exclude``, the figures are those
    of its steps.  It keeps the references and the original's predictions for them, no model.

    Args:
        model: the original; left as it was.
        pairs: corrupted inputs and their clean counterparts.
        reference: unlabelled inputs like those of training; up to 768 are used, or as many as 256 MiB hold.  Of 64 or more, the
            half is measured on that `rectify` does not solve with.  None measures on the pairs.
        seed: which references, and which pair's corruption goes onto which; that of `rectify`.
        exclude: references that carry the corruption themselves, as ``Rectification.flagged``:
            row numbers of the references that are used.  Those are all of them in their own order,
            unless a tensor has more than 768 rows: then ``seed`` picks them.
        validation: labelled inputs ``(x, y)`` on which the loss of accuracy is measured instead.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Attributes:
        count: references that are measured on.

    Raises:
        TypeError, ValueError: bad input, before anything is touched.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> from rectify_widgets.engine.repair.measuring import EditMeasure
        >>> measure = EditMeasure(model, pairs, reference, exclude=result.flagged)
        >>> measure.measure(result.at(1)).gap < 0.1
        True
    """

    def __init__(
        self,
        model: nn.Module,
        pairs: SamplePairs,
        reference: Inputs | None,
        *,
        seed: int = 0,
        exclude: Tensor | Sequence[int] | None = None,
        validation: tuple[Tensor, Tensor] | None = None,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        check_module("model", model)
        check_pairs(pairs)
        check_int("seed", seed, low=0)
        monitor = Monitor(progress, cancel)
        with eval_mode(model, "pairs") as module:
            monitor.report(0.0, "taking the references")
            if reference is None:
                on_device = pairs.to(model_device(module), model_dtype(module))
                references, carriers, origins = (
                    on_device.clean,
                    on_device.corrupted,
                    on_device.clean,
                )
                _kept(exclude, 0)
                headed = with_head(module, origins, carriers)
            else:
                problem = pose_problem(module, pairs, reference, seed=seed, monitor=monitor)
                headed = problem.model
                _, judged = problem.halves(_kept(exclude, len(problem.references)), seed)
                references, carriers, origins = judged.references, judged.carriers, judged.origins
            labelled = (
                None if validation is None else check_validation(headed, validation, references)
            )
            monitor.report(0.5, "measuring the original model")
            self._judge = Judge(
                headed, references, carriers, origins, labelled, monitor, steady=True
            )
            self._sample = references[:1]
            self._classes = predict(headed, self._sample).shape[1:]
            self._head = (
                (headed.task, headed.scores) if isinstance(headed, Adapted) else (None, None)
            )
        self.count = len(references)

    def __repr__(self) -> str:
        return f"EditMeasure({self.count} references)"

    def measure(
        self, model: nn.Module, *, progress: Progress | None = None, cancel: Cancel | None = None
    ) -> Verdict:
        """Gap, disturbance, degradation and worst class of an edited copy, all fractions.

        Args:
            model: the original or a copy with edits; left as it was.
            progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

        Raises:
            TypeError: ``model`` is not a module.
            ValueError: it has another number of classes than the original.
            Cancelled: ``cancel`` returned True.
        """
        monitor = Monitor(progress, cancel)
        with eval_mode(model) as module:
            headed = module if isinstance(module, Adapted) else Adapted(module, None, *self._head)
            classes = predict(headed, self._sample).shape[1:]
            if classes != self._classes:
                raise ValueError(
                    f"model: its output has {classes[0]} classes, want {self._classes[0]} like the "
                    "original, of which it should be a copy with edits"
                )
            return self._judge.measure(headed, monitor)


def _kept(exclude: object, count: int) -> Tensor:
    """Rows of ``count`` references that are not excluded."""
    rows = torch.arange(count)
    if exclude is None:
        return rows
    try:
        left_out = torch.as_tensor(exclude)
    except (TypeError, ValueError, RuntimeError):
        left_out = None
    if (
        left_out is None
        or left_out.ndim != 1
        or (len(left_out) and (left_out.is_floating_point() or left_out.dtype is torch.bool))
    ):
        raise TypeError(
            f"exclude: got {type(exclude).__name__}, want the numbers of references, such as "
            "Rectification.flagged"
        )
    if len(left_out) and not 0 <= int(left_out.min()) <= int(left_out.max()) < count:
        raise ValueError(
            f"exclude: got numbers from {int(left_out.min())} to {int(left_out.max())}, want "
            f"those of {count} references"
        )
    rows = rows[~torch.isin(rows, left_out.cpu())]
    if count and not len(rows):
        raise ValueError(f"exclude: got all {count} references, want one left at least")
    return rows
