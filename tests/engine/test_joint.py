"""Edits of many layers in one model: their parts, put in together, the idle ones dropped."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.find.candidates import Candidate
from rectify_widgets.engine.measure.judge import Judge
from rectify_widgets.engine.repair.joint import (
    IDLE,
    JOINT,
    SAFELY,
    as_candidates,
    by_use,
    fewest,
    left_out,
    some_layers,
    together,
)
from rectify_widgets.engine.repair.refining import (
    RANK,
    Goal,
    first_factors,
    rank_one_parts,
    refine,
    update,
)
from tests.engine.models import images, make
from tests.engine.refining_stage import NETWORKS, Stage, layers_of, marked
from tests.engine.toy import Toy, stamped
from tests.engine.traces import untouched


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As within `eval_mode`."""
    with torch.no_grad():
        yield


# --- factors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_first_factors_change_nothing(network: str) -> None:
    stage = Stage(network)
    for name, layer in stage.layers.items():
        left, right = first_factors(layer, torch.Generator().manual_seed(1))
        weight = layer.module.weight
        outputs, keys = len(weight) // layer.groups, weight[0].numel()
        rank = min(RANK, outputs, keys)
        assert left.shape == (layer.groups, rank, outputs)
        assert right.shape == (layer.groups, rank, keys)
        assert torch.equal(update((left, right), weight), torch.zeros_like(weight))
        again = first_factors(layer, torch.Generator().manual_seed(1))
        assert torch.equal(right, again[1])
        other = first_factors(layer, torch.Generator().manual_seed(2))
        assert not torch.equal(right, other[1]), name


def test_right_factors_are_standard_normal() -> None:
    layer = layers_of(make("perceptron"), images(2))["layers.1"]
    numbers = first_factors(layer, torch.Generator().manual_seed(0))[1].flatten().numpy()
    assert len(numbers) == RANK * 243
    assert abs(numbers.mean()) < 4 / len(numbers) ** 0.5
    assert abs(numbers.std() - 1) < 4 / (2 * len(numbers)) ** 0.5


@pytest.mark.parametrize(
    ("groups", "rank", "outputs", "keys"), [(1, 4, 7, 9), (3, 2, 2, 6), (5, 1, 1, 9), (1, 4, 4, 5)]
)
def test_parts_are_the_singular_vectors_of_the_update(
    groups: int, rank: int, outputs: int, keys: int
) -> None:
    draw = torch.Generator().manual_seed(3)
    left, right = (
        torch.randn(groups, rank, size, generator=draw, dtype=torch.float64)
        for size in (outputs, keys)
    )
    whole = np.einsum("gro,grk->gok", left.numpy(), right.numpy())
    parts = rank_one_parts((left, right))
    assert len(parts) == rank
    u, sizes, v = np.linalg.svd(whole, full_matrices=False)
    total = np.zeros_like(whole)
    for number, (one, other) in enumerate(parts):
        assert one.shape == (groups, outputs)
        assert other.shape == (groups, keys)
        part = np.einsum("go,gk->gok", one.numpy(), other.numpy())
        wanted = np.einsum("go,g,gk->gok", u[:, :, number], sizes[:, number], v[:, number])
        np.testing.assert_allclose(part, wanted, atol=1e-9)
        np.testing.assert_allclose(np.linalg.norm(other.numpy(), axis=1), 1.0)
        total += part
    np.testing.assert_allclose(total, whole, atol=1e-9)


def test_an_update_of_nothing_has_no_parts() -> None:
    stage = Stage("padded")
    for pair in stage.start.values():
        assert rank_one_parts(pair) == []


# --- in one model --------------------------------------------------------------------------------


def edits_of(
    network: str, kind: torch.dtype, scale: float = 0.05
) -> tuple[nn.Module, list[Candidate]]:
    """A model and two or more edits of each of its layers, in a mixed order."""
    model = make(network).to(kind)
    layers = layers_of(model, images(2).to(kind))
    draw = torch.Generator().manual_seed(5)
    factors = {name: first_factors(layer, draw) for name, layer in layers.items()}
    factors = {
        name: (scale * torch.randn(left.shape, generator=draw, dtype=left.dtype), right)
        for name, (left, right) in factors.items()
    }
    edits = as_candidates(layers, factors)
    return model, [edits[row] for row in torch.randperm(len(edits), generator=draw).tolist()]


def applied(model: nn.Module, edits: list[Candidate]) -> None:
    """Add the edits to a copy of their model, one after another."""
    for edit in edits:
        edit.edit().apply(model, force=True)


def judge_of(model: nn.Module, kind: torch.dtype = torch.float32, count: int = 30) -> Judge:
    clean = images(count, seed=9).to(kind)
    return Judge(model, clean, marked(clean), clean)


def test_edits_are_the_parts_of_every_layer() -> None:
    stage = Stage("padded", turn=1)
    edits = as_candidates(stage.layers, stage.start)
    assert {edit.layer.name for edit in edits} == stage.layers.keys()
    for name, pair in stage.start.items():
        mine = [edit for edit in edits if edit.layer.name == name]
        assert all(edit.direction == JOINT and edit.refined for edit in mine)
        total = sum(edit.edit().delta for edit in mine)
        wanted = update(pair, stage.layers[name].module.weight)
        torch.testing.assert_close(total, wanted)
    assert some_layers(edits) == f"{len(stage.layers)} layers"
    assert some_layers([edit for edit in edits if edit.layer.name == "same"]) == "same"


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_put_in_together_as_one_after_another(network: str, kind: torch.dtype) -> None:
    model, edits = edits_of(network, kind)
    assert len(edits) > len({edit.layer.name for edit in edits})
    kept = copy.deepcopy(model)
    applied(kept, edits)
    with untouched(model):
        with together(edits):
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, kept.state_dict()[name]), name
        with pytest.raises(KeyboardInterrupt), together(edits):
            raise KeyboardInterrupt
    with together([]):
        pass


def objective_without(model: nn.Module, edits: list[Candidate], number: int) -> Any:
    """What is measured with all edits but one, on a model that never had that one."""
    rest = copy.deepcopy(model)
    applied(rest, edits[:number] + edits[number + 1 :])
    return judge_of(model, torch.float64).measure(rest)


@pytest.mark.parametrize("network", ["plain", "padded", "transformer"])
def test_each_is_left_out_in_turn(network: str) -> None:
    model, edits = edits_of(network, torch.float64)
    alone = [objective_without(model, edits, number) for number in range(len(edits))]
    judge, messages = judge_of(model, torch.float64), list[str]()
    monitor = Monitor(lambda _, text: messages.append(text))
    with untouched(model):
        gaps = left_out(model, edits, judge, monitor, cached=True)
        order = by_use(model, edits, judge, Monitor(), cached=False)
    assert gaps == pytest.approx([verdict.gap for verdict in alone], abs=1e-6)
    assert max(gaps) > min(gaps) + 1e-3
    assert messages == [f"leaving out an edit of {edit.layer.name}" for edit in edits]
    worse = [alone[edits.index(edit)].objective for edit in order]
    assert sorted(worse, reverse=True) == pytest.approx(worse, abs=1e-6)
    assert {id(edit) for edit in order} == {id(edit) for edit in edits}


def test_cancelled_while_edits_are_left_out() -> None:
    model, edits = edits_of("padded", torch.float32)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 4

    with untouched(model), pytest.raises(Cancelled):
        left_out(model, edits, judge_of(model), Monitor(None, stop), cached=True)
    with untouched(model), pytest.raises(Cancelled):
        fewest(model, edits, judge_of(model), 0.0, Monitor(None, lambda: True))


def idle_and_useful(trojan: Toy) -> tuple[Judge, list[Candidate], list[Candidate]]:
    """A refined edit of the layer where it works, and others that change next to nothing."""
    layers = layers_of(trojan.model, trojan.reference)
    clean = trojan.reference[:64]
    judge = Judge(trojan.model, clean, stamped(clean), clean)
    draw = torch.Generator().manual_seed(0)
    start = {name: first_factors(layer, draw) for name, layer in layers.items()}
    goal = Goal(stamped, (trojan.pairs.corrupted, trojan.pairs.clean), trojan.reference, {})
    found = refine(trojan.model, layers, start, goal, steps=20, seed=0, monitor=Monitor())
    useful = as_candidates(layers, found)
    idle = as_candidates(
        layers,
        {name: (torch.full_like(left, 1e-7), right) for name, (left, right) in start.items()},
    )
    return judge, useful, idle


def test_the_fewest_edits_that_do_as_well(trojan: Toy) -> None:
    judge, useful, idle = idle_and_useful(trojan)
    model = trojan.model
    with untouched(model):
        harmful = replace(useful[0], left=-0.2 * useful[0].left)
        order = by_use(model, [harmful, *idle, *useful], judge, Monitor(), cached=True)
        few = fewest(model, order, judge, 0.0, Monitor())
        assert few == order[: len(few)]
        assert 0 < len(few) < len(useful)
        assert not {id(edit) for edit in few} & {id(edit) for edit in (harmful, *idle)}
        objectives = []
        for count in range(len(few) - 1, len(order) + 1):
            with together(order[:count]):
                objectives.append(judge.measure(model).objective)
        less, kept, *more = objectives
        assert kept <= min(kept, *more) + IDLE < less
        # A target that is reached with fewer.
        with together(few):
            gap = judge.measure(model).gap
        start = judge.measure(model).gap
        target = (gap + start) / 2 / SAFELY
        fewer = fewest(model, order, judge, target, Monitor())
        assert 0 < len(fewer) < len(few)
        with together(fewer):
            assert judge.measure(model).gap <= SAFELY * target
        assert fewest(model, order, judge, 1.0 / SAFELY, Monitor()) == order[:1]
        assert fewest(model, order[:1], judge, 0.0, Monitor()) == order[:1]
