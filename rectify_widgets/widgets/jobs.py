"""A job under way, and the mailbox that brings its callbacks back to the notebook.

Imports torch's grad mode and the engine's hooks; no ipywidgets, so everything here is tested
without a front end.  `session.Session` decides which job runs when.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import torch

from rectify_widgets.engine.base.progress import Cancelled

T = TypeVar("T")

PROGRESS_INTERVAL = 0.08
"""Least seconds between two progress reports of a job, so that the browser is not flooded."""

POLL = 0.2
"""Seconds after which a blocking wait looks up, so that it can be interrupted everywhere."""


class Mailbox:
    """Callbacks on their way from the worker to the notebook.

    They are called on the loop that ran when the mailbox was made, and inside `wait_for`, since a
    cell that blocks never lets that loop run.  They are called one after the other, in the order
    in which they were posted, whichever of the two comes first.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.worker: threading.Thread | None = None
        self._posted: deque[Callable[[], None]] = deque()
        self._draining = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.find_loop()

    def find_loop(self) -> None:
        """Remember the running loop, unless there is none or one is known."""
        if self._loop is None:
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                return

    def post(self, callback: Callable[[], None]) -> None:
        """Have ``callback()`` called soon, by the loop or by who waits."""
        with self.changed:
            self._posted.append(callback)
            self.changed.notify_all()
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(_drain, weakref.ref(self))
            except RuntimeError:  # closed meanwhile: the next wait drains
                return

    def drain(self) -> None:
        """Call what is due; on return nothing that was posted before is still being called."""
        with self._draining:
            while True:
                with self.changed:
                    if not self._posted:
                        return
                    callback = self._posted.popleft()
                callback()

    def wait_for(self, event: threading.Event, timeout: float | None) -> bool:
        """Block until the event is set, calling what is due; False if time runs out.

        Raises:
            RuntimeError: called by the worker, which would wait for itself.
        """
        if self.worker is threading.current_thread():
            raise RuntimeError("a job cannot wait for another one of its own session")
        limit = None if timeout is None else time.monotonic() + timeout
        while not event.is_set():
            self.drain()
            left = POLL if limit is None else min(POLL, limit - time.monotonic())
            if left <= 0:
                return False
            with self.changed:
                if not self._posted and not event.is_set():
                    self.changed.wait(left)
        self.drain()
        return True

    def clear(self) -> None:
        """Drop what is due."""
        with self.changed:
            self._posted.clear()


def _drain(mailbox: weakref.ref[Mailbox]) -> None:
    owner = mailbox()
    if owner is not None:
        owner.drain()


class Job(Generic[T]):
    """A piece of work under way; wait for it with ``job.wait()`` or ``await job``.

    The work is called with the job itself, and takes from it `progress` and `cancelled` as hooks
    for the engine's long calls.

    Attributes:
        label: what it is called in messages.
        fraction: share that is done, 0 to 1.
        message: what it is at.
        between: called whenever the work asks whether to stop; the session sets it.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        work: Callable[[Job[T]], T],
        *,
        label: str,
        on_progress: Callable[[Job[T]], None] | None = None,
        on_done: Callable[[Job[T]], None] | None = None,
    ) -> None:
        self.label = label
        self.between: Callable[[], None] | None = None
        self.fraction = 0.0
        self.message = label
        self._mailbox = mailbox
        self._work: Callable[[Job[T]], T] | None = work
        self._on_progress = on_progress
        self._on_done = on_done
        self._stop = threading.Event()
        self._finished = threading.Event()
        self._waiters: list[Callable[[], None]] = []
        self._superseded = False
        self._answer: list[T] = []
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
        return self._finished.is_set()

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
            self._finish(error=Cancelled("cancelled before it started"))

    def supersede(self) -> None:
        """Cancel the work and drop what would follow from it."""
        self._superseded = True
        self.cancel()

    def result(self) -> T:
        """The result of work that is done, or the exception that it raised."""
        if self._exception is not None:
            raise self._exception
        if not self._answer:
            raise RuntimeError(f"{self.label}: not done yet; wait() or await it first")
        return self._answer[0]

    def wait(self, timeout: float | None = None) -> T:
        """Block until the work is done; give its result or raise what it raised.

        Callbacks due in the meantime run here, so widgets are up to date on return.  Interrupting
        the wait (Ctrl-C, the notebook's stop button) cancels the work.

        Raises:
            TimeoutError: not done within ``timeout`` seconds; the work goes on.
            Cancelled: the work was cancelled.
        """
        try:
            if not self._mailbox.wait_for(self._finished, timeout):
                raise TimeoutError(f"{self.label}: not done after {timeout:g} seconds")
        except KeyboardInterrupt:
            self.cancel()
            raise
        return self.result()

    def __await__(self) -> Generator[Any, None, T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> None:
            loop.call_soon_threadsafe(settle)

        with self._mailbox.changed:
            waiting = not self.done
            if waiting:
                self._waiters.append(wake)
        if waiting:
            yield from future.__await__()
        self._mailbox.drain()
        return self.result()

    # -- what the work uses -----------------------------------------------------------------------

    def cancelled(self) -> bool:
        """Whether the work is to stop: the ``cancel`` hook of the engine's long calls.

        Whenever the work asks, short jobs that came up meanwhile are done first.
        """
        if self.between is not None and not self._stop.is_set():
            self.between()
        return self._stop.is_set()

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
        if self.done or self.fraction < 0.05 or spent < 0.5:
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
                answer = work(self)
        except BaseException as error:  # noqa: BLE001 - raised where the job is waited for
            self._finish(error=error)
        else:
            self._answer.append(answer)
            self._finish(error=self._exception)

    def _claim(self) -> Callable[[Job[T]], T] | None:
        """The work, for the first caller; None for any other."""
        with self._mailbox.changed:
            work, self._work = self._work, None
            return work

    def _finish(self, error: BaseException | None) -> None:
        self._exception = error
        with self._mailbox.changed:  # done and its callback become visible together
            self._finished.set()
            waiters, self._waiters = self._waiters, []
            self._mailbox.post(self._settle)
        for wake in waiters:
            wake()

    def _settle(self) -> None:
        on_done, self._on_done, self._on_progress = self._on_done, None, None
        if on_done is None or self._superseded:
            return
        try:
            on_done(self)
        except Exception as error:  # noqa: BLE001 - raised where the job is waited for
            self._exception = self._exception or error
