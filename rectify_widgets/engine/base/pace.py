"""How far a call of several stages is: time spent over the time that is expected in all.

What a stage takes is told by its own rate so far and by the last time that it ran.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rectify_widgets.engine.base.progress import UNKNOWN, Monitor


class Pace:
    """Divides the bar of a call among its stages, whose times become known one after the other.

    A stage begins with `stage` and ends where the next one begins.  The bar never goes back: where
    more is left than was thought, it waits.

    Args:
        monitor: of the whole call.
        clock: seconds.
        took: what stages took in an earlier call; the present one is noted there too.

    Attributes:
        monitor: of the whole call.
        took: seconds that each stage took the last time.
        fraction: that was reported last.
    """

    def __init__(
        self,
        monitor: Monitor,
        clock: Callable[[], float] = time.perf_counter,
        took: dict[str, float] | None = None,
    ) -> None:
        self.monitor = monitor
        self.took = {} if took is None else took
        self._clock, self._start = clock, clock()
        self.fraction = 0.0
        self._under_way: tuple[str, float] | None = None

    def stage(
        self, name: str, rest: Callable[[float], float | None], cost: float | None = None
    ) -> Monitor:
        """Begin a stage; gives its monitor.

        Args:
            name: of the stage.
            rest: from the seconds that the stage takes in all to those that follow it; None where
                nobody can tell, then the bar stays below `UNKNOWN`.
            cost: seconds to expect; by default as many as the last time.
        """
        self.end()
        began = self._clock()
        self._under_way = name, began
        known = self.took.get(name) if cost is None else cost
        floor = self.fraction

        def report(share: float, message: str) -> None:
            now = self._clock()
            takes = expected(now - began, share, known)
            ahead = None if takes is None else rest(takes)
            if takes is None or ahead is None:
                done = floor + 0.5 * share * (UNKNOWN - floor)
            else:
                spent = now - self._start
                done = spent / max(spent + takes - (now - began) + ahead, 1e-9)
            self.fraction = max(self.fraction, min(done, 1.0))
            self.monitor.tell(self.fraction, message)

        return Monitor(report, self.monitor.cancelled)

    def end(self) -> None:
        """End the stage that is under way."""
        if self._under_way is not None:
            name, start = self._under_way
            self.took[name] = self._clock() - start
        self._under_way = None


def expected(spent: float, share: float, known: float | None) -> float | None:
    """Seconds that a stage takes in all, ``spent`` of them for ``share`` of it; None if unknown.

    The rate so far counts the more the further the stage is.
    """
    if known is None:
        return spent / share if share > 0 else None
    return spent + (1.0 - share) * (spent + (1.0 - share) * known)
