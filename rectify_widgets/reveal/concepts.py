"""A concept as a direction in each layer, and what a step along it does to a class.  Imports the engine.

The direction is in closed form.  With ``a`` the mean over positions of a layer's output and ``t`` 1
where the concept is present and 0 where not, it is the pattern ``cov(a, t) / var(t)`` (Pahde et al.
2022, arXiv 2202.03482; Haufe et al. 2014), or the filter, the ridge regression of ``t`` on ``a``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import (
    arranged,
    capturing,
    chunk_size,
    in_chunks,
    model_device,
    model_dtype,
    predict,
)

RIDGE = 0.01
"""Of the filter, relative to the mean variance of a channel."""
AT_ONCE = 64
"""References in one backward pass at most."""


def pattern(values: Tensor, present: Tensor) -> Tensor:
    """The pattern ``cov(a, t) / var(t)``: how the channels change where the concept appears.

    Args:
        values: ``N × D``.
        present: ``N`` booleans, of both kinds.

    Returns:
        ``D`` numbers in the unit of ``values``.
    """
    told = present.to(values)
    told = told - told.mean()
    return told @ (values - values.mean(dim=0)) / told.square().sum()


def ridge_filter(values: Tensor, present: Tensor) -> Tensor:
    """The filter: weights of the ridge regression of ``present`` on ``values``; shapes as above."""
    told = present.to(values)
    told = told - told.mean()
    centred = values - values.mean(dim=0)
    moments = centred.T @ centred
    amount = (RIDGE * moments.diagonal().mean()).clamp_min(torch.finfo(values.dtype).tiny)
    system = moments + amount * torch.eye(len(moments)).to(moments)
    made: Tensor = torch.linalg.solve(system, centred.T @ told)
    return made


def channel_means(
    model: nn.Module, layers: Mapping[str, EditableLayer], images: Tensor, monitor: Monitor
) -> dict[str, Tensor]:
    """Mean over positions of each layer's output, ``N × channels`` in double precision."""
    modules = {name: layer.module for name, layer in layers.items()}
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    device, dtype = model_device(model), model_dtype(model)

    def run(rows: slice) -> None:
        monitor.report(rows.start / len(images), "what every layer makes of the inputs")
        seen: dict[str, Tensor] = {}

        def keep(name: str, _: Tensor, output: Tensor) -> None:
            outputs = layers[name].positions(output, samples=rows.stop - rows.start)
            seen[name] = outputs.double().mean(dim=-1).flatten(1)

        with capturing(modules, keep):
            predict(model, images[rows].to(device, dtype))
        for name, part in seen.items():
            kept[name].append(part)

    for _ in in_chunks(len(images), chunk_size(images, device), run):
        pass
    return {name: torch.cat(parts) for name, parts in kept.items() if parts}


def class_gradients(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    images: Tensor,
    classes: list[int],
    monitor: Monitor,
) -> dict[str, Tensor]:
    """Gradient of each class's log-odds, ``log p / (1 − p)``, by a shift of a layer's channels.

    The shift is the same at all positions.  By layer ``N × classes × channels`` in double
    precision; layers that the gradient does not reach are missing.
    """
    modules = {name: layer.module for name, layer in layers.items()}
    device, dtype = model_device(model), model_dtype(model)
    edges: dict[str, GradientEdge] = {}

    def keep(name: str, _: Tensor, output: Tensor) -> None:
        if output.requires_grad:
            edges[name] = get_gradient_edge(output)

    def run(rows: slice) -> dict[str, Tensor]:
        monitor.report(rows.start / len(images), "gradients of every class")
        point = arranged(model, images[rows].to(device, dtype).clone())
        edges.clear()
        with torch.enable_grad(), capturing(modules, keep):
            scores = predict(model, point.requires_grad_(True))
            odds = [_log_odds(scores, one).sum() for one in classes]
        parts: dict[str, list[Tensor]] = {name: [] for name in edges}
        for number, total in enumerate(odds):
            monitor.check()
            if not edges or not total.requires_grad:
                return {}
            last = number + 1 == len(odds)
            found = torch.autograd.grad(
                total, list(edges.values()), retain_graph=not last, allow_unused=True
            )
            for name, gradient in zip(edges, found, strict=True):
                if gradient is not None:
                    per = layers[name].positions(gradient, samples=len(point))
                    parts[name].append(per.double().sum(dim=-1).flatten(1))
        return {
            name: torch.stack(made, 1) for name, made in parts.items() if len(made) == len(odds)
        }

    every = list(in_chunks(len(images), min(AT_ONCE, chunk_size(images, device)), run))
    reached = [name for name in layers if all(name in part for part in every)]
    return {name: torch.cat([part[name] for part in every]) for name in reached}


def _log_odds(scores: Tensor, one: int) -> Tensor:
    others = torch.cat([scores[:, :one], scores[:, one + 1 :]], dim=1)
    return scores[:, one] - others.logsumexp(dim=1)
