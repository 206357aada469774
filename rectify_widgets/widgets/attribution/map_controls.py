"""Controls of `AttributionViewer`: what is looked at, with which method, and how it is drawn.

Imports ipywidgets, the steppers and the panel's links.  Each control stands for one trait of the
panel; choosing in it and setting the trait are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import ipywidgets as ipw
from torch import nn

from rectify_widgets.explain import ATTRIBUTION_METHODS
from rectify_widgets.widgets import markup
from rectify_widgets.widgets.base import Panel
from rectify_widgets.widgets.stepper import LABEL, ChoiceStepper, SampleStepper

GRAD_CAM = "grad-cam"
"""The one method that looks at a layer."""

LISTED = 200
"""Most classes that the list of targets names; of more, those in view and the chosen one."""


class MapControls(ipw.Box):
    """A row of controls that wraps where there is little room.

    Args:
        panel: has the traits ``index``, ``method``, ``layer``, ``target``, ``opacity``, ``signed``.
        count: number of samples.
        model: whose convolutions can be looked at.
        classes: class names, by number.

    Attributes:
        samples, methods, layers, targets: the steppers.
    """

    def __init__(
        self, panel: Panel, count: int, model: nn.Module, classes: Sequence[str] | None
    ) -> None:
        self._panel, self._count, self._classes = panel, count, classes
        self._seen = set(range(len(classes or ()))) if len(classes or ()) <= LISTED else set()
        self.samples = SampleStepper(panel, count)
        self.methods = ChoiceStepper(panel, "method", ATTRIBUTION_METHODS, "Method")
        self.layers = ChoiceStepper(panel, "layer", _layer_options(model, panel.layer), "Layer")
        self.targets = ChoiceStepper(panel, "target", self._target_options(panel.target), "Explain")
        self.opacity = ipw.FloatSlider(
            min=0.0,
            max=1.0,
            step=0.05,
            description="Overlay",
            continuous_update=False,
            readout_format=".0%",
            layout=ipw.Layout(flex="1 1 120px", width="auto", min_width="0"),
            style={"description_width": LABEL},
        )
        self.signed = ipw.Checkbox(
            description="Signed", indent=False, layout=ipw.Layout(width="76px", flex="0 0 auto")
        )
        look = ipw.HBox([self.opacity, self.signed], layout=ipw.Layout(width="100%"))
        grid = ipw.Box(
            [self.samples, self.methods, self.layers, self.targets, look],
            layout=ipw.Layout(width="100%", flex_flow="row wrap"),
        )
        grid.add_class("rw-map-controls")
        super().__init__([grid], layout=ipw.Layout(width="100%", flex="0 0 auto"))
        self.add_class("rw-map-controls-host")
        panel.link("opacity", self.opacity, "value")
        panel.link("signed", self.signed, "value")

    def arrange(self, *, one: bool) -> None:
        """Show what goes with the page (one sample, or the set) and with the method."""
        self.samples.layout.display = None if one and self._count > 1 else "none"
        self.layers.layout.display = None if self._panel.method == GRAD_CAM else "none"

    def offer_layer(self, name: str) -> None:
        """List a layer that is no convolution, such as a whole block, once somebody names it."""
        if name not in self.layers.values:
            self.layers.offer([*self.layers.choice.options, (name, name)])

    def offer_targets(self, count: int, in_view: Iterable[int], chosen: int | None) -> None:
        """List the targets there are: all classes, or of too many those in view and the chosen."""
        self._seen = set(range(count)) if count <= LISTED else set(in_view)
        options = self._target_options(chosen)
        if [value for _, value in options] != self.targets.values:
            self.targets.offer(options)

    def _target_options(self, chosen: int | None) -> list[tuple[str, int | None]]:
        numbers = sorted(self._seen | ({chosen} if chosen is not None else set()))
        names = [(markup.class_name(self._classes, number), number) for number in numbers]
        return [("own prediction", None), *names]


def _layer_options(model: nn.Module, chosen: str | None) -> list[tuple[str, str | None]]:
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    last = f"last convolution ({names[-1]})" if names else "the model has no convolution"
    if chosen is not None and chosen not in names:
        names.append(chosen)
    return [(last, None), *((name, name) for name in names)]
