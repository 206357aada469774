"""Unreliable behaviours on data that ships with the package.  Imports the engine only.

``load("trojan")`` gives a `Case`: a trained network, pairs, references and test data.  Loading
reads the package's own files and never a network; ``python -m rectify_widgets.cases.build`` made
them and makes them again.  `rectify_widgets.cases.vision` does the same on a user's own copies of
CIFAR-10, ImageNet and ISIC, and `rectify_widgets.cases.pretrained` has a network that was really
trained on ImageNet, with photographs, from files that other packages install.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.resources import files

import torch

from rectify_widgets.cases import leakage, pretrained, several, spurious, trojan, vision
from rectify_widgets.cases.case import Case
from rectify_widgets.engine.base.checks import check_choice

__all__ = ["Case", "load", "names", "pretrained", "vision"]

_CASES: dict[str, Callable[..., Case]] = {
    **{name: partial(trojan.read, name=name) for name in trojan.VARIANTS},
    **{name: partial(several.read, name=name) for name in several.VARIANTS},
    **{name: partial(spurious.read, name=name) for name in spurious.VARIANTS},
    leakage.NAME: leakage.read,
}


def names() -> tuple[str, ...]:
    """Names that `load` knows."""
    return tuple(_CASES)


def load(name: str, *, device: str | torch.device = "cpu") -> Case:
    """The case called ``name``, with model and data on ``device``.

    Every call reads the files anew, so what is done to one case's model touches no other.

    Raises:
        ValueError: there is no case of that name.

    Example:
        >>> case = load("trojan")
        >>> case.reference.shape
        torch.Size([1800, 1, 28, 28])
    """
    read = _CASES[check_choice("name", name, _CASES)]
    return read(files(__name__) / "data", device=device)
