"""The smallest shift of the last layer's inputs that turns references to a class: a convex problem.

Imports the engine, numpy and scipy.  After Iwahana, Yusuke, et al. (arXiv 2511.08944): in front of a
linear layer "class k wins on every reference" is a set of linear constraints on a shift ``s`` that
all references share,

    (w_k − w_j)·s ≥ max_i (w_j − w_k)·f_i + b_j − b_k    for every other class j,

and the shortest such ``s`` is a least-distance problem, which Lawson and Hanson 1974, chapter 23,
solve by non-negative least squares.  The greatest value over references is a high quantile here, so
that one odd reference does not decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import (
    capturing,
    chunk_size,
    in_chunks,
    model_device,
    model_dtype,
    predict,
)

Array = NDArray[np.float64]
QUANTILE = 0.95
"""Share of the references whose constraint on each other class is met."""
AT_ONCE = 32
"""Constraints that are added where the shift violates some."""
VIOLATED = 1e-6


@dataclass(frozen=True, eq=False)
class LastLayer:
    """Scores as a linear function of features: ``features @ weight.T + bias``.

    Where no linear layer makes the scores, the scores themselves are the features.

    Attributes:
        features: ``N × D``.
        weight: ``classes × D``.
        bias: ``classes``.
    """

    features: Array
    weight: Array
    bias: Array

    @property
    def scores(self) -> Array:
        """``N × classes``."""
        return self.features @ self.weight.T + self.bias

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, monitor: Monitor) -> LastLayer:
        """The one of ``model`` on ``N × C × H × W`` images."""
        linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        kept: dict[str, list[Tensor]] = {}
        device, dtype = model_device(model), model_dtype(model)

        def scores(rows: slice) -> Tensor:
            monitor.report(rows.start / len(images), "features of the references")
            seen.clear()
            made = predict(model, images[rows].to(device, dtype))
            for name, (given, output) in seen.items():
                if output.shape == made.shape and torch.equal(output, made):
                    kept.setdefault(name, []).append(given.double().cpu())
            return made.double().cpu()

        def keep(name: str, given: Tensor, output: Tensor) -> None:
            seen[name] = given.clone(), output.clone()

        with capturing(linear, keep):
            every = torch.cat(list(in_chunks(len(images), chunk_size(images, device), scores)))
        for name, parts in kept.items():
            features = torch.cat(parts)
            if features.ndim == 2 and len(features) == len(every):
                weight, own = linear[name].weight, dict(linear[name].named_parameters())
                bias = own.get("bias", torch.zeros(len(weight)))
                return cls(features.numpy(), _array(weight), _array(bias))
        classes = every.shape[1]
        return cls(every.numpy(), np.eye(classes), np.zeros(classes))


def _array(values: Tensor) -> Array:
    made: Array = values.detach().double().cpu().numpy()
    return made


def smallest_shift(layer: LastLayer, target: int) -> Array:
    """The shortest shift of the features that turns the references to ``target``, ``D`` numbers.

    Lengths are measured in standard deviations of the features over the references.  References that
    the layer puts into ``target`` already have no say.
    """
    scores = layer.scores
    scale = layer.features.std(axis=0)
    scale = np.where(scale > 1e-6 * max(float(scale.max()), 1e-300), scale, 0.0)
    others = scores[scores.argmax(axis=1) != target]
    rivals = np.delete(np.arange(len(layer.weight)), target)
    if not len(others):
        return np.zeros(len(scale))
    needed = np.quantile(others[:, rivals] - others[:, [target]], QUANTILE, axis=0)
    along = (layer.weight[target] - layer.weight[rivals]) * scale
    shift = np.zeros(len(scale))
    active = np.zeros(len(rivals), dtype=bool)
    while True:
        missing = np.where(active, 0.0, needed - along @ shift)
        worst = missing.argsort()[::-1][:AT_ONCE]
        worst = worst[missing[worst] > VIOLATED]
        if not len(worst):
            return shift * scale
        active[worst] = True
        shift = _least_distance(along[active], needed[active])
        if np.isinf(shift).any():
            return shift


def _least_distance(rows: Array, bounds: Array) -> Array:
    """The shortest ``s`` with ``rows @ s ≥ bounds`` (Lawson and Hanson 1974, algorithm LDP)."""
    from scipy.optimize import nnls

    system = np.vstack([rows.T, bounds])
    wanted = np.zeros(len(system))
    wanted[-1] = 1.0
    weights, _ = nnls(system, wanted)
    residual = system @ weights - wanted
    if residual[-1] > -1e-12:
        return np.full(rows.shape[1], np.inf)  # no shift meets all
    shift: Array = -residual[:-1] / residual[-1]
    return shift


def shift_sizes(layer: LastLayer, monitor: Monitor) -> Array:
    """Length of the smallest shift to each class, in standard deviations of the features."""
    scale = layer.features.std(axis=0)
    sizes = []
    for target in range(len(layer.weight)):
        monitor.report(target / len(layer.weight), f"smallest shift to class {target}")
        shift = smallest_shift(layer, target)
        used = np.abs(shift) > 0
        length = np.linalg.norm(shift[used] / scale[used]) if np.isfinite(shift).all() else np.inf
        sizes.append(float(length))
    return np.array(sizes)
