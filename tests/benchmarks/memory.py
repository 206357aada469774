"""The real peak of memory of collecting, localising and rectifying, beside the estimated one.

Imports the engine and this folder's networks and tables; torchvision where it is installed.  Each
peak is that of a fresh process, above what it held just before the call: resident memory on a CPU,
allocated tensors on a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rectify_widgets.cases import pretrained
from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.estimates import CALLS, estimate_memory
from rectify_widgets.engine.find.localization import localize
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks.networks import resnet
from tests.benchmarks.peaks import check_peaks, peak_memory
from tests.benchmarks.speed_timing import Span, describe, three_digits, time_once
from tests.benchmarks.tables import Cell, Row, Table

MEGA, GIGA = 1e6, 1e9
VISION = ("resnet50", "efficientnet_b4", "vit_b_16")
"""Networks of torchvision, with 224×224 pixels."""
LITE = "efficientnet_lite0"
"""The one whose weights a package brings, with 224×224 pixels."""
OWN = {"resnet18-cifar": 18, "resnet50-cifar": 50}
"""Networks of this folder, with 32×32 pixels."""
NETWORKS = (*VISION, *OWN, LITE)
TOLERANCE = 0.25
"""How far the estimated peak may be from the real one."""
WITHIN = f"within {100 * TOLERANCE:.0f} %"
SHARE = "limit of estimate"
"""Column of the share of the estimated peak that a call gets."""
REACTION = 5.0
"""Spread of what the corruption does to the scores; untrained networks hardly react otherwise."""


@dataclass(frozen=True)
class Job:
    """One call on one network, to be made in a process of its own.

    Args:
        network: of `NETWORKS`.
        call: of `CALLS`.
        references: how many.
        workers: of the loader that the references come from; None gives a tensor.
        device, threads: where, and with how many threads.
        most_memory: bytes that the process may take; None for as many as there are.
        share: of the estimated peak that the call gets as its ``memory_limit``; None for no limit.
        refine_steps: of a rectification.
    """

    network: str
    call: str
    references: int
    workers: int | None = None
    device: str = "cpu"
    threads: int = 2
    most_memory: int | None = None
    share: float | None = None
    refine_steps: int | None = None

    @property
    def side(self) -> int:
        """Pixels of an edge of its images."""
        return 32 if self.network in OWN else 224


@dataclass(frozen=True)
class Spent:
    """What a call took: time and bytes at its peak, above those held before.

    ``estimate`` is what `estimate_memory` says of the peak, ``limit`` the call's ``memory_limit``.
    """

    span: Span
    bytes: int
    estimate: int
    limit: int | None = None


class DrawnImages(Dataset[Tensor]):
    """Random images that are made when they are asked for, so that none is held in memory."""

    def __init__(self, count: int, side: int) -> None:
        self._count, self._side = count, side

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Tensor:
        if row >= self._count:
            raise IndexError(row)
        generator = torch.Generator().manual_seed(row)
        return torch.rand(3, self._side, self._side, generator=generator)


def build(name: str) -> nn.Module:
    """A network by name, in evaluation mode, all but one untrained.

    Raises:
        ImportError: the package with its weights is not installed.
        ValueError: it needs torchvision, which is not installed.
    """
    if name == LITE:
        return pretrained.network("lite0")
    if name in OWN:
        return resnet(OWN[name])
    try:
        from torchvision import models
    except ImportError:
        raise ValueError(
            f"network: {name} comes with torchvision, which is not installed; "
            "pip install 'rectify_widgets[vision]'"
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(models, name)(weights=None)
    return model.eval()


def sensitize(model: nn.Module, pairs: SamplePairs) -> None:
    """Draw the last linear layer anew, stretched and centred, so that the corruption changes the class.

    Memory does not depend on the numbers, but a rectification with nothing to do ends at once.
    """
    last = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        last.weight.copy_(torch.randn(last.weight.shape))  # some begin with zeros
        last.weight *= REACTION / float((model(pairs.corrupted) - model(pairs.clean)).std())
        # What all inputs have in common is far larger; about the middle the best class differs.
        middle = (model(pairs.corrupted) + model(pairs.clean)).mean(dim=0) / 2
        last.bias.sub_(middle)


def perform(job: Job) -> Spent:
    """Make the call in this process, which should be a fresh one.

    Raises:
        ValueError: peaks are not known here, or no call can keep to so small a ``memory_limit``.
    """
    device = torch.device(job.device)
    check_peaks(device)
    if job.most_memory is not None:
        cap(job.most_memory)
    torch.set_num_threads(job.threads)
    model = build(job.network).to(device)
    images = DrawnImages(job.references, job.side)
    clean = DrawnImages(2, job.side)[1][None].to(device)
    corrupted = clean.clone()
    corrupted[..., -job.side // 4 :, -job.side // 4 :] = 1.0
    pairs = SamplePairs(corrupted, clean)
    reference: Tensor | DataLoader[Any] = (
        torch.stack([images[row] for row in range(len(images))]).to(device)
        if job.workers is None
        else DataLoader(images, batch_size=64, num_workers=job.workers)
    )
    sensitize(model, pairs)  # the first pass, which loads libraries and plans

    def estimate(limit: int | None) -> int:
        return estimate_memory(
            model, clean.shape[1:], call=job.call, references=job.references, memory_limit=limit
        ).peak

    limit = None if job.share is None else round(job.share * estimate(None))
    estimated = estimate(limit)
    calls: dict[str, Callable[[], object]] = {
        "collect": lambda: KeyStatistics.collect(model, reference, memory_limit=limit),
        "localize": lambda: localize(model, pairs, reference=reference, memory_limit=limit),
        "rectify": lambda: rectify(
            model,
            pairs,
            reference=reference,
            target_gap=0.0,
            max_rounds=1,
            memory_limit=limit,
            refine_steps=job.refine_steps,
        ),
    }
    with peak_memory(device) as peak:
        span = time_once(calls[job.call])
    assert peak.bytes is not None
    return Spent(span, peak.bytes, estimated, limit)


def in_process(job: Job, work: Callable[[Job], Spent] = perform) -> Spent:
    """Make the call, or do other ``work``, in a fresh process.

    Raises:
        BrokenProcessPool: it was killed, as a rule for want of memory.
        RuntimeError, MemoryError: it met its cap.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, job).result()


def cap(most_memory: int) -> None:
    """Have this process fail rather than take more bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (most_memory, most_memory))


def measure_memory(
    options: argparse.Namespace, monitor: Monitor, run: Callable[[Job], Spent] = in_process
) -> Table:
    """A row for each network and call: the real peak against the estimated one.

    ``options.only`` names networks, calls, or both.  With ``options.share`` each call is made once
    more with a ``memory_limit``.  Rows are kept in ``options.out`` as soon as they are measured.
    """
    only = [check_choice("only", name, (*NETWORKS, *CALLS)) for name in options.only or ()]
    default = VISION if find_spec("torchvision") else OWN
    networks = [name for name in NETWORKS if name in only] or list(default)
    calls = [name for name in CALLS if name in only] or list(CALLS)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    table = Table(
        "memory",
        f"{describe(torch.device(device))}.  Untrained networks, one pair, {options.references} "
        "references; MB beyond what the process held before the call, each in a fresh process.",
    )
    jobs = [
        Job(network, call, options.references, None, device, options.threads,
            round(options.most_memory * GIGA), share)
        for call in calls for network in networks
        for share in ((None, options.share) if options.share else (None,))
    ]  # fmt: skip

    def order(row: Row) -> tuple[int, int, str]:
        network, call, share = (str(row[column]) for column in key)
        return CALLS.index(call), NETWORKS.index(network), share

    key = ("network", "call", SHARE)
    for place, job in enumerate(jobs):
        monitor.report(place / len(jobs), f"{job.network}, {job.call}")
        share = "" if job.share is None else f"{job.share:g}"
        row = {"network": job.network, "call": job.call, SHARE: share, **_cells(job, run)}
        keep_rows(table, options.out, [row], key=key, order=order)
    return table


def _cells(job: Job, run: Callable[[Job], Spent]) -> dict[str, Cell]:
    """What a job took; a limit that is too small to be kept is refused, which is a result too."""
    empty: dict[str, Cell] = dict.fromkeys(
        ("memory_limit MB", "estimate MB", "real MB", "estimate of real", WITHIN, "limit kept",
         "seconds"), "",
    )  # fmt: skip
    try:
        spent = run(job)
    except ValueError as error:
        if job.share is None or not str(error).startswith("memory_limit:"):
            raise
        return empty | {"limit kept": "refused"}
    ratio, answers = spent.estimate / spent.bytes, ("no", "yes")
    limited: dict[str, Cell] = {}
    if spent.limit is not None:
        kept = answers[spent.bytes <= spent.limit]
        limited = {"memory_limit MB": three_digits(spent.limit / MEGA), "limit kept": kept}
    return empty | limited | {
        "estimate MB": three_digits(spent.estimate / MEGA),
        "real MB": three_digits(spent.bytes / MEGA),
        "estimate of real": f"{ratio:.2f}",
        WITHIN: answers[abs(ratio - 1) <= TOLERANCE],
        "seconds": three_digits(spent.span.seconds),
    }  # fmt: skip


def keep_rows(
    table: Table,
    out: Path | None,
    rows: Sequence[Row],
    *,
    key: Sequence[str],
    order: Callable[[Row], Any],
) -> None:
    """Put rows into the table in place of those with the same key, sort it, and save it in ``out``.

    A table without rows first takes those of the same name, note and columns that ``out`` holds, so
    that a long measurement may be broken off.
    """
    if out is not None and not table.rows:
        stem = out / table.name.replace(" ", "-")
        text, data = stem.with_suffix(".md"), stem.with_suffix(".csv")
        if text.exists() and table.note in text.read_text(encoding="utf-8"):
            saved = pd.read_csv(data, dtype=str, keep_default_na=False)
            if list(saved) == list(rows[0]):
                table.rows += [dict(zip(rows[0], row, strict=True)) for row in saved.to_numpy()]

    def place(row: Row) -> list[str]:
        return [str(row[column]) for column in key]

    fresh = [place(row) for row in rows]
    table.rows[:] = [row for row in table.rows if place(row) not in fresh] + list(rows)
    table.rows.sort(key=order)
    if out is not None:
        table.save(out)
