"""`AttributionViewer`: attribution maps of clean and corrupted inputs side by side.

Imports `explain`, the base panel and the renderers.  One colour scale serves all maps in view.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ipywidgets as ipw
import numpy as np
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.checks import check_choice, check_int, check_module, check_number
from rectify_widgets.engine.inspection import inspecting, predict_all, unwrap
from rectify_widgets.engine.pairs import SamplePairs
from rectify_widgets.explain import METHODS, attribute, find_layer
from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.base import (
    Panel,
    check_channels,
    check_classes,
    check_index,
    check_samples,
    refuse_unknown,
)
from rectify_widgets.widgets.jobs import Job
from rectify_widgets.widgets.session import Session
from rectify_widgets.widgets.stepper import SampleStepper

CACHED = 64
"""Views (maps of one sample under one model) that are kept; the oldest is dropped first."""

TILE = 116
"""Width of a picture in CSS pixels."""


@dataclass(frozen=True)
class View:
    """Maps of one sample under one model: a column each."""

    signed: tuple[render.Floats, ...]
    absolute: tuple[render.Floats, ...]
    explained: tuple[int, ...]


class AttributionViewer(Panel):
    """Which input values speak for a class: maps of a sample, clean and corrupted side by side.

    Args:
        model: a torch module that gives ``N × classes`` scores.
        inputs: `SamplePairs`, or a tensor ``N × C × H × W``.
        after: the model as edited, for a second row of maps; it can be set later.
        method: of `rectify_widgets.explain.attribute`.
        layer: dotted name of the layer for Grad-CAM; None takes the last convolution.
        target: the class to explain; None explains what each input is predicted as.
        classes: class names, by number.
        mean, std: the normalisation of the inputs, one number a channel, undone for display.
        opacity: of the maps over their images, 0 to 1.
        signed: show what speaks against the class in blue, else magnitudes only.
        session: share the worker of another widget.

    Raises:
        TypeError, ValueError: an argument that cannot be used, or an unknown one.
    """

    index = traitlets.Int(0)
    """The sample in view, from 0."""

    method = traitlets.Unicode("integrated-gradients")
    """The attribution method."""

    layer = traitlets.Unicode(None, allow_none=True)
    """The layer that Grad-CAM looks at; None is the last convolution."""

    target = traitlets.Int(None, allow_none=True)
    """The class that is explained; None is each input's own prediction."""

    opacity = traitlets.Float(0.85)
    """Opacity of the maps over their images, 0 to 1."""

    signed = traitlets.Bool(True)
    """Whether signs are shown, or magnitudes only."""

    after = traitlets.Instance(nn.Module, allow_none=True)
    """The edited model, or None."""

    def __init__(
        self,
        model: nn.Module,
        inputs: SamplePairs | Tensor,
        *,
        after: nn.Module | None = None,
        method: str = "integrated-gradients",
        layer: str | None = None,
        target: int | None = None,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        opacity: float = 0.85,
        signed: bool = True,
        session: Session | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(type(self), unknown)
        self._model = check_module("model", model)
        self._columns = check_samples("inputs", inputs)
        self._count = len(next(iter(self._columns.values())))
        self._classes = check_classes(classes)
        channels = next(iter(self._columns.values())).shape[1]
        self._mean = check_channels("mean", mean, channels)
        self._std = check_channels("std", std, channels)
        self._cache: OrderedDict[tuple[object, ...], View] = OrderedDict()
        self._views: dict[str, View] = {}
        super().__init__(session)
        with self.building():
            self.method, self.layer, self.target = method, layer, target
            self.opacity, self.signed = opacity, signed
            if after is not None:
                self.after = check_module("after", after)
            self._grid = ipw.HTML()
            self.fill([ipw.HTML(markup.heading("What the model looks at")), *self._controls()])
            self.listen(self, self._changed, ["index", "method", "layer", "target", "after"])
            self.listen(self, lambda _: self.draw(), ["opacity", "signed"])
            self.refresh()

    def _controls(self) -> list[ipw.Widget]:
        """Widgets of the controls, linked to the traits, and the grid."""
        wide = ipw.Layout(width="auto")
        named = {"description_width": "56px"}
        method = ipw.Dropdown(options=METHODS, description="Method", layout=wide, style=named)
        opacity = ipw.FloatSlider(
            min=0.0,
            max=1.0,
            step=0.05,
            description="Overlay",
            continuous_update=False,
            readout_format=".0%",
            layout=ipw.Layout(flex="1 1 auto", width="auto", min_width="0"),
            style=named,
        )
        signed = ipw.Checkbox(description="Signed", indent=False, layout=ipw.Layout(width="90px"))
        self.link("method", method, "value")
        self.link("opacity", opacity, "value")
        self.link("signed", signed, "value")
        self.samples = SampleStepper(self, self._count)
        row = ipw.HBox([opacity, signed])
        return [self.samples, method, row, self._grid]

    @traitlets.validate("method")
    def _check_method(self, proposal: Mapping[str, str]) -> str:
        return check_choice("method", proposal["value"], METHODS)

    @traitlets.validate("index")
    def _check_index(self, proposal: Mapping[str, int]) -> int:
        return check_index(proposal["value"], self._count)

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Mapping[str, str | None]) -> str | None:
        if proposal["value"] is not None:
            find_layer(unwrap(self._model), proposal["value"])
        return proposal["value"]

    @traitlets.validate("target")
    def _check_target(self, proposal: Mapping[str, int | None]) -> int | None:
        if proposal["value"] is not None:
            check_int("target", proposal["value"], low=0)
        return proposal["value"]

    @traitlets.validate("opacity")
    def _check_opacity(self, proposal: Mapping[str, float]) -> float:
        return check_number("opacity", proposal["value"], low=0.0, high=1.0)

    def _changed(self, change: Mapping[str, object]) -> None:
        if change["name"] == "after":
            self._cache = OrderedDict((k, v) for k, v in self._cache.items() if k[0] != "After")
        if change["name"] == "layer" and self.method != "grad-cam":
            return
        self.refresh()

    def refresh(self) -> Job[dict[str, View]]:
        """Compute the maps of the sample in view (or take them from the cache) and show them."""
        index, method, target = self.index, self.method, self.target
        layer = self.layer if method == "grad-cam" else None
        models = {"Before" if self.after is not None else "Map": self._model}
        if self.after is not None:
            models["After"] = self.after
        keys = {
            row: ("After" if row == "After" else "Before", index, method, layer, target)
            for row in models
        }
        samples = torch.cat([column[index : index + 1] for column in self._columns.values()])

        def work(job: Job[dict[str, View]]) -> dict[str, View]:
            views = {}
            for row, model in models.items():
                view = self._cache.get(keys[row])
                views[row] = view or _compute(job, model, samples, method, layer, target)
            return views

        def show(job: Job[dict[str, View]]) -> None:
            self._views = job.result()
            for row, view in self._views.items():
                self._cache[keys[row]] = view
                self._cache.move_to_end(keys[row])
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
            self.set_trait("status", f"{method} of sample {index}")
            self.draw()

        return self.begin(
            work, lane=f"maps {id(self)}", label="Attribution maps", short=True, on_done=show
        )

    def failed(self, job: Job[object]) -> None:
        """Show the failure where the maps would be."""
        super().failed(job)
        self._grid.value = markup.error_box(self.error)

    def draw(self) -> None:
        """Show the computed maps with the current opacity and sign."""
        self._grid.value = self._grid_html()

    def static_html(self) -> str:
        """The grid of maps with its heading."""
        return markup.heading("What the model looks at", self.method) + self._grid_html()

    def _grid_html(self) -> str:
        if not self._views:
            return '<span class="rw-soft">Computing maps …</span>'
        signed = self.signed and any(
            float(plane.min()) < 0 for view in self._views.values() for plane in view.signed
        )
        planes = {n: v.signed if signed else v.absolute for n, v in self._views.items()}
        scale = render.shared_scale([plane for row in planes.values() for plane in row])
        images = [
            render.to_rgb(column[self.index], self._mean, self._std)
            for column in self._columns.values()
        ]
        names = list(self._columns)
        inputs = [
            (render.image_tag(image, f"{_input(name)}, sample {self.index}", width=TILE), "")
            for name, image in zip(names, images, strict=True)
        ]
        rows = [("Input", inputs)]
        for row, view in self._views.items():
            cells = []
            for name, image, plane, number in zip(
                names, images, planes[row], view.explained, strict=True
            ):
                class_name = markup.class_name(self._classes, number)
                y, x = np.unravel_index(int(np.abs(plane).argmax()), plane.shape)
                alt = (
                    f"{self.method} map of the {_input(name)}, {row.lower()}: evidence for "
                    f"{class_name}, strongest at row {y}, column {x} of {plane.shape[0]} × "
                    f"{plane.shape[1]}"
                )
                mixed = render.overlay(image, plane, scale, opacity=self.opacity)
                cells.append((render.image_tag(mixed, alt, width=TILE), f"for {class_name}"))
            rows.append((row, cells))
        return markup.map_grid(names, rows, render.legend_tag(scale, signed=signed))

    def forget(self) -> None:
        """Let go of the maps."""
        self._cache.clear()
        self._views.clear()


def _input(column: str) -> str:
    return "input" if column == "Input" else f"{column.lower()} input"


def _compute(
    job: Job[dict[str, View]],
    model: nn.Module,
    samples: Tensor,
    method: str,
    layer: str | None,
    target: int | None,
) -> View:
    """Maps of a few inputs and the classes that they explain."""
    with inspecting(model) as module:
        explained = predict_all(module, samples).argmax(dim=1)
    if target is not None:
        explained = torch.full_like(explained, target)
    maps = attribute(
        model,
        samples,
        method=method,
        layer=layer,
        target=explained,
        progress=job.progress,
        cancel=job.cancelled,
    )
    return View(
        tuple(render.to_plane(one) for one in maps),
        tuple(render.to_plane(one, signed=False) for one in maps),
        tuple(int(number) for number in explained),
    )
