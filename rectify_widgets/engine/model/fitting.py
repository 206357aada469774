"""Errors of a network about inputs that do not fit it, said in terms of the caller's argument.

Imports torch only.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

_RAISED = (RuntimeError, ValueError, IndexError, AssertionError)
"""What torch and the libraries of networks raise; a subclass means something else, such as no memory."""
_OF_SIZES = re.compile(
    r"shape|size|channel|dimension|height|width|normalized|cannot be multiplied|must match|"
    r"doesn't match|out of range",
    re.IGNORECASE,
)


def misfit(error: Exception, argument: str, model: nn.Module, inputs: Tensor) -> ValueError | None:
    """The error for inputs that the model cannot take; None where ``error`` is about something else.

    Args:
        error: what the first forward pass raised.
        argument: what the caller calls the inputs.
        model: the model that was run.
        inputs: what it was given.
    """
    if type(error) not in _RAISED or not _OF_SIZES.search(str(error)):
        return None
    shape = tuple(inputs.shape[1:])
    want = "samples of the shape that the model takes"
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and len(shape) == 3 and shape[0] != first.in_channels:
        want = f"{first.in_channels} channels, as its first convolution takes"
        if shape[2] == first.in_channels:
            want += "; move them to the front with .permute(0, 3, 1, 2)"
        elif shape[0] == 1:
            want += f"; .expand(-1, {first.in_channels}, -1, -1) repeats a single one"
    elif len(shape) == 2:
        want += "; add the batch dimension with [None]"
    lines = str(error).strip().splitlines()
    return ValueError(
        f"{argument}: got samples of shape {shape}, want {want} ({type(error).__name__}: {lines[0]})"
    )
