"""Other heads and other forms of the small network: scripts, quantised and unfinished ones.

Imports torch and the package.  Importing it adds the kinds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.ao import quantization

import rectify_widgets as rw
from tests.kinds.scene import CLASSES, kind
from tests.kinds.variants import Small

# --- heads ---------------------------------------------------------------------------------------

kind("one column, adapted", lambda: rw.adapt(Small(1), task="binary", scores="logits"), classes=2)
kind(
    "labels, adapted",
    lambda: rw.adapt(Small(), task="multilabel", scores="logits"),
    hot=True,
)
kind("one column, not adapted", lambda: Small(1), classes=2)


class Probabilities(Small):
    """Ends in softmax."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).softmax(dim=1)


kind(
    "softmax, adapted", lambda: rw.adapt(Probabilities(), task="multiclass", scores="probabilities")
)
kind("softmax, not adapted", Probabilities)
kind("two classes", lambda: Small(2), classes=2)


# --- other forms of a network --------------------------------------------------------------------

kind("on the meta device", lambda: Small().to("meta"), refused="meta device")


class Lazy(Small):
    """Its head learns its size from the first input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(CLASSES)


@kind("lazily built")
def _() -> nn.Module:
    model = Lazy().eval()
    model(torch.ones(1, 3, 8, 8))
    return model


kind("lazy without a shape", Lazy, refused="lazy layers without a shape")


def scripted(make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A TorchScript module."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make(network)


kind("TorchScript, scripted", lambda: scripted(torch.jit.script), refused="TorchScript module")
kind(
    "TorchScript, traced",
    lambda: scripted(lambda one: torch.jit.trace(one, torch.ones(1, 3, 8, 8))),
    refused="TorchScript module",
)


@kind("a TorchScript part")
def _() -> nn.Module:
    model = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model.second = torch.jit.script(model.second)  # type: ignore[assignment]
    return model


@kind("dynamic int8 head", exact=0.02)  # likewise
def _() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return quantization.quantize_dynamic(Small().eval(), {nn.Linear})  # type: ignore[no-any-return]


@kind("quantisation-aware", exact=0.02)  # its scales follow the batch
def _() -> nn.Module:
    model: Any = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        model = quantization.prepare_qat(model.train())
        model(2 * torch.rand(4, 3, 8, 8))
    return cast("nn.Module", model)
