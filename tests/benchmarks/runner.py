"""Measuring many cells: what is done is not done again, on several processes, with a progress bar.

Imports this folder's plan, cells, records and sources; tqdm shows progress.  Each process has one
torch thread, so that no figure depends on how many there are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from rectify_widgets.cases.case import Case
from tests.benchmarks.cells import measure
from tests.benchmarks.plan import Cell, Record, drawn
from tests.benchmarks.records import Journal, journal
from tests.benchmarks.sources import Source, fingerprint

TICK = 1.0
"""Seconds between two looks at the clock."""
QUIET_TICK = 60.0
"""The same where nobody watches: the progress goes into a file."""


def run(
    cells: Sequence[Cell],
    source: Source,
    folder: Path,
    *,
    workers: int = 1,
    again: Sequence[str] = (),
) -> list[Record]:
    """Measure the cells that the folder does not have yet; answers all records of the folder.

    Args:
        cells: see `plan.plan`, in the order in which they are wanted.
        source: where the networks come from.
        folder: keeps the records, see `records`.
        workers: processes; 0 measures in this one.
        again: methods whose records are dropped first.

    Raises:
        ValueError: the folder holds records of other networks, or a case has too few pairs.
        BlockingIOError: another run has the folder open.
        RuntimeError: a process died.
        KeyboardInterrupt: passed on; the folder can be gone on with.
    """
    source.check(list(dict.fromkeys(cell.case for cell in cells)))
    with journal(folder) as kept, _pool(workers) as pool:
        others = {record["source"] for record in kept.records} - {source.title}
        if others:
            raise ValueError(
                f"out: {folder} holds cells of networks {others.pop()}, got {source.title}; "
                "give them a folder each"
            )
        _build(cells, source, pool, workers)
        networks = _networks(cells, source)
        wanted = {cell.method for cell in cells} & set(again)
        kept.forget(lambda record: record["method"] in wanted and record["case"] in networks)
        done = known(kept.records, networks)
        todo = [cell for cell in cells if cell not in done]
        print(f"{folder}: {len(cells) - len(todo)} of {len(cells)} cells are measured")
        if todo:
            _Run(todo, done, source, networks, kept).go(pool, max(workers, 1))
        return kept.records


def known(records: Sequence[Record], networks: Mapping[str, str]) -> dict[Cell, Record]:
    """Records by cell, those of other networks than these left out.

    Args:
        records: as they were measured; later ones count.
        networks: fingerprints by case.
    """
    return {
        Cell.of(record): record
        for record in records
        if networks.get(record["case"]) == record["network"]
    }


class _Run:
    """The cells that are left, and those under way."""

    def __init__(
        self,
        todo: list[Cell],
        done: dict[Cell, Record],
        source: Source,
        networks: Mapping[str, str],
        kept: Journal,
    ) -> None:
        self._todo, self._done, self._kept = todo, done, kept
        self._source, self._networks = source, networks
        self._doing: dict[Future[Record], Cell] = {}
        self._times = Times(done.values())

    def go(self, pool: Executor, workers: int) -> None:
        """Measure them all."""
        with _bar(len(self._todo), "cells") as bar:
            while self._todo or self._doing:
                self._submit(pool, workers)
                ended = _wait(self._doing)
                for future in ended:
                    cell = self._doing.pop(future)
                    self._keep(cell, future.result())
                    bar.update()
                left = self._times.left([*self._todo, *self._doing.values()], workers)
                now = "; ".join(map(str, self._doing.values()))
                bar.set_postfix_str(f"{now}, about {clock(left)} left" if now else "")

    def _submit(self, pool: Executor, workers: int) -> None:
        """Start the next cells whose options are known, as many as there are processes."""
        for cell in list(self._todo):
            if len(self._doing) >= workers:
                return
            tuned = cell.tuned_by
            if tuned is not None and tuned not in self._done:
                continue
            self._todo.remove(cell)
            chosen = None if tuned is None else self._done[tuned]
            self._doing[_start(pool, self._source, cell, chosen)] = cell

    def _keep(self, cell: Cell, record: Record) -> None:
        record = {**record, "source": self._source.title, "network": self._networks[cell.case]}
        self._kept.append(record)
        self._done[cell] = record
        self._times.add(record)


def _start(pool: Executor, source: Source, cell: Cell, tuned: Record | None) -> Future[Record]:
    """Hand a cell to a process; what could not be tuned fails without being tried."""
    if tuned is not None and "failure" in tuned:
        failed: Future[Record] = Future()
        message = f"not tuned, since seed 0 failed: {tuned['failure']}"
        failed.set_result({**cell.fields(), "failure": message, "warnings": [], "took": 0.0})
        return failed
    return pool.submit(work, source, cell, None if tuned is None else tuned["options"])


class Times:
    """What cells took, to tell what others will take."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._taken: dict[tuple[object, ...], list[float]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Learn from a record."""
        for kind in _kinds(Cell.of(record)):
            self._taken.setdefault(kind, []).append(record["took"])

    def left(self, cells: Sequence[Cell], workers: int) -> float:
        """Seconds for these, by the most alike of the cells that were measured."""
        return sum(map(self._one, cells)) / workers

    def _one(self, cell: Cell) -> float:
        for kind in _kinds(cell):
            if kind in self._taken:
                return sum(self._taken[kind]) / len(self._taken[kind])
        return 0.0


def _kinds(cell: Cell) -> tuple[tuple[object, ...], ...]:
    """What a cell is alike to, the most alike first."""
    return (
        (cell.case, cell.method, cell.tunes, cell.n),
        (cell.case, cell.method, cell.tunes),
        (cell.method, cell.tunes),
        (cell.tunes,),
        (),
    )


def clock(seconds: float) -> str:
    """A time left: "45 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


# -- what the processes do ------------------------------------------------------------------------


def work(source: Source, cell: Cell, options: Mapping[str, Any] | None) -> Record:
    """Measure one cell."""
    return measure(_loaded(source, cell.case), cell, options)


@lru_cache(maxsize=2)
def _loaded(source: Source, name: str) -> Case:
    return source.load(name)


class _Here(Executor):
    """The processes of ``workers=0``: none."""

    def submit(self, task: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        """Do it now."""
        future: Future[Any] = Future()
        future.set_result(task(*args, **named))
        return future


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    """Processes for a block, with one torch thread each; an exception ends them at once."""
    if workers == 0:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield _Here()
        finally:
            torch.set_num_threads(threads)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process died, most likely for want of memory; run the command again to go on, with "
            "fewer --workers"
        ) from error
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Set up a process: one thread, no ear for Ctrl-C, and no life after its parent's."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# -- before the first cell ------------------------------------------------------------------------


def _build(cells: Sequence[Cell], source: Source, pool: Executor, workers: int) -> None:
    """Build the networks that are missing, side by side."""
    missing = source.missing(list(dict.fromkeys(cell.case for cell in cells)))
    if not missing:
        return
    print(f"{source.cache}: building {', '.join(missing)}")
    with _bar(len(missing), f"networks, {max(workers, 1)} at a time") as bar:
        doing = {pool.submit(source.make, name): name for name in missing}
        while doing:
            for future in _wait(doing):
                bar.set_postfix_str(doing.pop(future))
                future.result()
                bar.update()


def _networks(cells: Sequence[Cell], source: Source) -> dict[str, str]:
    """Fingerprints by case; complains where a case has too few pairs."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(cell.case for cell in cells):
        case = source.load(name)
        found[name] = fingerprint(case)
        for cell in cells:
            if cell.case == name:
                drawn(case, cell)
    return found


def _wait(doing: Mapping[Future[Any], object]) -> set[Future[Any]]:
    """Those that have ended; none after a while."""
    patience = TICK if sys.stderr.isatty() else QUIET_TICK
    return wait(doing, timeout=patience, return_when=FIRST_COMPLETED).done


def _bar(total: int, unit: str) -> Any:
    pace = 0.1 if sys.stderr.isatty() else QUIET_TICK
    return tqdm(
        total=total, desc=unit, mininterval=pace, maxinterval=max(pace, 10.0),
        bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed}{postfix}",
    )  # fmt: skip
