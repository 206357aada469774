"""What a forward pass may change in a model besides its scores: lent as copies, put back untouched.

Imports torch only.  Observers of quantisation-aware models, running means and caches are buffers or
tensors kept as attributes.  While a model is worked on it holds copies of them, and every pass
starts from the same values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_NOTHING = object()
_TORCHS = frozenset(nn.Module().__dict__)
"""Attributes that torch keeps in every module, its hooks among them."""


class Lent:
    """Copies of a model's buffers and tensor attributes in their place, from `renew` to `give_back`.

    Weights that were made in inference mode are lent as well: autograd refuses the originals.
    """

    def __init__(self, model: nn.Module) -> None:
        self._copies: dict[int, tuple[Tensor, Tensor, int]] = {}
        """By the identity of the original: original, its copy, and the copy's version."""
        self._uncounted = {
            id(one) for part in model.modules() if _uncounted(part) for one in part.buffers()
        }
        places = [place for part in model.modules() for place in _places(part)]
        self._all = [(place, dict(place)) for place in places]
        self._caches = [(one, dict(one)) for part in model.modules() for one in _caches(part)]
        weights = {
            one.untyped_storage().data_ptr() for one in model.parameters() if not one.is_inference()
        }
        buffers = {id(part._buffers) for part in model.modules()}  # noqa: SLF001 - has no public name
        self._empty = [
            (place, name)
            for place, before in self._all
            if id(place) in buffers
            for name, one in before.items()
            if one is None
        ]
        self._slots: list[tuple[dict[str, Any], str, Tensor]] = []
        for place, before in self._all:
            for name, one in before.items():
                if not isinstance(one, Tensor):
                    continue
                if isinstance(one, nn.Parameter) and not one.is_inference():
                    continue
                with contextlib.suppress(RuntimeError, NotImplementedError):  # no storage: a copy
                    if one.untyped_storage().data_ptr() in weights:
                        continue  # a view of a weight, which edits must change too
                self._slots.append((place, name, one))

    def renew(self) -> None:
        """Start the next pass from the original values."""
        for place, name in self._empty:
            place[name] = None
        for place, name, original in self._slots:
            _, copy, version = self._copies.get(id(original), (original, None, 0))
            if copy is None or _writes(copy) != version or id(original) in self._uncounted:
                copy = _copy(original)
                self._copies[id(original)] = original, copy, _writes(copy)
            if place.get(name) is not copy:
                place[name] = copy

    def give_back(self) -> None:
        """Put every original back where it was, and remove tensors that a pass has left behind."""
        for place, before in self._all:
            for name in [name for name in place if name not in before]:
                if isinstance(place[name], Tensor):
                    del place[name]
            for name, one in before.items():
                now = place.get(name, _NOTHING)
                if now is not one and (isinstance(one, Tensor) or isinstance(now, Tensor)):
                    place[name] = one
        for cache, held in self._caches:
            if cache.keys() != held.keys() or any(cache[key] is not held[key] for key in held):
                cache.clear()
                cache.update(held)


def _places(part: nn.Module) -> Iterator[dict[str, Any]]:
    """The dictionaries in which a module keeps tensors."""
    if isinstance(part, torch.jit.ScriptModule):
        return  # keeps them elsewhere
    held = part.__dict__
    yield held["_parameters"]
    yield held["_buffers"]
    yield held


def _caches(part: nn.Module) -> Iterator[dict[Any, Any]]:
    """The dictionaries in which a module may keep what it has computed, tensors or nothing yet.

    LeViT of transformers keeps its biases of places so, by device.
    """
    for name, one in part.__dict__.items():
        own = type(one) is dict and name not in _TORCHS
        if own and all(isinstance(value, Tensor) for value in one.values()):
            yield one


def _uncounted(part: nn.Module) -> bool:
    """Whether a module writes to its buffers in a way that torch does not count.

    The fused operator of torch's observers (``fused_moving_avg_obs_fake_quant``) does.
    """
    return any(kind.__module__.startswith("torch.ao.quantization") for kind in type(part).__mro__)


def _writes(tensor: Tensor) -> int:
    """How often a tensor has been written to."""
    return tensor._version  # noqa: SLF001 - has no public name


def _copy(tensor: Tensor) -> Tensor:
    with torch.inference_mode(mode=False), torch.no_grad():
        copy = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(copy, requires_grad=tensor.requires_grad)
    return copy
