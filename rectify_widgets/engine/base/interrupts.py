"""Ctrl-C at safe points only: in the middle of a clean-up it would leave half of it undone.

Python raises ``KeyboardInterrupt`` between any two instructions, also within ``__exit__``.  While a
model is worked on the signal is noted instead, and `safe_point` raises it: before and after every
forward pass and wherever a call asks whether it is cancelled.  A second Ctrl-C is not held back.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], Any]


class _State:
    """Of the main thread, which alone gets signals."""

    handler: _Handler | None = None
    """The caller's, while it is held back."""
    noted: tuple[int, FrameType | None] | None = None


def _note(number: int, frame: FrameType | None) -> None:
    handler = _State.handler
    if _State.noted is not None and handler is not None:  # asked twice
        _State.noted = None
        handler(number, frame)
    else:
        _State.noted = (number, None)


@contextmanager
def at_safe_points() -> Iterator[None]:
    """Hold Ctrl-C back in the block until a `safe_point`, or its end."""
    here = threading.current_thread() is threading.main_thread()
    handler: Any = signal.getsignal(signal.SIGINT) if here else None
    if handler is _note or not callable(handler):
        yield
        return
    _State.handler = handler
    signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        safe_point()


def safe_point() -> None:
    """Raise ``KeyboardInterrupt`` here if Ctrl-C was pressed since the last one."""
    if _State.noted is None or threading.current_thread() is not threading.main_thread():
        return
    noted, _State.noted = _State.noted, None
    if _State.handler is not None:
        _State.handler(*noted)
