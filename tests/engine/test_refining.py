"""Edits refined together: the formula against an own computation, and no trace left."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.find.adversarial import AdversarialPerturbation
from rectify_widgets.engine.model import running
from rectify_widgets.engine.repair import refining
from rectify_widgets.engine.repair.refining import (
    KEEP,
    Factors,
    Goal,
    cut,
    first_factors,
    lerped,
    rank_one_parts,
    refine,
    suitable_mix,
)
from tests.engine.refining_stage import (
    NETWORKS,
    Stage,
    by_hand,
    close,
    divergence,
    equal,
    layers_of,
    marked,
    with_factors,
)
from tests.engine.toy import Toy, stamped
from tests.engine.traces import untouched

# --- the formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("steps", "count", "turn", "keep"), [(1, 12, 0, 9.0), (7, 12, 2, 36.0), (3, 80, 0, 4.5)]
)
def test_steps_are_those_of_the_formula(
    network: str, steps: int, count: int, turn: int, keep: float
) -> None:
    stage = Stage(network, count, turn=turn)
    found = stage.refined(steps=steps, seed=5, turn=turn, keep=keep)
    mix = suitable_mix(stage.model, stage.clean, 5)
    close(found, by_hand(stage, steps, 5, turn, mix, keep), 1e-5)
    assert found.keys() == stage.layers.keys()
    for name, (left, right) in found.items():
        assert not torch.allclose(left, stage.start[name][0], atol=1e-5)
        # What multiplies nothing does not move in the first step.
        assert torch.equal(right, stage.start[name][1]) == (steps == 1)


@pytest.mark.parametrize("mix", [lerped, cut, None])
@pytest.mark.parametrize("alone", [False, True])
def test_each_way_of_mixing_and_pairs_alone(
    monkeypatch: pytest.MonkeyPatch, mix: Any, alone: bool
) -> None:
    """And the original of a layer that has been edited before is what it was."""
    stage = Stage("plain", 20)
    original = {"second": stage.layers["second"].module.weight.detach() * 1.5}
    stage.goal = replace(stage.goal, corrupt=None if alone else marked, original=original)
    monkeypatch.setattr(refining, "suitable_mix", lambda *_: mix)
    with untouched(stage.model, *stage.everything()):
        found = stage.refined()
    close(found, by_hand(stage, 3, 0, 0, mix), 1e-5)
    stage.goal = replace(stage.goal, original={})
    assert not equal(stage.refined(), found)


@pytest.mark.parametrize("network", ["plain", "transformer"])
@pytest.mark.parametrize("count", [20, 40])
def test_changes_that_lead_the_edited_model(network: str, count: int) -> None:
    """Of no more than 32 references, in every step anew."""
    stage = Stage(network, count)
    own = AdversarialPerturbation(stage.model, 1, 2.0, torch.tensor(0.0), torch.tensor(1.0))
    stage.goal = replace(stage.goal, corrupt=None, pursued=own)
    with untouched(stage.model, *stage.everything()):
        found = stage.refined()
    mix = suitable_mix(stage.model, stage.clean, 0)
    close(found, by_hand(stage, 3, 0, 0, mix), 1e-5)


def test_the_objective_falls_on_a_real_network(trojan: Toy) -> None:
    stage = Stage()
    stage.model, stage.clean = trojan.model, trojan.reference
    stage.layers = layers_of(trojan.model, trojan.reference)
    draw = torch.Generator().manual_seed(0)
    stage.start = {name: first_factors(layer, draw) for name, layer in stage.layers.items()}
    stage.goal = Goal(stamped, (trojan.pairs.corrupted, trojan.pairs.clean), stage.clean, {})
    others = trojan.x[:100]
    with torch.no_grad():
        wanted = trojan.model(others)
        left = [
            (float(divergence(twin, stamped(others), wanted)), float(divergence(twin, others, wanted)))
            for twin in (with_factors(trojan.model, f) for f in (stage.start, stage.refined(steps=20)))
        ]  # fmt: skip
    assert left[0][1] < 1e-6
    assert left[1][0] + KEEP * left[1][1] < 0.3 * left[0][0]


def test_a_layer_of_zeros_is_left_out() -> None:
    stage = Stage()
    with torch.no_grad():
        stage.layers["hidden"].module.weight.zero_()
    assert stage.refined().keys() == stage.layers.keys() - {"hidden"}


# --- how it is computed --------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["plain", "padded", "transformer"])
@pytest.mark.parametrize("together", [1, 7, 23])
def test_in_chunks_as_at_once(monkeypatch: pytest.MonkeyPatch, network: str, together: int) -> None:
    stage = Stage(network)  # 24 rows a step
    whole = stage.refined()
    seen: list[int] = []
    monkeypatch.setattr(running, "CHUNK", together * stage.clean[0].numel())

    def count(_: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            seen.append(len(args[0]))

    hook = stage.model.register_forward_pre_hook(count)
    parts = stage.refined()
    hook.remove()
    assert seen == 3 * ([together] * (24 // together) + [24 % together] * (24 % together > 0))
    close(parts, whole, 1e-8)


class Shifted(nn.Module):
    """Works on its input in place, and has no memory for many at a time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.most, self.seen = inner, 1000, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        if len(x) > self.most:
            raise torch.OutOfMemoryError
        if torch.is_grad_enabled():
            self.seen.append(len(x))
        scores: Tensor = self.inner(x)
        return scores


def test_a_device_that_is_short_of_memory_gets_fewer_at_a_time() -> None:
    stage = Stage()
    stage.model = model = Shifted(stage.model)
    stage.layers = layers_of(model, stage.clean)
    stage.start = {f"inner.{name}": pair for name, pair in stage.start.items()}
    whole = stage.refined()
    model.most, model.seen = 7, []
    close(stage.refined(), whole, 1e-8)
    assert sum(model.seen) == 3 * 24


def test_one_seed_one_result_whatever_the_caller_has_set() -> None:
    stage = Stage("plain", 80)
    model = stage.model.float()
    stage.clean = stage.clean.float()
    stage.layers = layers_of(model, stage.clean)
    draw = torch.Generator().manual_seed(7)
    stage.start = {name: first_factors(layer, draw) for name, layer in stage.layers.items()}
    stage.goal = replace(stage.goal, references=stage.clean)
    found = stage.refined()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert equal(stage.refined(), found)
    assert not equal(stage.refined(seed=1), found)
    torch.set_default_dtype(torch.float64)
    try:
        draw.manual_seed(7)
        begun = {name: first_factors(layer, draw) for name, layer in stage.layers.items()}
        again = stage.refined()
    finally:
        torch.set_default_dtype(torch.float32)
    assert equal(begun, stage.start)
    assert equal(again, found)
    assert all(factor.dtype is torch.float32 for pair in again.values() for factor in pair)
    outside = refine(
        model, stage.layers, stage.start, stage.goal, steps=3, seed=0, monitor=Monitor()
    )
    assert equal(outside, found)  # with gradients enabled


def test_half_precision() -> None:
    stage = Stage()
    stage.model.bfloat16()
    stage.clean = stage.clean.bfloat16()
    stage.layers = layers_of(stage.model, stage.clean)
    stage.goal = Goal(marked, (marked(stage.clean), stage.clean), stage.clean, {})
    draw = torch.Generator().manual_seed(7)
    stage.start = {name: first_factors(layer, draw) for name, layer in stage.layers.items()}
    with untouched(stage.model, *stage.everything()):
        found = stage.refined()
    assert not equal(found, stage.start)
    for name, pair in found.items():
        for factor in pair:
            assert factor.dtype is torch.float32
            assert bool(torch.isfinite(factor).all())
        for left, right in rank_one_parts(pair):
            assert left.dtype is right.dtype is torch.float32
        assert stage.layers[name].module.weight.dtype is torch.bfloat16


def test_a_first_layer_that_works_in_place() -> None:
    stage, found = Stage(), list[dict[str, Factors]]()
    stage.clean -= 0.5
    inner = stage.model
    start = {f"1.{name}": pair for name, pair in stage.start.items()}
    for inplace in (False, True):
        stage.model = nn.Sequential(nn.ReLU(inplace=inplace), inner)
        stage.layers = layers_of(stage.model, stage.clean)
        stage.start = start
        with untouched(stage.model, *stage.everything()):
            found.append(stage.refined())
    assert equal(*found)


def test_progress() -> None:
    reported: list[tuple[float, str]] = []
    monitor = Monitor(lambda fraction, text: reported.append((fraction, text)))
    Stage().refined(steps=4, monitor=monitor)
    assert reported == [(step / 4, "refining 4 layers together") for step in range(4)]
    reported.clear()
    Stage().refined(steps=5, monitor=monitor, turn=1)
    assert [fraction for fraction, _ in reported] == [step / 3 for step in range(3)]


# --- no trace ------------------------------------------------------------------------------------


def drawing(module: nn.Module) -> None:
    """Have the model draw from all global random numbers."""

    def draw(*_: object) -> None:
        torch.rand(1)
        np.random.rand()  # noqa: NPY002 - the global state is the point
        random.random()

    module.register_forward_hook(draw)


def test_success_leaves_no_trace() -> None:
    stage = Stage("residual")
    drawing(stage.model)
    stage.model.get_parameter("head.bias").requires_grad_(False)
    stage.model(stage.clean).sum().backward()
    with untouched(stage.model, *stage.everything()):
        found = stage.refined()
    assert not any(factor.requires_grad for pair in found.values() for factor in pair)


def asked_when(stage: Stage, at: int) -> int:
    """How often it was asked whether to stop, if it stops at the ``at``-th time."""
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == at

    with untouched(stage.model, *stage.everything()):
        if at:
            with pytest.raises(Cancelled):
                stage.refined(monitor=Monitor(None, stop))
        else:
            stage.refined(monitor=Monitor(None, stop))
    return len(asked)


def test_cancelled_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage("padded")
    monkeypatch.setattr(running, "CHUNK", 12 * stage.clean[0].numel())
    drawing(stage.model)
    # Three times before the first step, for the answers that the model gives to references and to
    # their mixtures, then before each of three steps and of its two passes.
    assert asked_when(stage, 0) == 12
    for at in (1, 2, 3, 5, 12):
        assert asked_when(stage, at) == at


@pytest.mark.parametrize("at", [1, 3, 6])
def test_the_model_raises(at: int) -> None:
    stage = Stage()
    drawing(stage.model)
    passes: list[int] = []

    def fail(*_: object) -> None:
        passes.append(1)
        if len(passes) == at:
            raise KeyboardInterrupt

    stage.model.get_submodule("hidden").register_forward_hook(fail)
    with untouched(stage.model, *stage.everything()), pytest.raises(KeyboardInterrupt):
        stage.refined()
