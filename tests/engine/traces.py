"""A small network to hand to the engine, and everything by which a call could leave a trace in it.

Imports torch, numpy and the standard library.  `untouched` records weights, flags, hooks, random
numbers, modes and inputs before a block and compares them to the bit after it.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

Record = dict[str, object]
"""What is to stay as it is: a name for people, and anything that compares with ``==``."""


class Tiny(nn.Module):
    """Three convolutions, one of them normalised, and a linear layer on 3 × 8 × 8 images."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # made inside a call, it leaves no trace of its own
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
            self.third = nn.Conv2d(6, 6, 3, padding=1)
            self.head = nn.Linear(24, 4)
        self.activation = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(2)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.ndim > 1:
                    scale = (2 / weight[0].numel()) ** 0.5
                    weight.copy_(scale * torch.randn(weight.shape, generator=generator))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.first(x)))
        x = self.activation(self.second(x))
        return self.head(self.pool(self.activation(self.third(x))).flatten(1))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """Each sample goes to the expert that its first value names."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 4, 3)
            self.experts = nn.ModuleList(nn.Linear(144, 6) for _ in range(2))
            self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.stem(x).flatten(1)
        mixed, which = z.new_zeros(len(z), 6), (x[:, 0, 7, 7] > 0.5).long()
        for number, expert in enumerate(self.experts):
            rows = which == number
            if bool(rows.any()):
                mixed[rows] = expert(z[rows])
        scores: Tensor = self.head(mixed.relu())
        return scores


def images(count: int, seed: int = 1) -> Tensor:
    """Random images ``count × 3 × 8 × 8`` in 0..1."""
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def corrupted(clean: Tensor) -> Tensor:
    """The images with a magenta square in a corner."""
    marked = clean.clone()
    marked[:, :, :3, :3] = torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1).to(clean)
    return marked


def parts_of(thing: object) -> Iterator[Tensor]:
    """The tensors in an argument."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, tuple | list):
        for item in thing:
            yield from parts_of(item)


def record(model: object, *arguments: object) -> Record:
    """All that a call on ``model`` with ``arguments`` is to leave as it is."""
    found = {**_random_numbers(), **_modes(), **_global_hooks()}
    if isinstance(model, nn.Module):
        found.update(_structure(model))
    for number, tensor in enumerate(parts_of(arguments)):
        found.update(_tensor(f"input {number}", tensor))
    return found


def changes(before: Record, after: Record) -> list[str]:
    """What differs between two records, in words."""
    names = sorted(before.keys() | after.keys())
    missing = "(nothing)"
    return [
        f"{name}: {before.get(name, missing)!r:.200} became {after.get(name, missing)!r:.200}"
        for name in names
        if before.get(name, missing) != after.get(name, missing)
    ]


@contextmanager
def untouched(model: object, *arguments: object, when: str = "") -> Iterator[None]:
    """Fail if the block leaves a trace, whether it succeeds or raises."""
    before = record(model, *arguments)
    try:
        yield
    finally:
        left = changes(before, record(model, *arguments))
        if left:
            pytest.fail("\n".join([f"left a trace {when}", *left]))


def _structure(model: nn.Module) -> Record:
    found: Record = {"state_dict": list(_state_names(model))}
    for name, module in model.named_modules(remove_duplicate=False):
        label = f"module {name or '(root)'}"
        found[f"{label}: identity"] = id(module)
        # The order of the names counts: a hook put back at the end of the queue is a change too.
        found[f"{label}: attributes"] = list(vars(module))
        for attribute, value in vars(module).items():
            if isinstance(value, dict):
                items = [(str(key), id(item)) for key, item in value.items()]
                found[f"{label}: {attribute}"] = items
            elif isinstance(value, bool | int | float | str | bytes | type(None)):
                found[f"{label}: {attribute}"] = value
            else:
                found[f"{label}: {attribute}"] = id(value)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.update(_tensor(f"parameter {name}", parameter))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        found.update(_tensor(f"buffer {name}", buffer))
    return found


def _state_names(model: nn.Module) -> Iterator[str]:
    for name, _ in model.named_parameters(remove_duplicate=False):
        yield name
    for name, _ in model.named_buffers(remove_duplicate=False):
        yield name


def _tensor(label: str, tensor: Tensor) -> Record:
    if nn.parameter.is_lazy(tensor):
        return {f"{label}: identity": id(tensor)}
    found: Record = {
        f"{label}: identity": id(tensor),
        f"{label}: shape": tuple(tensor.shape),
        f"{label}: dtype": tensor.dtype,
        f"{label}: device": str(tensor.device),
        f"{label}: requires_grad": tensor.requires_grad,
        f"{label}: grad": _gradient(tensor),
        f"{label}: hooks": _hooks_of(tensor),
        # The version grows with every write in place, also with one that is taken back: a graph
        # that a user keeps for a backward pass would be refused afterwards.
        f"{label}: version": None if tensor.is_inference() else tensor._version,
    }
    if tensor.layout is torch.strided:
        found[f"{label}: strides"] = tensor.stride()
        found[f"{label}: storage offset"] = tensor.storage_offset()
        if not tensor.is_meta:
            found[f"{label}: place"] = tensor.data_ptr()
            found[f"{label}: values"] = _bytes(tensor)
    return found


def _gradient(tensor: Tensor) -> tuple[int, str] | None:
    """Identity and values of the gradient; torch warns when that of an inner tensor is asked for."""
    if not tensor.is_leaf or tensor.grad is None:
        return None
    return id(tensor.grad), _bytes(tensor.grad)


def _bytes(tensor: Tensor) -> str:
    """Digest of the storage, so that values between the strides count as well."""
    raw = torch.empty(0, dtype=torch.uint8).set_(tensor.detach().cpu().untyped_storage())
    return hashlib.blake2b(raw.numpy().tobytes(), digest_size=16).hexdigest()


def _hooks_of(tensor: Tensor) -> list[list[int]]:
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return [[id(hook) for hook in (getattr(tensor, kind, None) or {}).values()] for kind in kinds]


def _random_numbers() -> Record:
    found: Record = {"random numbers of torch": _bytes(torch.get_rng_state())}
    if torch.cuda.is_available():
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            found[f"random numbers of torch on cuda:{number}"] = _bytes(state)
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global state is the point
    found["random numbers of numpy"] = (kind, hash(np.asarray(keys).tobytes()), *rest)
    found["random numbers of Python"] = hash(random.getstate())
    return found


def _modes() -> Record:
    found: Record = {
        "mode: gradients": torch.is_grad_enabled(),
        "mode: inference": torch.is_inference_mode_enabled(),
        "mode: autocast": torch.is_autocast_enabled("cpu"),
        "mode: autocast type": torch.get_autocast_dtype("cpu"),
        "mode: autocast cache": torch.is_autocast_cache_enabled(),
        "mode: anomaly detection": torch.is_anomaly_enabled(),
        "mode: default type": torch.get_default_dtype(),
        "mode: threads": torch.get_num_threads(),
        "mode: deterministic": torch.are_deterministic_algorithms_enabled(),
        "mode: cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark),
    }
    compiler: Any = sys.modules.get("torch._dynamo.eval_frame")
    stance = getattr(compiler, "_stance", None)
    found["mode: compiler stance"] = stance.stance if stance is not None else "default"
    return found


def _global_hooks() -> Record:
    return {
        f"hooks of all modules: {name}": [id(hook) for hook in value.values()]
        for name, value in vars(torch_module).items()
        if name.startswith("_global_") and isinstance(value, dict)
    }
