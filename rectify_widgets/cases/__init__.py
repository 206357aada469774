"""Unreliable behaviours on data that ships with the package.  Imports the engine only.

``load("trojan")`` gives a `Case`: a trained network, pairs, references and test data.  Loading
reads the package's own files and never a network; ``python -m rectify_widgets.cases.build`` made
them and makes them again.  A case is one file in `rectify_widgets.cases.library`.
`rectify_widgets.cases.vision` does the same on a user's own copies of CIFAR-10, ImageNet and ISIC,
and `rectify_widgets.cases.pretrained` has a network that was really trained on ImageNet, with
photographs, from files that other packages install.

Example:
    >>> case = rw.cases.load("leakage")
    >>> case.behaviour, case.model(case.pairs.clean[:3]).shape
    ('leakage', torch.Size([3, 10]))
"""

from __future__ import annotations

from importlib.resources import files

import torch

from rectify_widgets.cases import library, pretrained, vision
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.definition import BEHAVIOURS, DEFINITIONS, read
from rectify_widgets.engine.base.checks import check_choice

__all__ = ["Case", "library", "load", "names", "pretrained", "vision"]


def names() -> tuple[str, ...]:
    """Names that `load` knows, those of one behaviour together.

    Example:
        >>> rw.cases.names()
        ('trojan', 'trojan-visibility', ..., 'leakage')
    """
    ranked = sorted(DEFINITIONS.values(), key=lambda one: BEHAVIOURS.index(one.behaviour))
    return tuple(one.name for one in ranked)


def load(name: str, *, device: str | torch.device = "cpu") -> Case:
    """The case called ``name``, with model and data on ``device``.

    Every call reads the files anew, so what is done to one case's model touches no other.

    Raises:
        ValueError: there is no case of that name.

    Example:
        >>> case = rw.cases.load("trojan")
        >>> case.reference.shape
        torch.Size([1800, 1, 28, 28])
    """
    definition = DEFINITIONS[check_choice("name", name, names())]
    return read(definition, files(__name__) / "data", device=device)
