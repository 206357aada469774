"""The threads that do the jobs of all sessions, and how they end before the interpreter does.

Imports the standard library only.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
import weakref
from contextlib import suppress
from typing import Protocol, TypeAlias

LAST_WAIT = 60.0
"""Seconds that the end of the interpreter waits for the workers at most."""


class Runnable(Protocol):
    """What a worker does."""

    def run(self) -> None:
        """Do the work; nothing is raised."""


Jobs: TypeAlias = "queue.SimpleQueue[Runnable | None]"
"""Jobs to do; None ends the worker."""

ending = threading.Event()
"""Set when the interpreter ends: every job is to stop."""

_workers: weakref.WeakKeyDictionary[threading.Thread, Jobs] = weakref.WeakKeyDictionary()
"""All threads with what they have to do, also those whose session is closed."""


def start(jobs: Jobs, short: Jobs, name: str) -> threading.Thread:
    """A thread that does what is in ``jobs``, and before each of these what is in ``short``.

    Short jobs are in both queues; a job runs once, whichever is read first.  Between jobs the
    thread holds no reference to any.
    """
    thread = threading.Thread(target=_work, args=(jobs, short), name=name, daemon=True)
    _workers[thread] = jobs
    thread.start()
    return thread


def _work(jobs: Jobs, short: Jobs) -> None:
    while True:
        job = jobs.get()
        if job is None or ending.is_set():
            return
        run_all(short)
        job.run()
        del job


def run_all(jobs: Jobs) -> None:
    """Run the jobs that are waiting."""
    with suppress(queue.Empty):
        while True:
            job = jobs.get_nowait()
            if job is not None:
                job.run()


@atexit.register
def end_all() -> None:
    """Stop all jobs and wait for their threads.

    A daemon thread that still computes when the interpreter is taken down is ended in the middle of
    torch's C++ code, which aborts the process.
    """
    ending.set()
    until = time.monotonic() + LAST_WAIT
    workers = list(_workers.items())
    for _, jobs in workers:
        jobs.put(None)
    for thread, _ in workers:
        thread.join(max(until - time.monotonic(), 0.0))
