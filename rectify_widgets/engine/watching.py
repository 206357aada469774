"""What a forward pass shows of a model's layers.  Imports torch only.

`watch` runs a model on one sample and on two: in which order its modules run, which layers are
called just once and answer ``W k + b``, and which dimension of a layer's input counts the samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rectify_widgets.engine.inspection import (
    arrange,
    capturing,
    disarrange,
    inspecting,
    model_device,
    model_dtype,
    predict,
    unwrap,
)

if TYPE_CHECKING:  # `layers` finds them with the help of this module
    from rectify_widgets.engine.layers import EditableLayer

MIXED = 0.25
"""A sample's keys that move further when another joins it, as a share of the distance between the
two samples' keys, belong to both samples."""


@dataclass(frozen=True)
class Watched:
    """What was seen of the layers.

    Attributes:
        started: a number for each module, in the order in which they began to run.
        refused: layers that cannot be edited, with the reason.
        axes: dimension of the input that counts the samples, for all other layers.
    """

    started: Mapping[str, int]
    refused: Mapping[str, str]
    axes: Mapping[str, int]


def watch(model: nn.Module, layers: Mapping[str, EditableLayer], example: Tensor) -> Watched:
    """Look at ``layers`` while the model runs on the first of ``example``, then on two samples."""
    started: dict[str, int] = {}
    wrong: dict[str, str] = {}
    alone: dict[str, Tensor] = {}
    axes: dict[str, int | str] = {}
    calls: tuple[Counter[str], Counter[str]] = Counter(), Counter()

    def see_one(name: str, inputs: Tensor, output: Tensor) -> None:
        calls[0][name] += 1
        if reason := _mismatch(layers[name], inputs, output):
            wrong[name] = reason
        # Of a convolution the shape will do.
        alone[name] = inputs[:0] if layers[name].is_convolution else inputs.clone()

    def see_two(name: str, inputs: Tensor, _: Tensor) -> None:
        calls[1][name] += 1
        if name not in wrong and calls[1][name] == 1:
            axes[name] = _axis(layers[name], alone.pop(name), inputs)

    parts = dict(unwrap(model).named_modules())
    modules = {name: layer.module for name, layer in layers.items()}
    with inspecting(model) as module:
        two = _two(example).to(device=model_device(module), dtype=model_dtype(module))
        disarrange(module)
        with _noting_order(parts, started), capturing(modules, see_one):
            predict(module, two[:1])
        with capturing(modules, see_two):
            scores = predict(module, two)
        with capturing(modules, lambda *_: None):  # as it is watched, without fast paths
            arrange(module, two, scores)
    refused: dict[str, str] = {}
    for name in layers:
        if calls[0][name] == 0:
            refused[name] = "the forward pass does not call it (its weight may be used directly)"
        elif calls[0][name] > 1:
            refused[name] = f"used {calls[0][name]} times in one forward pass"
        elif name in wrong:
            refused[name] = wrong[name]
        elif calls[1][name] != 1:
            refused[name] = f"used {calls[1][name]} times in a forward pass of two samples"
        elif isinstance(reason := axes[name], str):
            refused[name] = reason
    found = {name: axis for name, axis in axes.items() if isinstance(axis, int)}
    return Watched(started, refused, found)


@contextmanager
def _noting_order(parts: Mapping[str, nn.Module], started: dict[str, int]) -> Iterator[None]:
    """Write down when each module begins to run."""
    handles = []
    try:
        for name, part in parts.items():

            def begin(_: nn.Module, __: object, name: str = name) -> None:
                started.setdefault(name, len(started))

            handles.append(part.register_forward_pre_hook(begin))
        yield
    finally:
        for handle in handles:
            handle.remove()
    for name in parts:
        # A part that is never called may have its weight used by the module that holds it.
        started.setdefault(name, started.get(name.rpartition(".")[0], 0))


def _two(example: Tensor) -> Tensor:
    """The first sample and another one, made from it where there is none."""
    second = example[1:2] if len(example) > 1 else 0.5 * example.flip(-1)
    return torch.cat([example[:1], second])


def _mismatch(layer: EditableLayer, inputs: Tensor, output: Tensor) -> str | None:
    """Why the layer's output is not ``W k + b`` at every position; None where it is."""
    if layer.is_convolution and inputs.ndim != 4:
        return f"its input has shape {tuple(inputs.shape)}, not N × C × H × W"
    if inputs.ndim < 2:
        return f"its input has shape {tuple(inputs.shape)}, with no dimension for samples"
    values = layer.keys(inputs, samples=inputs.shape[0]).values()
    if layer.module.bias is not None:
        bias = layer.module.bias.detach().to(values.dtype)
        values = values + bias.reshape(1, layer.groups, -1, 1)
    if values.numel() != output.numel():
        return "its output has another shape than W k + b (a subclass with a forward of its own?)"
    actual = layer.positions(output, samples=inputs.shape[0])
    tolerance = _tolerance(output) * float(values.abs().max() + 1e-12)
    if values.shape != actual.shape or float((values - actual).abs().max()) > tolerance:
        return "its output is not W k + b (a hook or a subclass with a forward of its own?)"
    return None


def _tolerance(values: Tensor) -> float:
    return float(max(1e-3, 8 * torch.finfo(values.dtype).eps))


def _axis(layer: EditableLayer, one: Tensor, two: Tensor) -> int | str:
    """The dimension that counts samples, from a layer's input for one and for two; or why none."""
    if layer.is_convolution:
        if len(two) == 2:
            return 0
        return f"it sees {len(two)} rows for two samples, not one for each"
    grown = [
        axis
        for axis in range(one.ndim - 1)
        if two.shape == (*one.shape[:axis], 2 * one.shape[axis], *one.shape[axis + 1 :])
    ]
    for axis in grown:
        laid = replace(layer, axis=axis)
        (first,), (again, second) = laid.keys(one, 1).inputs, laid.keys(two, 2).inputs
        own, other = float((again - first).norm()), float((again - second).norm())
        if not own > MIXED * other + _tolerance(one) * float(first.norm()):  # NaN is found later
            return axis
    if grown:
        return "its input mixes the samples: rows of one lie between those of another"
    return (
        f"its input has shape {tuple(one.shape)} for one sample and {tuple(two.shape)} for two, "
        "so that its rows belong to no sample"
    )
