"""Measuring many runs: what is done is not done again, on several processes, with a progress bar.

Imports this folder's plan, measure, records and sources; joblib starts the processes, tqdm shows
progress.  The file of records is the one cache of results: each is on disk before the next.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat, takewhile
from pathlib import Path

from joblib import Parallel, delayed
from tqdm import tqdm

from rectify_widgets.cases.case import Case
from tests.benchmarks.measure import measure
from tests.benchmarks.plan import Record, Run, draw_rows
from tests.benchmarks.records import opened
from tests.benchmarks.sources import Source, fingerprint
from tests.benchmarks.summary import latest


def measure_all(
    runs: Sequence[Run],
    source: Source,
    folder: Path,
    *,
    workers: int = 1,
    again: Sequence[str] = (),
) -> list[Record]:
    """Measure the runs that the folder does not have yet; answers all records of the folder.

    Args:
        runs: see `plan.plan`, in the order in which they are wanted; one that takes options over
            stands behind the one that chooses them.
        source: where the networks come from.
        folder: keeps the records, see `records`.
        workers: processes; 1 measures in this one.
        again: methods whose records are dropped first.

    Raises:
        ValueError: the folder holds records of other networks, or a case has too few pairs.
        BlockingIOError: another process has the folder open.
        RuntimeError: a process died.
        KeyboardInterrupt: passed on; the folder can be gone on with.
    """
    names = list(dict.fromkeys(run.case for run in runs))
    source.check(names)
    pool = Parallel(
        workers, backend="loky", return_as="generator_unordered", pre_dispatch="n_jobs",
        batch_size=1, initializer=_begin, initargs=(os.getpid(),),
    )  # fmt: skip
    with opened(folder) as kept, pool as parallel:
        others = {record["source"] for record in kept.records} - {source.title}
        if others:
            raise ValueError(
                f"out: {folder} holds runs of networks {others.pop()}, got {source.title}; "
                "give them a folder each"
            )
        missing = source.missing(names)
        if missing:
            print(f"{source.cache}: building {', '.join(missing)}")
        builds = parallel(delayed(source.make)(name) for name in missing)
        list(tqdm(builds, "networks", len(missing), disable=not missing))
        networks = _check_cases(runs, source)
        methods = {run.method for run in runs} & set(again)
        kept.keep(lambda one: one["method"] not in methods or one["case"] not in networks)
        done = latest(kept.records, networks)
        left = [run for run in runs if run not in done]
        print(f"{folder}: {len(runs) - len(left)} of {len(runs)} runs are measured")
        with tqdm(total=len(left), unit="run", disable=not left) as bar:
            while left:
                wave = list(
                    takewhile(lambda run: run.tuned_by is None or run.tuned_by in done, left)
                )
                left = left[len(wave) :]
                tuned = [done[run.tuned_by] if run.tuned_by else None for run in wave]
                tasks = map(delayed(_work), repeat(source), wave, tuned)
                for record in parallel(tasks):
                    record |= {"source": source.title, "network": networks[record["case"]]}
                    kept.append(record)
                    done[Run.of(record)] = record
                    bar.set_postfix_str(f"{record['case']}, {record['method']}, n = {record['n']}")
                    bar.update()
        return kept.records


def _check_cases(runs: Sequence[Run], source: Source) -> dict[str, str]:
    """Fingerprints by case; complains where a case has too few pairs."""
    networks: dict[str, str] = {}
    for name in dict.fromkeys(run.case for run in runs):
        case = source.load(name)
        networks[name] = fingerprint(case)
        for run in runs:
            if run.case == name:
                draw_rows(case, run)
    return networks


def _work(source: Source, run: Run, tuned: Record | None) -> Record:
    """Measure one run; what could not be tuned fails without being tried."""
    if tuned is not None and "failure" in tuned:
        message = f"not tuned, since seed 0 failed: {tuned['failure']}"
        return {**run.fields(), "failure": message, "warnings": [], "took": 0.0}
    return measure(_loaded(source, run.case), run, None if tuned is None else tuned["options"])


@lru_cache(maxsize=2)
def _loaded(source: Source, name: str) -> Case:
    return source.load(name)


def _begin(parent: int) -> None:
    """Set up a process: deaf to Ctrl-C, which its parent hears, and no life after its parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
