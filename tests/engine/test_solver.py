"""The two solvers against `numpy.linalg.solve`, and against each other."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.edit.solver import MAX_RIDGE, DenseSolver, MatrixFreeSolver, Solver
from rectify_widgets.engine.model.keys import EditableLayer, Keys
from tests.engine import oracles

LAYERS: dict[str, nn.Conv2d | nn.Linear] = {
    "conv": nn.Conv2d(3, 4, 3, padding=1),
    "strided": nn.Conv2d(3, 4, (3, 2), stride=(2, 1)),
    "dilated": nn.Conv2d(3, 4, 2, dilation=2, padding=2, padding_mode="circular"),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, padding="same", dilation=2),
    "depthwise": nn.Conv2d(12, 12, 3, groups=12, stride=2, padding=1, padding_mode="reflect"),
    "pointwise": nn.Conv2d(5, 3, 1),
    "linear": nn.Linear(7, 3),
    "tokens": nn.Linear(6, 3),
}


def references(name: str, count: int = 12, seed: int = 0) -> Tensor:
    """Inputs of the layer, all positive as behind a ReLU, in float64."""
    module = LAYERS[name]
    generator = torch.Generator().manual_seed(seed)
    if isinstance(module, nn.Conv2d):
        shape: tuple[int, ...] = (count, module.in_channels, 8, 7)
    else:
        shape = (count, 5, 6) if name == "tokens" else (count, 7)
    return torch.randn(shape, generator=generator).double().relu()


def problem(
    name: str, dead: bool = False, count: int = 12, seed: int = 0
) -> tuple[EditableLayer, list[Keys], np.ndarray, Tensor]:
    """The layer, its keys in two batches, its second moment and three right-hand sides a group."""
    layer = EditableLayer(name, LAYERS[name])
    inputs = references(name, count, seed)
    if dead:
        inputs[..., 0] = 0 if isinstance(layer.module, nn.Linear) else inputs[..., 0]
        if isinstance(layer.module, nn.Conv2d):
            inputs[:, 0] = 0
    moment = oracles.second_moment(oracles.keys(layer.module, inputs, count))
    keys = [layer.keys(part, len(part)) for part in inputs.split(count // 2 or 1)]
    generator = torch.Generator().manual_seed(seed + 1)
    right = torch.randn(layer.groups, 3, layer.key_size, generator=generator).double()
    return layer, keys, moment, right


def exact(moment: np.ndarray, right: Tensor, ridge: float) -> np.ndarray:
    columns = [oracles.solve(moment, right[:, i].numpy(), ridge) for i in range(right.shape[1])]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("name", LAYERS)
def test_dense(name: str, ridge: float) -> None:
    _, __, moment, right = problem(name)
    solver = DenseSolver(name, torch.from_numpy(moment))
    for _ in range(2):  # the second time from the kept factor
        found = solver.solve(right, ridge)
        np.testing.assert_allclose(found, exact(moment, right, ridge), rtol=1e-8)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("name", LAYERS)
def test_matrix_free(name: str, ridge: float) -> None:
    layer, keys, moment, right = problem(name)
    solver = MatrixFreeSolver(layer, keys, tolerance=1e-9, iterations=500)
    np.testing.assert_allclose(
        solver.product(right),
        np.einsum("gij,gdj->gdi", moment, right.numpy()),
        rtol=1e-9,
        atol=1e-9,
    )
    found = solver.solve(right, ridge)
    np.testing.assert_allclose(found, exact(moment, right, ridge), rtol=1e-5, atol=1e-7)


@settings(max_examples=30)
@given(st.sampled_from(list(LAYERS)), st.integers(0, 100), st.sampled_from([1e-3, 1e-2, 1.0]))
def test_the_solvers_agree(name: str, seed: int, ridge: float) -> None:
    """With the defaults, on a sum of keys as an edit asks for."""
    layer, keys, moment, _ = problem(name, seed=seed)
    right = torch.from_numpy(moment[:, :1]) + keys[0].unfold()[0].mean(dim=2).unsqueeze(1)
    dense = DenseSolver(name, torch.from_numpy(moment)).solve(right, ridge)
    free = MatrixFreeSolver(layer, keys).solve(right, ridge)
    likeness = functional.cosine_similarity(dense, free, dim=2)
    assert float(likeness.min()) > 0.9999


def test_stopping_early_regularises() -> None:
    layer, keys, moment, right = problem("conv")
    few = MatrixFreeSolver(layer, keys, iterations=2).solve(right, 1e-3)
    many = MatrixFreeSolver(layer, keys, iterations=200).solve(right, 1e-3)
    assert float(few.norm()) < float(many.norm())
    np.testing.assert_allclose(many, exact(moment, right, 1e-3), rtol=0.05, atol=0.05)


def test_nothing_to_solve_gives_nothing() -> None:
    layer, keys, _, right = problem("conv")
    assert not MatrixFreeSolver(layer, keys).solve(torch.zeros_like(right), 0.1).any()


def test_the_answer_lies_where_the_question_lay() -> None:
    """Statistics may come from a file, on the CPU and in float32, to a model that is elsewhere."""
    _, __, moment, right = problem("conv")
    found = DenseSolver("conv", torch.from_numpy(moment).float()).solve(right, 0.1)
    assert found.dtype is torch.float64
    np.testing.assert_allclose(found, exact(moment, right, 0.1), rtol=1e-3)
    nowhere = DenseSolver("conv", torch.from_numpy(moment)).solve(right.to("meta"), 0.1)
    assert nowhere.is_meta


def test_whitening() -> None:
    """``L⁻¹ b`` has the products ``bᵀ C⁻¹ b``."""
    _, __, moment, right = problem("grouped")
    solver = DenseSolver("grouped", torch.from_numpy(moment))
    white = solver.whiten(right, 0.1)
    found = np.einsum("gdk,gek->gde", white.numpy(), white.numpy())
    wanted = np.einsum("gdk,gek->gde", right.numpy(), exact(moment, right, 0.1))
    np.testing.assert_allclose(found, wanted, rtol=1e-8)


# --- what is hard to invert ----------------------------------------------------------------------


def both(name: str, dead: bool, count: int) -> tuple[list[Solver], np.ndarray, Tensor]:
    layer, keys, moment, right = problem(name, dead, count)
    solvers: list[Solver] = [
        DenseSolver(name, torch.from_numpy(moment)),
        MatrixFreeSolver(layer, keys, tolerance=1e-9, iterations=2000),
    ]
    return solvers, moment, right


@pytest.mark.parametrize("name", ["conv", "linear", "grouped", "tokens"])
def test_a_dead_channel(name: str) -> None:
    solvers, moment, right = both(name, dead=True, count=12)
    assert np.linalg.matrix_rank(moment[0]) < len(moment[0])
    for solver in solvers:
        found = solver.solve(right, 1e-3)
        np.testing.assert_allclose(found, exact(moment, right, 1e-3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv", "grouped"])
def test_fewer_positions_than_numbers_in_a_key(name: str) -> None:
    solvers, moment, right = both(name, dead=False, count=1)
    if name == "linear":
        assert np.linalg.matrix_rank(moment[0]) == 1
    for solver in solvers:
        found = solver.solve(right, 1e-2)
        np.testing.assert_allclose(found, exact(moment, right, 1e-2), rtol=1e-4, atol=1e-4)


def test_a_dead_group_leaves_the_other_groups_alone() -> None:
    """A depthwise convolution behind a dead ReLU: its other channels can still be edited."""
    layer, keys, moment, right = problem("depthwise", dead=True)
    solvers: list[Solver] = [
        DenseSolver("depthwise", torch.from_numpy(moment)),
        MatrixFreeSolver(layer, keys, tolerance=1e-9, iterations=500),
    ]
    for solver in solvers:
        found = solver.solve(right, 0.01)
        wanted = exact(moment[1:], right[1:], 0.01)
        np.testing.assert_allclose(found[1:], wanted, rtol=1e-5, atol=1e-6)
        assert bool(torch.isfinite(found[0]).all())


def test_ridge_zero_on_a_singular_matrix_is_raised_with_a_warning() -> None:
    _, __, moment, right = problem("conv", dead=True)
    solver = DenseSolver("late", torch.from_numpy(moment))
    with pytest.warns(RuntimeWarning, match=r"layer 'late': ridge 0 is too small .* using 1e-06"):
        found = solver.solve(right, 0.0)
    np.testing.assert_allclose(found, exact(moment, right, 1e-6), rtol=1e-6)
    with warnings.catch_warnings(action="error"):  # reported once a solver
        assert torch.equal(solver.solve(right, 0.0), found)


def test_ridge_zero_without_the_matrix_stays_finite() -> None:
    layer, keys, _, right = problem("conv", dead=True)
    found = MatrixFreeSolver(layer, keys).solve(right, 0.0)
    assert bool(torch.isfinite(found).all())


def test_ridge_zero_on_a_regular_matrix_is_taken_as_it_is() -> None:
    solvers, moment, right = both("pointwise", dead=False, count=12)
    for solver in solvers:
        np.testing.assert_allclose(solver.solve(right, 0.0), exact(moment, right, 0.0), rtol=1e-5)


def test_zero_keys_are_refused() -> None:
    layer, keys, moment, _ = problem("conv")
    with pytest.raises(ValueError, match="keys of layer 'c' are zero on all references"):
        DenseSolver("c", torch.zeros_like(torch.from_numpy(moment)))
    nothing = [batch - batch for batch in keys]
    with pytest.raises(ValueError, match="keys of layer 'conv' are zero on all references"):
        MatrixFreeSolver(layer, nothing)


def test_a_matrix_that_no_ridge_repairs_is_refused() -> None:
    solver = DenseSolver("odd", torch.diag(torch.tensor([1.0, -1e7, 1e7])).unsqueeze(0))
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match=f"any ridge up to {MAX_RIDGE:g}"),
    ):
        solver.solve(torch.ones(1, 1, 3), 1e-3)
