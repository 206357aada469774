"""Work in the background of a notebook: jobs on one thread for a widget and those linked to it.

Imports torch's grad mode and the engine's hooks; no ipywidgets, so everything here is tested
without a front end.

A `Session` runs its jobs on one thread, since hooks and edits of one model must not overlap.  A
long job lets *short* ones pass whenever it asks whether to stop, so that looking at another sample
works while a rectification runs; it must therefore work on a copy of its model.  What follows from
a finished job in a widget is called back on the notebook's own loop or inside `Job.wait` (see
`Mailbox`).  Progress alone is reported straight from the worker: it reaches the browser even while
a cell blocks.

Jobs are sorted into *lanes*.  A new job of a lane supersedes the earlier ones: they are cancelled
and their results dropped, so that after fast scrubbing the latest wins.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from rectify_widgets.engine.base.progress import UNKNOWN, Cancelled
from rectify_widgets.widgets import workers

T = TypeVar("T")

PROGRESS_INTERVAL = 0.08
"""Least seconds between two progress reports of a job, so that the browser is not flooded."""

POLL = 0.2
"""Seconds after which a blocking wait looks up, so that it can be interrupted everywhere."""


class Mailbox:
    """Callbacks on their way from the worker to the notebook.

    They are called on the loop that ran when the first job was submitted, and inside `wait_for`,
    since a cell that blocks never lets that loop run.  They are called one after the other, in the
    order in which they were posted, whichever of the two comes first.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.worker: threading.Thread | None = None
        self._posted: deque[Callable[[], None]] = deque()
        self._draining = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def find_loop(self) -> None:
        """Remember the running loop, unless there is none or one is known."""
        if self._loop is None:
            with suppress(RuntimeError):
                self._loop = asyncio.get_running_loop()

    def post(self, callback: Callable[[], None]) -> None:
        """Have ``callback()`` called soon, by the loop or by whoever waits."""
        with self.changed:
            self._posted.append(callback)
            self.changed.notify_all()
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the next wait drains
                self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Call what is due; on return nothing that was posted before is still being called."""
        with self._draining:
            while True:
                with self.changed:
                    callback = self._posted.popleft() if self._posted else None
                if callback is None:
                    return
                callback()

    def wait_for(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Block until ``done()``, calling what is due; False if time runs out.

        Raises:
            RuntimeError: called by the worker, which would wait for itself.
        """
        if self.worker is threading.current_thread():
            raise RuntimeError("a job cannot wait for another one of its own session")
        limit = None if timeout is None else time.monotonic() + timeout
        while not done():
            self.drain()
            left = POLL if limit is None else min(POLL, limit - time.monotonic())
            if left <= 0:
                return False
            with self.changed:
                self.changed.wait_for(lambda: self._posted or done(), left)
        self.drain()
        return True

    def clear(self) -> None:
        """Drop what is due."""
        with self.changed:
            self._posted.clear()


class Job(Generic[T]):
    """A piece of work under way; wait for it with ``job.wait()`` or ``await job``.

    In a notebook that shows controls, ``wait`` is the better one: a slider, list or row of buttons
    that is touched while a cell awaits anything at all is dead from then on with ipykernel 7.4.  It
    handles the message at once and never tells the page that it has, and ipywidgets' page holds
    back whatever that control says next until it is told.  While a cell waits, messages queue.

    The work is called with the job itself, and takes from it `progress` and `cancelled` as hooks
    for the engine's long calls.

    Attributes:
        label: what it is called in messages.
        fraction: share that is done, 0 to 1.
        message: what it is at.
        lane: see `Session.submit`.
    """

    _result: T

    def __init__(
        self,
        mailbox: Mailbox,
        work: Callable[[Job[T]], T],
        *,
        label: str,
        lane: str | None = None,
        between: Callable[[], None] | None = None,
        on_progress: Callable[[Job[T]], None] | None = None,
        on_done: Callable[[Job[T]], None] | None = None,
    ) -> None:
        self.label = label
        self.lane = lane
        self.fraction = 0.0
        self.message = label
        self._mailbox = mailbox
        self._work: Callable[[Job[T]], T] | None = work
        self._between = between
        self._on_progress = on_progress
        self._on_done = on_done
        self._stop = threading.Event()
        self._end: Future[None] = Future()
        self._end.set_running_or_notify_cancel()  # so that no task that awaits it can cancel it
        self._superseded = False
        self._exception: BaseException | None = None
        self._started = time.monotonic()
        self._reported = -PROGRESS_INTERVAL

    def __repr__(self) -> str:
        if not self.done:
            state = "under way"
        elif self.was_cancelled:
            state = "cancelled"
        else:
            state = "done" if self.exception is None else "failed"
        return f"Job({self.label!r}, {state})"

    # -- what the caller asks ---------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the work has ended: with a result, an exception, or cancelled."""
        return self._end.done()

    @property
    def exception(self) -> BaseException | None:
        """What the work raised, once it is done; None where it succeeded."""
        return self._exception

    @property
    def was_cancelled(self) -> bool:
        """Whether the work ended because it was cancelled."""
        return isinstance(self._exception, Cancelled)

    def cancel(self) -> None:
        """Ask the work to stop; work that has not started ends at once."""
        self._stop.set()
        if self._claim() is not None:
            self._finish(Cancelled("cancelled before it started"))

    def supersede(self) -> None:
        """Cancel the work and drop what would follow from it."""
        self._superseded = True
        self.cancel()

    def result(self) -> T:
        """The result of work that is done, or the exception that it raised."""
        if self._exception is not None:
            raise self._exception
        if not self.done:
            raise RuntimeError(f"{self.label}: not done yet; wait() or await it first")
        return self._result

    def wait(self, timeout: float | None = None) -> T:
        """Block until the work is done; give its result or raise what it raised.

        Callbacks due in the meantime run here, so widgets are up to date on return.  Interrupting
        the wait (Ctrl-C, the notebook's stop button) cancels the work.

        Raises:
            TimeoutError: not done within ``timeout`` seconds; the work goes on.
            Cancelled: the work was cancelled.
        """
        try:
            if not self._mailbox.wait_for(self._end.done, timeout):
                raise TimeoutError(f"{self.label}: not done after {timeout:g} seconds")
        except KeyboardInterrupt:
            self.cancel()
            raise
        return self.result()

    def __await__(self) -> Generator[Any, None, T]:
        yield from asyncio.wrap_future(self._end).__await__()
        self._mailbox.drain()
        return self.result()

    # -- what the work uses -----------------------------------------------------------------------

    def cancelled(self) -> bool:
        """Whether the work is to stop: the ``cancel`` hook of the engine's long calls.

        Whenever the work asks, short jobs that came up meanwhile are done first.
        """
        if self._between is not None and not self.stopping:
            self._between()
        return self.stopping

    @property
    def stopping(self) -> bool:
        """Whether the work was asked to stop, perhaps after what it could give by then."""
        return self._stop.is_set() or workers.ending.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if the work is to stop."""
        if self.cancelled():
            raise Cancelled("cancelled")

    def progress(self, fraction: float, message: str) -> None:
        """Report how far the work is: the ``progress`` hook of the engine's long calls."""
        self.fraction, self.message = float(fraction), message
        now = time.monotonic()
        report = self._on_progress
        if report is None or self._stop.is_set() or self.done:
            return
        if now - self._reported >= PROGRESS_INTERVAL or fraction >= 1.0:
            self._reported = now
            report(self)

    def part(self, start: float, stop: float) -> Callable[[float, str], None]:
        """A progress hook whose 0..1 is the slice ``start..stop`` of this job."""
        return lambda fraction, message: self.progress(start + (stop - start) * fraction, message)

    def call(self, callback: Callable[[], None]) -> None:
        """Have ``callback()`` called on the notebook's loop while the work goes on.

        It is dropped if the job is superseded; what it raises becomes the job's exception.
        """

        def safely() -> None:
            try:
                if not self._superseded:
                    callback()
            except Exception as error:  # noqa: BLE001 - raised where the job is waited for
                self._exception = self._exception or error

        self._mailbox.post(safely)

    def seconds_left(self) -> float | None:
        """Estimate of the time left, from the share that is done; None while that is too small."""
        spent = time.monotonic() - self._started
        if self.done or self.fraction <= UNKNOWN or spent < 0.5:
            return None
        return spent * (1.0 - self.fraction) / self.fraction

    # -- what the session does --------------------------------------------------------------------

    def run(self) -> None:
        """Do the work, unless it was cancelled before; nothing is raised, everything is kept."""
        work = self._claim()
        if work is None:
            return
        self._started = time.monotonic()
        try:
            with torch.inference_mode(mode=False), torch.enable_grad():
                self._result = work(self)
        except BaseException as error:  # noqa: BLE001 - raised where the job is waited for
            self._finish(error)
        else:
            self._finish(self._exception)

    def _claim(self) -> Callable[[Job[T]], T] | None:
        """The work, for the first caller; None for any other."""
        with self._mailbox.changed:
            work, self._work = self._work, None
            return work

    def _finish(self, error: BaseException | None) -> None:
        self._exception = error
        on_done, self._on_done, self._on_progress = self._on_done, None, None
        with self._mailbox.changed:  # done and its callback become visible together
            self._end.set_result(None)
            self.call(lambda: None if on_done is None else on_done(self))


class Session:
    """One worker thread for the jobs of a widget and of those linked to it.

    Args:
        synchronous: run every job within `submit`, on the caller's thread: for tests and scripts.
        name: of the thread.

    The thread is started by the first job and ended by `close`, or with the last reference to the
    session.  When the interpreter ends, all jobs are cancelled, and it waits for the threads; they are
    daemons, so that a job that does not stop holds it up for a minute at most.

    Attributes:
        closed: whether the session takes no more work.
        latest: the job submitted last; when it is done, so is all that was submitted before.
    """

    def __init__(self, *, synchronous: bool = False, name: str = "rectify-widgets") -> None:
        self._synchronous = synchronous
        self._name = name
        self._mailbox = Mailbox()
        self._queue: workers.Jobs = queue.SimpleQueue()
        self._short: workers.Jobs = queue.SimpleQueue()
        self._under_way: list[Job[Any]] = []
        self._thread: threading.Thread | None = None
        self.closed = False
        self.latest: Job[Any] | None = None
        self._end = weakref.finalize(self, self._queue.put, None)

    def __repr__(self) -> str:
        kind = "synchronous" if self._synchronous else "threaded"
        return f"Session({kind}{', closed' if self.closed else ''})"

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
        if self.closed:
            raise RuntimeError("this widget is closed; make a new one")
        self._mailbox.find_loop()
        job = Job(
            self._mailbox, work, label=label, lane=lane, on_progress=on_progress, on_done=on_done,
            between=None if short else partial(workers.run_all, self._short),
        )  # fmt: skip
        self.latest = job
        for earlier in self._under_way:
            if lane is not None and earlier.lane == lane:
                earlier.supersede()
        self._under_way = [*(earlier for earlier in self._under_way if not earlier.done), job]
        if self._synchronous:
            job.run()
            self._mailbox.drain()
            return job
        if short:
            self._short.put(job)
        if self._thread is None:
            self._thread = workers.start(self._queue, self._short, self._name)
            self._mailbox.worker = self._thread
        self._queue.put(job)
        return job

    def cancel(self) -> None:
        """Cancel every job that is not done."""
        for job in self._under_way:
            job.cancel()

    def close(self, timeout: float = 5.0) -> None:
        """Cancel what is under way and end the thread; waits ``timeout`` seconds for it at most.

        Callbacks that are still due are dropped.  Closing twice does nothing.
        """
        self.closed = True
        self.cancel()
        self._end()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        self._mailbox.clear()
        self._under_way.clear()
        self.latest = None
