"""Solving ``(C + λ · mean(diag C) · I) d = b`` for one layer, dense or matrix-free.

Imports torch only.  Both solvers have one method, ``solve(b, ridge)`` on ``G × K`` right-hand sides.
The dense one factorises the second moment; the matrix-free one never forms it: ``C v`` is a
one-channel convolution of the layer's stored inputs with ``v``, followed by that convolution's
weight gradient, and a preconditioned conjugate-gradient iteration does the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from rectify_widgets.engine.inspection import working_dtype
from rectify_widgets.engine.layers import EditableLayer

MAX_RIDGE = 1e4
"""Bound up to which a failing factorisation raises the ridge, tenfold each time."""


class Solver(Protocol):
    """Solves with the second moment of one layer's reference keys."""

    def solve(self, right: Tensor, ridge: float) -> Tensor:
        """``d`` of shape ``G × K`` with ``(C + ridge · mean(diag C) · I) d = right``."""
        ...


class DenseSolver:
    """Cholesky factorisation of the second moment ``G × K × K``, kept for each ridge."""

    def __init__(self, name: str, moment: Tensor) -> None:
        self._name = name
        self._moment = moment
        self._scale = moment.diagonal(dim1=1, dim2=2).mean(dim=1)
        self._factors: dict[float, Tensor] = {}
        if not bool((self._scale > 0).all()):
            raise ValueError(
                f"statistics: the keys of layer {name!r} are zero on all references, so there is "
                "nothing to solve with; choose another layer or other references"
            )

    def solve(self, right: Tensor, ridge: float) -> Tensor:
        if ridge not in self._factors:
            self._factors[ridge] = self._factorise(ridge)
        return torch.cholesky_solve(right.unsqueeze(2), self._factors[ridge]).squeeze(2)

    def _factorise(self, ridge: float) -> Tensor:
        identity = torch.eye(self._moment.shape[1]).to(self._moment)
        tried = ridge
        while True:
            regular = self._moment + tried * self._scale.reshape(-1, 1, 1) * identity
            factor, failed = torch.linalg.cholesky_ex(regular)
            if not bool(failed.any()):
                return factor
            if tried >= MAX_RIDGE:
                raise ValueError(
                    f"statistics: the second moment of layer {self._name!r} cannot be factorised "
                    f"with any ridge up to {MAX_RIDGE:g}; collect it from more or other references"
                )
            raised = max(10 * tried, 1e-6)
            warnings.warn(
                f"layer {self._name!r}: ridge {tried:g} is too small for its references, "
                f"using {raised:g}",
                RuntimeWarning,
                stacklevel=4,
            )
            tried = raised


class MatrixFreeSolver:
    """Conjugate gradients on the layer's stored reference inputs, diagonally preconditioned.

    Args:
        layer: the layer.
        inputs: the inputs that the layer had on the references, one tensor a batch.
        iterations: upper bound; stopping early regularises like a larger ridge.
        tolerance: relative residual at which to stop.
    """

    def __init__(
        self,
        layer: EditableLayer,
        inputs: Sequence[Tensor],
        *,
        iterations: int = 200,
        tolerance: float = 1e-4,
    ) -> None:
        self._layer = layer
        self._inputs = [self._prepare(batch) for batch in inputs]
        self._iterations = iterations
        self._tolerance = tolerance
        self._positions = 0
        diagonal: Tensor | float = 0.0
        for batch in self._inputs:
            ones = torch.ones_like(self._respond(batch, None))
            self._positions += ones[:, 0].numel()
            diagonal = diagonal + self._gather(batch.square(), ones)
        assert isinstance(diagonal, Tensor)  # noqa: S101 - a reference is never empty
        self._diagonal = diagonal / self._positions
        self._scale = self._diagonal.mean(dim=1, keepdim=True)
        if not bool((self._scale > 0).all()):
            raise ValueError(
                f"reference: the keys of layer {layer.name!r} are zero on all references, so there "
                "is nothing to solve with; choose another layer or other references"
            )

    def product(self, vector: Tensor) -> Tensor:
        """``C v`` for ``v`` of shape ``G × K``."""
        total = torch.zeros_like(vector)
        for batch in self._inputs:
            total += self._gather(batch, self._respond(batch, vector))
        return total / self._positions

    def solve(self, right: Tensor, ridge: float) -> Tensor:
        shift = ridge * self._scale
        condition = self._diagonal + shift
        solution = torch.zeros_like(right)
        residual = right.clone()
        step = residual / condition
        energy = (residual * step).sum(dim=1, keepdim=True)
        goal = self._tolerance * right.norm(dim=1, keepdim=True)
        for _ in range(self._iterations):
            if bool((residual.norm(dim=1, keepdim=True) <= goal).all()):
                break
            image = self.product(step) + shift * step
            length = energy / (step * image).sum(dim=1, keepdim=True).clamp_min(1e-30)
            solution = solution + length * step
            residual = residual - length * image
            scaled = residual / condition
            following = (residual * scaled).sum(dim=1, keepdim=True)
            step = scaled + following / energy.clamp_min(1e-30) * step
            energy = following
        return solution

    def _prepare(self, inputs: Tensor) -> Tensor:
        inputs = inputs.detach().to(working_dtype(inputs.dtype))
        module = self._layer.module
        if isinstance(module, nn.Conv2d):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            return functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        return inputs.reshape(-1, inputs.shape[-1])

    def _respond(self, batch: Tensor, vector: Tensor | None) -> Tensor:
        """``kᵀ v`` at every position, one channel a group; zeros of that shape for None."""
        module, groups = self._layer.module, self._layer.groups
        if not isinstance(module, nn.Conv2d):
            return batch[:, :1] * 0 if vector is None else batch @ vector[0].unsqueeze(1)
        shape = (groups, *module.weight.shape[1:])
        weight = batch.new_zeros(shape) if vector is None else vector.reshape(shape)
        return functional.conv2d(
            batch, weight, None, module.stride, 0, module.dilation, groups=groups
        )

    def _gather(self, batch: Tensor, response: Tensor) -> Tensor:
        """``Σ_p response_p k_p`` as ``G × K``."""
        module, groups = self._layer.module, self._layer.groups
        if not isinstance(module, nn.Conv2d):
            return (batch.T @ response).T
        shape = (groups, *module.weight.shape[1:])
        gradient = conv2d_weight(
            batch, shape, response, module.stride, 0, module.dilation, groups
        )
        return gradient.reshape(groups, -1)
