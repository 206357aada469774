"""Gradients through parts that a model runs without them.  Imports torch only.

A linear probe runs its backbone under ``torch.no_grad()`` or detaches what comes from it.  The scores
depend on the backbone all the same, and so should a ranking of layers: where a pass shows that the
model stops gradients, it is run again with what stops them left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_SET_GRADIENTS = torch._C._set_grad_enabled  # noqa: SLF001 - what no_grad and enable_grad call
INPUTS = "(inputs)"
"""Among the names of modules, the model's inputs."""
_DATA: Any = Tensor.data.__get__  # type: ignore[attr-defined]


def _stops(func: Any, args: Any) -> bool:
    """Whether this call keeps gradients from an activation."""
    if func is _SET_GRADIENTS:
        return bool(args[:1] == (False,))
    if func is Tensor.detach or func == _DATA:
        return isinstance(args[0], Tensor) and args[0].grad_fn is not None
    return False


def _from_inference(args: Any) -> bool:
    """Whether autograd may have to keep a tensor that was made in inference mode, which it refuses."""
    return not torch.is_inference_mode_enabled() and any(
        isinstance(one, Tensor) and one.is_inference() for one in args
    )


class Watching(TorchFunctionMode):
    """Notes whether what runs within stops gradients."""

    stopped = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.stopped = self.stopped or _stops(func, args) or _from_inference(args)
        return func(*args, **kwargs or {})


class Opened(TorchFunctionMode):
    """Gradients go on where what runs within stops them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _stops(func, args):
            return None if func is _SET_GRADIENTS else args[0].view_as(args[0])
        if _from_inference(args):
            args = tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, args)
        return func(*args, **kwargs or {})


_PASSES = threading.local()


def rehearsing() -> bool:
    """Whether the pass under way is one of `opens`, of which hooks of the engine take no notice."""
    return getattr(_PASSES, "rehearsing", False)


def opens(model: nn.Module, inputs: Tensor) -> bool:
    """Whether the model stops gradients, and they reach more of it when nothing stops them."""
    modules = dict(model.named_modules())

    def count(mode: TorchFunctionMode | None) -> int:
        try:
            return list(reached(model, modules, inputs, mode).values()).count("")
        except RuntimeError:
            return -1

    _PASSES.rehearsing = True
    try:
        with Watching() as watching, torch.enable_grad(), suppress(RuntimeError):
            model(inputs.detach().clone().requires_grad_().clone())
        return watching.stopped and count(Opened()) > count(None)
    finally:
        _PASSES.rehearsing = False


def cut_off(run: Callable[[Tensor], Tensor], model: nn.Module, inputs: Tensor) -> str:
    """Why no gradient of the scores that ``run`` gives comes back to the inputs; empty if one does."""
    why = reached(run, dict(model.named_modules()), inputs[:1])[INPUTS]
    return why.replace("to it", "to the inputs")


def reached(
    model: Callable[[Tensor], Tensor],
    modules: Mapping[str, nn.Module],
    inputs: Tensor,
    mode: TorchFunctionMode | None = None,
) -> dict[str, str]:
    """Of each module that runs, and of `INPUTS`, why no gradient of the scores comes back to it.

    An empty text where one does.
    """
    leaf = inputs.detach().clone().requires_grad_()
    edges: dict[str, GradientEdge] = {INPUTS: get_gradient_edge(leaf)}
    given: dict[str, GradientEdge] = {}
    called: dict[str, str] = {INPUTS: ""}
    rehearsal = rehearsing()

    with ExitStack() as stack, torch.enable_grad():
        for name, module in modules.items():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks

            def note(
                part: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name
            ) -> None:
                if rehearsing() and not rehearsal:
                    return
                called[name] = f"{name!r} ({type(part).__name__})" if name else "its own forward"
                for where, tensors in ((given, (args, kwargs)), (edges, output)):
                    found = [one for one in tree_leaves(tensors) if _differentiable(one)]
                    if found:
                        where[name] = get_gradient_edge(found[0])

            stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        if mode is not None:
            stack.enter_context(mode)
        scores = model(leaf.clone())
    with torch.enable_grad():
        total = sum(one.sum() for one in tree_leaves(scores) if _differentiable(one))
    both = [*edges.values(), *given.values()]
    gradients: tuple[Tensor | None, ...] = (None,) * len(both)
    if isinstance(total, Tensor):
        gradients = torch.autograd.grad(total, both, allow_unused=True)
    back = {name for name, one in zip(edges, gradients, strict=False) if one is not None}
    before = dict(zip(given, gradients[len(edges) :], strict=True))
    # It ends where it comes back to what a module answers, or is not even asked for there, and not to
    # what the module was given; the innermost module is done first.
    ends = [
        called[name]
        for name in called
        if name in given and before[name] is None and (name in back or name not in edges)
    ]
    where = f"it ends at {ends[0]}" if ends else "they do not depend on it"
    reason = f"no gradient of the scores comes back to it: {where}"
    return {name: "" if name in back else reason for name in called}


def _differentiable(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad
