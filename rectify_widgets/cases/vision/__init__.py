"""The paper's recipes on a user's own copies of CIFAR-10, ImageNet and ISIC.  Imports the cases.

``load("cifar10-trojan", root=DIR, weights=FILE)`` gives the same `Case` as the cases that ship, so
everything that takes one takes it.  The network is yours (``model=``) or the preset's own, which
`train` makes from clean data::

    python -m rectify_widgets.cases.vision train cifar10-trojan --root DIR --out trojan.safetensors

Data and weights are read by this package and Pillow; the presets' own networks come from
torchvision, the extra ``vision``, and nothing else here needs it.

The tests of this folder run without torchvision but for those of its networks, which are skipped
then.  torchvision wants the torch that it was made for, so all of them run in an environment
of their own::

    python3 -m venv venv && venv/bin/pip install -e '.[test,vision]'
    venv/bin/python -m pytest tests/test_vision*.py
"""

from __future__ import annotations

from rectify_widgets.cases.vision.loading import load
from rectify_widgets.cases.vision.presets import Preset, names, preset
from rectify_widgets.cases.vision.training import train

__all__ = ["Preset", "load", "names", "preset", "train"]
