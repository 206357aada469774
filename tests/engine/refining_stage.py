"""A small stage on which edits are refined together, and the steps written out in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.find.adversarial import AdversarialPerturbation
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.repair.refining import (
    BATCH,
    KEEP,
    RATE,
    STRICTER,
    TEMPERATURE,
    Factors,
    Goal,
    cut,
    first_factors,
    lerped,
    refine,
)
from tests.engine.models import images, make

NETWORKS = ["plain", "residual", "perceptron", "transformer", "padded"]
"""Convolutions, grouped and depthwise ones, linear layers, and queries, keys and values in one."""


def marked(clean: Tensor) -> Tensor:
    """The inputs with a bright corner."""
    out = clean.clone()
    out[..., :4, :4] = 2.0
    return out


class Stage:
    """A model, its layers, factors to start from and a goal."""

    def __init__(self, network: str = "plain", count: int = 12, *, turn: int = 0) -> None:
        self.model = make(network).double()
        self.clean = images(count).double()
        self.layers = layers_of(self.model, self.clean)
        draw = torch.Generator().manual_seed(7)
        self.start = {name: first_factors(layer, draw) for name, layer in self.layers.items()}
        if turn:  # they have been refined already
            self.start = {
                name: (0.02 * torch.randn(left.shape, generator=draw, dtype=left.dtype), right)
                for name, (left, right) in self.start.items()
            }
        self.goal = Goal(marked, (marked(self.clean[:3]), self.clean[:3]), self.clean, {})

    def refined(self, **options: Any) -> dict[str, Factors]:
        """After three steps, unless more are asked for."""
        given: dict[str, Any] = {"steps": 3, "seed": 0, "monitor": Monitor(), **options}
        with torch.no_grad():  # as within `eval_mode`
            return refine(self.model, self.layers, self.start, self.goal, **given)

    def everything(self) -> tuple[Tensor, ...]:
        """All tensors that were handed in."""
        factors = [factor for pair in self.start.values() for factor in pair]
        return *self.goal.shown, self.clean, *self.goal.original.values(), *factors


def layers_of(model: nn.Module, x: Tensor) -> dict[str, EditableLayer]:
    return {layer.name: layer for layer in editable_layers(model, x)}


def equal(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )


def close(one: Mapping[str, Factors], other: Mapping[str, Factors], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        for mine, theirs in zip(one[name], other[name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, msg=name)


def with_factors(model: nn.Module, factors: Mapping[str, Factors]) -> nn.Module:
    """A copy with the edits, added up one by one."""
    twin = copy.deepcopy(model)
    for name, (left, right) in factors.items():
        weight = twin.get_parameter(f"{name}.weight")
        groups = [
            sum(torch.outer(a, b) for a, b in zip(*pair, strict=True))
            for pair in zip(left, right, strict=True)
        ]
        with torch.no_grad():
            weight.add_(torch.cat(groups).reshape(weight.shape))  # type: ignore[arg-type]
    return twin


def divergence(model: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
    """Mean ``T² KL(p ‖ p')`` of scores."""
    answers, targets = (log_softmax(s / TEMPERATURE, dim=1) for s in (model(inputs), wanted))
    return TEMPERATURE**2 * kl_div(answers, targets, reduction="batchmean", log_target=True)


def mixture(before: nn.Module, clean: Tensor, mix: Any, draw: torch.Generator) -> Tensor:
    """References, three in four mixed with the one before, unless that shows a third class."""
    if mix is None:
        return clean
    shares = 0.5 * torch.rand(len(clean), generator=draw)
    shares = torch.where(torch.rand(len(clean), generator=draw) < 0.75, shares, 0.0)
    others = torch.cat([clean[-1:], clean[:-1]])
    if mix is lerped:
        mixed = torch.stack(
            [(1 - s) * a + s * b for s, a, b in zip(shares.double(), clean, others, strict=True)]
        )
    else:
        mixed = cut(clean, others, shares, draw)
    given, own, other = (before(x).argmax(dim=1) for x in (mixed, clean, others))
    return torch.stack(
        [
            m if g in (o, z) else c
            for m, c, g, o, z in zip(mixed, clean, given, own, other, strict=True)
        ]
    )


def by_hand(
    stage: Stage, steps: int, seed: int, turn: int, mix: Any, keep: float = KEEP
) -> dict[str, Factors]:
    """Adam with a cosine rate, written out; left factors in units of the layer's weights."""
    model, goal = stage.model, stage.goal
    units = {
        n: float(e.module.weight.detach().pow(2).mean()) ** 0.5 for n, e in stage.layers.items()
    }
    now = {(n, side): f.clone() for n, pair in stage.start.items() for side, f in enumerate(pair)}
    for name, unit in units.items():
        now[name, 0] /= unit
    first, second = ({k: torch.zeros_like(f) for k, f in now.items()} for _ in range(2))
    before = copy.deepcopy(model)
    for name, weight in goal.original.items():
        before.get_parameter(f"{name}.weight").data.copy_(weight)
    draw = torch.Generator().manual_seed(seed + turn)
    steps = math.ceil(steps / STRICTER**turn)
    for step in range(steps):
        rows = torch.randperm(len(goal.references), generator=draw)[:BATCH]
        with torch.no_grad():
            clean = mixture(before, goal.references[rows], mix, draw)
            wanted = before(clean)
            if goal.corrupt is None:
                rows = torch.randperm(len(goal.shown[0]), generator=draw)[:BATCH]
                corrupted, known = goal.shown[0][rows], before(goal.shown[1][rows])
            else:
                corrupted, known = goal.corrupt(clean), wanted
        factors = {n: (now[n, 0] * units[n], now[n, 1]) for n in units}
        twin = with_factors(model, factors)
        if isinstance(goal.pursued, AdversarialPerturbation):
            led = replace(goal.pursued, model=twin, norm=goal.pursued.norm / 2, steps=4)
            corrupted = torch.cat([corrupted, led(clean[:32])])
            known = torch.cat([known, wanted[:32]])
        with torch.enable_grad():
            loss = divergence(twin, corrupted, known)
            loss = loss + keep * divergence(twin, clean, wanted)
            loss.backward()
        rate = RATE / STRICTER**turn * (1 + math.cos(math.pi * step / steps)) / 2
        for name, (left, right) in factors.items():
            slope = twin.get_parameter(f"{name}.weight").grad
            assert slope is not None
            slope = slope.reshape(len(left), left.shape[2], right.shape[2])
            slopes = (
                torch.einsum("gok,grk->gro", slope, right) * units[name],
                torch.einsum("gok,gro->grk", slope, left),
            )
            for side, g in enumerate(slopes):
                key = name, side
                first[key] = 0.9 * first[key] + 0.1 * g
                second[key] = 0.999 * second[key] + 0.001 * g * g
                mean = first[key] / (1 - 0.9 ** (step + 1))
                square = second[key] / (1 - 0.999 ** (step + 1))
                now[key] = now[key] - rate * mean / (square.sqrt() + 1e-8)
    return {n: (now[n, 0] * units[n], now[n, 1]) for n in units}
