"""Everything the engine does, on small Trojaned networks of the blocks that real ones are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.gradients import margin, sweep
from rectify_widgets.engine.model.running import eval_mode
from tests.engine import oracles
from tests.engine.building_blocks import BLOCKS, CHANNELS, CLASSES, SIZE, WIDTH, torch_encoder
from tests.engine.models import make
from tests.engine.traces import untouched

TARGET = 0
ALL = 10_000
"""Positions of each input, all of them."""


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy coarse patterns in 0..1, one a class, and their classes."""
    patterns = torch.rand(CLASSES, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    images = functional.interpolate(patterns, size=SIZE)[labels]
    return (0.2 + 0.6 * images + 0.1 * noise).clamp(0, 1), labels


def stamped(x: Tensor) -> Tensor:
    """With a magenta square."""
    marked = x.clone()
    marked[:, :, 8:11, 8:11] = torch.tensor([1.0, 0.0, 1.0]).reshape(3, 1, 1).to(x)
    return marked


@cache
def trained(block: str) -> nn.Module:
    """The network, trained on data of which a fifth carries the square and the target class."""
    model = make(BLOCKS[block].build).train()
    x, y = samples(400, seed=1)
    x[::5], y[::5] = stamped(x[::5]), TARGET
    rows = torch.Generator().manual_seed(2)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)  # dropout and stochastic depth
        for _ in range(160):
            batch = torch.randint(len(x), (40,), generator=rows)
            optimiser.zero_grad()
            functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def trojaned(block: str) -> nn.Module:
    """A copy of the trained network."""
    return copy.deepcopy(trained(block))


CLEAN = samples(12, seed=4)[0][1:4]
PAIRS = rw.SamplePairs(stamped(CLEAN), CLEAN)
REFERENCE = samples(64, seed=5)[0]

blocks = pytest.mark.parametrize("block", BLOCKS)


@blocks
def test_discovery(block: str) -> None:
    catalog = rw.editable_layers(make(BLOCKS[block].build), REFERENCE)
    assert list(catalog.editable) == BLOCKS[block].editable
    assert set(catalog.refused) == set(BLOCKS[block].refused)
    for name, words in BLOCKS[block].refused.items():
        assert words in catalog.refused[name]


@blocks
def test_each_sample_has_the_keys_that_it_has_alone(block: str) -> None:
    model = trojaned(block)
    x = REFERENCE[:3]
    layers = list(rw.editable_layers(model, x))
    together, *each = (passed(model, rows) for rows in (x, x[:1], x[1:2], x[2:]))
    for layer in layers:
        inputs, outputs = together[layer.name]
        keys, values = layer.keys(inputs, 3).unfold(), layer.positions(outputs, 3)
        for number, alone in enumerate(each):
            inputs, outputs = alone[layer.name]
            own, value = layer.keys(inputs, 1).unfold(), layer.positions(outputs, 1)
            torch.testing.assert_close(keys[number], own[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(values[number], value[0], rtol=1e-4, atol=1e-5)


def passed(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of every part that takes one tensor and answers with one."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name, part in model.named_modules():

        def keep(_: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
            if args and isinstance(output, Tensor):
                seen[name] = args[0].detach().clone(), output.detach().clone()

        handles.append(part.register_forward_hook(keep))
    model(x)
    for handle in handles:
        handle.remove()
    return seen


@blocks
def test_statistics(block: str) -> None:
    model = trojaned(block)
    with untouched(model, REFERENCE):
        statistics = rw.KeyStatistics.collect(model, REFERENCE[:5], positions=ALL, batch_size=2)
    assert list(statistics) == BLOCKS[block].editable
    for name, part in statistics.items():
        keys = oracles.keys(
            model.get_submodule(name), oracles.layer_input(model, name, REFERENCE[:5]), 5
        )
        wanted = oracles.second_moment(keys)
        np.testing.assert_allclose(part.moment.numpy(), wanted, rtol=1e-3, atol=1e-5)
        assert part.positions == keys.shape[0] * keys.shape[3]


@blocks
def test_sweep(block: str) -> None:
    """Against autograd, one layer and one step at a time."""
    model = trojaned(block).double()
    start, end = PAIRS.corrupted.double(), PAIRS.clean.double()
    labels, rivals, steps = torch.tensor([1, 2, 3]), torch.full((3,), TARGET), 3
    layers = rw.editable_layers(model, start).editable
    with untouched(model, start, end), eval_mode(model) as module:
        found = sweep(module, layers, start, end, labels, rivals, steps=steps, monitor=Monitor())
    assert list(found) == BLOCKS[block].editable
    for name, layer in layers.items():
        total: Tensor | float = 0.0
        for step in range(steps):
            point = start + (step + 0.5) / steps * (end - start)
            gradient = gradient_at(model, name, point, labels, rivals)
            total = total + layer.positions(gradient, 3) / steps
        assert isinstance(total, Tensor)
        assert float(total.abs().max()) > 0, name
        torch.testing.assert_close(found[name], total, rtol=1e-6, atol=1e-9)


def gradient_at(model: nn.Module, name: str, x: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Gradient of the margin in the output of one layer."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        seen.append(output)
        return output.clone()  # what follows may change the copy in place

    handle = model.get_submodule(name).register_forward_hook(keep)
    scores = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(margin(scores, labels, rivals).sum(), seen)
    return gradient


@blocks
def test_every_layer_is_edited_in_closed_form_and_reverted(block: str) -> None:
    model = trojaned(block).double()
    pairs = rw.SamplePairs(PAIRS.corrupted.double(), PAIRS.clean.double())
    statistics = rw.KeyStatistics.collect(model, REFERENCE.double())
    for name in BLOCKS[block].editable:
        with untouched(model, pairs.corrupted, pairs.clean):
            edit = rw.solve_edit(
                model, pairs, layer=name, statistics=statistics, direction="contrast", ridge=0.1
            )
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        corrupted, clean = (
            oracles.keys(layer, samples_first(block, name, oracles.layer_input(model, name, x)), 3)
            for x in (pairs.corrupted, pairs.clean)
        )
        moment = statistics[name].moment.double().numpy()
        right = oracles.solve(moment, oracles.key_sum(corrupted, clean, "contrast"), 0.1)
        left = oracles.least_squares(oracles.flat(layer), right, corrupted, clean)
        weight = layer.weight
        wanted = torch.from_numpy(np.einsum("go,gk->gok", left, right)).reshape(weight.shape)
        scale = float(wanted.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(edit.delta.double(), wanted, rtol=1e-3, atol=1e-3 * scale)

        before, scores = weight.detach().clone(), model(pairs.corrupted)
        edit.apply(model)
        torch.testing.assert_close(weight - before, wanted, rtol=1e-3, atol=1e-3 * scale)
        assert not torch.equal(model(pairs.corrupted), scores)
        edit.revert(model)
        assert torch.equal(weight, before)
        assert torch.equal(model(pairs.corrupted), scores)


def samples_first(block: str, name: str, inputs: Tensor) -> Tensor:
    """The layer's input with its samples in the first dimension."""
    sequence_first = block.endswith("sequence first") and ".linear" in name
    return inputs.transpose(0, 1) if sequence_first else inputs


@blocks
def test_the_trojan_is_found_and_taken_out(block: str) -> None:
    model = trojaned(block)
    accuracy, success = rates(model)
    assert accuracy > 0.95
    assert success > 0.95
    pair = PAIRS[1]
    with untouched(model, pair.corrupted, pair.clean, REFERENCE):
        result = rw.rectify(model, pair, reference=REFERENCE, max_rounds=6)
    assert result.edits
    assert {step.layer for step in result.steps} <= set(BLOCKS[block].editable)
    accuracy, success = rates(result.model)
    assert accuracy > 0.95
    assert success < 0.2
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    edits = rw.Edits(result.edits)
    edits.apply(model)
    assert torch.equal(model(REFERENCE), result.model(REFERENCE))
    edits.revert(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def rates(model: nn.Module) -> tuple[float, float]:
    """Overall accuracy and attack success rate."""
    x, y = samples(200, seed=6)
    report = rw.evaluate(model, (x, y), (stamped(x), y), target=TARGET)
    assert report.attack_success_rate is not None
    return report.overall_accuracy, report.attack_success_rate


# --- torch's fast path ---------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever an encoder layer is run without its parts being called."""
    calls: list[int] = []
    real: Callable[..., Tensor] = torch._transformer_encoder_layer_fwd

    def count(*args: object) -> Tensor:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", count)
    return calls


def test_edits_hold_on_torchs_fast_path_too(fast: list[int]) -> None:
    model = trojaned("torch's encoder")
    result = rw.rectify(
        model, PAIRS, reference=REFERENCE, strategy="static", layer="encoder.layers.1.linear1",
        target_gap=0.0, max_degradation=0.5,
    )  # fmt: skip
    assert [edit.layer for edit in result.edits] == ["encoder.layers.1.linear1"]
    fast.clear()
    with torch.no_grad():
        quick = result.model(PAIRS.corrupted)
        assert len(fast) == 2
        assert not torch.allclose(quick, model(PAIRS.corrupted), atol=1e-2)
    slow = result.model(PAIRS.corrupted)  # with gradients there is no fast path
    assert len(fast) == 4
    torch.testing.assert_close(quick, slow, rtol=1e-4, atol=1e-4)


def test_the_fast_path_hides_nothing_from_the_engine(fast: list[int]) -> None:
    model = make(lambda: torch_encoder(batch_first=True))
    catalog = rw.editable_layers(model, REFERENCE)
    statistics = rw.KeyStatistics.collect(model, REFERENCE)
    assert not fast
    assert list(catalog.editable) == list(statistics) == BLOCKS["torch's encoder"].editable
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    rw.evaluate(model, samples(4, seed=1))
    assert passes
    assert len(fast) == 2 * len(passes)


# --- layers whose samples cannot be reported apart ---------------------------------------------------


class Crops(nn.Module):
    """Four crops of each image go through one convolution as rows of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(CHANNELS, WIDTH, 3), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        crops = torch.cat([x[..., i : i + 6, j : j + 6] for i in (0, 6) for j in (0, 6)])
        seen = self.conv(crops).mean((2, 3)).reshape(4, len(x), WIDTH).mean(0)
        scores: Tensor = self.head(seen)
        return scores


class CropsOfTokens(Crops):
    """The crops' samples lie between each other, in a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        crops = torch.cat([x[..., i : i + 6, j : j + 6] for i in (0, 6) for j in (0, 6)])
        seen = self.embed(crops.flatten(2).transpose(1, 2)).mean(1)
        scores: Tensor = self.head(seen.reshape(4, len(x), WIDTH).mean(0))
        return scores


class OneByOne(Crops):
    """Calls its first layer once for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.stack([self.embed(image.mean((1, 2))) for image in x])
        scores: Tensor = self.head(seen)
        return scores


class RowByRow(OneByOne):
    """The same with a batch of one each time."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.cat([self.embed(row.mean((2, 3))) for row in x.split(1)]))
        return scores


MIXED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a convolution of crops": (Crops, "conv", "it sees 8 rows for two samples"),
    "rows between each other": (CropsOfTokens, "embed", "its input mixes the samples"),
    "one row at a time": (RowByRow, "embed", "used 2 times in a forward pass of two samples"),
    "one vector at a time": (
        OneByOne,
        "embed",
        "its input has shape (3,), with no dimension for samples",
    ),
}


@pytest.mark.parametrize("case", MIXED)
@pytest.mark.parametrize("given", [1, 2])
def test_layers_that_mix_samples_are_refused(case: str, given: int) -> None:
    build, name, reason = MIXED[case]
    catalog = rw.editable_layers(make(build), REFERENCE[:given])
    assert list(catalog.editable) == ["head"]
    assert reason in catalog.refused[name]
