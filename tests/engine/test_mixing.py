"""Mixtures of references: what they are, and when a model is not shown them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.repair.refining import (
    BATCH,
    MOST,
    _mixed,
    cut,
    lerped,
    suitable_mix,
)
from tests.engine.refining_stage import Stage, marked
from tests.engine.traces import untouched

# --- mixtures ------------------------------------------------------------------------------------


def shares_of(count: int) -> Tensor:
    return MOST * torch.rand(count, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("shape", [(7,), (2, 11), (3, 9, 12), (2, 5, 6, 7)])
def test_a_blend_lies_between_the_two(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 50, *shape, generator=draw, dtype=torch.float64)
    shares = shares_of(50)
    mixed = lerped(one, other, shares, draw)
    for row in range(50):
        wanted = (1 - float(shares[row])) * one[row].numpy() + float(shares[row]) * other[
            row
        ].numpy()
        np.testing.assert_allclose(mixed[row].numpy(), wanted, atol=1e-7)
    assert bool((mixed <= torch.maximum(one, other)).all())
    assert bool((mixed >= torch.minimum(one, other)).all())


@pytest.mark.parametrize("shape", [(2, 11), (3, 9, 12), (2, 5, 6, 7)])
def test_a_cut_is_a_rectangle_of_that_share(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.zeros(200, *shape), torch.ones(200, *shape)
    shares = shares_of(200)
    mixed = cut(one, other, shares, draw)
    assert torch.equal(mixed, cut(one, other, shares, torch.Generator().manual_seed(0)))
    firsts = set()
    for row in range(200):
        there = mixed[row].numpy().astype(bool)
        assert (there == there[0]).all()  # of all channels
        places = np.argwhere(there[0])
        side = float(shares[row]) ** (1 / len(shape[1:]))
        lengths = [round(size * side) for size in shape[1:]]
        assert len(places) == math.prod(lengths)
        if len(places):
            low, high = places.min(axis=0), places.max(axis=0)
            assert (high - low + 1).tolist() == lengths
            firsts.add(tuple(low.tolist()))
    assert len(firsts) > 5
    assert np.array(list(firsts)).min() == 0
    assert not bool(cut(one, other, torch.zeros(200), draw).any())


class Foggy(nn.Module):
    """Zeros and ones are classes 0 and 1; what is between, or not of one piece, may be one of others."""

    def __init__(self, *, pieces: bool = False, finely: bool = False) -> None:
        super().__init__()
        self.pieces, self.finely = pieces, finely

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        grade = flat.mean(dim=1)
        odd = ((flat > 0) & (flat < 1)).any(dim=1)
        if self.pieces:
            odd = (grade > 0) & (grade < 1)
        third = (
            2 + (10 * grade).long().clamp(0, 9) if self.finely else torch.full_like(grade, 2).long()
        )
        return nn.functional.one_hot(torch.where(odd, third, grade.long()), 12).float()


def blocks(*numbers: int, shape: tuple[int, ...] = (1, 6, 6)) -> Tensor:
    return torch.tensor(numbers).float().reshape(-1, *[1] * len(shape)).expand(-1, *shape)


@pytest.mark.parametrize(
    ("model", "references", "expected"),
    [
        (Foggy(), blocks(*[0, 1] * 50), cut),  # all mixtures are of class 2
        (Foggy(pieces=True), blocks(*[0, 1] * 50), None),
        (Foggy(), blocks(*[0, 1] * 50, shape=(6,)), None),  # nothing to cut from
        (Foggy(pieces=True, finely=True), blocks(*[0, 1] * 50), lerped),  # of many classes
        (Foggy(), blocks(*[0] * 100), lerped),
        (Foggy(), blocks(*[1, 0] * 7, *[0] * 86), lerped),  # 14 of 100 mixtures
        (Foggy(), blocks(*[1, 0] * 8, *[0] * 84), cut),  # 16
    ],
)  # fmt: skip
def test_mixtures_on_which_the_behaviour_shows_are_not_used(
    model: nn.Module, references: Tensor, expected: object
) -> None:
    with untouched(model, references):
        assert suitable_mix(model, references, 0) is expected


def test_what_shows_a_third_class_stays_unmixed() -> None:
    references, model = blocks(*[0, 1] * 20), Foggy()
    scores, draw = model(references), torch.Generator().manual_seed(0)
    plain, answers = _mixed(references, scores, model, lerped, draw)
    assert torch.equal(plain, references)
    assert torch.equal(answers, scores)
    # A linear model has two classes alone, so that every mixture is kept, with its own answers.
    ramp, both = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), blocks(0, 1, 1, 1)
    with torch.no_grad():
        for parameter in ramp.parameters():
            parameter.copy_(torch.linspace(-1, 0.5, parameter.numel()).reshape(parameter.shape))
        mixed, answers = _mixed(both, ramp(both), ramp, lerped, torch.Generator().manual_seed(1))
        assert torch.equal(answers, ramp(mixed))
    assert torch.equal(mixed[2:], both[2:])
    assert 0 < float(mixed[0, 0, 0, 0]) < MOST


def test_every_mixture_is_between_two_references() -> None:
    stage = Stage("plain", 80)
    before, seen = stage.model, list[Tensor]()

    def corrupt(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        return marked(inputs)

    stage.goal = replace(stage.goal, corrupt=corrupt)
    assert suitable_mix(before, stage.clean, 0) is lerped
    stage.refined(steps=6)
    assert len(seen) == 6
    plain = 0
    for mixed in torch.cat(seen):
        nearest = stage.clean[(stage.clean - mixed).flatten(1).norm(dim=1).argmin()]
        within = (mixed - nearest) * (stage.clean - mixed) >= -1e-12
        assert bool(within.flatten(1).all(dim=1).any())
        plain += torch.equal(mixed, nearest)
    assert 0.1 < plain / (6 * BATCH) < 0.5
