"""The paper's recipes on a user's own copies of CIFAR-10, ImageNet and ISIC.  Imports the cases.

``load("cifar10-trojan", root=DIR, weights=FILE)`` gives the same `Case` as the cases that ship, so
everything that takes one takes it.  The network is yours (``model=``) or the preset's own, which
`train` makes from clean data::

    python -m rectify_widgets.cases.vision train cifar10-trojan --root DIR --out trojan.safetensors

Pictures, transforms and networks are torchvision's, the extra ``vision``, imported when called.
It wants the torch that it was made for, so the tests of this folder run in an environment of their
own and are skipped elsewhere::

    python3 -m venv venv && venv/bin/pip install -e '.[test,vision]'
    venv/bin/python -m pytest tests/test_vision*.py

It was tested on small files of the same layouts; nothing here has been run on the real data sets.

Example:
    >>> rw.cases.vision.names()
    ('cifar10-trojan', ..., 'isic-spurious')
"""

from __future__ import annotations

from rectify_widgets.cases.vision.loading import load, train
from rectify_widgets.cases.vision.presets import Preset, names, preset

__all__ = ["Preset", "load", "names", "preset", "train"]
