"""Second moments of keys: equal to E[k kᵀ], additive, whatever brings the references."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.edit.statistics import KeyStatistics
from tests.engine import oracles
from tests.engine.models import NETWORKS, images, make
from tests.engine.test_layer_catalog import LAYERS

ALL = 10_000
"""More positions than any layer has: nothing is left to chance."""


def moments(statistics: KeyStatistics) -> dict[str, np.ndarray]:
    return {name: part.moment.double().numpy() for name, part in statistics.items()}


def same(one: KeyStatistics, other: KeyStatistics, rtol: float = 1e-4) -> None:
    assert list(one) == list(other)
    assert one.references == other.references
    for name in one:
        assert one[name].positions == other[name].positions, name
        assert one[name].fingerprint == other[name].fingerprint, name
        torch.testing.assert_close(one[name].total, other[name].total, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_second_moment_of_every_layer(network: str) -> None:
    model, x = make(network), images(5)
    statistics = KeyStatistics.collect(model, x, positions=ALL)
    assert list(statistics) == LAYERS[network]
    assert len(statistics) == len(LAYERS[network])
    assert statistics.references == 5
    for name, found in moments(statistics).items():
        keys = oracles.keys(model.get_submodule(name), oracles.layer_input(model, name, x), 5)
        np.testing.assert_allclose(found, oracles.second_moment(keys), rtol=1e-4, atol=1e-5)
        assert statistics[name].positions == keys.shape[0] * keys.shape[3]


@pytest.mark.parametrize("network", ["padded", "residual", "transformer"])
def test_channel_key_space(network: str) -> None:
    model, x = make(network), images(4)
    statistics = KeyStatistics.collect(model, x, key_space="channel", positions=ALL)
    assert statistics.key_space == "channel"
    for name, found in moments(statistics).items():
        module, inputs = model.get_submodule(name), oracles.layer_input(model, name, x)
        if isinstance(module, nn.Conv2d):
            keys = oracles.pixels(module, inputs)
        else:
            keys = oracles.keys(module, inputs, 4)
        np.testing.assert_allclose(found, oracles.second_moment(keys), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model, x = make("residual").to(dtype), images(4)
    statistics = KeyStatistics.collect(model, x, positions=ALL)
    kind = torch.float64 if dtype is torch.float64 else torch.float32
    for name, found in statistics.items():
        inputs = oracles.layer_input(model, name, x.to(dtype))
        wanted = oracles.second_moment(oracles.keys(model.get_submodule(name), inputs, 4))
        assert found.total.dtype is kind
        tight = 1e-11 if kind is torch.float64 else 1e-4
        np.testing.assert_allclose(found.moment.double().numpy(), wanted, rtol=tight, atol=tight)


def test_channels_last_and_training_mode() -> None:
    plain = KeyStatistics.collect(make("residual"), images(6), positions=ALL)
    model = make("residual").train()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    flags = [part.training for part in model.modules()]
    x = images(6).to(memory_format=torch.channels_last)
    same(KeyStatistics.collect(model, x, positions=ALL), plain)
    assert [part.training for part in model.modules()] == flags


# --- streaming -----------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(1, 9))
def test_two_halves_merge_to_the_whole(cut: int, batch_size: int) -> None:
    model, x = make("mobile"), images(9)
    whole = KeyStatistics.collect(model, x, positions=ALL)
    parts = [
        KeyStatistics.collect(model, part, positions=ALL, batch_size=batch_size)
        for part in (x[:cut], x[cut:])
    ]
    same(parts[0].merge(parts[1]), whole)
    same(KeyStatistics.collect(model, x, positions=ALL, batch_size=batch_size), whole)


def test_merge_refuses_what_does_not_belong_together() -> None:
    model, x = make("plain"), images(3)
    own = KeyStatistics.collect(model, x)
    with pytest.raises(TypeError, match="other: got dict"):
        own.merge({})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'channel' keys, want 'patch'"):
        own.merge(KeyStatistics.collect(model, x, key_space="channel"))
    with pytest.raises(ValueError, match="want the same layers"):
        own.merge(KeyStatistics.collect(model, x, ["first"]))
    with pytest.raises(ValueError, match="'second' was collected with other weights upstream"):
        own.merge(KeyStatistics.collect(make("plain", seed=1), x))


def test_positions_are_sampled_with_a_seed() -> None:
    model, x = make("residual"), images(6)
    one, again = (KeyStatistics.collect(model, x, positions=10, seed=3) for _ in range(2))
    other = KeyStatistics.collect(model, x, positions=10, seed=4)
    assert one["stem"].positions == 60
    assert one["head"].positions == 6  # has one position only
    assert all(torch.equal(one[name].total, again[name].total) for name in one)
    assert not torch.equal(one["stem"].total, other["stem"].total)
    assert torch.equal(one["head"].total, other["head"].total)
    # A sample of positions estimates the same matrix.
    whole = moments(KeyStatistics.collect(model, x, positions=ALL))["stem"]
    assert np.linalg.norm(moments(one)["stem"] - whole) < 0.3 * np.linalg.norm(whole)


def test_few_references_give_as_many_positions_as_the_rank_needs() -> None:
    model = make("residual")  # the key of block2.conv2 has 72 numbers, each input 25 positions
    few = KeyStatistics.collect(model, images(30))
    many = KeyStatistics.collect(model, images(90, size=20))
    assert few["block2.conv2"].positions == 30 * 25
    assert many["block2.conv2"].positions == 90 * 64  # of 100 each
    tiny = KeyStatistics.collect(model, images(2, size=20))
    assert tiny["stem"].positions == 2 * 108  # eight for each of 27 numbers; 64 would be too few


# --- where references come from ------------------------------------------------------------------


class Dicts(Dataset[dict[str, Any]]):
    """Samples as dicts, as image processors hand them out."""

    def __init__(self, x: Tensor, name: str) -> None:
        self.x, self.name = x, name

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"label": index, "mask": torch.ones(1, dtype=torch.bool), self.name: self.x[index]}


class Stream(IterableDataset[Tensor]):
    """A data set without a length."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


def sources(x: Tensor) -> dict[str, Any]:
    y = torch.arange(len(x))
    return {
        "tensor": x,
        "data set of tuples": TensorDataset(x, y),
        "data set of dicts": Dicts(x, "pixel_values"),
        "data set of dicts, another name": Dicts(x, "photograph"),
        "stream": Stream(x),
        "loader of tuples": DataLoader(TensorDataset(x, y), batch_size=4),
        "loader of tensors": DataLoader(Stream(x), batch_size=3),
        "loader of dicts": DataLoader(Dicts(x, "image"), batch_size=5),
        "shuffled loader": DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True),
    }


@pytest.mark.parametrize("kind", sources(torch.empty(1)))
def test_references_may_come_in_many_ways(kind: str) -> None:
    model, x = make("plain"), images(7)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = KeyStatistics.collect(model, sources(x)[kind], positions=ALL, batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    same(found, KeyStatistics.collect(model, x, positions=ALL))


def test_only_the_named_layers() -> None:
    model, x = make("plain"), images(3)
    assert list(KeyStatistics.collect(model, x, ["head", "first"])) == ["first", "head"]
    with pytest.raises(ValueError, match="layers: no layer 'frist'"):
        KeyStatistics.collect(model, x, ["frist"])


def test_repr_says_what_it_is() -> None:
    statistics = KeyStatistics.collect(make("plain"), images(3))
    assert repr(statistics) == "KeyStatistics(4 layers, 3 references, patch keys)"


# --- progress ------------------------------------------------------------------------------------


def test_progress_and_cancel() -> None:
    model, x = make("plain"), images(10)
    reported: list[float] = []
    KeyStatistics.collect(model, x, batch_size=2, progress=lambda at, _: reported.append(at))
    assert reported == sorted(reported)
    assert reported[0] == 0.0
    assert reported[-1] == 1.0
    assert len(reported) == 6

    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(Cancelled):
        KeyStatistics.collect(model, x, batch_size=2, cancel=cancel)
    assert asked == 6
    assert not any(part._forward_hooks for part in model.modules())


def test_a_model_that_overflows_is_named() -> None:
    model = make("plain")
    assert isinstance(model.first, nn.Conv2d)
    with torch.no_grad():
        model.first.weight.mul_(1e38)
    with pytest.raises(ValueError, match="inputs of layer 'second' are NaN or infinite"):
        KeyStatistics.collect(model, images(2))
