"""`Working`: a panel whose buttons start long work, one piece at a time.

Imports the base panel and traitlets.  While something is under way nothing else can be begun; it
reports how far it is and can be cancelled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import traitlets

from rectify_widgets.widgets.base import Panel
from rectify_widgets.widgets.buttons import progress_line
from rectify_widgets.widgets.jobs import Job

T = TypeVar("T")


class Working(Panel):
    """A panel with one piece of long work at a time."""

    busy = traitlets.Bool(False, read_only=True)
    """Whether a button's work is under way."""

    _action: Job[Any] | None = None
    _doing = ""

    def act(
        self, work: Callable[[Job[T]], T], label: str, show: Callable[[Job[T]], None]
    ) -> Job[T]:
        """Have the work done; ``show(job)`` sees it if it succeeds.

        Raises:
            RuntimeError: something else is under way.
        """
        self.check_idle()
        self._doing = label
        self.set_trait("busy", True)
        self.set_trait("progress", 0.0)
        self.set_trait("status", f"{label}: starting …")

        def finish(job: Job[T]) -> None:
            self.set_trait("progress", 1.0)
            self.set_trait("busy", False)
            show(job)

        lane = f"action {id(self)}"
        try:
            self._action = job = self.begin(
                work, lane=lane, label=label, on_done=finish, on_progress=self._report
            )
        except BaseException:  # the session is closed
            self._rest()
            raise
        return job

    def check_idle(self) -> None:
        """Raise a `RuntimeError` if something is under way."""
        if self.busy:
            raise RuntimeError(f"{self._doing} is under way; wait for it, or cancel() it first")

    def cancel(self) -> Job[Any] | None:
        """Stop what is under way; returns its job."""
        job = self._action if self.busy else None
        if job is not None:
            self.set_trait("status", f"{job.label}: stopping …")
            job.cancel()
        return job

    def failed(self, job: Job[Any]) -> None:
        """Show what went wrong and take new work."""
        self._rest()
        super().failed(job)

    def _rest(self) -> None:
        self.set_trait("busy", False)
        self.set_trait("progress", 0.0)

    def _report(self, job: Job[Any]) -> None:
        self.set_trait("progress", min(max(job.fraction, 0.0), 1.0))
        self.set_trait("status", progress_line(job))
