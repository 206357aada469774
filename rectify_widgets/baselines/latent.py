"""Activations inside a network, and modules put behind a layer.  Imports torch and the engine.

Layers here are any modules that are called once in a forward pass and return one tensor:
those that can be edited and the blocks that hold them, but for the one that gives the scores.

Concept activation vectors (CAVs) live in one of two spaces (Anders et al. 2022; Dreyer et al. 2024
and their published code): ``"channel"``, a vector of channels, with the greatest value of each
channel over the positions, and ``"map"``, the whole flattened activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rectify_widgets.baselines.method import Option, Options, choice
from rectify_widgets.baselines.task import Task
from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.edit.closed_form import Unreached
from rectify_widgets.engine.find.problem import Problem
from rectify_widgets.engine.model.running import (
    capturing,
    eval_mode,
    predict,
    unwrap,
    working_dtype,
)

CHUNK = 128


def latent_layers(problem: Problem) -> list[str]:
    """Names of the layers to choose from, deepest first; blocks before the layers inside them.

    The last editable layer is left out, since its output are the scores.
    """
    model, example = problem.model, problem.pairs.clean[:1]
    inner = [layer.name for layer in problem.catalog][:-1]
    blocks = [
        block
        for block, part in unwrap(model).named_modules()
        if block
        and next(part.children(), None) is not None
        and any(name.startswith(f"{block}.") for name in inner)
    ]
    order: list[str] = []
    outputs: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def watch(name: str, inputs: Tensor, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        same = any(output is other for other in outputs.values())
        if 2 <= output.ndim <= 4 and len(output) == len(inputs) == 2 and not same:
            outputs[name] = output
            order.append(name)

    with eval_mode(model) as module:
        parts = dict(unwrap(module).named_modules())
        with capturing({name: parts[name] for name in (*blocks, *inner)}, watch):
            scores = predict(module, torch.cat([example, example]))
    latent = [
        name for name in order
        if calls[name] == 1 and outputs[name] is not scores and outputs[name].is_floating_point()
    ]  # fmt: skip
    return latent[::-1]


def latent_layer(most: int | None = None) -> Option:
    """A layer to work at, by name: all of them, or at most so many spread evenly over the depth.

    Where some are left out, only blocks are taken if there are blocks enough.
    """

    def values(task: Task) -> list[str]:
        layers = latent_layers(task.problem)
        if not layers:
            raise ValueError("model: it has no layer before the one that gives the scores")
        if most is None or len(layers) <= most:
            return layers
        blocks = [name for name in layers if name not in task.problem.catalog.editable]
        if len(blocks) >= most // 2:
            layers = blocks
        rows = torch.linspace(0, len(layers) - 1, min(most, len(layers))).round().long()
        return [layers[row] for row in rows.tolist()]

    def check(task: Task, argument: str, given: object) -> str:
        return check_choice(argument, given, latent_layers(task.problem))

    about = f"a layer or block by its dotted name: {most or 'all'} of them, the deepest first"
    return Option(about, values, check)


# --- activations ---------------------------------------------------------------------------------


def by_position(activations: Tensor) -> Tensor:
    """``N × C × H × W``, ``N × T × C`` or ``N × C`` as ``N × P × C``."""
    if activations.ndim == 4:
        return activations.flatten(2).transpose(1, 2)
    return activations if activations.ndim == 3 else activations.unsqueeze(1)


def in_space(activations: Tensor, space: str) -> Tensor:
    """What a CAV is compared with: ``N × C`` maxima over positions, or ``N × (C · H · W)``."""
    if space == "channel":
        return by_position(activations).amax(dim=1)
    return activations.flatten(1)


def along(vector: Tensor, like: Tensor, space: str) -> Tensor:
    """A CAV shaped to be added to activations ``like`` (its length times a number a sample)."""
    if space == "map":
        return vector.reshape(1, *like.shape[1:])
    return vector.reshape(1, -1, 1, 1) if like.ndim == 4 else vector.expand_as(like[:1])


def passes(
    model: nn.Module, layer: nn.Module, inputs: Tensor, size: int = CHUNK
) -> Iterator[tuple[Tensor, Tensor]]:
    """Copies of a layer's input and output, for ``size`` of the model's inputs at a time."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(_: str, given: Tensor, output: Tensor) -> None:
        seen.append((given.clone(), output.clone()))  # what follows may work in place

    for chunk in inputs.split(size):
        seen.clear()
        with capturing({"": layer}, watch):
            predict(model, chunk)
        yield seen[0]


def activations(model: nn.Module, layer: str, inputs: Tensor) -> Iterator[Tensor]:
    """The layer's output on the inputs, a chunk at a time, as float32 or better."""
    for _, output in passes(model, unwrap(model).get_submodule(layer), inputs):
        yield output.to(working_dtype(output.dtype))


# --- concept activation vectors ------------------------------------------------------------------

PLACE = {
    "space": choice("where the concept activation vector lives", "channel", "map"),
    "layer": latent_layer(),
}


@dataclass(frozen=True, eq=False)
class Concept:
    """A CAV of unit length and where inputs lie along it."""

    layer: str
    space: str
    vector: Tensor
    clean: float
    """Mean of ``vᵀ a`` over clean inputs."""
    corrupted: float
    """Mean of ``vᵀ a`` over corrupted inputs."""


def pattern_cav(features: Tensor, present: Tensor) -> Tensor:
    """The signal-pattern CAV: ``cov(a, t) / var(t)``, scaled to unit length; ``K`` numbers.

    Pahde et al. 2022, "Navigating Neural Space: Revisiting Concept Activation Vectors to Overcome
    Directional Divergence" (ICLR 2025), after Haufe et al. 2014.

    Args:
        features: ``N × K`` activations.
        present: ``N`` booleans, whether the concept is in the sample.

    Raises:
        Unreached: features do not differ between samples with and without the concept.
    """
    target = present.to(features)
    centred = target - target.mean()
    pattern = (features - features.mean(dim=0)).T @ centred / centred.square().sum()
    length = pattern.norm()
    if not float(length) > 0:
        raise Unreached("layer: the corruption of the pairs does not reach it, so it has no CAV")
    unit: Tensor = pattern / length
    return unit


def find_concept(model: nn.Module, task: Task, options: Options) -> Concept:
    """The CAV of the corruption: from the pairs, so that nothing but the corruption differs."""
    layer, space = options["layer"], options["space"]
    corrupted, clean = (
        torch.cat([in_space(part, space) for part in activations(model, layer, inputs)])
        for inputs in (task.pairs.corrupted, task.pairs.clean)
    )
    present = torch.arange(len(corrupted) + len(clean), device=clean.device) < len(corrupted)
    vector = pattern_cav(torch.cat([corrupted, clean]), present)
    usual = [
        in_space(part, space) @ vector
        for part in activations(model, layer, task.problem.references)
    ]
    return Concept(
        layer, space, vector, float(torch.cat(usual).mean()), float((corrupted @ vector).mean())
    )


# --- modules behind a layer ----------------------------------------------------------------------


class Compensation(nn.Module):
    """Moves activations along a CAV until they lie at ``goal``: ``a + v (goal − vᵀ a)``.

    Buffers, so that it is copied, moved and saved with the model.
    """

    vector: Tensor
    goal: Tensor

    def __init__(self, concept: Concept, goal: float, like: nn.Module) -> None:
        super().__init__()
        weight = next((p for p in like.parameters() if p.is_floating_point()), concept.vector)
        self.space = concept.space
        self.register_buffer("vector", concept.vector.to(weight).clone())
        self.register_buffer("goal", torch.tensor(goal).to(weight))

    def forward(self, activations: Tensor) -> Tensor:
        """``N × C × H × W``, ``N × T × C`` or ``N × C`` in and out."""
        missing = self.goal - in_space(activations, self.space) @ self.vector
        missing = missing.reshape(-1, *(1,) * (activations.ndim - 1))
        return activations + missing * along(self.vector, activations, self.space)


class Mask(nn.Module):
    """Silences channels: their activations become zero."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, activations: Tensor) -> Tensor:
        """``N × C × H × W``, ``N × T × C`` or ``N × C`` in and out."""
        return activations * along(self.kept.to(activations), activations, "channel")


class LayerWrapper(nn.Module):
    """A layer with a module behind it, in the layer's place."""

    def __init__(self, layer: nn.Module, then: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.then = then
        then.train(layer.training)
        self.training = layer.training

    def forward(self, *args: object, **kwargs: object) -> object:
        """What the layer returns, passed through the module behind it."""
        return self.then(self.layer(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        """A network may ask its layer for its weight, or a block for its stride."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # the layer's way of being copied is its own
                raise
            return getattr(super().__getattr__("layer"), name)


def insert(model: nn.Module, layer: str, then: nn.Module) -> None:
    """Put a module behind the layer, for good."""
    substitute(model, layer, LayerWrapper(unwrap(model).get_submodule(layer), then))


def substitute(model: nn.Module, layer: str, part: nn.Module) -> None:
    """Put a module in the layer's place, for good."""
    parent, _, child = layer.rpartition(".")
    setattr(unwrap(model).get_submodule(parent), child, part)  # works in a Sequential too


def appended(model: nn.Module, layer: str, then: nn.Module) -> RemovableHandle:
    """Put a module behind the layer for as long as a ``with`` block runs."""
    return (
        unwrap(model).get_submodule(layer).register_forward_hook(lambda _, __, output: then(output))
    )
