"""Estimating the memory of a call, and keeping it to a limit.  Imports torch only.

What grows without bound are the second moments, one number for each pair of key entries of every
layer, and each layer's inputs and gradients on a few dozen samples.  Under a limit both are held for
some of the layers at a time, at the price of another pass for each further part.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rectify_widgets.engine.base.checks import check_int
from rectify_widgets.engine.base.progress import SILENT
from rectify_widgets.engine.model.gradients import PATH_STEPS, path_average
from rectify_widgets.engine.model.keys import EditableLayer, pad
from rectify_widgets.engine.model.running import capturing, predict, working_dtype

FACTORS = 6
"""Matrices of the size of a second moment that solving one layer holds besides it: a scaled copy,
one factor for each of four ridges, and the one that is being made."""
MOST_KEPT = 2**31
"""Bytes that a call without a limit keeps at most to save time, ..."""
SHARE_KEPT = 4
"""... and one part in so many of what is free."""
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
WEIGHTS, LESSON = 4.5, 7
"""Copies of the layers' weights, and of the samples of one step, that refining holds: measured on a
ResNet-18 and an EfficientNet."""
SLACK = 0.05
"""By how much a peak may exceed its estimate: buffers of libraries, and gaps between tensors."""


@dataclass(frozen=True)
class LayerSize:
    """Bytes that one layer takes."""

    inputs: int
    """Its inputs on one sample, padded as its keys are."""
    outputs: int
    """Its outputs, or their gradient, on one sample."""
    moment: int
    """Its second moment."""
    unfolded: int
    """Its unfolded keys on one sample, as far as statistics take them."""
    weight: int
    """Its weight."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that a model's passes take for one sample, measured on one."""

    layers: Mapping[str, LayerSize]
    sample: int
    """The sample itself."""
    forward: int
    """Most that is alive at one time in a forward pass."""
    sweep: int
    """The same with the backward pass, gradients of all layers included."""
    copy: int
    """The copy of all parameters and buffers that a call works on, if it makes one."""


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors made while it is active, and their peak; not those ``before``."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._known = {_place(tensor.untyped_storage()) for tensor in before}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._meet(leaf.untyped_storage())
        return result

    def _meet(self, storage: torch.UntypedStorage) -> None:
        place, size = _place(storage), storage.nbytes()
        if place not in self._known:
            self._known.add(place)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._leave, place, size)

    def _leave(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def _place(storage: torch.UntypedStorage) -> int:
    """A number that identifies a storage while it is alive."""
    return int(storage._cdata)  # noqa: SLF001 - has no public name


def measure_sizes(
    model: nn.Module, layers: Mapping[str, EditableLayer], example: Tensor, *, copied: bool = False
) -> Sizes:
    """Measure the memory of one sample forward and of one step of a sweep.

    Args:
        model: in evaluation mode, see `rectify_widgets.engine.model.running.eval_mode`.
        layers: those to measure.
        example: ``1 × C × H × W`` on the model's device.
        copied: whether the call works on a copy of the model, which takes memory too.
    """
    measured: dict[str, LayerSize] = {}

    def note(name: str, inputs: Tensor, output: Tensor) -> None:
        layer = layers[name]
        each = working_dtype(inputs.dtype).itemsize
        padded = pad(layer.module, inputs) if isinstance(layer.module, nn.Conv2d) else inputs
        key = layer.groups * layer.key_size * each
        measured[name] = LayerSize(
            inputs=padded.numel() * each,
            outputs=output.numel() * each,
            moment=key * layer.key_size,
            unfolded=key * min(64, output.numel() // layer.outputs),
            weight=layer.module.weight.nbytes,
        )

    tensors = [*model.parameters(), *model.buffers()]
    modules = {name: layer.module for name, layer in layers.items()}
    with capturing(modules, note), torch.enable_grad():  # it may rehearse, which is not measured
        predict(model, example)
    plain, whole = (_Live([*tensors, example]) for _ in range(2))
    with plain:
        scores = predict(model, example)
    labels = torch.zeros(scores.shape[:-1], dtype=torch.long, device=scores.device)
    with whole:
        path_average(model, layers, example, example, labels, labels + 1, 1, 1, SILENT)
    return Sizes(
        layers=measured,
        sample=example.nbytes,
        forward=plain.most,
        sweep=whole.most,
        copy=sum(tensor.nbytes for tensor in tensors) if copied else 0,
    )


@dataclass(frozen=True)
class Counts:
    """How many samples a call uses."""

    references: int
    """Those used individually."""
    probe: int
    """Those of one sweep."""
    sources: int
    """Those to solve edits from whose keys are held at one time."""
    chunk: int
    """Those in one pass of a sweep or of a prediction."""
    batch: int = 64
    """Those in one pass of the statistics, and in one step of refining."""
    spare: int = 0
    """Further references to refine with."""


def held(size: LayerSize, counts: Counts) -> int:
    """Bytes that proposing edits holds of a layer: its second moment, and keys or gradients.

    First the keys to solve from, then keys and gradients of the samples swept together.
    """
    solving = 2 * counts.sources * size.inputs
    sweeping = 2 * min(counts.chunk, counts.probe) * (size.inputs + size.outputs)
    return size.moment + max(solving, sweeping)


def proposal_peak(sizes: Sizes, counts: Counts, names: Collection[str]) -> int:
    """Bytes of proposing edits of these layers, at most."""
    samples = 2 * (counts.references + counts.probe + counts.sources) * sizes.sample
    swept = min(counts.chunk, counts.probe * PATH_STEPS)
    passing = max(swept * sizes.sweep, counts.chunk * sizes.forward)
    some = [sizes.layers[name] for name in names]
    solving = max((size.moment for size in some), default=0) * FACTORS
    return samples + passing + sizes.copy + sum(held(size, counts) for size in some) + solving


def collect_peak(sizes: Sizes, names: Collection[str], chunk: int) -> int:
    """Bytes of collecting the statistics of these layers, so many samples in a pass, at most."""
    return _standing(sizes, names) + chunk * _passing(sizes, names)


def _standing(sizes: Sizes, names: Collection[str]) -> int:
    """Bytes of the second moments, of putting the largest one together, and of a copied model."""
    moments = [sizes.layers[name].moment for name in names]
    return sum(moments) + 2 * max(moments, default=0) + sizes.copy


def _passing(sizes: Sizes, names: Collection[str]) -> int:
    """Bytes that one sample takes on its way through the statistics."""
    return sizes.forward + 2 * max(sizes.layers[name].unfolded for name in names)


def collect_chunk(sizes: Sizes, names: Collection[str], batch: int, limit: int | None) -> int:
    """Samples in one pass of the statistics: as many as fit, at least one, a batch at most.

    Raises:
        ValueError: the second moments alone take more than the limit.
    """
    if limit is None:
        return batch
    why = f"for the second moments of {len(names)} layers; give more, or fewer layers"
    _refuse_below(limit_for(collect_peak(sizes, names, 1)), limit, why)
    fitting = (limit / (1 + SLACK) - _standing(sizes, names)) // _passing(sizes, names)
    return max(1, min(batch, int(fitting)))


def refining_peak(sizes: Sizes, counts: Counts, chunk: int) -> int:
    """Bytes of refining all layers together, with gradients of so many samples at a time, at most."""
    samples = (2 * counts.references + counts.spare + LESSON * counts.batch) * sizes.sample
    weights = sum(size.weight for size in sizes.layers.values())
    return samples + round(WEIGHTS * weights) + sizes.copy + chunk * sizes.sweep


def refining_chunk(sizes: Sizes, counts: Counts, limit: int | None) -> int:
    """Samples whose gradients are taken at one time: as many as fit, at least one, `chunk` at most.

    Raises:
        ValueError: one sample alone takes more than the limit.
    """
    if limit is None:
        return counts.chunk
    why = "to refine edits of all layers together; give more, or refine_steps=0"
    _refuse_below(limit_for(refining_peak(sizes, counts, 1)), limit, why)
    room = limit / (1 + SLACK) - refining_peak(sizes, counts, 0)
    return max(1, min(counts.chunk, int(room // max(sizes.sweep, 1))))


def limit_for(peak: int) -> int:
    """The least limit that leaves room for an estimated peak."""
    return math.ceil(peak * (1 + SLACK))


def parts(sizes: Sizes, counts: Counts, names: Sequence[str], limit: int | None) -> list[list[str]]:
    """The layers in order, in as few parts as keep each within the limit.

    Raises:
        ValueError: one layer alone takes more.
    """
    if limit is None:
        return [list(names)]

    def needed(some: Sequence[str]) -> int:
        return limit_for(max(proposal_peak(sizes, counts, some), collect_peak(sizes, some, 1)))

    groups: list[list[str]] = []
    for name in names:
        if groups and needed([*groups[-1], name]) <= limit:
            groups[-1].append(name)
        else:
            why = f"for layer {name!r} alone; give more, or fewer references or pairs"
            _refuse_below(needed([name]), limit, why)
            groups.append([name])
    return groups


def _refuse_below(needed: int, limit: int, why: str) -> None:
    if needed > limit:
        raise ValueError(
            f"memory_limit: got {format_bytes(limit)}, want at least {format_bytes(needed)} {why}"
        )


def budget(device: torch.device) -> int:
    """Bytes that a call without a limit may keep: a quarter of what is free, 2 GiB at most."""
    free = free_memory(device)
    return MOST_KEPT if free is None else min(MOST_KEPT, free // SHARE_KEPT)


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free, of a container if it has less than its machine; None where unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        most, now = (
            int((CGROUP / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        free.append(max(most - now, 0))
    return min(free, default=None)


def by_moments(layers: Mapping[str, EditableLayer], room: int) -> list[list[str]]:
    """The layers in order, in parts whose second moments fit in so many bytes; one layer at least."""
    groups, left = list[list[str]](), 0
    for name, layer in layers.items():
        size = layer.groups * layer.key_size**2
        size *= working_dtype(layer.module.weight.dtype).itemsize
        if not groups or size > left:
            groups.append([])
            left = room
        groups[-1].append(name)
        left -= size
    return groups


def hand_back(device: torch.device) -> None:
    """Return freed memory to the system: the C library keeps gaps, and torch caches GPU memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError, TypeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def format_bytes(size: float) -> str:
    """A number of bytes in MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def check_limit(limit: object) -> int | None:
    """``memory_limit`` if it is None or a positive number of bytes."""
    return None if limit is None else check_int("memory_limit", limit, low=1)
