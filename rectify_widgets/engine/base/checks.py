"""Checks of what users hand in, made before anything is touched.  Imports torch only.

A message names the argument, what it got, what it wants and how to fix it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeVar

import torch
from torch import Tensor, nn

Kind = TypeVar("Kind")


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.4)
    return f" (did you mean {close[0]!r}?)" if close else ""


def check_choice(argument: str, value: object, choices: Iterable[str]) -> str:
    """``value`` if it is one of ``choices``; otherwise a `ValueError` names the closest."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"{argument}: got {value!r}, want one of {', '.join(map(repr, known))}"
            f"{nearest(str(value), known)}"
        )
    return value


def check_flag(argument: str, value: object) -> bool:
    """``value`` if it is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument}: got {value!r}, want True or False")
    return value


def check_int(argument: str, value: object, *, low: int) -> int:
    """``value`` as a whole number of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument}: got {value!r}, want a whole number of at least {low}")
    if value < low:
        raise ValueError(f"{argument}: got {value}, want at least {low}")
    return int(value)


def check_number(argument: str, value: object, *, low: float, high: float = math.inf) -> float:
    """``value`` as a finite number between ``low`` and ``high``, both included."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument}: got {value!r}, want a number from {low} to {high}")
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{argument}: got {value}, want a number from {low} to {high}")
    return number


def check_type(argument: str, value: object, kind: type[Kind], want: str) -> Kind:
    """``value`` if it is of that type; ``want`` says in the message what it should be."""
    if not isinstance(value, kind):
        raise TypeError(f"{argument}: got {type(value).__name__}, want {want}")
    return value


def check_module(argument: str, model: object) -> nn.Module:
    """``model`` if it is a torch module."""
    want = "a torch.nn.Module that maps N × C × H × W inputs to N × classes scores"
    return check_type(argument, model, nn.Module, want)


def check_inputs(argument: str, value: object, *, like: Tensor | None = None) -> Tensor:
    """``value`` if it is a finite, floating, non-empty batch (of the same sample shape as ``like``).

    Raises:
        TypeError: not a tensor, or not of a floating type.
        ValueError: no samples, NaN or infinity, on the meta device, or another sample shape.
    """
    want = "a floating-point torch.Tensor of shape N × C × H × W"
    value = check_type(argument, value, Tensor, want)
    if not value.is_floating_point():
        raise TypeError(
            f"{argument}: got dtype {value.dtype}, want floating-point inputs as the model takes "
            "them; convert with .float() and scale as in training"
        )
    shape = tuple(value.shape)
    if value.device.type == "meta":
        raise ValueError(f"{argument}: got a tensor on the meta device, want one that holds data")
    if value.layout is not torch.strided:
        raise TypeError(f"{argument}: got layout {value.layout}, want a dense tensor (.to_dense())")
    if value.ndim < 2:
        raise ValueError(
            f"{argument}: got shape {shape}, want N × C × H × W; add the batch dimension with [None]"
        )
    if value.numel() == 0:
        raise ValueError(f"{argument}: got shape {shape}, want at least one sample")
    if like is not None and value.shape[1:] != like.shape[1:]:
        raise ValueError(
            f"{argument}: got samples of shape {shape[1:]}, want {tuple(like.shape[1:])}"
            + ("; add the batch dimension with [None]" if value.shape == like.shape[1:] else "")
        )
    if not bool(torch.isfinite(value).all()):
        raise ValueError(
            f"{argument}: got NaN or infinite values, want finite inputs; "
            "torch.isfinite(x).all() finds them"
        )
    return value.detach()


def check_labels(
    argument: str, value: object, *, count: int, classes: int | None = None, hot: bool = False
) -> Tensor:
    """``value`` as ``count`` class numbers (int64), each within ``0..classes-1``.

    Where ``hot``, ``count × labels`` zeros and ones are fine as well, see `check_hot`.
    """
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"{argument}: got {type(value).__name__}, want a tensor of {count} class numbers; "
                "of names, names.index(name) is the number"
            ) from None
    if hot and value.ndim == 2:
        return check_hot(argument, value, count=count)
    if value.is_floating_point() or value.is_complex() or value.dtype is torch.bool:
        raise TypeError(f"{argument}: got dtype {value.dtype}, want whole class numbers (int64)")
    if tuple(value.shape) != (count,):
        raise ValueError(
            f"{argument}: got shape {tuple(value.shape)}, want ({count},): one class number a sample"
        )
    labels = value.detach().to(torch.int64)
    if count and (int(labels.min()) < 0 or (classes is not None and int(labels.max()) >= classes)):
        limit = f"0 to {classes - 1}" if classes is not None else "0 or more"
        raise ValueError(
            f"{argument}: got class numbers from {int(labels.min())} to {int(labels.max())}, "
            f"want {limit}"
        )
    return labels


def check_hot(argument: str, value: object, *, count: int, labels: int | None = None) -> Tensor:
    """``value`` as ``count × labels`` zeros and ones (int64): which labels each sample has."""
    want = f"a tensor of {count} × {'labels' if labels is None else labels} zeros and ones"
    value = check_type(argument, value, Tensor, want)
    if value.ndim != 2 or len(value) != count or labels not in (None, value.shape[1]):
        raise ValueError(f"{argument}: got shape {tuple(value.shape)}, want {want}")
    if not bool(((value == 0) | (value == 1)).all()):
        raise ValueError(f"{argument}: got other numbers than zeros and ones, want {want}")
    return value.detach().to(torch.int64)
