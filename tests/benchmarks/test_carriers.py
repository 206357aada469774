"""The benchmark of hidden backdoors: its rows, and the peer that it stands beside."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from rectify_widgets.cases.triggers import Patch
from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks import carriers
from tests.benchmarks.carriers import Suspect, measure_carriers
from tests.benchmarks.neural_cleanse import neural_cleanse
from tests.hidden import CLASSES, TARGET, Blobs, references


def suspect(name: str, seed: int) -> Suspect:
    del seed
    trigger = Patch(torch.ones(1, 2, 2), 0, 0) if name == "backdoor" else None
    images, labels = references(), torch.arange(120) % CLASSES
    model = Blobs(40.0 if name == "backdoor" else 0.0).eval()
    return Suspect(name, model, images, (images, labels), trigger, TARGET)


def test_rows_say_what_was_found_and_what_a_repair_from_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(carriers, "SHIPPED", ("backdoor", "healthy"))
    monkeypatch.setattr(carriers, "shipped", suspect)
    options = Namespace(data=None, network_seed=0, cache=None)
    table, peer = measure_carriers(options, Monitor())
    backdoor, healthy = table.rows
    assert backdoor["first"] == f"{TARGET} (right)"
    assert backdoor["accused"] == str(TARGET)
    before, after = str(backdoor["ASR"]).split(" → ")
    assert float(before) == 100.0
    assert float(after) < 5.0
    assert healthy["accused"] == "none"
    assert healthy["ASR"] == ""
    assert [row["network"] for row in peer.rows] == ["backdoor", "healthy"]


def test_peer_finds_the_smallest_mask() -> None:
    model = Blobs(40.0)
    sizes, indices = neural_cleanse(model, references(), 0)
    assert sizes.shape == indices.shape == (CLASSES,)
    assert int(sizes.argmin()) == int(indices.argmax()) == TARGET
    median = sizes.median()
    assert float(indices[sizes == median]) == 0.0
    assert all(weight.grad is None for weight in model.parameters())
