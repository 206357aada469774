"""Edits of many layers, made and kept together: refined, divided into rank-one parts, the idle ones dropped.

Imports torch only.  What is dropped is decided on the references that the edits were refined with; the
stage is judged on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.adversarial import AdversarialPerturbation
from rectify_widgets.engine.find.candidates import Candidate, exchanged
from rectify_widgets.engine.find.problem import Problem
from rectify_widgets.engine.measure.judge import Judge, Verdict
from rectify_widgets.engine.model.heads import answers
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import predict_all
from rectify_widgets.engine.repair.checkpoint import State
from rectify_widgets.engine.repair.refining import Factors, Goal, rank_one_parts

Measured = TypeVar("Measured")

JOINT = "joint"
"""Direction of edits that were refined together with those of other layers."""
IDLE = 0.002
"""Edits are dropped as long as gap plus weighted disturbance is no more than this above its least."""
SAFELY = 0.5
"""Or as long as the gap is no more than this share of the target, since it is measured where it was learnt."""
PAIRS_TOO = 1 / 3
"""Where each reference has a change of its own, so many rows are pairs for each of these: only pairs show
the corruption itself."""
SHIFT = 1 / 8
"""Such pairs are shifted by up to this share of their height and width, or a large network knows them by heart."""

Refined: TypeAlias = tuple[list[Candidate], Verdict]
"""Edits that were refined together, and how they were judged."""


def goal_of(problem: Problem, spare: Tensor, state: State, seed: int, monitor: Monitor) -> Goal:
    """What edits of many layers are refined towards, on the references to solve from and spare ones."""
    original: dict[str, Tensor] = {}
    for edit in state.edits:
        layer = problem.layers[edit.layer]
        before = original.get(edit.layer, layer.module.weight.detach())
        delta = edit.delta.to(device=before.device)
        original[edit.layer] = (before.to(delta) - delta).to(before)
    pairs = problem.pairs
    shown = pairs.corrupted, pairs.clean
    clean = torch.ones(len(spare), dtype=torch.bool)
    clean[state.spare_flagged] = False
    references = torch.cat([problem.references, spare[clean.to(spare.device)]])
    corrupt = problem.corruption
    if isinstance(corrupt, AdversarialPerturbation):  # what it does to mixtures means nothing
        weights = [(problem.layers[name].module.weight, one) for name, one in original.items()]
        with exchanged(weights):
            own = corrupt.made(references, monitor)
            rows = torch.arange(math.ceil(PAIRS_TOO * len(references))) % len(pairs)
            more = shifted(problem.model, pairs[rows], corrupt.target, seed)
        shown = torch.cat([own, more[0]]), torch.cat([references, more[1]])
        corrupt = None
    pursued = problem.corruption
    if problem.limit or (pursued and pursued.pursuing(problem.model) is None):
        pursued = None  # it would take more than the limit, or is nothing that leads
    return Goal(corrupt, shown, references, original, pursued)


def shifted(model: nn.Module, pairs: SamplePairs, target: int, seed: int) -> tuple[Tensor, Tensor]:
    """Corrupted and clean inputs, both shifted alike where the corrupted one still leads to the class."""
    draw = torch.Generator().manual_seed(seed)
    moved = torch.stack([pairs.corrupted, pairs.clean], dim=1)
    for axis, size in enumerate(pairs.clean.shape[2:], start=2):
        most = int(SHIFT * size)
        steps = torch.randint(-most, most + 1, (len(moved),), generator=draw)
        moved = torch.stack(
            [one.roll(int(step), axis) for one, step in zip(moved, steps, strict=True)]
        )
    corrupted, clean = moved.unbind(dim=1)
    led = answers(predict_all(model, corrupted)) == target
    led = led.reshape(-1, *[1] * (corrupted.ndim - 1))
    return torch.where(led, corrupted, pairs.corrupted), torch.where(led, clean, pairs.clean)


def as_candidates(
    layers: Mapping[str, EditableLayer], factors: Mapping[str, Factors]
) -> list[Candidate]:
    """The rank-one parts of every layer's update, as edits."""
    return [
        Candidate(layers[name], JOINT, 0.0, left, right, 0.0, 0.0, refined=True)
        for name, pair in factors.items()
        for left, right in rank_one_parts(pair)
    ]


def some_layers(edits: Sequence[Candidate]) -> str:
    """How many layers the edits change, in words; a single one by its name."""
    names = {edit.layer.name for edit in edits}
    return f"{len(names)} layers" if len(names) > 1 else edits[0].layer.name


@contextmanager
def together(edits: Sequence[Candidate]) -> Iterator[None]:
    """Put several edits into the model while the block runs, one after the other as they would be kept."""
    weights: dict[str, tuple[Tensor, Tensor]] = {}
    for edit in edits:
        parameter = edit.layer.module.weight
        before = weights[edit.layer.name][1] if edit.layer.name in weights else parameter.detach()
        weights[edit.layer.name] = parameter, edit.added_to(before)
    with exchanged(weights.values()):
        yield


def by_use(
    model: nn.Module, edits: Sequence[Candidate], judge: Judge, monitor: Monitor, *, cached: bool
) -> list[Candidate]:
    """The edits, first the one without which gap plus weighted disturbance rises the most.

    ``cached`` keeps what runs before the layers, which takes memory; the result is the same.
    """
    verdicts = _leaving_out(
        edits, judge, model, monitor, lambda name: judge.measure(model, edited=name), cached=cached
    )
    order = sorted(range(len(edits)), key=lambda number: -verdicts[number].objective)
    return [edits[number] for number in order]


def left_out(
    model: nn.Module, edits: Sequence[Candidate], judge: Judge, monitor: Monitor, *, cached: bool
) -> list[float]:
    """The gap without each of the edits, all others in place; ``cached`` as in `by_use`."""
    return _leaving_out(
        edits, judge, model, monitor, lambda name: judge.gap(model, edited=name), cached=cached
    )


def _leaving_out(
    edits: Sequence[Candidate],
    judge: Judge,
    model: nn.Module,
    monitor: Monitor,
    measure: Callable[[str], Measured],
    *,
    cached: bool,
) -> list[Measured]:
    """What is measured with all edits but one, for each."""
    measured = []
    layers = [edit.layer for edit in edits] if cached else []
    with together(edits), judge.sharing(model, layers, monitor):
        for number, edit in enumerate(edits):
            name, weight = edit.layer.name, edit.layer.module.weight
            monitor.report(number / len(edits), f"leaving out an edit of {name}")
            rest = replace(edit, left=-edit.left).added_to(weight.detach())
            with exchanged([(weight, rest)]):
                measured.append(measure(name))
    return measured


def fewest(
    model: nn.Module, edits: Sequence[Candidate], judge: Judge, target: float, monitor: Monitor
) -> list[Candidate]:
    """The edits, in the order of `by_use`, without the last ones, which are idle or do harm.

    One after the other is dropped, as long as what is left does as well as the best so far or reaches
    the target gap, see `IDLE` and `SAFELY`.
    """
    best = math.inf
    for count in range(len(edits), 0, -1):
        monitor.check()
        with together(edits[:count]):
            verdict = judge.measure(model, monitor.silent())
        best = min(best, verdict.objective)
        if verdict.objective > best + IDLE and verdict.gap > SAFELY * target:
            return list(edits[: count + 1])
    return list(edits[:1])
