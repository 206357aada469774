"""What a method for comparison is: options, how it changes a model, and what comes of it.

Imports torch and the engine.  A method is one `Method` in a file of its own, which says what is
published and what differs.  `registry` lists them and runs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from rectify_widgets.baselines.task import Task
from rectify_widgets.engine.base.checks import check_choice, check_int, check_number
from rectify_widgets.engine.base.progress import Monitor

Options: TypeAlias = Mapping[str, Any]
"""One choice of options by name."""
Attempt: TypeAlias = Callable[[nn.Module, Task, Options, Monitor], None]
"""Changes a copy of the model, in evaluation mode, with one choice of options."""


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        about: what it is and what the tuner chooses from, for people.
        values: what the tuner chooses from, the published default first.
        check: takes the task, the option's name and a value that the caller gives, and returns the
            value or raises a `TypeError` or `ValueError`.

    Example:
        >>> from rectify_widgets import baselines
        >>> baselines.BASELINES["p_clarc"].options["space"].about
        "where the concept activation vector lives: 'channel', 'map'"
    """

    about: str
    values: Callable[[Task], Sequence[Any]]
    check: Callable[[Task, str, Any], Any]


def number(about: str, *values: float, positive: bool = False, high: float = math.inf) -> Option:
    """A number from 0 to ``high``; above 0 where it is ``positive``."""

    def check(name: str, given: Any) -> float:
        checked = check_number(name, given, low=0.0, high=high)
        if positive and checked == 0:
            raise ValueError(f"{name}: got {given}, want more than 0")
        return checked

    return _listed(about, values, check)


def count(about: str, *values: int) -> Option:
    """A whole number of 1 or more."""
    return _listed(about, values, lambda name, given: check_int(name, given, low=1))


def choice(about: str, *values: str) -> Option:
    """One of some words."""
    return _listed(about, values, lambda name, given: check_choice(name, given, values))


def _listed(about: str, values: Sequence[Any], check: Callable[[str, Any], Any]) -> Option:
    listed = ", ".join(map(repr, values))
    return Option(f"{about}: {listed}", lambda _: values, lambda _, name, given: check(name, given))


@dataclass(frozen=True)
class Method:
    """A method to compare with.

    Attributes:
        name: its name in `BASELINES`.
        axes: its options by name.  Those of one axis are searched together, one axis after another.
        attempt: changes a copy of the model.
        needs_references: why it cannot do without references; empty where it can.
        screen: a cheap attempt by which the tuner narrows the last axis first, see
            `rectify_widgets.baselines.tuning.screened`.

    Example:
        >>> from rectify_widgets import baselines
        >>> print(baselines.BASELINES["p_clarc"])
        p_clarc
          space: where the concept activation vector lives: 'channel', 'map'
          layer: a layer or block by its dotted name: all of them, the deepest first
    """

    name: str
    axes: tuple[Mapping[str, Option], ...]
    attempt: Attempt
    needs_references: str = ""
    screen: Attempt | None = None

    @property
    def options(self) -> dict[str, Option]:
        """Every option by name."""
        return {name: option for axis in self.axes for name, option in axis.items()}

    def __str__(self) -> str:
        options = [f"  {name}: {option.about}" for name, option in self.options.items()]
        return "\n".join([self.name, *options])


@dataclass(frozen=True)
class TuningTrial:
    """One choice of options and how it did on the validation split.  All figures are fractions.

    Attributes:
        options: the choice.
        corrupted_accuracy: validation inputs with the transplanted corruption given their true
            label.
        clean_accuracy: the same inputs without it.
        score: what the choice was judged by, see `rectify_widgets.baselines.tuning`; None where the
            weights came out infinite or NaN.
        seconds: time that the attempt took.

    Example:
        >>> from rectify_widgets import baselines
        >>> tuned = baselines.run("p_clarc", model, pairs, validation=(x[:30], y[:30]))
        >>> [trial.options["space"] for trial in tuned.trials]
        ['channel', 'channel', 'map', 'map']
    """

    options: Options
    corrupted_accuracy: float
    clean_accuracy: float
    score: float | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Baseline:
    """A model that a method changed, with everything that was tried.

    Attributes:
        model: a changed copy; the model that was passed in is unchanged.
        method: its name in `BASELINES`.
        options: what was chosen or given; `run` takes them back as keywords.
        trials: the tuning table, in order; empty without a validation split, when the published
            defaults (the first of each option) are taken.
        seconds: time of the whole call, tuning included.

    Example:
        >>> from rectify_widgets import baselines
        >>> baselines.run("p_clarc", model, pairs, layer="conv2", space="map")
        Baseline('p_clarc': space='map', layer='conv2'; 0 tried, ... s)
    """

    model: nn.Module
    method: str
    options: Options
    trials: tuple[TuningTrial, ...]
    seconds: float

    def __repr__(self) -> str:
        return (
            f"Baseline({self.method!r}: {_text(self.options)}; {len(self.trials)} tried, "
            f"{self.seconds:.1f} s)"
        )

    def __str__(self) -> str:
        lines = [f"{self.method}: {_text(self.options)} ({self.seconds:.1f} s)"]
        for trial in self.trials:
            score = "     –" if trial.score is None else f"{trial.score:6.3f}"
            lines.append(
                f"{score}  corrupted {trial.corrupted_accuracy:6.1%}  clean "
                f"{trial.clean_accuracy:6.1%}  {trial.seconds:6.1f} s  {_text(trial.options)}"
            )
        return "\n".join(lines)


def _text(options: Options) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "no options"
