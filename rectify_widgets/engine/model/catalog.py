"""Which layers of a model can be edited, and what a forward pass shows of them.  Imports torch only.

A run on one sample and one on two show in which order the modules run, which layers are called
exactly once and compute ``W k + b``, and which dimension of a layer's input counts the samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rectify_widgets.engine.base.checks import check_inputs, check_module, nearest
from rectify_widgets.engine.model.computed import follows
from rectify_widgets.engine.model.keys import SOME_ONLY, EditableLayer
from rectify_widgets.engine.model.running import (
    arrange,
    capturing,
    disarrange,
    eval_mode,
    model_device,
    model_dtype,
    predict,
    unwrap,
)

MIXED = 0.25
"""A sample's keys that move further when another joins it, as a share of the distance between the
two samples' keys, belong to both samples."""


@dataclass(frozen=True)
class LayerCatalog:
    """The layers of a model: those that can be edited and those that cannot, with the reason.

    Both are in network order: the order of the forward pass where the model has been run, otherwise
    the order in which the modules were registered.

    Example:
        >>> catalog = rw.editable_layers(
        ...     torch.nn.Sequential(model, torch.nn.ConvTranspose2d(1, 1, 3))
        ... )
        >>> list(catalog.editable), list(catalog.refused)
        (['0.conv1', '0.conv2', '0.classifier'], ['1'])
    """

    editable: Mapping[str, EditableLayer]
    refused: Mapping[str, str]
    upstream: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """For each editable layer the modules that began to run before it, their uncalled parts too."""

    def __iter__(self) -> Iterator[EditableLayer]:
        return iter(self.editable.values())

    def __len__(self) -> int:
        return len(self.editable)

    def __getitem__(self, name: str) -> EditableLayer:
        return self.get("layer", name)

    def get(self, argument: str, name: object) -> EditableLayer:
        """The layer of that name; a `ValueError` naming ``argument`` says why there is none."""
        if not isinstance(name, str):
            raise TypeError(f"{argument}: got {name!r}, want the dotted name of a layer")
        if name in self.editable:
            return self.editable[name]
        if name in self.refused:
            raise ValueError(f"{argument}: {name!r} cannot be edited: {self.refused[name]}")
        close = nearest(name, [*self.editable, *self.refused])
        raise ValueError(
            f"{argument}: no layer {name!r} that can be edited{close}; "
            f"editable layers: {', '.join(self.editable) or 'none'}"
        )

    def select(self, argument: str, names: object) -> dict[str, EditableLayer]:
        """The named layers in network order, all of them for ``None``; at least one."""
        chosen = dict(self.editable)
        if names is not None:
            if not isinstance(names, Iterable):
                raise TypeError(f"{argument}: got {names!r}, want a list of layer names or None")
            asked = [names] if isinstance(names, str) else list(names)
            if not asked:
                raise ValueError(f"{argument}: got an empty list, want at least one name, or None")
            wanted = {self.get(argument, name).name for name in asked}
            chosen = {name: layer for name, layer in self.editable.items() if name in wanted}
        if not chosen:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.refused.items())
            raise ValueError(
                f"{argument}: no editable layer; want at least one Conv2d or Linear"
                + (f" ({reasons})" if reasons else "")
            )
        return chosen

    def without(self, reasons: Mapping[str, str]) -> LayerCatalog:
        """The same with some of the layers refused, for these reasons."""
        kept = {name: layer for name, layer in self.editable.items() if name not in reasons}
        before = {name: parts for name, parts in self.upstream.items() if name in kept}
        return LayerCatalog(kept, {**self.refused, **reasons}, before)

    def after(self, name: str) -> list[str]:
        """The editable layers whose keys may depend on the output of layer ``name``."""
        return [other for other, before in self.upstream.items() if name in before]


def editable_layers(model: nn.Module, example: Tensor | None = None) -> LayerCatalog:
    """Find the editable layers of ``model``.

    Args:
        model: any torch module.
        example: inputs ``N × C × H × W``.  With them the model runs on the first and on two, so
            that layers are refused as well that are never called, are called more than once, do not
            compute ``W k + b``, or mix samples; and the order is that of the forward pass.

    Raises:
        TypeError, ValueError: ``model`` is not a module, or ``example`` is not a batch for it.

    Example:
        >>> list(rw.editable_layers(model, x[:2]).editable)
        ['conv1', 'conv2', 'classifier']
    """
    root = unwrap(check_module("model", model))
    editable: dict[str, EditableLayer] = {}
    refused: dict[str, str] = {}
    owners = _parameter_owners(root)
    fused = {part.out_proj for part in root.modules() if type(part) is nn.MultiheadAttention}
    for name, module in root.named_modules():
        if module in fused:
            refused[name] = "nn.MultiheadAttention uses its weight directly and never calls it"
        elif reason := _why_not(module, owners):
            refused[name] = reason
        elif isinstance(module, nn.Conv2d | nn.Linear):
            editable[name] = EditableLayer(name, module)
    if example is None:
        return LayerCatalog(editable, refused)
    started, found, wrong = trace_layers(model, editable, check_inputs("example", example)[:2])
    order = sorted(editable, key=started.__getitem__)
    kept = {name: found[name] for name in order if name not in wrong}
    refused.update({name: wrong[name] for name in order if name in wrong})
    begun = sorted(started, key=started.__getitem__)
    upstream = {name: tuple(p for p in begun if started[p] < started[name]) for name in kept}
    return LayerCatalog(kept, refused, upstream)


def _parameter_owners(model: nn.Module) -> dict[tuple[int, int], list[str]]:
    """Names of the parameters by where their data lies, to find weights used in two places."""
    owners: dict[tuple[int, int], list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not _lazy(parameter) and parameter.numel():
            owners.setdefault(_place(parameter), []).append(name)
    return owners


def _place(weight: Tensor) -> tuple[int, int]:
    return weight.untyped_storage().data_ptr(), int(weight.storage_offset())


def _why_not(module: nn.Module, owners: dict[tuple[int, int], list[str]]) -> str | None:
    """Why a module that has a weight of its own cannot be edited; None for all others."""
    family = type(module).__module__
    if ".quantized" in family and hasattr(module, "weight"):
        return "quantised: its weight is packed integers; edit the float model, then quantise"
    if not isinstance(module, nn.Conv2d | nn.Linear):
        own = module.named_parameters(recurse=False)
        if weights := [name for name, p in own if not _lazy(p) and p.ndim > 1]:
            return (
                f"{type(module).__name__}: only Conv2d and Linear have the key/value form, not its "
                f"{', '.join(weights)}"
            )
        return None
    if any(_lazy(p) for p in module.parameters(recurse=False)):
        return "lazy: run the model once so that its weight gets a shape"
    if parametrize.is_parametrized(module) or "weight" not in dict(
        module.named_parameters(recurse=False)
    ):
        return (
            "its weight is computed from other parameters (parametrised, normalised or pruned); make "
            "it one of its own with remove_parametrizations, remove_weight_norm, "
            "remove_spectral_norm or prune.remove"
        )
    weight = module.weight
    if weight.is_meta:
        return "its weight is on the meta device and holds no data"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    shared = owners[_place(weight)]
    if len(shared) > 1:
        return f"its weight is shared by {' and '.join(shared)}"
    return None


def _lazy(parameter: Tensor) -> bool:
    return bool(nn.parameter.is_lazy(parameter))


def trace_layers(
    model: nn.Module, layers: Mapping[str, EditableLayer], example: Tensor
) -> tuple[dict[str, int], dict[str, EditableLayer], dict[str, str]]:
    """How the layers behave while the model runs on the first of ``example``, then on two samples.

    Returns:
        A number for each module, in the order in which they began to run; each layer with the
        dimension of its input that counts the samples, and whether it computes its weight; and the
        layers that cannot be edited instead, with the reason.
    """
    started: dict[str, int] = {}
    wrong: dict[str, str] = {}
    alone: dict[str, Tensor] = {}
    axes: dict[str, int | str] = {}
    computed: set[str] = set()
    calls: tuple[Counter[str], Counter[str]] = Counter(), Counter()

    def trace_one(name: str, inputs: Tensor, output: Tensor) -> None:
        calls[0][name] += 1
        if output.is_inference():
            wrong[name] = (
                "it runs under torch.inference_mode(), which keeps no gradients; let the model use "
                "torch.no_grad() there"
            )
        elif reason := _mismatch(layers[name], inputs, output):
            other = replace(layers[name], computed=True)
            if follows(other.module) and not _mismatch(other, inputs, output):
                computed.add(name)
            else:
                wrong[name] = reason
        # Of a convolution the shape is enough.
        alone[name] = inputs[:0] if layers[name].is_convolution else inputs.clone()

    def trace_two(name: str, inputs: Tensor, _: Tensor) -> None:
        calls[1][name] += 1
        if name not in wrong and calls[1][name] == 1 and name in alone:
            axes[name] = _axis(layers[name], alone.pop(name), inputs)

    parts = dict(unwrap(model).named_modules())
    modules = {name: layer.module for name, layer in layers.items()}
    with eval_mode(model, "example") as module:
        two = _two(example).to(device=model_device(module), dtype=model_dtype(module))
        disarrange(module)
        with _noting_order(parts, started), capturing(modules, trace_one):
            predict(module, two[:1])
        with capturing(modules, trace_two):
            scores = predict(module, two)
        with capturing(modules, lambda *_: None):  # with hooks, hence without fast paths
            arrange(module, two, scores)
    for name in layers:
        once, twice = calls[0][name], calls[1][name]
        if once != twice and min(once, twice) == 0:
            wrong[name] = SOME_ONLY
        elif once == 0:
            wrong[name] = "the forward pass does not call it (its weight may be used directly)"
        elif once > 1:
            wrong[name] = f"used {once} times in one forward pass"
        elif name not in wrong and twice != 1:
            wrong[name] = f"used {twice} times in a forward pass of two samples"
        elif name not in wrong and isinstance(reason := axes[name], str):
            wrong[name] = reason
    laid = {
        name: replace(layers[name], axis=axis, computed=name in computed)
        for name, axis in axes.items()
        if isinstance(axis, int)
    }
    return started, laid, wrong


@contextmanager
def _noting_order(parts: Mapping[str, nn.Module], started: dict[str, int]) -> Iterator[None]:
    """Record the order in which modules begin to run."""
    with ExitStack() as stack:
        for name, part in parts.items():
            if isinstance(part, torch.jit.ScriptModule):
                continue  # takes no hooks

            def begin(_: nn.Module, __: object, name: str = name) -> None:
                started.setdefault(name, len(started))

            stack.callback(part.register_forward_pre_hook(begin).remove)
        yield
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
    """The dimension that counts samples, from a layer's input for one and for two, or why there is none."""
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
        if not own > MIXED * other + _tolerance(one) * float(first.norm()):  # NaN is refused later
            return axis
    if grown:
        return "its input mixes the samples: rows of one lie between those of another"
    return (
        f"its input has shape {tuple(one.shape)} for one sample and {tuple(two.shape)} for two, "
        "so that its rows belong to no sample"
    )
