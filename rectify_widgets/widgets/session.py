"""Work in the background of a notebook: one worker thread for a widget and those linked to it.

Imports `jobs` only; no ipywidgets, so everything here is tested without a front end.

A `Session` runs its jobs on one thread, since hooks and edits of one model must not overlap.  A
long job lets *short* ones pass whenever it asks whether to stop, so that looking at another sample
works while a rectification runs; it must therefore work on a copy of its model.  What follows from a finished job in a widget is called back on the notebook's own loop
or inside `Job.wait` (see `jobs.Mailbox`).  Progress alone is reported straight from the worker: it
reaches the browser even while a cell blocks.

Jobs are sorted into *lanes*.  A new job of a lane supersedes the earlier ones: they are cancelled
and their results dropped, so that after fast scrubbing the latest wins.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from rectify_widgets.widgets.jobs import Job, Mailbox

T = TypeVar("T")

Jobs: TypeAlias = "queue.SimpleQueue[Job[Any] | None]"
"""Jobs to do; None ends the worker."""


class Session:
    """One worker thread for the jobs of a widget and of those linked to it.

    Args:
        synchronous: run every job within `submit`, on the caller's thread: for tests and scripts.
        name: of the thread.

    The thread is started by the first job and ended by `close`, or with the last reference to the
    session.  It is a daemon, so that a notebook's kernel can always end.

    Attributes:
        latest: the job submitted last; when it is done, so is all that was submitted before.
    """

    def __init__(self, *, synchronous: bool = False, name: str = "rectify-widgets") -> None:
        self._synchronous = synchronous
        self._name = name
        self._mailbox = Mailbox()
        self._queue: Jobs = queue.SimpleQueue()
        self._short: Jobs = queue.SimpleQueue()
        self._under_way: list[Job[Any]] = []
        self._lanes: dict[str, Job[Any]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self.latest: Job[Any] | None = None
        self._end = weakref.finalize(self, self._queue.put, None)

    def __repr__(self) -> str:
        kind = "synchronous" if self._synchronous else "threaded"
        return f"Session({kind}{', closed' if self._closed else ''})"

    @property
    def closed(self) -> bool:
        """Whether the session takes no more work."""
        return self._closed

    def submit(
        self,
        work: Callable[[Job[T]], T],
        *,
        lane: str | None = None,
        label: str = "work",
        short: bool = False,
        on_progress: Callable[[Job[T]], None] | None = None,
        on_done: Callable[[Job[T]], None] | None = None,
    ) -> Job[T]:
        """Have ``work(job)`` done in the background, after what was submitted before.

        Args:
            work: what to do; its return value is the job's result.
            lane: work of this lane that is not done yet is cancelled and superseded.
            label: what the job is called in messages.
            short: done while a long job is under way, whenever that one asks whether to stop.
            on_progress: called on the worker's thread as the work reports progress.
            on_done: called on the notebook's loop (or inside `Job.wait`) when the work has ended,
                however it ended, unless it was superseded.  What it raises becomes the job's
                exception.

        Raises:
            RuntimeError: the session is closed.
        """
        if self._closed:
            raise RuntimeError("this widget is closed; make a new one")
        self._mailbox.find_loop()
        job = Job(self._mailbox, work, label=label, on_progress=on_progress, on_done=on_done)
        self.latest = job
        if lane is not None:
            earlier = self._lanes.get(lane)
            self._lanes[lane] = job
            if earlier is not None and not earlier.done:
                earlier.supersede()
        if self._synchronous:
            job.run()
            self._mailbox.drain()
            return job
        self._under_way = [earlier for earlier in self._under_way if not earlier.done]
        self._under_way.append(job)
        if short:
            self._short.put(job)
        else:
            waiting = self._short
            job.between = lambda: _run_all(waiting)
        if self._thread is None:
            self._thread = threading.Thread(
                target=_work, args=(self._queue, self._short), name=self._name, daemon=True
            )
            self._mailbox.worker = self._thread
            self._thread.start()
        self._queue.put(job)
        return job

    def cancel(self) -> None:
        """Cancel every job that is not done."""
        for job in list(self._under_way):
            if not job.done:
                job.cancel()

    def close(self, timeout: float = 5.0) -> None:
        """Cancel what is under way and end the thread; waits ``timeout`` seconds for it at most.

        Callbacks that are still due are dropped.  Closing twice does nothing.
        """
        self._closed = True
        self.cancel()
        self._end()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        self._mailbox.clear()
        self._under_way.clear()
        self._lanes.clear()
        self.latest = None


def _work(jobs: Jobs, short: Jobs) -> None:
    """The worker thread; between jobs it holds no reference to any, nor to the session.

    Short jobs are in both queues; a job runs once, whichever is read first.
    """
    while True:
        job = jobs.get()
        if job is None:
            return
        _run_all(short)
        job.run()
        del job


def _run_all(jobs: Jobs) -> None:
    """Run the jobs that are waiting."""
    while True:
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            return
        if job is not None:
            job.run()
