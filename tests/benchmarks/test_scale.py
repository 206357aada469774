"""What large jobs are calculated to cost, against published counts and against what is really formed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.catalog import editable_layers
from tests.benchmarks import scale
from tests.benchmarks.networks import TransformerBlock
from tests.benchmarks.scale import H100, VIT_B, VIT_L, Transformer

SMALL = Transformer("small", blocks=2, width=512, hidden=1024, patch=3, image=30, classes=7)


class Network(nn.Module):
    """The transformer that a description stands for."""

    def __init__(self, like: Transformer) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, like.width, like.patch, like.patch)
        self.blocks = nn.Sequential(*(TransformerBlock(like.width, 1) for _ in range(like.blocks)))
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


def test_counts_of_a_forward_pass(network: Network) -> None:
    """Multiply-adds that torchvision's pages give, in G, and those of a counter."""
    for vit, published in ((VIT_B, 17.56), (VIT_L, 61.55)):
        assert vit.forward() / 1e9 == pytest.approx(published, rel=2e-3)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # others are not counted
        network(pictures(1))
    assert counter.get_total_flops() == 2 * SMALL.forward()


def test_layers_are_those_that_can_be_edited(network: Network) -> None:
    catalog = editable_layers(network, pictures(1))
    described = [(part.key, part.outputs) for part in SMALL.layers() for _ in range(part.number)]
    assert sorted(described) == sorted((layer.key_size, layer.outputs) for layer in catalog)


class Formed(TorchDispatchMode):
    """Counts the multiply-adds of products that are added in place, as second moments are."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {torch.ops.aten.addmm_.default, torch.ops.aten.baddbmm_.default}:
            self.total += args[1].numel() * args[2].shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("references", [3, 130])
def test_moments_against_what_is_formed(network: Network, references: int) -> None:
    """With few references all positions are taken, with many a sample; above `BLOCK` blocks."""
    mode = Formed()  # type: ignore[no-untyped-call]
    with mode:
        found = KeyStatistics.collect(network, pictures(references), batch_size=100)
    taken = {SMALL.taken(part, references) for part in SMALL.layers()}
    assert taken == ({1, 72, 101} if references == 3 else {1, 64})
    assert mode.total == references * SMALL.moments(references)
    assert SMALL.moment_bytes() == sum(part.total.numel() * 4 for part in found.values())


def seconds(machine: scale.Machine, gpus: int, references: int, what: str) -> dict[str, float]:
    terms = scale.terms(VIT_L, machine, gpus, references, 10_000)
    (term,) = [one for one in terms if f"{one.call} {one.what}".startswith(what)]
    return term.seconds


def test_seconds_follow_from_the_data_sheet() -> None:
    # By hand: 10⁶ × 2 × 61.55 G at half of 67 T; 1.92 GB read and written 15,625 times.
    for what, wanted in (
        ("collect forward", 3675),
        ("collect second moments in memory", 25.6),
        ("collect to the GPUs", 602_112e6 / 64e9 / 0.7),
        ("collect all-reduce", 0.0),
        ("collect reading", 1e6 / 16 / 250),
    ):
        assert seconds(H100, 1, 10**6, what)["fp32"] == pytest.approx(wanted, rel=1e-2)
    faster = seconds(H100, 1, 10**6, "collect forward")["bf16"]
    assert faster == pytest.approx(3675 * 67 / 989.4, rel=1e-2)
    # Each GPU sends 2 · 7/8 of the moments.
    sent = seconds(H100, 8, 10**6, "collect all-reduce")["fp32"]
    assert sent == pytest.approx(1.75 * 1.92 / 450 / 0.7, rel=1e-2)


@pytest.mark.parametrize(
    ("what", "gpus", "references"),
    [
        ("collect forward", 1 / 8, 4), ("collect reading", 1 / 8, 4),
        ("localize sweep", 1 / 8, 1), ("evaluate forward", 1 / 8, 1),
        ("localize factorising", 1, 1),
    ],
)  # fmt: skip
def test_seconds_by_gpus_and_references(what: str, gpus: float, references: float) -> None:
    """Times as long on eight GPUs, and with four times the references."""
    one, eight, more, slow = (
        seconds(machine, count, number, what)["fp32"]
        for machine, count, number in (
            (H100, 1, 10**6), (H100, 8, 10**6), (H100, 1, 4 * 10**6),
            (replace(H100, products=0.25), 1, 10**6),
        )
    )  # fmt: skip
    assert eight / one == pytest.approx(gpus)
    assert more / one == pytest.approx(references)
    assert slow / one == pytest.approx(1 if "reading" in what or "factorising" in what else 2)


def test_the_table_says_what_it_is() -> None:
    table = scale.calculate()
    assert table.note.startswith("Calculated, not measured: ViT-L/16 (61.6 G multiply-adds")
    assert {row["call"] for row in table.rows} == {"collect", "localize", "evaluate"}
    totals = {row["call"]: row for row in table.rows if row["what"] == "sum; longest"}
    assert str(totals["collect"]["fp32, s"]).endswith("; forward")
    columns = {"call", "what", "work", *(f"{mode}, s" for mode in scale.MODES)}
    assert set(totals["collect"]) == columns
    other = scale.calculate(VIT_B, replace(H100, cores=4), 1, 5000).markdown()
    for words in ("ViT-B/16", "5,000 references", "1 × H100 SXM", "reading and decoding, 4 cores"):
        assert words in other
