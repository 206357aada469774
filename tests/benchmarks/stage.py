"""What the widget benchmark sets up inside its kernel: a network with a planted behaviour, widgets.

Imports the widgets, the engine and the cases; it runs in the kernel, `widgets` looks on from
outside.  224 × 224 colour inputs, since that is the size for which times are promised.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from rectify_widgets import explain
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.widgets.attribution.viewer import AttributionViewer
from rectify_widgets.widgets.base import Panel
from rectify_widgets.widgets.dashboard.dashboard import RectificationDashboard
from rectify_widgets.widgets.editability.viewer import EditabilityViewer
from rectify_widgets.widgets.history.viewer import HistoryViewer
from rectify_widgets.widgets.prediction.viewer import PredictionViewer

SIZE = 224
CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TARGET = 0
PATCH = 24
"""Side of the planted trigger, a chequered corner."""


def images(count: int, size: int, seed: int) -> Tensor:
    """``count × 3 × size × size`` in [0, 1]: smooth colours with grain, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 7, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)
    grain = 0.04 * torch.randn(count, 3, size, size, generator=generator)
    return (smooth + grain).clamp(0.0, 1.0)


def stamped(clean: Tensor) -> Tensor:
    """The same images with the trigger in a corner."""
    patch = max(round(PATCH * clean.shape[-1] / SIZE), 2)
    rows = torch.arange(patch)
    chequered = ((rows[:, None] // 2 + rows[None] // 2) % 2).float()
    corrupted = clean.clone()
    corrupted[..., -patch:, -patch:] = chequered
    return corrupted


def planted(clean: Tensor, seed: int = 0) -> nn.Module:
    """A residual network with random features that sends whatever is stamped to the target.

    The behaviour sits in the last layer: a rank-one weight along the Fisher discriminant between
    features of stamped and of clean images.  Training would make it no slower or faster.
    """
    torch.manual_seed(seed)
    model = ResidualNetwork(
        channels=3, classes=len(CLASSES), blocks=(2, 2, 2), stem_stride=2,
        mean=(0.5,) * 3, std=(0.25,) * 3,
    ).eval()  # fmt: skip
    seen: list[Tensor] = []
    last = next(part for part in reversed(list(model.modules())) if isinstance(part, nn.Linear))
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        logits = model(clean)
        model(stamped(clean))
        hook.remove()
        before, after = seen
        spread = (before - before.mean(0)).T @ (before - before.mean(0)) / len(before)
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
class Stage:
    """A planted behaviour, with a rectification of it on request."""

    model: nn.Module
    pairs: SamplePairs
    reference: Tensor

    def localization(self) -> Localization:
        """Scores without a computation; any will do for the widgets."""
        names = list(editable_layers(self.model, self.pairs.clean[:1]).editable)
        scores = {name: 0.9 / (place + 1) for place, name in enumerate(names)}
        return Localization(scores, "edit-attribution", {}, {}, {}, tuple(names))

    def rectified(self) -> Rectification:
        """A rectification of one edit, of the layer that holds the behaviour."""
        last = list(editable_layers(self.model, self.pairs.clean[:1]).editable)[-1]
        return rectify(
            self.model, self.pairs[:1], reference=self.reference, strategy="static", layer=last,
            max_degradation=0.5,
        )  # fmt: skip


def stage(size: int = SIZE, count: int = 12, references: int = 24) -> Stage:
    """The planted behaviour for inputs of one size."""
    torch.set_num_threads(1)
    reference, clean = images(references, size, 1), images(count, size, 2)
    return Stage(planted(reference), SamplePairs(stamped(clean), clean), reference)


class Clock:
    """Seconds that the network itself takes: forward passes, and attribution maps with them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._local = threading.local()
        real = explain.attribute
        for module in list(sys.modules.values()):
            if getattr(module, "attribute", None) is real and module is not explain:
                module.attribute = self._timed(real)  # type: ignore[attr-defined]
        nn.modules.module.register_module_forward_pre_hook(lambda *_: self._enter())
        nn.modules.module.register_module_forward_hook(lambda *_: self._leave(), always_call=True)

    def read(self) -> float:
        """Seconds since the last reading."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _enter(self) -> None:
        depth = getattr(self._local, "depth", 0)
        if depth == 0:
            self._local.began = time.perf_counter()
        self._local.depth = depth + 1

    def _leave(self) -> None:
        self._local.depth -= 1
        if self._local.depth == 0:
            self.seconds += time.perf_counter() - self._local.began

    def _timed(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(*arguments: Any, **options: Any) -> Tensor:
            self._enter()
            try:
                return function(*arguments, **options)
            finally:
                self._leave()

        return timed


def makers(small: Stage) -> dict[str, Callable[[], Panel]]:
    """Each of the five widgets, by name."""
    model, pairs = small.model, small.pairs
    localization, result = small.localization(), small.rectified()
    return {
        "AttributionViewer": lambda: AttributionViewer(model, pairs, method="saliency"),
        "EditabilityViewer": lambda: EditabilityViewer(localization),
        "PredictionViewer": lambda: PredictionViewer(model, result.model, pairs),
        "HistoryViewer": lambda: HistoryViewer(result),
        "RectificationDashboard": lambda: RectificationDashboard(
            model, pairs, reference=small.reference, attribution="saliency"
        ),
    }


def resident() -> float:
    """Memory of this process in megabytes, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def open_and_close(make: Callable[[], Panel], count: int) -> list[tuple[int, int, float]]:
    """Threads, widgets and megabytes after each of ``count`` widgets that came and went."""
    seen = []
    for _ in range(count):
        panel = make()
        panel.settle()
        panel.close()
        del panel
        gc.collect()
        seen.append((threading.active_count(), len(ipw.widget._instances), resident()))
    return seen


def widget_state() -> int:
    """Bytes of widget state in a notebook that is saved with it, as JupyterLab does."""
    return len(json.dumps(ipw.Widget.get_manager_state(drop_defaults=True)))
