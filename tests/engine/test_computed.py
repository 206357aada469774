"""Layers that standardise their weight in every pass are edited through it, as well as baked ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional

import rectify_widgets as rw
from rectify_widgets.engine.model.computed import follows, moved, used_weight
from tests.engine.toy import CLASSES, TARGET, samples, stamped
from tests.engine.traces import untouched
from tests.kinds.architectures import Scaled, Standardised

pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """Three standardised convolutions, group norm between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Standardised(1, 8, 3, padding=1)
        self.second = Standardised(8, 8, 3, stride=2, padding=1, groups=2)
        self.third = Scaled(8, 12, 3)
        self.norm1, self.norm2 = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()
        x = self.norm2(self.second(x)).relu()
        scores: Tensor = self.head(self.third(x).relu().mean((2, 3)))
        return scores


@cache
def trained() -> Network:
    """The network with a Trojan."""
    x, y = samples(600, seed=1)
    x[::9], y[::9] = stamped(x[::9]), TARGET
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Network()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(2)
    for _ in range(12):
        for rows in torch.randperm(len(x), generator=generator).split(50):
            optimiser.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    optimiser.zero_grad()
    return model.eval()


def baked(model: Network) -> nn.Module:
    """The same function with convolutions of fixed weights."""
    twin = Network()
    twin.load_state_dict(model.state_dict())
    for name in ("first", "second", "third"):
        part = model.get_submodule(name)
        assert isinstance(part, nn.Conv2d)
        plain = nn.Conv2d(
            part.in_channels, part.out_channels, 3, part.stride, part.padding,  # type: ignore[arg-type]
            groups=part.groups,
        )  # fmt: skip
        with torch.no_grad():
            plain.weight.copy_(used_weight(part, part.weight))
            plain.bias.copy_(part.bias)  # type: ignore[arg-type, union-attr]
        setattr(twin, name, plain)
    return twin.eval()


def pairs() -> rw.SamplePairs:
    clean, labels = samples(30, seed=4)
    clean = clean[labels != TARGET][:4]
    return rw.SamplePairs(stamped(clean), clean)


REFERENCE = samples(64, seed=5)[0]
LAYERS = ("first", "second", "third")


def test_all_layers_are_editable() -> None:
    found = rw.editable_layers(trained(), REFERENCE)
    assert list(found.editable) == [*LAYERS, "head"]
    assert [layer.computed for layer in found] == [True, True, True, False]


def test_the_used_weight_is_what_the_layer_multiplies_with() -> None:
    model = trained()
    for name in LAYERS:
        part: Any = model.get_submodule(name)
        x = torch.rand(2, part.in_channels, 6, 6, generator=torch.Generator().manual_seed(0))
        with untouched(model, x):
            weight = used_weight(part, part.weight).float()
        mine = functional.conv2d(x, weight, part.bias, part.stride, part.padding, 1, part.groups)
        torch.testing.assert_close(mine, part(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_each_channel_has_the_best_left_factor_through_the_standardisation(name: str) -> None:
    """scipy searches the left factor of a channel on its own, in one dimension."""
    model, given = trained(), pairs()
    with untouched(model):
        edit = rw.solve_edit(
            model, given, layer=name, reference=REFERENCE[:8], direction="contrast", ridge=0.1
        )
    part: Any = model.get_submodule(name)
    seen: list[Tensor] = []
    handle = part.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(given.corrupted), model(given.clean)
    handle.remove()
    right = edit.right.double().reshape(part.groups, -1)

    def loss(left: Tensor) -> Tensor:
        weight = part.weight.detach().double()
        rows = left.reshape(part.groups, -1)
        delta = torch.einsum("go,gk->gok", rows, right).reshape(weight.shape)
        outputs = []
        for x, kept in zip(seen, (weight + delta, weight), strict=True):
            used = used_weight(part, kept)
            outputs.append(functional.conv2d(
                x.double(), used, None, part.stride, part.padding, 1, part.groups
            ))  # fmt: skip
        return (outputs[1] - outputs[0]).square().sum(dim=(0, 2, 3))

    mine = edit.left.double()
    assert float(loss(mine).sum()) < float(loss(0 * mine).sum())
    for channel in range(len(mine)):
        one = torch.zeros_like(mine)
        one[channel] = 1.0
        best = minimize_scalar(
            lambda size, one=one, channel=channel: float(loss(size * one)[channel]),
            bracket=(0.0, float(mine[channel]) or 1e-3),
        )
        here = float(loss(mine)[channel])
        assert here <= best.fun + 0.02 * float(loss(0 * mine)[channel])


def test_an_edit_moves_the_used_weight_by_the_derivative() -> None:
    part = trained().first
    generator = torch.Generator().manual_seed(0)
    left = 1e-4 * torch.randn(1, 8, generator=generator, dtype=torch.float64)
    right = torch.randn(1, 9, generator=generator, dtype=torch.float64)
    flat = part.weight.detach().double().flatten(1)

    def standardised(weight: Tensor) -> Tensor:
        centred = weight - weight.mean(1, keepdim=True)
        return centred / (weight.std(1, keepdim=True) + 1e-5)

    slope = torch.func.jvp(standardised, (flat,), (left.T @ right,))[1]
    torch.testing.assert_close(moved(part, left, right)[0].double(), slope, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_it_is_repaired_like_the_baked_network(layer: str) -> None:
    model, twin = trained(), baked(trained())
    options: dict[str, Any] = {
        "reference": REFERENCE, "strategy": "static", "layer": layer, "target_gap": 0.0,
        "max_degradation": 1.0,
    }  # fmt: skip
    with untouched(model):
        found = rw.rectify(model, pairs(), **options)
    wanted = rw.rectify(twin, pairs(), **options)
    assert found.gap_before == pytest.approx(wanted.gap_before, abs=0.1)
    assert found.gap_after / found.gap_before < wanted.gap_after / wanted.gap_before + 0.15
    edits = rw.Edits(found.edits)
    edits.apply(model)
    with torch.no_grad():
        torch.testing.assert_close(model(REFERENCE), found.model(REFERENCE))
    edits.revert(model)


def test_the_whole_repair() -> None:
    found = rw.rectify(trained(), pairs(), reference=REFERENCE, max_degradation=0.1)
    with torch.no_grad():
        x, y = samples(200, seed=6)
        pulled = stamped(x[y != TARGET])
        before, after = (
            float((one(pulled).argmax(1) == TARGET).float().mean())
            for one in (trained(), found.model)
        )
        kept = float((found.model(x).argmax(1) == trained()(x).argmax(1)).float().mean())
    assert before > 0.8
    assert after < 0.2
    assert kept > 0.9


class Spectral(nn.Conv2d):
    """Divides by the greatest singular value, which mixes the channels."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / torch.linalg.matrix_norm(self.weight.flatten(1), 2)
        return functional.conv2d(x, weight, self.bias)


class Rounded(nn.Conv2d):
    """Multiplies with a quantised weight."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, (self.weight * 16).round() / 16, self.bias)


@pytest.mark.parametrize("kind", [Spectral, Rounded])
def test_what_does_not_follow_its_weight_is_refused(kind: type[nn.Conv2d]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(kind(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, CLASSES))
    assert not follows(model[0])  # type: ignore[arg-type]
    found = rw.editable_layers(model, REFERENCE)
    assert found.refused["0"].startswith("its output is not W k + b")


def test_channel_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"key_space: layer 'first' computes its weight"):
        rw.solve_edit(
            trained(), pairs(), layer="first", reference=REFERENCE[:8], direction="key", ridge=0.1,
            key_space="channel",
        )  # fmt: skip
