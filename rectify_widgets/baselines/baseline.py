"""`Baseline`: what a method made of a model, with everything that was tried.  Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Trial:
    """One choice of options and how it did on the validation split.  All figures are fractions.

    Attributes:
        options: the choice.
        corrupted_accuracy: validation inputs with the transplanted corruption given their true
            label.
        clean_accuracy: the same inputs without it.
        score: what the choice was judged by, see `rectify_widgets.baselines.tuning`; None where the
            weights came out infinite or NaN.
        seconds: what it took to make.
    """

    options: Mapping[str, object]
    corrupted_accuracy: float
    clean_accuracy: float
    score: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Baseline:
    """What a method made.

    Attributes:
        model: a changed copy; the model that was passed in is unchanged.
        method: its name in ``baselines.METHODS``.
        options: what was chosen or given.
        tried: the tuning table, in order; empty without a validation split, when the published
            defaults (the first of each option) are taken.
        seconds: time of the whole call, tuning included.
    """

    model: nn.Module
    method: str
    options: Mapping[str, object]
    tried: tuple[Trial, ...]
    seconds: float

    def __repr__(self) -> str:
        return (
            f"Baseline({self.method!r}: {_text(self.options)}; {len(self.tried)} tried, "
            f"{self.seconds:.1f} s)"
        )

    def __str__(self) -> str:
        lines = [f"{self.method}: {_text(self.options)} ({self.seconds:.1f} s)"]
        for trial in self.tried:
            score = "     –" if trial.score is None else f"{trial.score:6.3f}"
            lines.append(
                f"{score}  corrupted {trial.corrupted_accuracy:6.1%}  clean "
                f"{trial.clean_accuracy:6.1%}  {trial.seconds:6.1f} s  {_text(trial.options)}"
            )
        return "\n".join(lines)


def _text(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options"
