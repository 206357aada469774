"""Memory that is known beforehand, and kept to: the same results in several passes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.find import proposals as layerwise
from rectify_widgets.engine.find.candidates import sweep_probe
from rectify_widgets.engine.find.problem import counts_of, most_references, pose_problem
from rectify_widgets.engine.model import memory
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.memory import (
    Counts,
    LayerSize,
    Sizes,
    _Live,
    collect_chunk,
    collect_peak,
    held,
    limit_for,
    measure_sizes,
    parts,
    proposal_peak,
)
from rectify_widgets.engine.model.running import eval_mode
from tests.engine.models import images, make
from tests.engine.test_editing import patched
from tests.engine.toy import Toy

COUNTS = Counts(references=40, probe=8, sources=10, chunk=4)


def sizes_of(moments: list[int]) -> Sizes:
    layers = {
        f"layer{number}": LayerSize(inputs=10, outputs=20, moment=moment, unfolded=5, weight=3)
        for number, moment in enumerate(moments)
    }
    return Sizes(layers=layers, sample=3, forward=50, sweep=70, copy=0)


# --- what is alive at one time -------------------------------------------------------------------


def same_repair(some: rw.Rectification, whole: rw.Rectification) -> None:
    """Whether two repairs tried the same layers and keep the same edits, to the bit."""
    assert whole.edits
    assert [step.layer for step in some.steps] == [step.layer for step in whole.steps]
    for one, other in zip(some.edits, whole.edits, strict=True):
        assert torch.equal(one.left, other.left)
        assert torch.equal(one.right, other.right)


def test_live_bytes_are_those_of_tensors_not_yet_freed() -> None:
    old = torch.ones(1000)
    live = _Live([old])
    with live:
        one = torch.ones(100)
        two = one + 1
        assert live.now == 800
        two.view(10, 10).add_(old[:100].view(10, 10))
        del one
        assert live.now == 400
        three = torch.ones(50, dtype=torch.double)
        assert live.now == 800
        del two, three
    assert live.now == 0
    assert live.most == 800


def test_sizes_are_those_of_the_network() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    example = torch.zeros(1, 3, 6, 6)
    with eval_mode(network) as module:
        catalog = editable_layers(module, example)
        sizes = measure_sizes(module, catalog.editable, example, copied=True)
    first, last = sizes.layers.values()
    assert first == LayerSize(3 * 8 * 8 * 4, 8 * 36 * 4, 27**2 * 4, 27 * 36 * 4, 8 * 27 * 4)
    assert last == LayerSize(288 * 4, 5 * 4, 288**2 * 4, 288 * 4, 5 * 288 * 4)
    assert sizes.copy == sum(p.numel() for p in network.parameters()) * 4
    # The copy that the model gets, what the convolution makes of it, and what the ReLU does.
    assert sizes.forward == 4 * (3 * 36 + 2 * 8 * 36)
    # The gradients of both layers' outputs at least are alive together with the inputs' way.
    assert sizes.sweep >= sizes.forward + 4 * (8 * 36 + 5)


def test_what_a_look_keeps() -> None:
    """Keys of 10 samples to solve from, twice; then those of 4 swept at a time, and two gradients."""
    size = LayerSize(inputs=10, outputs=20, moment=7, unfolded=5, weight=3)
    assert held(size, COUNTS) == max(2 * 10 * 10, 2 * 4 * (10 + 20)) + 7
    assert held(replace(size, outputs=40), COUNTS) == 2 * 4 * (10 + 40) + 7


# --- the layers in parts -------------------------------------------------------------------------


@settings(deadline=None)
@given(
    moments=st.lists(st.integers(0, 3000), min_size=1, max_size=12),
    limit=st.integers(1, 60_000),
)
def test_parts_are_all_layers_in_order_and_within_the_limit(moments: list[int], limit: int) -> None:
    sizes = sizes_of(moments)
    names = list(sizes.layers)

    def peak(some: list[str]) -> int:
        return max(proposal_peak(sizes, COUNTS, some), collect_peak(sizes, some, 1))

    alone = max(peak([name]) for name in names)
    if limit < limit_for(alone):
        with pytest.raises(ValueError, match="memory_limit"):
            parts(sizes, COUNTS, names, limit)
        return
    found = parts(sizes, COUNTS, names, limit)
    assert [name for part in found for name in part] == names
    assert all(limit_for(peak(part)) <= limit for part in found)
    for part, following in pairwise(found):
        assert limit_for(peak([*part, following[0]])) > limit  # no part could have been larger


@given(moments=st.lists(st.integers(0, 3000), min_size=1, max_size=5), limit=st.integers(1, 20_000))
def test_a_pass_of_the_statistics_takes_as_many_as_fit(moments: list[int], limit: int) -> None:
    sizes = sizes_of(moments)
    names = list(sizes.layers)
    if limit < limit_for(collect_peak(sizes, names, 1)):
        with pytest.raises(ValueError, match="second moments"):
            collect_chunk(sizes, names, 64, limit)
        return
    chunk = collect_chunk(sizes, names, 64, limit)
    assert 1 <= chunk <= 64
    assert limit_for(collect_peak(sizes, names, chunk)) <= limit
    assert chunk == 64 or limit_for(collect_peak(sizes, names, chunk + 1)) > limit
    assert collect_chunk(sizes, names, 64, None) == 64


# --- calls under a limit -------------------------------------------------------------------------


def setting() -> tuple[nn.Module, rw.SamplePairs, Tensor]:
    return make("residual").double(), patched(), images(40).double()


def a_low_limit() -> int:
    """One that the largest layer alone just meets."""
    model, pairs, reference = setting()
    with eval_mode(model) as module:
        catalog = editable_layers(module, reference[:1])
        sizes = measure_sizes(module, catalog.editable, reference[:1])
    counts = counts_of(len(pairs), len(reference), reference)
    return limit_for(
        max(
            max(proposal_peak(sizes, counts, [name]), collect_peak(sizes, [name], 1))
            for name in sizes.layers
        )
    )


@pytest.mark.parametrize("method", ["edit-attribution", "projection", "trial"])
def test_localize_in_parts_gives_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs, reference = setting()
    whole = rw.localize(model, pairs, reference=reference, method=method)
    looks: list[int] = []

    def counted(model: nn.Module, layers: Any, probe: Any, **options: Any) -> Any:
        looks.append(len(layers))
        return sweep_probe(model, layers, probe, **options)

    monkeypatch.setattr(layerwise, "sweep_probe", counted)
    limit = a_low_limit()
    some = rw.localize(model, pairs, reference=reference, method=method, memory_limit=limit)
    assert len(set(looks)) >= 1
    assert len(looks) >= 3 * (1 + (method == "projection"))
    assert max(looks) < len(whole.scores)
    assert list(some.scores) == list(whole.scores)
    assert some.choices == whole.choices
    for name, score in whole.scores.items():
        assert some.scores[name] == pytest.approx(score, rel=1e-6, abs=1e-9)
        assert torch.equal(some.edit(name).delta, whole.edit(name).delta)
        assert some.completeness[name] == pytest.approx(whole.completeness[name], rel=1e-6)


def test_rectify_in_parts_gives_the_same(trojan: Toy) -> None:
    options: dict[str, Any] = {"reference": trojan.reference, "max_rounds": 2, "target_gap": 0.0}
    count = len(trojan.reference)
    about: dict[str, Any] = {"input_shape": trojan.reference.shape[1:], "references": count}
    limit = round(0.9 * rw.estimate_memory(trojan.model, **about, call="localize").peak)
    assert rw.estimate_memory(trojan.model, **about, memory_limit=limit).passes >= 2
    whole = rw.rectify(trojan.model, trojan.pairs[:1], **options)
    some = rw.rectify(trojan.model, trojan.pairs[:1], **options, memory_limit=limit)
    same_repair(some, whole)


def test_statistics_in_smaller_passes_are_the_same() -> None:
    model, _, reference = setting()
    whole = rw.KeyStatistics.collect(model, reference, positions=3)
    with eval_mode(model) as module:
        catalog = editable_layers(module, reference[:1])
        sizes = measure_sizes(module, catalog.editable, reference[:1])
    limit = limit_for(collect_peak(sizes, list(sizes.layers), 3))
    assert collect_chunk(sizes, list(sizes.layers), 40, limit) == 3
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    some = rw.KeyStatistics.collect(model, reference, positions=3, memory_limit=limit)
    handle.remove()
    assert max(seen) == 3
    for name, one in whole.items():
        assert some[name].positions == one.positions
        torch.testing.assert_close(some[name].total, one.total, rtol=1e-9, atol=1e-9)


class Short(nn.Module):
    """Has memory for so many samples."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x)
        if len(x) > self.most:  # when sums have been added to already
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores


def test_statistics_begin_anew_where_memory_runs_out() -> None:
    model, _, reference = setting()
    whole = rw.KeyStatistics.collect(model, reference, positions=3)
    short = rw.KeyStatistics.collect(Short(model, 7), reference, positions=3)
    assert short.references == whole.references
    for name, one in whole.items():
        other = short[f"network.{name}"]
        assert other.positions == one.positions
        torch.testing.assert_close(other.total, one.total, rtol=1e-9, atol=1e-9)
    with pytest.raises(torch.OutOfMemoryError):
        rw.KeyStatistics.collect(Short(model, 0), reference)


def test_a_sweep_goes_on_with_fewer_samples_where_memory_runs_out() -> None:
    model, pairs, reference = setting()
    whole = rw.localize(model, pairs, reference=reference)
    short = rw.localize(Short(model, 5), pairs, reference=reference)
    for name, score in whole.scores.items():
        assert short.scores[f"network.{name}"] == pytest.approx(score, rel=1e-6, abs=1e-9)


# --- the estimate --------------------------------------------------------------------------------


def test_a_copied_model_takes_its_own_memory() -> None:
    model, pairs, reference = setting()
    with eval_mode(model) as module:
        plain = pose_problem(module, pairs, reference, memory_limit=2**33)
        own = pose_problem(module, pairs, reference, memory_limit=2**33, own=True)
    assert plain.sizes is not None
    assert own.sizes is not None
    weights = sum(one.nbytes for one in (*model.parameters(), *model.buffers()))
    assert (plain.sizes.copy, own.sizes.copy) == (0, weights)
    counts, names = counts_of(len(pairs), len(reference), reference), list(plain.layers)
    assert (
        proposal_peak(own.sizes, counts, names)
        == proposal_peak(plain.sizes, counts, names) + weights
    )
    peak = collect_peak(plain.sizes, names, 3)
    assert collect_peak(own.sizes, names, 3) == peak + weights
    assert collect_chunk(own.sizes, names, 40, limit_for(peak + weights)) == 3


def test_moments_stay_while_edits_are_tried() -> None:
    model, _, reference = setting()
    about: dict[str, Any] = {"input_shape": reference.shape[1:], "call": "localize"}
    whole = rw.estimate_memory(model, **about, references=40)
    limited = rw.estimate_memory(model, **about, references=40, memory_limit=2 * whole.peak)
    layers = rw.editable_layers(model, reference[:1]).editable.values()
    moments = sum(layer.groups * layer.key_size**2 * 8 for layer in layers)
    kept = whole.phases["trying edits"] - limited.phases["trying edits"]
    none = rw.estimate_memory(model, **about, references=0)
    bare = rw.estimate_memory(model, **about, references=0, memory_limit=2 * whole.peak)
    assert none.phases["trying edits"] - bare.phases["trying edits"] == moments
    assert kept > moments


@pytest.mark.parametrize("call", ["collect", "localize", "rectify"])
def test_a_limit_is_not_estimated_to_be_exceeded(call: str) -> None:
    model, _, reference = setting()
    about: dict[str, Any] = {"input_shape": reference.shape[1:], "call": call, "references": 40}
    whole = rw.estimate_memory(model, **about)
    least = whole.peak
    for percent in range(20, 101, 2):
        limit = whole.peak * percent // 100
        try:
            found = rw.estimate_memory(model, **about, memory_limit=limit)
        except ValueError:
            continue
        least = min(least, limit)
        assert 1.05 * found.peak <= limit  # a twentieth is left free
        assert all(size <= limit for size in found.phases.values())
    assert least < whole.peak


def test_what_was_freed_is_handed_back_between_the_steps(
    trojan: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []
    monkeypatch.setattr("rectify_widgets.engine.model.memory.hand_back", seen.append)
    options: dict[str, Any] = {"reference": trojan.reference}
    peak = rw.estimate_memory(
        trojan.model, trojan.reference.shape[1:], call="localize",
        references=len(trojan.reference),
    ).peak  # fmt: skip
    rw.localize(trojan.model, trojan.pairs[:1], **options)
    assert not seen
    rw.localize(trojan.model, trojan.pairs[:1], **options, memory_limit=2 * peak)
    once = len(seen)
    assert once == 4  # before statistics, sweep, solving and trials
    rw.localize(trojan.model, trojan.pairs[:1], **options, memory_limit=round(0.95 * peak))
    assert len(seen) - once > once


def test_estimate_names_the_phases_and_the_largest_layers() -> None:
    model, _, reference = setting()
    whole = rw.estimate_memory(model, reference.shape[1:], call="localize", references=40)
    assert whole.passes == 1
    assert whole.peak == max(whole.phases.values())
    assert next(iter(whole.largest)) in str(whole)
    assert next(iter(whole.largest)) in whole._repr_html_()
    more = rw.estimate_memory(model, reference.shape[1:], call="rectify", references=40)
    weights = sum(t.numel() * 8 for t in (*model.parameters(), *model.buffers()))
    layers = rw.editable_layers(model, reference[:1]).editable.values()
    factors = sum(4 * layer.groups * layer.key_size**2 * 8 for layer in layers)
    assert more.peak == pytest.approx(whole.peak + weights + factors, rel=0.01)
    limit = a_low_limit()
    less = rw.estimate_memory(
        model, reference.shape[1:], call="localize", references=40, pairs=2, memory_limit=limit
    )
    assert less.passes > 1
    assert less.peak <= limit
    statistics = rw.estimate_memory(model, reference.shape[1:], call="collect", references=40)
    collected = rw.KeyStatistics.collect(model, reference)
    held = sum(one.total.numel() * 8 for one in collected.values())
    assert held < statistics.peak < whole.peak


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"input_shape": 3}, TypeError, "input_shape"),
        ({"input_shape": (3, 8)}, ValueError, "input_shape"),
        ({"input_shape": (3, 8, 0)}, ValueError, "input_shape"),
        ({"call": "evaluate"}, ValueError, "call"),
        ({"pairs": 0}, ValueError, "pairs"),
        ({"references": -1}, ValueError, "references"),
        ({"memory_limit": 0}, ValueError, "memory_limit"),
        ({"memory_limit": "8 GB"}, TypeError, "memory_limit"),
        ({"memory_limit": 10}, ValueError, "want at least"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], words: str) -> None:
    model, _, reference = setting()
    given = {"input_shape": tuple(reference.shape[1:]), **options}
    with pytest.raises(error, match=words):
        rw.estimate_memory(model, **given)


@pytest.mark.parametrize("limit", [0, 10, "8 GB", 1.5, True])
def test_bad_limits(limit: Any) -> None:
    model, pairs, reference = setting()
    with pytest.raises((TypeError, ValueError), match="memory_limit"):
        rw.localize(model, pairs, reference=reference, memory_limit=limit)
    with pytest.raises((TypeError, ValueError), match="memory_limit"):
        rw.rectify(model, pairs, reference=reference, memory_limit=limit)
    with pytest.raises((TypeError, ValueError), match="memory_limit"):
        rw.KeyStatistics.collect(model, reference, memory_limit=limit)


# --- without a limit -----------------------------------------------------------------------------


def free(monkeypatch: pytest.MonkeyPatch, folder: Path, machine: int, container: str) -> None:
    """A machine and a container with so much free memory."""
    meminfo = folder / "meminfo"
    meminfo.write_text(f"MemTotal: 99 kB\nMemAvailable: {machine // 1024} kB\n", encoding="ascii")
    (folder / "memory.max").write_text(container, encoding="ascii")
    (folder / "memory.current").write_text(str(2**20), encoding="ascii")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", folder)


@pytest.mark.parametrize(
    ("machine", "container", "kept"),
    [
        (2**36, "max\n", 2**31),
        (2**30, "max\n", 2**28),
        (2**36, str(2**30 + 2**20), 2**28),
        (2**28, str(2**30), 2**26),
        (2**36, "0", 0),
    ],
)
def test_a_quarter_of_what_is_free_is_kept_and_no_more_than_two_gigabytes(
    machine: int, container: str, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, tmp_path, machine, container)
    assert memory.budget(torch.device("cpu")) == kept


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 600))
def test_moments_are_held_in_parts_that_fit(sizes: list[int], room: int) -> None:
    layers = {
        str(number): EditableLayer(str(number), nn.Linear(size, 2))
        for number, size in enumerate(sizes)
    }
    found = memory.by_moments(layers, room)
    taken = [[4 * layers[name].key_size ** 2 for name in part] for part in found]
    assert [name for part in found for name in part] == list(layers)
    assert all(sum(part) <= room or len(part) == 1 for part in taken)
    for part, following in pairwise(taken):
        assert sum(part) + following[0] > room


def test_with_hardly_any_memory_the_edits_are_the_same(
    trojan: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"reference": trojan.reference, "max_rounds": 2, "target_gap": 0.0}
    whole = rw.rectify(trojan.model, trojan.pairs[:1], **options)
    free(monkeypatch, tmp_path, 2**16, "max")
    some = rw.rectify(trojan.model, trojan.pairs[:1], **options)
    same_repair(some, whole)


def test_large_references_are_fewer() -> None:
    assert most_references(4 * 28 * 28) == 768
    assert most_references(4 * 3 * 224 * 224) == 2**28 // (4 * 3 * 224 * 224)
    assert most_references(2**30) == 64
