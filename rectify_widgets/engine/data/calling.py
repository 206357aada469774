"""Calling a corruption that the user wrote.  Imports torch and numpy."""

from __future__ import annotations

import random
from collections.abc import Callable
from textwrap import shorten
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rectify_widgets.engine.base.randomness import preserving_rng

InputFunction: TypeAlias = Callable[[Tensor], Tensor]
"""Maps ``M × C × H × W`` inputs to as many corrupted ones."""
NAME_LENGTH = 60
"""Characters of a function's name that are shown."""


def check_function(corrupt: object) -> InputFunction:
    """``corrupt`` if it can be called."""
    if not callable(corrupt):
        raise TypeError(
            f"corrupt: got {type(corrupt).__name__}, want a function from inputs N × C × H × W to "
            "corrupted inputs of the same shape"
        )
    return corrupt


def name_of(corrupt: InputFunction) -> str:
    """Name of a function as a `repr` shows it, in a short line."""
    name = str(getattr(corrupt, "__name__", None) or repr(corrupt))
    return shorten(name, NAME_LENGTH, placeholder=" …")


def call_function(corrupt: InputFunction, inputs: Tensor, seed: int = 0) -> Tensor:
    """What the user's function makes of a copy of ``inputs``, on their device and in their type.

    The global generators of torch, numpy and Python start from ``seed``, so that the same inputs
    give the same result, and have their states back afterwards.  What the function raises is passed
    on, with a note (from Python 3.11 on) of what it was given.

    Raises:
        TypeError: it returns something that is not a floating-point tensor.
        ValueError: it returns another shape, NaN or infinity.
    """
    with preserving_rng(inputs.device), torch.inference_mode(mode=False), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        if inputs.device.type == "cuda":
            with torch.cuda.device(inputs.device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - users draw from it
        random.seed(seed)
        try:
            result: object = corrupt(inputs.detach().clone())
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note(
                    f"corrupt: {name_of(corrupt)} raised this on inputs of shape "
                    f"{tuple(inputs.shape)}, {inputs.dtype}"
                )
            raise
    want = f"a floating-point tensor of shape {tuple(inputs.shape)}, as it was given"
    if not isinstance(result, Tensor):
        raise TypeError(
            f"corrupt: {name_of(corrupt)} returned {type(result).__name__}, want {want}"
        )
    if not result.is_floating_point():
        raise TypeError(f"corrupt: {name_of(corrupt)} returned {result.dtype}, want {want}")
    if result.shape != inputs.shape:
        raise ValueError(
            f"corrupt: {name_of(corrupt)} returned shape {tuple(result.shape)}, want {want}"
        )
    if not bool(torch.isfinite(result).all()):
        raise ValueError(
            f"corrupt: {name_of(corrupt)} returned NaN or infinity, want finite inputs"
        )
    return result.detach().to(inputs.device, inputs.dtype, copy=True)
