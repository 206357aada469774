"""Which axes of a layer's output count samples, channels and places.  Imports torch only.

One forward pass of two samples is followed from the inputs, whose axes are known, through every
torch function: convolutions put channels first, linear layers last, and what permutes, reshapes or
cuts a tensor is repeated on one without data, whose strides show where each axis went.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.model.opening import rehearsing
from rectify_widgets.engine.model.running import predict

LAYOUTS = ("channels-first", "channels-last")
ToMaps: TypeAlias = Callable[[Tensor], Tensor]
"""Arranges a layer's output as ``N × C × h × w``."""

_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm", "max_pool", "avg_pool")
"""Parts of the names of functions whose channels are axis 1."""
_VIEWS = frozenset({
    "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "reshape", "view",
    "flatten", "unflatten", "unsqueeze", "squeeze", "select", "narrow", "chunk", "split", "unbind",
    "tensor_split", "expand", "unfold", "__getitem__", "split_with_sizes",
})  # fmt: skip
"""Functions that show the numbers of one tensor in another shape."""
_CUTS = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "narrow", "__getitem__"})
"""Those that may take a part of an axis."""
_PRODUCTS = frozenset({"linear", "matmul", "__matmul__", "bmm", "baddbmm", "addmm", "einsum"})
_MOST_TOKENS = 16
"""Tokens besides the grid (class, distillation, registers) that are looked for."""


@dataclass(frozen=True)
class Axes:
    """What is known of the axes of a tensor."""

    samples: int | None = None
    channels: int | None = None
    grid: tuple[int, int] | None = None
    """Height and width of the places that lie on one axis."""
    before: int = 0
    """Tokens on that axis in front of the grid."""


class _Following(TorchFunctionMode):
    """Notes the axes of every tensor that comes from ``inputs`` while it is active."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self._known = WeakTensorKeyDictionary()
        self.note(inputs, Axes(0, 1))

    def note(self, tensor: Tensor, axes: Axes) -> None:
        self._known[tensor] = axes

    def axes(self, tensor: Tensor) -> Axes | None:
        found: Axes | None = self._known.get(tensor)
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        shapes = [
            (leaf, tuple(leaf.shape))
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and self.axes(leaf) is not None
        ]
        result = func(*args, **kwargs)
        if shapes:
            # `x.T` and the like come as a getter, whose owner bears the name.
            owner = getattr(func, "__self__", None)
            name = getattr(owner if func.__name__ == "__get__" else func, "__name__", "")
            self._pass_on(name, func, args, kwargs, result, shapes)
        return result

    def _pass_on(
        self,
        name: str,
        func: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        sources: list[tuple[Tensor, tuple[int, ...]]],
    ) -> None:
        """Note the axes of what a function made of tensors with known axes."""
        # Of several that take part, such as both sides of a sum, the one that is known best.
        largest = max(len(shape) for _, shape in sources)
        sources = [one for one in sources if len(one[1]) == largest]
        source, shape = max(sources, key=lambda one: _known(self.axes(one[0])))
        axes = self.axes(source) or Axes()
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        found: list[Axes] = []
        if name in _VIEWS or name in {"T", "mT"}:
            found = _moved(name, axes, shape, func, args, kwargs) or [Axes()] * len(outputs)
        for number, output in enumerate(outputs):
            if found:
                now = found[number] if number < len(found) else Axes()
            elif any(part in name for part in _FIRST):
                now = Axes(0, 1)
            elif name in _PRODUCTS:
                now = _of_product(name, axes, output, sources)
            else:
                now = _same(axes, shape, output)
            if name in {"cat", "concat", "concatenate"} and now.grid is not None:
                whole = next(iter(args), kwargs.get("tensors", ()))
                place = next((n for n, part in enumerate(whole) if part is source), 0)
                axis = _places(now, output.ndim)[0]
                now = replace(now, before=sum(part.shape[axis] for part in whole[:place]))
            self.note(output, _fitting(now, output))


def _known(axes: Axes | None) -> int:
    """How much is known."""
    if axes is None:
        return -1
    return sum(one is not None for one in (axes.samples, axes.channels, axes.grid))


def _same(axes: Axes, shape: tuple[int, ...], output: Tensor) -> Axes:
    """Axes of what a function made that leaves them in place, as far as the sizes allow it."""
    if output.ndim != len(shape):
        return Axes()

    def kept(axis: int | None) -> int | None:
        return axis if axis is not None and output.shape[axis] == shape[axis] else None

    return replace(axes, samples=kept(axes.samples), channels=kept(axes.channels))


def _of_product(
    name: str, axes: Axes, output: Tensor, sources: list[tuple[Tensor, tuple[int, ...]]]
) -> Axes:
    """Axes of a product: with a weight the last axis holds channels, with another activation none."""
    if name == "einsum" or len(sources) > 1:
        return Axes(samples=_same(axes, sources[0][1], output).samples)
    last = output.ndim - 1
    samples = axes.samples if axes.samples != last else None
    return replace(axes, samples=samples, channels=last)


def _moved(
    name: str, axes: Axes, shape: tuple[int, ...], func: Any, args: Any, kwargs: Any
) -> list[Axes]:
    """Axes of what such a function makes of a tensor of that shape; nothing where it cannot be told."""
    plain = torch.empty(shape, device="meta")

    def stand_in(leaf: Any) -> Any:
        return plain if isinstance(leaf, Tensor) else leaf

    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if len(tensors) != 1:
        return []
    try:
        made = func(*tree_map(stand_in, args), **tree_map(stand_in, kwargs))
    except (RuntimeError, IndexError, TypeError):
        return []
    steps = plain.stride()
    found = []
    for one in tree_leaves(made):
        if not isinstance(one, Tensor):
            continue
        where = list(zip(one.stride(), one.shape, strict=True))

        def place(axis: int | None, where: list[tuple[int, int]] = where) -> int | None:
            """Where an axis is now: it has the same step there, there alone, and unless cut the size."""
            at = [
                number
                for number, (step, size) in enumerate(where)
                if axis is not None
                and step == steps[axis]
                and (size == shape[axis] or (name in _CUTS and size < shape[axis]))
            ]
            return at[0] if len(at) == 1 else None

        now = replace(axes, samples=place(axes.samples), channels=place(axes.channels))
        if len(spots := _places(axes, len(shape))) == 2:
            merged = (steps[spots[1]], shape[spots[0]] * shape[spots[1]])
            grid = (shape[spots[0]], shape[spots[1]])
            now = replace(now, grid=grid if merged in where else None, before=0)
        found.append(now)
    return found


def _places(axes: Axes, count: int) -> list[int]:
    """The axes of ``count`` that count neither samples nor channels; none where those are unknown."""
    if axes.samples is None or axes.channels is None:
        return []
    return [axis for axis in range(count) if axis not in {axes.samples, axes.channels}]


def _fitting(axes: Axes, tensor: Tensor) -> Axes:
    """The same without a grid that the tensor cannot hold; a tensor cut to its grid begins with it.

    Samples that were lost, in windows say, are found again where two lie in front.
    """
    if axes.samples is None and axes.channels != 0 and tensor.shape[:1] == (2,):
        axes = replace(axes, samples=0)
    spots = _places(axes, tensor.ndim)
    if axes.grid is None or len(spots) != 1:
        return replace(axes, grid=None, before=0)
    spare = int(tensor.shape[spots[0]]) - math.prod(axes.grid)
    if spare < 0:
        return replace(axes, grid=None, before=0)
    return replace(axes, before=min(axes.before, spare))


@contextmanager
def _told(
    layer: nn.Module, seen: list[tuple[Tensor, Axes | None]], mode: _Following
) -> Iterator[None]:
    def note(_: nn.Module, __: object, output: object) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            seen.append((tensor.detach(), mode.axes(tensor)))

    handle = layer.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def first_tensor(output: object) -> Tensor | None:
    """A layer's output, or the first entry of a tuple or list that it returns."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def check_layout(layout: object) -> str | ToMaps | None:
    """``layout`` if it is None, a name or a function."""
    return layout if layout is None or callable(layout) else check_choice("layout", layout, LAYOUTS)


def to_maps(
    model: nn.Module, layer: nn.Module, inputs: Tensor, layout: str | ToMaps | None = None
) -> tuple[ToMaps, int]:
    """What arranges the layer's output as ``N × C × h × w``, and the tokens that it leaves out.

    Args:
        model: in evaluation mode, see `rectify_widgets.engine.model.running.eval_mode`.
        layer: a module within it.
        inputs: ``N × C × H × W``, of which up to two are run.
        layout: see `rectify_widgets.explain.grad_cam`.

    Raises:
        ValueError: the layer is not called once, or its output has no places.
    """
    two = torch.cat([inputs[:1], inputs[:1] if len(inputs) < 2 else inputs[1:2]]).detach()
    seen: list[tuple[Tensor, Axes | None]] = []
    mode = _Following(two)
    with torch.no_grad(), _told(layer, seen, mode), mode:
        predict(model, two)
    if len(seen) != 1:
        has = f"has {len(seen)} outputs in one forward pass" if seen else "is never called"
        raise ValueError(f"layer: this one {has}, want one output; name a convolution")
    output, axes = seen[0]
    shape = tuple(output.shape)
    if callable(layout):
        return _checked(layout), 0
    if layout is not None:
        grid, before = (axes.grid, axes.before) if axes is not None else (None, 0)
        axes = Axes(0, 1 if layout == LAYOUTS[0] else output.ndim - 1, grid, before)
    axes = axes or _of_kind(layer, output.ndim)
    hint = (
        "name a convolution, or give layout=, a name or a function from its output to N × C × h × w"
    )
    samples, channels = axes.samples, axes.channels
    if samples is None or channels is None or shape[samples] != 2:
        raise ValueError(
            f"layer: which axes of its output count samples, channels and places cannot be told "
            f"from its shape {shape} for two samples; {hint}"
        )
    spots = _places(axes, output.ndim)
    if len(spots) == 2:
        return (lambda one: one.movedim((samples, channels), (0, 1))), 0
    if len(spots) == 1:
        axes = axes if axes.grid is not None else _squared(axes, shape[spots[0]], inputs)
        if axes.grid is not None:
            height, width = axes.grid
            rows = slice(axes.before, axes.before + height * width)

            def arranged(one: Tensor) -> Tensor:
                lined = one.movedim((samples, channels), (0, 1))[:, :, rows]
                return lined.reshape(*lined.shape[:2], height, width)

            return arranged, shape[spots[0]] - height * width
    raise ValueError(f"layer: its output of shape {shape} for two samples has no places; {hint}")


def _checked(layout: ToMaps) -> ToMaps:
    def arranged(one: Tensor) -> Tensor:
        made: object = layout(one)
        if not isinstance(made, Tensor) or made.ndim != 4:
            got = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"layout: the function returned {got}, want a tensor N × C × h × w")
        return made

    return arranged


def _of_kind(layer: nn.Module, count: int) -> Axes:
    """Axes of the output of a layer whose pass cannot be followed (a compiled part, say)."""
    if isinstance(layer, nn.Linear):
        return Axes(0, count - 1)
    first = nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.GroupNorm | nn.MaxPool2d
    return Axes(0, 1) if isinstance(layer, first) else Axes()


def _squared(axes: Axes, tokens: int, inputs: Tensor) -> Axes:
    """With the grid of the images' proportions that so many tokens hold behind the fewest others."""
    height, width = inputs.shape[-2:]
    for before in range(min(_MOST_TOKENS, tokens)):
        rows = round(math.sqrt((tokens - before) * height / width))
        if rows and rows * rows * width == (tokens - before) * height:
            return replace(axes, grid=(rows, (tokens - before) // rows), before=before)
    return axes


def from_layer(
    layer: nn.Module, run: Callable[[Tensor], Tensor], inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """The layer's output and the scores that ``run`` gives, with the graph between them.

    What follows the layer gets a copy, so that no in-place operation changes the output.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None or rehearsing():
            return output
        seen.append(tensor)
        copy = tensor.clone()
        if isinstance(output, Tensor):
            return copy
        rest = (copy, *output[1:])
        return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)

    handle = layer.register_forward_hook(keep)
    try:
        scores = run(inputs)
    finally:
        handle.remove()
    return seen[0], scores
