"""Solving ``(C + λ · mean(diag C) · I) d = b`` for one layer, dense or matrix-free.

Imports torch only.  The dense solver factorises the second moment; the matrix-free one never forms
it: ``C v`` is a one-channel convolution of the layer's stored inputs with ``v``, followed by that
convolution's weight gradient, inside a preconditioned conjugate-gradient iteration.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rectify_widgets.engine.model.keys import EditableLayer, Keys

MAX_RIDGE = 1e4
"""Bound up to which a failing factorisation raises the ridge, tenfold each time."""
LEAST_RIDGE = 1e-6
"""First ridge to try where 0 fails; the matrix-free solver, which cannot fail, takes no less."""


class Solver(Protocol):
    """Solves with the second moment of one layer's reference keys."""

    def solve(self, right: Tensor, ridge: float) -> Tensor:
        """``d``, ``G × D × K``, with ``(C + ridge · mean(diag C) · I) d = right``."""
        ...


def _scale(argument: str, name: str, diagonal: Tensor) -> Tensor:
    """Unit of the ridge, the mean diagonal of each group; ``G × K`` to ``G``.

    A group whose keys are zero throughout (behind a dead channel) takes the mean of the others.
    """
    scale = diagonal.mean(dim=1)
    alive = scale > 0
    if not bool(alive.any()):
        raise ValueError(
            f"{argument}: the keys of layer {name!r} are zero on all references, so there is "
            "nothing to solve with; choose another layer or other references"
        )
    return torch.where(alive, scale, scale[alive].mean())


class DenseSolver:
    """Cholesky factorisation of the second moment ``G × K × K``, kept for each ridge.

    Args:
        name: the layer, for messages.
        moment: its second moment.
        factors: those that are known of it, by ridge; new ones are added.
    """

    def __init__(
        self, name: str, moment: Tensor, factors: dict[float, Tensor] | None = None
    ) -> None:
        self._name = name
        self._moment = moment
        self._scale = _scale("statistics", name, moment.diagonal(dim1=1, dim2=2))
        self._factors = {} if factors is None else factors

    def solve(self, right: Tensor, ridge: float) -> Tensor:
        """See `Solver.solve`; statistics from a file may lie on another device than ``right``."""
        if ridge not in self._factors:
            self._factors[ridge] = self._factorise(ridge).to(right)
        factor = self._factors[ridge]
        if len(factor) > factor.shape[1]:  # hundreds of small ones: 30 times faster than to solve
            return right @ torch.cholesky_inverse(factor)
        return torch.cholesky_solve(right.transpose(1, 2), factor).transpose(1, 2)

    def whiten(self, right: Tensor, ridge: float) -> Tensor:
        """``L⁻¹ b`` where ``L Lᵀ`` is the regularised second moment, ``G × D × K``."""
        self.solve(right, ridge)
        columns = right.transpose(1, 2)
        whitened: Tensor = torch.linalg.solve_triangular(self._factors[ridge], columns, upper=False)
        return whitened.transpose(1, 2)

    def _factorise(self, ridge: float) -> Tensor:
        tried = ridge
        while True:
            regular = self._moment.clone()
            regular.diagonal(dim1=1, dim2=2).add_(tried * self._scale[:, None])
            factor: Tensor
            factor, failed = torch.linalg.cholesky_ex(regular)
            if not bool(failed.any()):
                return factor
            if tried >= MAX_RIDGE:
                raise ValueError(
                    f"statistics: the second moment of layer {self._name!r} cannot be factorised "
                    f"with any ridge up to {MAX_RIDGE:g}; collect it from more or other references"
                )
            raised = max(10 * tried, LEAST_RIDGE)
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
        keys: its keys on the references, one object a batch.
        iterations: upper bound; stopping early regularises like a larger ridge.
        tolerance: relative residual at which to stop.
    """

    def __init__(
        self,
        layer: EditableLayer,
        keys: Sequence[Keys],
        *,
        iterations: int = 200,
        tolerance: float = 1e-4,
    ) -> None:
        self._keys = list(keys)
        self._iterations = iterations
        self._tolerance = tolerance
        self._positions = sum(len(batch) * batch.positions for batch in self._keys)
        parts = []
        for batch in self._keys:
            ones = batch.inputs.new_ones(len(batch), layer.groups, 1, batch.positions)
            parts.append(batch.squares().gather(ones))
        self._diagonal = torch.stack(parts).sum(dim=0) / self._positions
        self._scale = _scale("reference", layer.name, self._diagonal[:, 0]).reshape(-1, 1, 1)

    def product(self, vectors: Tensor) -> Tensor:
        """``C v`` for vectors ``G × D × K``."""
        total = torch.zeros_like(vectors)
        for batch in self._keys:
            total += batch.gather(batch.respond(vectors))
        return total / self._positions

    def solve(self, right: Tensor, ridge: float) -> Tensor:
        """See `Solver.solve`; iterates to the tolerance or the bound, whichever comes first."""
        shift = max(ridge, LEAST_RIDGE) * self._scale
        condition = self._diagonal + shift
        solution = torch.zeros_like(right)
        residual = right.clone()
        step = residual / condition
        energy = (residual * step).sum(dim=2, keepdim=True)
        goal = self._tolerance * right.norm(dim=2, keepdim=True)
        for _ in range(self._iterations):
            if bool((residual.norm(dim=2, keepdim=True) <= goal).all()):
                break
            image = self.product(step) + shift * step
            length = energy / (step * image).sum(dim=2, keepdim=True).clamp_min(1e-30)
            solution = solution + length * step
            residual = residual - length * image
            scaled = residual / condition
            following = (residual * scaled).sum(dim=2, keepdim=True)
            step = scaled + following / energy.clamp_min(1e-30) * step
            energy = following
        return solution
