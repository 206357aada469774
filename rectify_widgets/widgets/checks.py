"""Checks of what users hand to a widget, and a trait that has one.

Imports the engine's checks and traitlets.  A message names the argument, what it got and what it
wants.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import traitlets
from torch import Tensor

from rectify_widgets.engine.base.checks import check_int, check_number, nearest
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.measure.metrics import check_target
from rectify_widgets.explain import check_images

T = TypeVar("T")


class CheckedTrait(traitlets.TraitType[T, T]):
    """A trait that a function of `engine.base.checks` checks: its messages name the way out.

    Args:
        default: value at first; where it is None, None may be set again.
        check: called with the trait's name, the new value and the limits; gives the value.
        limits: keywords of ``check``.
    """

    def __init__(self, default: T, check: Callable[..., T], **limits: Any) -> None:
        super().__init__(default_value=default, allow_none=default is None)
        self._check, self._limits = check, limits

    def validate(self, _: traitlets.HasTraits, value: Any) -> T:
        """The value, unless the check raises."""
        return self._check(self.name, value, **self._limits)


def refuse_unknown(owner: type, unknown: Iterable[str], more: Iterable[str] = ()) -> None:
    """Raise a `TypeError` for the first unknown keyword, naming the closest known one.

    ``more`` are keywords that ``owner`` takes besides those of its signature.
    """
    known = [
        name
        for name, parameter in inspect.signature(owner).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    known += more
    for name in unknown:
        raise TypeError(
            f"{owner.__name__}() got an unexpected keyword argument {name!r}"
            f"{nearest(name, known)}; it takes {', '.join(known)}"
        )


def check_path(argument: str, path: object) -> Path:
    """A path to a file in a folder that exists."""
    if not isinstance(path, str | Path):
        raise TypeError(f"{argument}: got {type(path).__name__}, want the path of a file")
    goal = Path(path)
    if goal.is_dir() or not goal.parent.is_dir():
        raise ValueError(f"{argument}: got {str(path)!r}, want a file in a folder that exists")
    return goal


def check_samples(argument: str, samples: object) -> dict[str, Tensor]:
    """Columns of samples to show: one for a tensor, two for pairs."""
    if isinstance(samples, SamplePairs):
        return {
            "Clean": check_images(samples.clean),
            "Corrupted": check_images(samples.corrupted),
        }
    if not isinstance(samples, Tensor):
        raise TypeError(
            f"{argument}: got {type(samples).__name__}, want SamplePairs or a tensor N × C × H × W"
        )
    return {"Input": check_images(samples)}


def check_index(index: object, count: int) -> int:
    """``index`` if it is one of ``count`` samples."""
    number = check_int("index", index, low=0)
    if number >= count:
        raise ValueError(f"index: got {number}, want 0 to {count - 1}: one of {count} samples")
    return number


def check_classes(classes: object) -> tuple[str, ...] | None:
    """Class names, by number, or None."""
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f"classes: got {type(classes).__name__}, want a list of class names")
    return tuple(str(name) for name in classes)


def check_goal(target: object, classes: Sequence[str] | None) -> int | None:
    """The number of a class or label that is given by its number or by its name, or None.

    Raises:
        TypeError: neither a whole number nor a name.
        ValueError: a name that is not among ``classes``, or where there are none.
    """
    if not isinstance(target, str):
        return check_target(target, None)
    if classes is None:
        raise ValueError(f"target: got {target!r} without names, want a number, or classes=[...]")
    if target not in classes:
        close = nearest(target, classes)
        raise ValueError(f"target: got {target!r}{close}, want one of the classes")
    return list(classes).index(target)


def check_channels(argument: str, values: object, channels: int) -> tuple[float, ...] | None:
    """One number a channel, or None."""
    if values is None:
        return None
    numbers = values.tolist() if isinstance(values, Tensor) else values
    if isinstance(numbers, str) or not isinstance(numbers, Sequence):
        raise TypeError(f"{argument}: got {type(values).__name__}, want {channels} numbers or None")
    if len(numbers) != channels:
        raise ValueError(f"{argument}: got {len(numbers)} numbers, want {channels}: one a channel")
    return tuple(check_number(argument, value, low=-math.inf) for value in numbers)
