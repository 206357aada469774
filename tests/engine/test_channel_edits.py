"""Edits in the channel key space (Bau et al. 2020) against a least-squares problem built by loops."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import RankOneEdit, load_edits
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.keys import pad
from rectify_widgets.engine.repair.solving import solve_edit
from tests.engine import oracles
from tests.engine.models import images, make
from tests.engine.test_editing import patched
from tests.engine.test_layer_catalog import LAYERS

CONVOLUTIONS = [
    (network, name)
    for network in ("plain", "residual", "padded", "mobile")
    for name in LAYERS[network]
    if isinstance(make(network).get_submodule(name), nn.Conv2d)
]


def solve(model: nn.Module, name: str, pairs: SamplePairs, direction: str) -> RankOneEdit:
    statistics = KeyStatistics.collect(
        model, images(4).double(), [name], key_space="channel", positions=10_000
    )
    return solve_edit(
        model, pairs, layer=name, statistics=statistics, key_space="channel",
        direction=direction, ridge=0.01,
    )  # fmt: skip


def wanted(model: nn.Module, name: str, pairs: SamplePairs, direction: str) -> oracles.Array:
    """``Λ ⊗ d`` in the weight's shape, from numpy alone."""
    conv = model.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    reference = oracles.layer_input(model, name, images(4).double())
    moment = oracles.second_moment(oracles.pixels(conv, reference))
    inputs = [oracles.layer_input(model, name, x) for x in (pairs.corrupted, pairs.clean)]
    corrupted, clean = (oracles.pixels(conv, x) for x in inputs)
    right = oracles.solve(moment, oracles.key_sum(corrupted, clean, direction), 0.01)

    samples, _, height, width = inputs[0].shape
    channels = corrupted.reshape(samples, conv.groups, -1, height, width)
    image = np.einsum("gc,ngchw->nghw", right, channels)
    design = oracles.conv_keys(conv, image)  # N × G × kh·kw × P
    keys = [oracles.keys(conv, x, samples) for x in inputs]
    missing = np.einsum("gok,ngkp->ngop", oracles.flat(conv), keys[1] - keys[0])
    blocks = []
    for g in range(conv.groups):
        rows = design[:, g].transpose(0, 2, 1).reshape(-1, design.shape[2])
        target = missing[:, g].transpose(0, 2, 1).reshape(len(rows), -1)
        left = np.linalg.lstsq(rows, target, rcond=None)[0].T  # O/G × kh·kw
        blocks.append(np.einsum("op,c->ocp", left, right[g]))
    delta: oracles.Array = np.concatenate(blocks).reshape(conv.weight.shape)
    return delta


@pytest.mark.parametrize("direction", ["contrast", "key"])
@pytest.mark.parametrize(("network", "name"), CONVOLUTIONS)
def test_channel_edit_is_least_squares(network: str, name: str, direction: str) -> None:
    model, pairs = make(network).double(), patched()
    edit = solve(model, name, pairs, direction)
    assert edit.key_space == "channel"
    delta = wanted(model, name, pairs, direction)
    conv = model.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    # Where the design has no full rank, several Λ do equally well: compare what they do.
    x = pad(conv, oracles.layer_input(model, name, pairs.corrupted))
    moved, best = (
        functional.conv2d(x, update, None, conv.stride, 0, conv.dilation, conv.groups)
        for update in (edit.delta, torch.from_numpy(delta))
    )
    torch.testing.assert_close(moved, best, rtol=1e-6, atol=1e-7 * float(best.abs().max()))
    for block in edit.delta.reshape(conv.groups, -1, *edit.delta.shape[1:]):
        flat = block.permute(0, 2, 3, 1).flatten(0, 2)  # O/G·kh·kw × C/G
        assert oracles.rank(flat) == 1 or not bool(block.any())


def test_the_edit_is_a_convolution_of_the_response() -> None:
    """``conv(k, W + Λ d) − conv(k, W) = conv(s, Λ)`` with ``s = ⟨d, k⟩``."""
    model, pairs = make("plain").double(), patched()
    edit = solve(model, "second", pairs, "contrast")
    edited = copy.deepcopy(model)
    edit.apply(edited)
    x = images(3).double()
    change = oracles.layer_output(edited, "second", x) - oracles.layer_output(model, "second", x)
    response = torch.einsum("c,nchw->nhw", edit.right, oracles.layer_input(model, "second", x))
    kernel: Tensor = edit.left.reshape(6, 1, 3, 2)
    found = functional.conv2d(response.unsqueeze(1), kernel, stride=2, padding=1)
    torch.testing.assert_close(change, found, rtol=1e-9, atol=1e-9)


def test_a_linear_layer_has_one_key_space() -> None:
    model, pairs = make("perceptron").double(), patched()
    channel = solve(model, "layers.3", pairs, "key")
    patch = solve_edit(
        model, pairs, layer="layers.3", direction="key", ridge=0.01,
        reference=images(4).double(),
    )  # fmt: skip
    torch.testing.assert_close(channel.delta, patch.delta)


def test_channel_edits_are_applied_reverted_and_saved(tmp_path: Path) -> None:
    model, pairs = make("padded"), patched()
    edit = solve_edit(
        model, pairs, layer="same", key_space="channel", direction="key", ridge=0.1,
        reference=images(4),
    )  # fmt: skip
    before = model.get_parameter("same.weight").detach().clone()
    edit.save(tmp_path / "edit.safetensors")
    (loaded,) = load_edits(tmp_path / "edit.safetensors")
    assert loaded.key_space == "channel"
    assert torch.equal(loaded.delta, edit.delta)
    loaded.apply(model)
    assert torch.equal(model.get_parameter("same.weight"), before + edit.delta)
    loaded.revert(model)
    assert torch.equal(model.get_parameter("same.weight"), before)


def test_patch_statistics_do_not_serve_channel_edits() -> None:
    model, pairs = make("plain"), patched()
    statistics = KeyStatistics.collect(model, images(4))
    with pytest.raises(ValueError, match="got 'patch' keys, want 'channel'"):
        solve_edit(
            model, pairs, layer="second", statistics=statistics, key_space="channel",
            direction="key", ridge=0.1,
        )  # fmt: skip


def test_direction_and_ridge_are_chosen_in_this_key_space_too() -> None:
    model, pairs = make("plain"), patched()
    statistics = KeyStatistics.collect(model, images(16), key_space="channel")
    for given in (None, statistics):
        edit = solve_edit(
            model, pairs, layer="second", reference=images(16), statistics=given,
            key_space="channel",
        )  # fmt: skip
        assert edit.key_space == "channel"
        assert edit.layer == "second"
