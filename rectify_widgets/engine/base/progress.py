"""Progress and cancellation hooks that every long call of the engine takes."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Protocol, TypeAlias

from rectify_widgets.engine.base.interrupts import safe_point


class Event(Protocol):
    """Anything with ``is_set``, such as ``threading.Event``."""

    def is_set(self) -> bool:
        """Whether the event has happened."""
        ...


Progress: TypeAlias = Callable[[float, str], None]
"""Called with the fraction done (0 to 1) and a short message."""

Cancel: TypeAlias = Callable[[], bool] | Event
"""Called between chunks of work; the work stops when it returns ``True``."""


class Cancelled(Exception):  # noqa: N818 - stopping on request is not an error
    """A long call was stopped by its ``cancel`` hook.

    Example:
        >>> try:
        ...     rw.localize(model, pairs, reference=reference, cancel=lambda: True)
        ... except rw.Cancelled:
        ...     print("stopped, and nothing was changed")
        stopped, and nothing was changed
    """


PULSE = 1.0
"""Seconds without a report after which the last one is repeated, so that nobody believes it hangs."""


UNKNOWN = 0.05
"""Share of the bar up to which no time is told, since the share of the time is not known yet."""


class _Line:
    """What was reported last, and when."""

    fraction, message = 0.0, ""
    due = float("inf")


class Monitor:
    """One object that carries both hooks through the engine.

    ``part(start, stop)`` gives a monitor whose 0..1 is the slice ``start..stop`` of this one, so
    that a function reports its own progress without knowing its caller.
    """

    def __init__(self, progress: Progress | None = None, cancel: Cancel | None = None) -> None:
        if progress is not None and not callable(progress):
            raise TypeError(
                f"progress: got {type(progress).__name__}, want a function of (fraction, message)"
            )
        if cancel is not None and not callable(cancel) and not hasattr(cancel, "is_set"):
            raise TypeError(
                f"cancel: got {type(cancel).__name__}, want a function that returns True to stop, "
                "or an object with is_set() such as threading.Event"
            )
        self._progress = progress
        self._cancel = cancel
        self._span = (0.0, 1.0)
        self._line = _Line()
        self._quiet = False

    def part(self, start: float, stop: float) -> Monitor:
        """Monitor for the slice ``start..stop`` of this one's work."""
        low, high = self._span
        width = high - low
        return self._with((low + start * width, low + stop * width), quiet=self._quiet)

    def silent(self) -> Monitor:
        """A monitor that checks for cancellation, and at most repeats what was reported last."""
        return self._with(self._span, quiet=True)

    def _with(self, span: tuple[float, float], *, quiet: bool) -> Monitor:
        """One of the same hooks, which knows what was reported last."""
        other = Monitor(self._progress, self._cancel)
        other._span, other._line, other._quiet = span, self._line, quiet
        return other

    def report(self, fraction: float, message: str) -> None:
        """Report the fraction done; raise `Cancelled` if the work is to stop."""
        if self._quiet:
            self.check()
            return
        self._ask()
        self.tell(fraction, message)

    def tell(self, fraction: float, message: str) -> None:
        """Report the fraction done, without asking whether to stop."""
        if self._progress is not None and not self._quiet:
            low, high = self._span
            line = self._line
            line.fraction = low + min(max(fraction, 0.0), 1.0) * (high - low)
            line.message = message
            self._say(line)

    def check(self) -> None:
        """Raise `Cancelled` if the ``cancel`` hook says so, ``KeyboardInterrupt`` after Ctrl-C.

        After `PULSE` seconds of silence the last report is repeated.
        """
        self._ask()
        if monotonic() >= self._line.due:
            self._say(self._line)

    def _ask(self) -> None:
        safe_point()
        if self.cancelled():
            raise Cancelled("cancelled")

    def _say(self, line: _Line) -> None:
        line.due = monotonic() + PULSE
        if self._progress is not None:
            self._progress(line.fraction, line.message)

    def cancelled(self) -> bool:
        """What the ``cancel`` hook says; a hook for calls that take one."""
        cancel = self._cancel
        return cancel is not None and bool(cancel() if callable(cancel) else cancel.is_set())


SILENT = Monitor()
"""Reports nothing and never stops."""
