"""Adversarial neuron pruning (ANP).  Imports torch and the engine.

Wu and Wang 2021, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS.  Neurons
that a backdoor uses can be made to show it without a trigger, by small changes of their weights.
Each channel gets a mask ``m``, at first 1; weights ``w`` and biases ``b`` become ``(m + δ) w`` and
``(1 + ξ) b``, and

    min over m in [0, 1] of  α L(m, 0, 0) + (1 − α) max over |δ|, |ξ| ≤ ε of L(m, δ, ξ)

on clean inputs finds small masks for channels that are sensitive and dispensable.  Their weights are
then set to zero, biases stay, and all other channels are as they were.

Published defaults: α = 0.2, ε = 0.4, one step of the inner maximisation, learning rate 0.2, pruning
up to 0.2, masks on the scales of batch norms alone, and batch norms that go by the statistics of
the batch while masks are learnt (with frozen ones, a perturbation of every layer at once grows
from layer to layer beyond any use); the running statistics stay as they are.  What differs:
channels of a convolution or linear layer that no batch norm follows have a mask too, on the layer's
own weight, so that networks without batch norm can be pruned; the layer of the scores has none.
All other modules stay in evaluation mode.  Perturbations that leave ±ε, as a step from a random
start may, are clipped to it, which the published code leaves out.  Labels are those of the original
model.  A hundred steps on up to 64 inputs, with the gradient clipped and a rate that falls to zero,
stand for 2,000 on 128: masks come less far, so that higher thresholds and a higher learning rate are
tried as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rectify_widgets.baselines.method import Method, Options, count, number
from rectify_widgets.baselines.task import Batch, Task
from rectify_widgets.baselines.training import TRAINING_STEPS, Loss, cross_entropy, train
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import capturing, predict, unwrap

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    layers = masked_layers(model, task)
    masked = MaskedNetwork(model, layers)
    loss = adversarial_loss(
        options["trade_off"], options["perturbation"], options["ascents"], task.generator()
    )
    clean = task.clean()
    with batch_statistics(model):
        train(masked, task, options, monitor, loss, (clean, clean))
    prune(layers, masked.clipped(), options["threshold"])


def masked_layers(model: nn.Module, task: Task) -> list[nn.Module]:
    """Batch norms with a scale, and editable layers whose output none of them takes, but the last.

    Raises:
        ValueError: there are none.
    """
    root = unwrap(model)
    layers = {one.name: root.get_submodule(one.name) for one in task.problem.catalog}
    norms = {
        name: part for name, part in root.named_modules() if isinstance(part, NORMS) and part.affine
    }
    outputs: dict[str, Tensor] = {}
    normed: set[str] = set()

    def watch(name: str, given: Tensor, output: Tensor) -> None:
        if name in norms:
            normed.update(layer for layer, seen in outputs.items() if seen is given)
        else:
            outputs[name] = output

    with capturing(layers | norms, watch):
        predict(model, task.problem.pairs.clean[:1])
    inner = [part for name, part in list(layers.items())[:-1] if name not in normed]
    if not (found := [*norms.values(), *inner]):
        raise ValueError("model: it has no layer before the one that gives the scores")
    return found


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Have batch norms go by the statistics of the batch in the block, without keeping any."""
    with ExitStack() as stack:
        for part in model.modules():
            if isinstance(part, NORMS):
                for flag, value in (("training", True), ("track_running_stats", False)):
                    stack.callback(setattr, part, flag, getattr(part, flag))
                    setattr(part, flag, value)
        yield


class MaskedNetwork(nn.Module):
    """A network whose channels carry masks; these are its only parameters.

    Args:
        network: left as it is.
        layers: of the network, with a weight whose rows belong to channels, and perhaps a bias.
    """

    def __init__(self, network: nn.Module, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, so that it is no part of this module
        self._given = {name: one.detach() for name, one in network.named_parameters()}
        names = {id(one): name for name, one in network.named_parameters()}
        self._names = [
            (names[id(layer.weight)], names.get(id(getattr(layer, "bias", None))))
            for layer in layers
        ]
        self.masks = nn.ParameterList(
            self._given[weight].new_ones(len(self._given[weight])) for weight, _ in self._names
        )
        self.noise: list[Tensor] = []
        """δ and ξ of each layer, ``2 × C``; empty for none."""

    def clipped(self) -> list[Tensor]:
        """The masks, ``C`` numbers a layer, clipped in place to 0..1."""
        with torch.no_grad():
            return [mask.clamp_(0.0, 1.0) for mask in self.masks]

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores ``N × classes`` of the network with the masks and, where there is some, the noise."""
        changed: dict[str, Tensor] = {}
        for row, (mask, (weight, bias)) in enumerate(zip(self.masks, self._names, strict=True)):
            delta, xi = self.noise[row] if self.noise else torch.zeros_like(mask).expand(2, -1)
            given = self._given[weight]
            changed[weight] = given * (mask + delta).reshape(-1, *(1,) * (given.ndim - 1))
            if bias is not None:
                changed[bias] = self._given[bias] * (1 + xi)
        scores: Tensor = functional_call(self._network[0], changed, (inputs,))
        return scores


def adversarial_loss(
    trade_off: float, perturbation: float, ascents: int, generator: torch.Generator
) -> Loss:
    """``α L(m, 0, 0) + (1 − α) L(m, δ, ξ)`` of a `MaskedNetwork`, whose masks are clipped first."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, MaskedNetwork)  # noqa: S101 - for the type checker
        masks = model.clipped()
        model.noise = [
            torch.empty(2, len(mask)).uniform_(-perturbation, perturbation, generator=generator)
            .to(mask)
            for mask in masks
        ]  # fmt: skip
        for _ in range(ascents):
            ascend(model, batch, perturbation, perturbation / ascents)
        robust = cross_entropy(model, batch)
        model.noise = []
        return trade_off * cross_entropy(model, batch) + (1 - trade_off) * robust

    return loss


def ascend(model: MaskedNetwork, batch: Batch, limit: float, step: float) -> None:
    """One step of the noise along the sign of the loss's gradient, clipped to ±``limit``."""
    model.noise = [one.detach().requires_grad_() for one in model.noise]
    uphill = torch.autograd.grad(cross_entropy(model, batch), model.noise, materialize_grads=True)
    model.noise = [
        (one.detach() + step * way.sign()).clamp(-limit, limit)
        for one, way in zip(model.noise, uphill, strict=True)
    ]


def prune(layers: Sequence[nn.Module], masks: Sequence[Tensor], threshold: float) -> None:
    """Set the weights to zero of channels whose mask is not above the threshold; biases stay."""
    for layer, mask in zip(layers, masks, strict=True):
        layer.get_parameter("weight")[mask <= threshold] = 0


NEURON_PRUNING = Method(
    "neuron_pruning",
    (
        {"threshold": number("channels whose mask is not above it are pruned", 0.2, 0.6, 0.8)},
        {"learning_rate": number("of the masks, at the start", 0.2, 1.0)},
        {"perturbation": number("ε, the largest of a weight or bias, relative to it", 0.4)},
        {"trade_off": number("α, the share of the loss without perturbation", 0.2, high=1.0)},
        {"ascents": count("steps of the inner maximisation", 1)},
        TRAINING_STEPS,
    ),
    _attempt,
    needs_references="to see which channels they need",
)
