"""Progress and cancellation hooks that every long call of the engine takes."""

from __future__ import annotations

from collections.abc import Callable
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
    """A long call was stopped by its ``cancel`` hook."""


class Monitor:
    """One object that carries both hooks through the engine.

    ``part(start, stop)`` gives a monitor whose 0..1 is the slice ``start..stop`` of this one, so
    that a function reports its own progress without knowing its caller.
    """

    def __init__(
        self,
        progress: Progress | None = None,
        cancel: Cancel | None = None,
        *,
        _span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
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
        self._span = _span

    def part(self, start: float, stop: float) -> Monitor:
        """Monitor for the slice ``start..stop`` of this one's work."""
        low, high = self._span
        width = high - low
        return Monitor(
            self._progress, self._cancel, _span=(low + start * width, low + stop * width)
        )

    def silent(self) -> Monitor:
        """A monitor that checks for cancellation and reports nothing."""
        return Monitor(None, self._cancel)

    def report(self, fraction: float, message: str) -> None:
        """Report the fraction done; raise `Cancelled` if the work is to stop."""
        self.check()
        if self._progress is not None:
            low, high = self._span
            self._progress(low + min(max(fraction, 0.0), 1.0) * (high - low), message)

    def check(self) -> None:
        """Raise `Cancelled` if the ``cancel`` hook says so, ``KeyboardInterrupt`` after Ctrl-C."""
        safe_point()
        if self.cancelled():
            raise Cancelled("cancelled")

    def cancelled(self) -> bool:
        """What the ``cancel`` hook says; a hook for calls that take one."""
        cancel = self._cancel
        return cancel is not None and bool(cancel() if callable(cancel) else cancel.is_set())


SILENT = Monitor()
"""Reports nothing and never stops."""
