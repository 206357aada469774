"""The closed form against `numpy.linalg.lstsq`, and what an edit does to the layer's outputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.closed_form import Unreached, closed_form, key_sums
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.keys import EditableLayer, Keys
from rectify_widgets.engine.repair.solving import solve_edit
from tests.engine import oracles
from tests.engine.models import CLASSES, branches, images, make
from tests.engine.test_layer_catalog import LAYERS
from tests.engine.test_solver import LAYERS as ALONE
from tests.engine.test_solver import references

EVERY = [(network, name) for network in LAYERS for name in LAYERS[network]]


def patched(count: int = 2, seed: int = 7) -> SamplePairs:
    """Pairs with a bright patch in the middle, in float64."""
    clean = images(count, seed).double()
    corrupted = clean.clone()
    corrupted[:, :, 3:6, 3:6] = torch.tensor([1.0, 0.0, 1.0]).double()
    return SamplePairs(corrupted, clean, torch.arange(count) % CLASSES)


def pair_keys(
    model: nn.Module, name: str, pairs: SamplePairs
) -> tuple[oracles.Array, oracles.Array]:
    module, count = model.get_submodule(name), len(pairs)
    corrupted, clean = (
        oracles.keys(module, oracles.layer_input(model, name, x), count)
        for x in (pairs.corrupted, pairs.clean)
    )
    return corrupted, clean


# --- the closed form on keys ---------------------------------------------------------------------


@settings(max_examples=40)
@given(st.sampled_from(list(ALONE)), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_closed_form_is_least_squares(name: str, pairs: int, count: int, seed: int) -> None:
    module = copy.deepcopy(ALONE[name]).double()
    layer = EditableLayer(name, module)
    inputs = [references(name, pairs, seed + i) for i in (0, 1)]
    corrupted, clean = (layer.keys(x, pairs) for x in inputs)
    dirty, pure = (oracles.keys(module, x, pairs) for x in inputs)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(layer.groups, count, layer.key_size, generator=generator).double()

    found = closed_form(directions, corrupted, clean)
    assert found.shape == (layer.groups, count, layer.outputs // layer.groups)
    for i in range(count):
        one = directions[:, i].numpy()
        wanted = oracles.least_squares(oracles.flat(module), one, dirty, pure)
        np.testing.assert_allclose(found[:, i], wanted, rtol=1e-8, atol=1e-10)

    sums = key_sums(layer, corrupted, clean)
    assert list(sums) == ["contrast", "key"]
    for direction, total in sums.items():
        wanted = oracles.key_sum(dirty, pure, direction)
        np.testing.assert_allclose(total, wanted, rtol=1e-8, atol=1e-10)


def test_a_direction_that_nothing_answers_gives_no_edit() -> None:
    layer = EditableLayer("linear", nn.Linear(4, 3))
    keys = layer.keys(torch.tensor([[1.0, 2.0, 0.0, 0.0]]), 1)
    assert not closed_form(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), keys, keys).any()


def test_corruption_that_does_not_reach_the_layer() -> None:
    layer = EditableLayer("second", nn.Linear(4, 3))
    keys = layer.keys(torch.rand(2, 4, generator=torch.Generator().manual_seed(0)), 2)
    with pytest.raises(Unreached, match="does not reach layer 'second'"):
        key_sums(layer, keys, keys)


def test_changes_that_cancel_leave_no_contrast() -> None:
    layer = EditableLayer("first", nn.Linear(4, 3).double())
    clean = torch.rand(2, 4, generator=torch.Generator().manual_seed(0)).double()
    change = torch.tensor([[0.5, -0.5, 0.25, 0.0], [-0.5, 0.5, -0.25, 0.0]]).double()
    sums = key_sums(layer, layer.keys(clean + change, 2), layer.keys(clean, 2))
    assert list(sums) == ["key"]
    # Changes that lead to zero leave no corrupted key.
    nothing = layer.keys(torch.zeros(2, 4).double(), 2)
    assert list(key_sums(layer, nothing, layer.keys(clean, 2))) == ["contrast"]


# --- solve_edit ----------------------------------------------------------------------------------


def wanted_delta(
    model: nn.Module, name: str, pairs: SamplePairs, reference: Tensor, direction: str, ridge: float
) -> oracles.Array:
    """``Λ dᵀ`` in the weight's shape, from numpy alone."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    inputs = oracles.layer_input(model, name, reference)
    moment = oracles.second_moment(oracles.keys(module, inputs, len(reference)))
    corrupted, clean = pair_keys(model, name, pairs)
    right = oracles.solve(moment, oracles.key_sum(corrupted, clean, direction), ridge)
    left = oracles.least_squares(oracles.flat(module), right, corrupted, clean)
    delta: oracles.Array = np.einsum("go,gk->gok", left, right).reshape(module.weight.shape)
    return delta


@pytest.mark.parametrize("direction", ["contrast", "key"])
@pytest.mark.parametrize(("network", "name"), EVERY)
def test_edit_of_every_layer(network: str, name: str, direction: str) -> None:
    model, pairs, reference = make(network).double(), patched(), images(4).double()
    statistics = KeyStatistics.collect(model, reference, [name], positions=10_000)
    edit = solve_edit(
        model, pairs, layer=name, statistics=statistics, direction=direction, ridge=0.01
    )
    assert (edit.layer, edit.direction, edit.ridge) == (name, direction, 0.01)
    wanted = wanted_delta(model, name, pairs, reference, direction, 0.01)
    scale = float(np.abs(wanted).max())
    np.testing.assert_allclose(edit.delta, wanted, rtol=1e-6, atol=1e-8 * scale)
    layer = EditableLayer(name, model.get_submodule(name))  # type: ignore[arg-type]
    ranks = [oracles.rank(block) for block in layer.flat(edit.delta) if bool(block.any())]
    assert set(ranks) == {1}
    assert len(ranks) > layer.groups // 2  # the others are behind dead channels
    assert edit.left.shape == (layer.outputs,)
    groups = (layer.groups,) if layer.groups > 1 else ()
    assert edit.right.shape == (*groups, layer.key_size)


@settings(max_examples=25)
@given(
    st.sampled_from(EVERY),
    st.sampled_from(["contrast", "key"]),
    st.sampled_from([1e-3, 0.03, 1.0]),
    st.integers(1, 3),
    st.integers(0, 20),
)
def test_outputs_move_as_far_as_least_squares_allows(
    case: tuple[str, str], direction: str, ridge: float, count: int, seed: int
) -> None:
    network, name = case
    model, pairs = make(network, seed).double(), patched(count, seed)
    statistics = KeyStatistics.collect(model, images(4, seed + 1).double(), [name])
    try:
        edit = solve_edit(
            model, pairs, layer=name, statistics=statistics, direction=direction, ridge=ridge
        )
    except Unreached:
        return
    edited = copy.deepcopy(model)
    edit.apply(edited)
    layer = EditableLayer(name, model.get_submodule(name))  # type: ignore[arg-type]

    def output(of: nn.Module, x: Tensor) -> Tensor:
        return layer.positions(oracles.layer_output(of, name, x), count)

    # The layer's input is that of the model without the edit: it lies before the edit.
    target = output(model, pairs.clean)
    before = target - output(model, pairs.corrupted)
    after = target - output(edited, pairs.corrupted)
    assert float(after.norm()) <= float(before.norm()) * (1 + 1e-9)
    rights = edit.right.reshape(layer.groups, -1).numpy()
    s = torch.from_numpy(
        np.einsum("gk,ngkp->ngp", rights, pair_keys(model, name, pairs)[0])
    ).unsqueeze(2)
    # What is left over is orthogonal to s: no other Λ does better.
    products = (s * after).sum(dim=(0, 3))
    sizes = s.square().sum(dim=(0, 3)).sqrt() * before.square().sum(dim=(0, 3)).sqrt()
    assert float((products.abs() - 1e-6 * sizes).max()) <= 0

    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        push = torch.randn(layer.groups, layer.outputs // layer.groups, generator=generator)
        push = push.double() * 0.1 * edit.left.abs().mean()
        worse = after - push.unsqueeze(0).unsqueeze(3) * s
        assert float(worse.norm()) >= float(after.norm()) * (1 - 1e-9)


def test_a_single_position_is_mapped_exactly() -> None:
    """With one pair and one position the layer gives the clean value, on any direction."""
    model, pairs = make("perceptron").double(), patched(1)
    edit = solve_edit(
        model, pairs, layer="layers.1", direction="key", ridge=1.0,
        statistics=KeyStatistics.collect(model, images(3).double()),
    )  # fmt: skip
    clean = oracles.layer_output(model, "layers.1", pairs.clean)
    edit.apply(model)
    found = oracles.layer_output(model, "layers.1", pairs.corrupted)
    torch.testing.assert_close(found, clean, rtol=1e-9, atol=1e-9)


def test_groups_that_the_corruption_does_not_reach_stay_as_they_are() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(3, 6, 3, groups=3)
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.depthwise(x).relu().mean(dim=(2, 3)))
            return scores

    model, clean = make(Depthwise).double(), images(1, 7).double()
    corrupted = clean.clone()
    corrupted[:, 1, 3:6, 3:6] = 1.0
    for direction in ("contrast", "key"):
        edit = solve_edit(
            model, SamplePairs(corrupted, clean), layer="depthwise", direction=direction,
            ridge=0.01, reference=images(4).double(),
        )  # fmt: skip
        changed = edit.delta.flatten(1).abs().amax(dim=1) > 0
        assert changed.tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("plain", "second"),
        ("padded", "circular"),
        ("padded", "same"),
        ("padded", "valid"),
        ("mobile", "depthwise"),
        ("residual", "block2.conv2"),
        ("transformer", "block.mlp.0"),
    ],
)
@pytest.mark.parametrize("direction", ["contrast", "key"])
def test_matrix_free_gives_the_dense_edit(network: str, name: str, direction: str) -> None:
    model, pairs, reference = make(network).double(), patched(), images(12).double()
    statistics = KeyStatistics.collect(model, reference, [name], positions=10_000)
    dense = solve_edit(
        model, pairs, layer=name, statistics=statistics, direction=direction, ridge=0.01
    )
    free = solve_edit(
        model, pairs, layer=name, reference=reference, direction=direction, ridge=0.01,
        solver="matrix-free",
    )  # fmt: skip
    difference = float((free.delta - dense.delta).norm() / dense.delta.norm())
    assert difference < 1e-2


def test_corruption_that_reaches_no_chosen_layer() -> None:
    model, corrupted, clean = branches()
    pairs, reference = SamplePairs(corrupted, clean), images(4)
    for options in ({"ridge": 0.1, "direction": "key"}, {}):
        with pytest.raises(
            ValueError, match=r"layer: the corruption .* does not reach layer 'right'"
        ):
            solve_edit(model, pairs, layer="right", reference=reference, **options)  # type: ignore[arg-type]
    assert solve_edit(model, pairs, layer="left", reference=reference).layer == "left"
    assert solve_edit(model, pairs, reference=reference).layer in {"left", "head"}


def test_a_direction_that_vanishes_is_refused() -> None:
    model, clean = make("perceptron"), images(1, 7)
    change = torch.zeros_like(clean)
    change[:, :, 3:6, 3:6] = 0.25
    there_and_back = SamplePairs(
        torch.cat([clean + change, clean - change]), clean.repeat(2, 1, 1, 1)
    )
    options = {"layer": "layers.1", "reference": images(4), "ridge": 0.1}
    with pytest.raises(ValueError, match=r"contrast direction of layer 'layers\.1' vanishes"):
        solve_edit(model, there_and_back, direction="contrast", **options)  # type: ignore[arg-type]
    assert solve_edit(model, there_and_back, **options).direction == "key"  # type: ignore[arg-type]


def test_without_references_the_pairs_serve_with_a_warning() -> None:
    model, pairs = make("plain").double(), patched(3)
    with pytest.warns(UserWarning, match="reference: none given"):
        edit = solve_edit(model, pairs, layer="second", direction="key", ridge=0.1)
    wanted = wanted_delta(model, "second", pairs, pairs.clean, "key", 0.1)
    np.testing.assert_allclose(edit.delta, wanted, rtol=1e-5, atol=1e-9)


def test_stale_statistics_are_refused() -> None:
    model, pairs = make("plain").double(), patched()
    statistics = KeyStatistics.collect(model, images(4).double())
    edit = solve_edit(model, pairs, layer="first", statistics=statistics)
    edit.apply(model)
    solve_edit(model, pairs, layer="first", statistics=statistics)  # nothing before it has changed
    with pytest.raises(ValueError, match="stale for layer 'second'"):
        solve_edit(model, pairs, layer="second", statistics=statistics)
    edit.revert(model)
    solve_edit(model, pairs, layer="second", statistics=statistics)


def test_what_is_none_is_chosen() -> None:
    model, pairs, reference = make("residual"), patched(), images(16)
    edit = solve_edit(model, pairs, reference=reference)
    assert edit.layer in LAYERS["residual"]
    again = solve_edit(
        model, pairs, layer=edit.layer, reference=reference, direction=edit.direction,
        ridge=edit.ridge,
    )  # fmt: skip
    torch.testing.assert_close(again.delta, edit.delta, rtol=1e-4, atol=1e-7)
    assert solve_edit(model, pairs, reference=reference, ridge=0.5).ridge == 0.5
    assert solve_edit(model, pairs, reference=reference, direction="key").direction == "key"


WAYS = [{}, {"key_space": "channel"}, {"solver": "matrix-free"}, {"direction": "key", "ridge": 0.1}]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_progress_and_cancel(options: dict[str, Any]) -> None:
    model, limit = make("plain"), 10_000
    reported: list[float] = []

    def run() -> RankOneEdit:
        return solve_edit(
            model, patched(), layer="second", reference=images(10), **options,
            progress=lambda at, _: reported.append(at), cancel=lambda: len(reported) >= limit,
        )  # fmt: skip

    run()
    assert reported == sorted(reported)
    assert (reported[0], reported[-1]) == (0.0, 1.0)
    for limit in range(0, len(reported), 4):
        reported.clear()
        with pytest.raises(Cancelled):
            run()
        assert len(reported) == limit
    assert not any(part._forward_hooks for part in model.modules())


def test_repr_names_layer_and_edit() -> None:
    model, pairs = make("plain"), patched()
    edit = solve_edit(model, pairs, layer="second", reference=images(4), direction="key", ridge=0.1)
    assert repr(edit) == "RankOneEdit('second', weight 6 × 4 × 3 × 2, key direction, ridge 0.1)"
    assert replace(edit, left=edit.left * 2).delta.equal(edit.delta * 2)
    assert isinstance(edit, RankOneEdit)


def test_keys_can_be_subtracted_across_pairs() -> None:
    layer = EditableLayer("l", nn.Linear(2, 2))
    one, two = (Keys(layer, torch.full((1, 1, 2), value)) for value in (3.0, 1.0))
    assert (one - two).inputs.tolist() == [[[2.0, 2.0]]]
