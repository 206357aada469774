"""Models as users have them: normalisation in front, half precision, a compiled network, CUDA.

What has no other way out, an adapter, is in ``test_outputs.py``; modes of the caller such as
autocast in ``test_no_trace.py``.  Compiled networks run here with the backend that needs no C++
compiler; the engine runs them eagerly whatever their backend.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from tests.engine.calls import CALLS, INPUTS, LABELS, PAIRS, REFERENCE
from tests.engine.toy import Toy
from tests.engine.traces import Tiny, corrupted, untouched

# --- normalisation in front ----------------------------------------------------------------------

MEAN, STD = torch.tensor([0.2, 0.5, 0.4]), torch.tensor([0.5, 0.25, 0.3])


class Normalize(nn.Module):
    """Takes a mean off each channel and divides by a deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", MEAN.reshape(1, 3, 1, 1))
        self.register_buffer("std", STD.reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        normal: Tensor = (x - self.mean) / self.std
        return normal


def normal(x: Tensor) -> Tensor:
    return (x - MEAN.reshape(1, 3, 1, 1)) / STD.reshape(1, 3, 1, 1)


def normalized() -> nn.Module:
    return nn.Sequential(OrderedDict(normalize=Normalize(), network=Tiny()))


def test_behind_a_normalisation_a_network_sees_what_it_sees_alone() -> None:
    """Along the straight path and in the transplant, to normalise before or after is the same."""
    pairs = rw.SamplePairs(normal(PAIRS.corrupted), normal(PAIRS.clean))
    inside, alone = normalized(), Tiny()
    catalog = rw.editable_layers(inside, REFERENCE)
    assert list(catalog.editable) == [
        f"network.{name}" for name in rw.editable_layers(alone).editable
    ]
    assert not catalog.refused

    found = rw.KeyStatistics.collect(inside, REFERENCE)
    wanted = rw.KeyStatistics.collect(alone, normal(REFERENCE))
    for name, part in wanted.items():
        torch.testing.assert_close(found[f"network.{name}"].total, part.total)

    ranking = rw.localize(inside, PAIRS, reference=REFERENCE, trials=0)
    plain = rw.localize(alone, pairs, reference=normal(REFERENCE), trials=0)
    assert [name.removeprefix("network.") for name in ranking.scores] == list(plain.scores)
    assert list(ranking.scores.values()) == pytest.approx(list(plain.scores.values()), abs=1e-3)

    for name in wanted:
        edit, other = (
            rw.solve_edit(
                model, given, layer=layer, statistics=statistics, direction="contrast", ridge=0.1
            )
            for model, given, layer, statistics in (
                (inside, PAIRS, f"network.{name}", found),
                (alone, pairs, name, wanted),
            )
        )
        scale = float(other.delta.abs().max())
        torch.testing.assert_close(edit.delta, other.delta, rtol=1e-3, atol=1e-3 * scale)


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(trojan: Toy, dtype: torch.dtype) -> None:
    model = copy.deepcopy(trojan.model).to(dtype)
    twin = copy.deepcopy(model).float()  # the same rounded weights
    found = rw.KeyStatistics.collect(model, trojan.reference)
    wanted = rw.KeyStatistics.collect(twin, trojan.reference)
    assert list(found) == list(wanted)
    for name, part in wanted.items():
        assert found[name].total.dtype is torch.float32
        scale = float(part.moment.abs().max())
        torch.testing.assert_close(found[name].moment, part.moment, rtol=0.1, atol=0.02 * scale)

    ranking, plain = (
        rw.localize(m, trojan.pairs[0], reference=trojan.reference, trials=0) for m in (model, twin)
    )
    top = list(plain.scores.values())
    assert plain.scores[ranking.best] > top[0] - 0.15

    before = copy.deepcopy(model.state_dict())
    with untouched(model, trojan.reference):
        result = rw.rectify(
            model, trojan.pairs[0], reference=trojan.reference, max_rounds=3, refine_steps=20
        )
    accuracy, success = trojan.rates(result.model)
    assert accuracy > 0.95
    assert success < 0.25
    assert all(parameter.dtype is dtype for parameter in result.model.parameters())
    edits = rw.Edits(result.edits)
    edits.apply(model)
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    edits.revert(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- compiled ------------------------------------------------------------------------------------


def compiled() -> nn.Module:
    """Normalisation and network, each compiled, and both together."""
    parts = [cast("nn.Module", torch.compile(p, backend="eager")) for p in (Normalize(), Tiny())]
    return cast("nn.Module", torch.compile(nn.Sequential(*parts), backend="eager"))


def test_compiled_throughout() -> None:
    model, plain = compiled(), nn.Sequential(Normalize(), Tiny())
    ranking = rw.localize(model, PAIRS, reference=REFERENCE)
    expected = rw.localize(plain, PAIRS, reference=REFERENCE)
    assert {n.replace("_orig_mod.", ""): s for n, s in ranking.scores.items()} == expected.scores
    with untouched(model, *INPUTS):
        result, repaired = CALLS["rectify"](model), CALLS["rectify"](plain).model
    assert len(result.edits) >= 1
    assert torch.equal(result.model(REFERENCE), repaired(REFERENCE))
    rw.Edits(result.edits).apply(model)
    assert torch.equal(model(REFERENCE), repaired(REFERENCE))


# --- CUDA ----------------------------------------------------------------------------------------

DEVICE = "cuda"
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_cuda
@pytest.mark.parametrize("call", CALLS)
def test_cuda_leaves_no_trace_and_takes_inputs_from_anywhere(call: str) -> None:
    model = Tiny().to(DEVICE)
    with untouched(model, *INPUTS):
        CALLS[call](model)


@on_cuda
@pytest.mark.parametrize("place", ["cpu", DEVICE])
def test_cuda_gives_what_the_cpu_gives(place: str) -> None:
    model, plain = Tiny().to(DEVICE), Tiny()
    reference = REFERENCE.to(place)
    pairs = rw.SamplePairs(PAIRS.corrupted.to(place), PAIRS.clean.to(place))
    statistics = rw.KeyStatistics.collect(model, reference)
    wanted = rw.KeyStatistics.collect(plain, REFERENCE)
    for name, part in wanted.items():
        assert statistics[name].positions == part.positions
        torch.testing.assert_close(statistics[name].total.cpu(), part.total, rtol=1e-2, atol=1e-2)

    found = rw.localize(model, pairs, reference=reference, trials=0)
    ranking = rw.localize(plain, PAIRS, reference=REFERENCE, trials=0)
    assert found.scores == pytest.approx(dict(ranking.scores), abs=0.02)

    edit = rw.solve_edit(
        model, pairs, layer="third", statistics=statistics, direction="contrast", ridge=0.1
    )
    other = rw.solve_edit(
        plain, PAIRS, layer="third", statistics=wanted, direction="contrast", ridge=0.1
    )
    assert edit.left.device.type == "cpu"
    scale = float(other.delta.abs().max())
    torch.testing.assert_close(edit.delta, other.delta, rtol=0.02, atol=0.02 * scale)

    before = model.third.weight.detach().clone()
    edit.apply(model)
    assert model.third.weight.device.type == DEVICE
    moved = (model.third.weight - before).cpu()
    torch.testing.assert_close(moved, edit.delta, rtol=1e-3, atol=1e-3 * scale)
    edit.revert(model)
    assert torch.equal(model.third.weight, before)

    report = rw.evaluate(model, (reference, LABELS.to(place)), (corrupted(reference), LABELS), 0)
    assert report.overall_accuracy == pytest.approx(
        rw.evaluate(plain, (REFERENCE, LABELS)).overall_accuracy, abs=0.13
    )


@on_cuda
def test_a_trojan_is_taken_out_on_cuda(trojan: Toy) -> None:
    model = copy.deepcopy(trojan.model).to(DEVICE)
    result = rw.rectify(model, trojan.pairs[0], reference=trojan.reference)
    assert {parameter.device.type for parameter in result.model.parameters()} == {DEVICE}
    accuracy, success = trojan.rates(copy.deepcopy(result.model).cpu())
    assert accuracy > 0.95
    assert success < 0.25
    on_cpu = copy.deepcopy(trojan.model)
    rw.Edits(result.edits).apply(on_cpu)  # weights are digested the same on every device
    for one, other in zip(on_cpu.parameters(), result.model.parameters(), strict=True):
        torch.testing.assert_close(one, other.cpu())


@on_cuda
def test_memory_of_the_device_that_runs_out() -> None:
    """With all but a little of the device's memory taken, the figures stay the same."""
    model = nn.Sequential(nn.Conv2d(3, 512, 3, padding=1), Pool(), nn.Linear(512, 4)).to(DEVICE)
    x = torch.rand(256, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(256) % 4
    expected = rw.evaluate(model, (x, y))
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used + min(free, 600 * 2**20)) / total)
    try:
        assert str(rw.evaluate(model, (x, y))) == str(expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


class Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().mean(dim=(2, 3))
