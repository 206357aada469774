"""Candidate edits of every layer, with what each is predicted to do.  Imports torch only.

For each layer, edit direction and ridge the closed form gives one edit.  The gradients of one sweep
predict, without applying anything, which *share* of the gap it closes on references that carry the
transplanted corruption, and what it *costs* on the same references without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rectify_widgets.engine.attribution import margin, sweep
from rectify_widgets.engine.editing import Unreached, closed_form, edit_direction
from rectify_widgets.engine.inspection import capturing, predict, predict_all
from rectify_widgets.engine.layers import EditableLayer
from rectify_widgets.engine.progress import Monitor
from rectify_widgets.engine.solver import DenseSolver
from rectify_widgets.engine.statistics import KeyStatistics

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Grid of ridges, in units of the mean diagonal of the second moment."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One edit that could be made, and its prediction."""

    layer: EditableLayer
    direction: str
    ridge: float
    left: Tensor
    """``Λ``, ``G × O/G``."""
    right: Tensor
    """``d``, ``G × K``."""
    share: float
    """Predicted share of the gap closed, averaged over references; -1 to 1.2."""
    cost: float
    """Predicted share of the margin that clean references lose; 0 to 1."""


@dataclass(frozen=True)
class Probe:
    """Samples with and without the corruption, and the classes at stake."""

    corrupted: Tensor
    """``N × C × H × W``."""
    clean: Tensor
    """``N × C × H × W``."""
    labels: Tensor
    """``N``, the class that each should have."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Observation:
    """What one look at the model gives about its layers: inputs and gradients of a probe."""

    corrupted: Mapping[str, Tensor]
    clean: Mapping[str, Tensor]
    path_gradients: Mapping[str, Tensor]
    clean_gradients: Mapping[str, Tensor]
    gap: Tensor
    clean_margin: Tensor


def layer_inputs(
    model: nn.Module, layers: Mapping[str, EditableLayer], inputs: Tensor
) -> dict[str, Tensor]:
    """Each layer's input on ``inputs``, as it was before anything changed it in place."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, layer_input: Tensor, _: Tensor) -> None:
        seen[name] = layer_input.detach().clone()

    with capturing({name: layer.module for name, layer in layers.items()}, keep):
        predict(model, inputs)
    return seen


def runner_up(scores: Tensor, labels: Tensor) -> Tensor:
    """The best class other than ``labels``."""
    rest = scores.clone()
    rest[torch.arange(len(scores)), labels] = -torch.inf
    return rest.argmax(dim=1)


def observe(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    probe: Probe,
    *,
    steps: int,
    monitor: Monitor,
) -> Observation:
    """One sweep along the path of the probe and one at its clean end."""
    rivals = runner_up(predict_all(model, probe.corrupted), probe.labels)
    path = sweep(
        model, layers, probe.corrupted, probe.clean, probe.labels, rivals,
        steps=steps, monitor=monitor.part(0.0, 0.8),
    )  # fmt: skip
    clean_scores = predict_all(model, probe.clean)
    seconds = runner_up(clean_scores, probe.labels)
    still = sweep(
        model, layers, probe.clean, probe.clean, probe.labels, seconds,
        steps=1, monitor=monitor.part(0.8, 1.0),
    )  # fmt: skip
    return Observation(
        corrupted=layer_inputs(model, layers, probe.corrupted),
        clean=layer_inputs(model, layers, probe.clean),
        path_gradients=path.gradients,
        clean_gradients=still.gradients,
        gap=path.gap,
        clean_margin=margin(clean_scores, probe.labels, seconds),
    )


def candidates(
    layer: EditableLayer,
    statistics: KeyStatistics,
    solve: tuple[Tensor, Tensor],
    seen: Observation,
    *,
    directions: Sequence[str],
    ridges: Sequence[float] = RIDGES,
) -> Iterator[Candidate]:
    """All candidate edits of one layer; none where the corruption does not reach it.

    Args:
        layer: the layer.
        statistics: with this layer's second moment.
        solve: the layer's corrupted and clean inputs on the samples to solve with.
        seen: observation of the probe, for the prediction.
        directions, ridges: the grid.
    """
    name = layer.name
    if name not in seen.path_gradients:
        return
    corrupted, clean = (layer.keys(inputs, samples=len(inputs)) for inputs in solve)
    samples = len(seen.gap)
    probe_corrupted = layer.keys(seen.corrupted[name], samples)
    probe_clean = layer.keys(seen.clean[name], samples)
    solver = DenseSolver(name, statistics[name].moment.to(corrupted))
    for kind in directions:
        for ridge in ridges:
            try:
                right = edit_direction(layer, solver, corrupted, clean, kind, ridge)
            except Unreached:
                break
            left = closed_form(layer, right, corrupted, clean)
            moved = _effect(left, right, seen.path_gradients[name], probe_corrupted)
            lost = -_effect(left, right, seen.clean_gradients[name], probe_clean)
            share = (moved / seen.gap.clamp_min(1e-6)).clamp(-1.0, 1.2).mean()
            cost = (lost / seen.clean_margin.clamp_min(1e-6)).clamp(0.0, 1.0).mean()
            yield Candidate(layer, kind, ridge, left, right, float(share), float(cost))


def _effect(left: Tensor, right: Tensor, gradients: Tensor, keys: Tensor) -> Tensor:
    """First-order change of the margin, ``Σ_p Ḡ_p · Λ (dᵀ k_p)``, one number a sample."""
    response = torch.einsum("gk,ngkp->ngp", right, keys)
    slope = torch.einsum("go,ngop->ngp", left, gradients)
    return (slope * response).sum(dim=(1, 2))
