"""Controls of `AttributionViewer`: what is looked at, with which method, and how it is drawn.

Imports ipywidgets, the steppers and the panel's links.  Each control stands for one trait of the
panel; choosing in it and setting the trait are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets as ipw
from torch import nn

from rectify_widgets.explain import METHODS
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
        holding: whether a list is being changed, so that what it says is no choice.
    """

    def __init__(
        self, panel: Panel, count: int, model: nn.Module, classes: Sequence[str] | None
    ) -> None:
        self.holding = False
        self._panel, self._count, self._classes = panel, count, classes
        self.samples = SampleStepper(panel, count)
        self.methods = ChoiceStepper(panel, "method", METHODS, "Method")
        self.layers = ChoiceStepper(panel, "layer", _layer_options(model, panel.layer), "Layer")
        self.targets = ipw.Dropdown(
            description="Explain",
            layout=ipw.Layout(width="100%", min_width="0"),
            style={"description_width": LABEL},
        )
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
        super().__init__(
            [self.samples, self.methods, self.layers, self.targets, look],
            layout=ipw.Layout(width="100%", flex_flow="row wrap"),
        )
        self.add_class("rw-map-controls")
        panel.link("opacity", self.opacity, "value")
        panel.link("signed", self.signed, "value")
        self.offer_targets(len(classes) if classes is not None else 0)
        panel.listen(self.targets, self._take_target, ["value"])

    def arrange(self, *, one: bool) -> None:
        """Show what goes with the page (one sample, or the set) and with the method."""
        self.samples.layout.display = None if one and self._count > 1 else "none"
        self.layers.layout.display = None if self._panel.method == GRAD_CAM else "none"

    def offer_layer(self, name: str) -> None:
        """List a layer that is no convolution, such as a whole block, once somebody names it."""
        choice = self.layers.choice
        if name not in [value for _, value in choice.options]:
            with self.hold():
                choice.options = [*choice.options, (name, name)]

    def offer_targets(self, count: int, in_view: Iterable[int] = ()) -> None:
        """List the targets there are, and choose in the list what the trait says."""
        numbers = set(range(count)) if count <= LISTED else set(in_view)
        target = self._panel.target
        if target is not None:
            numbers.add(target)
        names = [(markup.class_name(self._classes, number), number) for number in sorted(numbers)]
        options = [("own prediction", None), *names]
        with self.hold():
            if list(self.targets.options) != options:
                self.targets.options = options
            self.targets.value = target

    def _take_target(self, change: Mapping[str, Any]) -> None:
        if not self.holding:
            self._panel.target = change["new"]

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Change lists or several traits without taking each step for a choice."""
        before, self.holding = self.holding, True
        try:
            yield
        finally:
            self.holding = before


def _layer_options(model: nn.Module, chosen: str | None) -> list[tuple[str, str | None]]:
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)]
    last = f"last convolution ({names[-1]})" if names else "the model has no convolution"
    if chosen is not None and chosen not in names:
        names.append(chosen)
    return [(last, None), *((name, name) for name in names)]
