"""Progress that can be believed: what a bar promises, and that it is never silent for long.

Oracle: work of known length on a clock that the test turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest

from rectify_widgets.engine.base import progress
from rectify_widgets.engine.base.pace import Pace, expected
from rectify_widgets.engine.base.progress import PULSE, UNKNOWN, Cancelled, Monitor
from rectify_widgets.engine.repair.trials import rounds_to_come


class Clock:
    """Seconds that pass when the test says so."""

    now = 5.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """What a bar showed, and when."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.start = clock, clock.now
        self.reports: list[tuple[float, float]] = []

    def __call__(self, fraction: float, message: str) -> None:
        assert message
        self.reports.append((self.clock.now - self.start, fraction))

    def work(self, monitor: Monitor, seconds: float, steps: int = 10) -> None:
        """A stage of some seconds, at a constant rate."""
        for step in range(steps):
            monitor.report(step / steps, "working")
            self.clock.now += seconds / steps


@pytest.mark.parametrize("known", [None, 4.0, 40.0])
def test_a_stage_at_a_constant_rate_is_told_from_its_first_half(known: float | None) -> None:
    for share in (0.5, 0.75, 1.0):
        told = expected(12.0 * share, share, known)
        assert told is not None
        assert told == pytest.approx(12.0, rel=0.6 if share < 1.0 else 1e-9)
    assert expected(1.0, 0.0, known) == (None if known is None else 2.0 + known)


def test_the_bar_is_the_share_of_the_time_where_times_are_known() -> None:
    clock = Clock()
    heard = Heard(clock)
    pace = Pace(Monitor(heard), clock)
    stages = 2 * [("proposing", 6.0), ("trying", 4.0)]
    left = 20.0
    for name, takes in stages:
        left -= takes
        heard.work(pace.stage(name, partial(lambda rest, _: rest, left), takes), takes)
    assert pace.took == pytest.approx({"proposing": 6.0, "trying": 4.0})
    for at, fraction in heard.reports:
        assert fraction == pytest.approx(at / 20.0, abs=0.05)


def test_no_time_is_told_while_none_is_known() -> None:
    clock = Clock()
    heard = Heard(clock)
    pace = Pace(Monitor(heard), clock)
    for name in ("reading", "proposing", "trying"):
        heard.work(pace.stage(name, lambda _: None), 10.0)
    shown = [fraction for _, fraction in heard.reports]
    assert shown == sorted(shown)
    assert 0.0 < shown[-1] <= UNKNOWN
    heard.work(pace.stage("refining", lambda _: 10.0, 60.0), 60.0)
    assert heard.reports[-1][1] == pytest.approx(84.0 / 100.0, abs=0.02)


def test_the_bar_waits_where_more_is_left_than_was_thought() -> None:
    clock = Clock()
    heard = Heard(clock)
    pace = Pace(Monitor(heard), clock)
    heard.work(pace.stage("trying", lambda _: 0.0, 10.0), 10.0)
    heard.work(pace.stage("refining", lambda _: 30.0, 60.0), 60.0)
    shown = [fraction for _, fraction in heard.reports]
    assert shown == sorted(shown)
    assert shown[-1] == shown[9] == pytest.approx(0.9)


def test_a_stage_asks_whether_to_stop() -> None:
    stop: list[bool] = []
    pace = Pace(Monitor(None, lambda: bool(stop)))
    monitor = pace.stage("trying", lambda _: 0.0)
    monitor.report(0.5, "working")
    stop.append(True)
    with pytest.raises(Cancelled):
        monitor.check()
    with pytest.raises(Cancelled):
        monitor.silent().report(0.0, "working")


def test_fewer_rounds_are_expected_the_later_it_is() -> None:
    told = [rounds_to_come(kept, 10) for kept in range(6)]
    assert told == sorted(told, reverse=True)
    assert told[-1] > 0.0
    assert rounds_to_come(0, 1) == 1.0
    assert rounds_to_come(0, 0) == 0.0


# --- silence -------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all monitors."""
    turned = Clock()
    monkeypatch.setattr(progress, "monotonic", turned)
    monkeypatch.setattr(progress, "PULSE", PULSE)
    return turned


def listened(monitor: Monitor, clock: Clock, passing: Sequence[float]) -> None:
    for seconds in passing:
        clock.now += seconds
        monitor.check()


def test_a_report_is_repeated_while_work_is_silent(clock: Clock) -> None:
    heard: list[tuple[float, str]] = []
    monitor = Monitor(lambda *report: heard.append(report))
    listened(monitor, clock, [9.0])
    assert heard == [], "there is nothing to repeat yet"
    part = monitor.part(0.5, 1.0)
    part.report(0.5, "solving")
    for other in (part, monitor, part.silent(), monitor.part(0.0, 0.1)):
        listened(other, clock, [0.4 * PULSE, 0.5 * PULSE])
        assert heard[-1] == (0.75, "solving")
        count = len(heard)
        listened(other, clock, [0.2 * PULSE])
        assert len(heard) == count + 1
    assert set(heard) == {(0.75, "solving")}


def test_silent_work_reports_nothing_of_its_own(clock: Clock) -> None:
    heard: list[tuple[float, str]] = []
    monitor = Monitor(lambda *report: heard.append(report))
    monitor.report(0.25, "outer")
    silent = monitor.part(0.5, 1.0).silent().part(0.0, 0.5)
    silent.report(0.9, "inner")
    assert heard == [(0.25, "outer")]
    clock.now += 2.0 * PULSE
    silent.report(1.0, "inner")
    assert heard == [(0.25, "outer")] * 2


def test_an_estimate_with_a_time_goes_on_while_work_is_silent(clock: Clock) -> None:
    heard = Heard(clock)
    monitor = Pace(Monitor(heard), clock).stage("trying", lambda _: 0.0, 10.0)
    monitor.report(0.0, "trying")
    listened(monitor.silent(), clock, [2.0 * PULSE] * 3)
    shown = [fraction for _, fraction in heard.reports]
    assert len(shown) == 4
    assert shown == sorted(set(shown))
