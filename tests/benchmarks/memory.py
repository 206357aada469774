"""The real peak of memory of collecting, localising and rectifying, beside what was foretold.

Imports the engine and this folder's networks and tables; torchvision where it is installed.  Each
peak is that of a fresh process, above what it held just before the call: resident memory on a CPU,
allocated tensors on a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.estimates import estimate_memory
from rectify_widgets.engine.find.localization import localize
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks.peaks import check_peaks, peak_memory
from tests.benchmarks.speed_networks import network
from tests.benchmarks.speed_tables import put_rows
from tests.benchmarks.speed_timing import Clock, Span, describe, three_digits
from tests.benchmarks.tables import Cell, Row, Table

MEGA, GIGA = 1e6, 1e9
CALLS = ("collect", "localize", "rectify")
VISION = ("resnet50", "efficientnet_b4", "vit_b_16")
"""Networks of torchvision, with 224×224 pixels."""
OWN = {"resnet18-cifar": 18, "resnet50-cifar": 50}
"""Networks of this folder, with 32×32 pixels."""
TOLERANCE = 0.25
"""How far the foretold peak may be from the real one."""
SHARE = "limit of foretold"
KEPT = "limit kept"
MEASURED = (
    "memory_limit MB", "foretold MB", "real MB", "foretold of real",
    f"within {100 * TOLERANCE:.0f} %", KEPT, "seconds",
)  # fmt: skip
"""Columns of the table, behind network, call and `SHARE`."""
REACTION = 5.0
"""Spread of what the corruption does to the scores; untrained networks hardly react otherwise."""


@dataclass(frozen=True)
class Job:
    """One call on one network, to be made in a process of its own.

    Args:
        network: of `VISION` or `OWN`.
        call: of `CALLS`.
        references: how many.
        workers: of the loader that the references come from; None gives a tensor.
        device, threads: where, and with how many threads.
        most_memory: bytes that the process may take; None for as many as there are.
        share: of the foretold peak that the call gets as its ``memory_limit``; None for no limit.
    """

    network: str
    call: str
    references: int
    workers: int | None = None
    device: str = "cpu"
    threads: int = 2
    most_memory: int | None = None
    share: float | None = None

    @property
    def side(self) -> int:
        """Pixels of an edge of its images."""
        return 32 if self.network in OWN else 224


@dataclass(frozen=True)
class Spent:
    """What the call took.

    Attributes:
        span: its time.
        bytes: at its peak, above those held before.
        foretold: what `estimate_memory` says of that.
        limit: the ``memory_limit`` that it was given.
    """

    span: Span
    bytes: int
    foretold: int
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
    """An untrained network by name, in evaluation mode.

    Raises:
        ValueError: it needs torchvision, which is not installed.
    """
    if name in OWN:
        return network(OWN[name])
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


def available() -> list[str]:
    """Those that can be had here: torchvision's, else this folder's."""
    try:
        import torchvision  # noqa: F401 - is it there?
    except ImportError:
        return list(OWN)
    return list(VISION)


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
        ValueError: peaks cannot be told here, or no call can keep to so small a ``memory_limit``.
    """
    device = torch.device(job.device)
    check_peaks(device)
    if job.most_memory is not None:
        cap(job.most_memory)
    torch.set_num_threads(job.threads)
    model = build(job.network).to(device)
    clean = DrawnImages(2, job.side)[1][None].to(device)
    corrupted = clean.clone()
    corrupted[..., -job.side // 4 :, -job.side // 4 :] = 1.0
    pairs = SamplePairs(corrupted, clean)
    images = DrawnImages(job.references, job.side)
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
    foretold = estimate(limit)
    calls: dict[str, Callable[[], object]] = {
        "collect": lambda: KeyStatistics.collect(model, reference, memory_limit=limit),
        "localize": lambda: localize(model, pairs, reference=reference, memory_limit=limit),
        "rectify": lambda: rectify(
            model, pairs, reference=reference, target_gap=0.0, max_rounds=1, memory_limit=limit
        ),
    }
    with peak_memory(device) as peak:
        span = Clock(device).span(calls[job.call])
    assert peak.bytes is not None
    return Spent(span, peak.bytes, foretold, limit)


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
    """A row for each network and call: the real peak against what was foretold.

    ``options.only`` names networks, calls, or both.  With ``options.share`` each call is made once
    more with a ``memory_limit``.  Rows are kept in ``options.out`` as soon as they are measured.
    """
    only = options.only or []
    for name in only:
        check_choice("only", name, (*VISION, *OWN, *CALLS))
    chosen = [name for name in (*VISION, *OWN) if name in only] or available()
    calls = [name for name in CALLS if name in only] or list(CALLS)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(options.threads)
    table = Table(
        "memory",
        f"{describe(torch.device(device))}.  Untrained networks, one pair, {options.references} "
        "references; MB beyond what the process held before the call, each in a fresh process.",
    )
    shares = (None, options.share) if options.share else (None,)
    jobs = [
        Job(name, call, options.references, device=device, threads=options.threads,
            most_memory=round(options.most_memory * GIGA), share=share)
        for call in calls for name in chosen for share in shares
    ]  # fmt: skip
    for place, job in enumerate(jobs):
        monitor.report(place / len(jobs), f"{job.network}, {job.call}")
        put_rows(
            table, options.out, [_cells(job, run)], key=("network", "call", SHARE), order=_order
        )
    return table


def _cells(job: Job, run: Callable[[Job], Spent]) -> dict[str, Cell]:
    """A row of the table; a limit that is too small to be kept is refused, which is a result too."""
    place: dict[str, Cell] = {
        "network": job.network,
        "call": job.call,
        SHARE: "" if job.share is None else f"{job.share:g}",
    }
    try:
        spent = run(job)
    except ValueError as error:
        if job.share is None or not str(error).startswith("memory_limit:"):
            raise
        return {**place, **dict.fromkeys(MEASURED, ""), KEPT: "refused"}
    ratio = spent.foretold / spent.bytes
    limit, kept = "", ""
    if spent.limit is not None:
        limit, kept = three_digits(spent.limit / MEGA), _yes(spent.bytes <= spent.limit)
    values = (
        limit,
        three_digits(spent.foretold / MEGA),
        three_digits(spent.bytes / MEGA),
        f"{ratio:.2f}",
        _yes(abs(ratio - 1) <= TOLERANCE),
        kept,
        three_digits(spent.span.seconds),
    )
    return {**place, **dict(zip(MEASURED, values, strict=True))}


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _order(row: Row) -> tuple[int, int, str]:
    networks = (*VISION, *OWN)
    return CALLS.index(str(row["call"])), networks.index(str(row["network"])), str(row[SHARE])
