"""The memory benchmark and the growth with references: tables from made-up peaks, and one real one."""

from __future__ import annotations

import argparse
import os
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

import rectify_widgets as rw
from rectify_widgets.benchmarks import memory, speed_references
from rectify_widgets.benchmarks.memory import Drawn, Job, Spent
from rectify_widgets.benchmarks.speed_bench import Bench, Sizes
from rectify_widgets.benchmarks.speed_timing import Clock
from rectify_widgets.engine.progress import Monitor

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

SMALL = "resnet18-cifar"


class Small(nn.Sequential):
    """Takes images of any size; its one hidden layer has keys of 27 numbers."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 4),
        )  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "network", lambda _: Small().eval())


def options(**changes: object) -> argparse.Namespace:
    given = {
        "only": None,
        "device": "cpu",
        "threads": 1,
        "references": 16,
        "most_memory": 1.5,
        "share": None,
    }
    return argparse.Namespace(**{**given, **changes})


def test_images_are_drawn_alike_each_time() -> None:
    images = Drawn(2, 8)
    assert torch.equal(images[1], images[1])
    assert not torch.equal(images[0], images[1])
    assert [image.shape for image in images] == [(3, 8, 8)] * 2  # type: ignore[attr-defined]


def test_rows_hold_the_foretold_peak_against_the_real_one() -> None:
    real = {"collect": 125, "localize": 80, "rectify": 79}
    jobs: list[Job] = []

    def run(job: Job) -> Spent:
        jobs.append(job)
        return Spent(2.0, 1.0, real[job.call] * 10**6, 100 * 10**6)

    table = memory.measure_memory(options(only=[SMALL]), Monitor(), run)
    assert [row["foretold of real"] for row in table.rows] == ["0.80", "1.25", "1.27"]
    assert [row["within 25 %"] for row in table.rows] == ["yes", "yes", "no"]
    assert [row["real MB"] for row in table.rows] == ["125", "80", "79"]
    assert jobs[0] == Job(SMALL, "collect", 16, threads=1, bound=1_500_000_000)
    assert [job.call for job in jobs] == list(memory.CALLS)


def test_calls_with_a_limit_stand_beside_those_without() -> None:
    def run(job: Job) -> Spent:
        limit = None if job.share is None else round(job.share * 10**8)
        return Spent(1.0, 1.0, 10**8, limit or 10**8, limit)

    table = memory.measure_memory(options(only=[SMALL, "localize"], share=0.5), Monitor(), run)
    assert [row["memory_limit MB"] for row in table.rows] == ["", "50"]
    assert [row["foretold MB"] for row in table.rows] == ["100", "50"]


def test_networks_and_calls_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "networks", lambda: ["vit_b_16", SMALL])

    def jobs(*only: str) -> list[tuple[str, str]]:
        seen: list[tuple[str, str]] = []

        def run(job: Job) -> Spent:
            seen.append((job.network, job.call))
            return Spent(1.0, 1.0, 1, 1)

        memory.measure_memory(options(only=list(only)), Monitor(), run)
        return seen

    assert jobs("localize") == [("vit_b_16", "localize"), (SMALL, "localize")]
    assert jobs(SMALL, "collect") == [(SMALL, "collect")]
    assert len(jobs()) == 2 * len(memory.CALLS)
    with pytest.raises(ValueError, match=r"only: got 'localise'.*'localize'"):
        jobs("localise")


def test_without_torchvision_there_are_networks_of_our_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert memory.networks() == list(memory.OWN)
    with pytest.raises(ValueError, match="vit_b_16 comes with torchvision"):
        memory.build("vit_b_16")
    vision = types.ModuleType("torchvision")
    vision.models = types.SimpleNamespace(  # type: ignore[attr-defined]
        resnet50=lambda weights: Small().train()
    )
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    assert memory.networks() == list(memory.VISION)
    assert not memory.build("resnet50").training


def test_the_corruption_is_made_to_change_the_scores() -> None:
    model = Small().eval()
    clean = torch.rand(1, 3, 8, 8)
    pairs = rw.SamplePairs(clean.flip(3) * 0.5, clean)
    memory.react(model, pairs)
    with torch.no_grad():
        spread = (model(pairs.corrupted) - model(pairs.clean)).std()
    assert float(spread) == pytest.approx(memory.REACTION, rel=1e-4)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("call", memory.CALLS)
@pytest.mark.parametrize("workers", [None, 0])
def test_every_call_is_made(
    call: str, workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, object]] = []
    for name, owner in (("collect", rw.KeyStatistics), ("localize", memory), ("rectify", memory)):
        real = getattr(owner, name)

        def spy(
            *arguments: object, name: str = name, real: object = real, **given: object
        ) -> object:
            made.append((name, given["memory_limit"]))
            return real(*arguments, **given)  # type: ignore[operator]

        monkeypatch.setattr(owner, name, spy)
    job = Job(SMALL, call, 6, workers=workers, threads=1)
    peak = memory.perform(job)
    assert peak.seconds > 0
    assert peak.processor > 0
    assert peak.foretold == rw.estimate_memory(Small(), (3, 32, 32), call=call, references=6).peak
    limited = memory.perform(replace(job, share=2.0))
    assert limited.limit == 2 * peak.foretold
    assert made == [(call, None), (call, limited.limit)]


def test_a_device_whose_peaks_cannot_be_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "build", lambda _: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"device: got 'meta'.* want 'cpu' on Linux, or 'cuda'"):
        memory.perform(Job(SMALL, "collect", 1, device="meta"))


def bounded(job: Job) -> Spent:
    """What a process answers that takes 16 MB, and then more than its limit."""
    assert job.bound is not None
    memory._bound(job.bound)
    held = torch.ones(4 * 2**20)
    try:
        torch.ones(job.bound)
    except RuntimeError:
        return Spent(float(os.getpid()), 1.0, held.nbytes, 0)
    return Spent(0.0, 0.0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts what is held elsewhere")
def test_a_job_has_a_process_of_its_own_and_keeps_to_its_limit() -> None:
    peak = memory.in_process(Job(SMALL, "collect", 1, bound=3 * 2**30), bounded)
    assert peak.bytes == 16 * 2**20
    assert peak.seconds not in {0.0, float(os.getpid())}


def test_growth_with_references() -> None:
    jobs: list[Job] = []

    def run(job: Job) -> Spent:
        jobs.append(job)
        return Spent(9.0, 0.5 * job.references, 10**8 + job.references * 10**5, 1)

    bench = Bench(
        Clock(torch.device("cpu")), threads=1, workers=3, sizes=replace(Sizes(), streamed=10)
    )
    rows = speed_references.measure_references(bench, run)
    assert [job.references for job in jobs] == [10, 40, 160]
    assert {(job.workers, job.threads, job.call) for job in jobs} == {(3, 1, "collect")}
    assert [row["processor, times"] for row in rows] == ["1×", "4×", "16×"]
    assert [row["peak MB"] for row in rows] == ["101", "104", "116"]
    assert [row["peak, times"] for row in rows] == ["1×", "1.03×", "1.15×"]
    assert {row["processor ms a reference"] for row in rows} == {"500"}
    assert {row["seconds"] for row in rows} == {"9"}
