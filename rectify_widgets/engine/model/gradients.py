"""The gradient of every layer, averaged along the path from corrupted to clean, in one sweep.

Imports torch only.  At each of ``m`` midpoints of the straight path from ``x̃`` to ``x`` one forward
and one backward pass give the gradient of the margin ``z_y − z_ŷ`` with respect to the output of
*every* editable layer at once.  The averages are those of captum's ``InternalInfluence`` (Leino et
al. 2018, "Influence-Directed Explanations for Deep Convolutional Networks", uniform over the path).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.heads import chosen
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import arranged, capturing, chunk_size, in_chunks, predict

PATH_STEPS = 8
"""Midpoints of the path in one sweep, ..."""
QUICK_STEPS, LARGE = 3, 2**16
"""... and where inputs hold more numbers than that.  There a pass takes long, and the prediction only
chooses what is tried and measured.  Predictions with three and eight steps, on six photographs of the
case `carton`: scores differ by 0.11 at most, five times the best layer is the same, and nine or ten of
the first ten layers are (with two steps by 0.20, and seven to ten)."""


def large(inputs: Tensor) -> bool:
    """Whether a pass of such inputs takes long."""
    return inputs[0].numel() > LARGE


def quick_steps(inputs: Tensor) -> int:
    """Midpoints that are enough to choose what is tried."""
    return QUICK_STEPS if large(inputs) else PATH_STEPS


def margin(scores: Tensor, labels: Tensor, rivals: Tensor, weights: Tensor | None = None) -> Tensor:
    """``z_y − z_ŷ`` of each sample; of several labels the weighted sum, where ``weights`` are given."""
    margins = chosen(scores, labels) - chosen(scores, rivals)
    return margins if weights is None else (margins * weights).sum(dim=1)


def sweep(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    start: Tensor,
    end: Tensor,
    labels: Tensor,
    rivals: Tensor,
    *,
    weights: Tensor | None = None,
    steps: int = PATH_STEPS,
    monitor: Monitor,
) -> dict[str, Tensor]:
    """Each layer's gradient of the margin, averaged over midpoints between ``start`` and ``end``.

    By layer ``N × G × O/G × P``; layers that the gradient does not reach are missing.

    Args:
        model: in evaluation mode, see `rectify_widgets.engine.model.running.eval_mode`.
        layers: the layers whose gradients are wanted.
        start, end: ``N × C × H × W``, the corrupted and the clean inputs.
        labels, rivals: ``N`` class numbers, the clean label and the one that competes with it; or
            ``N × L`` states of labels.
        weights: ``N × L``, of each label's margin in the sum; None for a single decision.
        steps: midpoints of the path.
        monitor: progress and cancellation.
    """
    most = chunk_size(start, start.device)

    def average(rows: slice) -> dict[str, Tensor]:
        share = monitor.part(rows.start / len(start), rows.stop / len(start))
        some = start[rows], end[rows], labels[rows], rivals[rows]
        own = None if weights is None else weights[rows]
        return path_average(model, layers, *some, steps, most, share, own)

    parts = list(in_chunks(len(start), min(most, 64), average))
    reached = [name for name in layers if all(name in part for part in parts)]
    return {name: torch.cat([part[name] for part in parts]) for name in reached}


def path_average(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    start: Tensor,
    end: Tensor,
    labels: Tensor,
    rivals: Tensor,
    steps: int,
    most: int,
    monitor: Monitor,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The averages of one chunk by layer, ``most`` points of the path in one pass; see `sweep`."""
    sums: dict[str, Tensor] = {}
    # Several steps in one pass where one alone would not fill the device.
    together = max(1, most // len(start))
    places = (torch.arange(steps, device=start.device) + 0.5).to(start) / steps

    def gradients(rows: slice) -> dict[str, Tensor]:
        monitor.report(rows.start / steps, "following gradients through every layer")
        at = places[rows].reshape(-1, 1, *[1] * (start.ndim - 1))
        count = len(at)
        point = (start + at * (end - start)).flatten(0, 1)
        own = None if weights is None else torch.cat([weights] * count)
        ends = torch.cat([labels] * count), torch.cat([rivals] * count), own
        parts = layer_gradients(model, layers, point, lambda scores: margin(scores, *ends))
        return {name: part.unflatten(0, (count, -1)).sum(dim=0) for name, part in parts.items()}

    for parts in in_chunks(steps, together, gradients):
        for name, part in parts.items():
            sums[name] = part if name not in sums else sums[name].add_(part)
    return {name: total / steps for name, total in sums.items()}


def layer_gradients(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    inputs: Tensor,
    target: Callable[[Tensor], Tensor],
    see: Callable[[str, Tensor], None] = lambda *_: None,
) -> dict[str, Tensor]:
    """Each layer's gradient of what ``target`` makes of the scores, ``N × G × O/G × P``, in one pass.

    Layers that the gradient does not reach are missing.  ``see`` is shown the input of each layer.
    """
    edges: dict[str, GradientEdge] = {}

    def keep(name: str, layer_input: Tensor, output: Tensor) -> None:
        see(name, layer_input.detach())
        # The edge stands for the layer's own output even where what follows changes the tensor in
        # place (in-place ReLU); the tensor itself would not.
        if output.requires_grad:
            edges[name] = get_gradient_edge(output)

    modules = {name: layer.module for name, layer in layers.items()}
    point = arranged(model, inputs.detach())
    with torch.enable_grad(), capturing(modules, keep):
        point.requires_grad_(True)
        total = target(predict(model, point)).sum()
    if not edges or not total.requires_grad:
        return {}
    # Unused: layers behind which the model stops the gradient.
    found = torch.autograd.grad(total, list(edges.values()), allow_unused=True)
    gradients = {}
    for name, gradient in zip(edges, found, strict=True):
        if gradient is not None:
            gradients[name] = layers[name].positions(gradient, samples=len(point))
    return gradients
