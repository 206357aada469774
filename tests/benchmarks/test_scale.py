"""What large jobs are calculated to cost, against published counts and against what is really formed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.catalog import editable_layers
from tests.benchmarks.scale import (
    H100,
    MODES,
    NETWORKS,
    Term,
    Transformer,
    calculate,
    main,
    terms,
    upper_half,
)

SMALL = Transformer("small", blocks=2, width=512, hidden=800, patch=3, image=30, classes=7)


class Block(nn.Module):
    """Attention of one head and two linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=2)
        x = x + self.out((query @ key.mT).softmax(dim=2) @ value)
        change: Tensor = self.second(self.first(x).relu())
        return x + change


class Network(nn.Module):
    """The transformer that a description stands for."""

    def __init__(self, like: Transformer) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, like.width, like.patch, like.patch)
        self.blocks = nn.Sequential(*(Block(like.width, like.hidden) for _ in range(like.blocks)))
        self.head = nn.Linear(like.width, like.classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).mT
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        scores: Tensor = self.head(self.blocks(tokens)[:, 0])
        return scores


@pytest.fixture(scope="module")
def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(SMALL).eval()


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 30, 30, generator=torch.Generator().manual_seed(1))


def test_published_counts() -> None:
    """Multiply-adds that torchvision's pages give for these networks, in G."""
    for name, published in (("vit-b", 17.56), ("vit-l", 61.55)):
        assert NETWORKS[name].forward() / 1e9 == pytest.approx(published, rel=2e-3)


def test_forward_against_a_counter(network: Network) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(pictures(1))
    assert counter.get_total_flops() == 2 * SMALL.forward()


def test_layers_are_those_that_can_be_edited(network: Network) -> None:
    catalog = editable_layers(network, pictures(1))
    told = sorted((part.key, part.outputs) for part in SMALL.layers() for _ in range(part.number))
    assert told == sorted((layer.key_size, layer.outputs) for layer in catalog)


class Formed(TorchDispatchMode):
    """Counts the multiply-adds of products that are added in place, as second moments are."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {torch.ops.aten.addmm_.default, torch.ops.aten.baddbmm_.default}:
            self.total += args[1].numel() * args[2].shape[-1]
        return func(*args, **(kwargs or {}))


@contextmanager
def formed() -> Iterator[Formed]:
    with Formed() as mode:  # type: ignore[no-untyped-call]
        yield mode


@pytest.mark.parametrize("references", [3, 110])
def test_moments_against_what_is_formed(network: Network, references: int) -> None:
    """With few references all positions are taken, with many a sample; above `BLOCK` blocks."""
    with formed() as mode:
        found = KeyStatistics.collect(network, pictures(references), batch_size=100)
    taken = {SMALL.taken(part, references) for part in SMALL.layers()}
    assert taken == ({1, 72, 101} if references == 3 else {1, 64})
    assert mode.total == references * SMALL.moments(references)
    assert SMALL.moment_bytes() == sum(part.total.numel() * 4 for part in found.values())


def test_upper_half() -> None:
    assert upper_half(100) == 100**2
    assert upper_half(768) == 384 * 768 + 384 * 384
    assert 0.5 < upper_half(4096) / 4096**2 < 0.56


def seconds(found: list[Term], what: str, mode: str = "fp32") -> float:
    (term,) = [t for t in found if f"{t.call} {t.what}".startswith(what)]
    return term.seconds[mode]


def test_seconds_follow_from_the_data_sheet() -> None:
    vit = NETWORKS["vit-l"]
    one = terms(vit, H100, 1, 1_000_000, 10_000)
    # By hand: 10⁶ × 2 × 61.55 G at half of 67 T; 1.92 GB read and written 15,625 times.
    assert seconds(one, "collect forward") == pytest.approx(3675, rel=1e-2)
    assert seconds(one, "collect forward", "bf16") == pytest.approx(3675 * 67 / 989.4, rel=1e-2)
    assert seconds(one, "collect second moments in memory") == pytest.approx(25.6, rel=1e-2)
    assert seconds(one, "collect to the GPUs") == pytest.approx(602_112e6 / 64e9 / 0.7, rel=1e-2)
    assert seconds(one, "collect all-reduce") == 0.0
    assert seconds(one, "collect reading") == 1e6 / 16 / 250
    eight = terms(vit, H100, 8, 1_000_000, 10_000)
    for what in ("collect forward", "collect reading", "localize sweep", "evaluate forward"):
        assert seconds(eight, what) == pytest.approx(seconds(one, what) / 8)
    assert seconds(eight, "localize factorising") == seconds(one, "localize factorising")
    # Each GPU sends 2 · 7/8 of the moments.
    assert seconds(eight, "collect all-reduce") == pytest.approx(1.75 * 1.92 / 450 / 0.7, rel=1e-2)
    more = terms(vit, H100, 8, 4_000_000, 10_000)
    for what in ("collect forward", "collect reading"):
        assert seconds(more, what) == pytest.approx(4 * seconds(eight, what))
    slow = terms(vit, replace(H100, products=0.25), 8, 1_000_000, 10_000)
    assert seconds(slow, "collect forward") == 2 * seconds(eight, "collect forward")


def test_the_table_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table = calculate()
    assert table.note.startswith("Calculated, not measured: ViT-L/16 (61.6 G multiply-adds")
    assert {row["call"] for row in table.rows} == {"collect", "localize", "evaluate"}
    totals = {row["call"]: row for row in table.rows if row["what"] == "sum; longest"}
    assert str(totals["collect"]["fp32, s"]).endswith("; forward")
    assert set(totals["collect"]) == {"call", "what", "work", *(f"{mode}, s" for mode in MODES)}
    main(["--gpus", "1", "--network", "vit-b", "--cores", "4", "--references", "5000"])
    printed = capsys.readouterr().out
    assert "ViT-B/16" in printed
    assert "5,000 references" in printed
    assert "1 × H100 SXM" in printed
    assert "reading and decoding, 4 cores" in printed
