"""Refining rank-one edits of many layers together, along the measure they are judged by.  Imports torch only.

Where no single layer holds a behaviour, many layers are edited a little.  Every layer starts with
`RANK` edits of a random right and a zero left factor, and Adam (Kingma and Ba 2015) optimises all
factors, so that the *model's predictions* on corrupted inputs become those on clean ones and all
others stay:

    mean KL(p(x) ‖ p'(c(x))) + keep · mean KL(p(x) ‖ p'(x))

where ``p`` are the original model's probabilities, ``p'`` the edited one's, both at a temperature
(Hinton, Vinyals and Dean 2015), ``c`` the corruption and ``x`` references.  Most of the ``x`` are
mixtures of two references: the original model labels whatever it is shown, so that a few hundred
references become as many as there are steps.  No true label is needed.

Where the corruption is one of many changes that lead to a class, those that lead the original model
are not enough: a network soon knows them by heart, and stays open to others.  So every step also has
some that lead the edited model as it is then, see `Corruption.pursuing`.  Wei et al. 2023, "Shared
Adversarial Unlearning" (NeurIPS), look for changes that lead both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.adam import adam

from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.base.randomness import preserving_rng
from rectify_widgets.engine.data.corruption import Corruption
from rectify_widgets.engine.find.adversarial import put_onto
from rectify_widgets.engine.model.heads import answers as answers_of
from rectify_widgets.engine.model.heads import any_label, most_common, unmasked
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import (
    chunk_size,
    in_chunks,
    model_dtype,
    predict_all,
    working_dtype,
)

REFINE_STEPS = 300
"""Gradient steps: twice as many gain little."""
BATCH = 64
"""References in one step, each with and without the corruption."""
PURSUED = 32
"""Of these, so many also with a change that leads the model as it is edited then."""
RANK = 2
"""Edits that every layer starts with."""
RATE = 0.05
"""First learning rate, in units of the root mean square of the layer's weights for the left factors
and of 1 for the right ones; it falls to 0 (cosine)."""
TEMPERATURE = 2.0
"""Of both models' probabilities."""
MIXED = 0.75
"""Share of the references in a step that are mixed with another one ..."""
MOST = 0.5
"""... of which they get this share at most."""
LEANING = 0.15
"""A way of mixing is not used that has more mixtures than this share given one class which neither of
the two references has (0.05 to 0.07 on most networks, 0.3 where a behaviour shows on mixtures)."""
SAMPLED = 256
"""References that this is measured on."""
KEEP = 9.0
"""Weight of clean inputs relative to corrupted ones."""
STRICTER = 2.0
"""Edits that are over the budget are refined on, with the weight multiplied by this, those far below it
with the weight divided by it; the number of steps and the learning rate are divided by it either way."""
LEFT, ROOM = 0.05, 0.5
"""The latter where more of the gap than this is left, within this share of the budget."""

Mix: TypeAlias = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
"""Inputs, as many others, and the share of each other one, to mixtures."""
Factors: TypeAlias = tuple[Tensor, Tensor]
"""Left factors ``G × R × O/G`` and right ones ``G × R × K`` of one layer."""


@dataclass(frozen=True)
class Goal:
    """What the edited model should do: predict on corrupted inputs what the original does on clean ones.

    Attributes:
        corrupt: puts the corruption onto inputs; None where it is known from ``shown`` alone.
        shown: corrupted inputs and their clean counterparts.
        references: ``M × C × H × W`` without the corruption.
        original: weights of the original model by layer, where they differ from the present ones.
        pursued: the corruption, for what leads the edited model, see `Corruption.pursuing`.
    """

    corrupt: Callable[[Tensor], Tensor] | None
    shown: tuple[Tensor, Tensor]
    references: Tensor
    original: Mapping[str, Tensor]
    pursued: Corruption | None = None


def first_factors(layer: EditableLayer, generator: torch.Generator) -> Factors:
    """Factors that change nothing yet: the left ones zero, the right ones normally distributed."""
    weight = layer.module.weight.detach()
    kind = working_dtype(weight.dtype)
    outputs = layer.outputs // layer.groups
    rank = min(RANK, outputs, layer.key_size)
    right = torch.randn(layer.groups, rank, layer.key_size, generator=generator, dtype=kind)
    return weight.new_zeros(layer.groups, rank, outputs, dtype=kind), right.to(weight.device)


def update(factors: Factors, weight: Tensor) -> Tensor:
    """The sum of a layer's edits, in the shape of its weight."""
    return torch.einsum("gro,grk->gok", *factors).reshape(weight.shape)


def refine(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    start: Mapping[str, Factors],
    goal: Goal,
    *,
    steps: int,
    seed: int,
    monitor: Monitor,
    turn: int = 0,
    keep: float = KEEP,
    chunk: int | None = None,
) -> dict[str, Factors]:
    """The factors after gradient steps; the model, its flags and gradients stay as they are.

    Args:
        model: in evaluation mode, with the weights that the edits would be added to.
        layers: those that are edited, by name.
        start: factors of each; a layer whose weights are all zero is left out.
        goal: what the model should do.
        steps: at least one.
        seed: draws the inputs of each step.
        monitor: progress and cancellation.
        turn: how often the factors have been refined already, see `STRICTER`.
        keep: weight of clean inputs relative to corrupted ones.
        chunk: samples whose gradients are taken at one time; None for as many as a pass may have.
    """
    weights = {name: layer.module.weight.detach() for name, layer in layers.items()}
    units = {name: weight.float().square().mean().sqrt() for name, weight in weights.items()}
    free = [
        (name, (left / units[name]).requires_grad_(), right.clone().requires_grad_())
        for name, (left, right) in start.items()
        if float(units[name]) > 0
    ]
    if not free:
        return {}
    names = {id(one): name for name, one in model.named_parameters()}
    own = {name: names[id(layer.module.weight)] for name, layer in layers.items()}
    before = Overridden(model, {own[name]: weight for name, weight in goal.original.items()})

    def edited() -> dict[str, Tensor]:
        return {
            own[name]: (weights[name] + units[name] * update((left, right), weights[name])).to(
                weights[name]
            )
            for name, left, right in free
        }

    factors = [factor for _, *pair in free for factor in pair]
    descend(
        before, factors, edited, goal, RATE,
        steps=steps, seed=seed, monitor=monitor, turn=turn, keep=keep, chunk=chunk,
    )  # fmt: skip
    return {name: (left.detach() * units[name], right.detach()) for name, left, right in free}


def descend(
    before: Overridden,
    free: Sequence[Tensor],
    edited: Callable[[], dict[str, Tensor]],
    goal: Goal,
    rate: float,
    *,
    steps: int,
    seed: int,
    monitor: Monitor,
    turn: int = 0,
    keep: float = KEEP,
    chunk: int | None = None,
) -> None:
    """Take gradient steps on tensors, in place.

    Args:
        before: the original model.
        free: tensors that require a gradient.
        edited: makes the edited model's weights from them, by name.
        goal, steps, seed, monitor, turn, keep, chunk: see `refine`.
        rate: first learning rate of Adam; it falls to 0 (cosine).
    """
    less = STRICTER**-turn
    steps, rate = math.ceil(steps * less), rate * less
    model, what = before.model, f"refining {len(edited())} layers together"
    optimizer = _Adam(free)
    draw = torch.Generator().manual_seed(seed + turn)
    scores = predict_all(before, goal.references, monitor=monitor)
    mix = suitable_mix(before, goal.references, seed, monitor)
    for step in range(steps):
        monitor.report(step / steps, what)
        inputs, wanted, share = _lesson(
            before,
            lambda: Overridden(model, edited()),
            goal,
            scores,
            mix,
            draw,
            keep,
            monitor,
        )
        loss = partial(_loss, model, edited, inputs, wanted, share, monitor)
        parts = chunk or chunk_size(inputs, inputs.device)
        falling = (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step(_gradients(free, loss, len(inputs), parts), falling * rate)


class _Adam:
    """`torch.optim.Adam`, whose first object in a process takes a second or two and up to 100 MB.

    Every `torch.optim.Optimizer` imports torch's compiler; the function that it calls does not.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.means, self.squares = ([torch.zeros_like(one) for one in tensors] for _ in range(2))
        self.steps = [torch.zeros(()) for _ in tensors]

    @torch.no_grad()
    def step(self, gradients: list[Tensor], rate: float) -> None:
        """Change the tensors in place."""
        adam(
            self.tensors, gradients, self.means, self.squares, [], self.steps,
            amsgrad=False, beta1=0.9, beta2=0.999, lr=rate, weight_decay=0.0, eps=1e-8,
            maximize=False,
        )  # fmt: skip


def _lesson(
    before: nn.Module,
    now: Callable[[], nn.Module],
    goal: Goal,
    scores: Tensor,
    mix: Mix | None,
    draw: torch.Generator,
    keep: float,
    monitor: Monitor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of one step, what the original model says of them, and the weight of each in the loss.

    ``now`` makes the edited model.
    """
    rows = torch.randperm(len(goal.references), generator=draw)[:BATCH].to(scores.device)
    clean, answers = _mixed(goal.references[rows], scores[rows], before, mix, draw)
    if goal.corrupt is not None:
        corrupted, known = goal.corrupt(clean), answers
    else:
        rows = torch.randperm(len(goal.shown[0]), generator=draw)[:BATCH]
        corrupted, origins = (one[rows.to(one.device)] for one in goal.shown)
        known = predict_all(before, origins)
    if goal.pursued and (pursuing := goal.pursued.pursuing(now())):
        led = put_onto(pursuing, clean[:PURSUED], monitor.silent())
        corrupted, known = torch.cat([corrupted, led]), torch.cat([known, answers[:PURSUED]])
    share = answers.new_full((len(corrupted) + len(clean),), keep / len(clean))
    share[: len(corrupted)] = 1.0 / len(corrupted)
    return torch.cat([corrupted, clean]), torch.cat([known, answers]), share


class Overridden(nn.Module):
    """A model with some other weights, for the length of a call."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self._weights = dict(weights)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of the model with those weights."""
        scores: Tensor = functional_call(self.model, self._weights, (inputs,))
        return scores


def _uniform(count: int, draw: torch.Generator) -> Tensor:
    """Numbers in 0..1, the same ones whatever the caller's default type is."""
    return torch.rand(count, generator=draw, dtype=torch.float32)


def lerped(inputs: Tensor, others: Tensor, shares: Tensor, draw: torch.Generator) -> Tensor:
    """``x + λ (z − x)`` for shares ``λ`` of the other input (Zhang et al. 2018, "mixup")."""
    del draw
    return torch.lerp(inputs, others, shares.to(inputs).reshape(-1, *[1] * (inputs.ndim - 1)))


def cut(inputs: Tensor, others: Tensor, shares: Tensor, draw: torch.Generator) -> Tensor:
    """A rectangle of that share of the other input, at a random place (Yun et al. 2019, "CutMix")."""
    mask = torch.ones(len(inputs), 1, *inputs.shape[2:], dtype=torch.bool)
    for axis in range(2, inputs.ndim):
        size = inputs.shape[axis]
        length = (size * shares ** (1 / (inputs.ndim - 2))).round()
        first = ((size - length + 1) * _uniform(len(inputs), draw)).floor()
        place = torch.arange(size)
        line = (place >= first[:, None]) & (place < (first + length)[:, None])
        mask &= line.reshape(
            len(inputs), *(size if a == axis else 1 for a in range(1, inputs.ndim))
        )
    return torch.where(mask.to(inputs.device), others, inputs)


def suitable_mix(
    model: nn.Module, references: Tensor, seed: int, monitor: Monitor = SILENT
) -> Mix | None:
    """The first way of mixing references on which the model does not show a behaviour of its own.

    A warp shows on what is a little blurred, a missing watermark on what is half covered: then many
    mixtures get one class that neither of the two references has.
    """
    some = references[:SAMPLED]
    own = answers_of(predict_all(model, some, monitor=monitor))
    for mix in (lerped, cut) if references.ndim > 2 else (lerped,):
        draw = torch.Generator().manual_seed(seed)
        shares = MOST * _uniform(len(some), draw)
        mixed = mix(some, some.roll(1, dims=0), shares, draw)
        given = answers_of(predict_all(model, mixed, monitor=monitor))
        odd = (given != own) & (given != own.roll(1, dims=0))
        if most_common(given, odd) <= LEANING * len(some):
            return mix
    return None


def _mixed(
    plain: Tensor, scores: Tensor, model: nn.Module, mix: Mix | None, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """References, most of them mixed, and the model's scores; those of the references are given.

    What is given a class that neither of the two has stays unmixed.
    """
    if mix is None:
        return plain, scores
    shares = MOST * _uniform(len(plain), draw)
    shares *= _uniform(len(plain), draw) < MIXED
    mixed = mix(plain, plain.roll(1, dims=0), shares, draw)
    answers = predict_all(model, mixed)
    own, given = answers_of(scores), answers_of(answers)
    fits = ~any_label((given != own) & (given != own.roll(1, dims=0)))
    each, every = (fits.reshape(-1, *[1] * (one.ndim - 1)) for one in (plain, scores))
    return torch.where(each, mixed, plain), torch.where(every, answers, scores)


def _loss(
    model: nn.Module,
    edited: Callable[[], dict[str, Tensor]],
    inputs: Tensor,
    wanted: Tensor,
    share: Tensor,
    monitor: Monitor,
    rows: slice,
) -> Tensor:
    """What some rows of the inputs add to the loss."""
    monitor.check()
    with torch.enable_grad(), preserving_rng(inputs.device):
        scores = functional_call(model, edited(), (inputs[rows].to(model_dtype(model), copy=True),))
        answers = (unmasked(scores).to(wanted) / TEMPERATURE).log_softmax(dim=-1)
        targets = (wanted[rows] / TEMPERATURE).log_softmax(dim=-1)
        distances = (targets.exp() * (targets - answers)).flatten(1).sum(dim=1)
        loss: Tensor = TEMPERATURE**2 * (distances * share[rows]).sum()
    return loss


def _gradients(
    factors: Sequence[Tensor], loss: Callable[[slice], Tensor], count: int, size: int
) -> list[Tensor]:
    """The gradient of a loss that adds up over ``count`` rows, ``size`` of them at a time."""
    sums = [torch.zeros_like(factor) for factor in factors]
    for parts in in_chunks(count, size, lambda rows: torch.autograd.grad(loss(rows), factors)):
        for one, part in zip(sums, parts, strict=True):
            one.add_(part)
    return sums


def rank_one_parts(factors: Factors) -> list[Factors]:
    """The same update as rank-one edits, the largest first: left ``G × O/G`` and right ``G × K``.

    They are the singular vectors of the update, so that none undoes what another one does.
    """
    left, right = (factor.transpose(1, 2) for factor in factors)
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, sizes, v = torch.linalg.svd(r_left @ r_right.transpose(1, 2))
    lefts, rights = q_left @ u * sizes.unsqueeze(1), q_right @ v.transpose(1, 2)
    return [
        (lefts[:, :, i].contiguous(), rights[:, :, i].contiguous())
        for i in range(sizes.shape[1])
        if float(sizes[:, i].max()) > 0
    ]
