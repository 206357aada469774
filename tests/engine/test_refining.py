"""Refined edits: the formula against an own computation, and no trace left."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.data.corruption import transplant
from rectify_widgets.engine.find.candidates import Candidate
from rectify_widgets.engine.model import running as inspection
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.repair.refining import LAYERS, Goal, refine, starts
from rectify_widgets.engine.repair.solving import solve_edit
from tests.engine.models import images, make
from tests.engine.toy import Toy
from tests.engine.traces import untouched

PLACES = [
    ("plain", "second"),
    ("residual", "block2.conv1"),
    ("perceptron", "layers.3"),
    ("transformer", "block.attention.qkv"),
    ("padded", "same"),  # three groups
    ("padded", "valid"),  # depthwise
]


def candidate_of(model: nn.Module, name: str, x: Tensor, scale: float = 0.3) -> Candidate:
    """Some edit of a layer."""
    layer = editable_layers(model, x).get("layer", name)
    weight = layer.module.weight
    rows = weight.detach().reshape(layer.groups, len(weight) // layer.groups, -1)
    draw = torch.Generator().manual_seed(7)
    kind = torch.float32 if weight.dtype is torch.bfloat16 else weight.dtype
    left, right = (
        scale * torch.randn(layer.groups, size, generator=draw, dtype=torch.float64).to(kind)
        for size in rows.shape[1:]
    )
    return Candidate(layer, "key", 0.1, left, right, 0.5, 0.1)


def goal_of(model: nn.Module, clean: Tensor) -> Goal:
    """Corrupt a corner of the inputs; the original's answers are wanted."""
    marked = clean.clone()
    marked[..., :4, :4] = 2.0
    with torch.no_grad():
        wanted = model(clean.clone()).float() if clean.dtype is torch.bfloat16 else model(clean)
    return Goal(marked, clean, wanted.softmax(dim=1))


def stage(network: str = "plain", name: str = "second", count: int = 12) -> Any:
    """A model of double precision, an edit and a goal."""
    model = make(network).double()
    clean = images(count).double()
    return model, candidate_of(model, name, clean), goal_of(model, clean)


def refined(model: nn.Module, start: Candidate, goal: Goal, **options: Any) -> Candidate:
    given: dict[str, Any] = {"steps": 3, "seed": 0, "monitor": Monitor(), **options}
    with torch.no_grad():  # as within `eval_mode`
        return refine(model, start, goal, **given)


def close(one: Candidate, other: Candidate, tolerance: float) -> bool:
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in ((one.left, other.left), (one.right, other.right))
    )


def equal(one: Candidate, other: Candidate) -> bool:
    return torch.equal(one.left, other.left) and torch.equal(one.right, other.right)


# --- the formula ---------------------------------------------------------------------------------


def distances(model: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
    answers: Tensor = model(inputs).softmax(dim=1)
    return (answers - wanted).abs().sum(dim=1) / 2


def objective(
    model: nn.Module, start: Candidate, left: Tensor, right: Tensor, goal: Goal, keep: float = 4.0
) -> Any:
    """The loss of an edit, and its gradient for the layer's weight, on a copy with that weight."""
    twin = copy.deepcopy(model)
    weight = twin.get_parameter(f"{start.layer.name}.weight")
    per_group = [torch.outer(left[g], right[g]) for g in range(len(left))]
    with torch.no_grad():
        weight.add_(torch.cat(per_group).reshape(weight.shape))
    with torch.enable_grad():
        loss = distances(twin, goal.carriers, goal.wanted).mean()
        loss = loss + keep * distances(twin, goal.references, goal.wanted).mean()
        (gradient,) = torch.autograd.grad(loss, weight)
    return float(loss.detach()), gradient.reshape(len(left), left.shape[1], right.shape[1])


def by_hand(
    model: nn.Module, start: Candidate, goal: Goal, steps: int, seed: int, turn: int
) -> Any:
    """Adam with a cosine rate, written out, in units of each factor's root mean square."""
    units = [math.sqrt(float((f**2).mean())) for f in (start.left, start.right)]
    factors = [start.left / units[0], start.right / units[1]]
    first = [torch.zeros_like(f) for f in factors]
    second = [torch.zeros_like(f) for f in factors]
    draw = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randperm(len(goal.references), generator=draw)[:64]
        left, right = factors[0] * units[0], factors[1] * units[1]
        _, slope = objective(model, start, left, right, goal.only(rows), 4.0 * 2**turn)
        slopes = [
            torch.stack([slope[g] @ right[g] for g in range(len(left))]) * units[0],
            torch.stack([slope[g].T @ left[g] for g in range(len(left))]) * units[1],
        ]
        rate = 0.1 / 2**turn * (1 + math.cos(math.pi * step / steps)) / 2
        for i, g in enumerate(slopes):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            mean, square = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            factors[i] = factors[i] - rate * mean / (square.sqrt() + 1e-8)
    return factors[0] * units[0], factors[1] * units[1]


@pytest.mark.parametrize(("network", "name"), PLACES)
@pytest.mark.parametrize(("steps", "count", "turn"), [(1, 12, 0), (4, 12, 2), (3, 80, 0)])
def test_steps_are_those_of_the_formula(
    network: str, name: str, steps: int, count: int, turn: int
) -> None:
    model, start, goal = stage(network, name, count)
    found = refined(model, start, goal, steps=steps, seed=5, turn=turn)
    left, right = by_hand(model, start, goal, steps, 5, turn)
    torch.testing.assert_close(found.left, left, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.right, right, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(found.left, start.left, atol=1e-3)
    assert not torch.allclose(found.right, start.right, atol=1e-3)
    assert found.refined
    assert not start.refined
    kept = ("layer", "direction", "ridge", "share", "cost", "score")
    assert [getattr(found, k) for k in kept] == [getattr(start, k) for k in kept]


@pytest.mark.parametrize("name", ["block2.conv1", "block1.conv2", "head"])
def test_the_objective_falls_on_a_real_network(trojan: Toy, name: str) -> None:
    clean = trojan.reference[:64]
    pair = trojan.pairs[0]
    with torch.no_grad():
        goal = Goal(transplant(pair, clean), clean, trojan.model(clean).softmax(dim=1))
    edit = solve_edit(trojan.model, pair, layer=name, reference=clean, ridge=0.1)
    layer = editable_layers(trojan.model, clean).get("layer", name)
    start = Candidate(
        layer, edit.direction, edit.ridge, edit.left[None], edit.right[None], 0.0, 0.0
    )
    found = refined(trojan.model, start, goal, steps=30)
    before, after = (
        objective(trojan.model, one, one.left, one.right, goal)[0] for one in (start, found)
    )
    assert after < 0.85 * before


@pytest.mark.parametrize(("network", "name"), PLACES)
def test_rank_one_within_each_group(network: str, name: str) -> None:
    model, start, goal = stage(network, name)
    delta = refined(model, start, goal).edit().delta
    groups = start.layer.groups
    for part in delta.reshape(groups, delta.shape[0] // groups, -1):
        assert np.linalg.matrix_rank(part.numpy()) == 1


# --- how it is computed --------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "name"), [("plain", "second"), ("padded", "same")])
@pytest.mark.parametrize("together", [1, 5, 7, 23])
def test_in_chunks_as_at_once(
    monkeypatch: pytest.MonkeyPatch, network: str, name: str, together: int
) -> None:
    model, start, goal = stage(network, name)  # 24 rows a step
    whole = refined(model, start, goal)
    seen: list[int] = []
    monkeypatch.setattr(inspection, "CHUNK", together * goal.references[0].numel())
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    parts = refined(model, start, goal)
    hook.remove()
    assert seen == 3 * ([together] * (24 // together) + [24 % together] * (24 % together > 0))
    assert close(parts, whole, 1e-9)


def test_a_device_that_is_short_of_memory_gets_fewer_at_a_time() -> None:
    model, start, goal = stage()
    whole = refined(model, start, goal)
    seen: list[int] = []

    def short(_: nn.Module, args: Any) -> None:
        if len(args[0]) > 7:
            raise torch.OutOfMemoryError
        seen.append(len(args[0]))

    model.register_forward_pre_hook(short)
    assert close(refined(model, start, goal), whole, 1e-9)
    assert sum(seen) == 3 * 24


def test_one_seed_one_result_whatever_the_caller_has_set() -> None:
    model = make("plain")
    clean = images(80)
    start, goal = candidate_of(model, "second", clean), goal_of(model, clean)
    found = refined(model, start, goal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert equal(refined(model, start, goal), found)
    assert not equal(refined(model, start, goal, seed=1), found)
    torch.set_default_dtype(torch.float64)
    try:
        again = refined(model, start, goal)
    finally:
        torch.set_default_dtype(torch.float32)
    assert equal(again, found)
    assert again.left.dtype is again.right.dtype is torch.float32
    assert equal(refine(model, start, goal, steps=3, seed=0, monitor=Monitor()), found)


def test_a_zero_edit_comes_back_as_it_is() -> None:
    model, start, goal = stage()
    for scale in (0.0, float("nan")):
        empty = candidate_of(model, "second", goal.references, scale)
        assert refined(model, empty, goal) is empty
    assert refined(model, start, goal) is not start


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_half_precision(kind: torch.dtype) -> None:
    model = make("plain").bfloat16()
    goal = goal_of(model, images(12).bfloat16())
    start = candidate_of(model, "second", goal.references)
    goal = Goal(goal.carriers.to(kind), goal.references.to(kind), goal.wanted)
    found = refined(model, start, goal)
    assert not equal(found, start)
    for factor in (found.left, found.right):
        assert factor.dtype is torch.float32
        assert bool(torch.isfinite(factor).all())
    assert found.weight.dtype is torch.bfloat16
    # Probabilities are precise: a model that answers in float32 makes no difference.
    model.register_forward_hook(lambda _, __, scores: scores.float())
    assert equal(refined(model, start, goal), found)


def test_a_first_layer_that_works_in_place() -> None:
    def network(*, inplace: bool) -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=inplace), make("plain")).double()

    clean = images(12).double() - 0.5
    found = []
    for inplace in (False, True):
        model = network(inplace=inplace)
        goal = goal_of(network(inplace=False), clean)
        with untouched(model, goal.carriers, goal.references, goal.wanted):
            found.append(refined(model, candidate_of(model, "1.second", clean), goal))
    assert equal(*found)


def test_progress_and_where_it_asks() -> None:
    model, start, goal = stage()
    reported: list[tuple[float, str]] = []
    monitor = Monitor(lambda fraction, text: reported.append((fraction, text)))
    refined(model, start, goal, steps=4, monitor=monitor)
    assert reported == [(step / 4, "refining second") for step in range(4)]


# --- no trace ------------------------------------------------------------------------------------


def drawing(module: nn.Module) -> None:
    """Have the model draw from all global random numbers."""

    def draw(*_: object) -> None:
        torch.rand(1)
        np.random.rand()  # noqa: NPY002 - the global state is the point
        random.random()

    module.register_forward_hook(draw)


def test_success_leaves_no_trace() -> None:
    model, start, goal = stage("residual", "block1.conv1")
    drawing(model)
    model.get_parameter("head.bias").requires_grad_(requires_grad=False)
    model(goal.references).sum().backward()
    with untouched(model, goal.carriers, goal.references, goal.wanted, start.left, start.right):
        found = refined(model, start, goal)
    assert not found.left.requires_grad
    assert not found.right.requires_grad


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_cancelled_half_way(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    model, start, goal = stage("padded", "same")
    monkeypatch.setattr(inspection, "CHUNK", 12 * goal.references[0].numel())
    drawing(model)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == at

    with (
        untouched(model, goal.carriers, goal.references, goal.wanted, start.left, start.right),
        pytest.raises(Cancelled),
    ):
        refined(model, start, goal, monitor=Monitor(None, stop))
    assert len(asked) == at  # before each step, and before each of its two passes: nine times


def test_the_model_raises() -> None:
    model, start, goal = stage("plain", "second")
    drawing(model)
    for at in (1, 3):
        passes: list[int] = []

        def fail(*_: object, at: int = at, passes: list[int] = passes) -> None:
            passes.append(1)
            if len(passes) == at:
                raise KeyboardInterrupt

        hook = model.hidden.register_forward_hook(fail)
        with (
            untouched(model, goal.carriers, goal.references, goal.wanted, start.left, start.right),
            pytest.raises(KeyboardInterrupt),
        ):
            refined(model, start, goal)
        hook.remove()


# --- which edits ---------------------------------------------------------------------------------


def test_the_best_edit_of_each_of_the_best_layers_begins() -> None:
    model, clean = make("plain"), images(2)
    names = ("first", "second", "hidden", "head")
    best = {name: candidate_of(model, name, clean) for name in names}
    worse = {name: candidate_of(model, name, clean) for name in names}
    tried = [(0.3, worse["first"]), (0.1, best["hidden"]), (0.25, worse["hidden"]),
             (0.9, best["head"]), (0.2, best["first"]), (0.4, best["second"])]  # fmt: skip
    ranked = [worse["second"], best["head"], worse["hidden"]]
    assert starts(tried, ranked) == [best["hidden"], best["first"]]
    assert starts(tried[::-1], ranked[::-1]) == [best["hidden"], best["first"]]
    assert LAYERS == 2
    assert starts(tried[:1], ranked) == [worse["first"], worse["second"]]  # as predicted
    assert starts([], ranked) == ranked[:2]
    assert starts([], ranked[::-1]) == [worse["hidden"], best["head"]]
    assert starts([(0.5, best["hidden"])], ranked[2:]) == [best["hidden"]]
    assert starts([], []) == []
