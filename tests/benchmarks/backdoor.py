"""What the widget benchmark sets up inside its kernel: a network with a planted backdoor, widgets.

Imports the widgets, the engine and the cases; it runs in the kernel that `widgets` drives.
224 × 224 colour inputs, since that is the size for which times are promised.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

import rectify_widgets as rw
from rectify_widgets import explain
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.engine.model.catalog import editable_layers

SIZE = 224
CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TARGET = 0
PATCH = 24
"""Side of the trigger, a chequered corner."""


def images(count: int, size: int, seed: int) -> Tensor:
    """``count × 3 × size × size`` in [0, 1]: smooth colours with grain, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 7, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    grain = 0.04 * torch.randn(count, 3, size, size, generator=generator)
    return (smooth + grain).clamp(0.0, 1.0)


def trigger(clean: Tensor) -> Tensor:
    """The same images with the trigger in a corner."""
    patch = max(round(PATCH * clean.shape[-1] / SIZE), 2)
    rows = torch.arange(patch)
    corrupted = clean.clone()
    corrupted[..., -patch:, -patch:] = ((rows[:, None] // 2 + rows // 2) % 2).float()
    return corrupted


def plant(clean: Tensor) -> nn.Module:
    """A residual network with random features that sends whatever has the trigger to the target.

    The behaviour sits in the last layer: a rank-one weight along the Fisher discriminant between
    features of triggered and of clean images.  Training would make it no slower or faster.
    """
    torch.manual_seed(0)
    model = ResidualNetwork(
        channels=3, classes=len(CLASSES), blocks=(2, 2, 2), stem_stride=2,
        mean=(0.5,) * 3, std=(0.25,) * 3,
    ).eval()  # fmt: skip
    features: list[Tensor] = []
    last = model.classifier
    hook = last.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    with torch.no_grad():
        logits = model(clean)
        model(trigger(clean))
        hook.remove()
        before, after = features
        spread = torch.cov(before.T)
        spread += 1e-3 * spread.diagonal().mean() * torch.eye(len(spread))
        difference = (after - before).mean(0)
        along = torch.linalg.solve(spread, difference)
        along /= along @ difference
        scale = 4.0 / logits.std()
        last.weight *= scale
        last.bias.copy_(scale * (last.bias - logits.mean(0)))
        last.weight[TARGET] += 40.0 * along
        last.bias[TARGET] -= 40.0 * (along @ before.mean(0)) + 15.0
    return model


@dataclass(eq=False)
class Backdoor:
    """A network with a backdoor, pairs and references; a rectification of it on request."""

    model: nn.Module
    pairs: rw.SamplePairs
    reference: Tensor

    @classmethod
    def of(cls, size: int = SIZE, count: int = 12, references: int = 24) -> Backdoor:
        """For inputs of one size; torch takes one thread."""
        torch.set_num_threads(1)
        reference, clean = images(references, size, 1), images(count, size, 2)
        return cls(plant(reference), rw.SamplePairs(trigger(clean), clean), reference)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the editable layers; the last one holds the behaviour."""
        return tuple(editable_layers(self.model, self.pairs.clean[:1]).editable)

    def localization(self) -> rw.Localization:
        """Scores without a computation; any will do for the widgets."""
        scores = {name: 0.9 / (place + 1) for place, name in enumerate(self.layers)}
        return rw.Localization(scores, "edit-attribution", {}, {}, {}, self.layers)

    def rectified(self) -> rw.Rectification:
        """A rectification of one edit."""
        return rw.rectify(
            self.model, self.pairs[:1], reference=self.reference, strategy="static",
            layer=self.layers[-1], max_degradation=0.5,
        )  # fmt: skip

    def widgets(self) -> dict[str, Callable[[], Any]]:
        """What makes each of the five widgets, by name."""
        scores, result = self.localization(), self.rectified()
        known: dict[str, Any] = {"classes": CLASSES}
        makers: tuple[Callable[[], Any], ...] = (
            lambda: rw.AttributionViewer(self.model, self.pairs, method="saliency", **known),
            lambda: rw.PredictionViewer(self.model, result.model, self.pairs, **known),
            lambda: rw.EditabilityViewer(scores),
            lambda: rw.HistoryViewer(result),
            lambda: rw.RectificationDashboard(
                self.model, self.pairs[:1], examples=self.pairs[1:], reference=self.reference,
                attribution="saliency", **known,
            ),
        )  # fmt: skip
        return dict(zip(NAMES, makers, strict=True))


NAMES = (
    "AttributionViewer", "PredictionViewer", "EditabilityViewer", "HistoryViewer",
    "RectificationDashboard",
)  # fmt: skip


class NetworkClock:
    """Seconds that the network itself takes: forward passes, and attribution maps with them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._local = threading.local()
        real, timed = explain.attribute, self._timed(explain.attribute)
        for module in list(sys.modules.values()):
            if getattr(module, "attribute", None) is real and module is not explain:
                module.attribute = timed  # type: ignore[attr-defined]
        ResidualNetwork.forward = self._timed(ResidualNetwork.forward)  # type: ignore[method-assign]

    def read(self) -> float:
        """Seconds since the last reading."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _timed(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Tensor:
            if getattr(self._local, "running", False):  # the outer one counts
                return function(*arguments, **options)
            self._local.running, began = True, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._local.running = False
                self.seconds += time.perf_counter() - began

        return timed


def wait_for(job: Any) -> None:
    """Wait for a job that may have been cancelled."""
    with suppress(Exception):
        job.wait()


def open_and_close(make: Callable[[], Any], count: int) -> str:
    """Threads, widgets and megabytes after each of ``count`` widgets that came and went, as JSON."""
    counts = []
    for _ in range(count):
        panel = make()
        panel.settle()
        panel.close()
        del panel
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        counts.append((threading.active_count(), len(ipw.widget._instances), pages * 4096 / 1e6))
    return json.dumps(counts)


def widget_state() -> int:
    """Bytes of widget state in a notebook that is saved with it, as JupyterLab does."""
    return len(json.dumps(ipw.Widget.get_manager_state(drop_defaults=True)))
