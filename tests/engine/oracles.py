"""The engine's arithmetic written out in numpy, by loops over positions.  Imports no engine.

Everything is float64, and keys are ``N × G × K × P`` as in the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array: TypeAlias = NDArray[np.float64]

MODES: dict[str, Any] = {
    "zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"
}  # fmt: skip


def array(tensor: Tensor) -> Array:
    return tensor.detach().to(torch.float64).contiguous().numpy()


def padding_of(conv: nn.Conv2d) -> list[tuple[int, int]]:
    """Rows and columns added before and after, from the documentation of `Conv2d`."""
    if conv.padding == "valid":
        return [(0, 0), (0, 0)]
    if conv.padding == "same":
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(int(amount), int(amount)) for amount in conv.padding]


def conv_keys(conv: nn.Conv2d, inputs: Array, groups: int | None = None) -> Array:
    """Unfolded patches of a convolution's inputs, position by position."""
    groups = conv.groups if groups is None else groups
    padded = np.pad(inputs, [(0, 0), (0, 0), *padding_of(conv)], mode=MODES[conv.padding_mode])
    samples, channels, height, width = padded.shape
    (kh, kw), (dh, dw), (sh, sw) = conv.kernel_size, conv.dilation, conv.stride
    tops = range(0, height - dh * (kh - 1), sh)
    lefts = range(0, width - dw * (kw - 1), sw)
    columns = [
        padded[:, :, top : top + dh * (kh - 1) + 1 : dh, left : left + dw * (kw - 1) + 1 : dw]
        .reshape(samples, groups, channels // groups * kh * kw)
        for top in tops
        for left in lefts
    ]  # fmt: skip
    return np.stack(columns, axis=3)


def keys(module: nn.Module, inputs: Tensor, samples: int) -> Array:
    """Keys of any editable layer on its inputs."""
    if isinstance(module, nn.Conv2d):
        return conv_keys(module, array(inputs))
    rows = array(inputs).reshape(samples, -1, inputs.shape[-1])
    return rows.transpose(0, 2, 1)[:, None]


def pixels(module: nn.Conv2d, inputs: Tensor) -> Array:
    """Channel keys: one vector of ``C / G`` an input pixel."""
    samples, channels = inputs.shape[:2]
    return array(inputs).reshape(samples, module.groups, channels // module.groups, -1)


def flat(module: nn.Conv2d | nn.Linear) -> Array:
    """The weight as ``G × O/G × K``."""
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    weight = array(module.weight)
    return weight.reshape(groups, len(weight) // groups, -1)


def second_moment(found: Array) -> Array:
    """``E[k kᵀ]`` over samples and positions, ``G × K × K``."""
    return np.stack(
        [np.mean([np.outer(k, k) for n in group for k in n.T], axis=0) for group in rows_of(found)]
    )


def rows_of(found: Array) -> Array:
    """``G × N × K × P``."""
    return found.transpose(1, 0, 2, 3)


def solve(moment: Array, right: Array, ridge: float) -> Array:
    """``(C + λ · mean(diag C) · I) d = b`` for each group, ``G × K``.

    A dead group has no diagonal of its own and takes the mean of the others'.
    """
    scales = [np.diag(square).mean() for square in moment]
    usual = np.mean([scale for scale in scales if scale > 0])
    return np.stack(
        [
            np.linalg.solve(square + ridge * (scale or usual) * np.eye(len(square)), vector)
            for square, scale, vector in zip(moment, scales, right, strict=True)
        ]
    )


def key_sum(corrupted: Array, clean: Array, direction: str) -> Array:
    """``Σ w_p k̃_p`` or ``Σ w_p (k̃_p − k_p)`` with ``w_p = ‖k̃_p − k_p‖``, for each group ``G × K``."""
    sums = []
    for k1, k0 in zip(rows_of(corrupted), rows_of(clean), strict=True):
        distances = np.linalg.norm(k1 - k0, axis=1)
        weights = distances / max(distances.sum(), 1e-300)
        what = k1 if direction == "key" else k1 - k0
        sums.append(sum(w * what[n, :, p] for (n, p), w in np.ndenumerate(weights)))
    return np.stack(sums)


def least_squares(weight: Array, direction: Array, corrupted: Array, clean: Array) -> Array:
    """``Λ``, ``G × O/G``, by `numpy.linalg.lstsq`."""
    found = []
    for w, d, k1, k0 in zip(weight, direction, rows_of(corrupted), rows_of(clean), strict=True):
        s = np.einsum("k,nkp->np", d, k1).reshape(-1, 1)
        missing = np.einsum("ok,nkp->npo", w, k0 - k1).reshape(-1, len(w))
        found.append(np.linalg.lstsq(s, missing, rcond=None)[0][0])
    return np.stack(found)


def layer_input(model: nn.Module, name: str, inputs: Tensor) -> Tensor:
    """What the named layer gets to see."""
    return _watch(model, name, inputs)[0]


def layer_output(model: nn.Module, name: str, inputs: Tensor) -> Tensor:
    """What the named layer answers."""
    return _watch(model, name, inputs)[1]


def _watch(model: nn.Module, name: str, inputs: Tensor) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: Sequence[Tensor], output: Tensor) -> None:
        seen.append((args[0].detach().clone(), output.detach().clone()))

    handle = model.get_submodule(name).register_forward_hook(keep)
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        handle.remove()
    (found,) = seen
    return found


def rank(matrix: Tensor) -> int:
    """Numerical rank."""
    values = np.linalg.svd(array(matrix), compute_uv=False)
    return int((values > 1e-5 * values[0]).sum())
