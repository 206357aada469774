"""Which layers see every sample: a mixture of experts calls some of its layers for some inputs only.

Imports torch only.  Keys and gradients are compared sample by sample, so a layer that got a sample in
one pass and none, or another number of rows, in the next has no place for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rectify_widgets.engine.model.keys import SOME_ONLY, EditableLayer
from rectify_widgets.engine.model.opening import rehearsing
from rectify_widgets.engine.model.running import capturing, unwrap


class Flow:
    """How many rows each layer gets for each sample, over all passes that it has seen."""

    def __init__(self, layers: Mapping[str, EditableLayer]) -> None:
        self._layers = layers
        self._samples = 0
        self._passes = 0
        self._calls = dict.fromkeys(layers, 0)
        self._rates: dict[str, set[float]] = {name: set() for name in layers}

    def begin(self, samples: int) -> None:
        """A pass of so many samples begins."""
        self._samples = samples
        self._passes += 1

    def see(self, name: str, inputs: Tensor) -> None:
        """A layer is called in it."""
        self._calls[name] += 1
        self._rates[name].add(inputs.shape[self._layers[name].axis] / max(self._samples, 1))

    def uneven(self, name: str) -> bool:
        """Whether the layer was not called once in each pass, with as many rows for each sample."""
        rates = self._rates[name]
        whole = len(rates) == 1 and next(iter(rates)).is_integer()
        return bool(self._passes) and not (whole and self._calls[name] == self._passes)

    def reasons(self) -> dict[str, str]:
        """The layers that do not see every sample, with the reason why they cannot be edited."""
        return {name: SOME_ONLY for name in self._layers if self.uneven(name)}


@contextmanager
def following(model: nn.Module, layers: Mapping[str, EditableLayer]) -> Iterator[Flow]:
    """Watch all passes of the model in the block."""
    flow = Flow(layers)

    def begin(_: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor) and not rehearsing():
            flow.begin(len(args[0]))

    modules = {name: layer.module for name, layer in layers.items()}
    with capturing(modules, lambda name, inputs, _: flow.see(name, inputs)):
        handle = unwrap(model).register_forward_pre_hook(begin)
        try:
            yield flow
        finally:
            handle.remove()
