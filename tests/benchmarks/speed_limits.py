"""What a task needs at least, and what it does: multiply-adds and bytes.  Imports torch and the engine.

The least is counted from the shapes of the layers: every layer's product once for each pass that
the task is made of, its input and output through memory once, its weight once a batch.  What is
done is counted while it runs, operator by operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.gradients import PATH_STEPS
from rectify_widgets.engine.model.running import capturing, eval_mode

BATCH = 64
"""Images in one forward pass."""
LOOK_PASSES = 2 * (PATH_STEPS + 1) + 2
"""Passes of a look at the layers: both ways at each midpoint and at the clean end, both ends' keys."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds, and bytes through memory."""

    multiply_adds: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.multiply_adds + other.multiply_adds, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.multiply_adds * times, self.bytes * times)


def forward_work(model: nn.Module, inputs: Tensor, batch_size: int = BATCH) -> Work:
    """A forward pass of all ``inputs`` in batches, convolutions and linear layers alone."""
    counted = [0.0, 0.0]

    def count(name: str, given: Tensor, output: Tensor) -> None:
        weight = layers[name].weight
        counted[0] += output.numel() * prod(weight.shape[1:])
        moved = given.numel() + output.numel() + weight.numel()
        counted[1] += moved * output.element_size()

    with eval_mode(model) as module:
        layers = {
            name: part
            for name, part in module.named_modules()
            if isinstance(part, nn.Conv2d | nn.Linear)
        }
        with capturing(layers, count):
            module(inputs[:1])
    weights = sum(part.weight.numel() * part.weight.element_size() for part in layers.values())
    batches = math.ceil(len(inputs) / batch_size)
    return Work(counted[0] * len(inputs), (counted[1] - weights) * len(inputs) + weights * batches)


def moment_work(model: nn.Module, statistics: KeyStatistics) -> Work:
    """Forming one triangle of the second moment of all layers from the positions taken.

    Entries of a convolution's moment that lie the same displacement apart sum the same products of
    pixels, but for the border, so that each displacement is counted once.
    """
    products, moved = 0.0, 0.0
    for name in statistics:
        total = statistics[name].total
        groups, size, _ = total.shape
        conv = model.get_submodule(name)
        distinct = size * (size + 1) / 2
        if statistics.key_space == "patch" and _overlapping(conv):
            height, width = conv.kernel_size
            channels = size // (height * width)
            displacements = ((2 * height - 1) * (2 * width - 1) - 1) / 2
            distinct = displacements * channels**2 + channels * (channels + 1) / 2
        products += groups * statistics[name].positions * distinct
        moved += total.numel() * total.element_size()
    return Work(products, moved)


def _overlapping(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether neighbouring keys share pixels at all their places."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size != (1, 1)
        and module.stride == (1, 1)
        and module.dilation == (1, 1)
    )


def factor_work(sizes: list[int]) -> Work:
    """Cholesky factorisation of matrices of these sizes, in float32."""
    return Work(sum(size**3 / 6 for size in sizes), sum(4.0 * size**2 for size in sizes))


def executed(task: Callable[[], object]) -> float:
    """Multiply-adds that the task does: products, convolutions, factorisations and their solves."""
    aten = torch.ops.aten
    own = {
        aten.addmm_: _added,
        aten.baddbmm_: _added,
        aten.linalg_cholesky_ex: _cholesky,
        aten.cholesky_solve: _solve,
        aten.linalg_solve_triangular: _triangular,
    }
    counter = FlopCounterMode(display=False, custom_mapping=own)
    with counter:
        task()
    return counter.get_total_flops() / 2


def _added(_: Any, one: Any, other: Any, *__: object, **___: object) -> int:
    return int(2 * prod(one) * other[-1])


def _cholesky(shape: Any, *_: object, **__: object) -> int:
    return int(prod(shape[:-2]) * shape[-1] ** 3 // 3)


def _solve(right: Any, factor: Any, *_: object, **__: object) -> int:
    return int(4 * prod(right[:-2]) * factor[-1] ** 2 * right[-1])


def _triangular(factor: Any, right: Any, *_: object, **__: object) -> int:
    return int(2 * prod(right[:-2]) * factor[-1] ** 2 * right[-1])
