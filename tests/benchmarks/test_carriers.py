"""The benchmark of hidden backdoors: its rows, and the peer that it stands beside."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from rectify_widgets.cases.triggers import Patch
from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks import carriers
from tests.benchmarks.carriers import Suspect, measure_carriers
from tests.benchmarks.neural_cleanse import neural_cleanse
from tests.benchmarks.records import read
from tests.hidden import CLASSES, TARGET, Blobs, references


def suspect(name: str, seed: int) -> Suspect:
    del seed
    trigger = Patch(torch.ones(1, 2, 2), 0, 0) if name == "backdoor" else None
    images, labels = references(), torch.arange(120) % CLASSES
    model = Blobs(40.0 if name == "backdoor" else 0.0).eval()
    return Suspect(name, model, images, (images, labels), trigger, TARGET)


def test_rows_say_what_was_found_and_what_a_repair_from_it_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(carriers, "SHIPPED", ("backdoor", "none"))
    monkeypatch.setattr(carriers, "shipped", suspect)
    options = Namespace(data=None, network_seed=3, seeds=1, cache=None, cases=None, out=tmp_path)
    measure_carriers(options, Monitor())
    options.seeds = 2
    table, peer = measure_carriers(options, Monitor())
    assert [record["seed"] for record in read(tmp_path / "carriers")] == [3, 3, 4, 4]
    backdoor, healthy = table.rows
    assert [backdoor[name] for name in ("right", "accused", "others")] == ["2 of 2", "2 of 2", 0]
    assert backdoor["ASR before"] == "100.0 ± 0.0"
    assert float(str(backdoor["ASR"]).split(" ± ", maxsplit=1)[0]) < 5.0
    assert [healthy[name] for name in ("right", "accused", "others")] == ["–", "0 of 2", 0]
    assert healthy["ASR"] == "–"
    assert [(row["network"], row["right"]) for row in peer.rows] == [
        ("backdoor", "2 of 2"), ("none", "–"),
    ]  # fmt: skip
    monkeypatch.setattr(carriers, "measure_suspect", None)  # all is on record
    options.cases, options.seeds = ["none"], 1
    assert [one.rows for one in measure_carriers(options, Monitor())] == [table.rows, peer.rows]


def test_peer_finds_the_smallest_mask() -> None:
    model = Blobs(40.0)
    sizes, indices = neural_cleanse(model, references(), 0)
    assert sizes.shape == indices.shape == (CLASSES,)
    assert int(sizes.argmin()) == int(indices.argmax()) == TARGET
    median = sizes.median()
    assert float(indices[sizes == median]) == 0.0
    assert all(weight.grad is None for weight in model.parameters())
