"""The memory benchmark: tables from made-up peaks, and each call made on a small network."""

from __future__ import annotations

import argparse
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks import first_edit, memory
from tests.benchmarks.memory import DrawnImages, Job, Spent
from tests.benchmarks.speed_fakes import SPAN, capped
from tests.benchmarks.tables import Table

pytestmark = pytest.mark.usefixtures("one_thread")

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
    monkeypatch.setattr(memory, "resnet", lambda _: Small().eval())


def options(**changes: object) -> argparse.Namespace:
    given = argparse.Namespace(
        only=[SMALL], device="cpu", threads=1, references=16, most_memory=1.5, share=None, out=None
    )
    return argparse.Namespace(**{**vars(given), **changes})


def test_images_are_drawn_alike_each_time() -> None:
    images = DrawnImages(2, 8)
    assert torch.equal(images[1], images[1])
    assert not torch.equal(images[0], images[1])
    assert [image.shape for image in images] == [(3, 8, 8)] * 2  # type: ignore[attr-defined]


def test_rows_hold_the_estimated_peak_against_the_real_one() -> None:
    real = {"collect": 125, "localize": 80, "rectify": 79}
    jobs: list[Job] = []

    def run(job: Job) -> Spent:
        jobs.append(job)
        return Spent(SPAN, real[job.call] * 10**6, 100 * 10**6)

    table = memory.measure_memory(options(), Monitor(), run)
    assert [row["estimate of real"] for row in table.rows] == ["0.80", "1.25", "1.27"]
    assert [row["within 25 %"] for row in table.rows] == ["yes", "yes", "no"]
    assert [row["real MB"] for row in table.rows] == ["125", "80", "79"]
    assert jobs[0] == Job(SMALL, "collect", 16, threads=1, most_memory=1_500_000_000)
    assert [job.call for job in jobs] == list(memory.CALLS)


def test_calls_with_a_limit_stand_beside_those_without() -> None:
    def run(job: Job) -> Spent:
        limit = None if job.share is None else round(job.share * 10**8)
        return Spent(SPAN, 9 * 10**7, limit or 10**8, limit)

    table = memory.measure_memory(options(only=[SMALL, "localize"], share=0.5), Monitor(), run)
    assert [row["limit of estimate"] for row in table.rows] == ["", "0.5"]
    assert [row["memory_limit MB"] for row in table.rows] == ["", "50"]
    assert [row["estimate MB"] for row in table.rows] == ["100", "50"]
    assert [row["limit kept"] for row in table.rows] == ["", "no"]
    table = memory.measure_memory(options(only=[SMALL, "localize"], share=0.9), Monitor(), run)
    assert [row["limit kept"] for row in table.rows] == ["", "yes"]


def test_a_limit_that_is_too_small_is_refused() -> None:
    def run(job: Job) -> Spent:
        if job.share is not None:
            raise ValueError(message)
        return Spent(SPAN, 1, 1)

    message, given = "memory_limit: got 1 KiB", options(only=[SMALL, "collect"], share=0.1)
    table = memory.measure_memory(given, Monitor(), run)
    assert [row["limit kept"] for row in table.rows] == ["", "refused"]
    assert [row["real MB"] for row in table.rows] == ["1e-06", ""]
    message = "images: no"
    with pytest.raises(ValueError, match="images: no"):
        memory.measure_memory(given, Monitor(), run)


def test_rows_are_kept_as_soon_as_they_are_measured(tmp_path: Path) -> None:
    def run(job: Job) -> Spent:
        if job.call == "rectify":
            raise MemoryError
        return Spent(SPAN, 1, 1)

    with pytest.raises(MemoryError):
        memory.measure_memory(options(out=tmp_path), Monitor(), run)
    again = options(only=[SMALL, "collect"], out=tmp_path)
    table = memory.measure_memory(again, Monitor(), lambda _: Spent(SPAN, 1, 2))
    assert [row["call"] for row in table.rows] == ["collect", "localize"]
    assert [row["estimate of real"] for row in table.rows] == ["2.00", "1.00"]


def test_the_first_edit_is_made_in_closed_form_by_defaults() -> None:
    made: list[Job] = []

    def run(job: Job) -> Spent:
        made.append(job)
        return Spent(SPAN, 27 * 10**8, 1)

    given = options(only=[memory.LITE, "vit_b_16"])
    table = first_edit.measure_first_edit(given, Monitor(), run)
    assert [row["GB"] for row in table.rows] == ["2.7", "2.7"]
    assert [row["at most GB"] for row in table.rows] == [2.6, 3.5]
    assert [(job.network, job.share, job.refine_steps) for job in made] == [
        (memory.LITE, None, 0),
        ("vit_b_16", None, 0),
    ]
    with pytest.raises(ValueError, match="only: got 'resnet18-cifar'"):
        first_edit.measure_first_edit(options(), Monitor(), run)


def jobs(*only: str) -> list[tuple[str, str]]:
    """Network and call of each job that the command makes."""
    made: list[tuple[str, str]] = []

    def run(job: Job) -> Spent:
        made.append((job.network, job.call))
        return Spent(SPAN, 1, 1)

    memory.measure_memory(options(only=list(only)), Monitor(), run)
    return made


def test_networks_and_calls_may_be_named() -> None:
    assert jobs(SMALL, "collect") == [(SMALL, "collect")]
    assert jobs(SMALL) == [(SMALL, call) for call in memory.CALLS]
    with pytest.raises(ValueError, match=r"only: got 'localise'.*'localize'"):
        jobs("localise")


def test_without_torchvision_there_are_networks_of_our_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(memory, "find_spec", lambda _: None)
    assert [name for name, _ in jobs("localize")] == list(memory.OWN)
    with pytest.raises(ValueError, match="vit_b_16 comes with torchvision"):
        memory.build("vit_b_16")
    vision = types.ModuleType("torchvision")
    vision.models = types.SimpleNamespace(  # type: ignore[attr-defined]
        resnet50=lambda weights: Small().train()
    )
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setattr(memory, "find_spec", lambda _: vision)
    assert [name for name, _ in jobs("localize")] == list(memory.VISION)
    assert not memory.build("resnet50").training


def test_the_corruption_is_made_to_change_the_class() -> None:
    model = Small().eval()
    with torch.no_grad():
        # The last class, whatever the input.
        model.get_parameter("4.bias").add_(100 * torch.arange(4))
    clean = torch.rand(1, 3, 8, 8)
    pairs = rw.SamplePairs(clean.flip(3) * 0.5, clean)
    memory.sensitize(model, pairs)
    with torch.no_grad():
        before, after = model(pairs.clean), model(pairs.corrupted)
    assert float((after - before).std()) == pytest.approx(memory.REACTION, rel=1e-4)
    assert before.argmax() != after.argmax()
    assert rw.rectify(model, pairs, reference=clean, target_gap=0.0, max_rounds=1).steps


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
    spent = memory.perform(job)
    assert spent.span.seconds > 0
    assert spent.span.processor > 0
    assert spent.estimate == rw.estimate_memory(Small(), (3, 32, 32), call=call, references=6).peak
    limited = memory.perform(replace(job, share=2.0))
    assert limited.limit == 2 * spent.estimate
    assert made == [(call, None), (call, limited.limit)]


def test_a_device_whose_peaks_are_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "build", lambda _: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"device: got 'meta'.* want 'cpu' on Linux, or 'cuda'"):
        memory.perform(Job(SMALL, "collect", 1, device="meta"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts what is held elsewhere")
def test_a_job_has_a_process_of_its_own_and_keeps_to_its_cap() -> None:
    spent = memory.in_process(Job(SMALL, "collect", 1, most_memory=3 * 2**30), capped)
    assert spent.bytes == 16 * 2**20
    assert spent.estimate not in {0, os.getpid()}


def put(table: Table, out: Path | None, *rows: str) -> list[str]:
    """Put rows like ``p21``, whose key are the first two signs; the table's rows, likewise."""
    cells = [dict(zip("abc", row, strict=True)) for row in rows]
    memory.keep_rows(table, out, cells, key=["a", "b"], order=lambda row: str(row["b"]))
    return ["".join(map(str, row.values())) for row in table.rows]


@pytest.mark.parametrize("kept", [True, False])
def test_rows_of_the_same_key_are_replaced(tmp_path: Path, *, kept: bool) -> None:
    table, out = Table("x y", "note"), tmp_path if kept else None
    assert put(table, out, "p21", "p22") == ["p21", "p22"]
    assert put(table, out, "p13") == ["p13", "p21", "p22"]
    assert put(table, out, "p24") == ["p13", "p24"]
    assert put(table, out, "q25") == ["p13", "p24", "q25"]
    assert {path.name for path in tmp_path.iterdir()} == ({"x-y.md", "x-y.csv"} if kept else set())


def test_a_new_table_goes_on_where_the_folder_ends(tmp_path: Path) -> None:
    put(Table("x", "note"), tmp_path, "p11", "p22")
    assert put(Table("x", "note"), tmp_path, "p13") == ["p13", "p22"]
    assert "| p | 1 | 3 |" in (tmp_path / "x.md").read_text(encoding="utf-8")
    assert put(Table("x", "another note"), tmp_path, "p14") == ["p14"]
    table = Table("x", "another note")
    memory.keep_rows(table, tmp_path, [{"a": "p", "c": 5}], key=["a"], order=str)
    assert len(table.rows) == 1  # those with other columns are not taken
