"""Times in turns, their ratios, and the best that the machine gives: arithmetic with made-up clocks."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks import (
    speed_timing,
)
from tests.benchmarks.speed_fakes import CPU, Ticking, spans
from tests.benchmarks.speed_timing import BestRates, Clock, Growth, Ratio, Span

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def test_tasks_take_turns_after_one_untimed_run_of_each() -> None:
    ticking = Ticking()
    ours, theirs = ticking.clock().turns(
        [ticking.task("a", 9.0, 1.0, 2.0), ticking.task("b", 9.0, 4.0, 6.0)], 2
    )
    assert ticking.ran == ["a", "b"] * 3
    assert ours == (Span(1.0, 3.0), Span(2.0, 6.0))
    assert theirs == (Span(4.0, 12.0), Span(6.0, 18.0))


def test_cold_tasks_are_timed_at_once() -> None:
    ticking = Ticking()
    ((span,),) = ticking.clock().turns([ticking.task("a", 5.0)], 1, warm=False)
    assert span.seconds == 5.0


def test_a_ratio_is_the_median_of_the_ratios_of_neighbours() -> None:
    ratio = Ratio(spans(2.0, 9.0, 8.0), spans(1.0, 3.0, 1.0))
    assert ratio.each == [2.0, 3.0, 8.0]
    assert ratio.median == 3.0  # that of the medians would be 8
    assert str(ratio) == "3 (2 to 8)"
    assert str(Ratio(spans(1.0), spans(3.0))) == "0.333"


def test_a_ratio_can_be_reckoned_up_and_knows_processor_time() -> None:
    above, below = (Span(2.0, 8.0),), (Span(1.0, 2.0),)
    assert Ratio(above, below, 0.25).median == 0.5
    assert Ratio(above, below, 0.25).processor == 1.0


def test_growth_divides_two_ratios() -> None:
    growth = Growth(
        Ratio((Span(6.0, 6.0),), (Span(1.0, 1.0),)), Ratio((Span(4.0, 2.0),), (Span(1.0, 1.0),))
    )
    assert (growth.median, growth.processor, str(growth)) == (1.5, 3.0, "1.5")


def test_digits() -> None:
    assert [speed_timing.three_digits(x) for x in (1234.5, 99.44, 0.01234, 0.0)] == [
        "1234", "99.4", "0.0123", "0",
    ]  # fmt: skip


def test_the_machine_is_as_fast_as_its_best_run() -> None:
    time = iter(range(1000))  # one second between two looks
    clock = Clock(CPU, now=lambda: float(next(time)), busy=lambda: 0.25 * next(time))
    machine = BestRates.measure(clock, side=10, length=100)
    # Between the two looks at the processor's time lie two at the other one: 3 · 0.25 seconds.
    assert machine == BestRates(1000 / 0.75, 3 * 4 * 100 / 0.75)
    assert machine.least_seconds(2 * machine.multiply_adds, machine.bytes) == 2.0
    assert machine.least_seconds(machine.multiply_adds, 3 * machine.bytes) == 3.0


def test_a_disturbed_run_does_not_slow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"product": (Span(0.0, 8.0), Span(0.0, 2.0)), "triad": (Span(0.0, 4.0), Span(0.0, 5.0))}
    monkeypatch.setattr(Clock, "turns", lambda *_, **__: list(runs.values()))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert BestRates.measure(Clock(CPU), side=10, length=100) == BestRates(1000 / 2.0, 1200 / 4.0)


def test_processor_time_is_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert Clock(CPU).cost((Span(9.0, 4.0), Span(9.0, 8.0), Span(9.0, 12.0))) == 2.0
