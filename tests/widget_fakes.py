"""Stand-ins for the engine, and a small network, for the tests of the widgets.  No tests here."""

from __future__ import annotations

import copy
from typing import Any

import ipywidgets as ipw
import torch
from torch import nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.repair.result import Rectification, Step
from rectify_widgets.widgets.view import View

LAYERS = ("0", "3", "6")
SCORES = {"3": 0.8, "0": 0.2, "6": -0.1}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def pairs(count: int = 4) -> SamplePairs:
    clean = torch.rand(count, 1, 9, 9, generator=torch.Generator().manual_seed(2))
    corrupted = clean.clone()
    corrupted[:, :, :2, :2] = 1.0
    return SamplePairs(corrupted, clean)


class FakeEdit:
    """Adds to the bias of the last layer, so that predictions change."""

    settings = "key 0.1"

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def apply(self, model: nn.Sequential) -> None:
        with torch.no_grad():
            model[6].bias[2] += 10.0  # type: ignore[index, operator]


def fake_localization(model: object, given: object, **options: Any) -> Localization:
    options["progress"](0.5, "scoring")
    return Localization(SCORES, options["method"], {}, {}, {"9": "a layer of no use"}, LAYERS)


def fake_rectification(model: nn.Sequential, given: object, **options: Any) -> Rectification:
    edit = FakeEdit("3")
    model = copy.deepcopy(model)
    edit.apply(model)
    step = Step(1, "3", 0.8, "key", 0.1, 1.0, 0.01, 0.0, 0.002, 0.01, True, "the gap falls", 0.1)
    missed = Step(1, "6", 0.1, "key", 0.1, 1.0, None, 0.0, None, None, False, "too costly", 0.1)
    edits: list[Any] = [edit]
    flagged = torch.empty(0, dtype=torch.int64)
    options["progress"](0.5, "round 1")
    return Rectification(
        model, edits, [missed, step], "dynamic", "target", 1.0, 0.01, 0.002, flagged, {"all": 1.5}
    )


def texts(widget: ipw.Widget) -> str:
    """All HTML inside a widget."""
    own = widget.value if isinstance(widget, ipw.HTML) else ""
    own += widget.html if isinstance(widget, View) else ""
    return own + "".join(texts(child) for child in getattr(widget, "children", ()))
