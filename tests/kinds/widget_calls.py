"""The adapter and the widgets as calls on a model.  Imports the package; importing it adds them."""

from __future__ import annotations

from collections.abc import Callable

import rectify_widgets as rw
from rectify_widgets.engine.model.running import unwrap
from rectify_widgets.widgets.panel import Panel
from tests.kinds.calls import CALLS, SOME, Call, call
from tests.kinds.scene import Scene
from tests.widget_fakes import texts

# --- adapters and widgets ------------------------------------------------------------------------


def adapted(scene: Scene) -> rw.LayerCatalog:
    """The layers of the model behind an adapter that says what its scores are."""
    model = rw.adapt(scene.model, task="multiclass", scores="logits")
    assert unwrap(model) is unwrap(scene.model)
    return rw.editable_layers(model, scene.reference)


@call("adapt", adapted)
def _(scene: Scene, found: rw.LayerCatalog) -> None:
    assert list(found.editable) == list(rw.editable_layers(scene.model, scene.reference).editable)


def shown(make: Callable[[Scene], Panel]) -> Callable[[Scene], str]:
    """Build a widget, let it draw, close it; what its view holds."""

    def build(scene: Scene) -> str:
        panel = make(scene)
        try:
            panel.settle()
            if panel.error is not None:
                raise panel.error
            return texts(panel)
        finally:
            panel.close()

    return build


WIDGETS: dict[str, Callable[[Scene], Panel]] = {
    "AttributionViewer": lambda s: rw.AttributionViewer(s.model, s.pairs, method="saliency"),
    "PredictionViewer": lambda s: rw.PredictionViewer(s.model, s.results.get("repaired"), s.pairs),
    "EditabilityViewer": lambda s: rw.EditabilityViewer(
        s.model, s.pairs, reference=s.reference[:SOME]
    ),
    "HistoryViewer": lambda s: rw.HistoryViewer(s.model),
    "SuspicionViewer": lambda s: rw.SuspicionViewer(s.model, s.reference),
    "MaskPainter": lambda s: rw.MaskPainter(s.pairs.corrupted, model=s.model),
    "RectificationDashboard": lambda s: rw.RectificationDashboard(
        s.model, s.pairs, reference=s.reference[:SOME], attribution="saliency"
    ),
}


def _has_content(_: Scene, found: str) -> None:
    assert len(found) > 300


for name, build in WIDGETS.items():
    CALLS.append(Call(name, shown(build), _has_content))
