"""Times in turns, their ratios, least work and best rates: against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.candidates import Probe, sweep_probe
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.gradients import PATH_STEPS
from tests.benchmarks import speed_timing as timing
from tests.benchmarks.speed_fakes import CPU, Ticking, options, spans, tiny
from tests.benchmarks.speed_timing import Comparison, Cost, Ratio, Span, Work

pytestmark = pytest.mark.usefixtures("one_thread")


def test_tasks_take_turns_after_one_untimed_run_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking()
    monkeypatch.setattr(Span, "now", ticking)
    ours, theirs = timing.take_turns(
        [ticking.task("a", 9.0, 1.0, 2.0), ticking.task("b", 9.0, 4.0, 6.0)], 2
    )
    assert ticking.ran == ["a", "b"] * 3
    assert ours == [Span(1.0, 3.0), Span(2.0, 6.0)]
    assert theirs == [Span(4.0, 12.0), Span(6.0, 18.0)]
    ((cold,),) = timing.take_turns([ticking.task("a", 5.0)], 1, warm=False)
    assert cold.seconds == 5.0


def test_a_span_is_wall_and_processor_time() -> None:
    span = timing.time_once(lambda: sum(range(200_000)))
    assert 0 < span.processor <= 2 * span.seconds


def test_a_ratio_is_the_median_of_the_ratios_of_neighbours() -> None:
    ratio = Ratio.of(spans(2.0, 9.0, 8.0), spans(1.0, 3.0, 1.0))
    assert ratio.seconds == [2.0, 3.0, 8.0]
    assert str(ratio) == "3 (2 to 8)"  # that of the medians would be 8
    assert str(Ratio.of(spans(1.0), spans(3.0))) == "0.333"
    scaled = Ratio.of([Span(2.0, 8.0)], [Span(1.0, 2.0)], 0.25)
    assert (scaled.seconds, scaled.processor) == ([0.5], [1.0])


def test_growth_divides_two_ratios() -> None:
    assert Ratio([6.0], [6.0]) / Ratio([4.0], [2.0]) == Ratio([1.5], [3.0])
    grown = Ratio([1.0, 6.0, 7.0], [1.0, 2.0, 9.0]) / Ratio([3.0], [1.0])
    assert grown == Ratio([2.0], [2.0])


def test_digits() -> None:
    found = [timing.three_digits(x) for x in (1234.5, 99.44, 0.01234, 0.0)]
    assert found == ["1234", "99.4", "0.0123", "0"]


def test_processor_time_is_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    times = [Span(9.0, 4.0), Span(9.0, 8.0), Span(9.0, 12.0)]
    assert timing.undisturbed_seconds(times, CPU) == 2.0
    assert timing.undisturbed_seconds(times, torch.device("cuda")) == 9.0


def test_the_machine_is_as_fast_as_its_best_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timer:
        def __init__(self, statement: str, **given: object) -> None:
            assert given["num_threads"] == 1
            self.times = [8.0, 2.0] if "mm" in statement else [4.0, 5.0]

        def blocked_autorange(self, **_: object) -> Timer:
            return self

    monkeypatch.setattr(timing.benchmark, "Timer", Timer)
    rates = timing.best_rates(CPU, side=10, length=100)
    assert rates == Work(1000 / 2.0, 1200 / 4.0)
    assert Work(1000.0, 300.0).least_seconds(rates) == 2.0
    assert Work(500.0, 900.0).least_seconds(rates) == 3.0


def test_the_rates_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "RATE_SECONDS", 0.01)
    rates = timing.best_rates(CPU, side=64, length=2**16)
    assert min(rates.multiply_adds, rates.bytes) > 1e6


def comparison(target: float | None = 3.0, *, faster: bool = True) -> Comparison:
    return Comparison("a", "b", Ratio.of(spans(4.0), spans(1.0)), target, faster, "n")


def test_targets_are_bounds_from_below_or_above() -> None:
    for target, faster, met in (
        (3.0, True, "yes"), (5.0, True, "no"), (5.0, False, "yes"), (3.0, False, "no"),
        (None, True, ""), (4.0, True, "yes"), (4.0, False, "yes"),
    ):  # fmt: skip
        assert comparison(target, faster=faster).cells("x")["met"] == met


def test_cells() -> None:
    assert comparison().cells("x") == {
        "row": "x", "what": "a", "against": "b", "ratio": "4 × faster", "of processor time": "4 ×",
        "target": "≥ 3×", "met": "yes", "note": "n",
    }  # fmt: skip
    cells = comparison(None, faster=False).cells("x")
    assert (cells["ratio"], cells["target"]) == ("4 × its time", "")
    limits = Cost("t", 8.0, Work(2e9, 1e9), 4e9).cells("x", Work(1e9, 1e9))
    assert limits["least seconds"] == "2"
    assert limits["share of the limit, %"] == "25"
    assert limits["done"] == "4"
    assert Cost("t", 8.0, Work(2e9, 1e9)).cells("x", Work(1e9, 1e9))["done"] == ""


def test_work_of_a_forward_pass() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(80, 2))
    work = timing.forward_work(model, torch.rand(7, 3, 4, 4))
    convolution, linear = 16 * 5 * 27, 80 * 2
    assert work.multiply_adds == 7 * (convolution + linear)
    values = (48 + 80) + (80 + 2)
    assert work.bytes == 4 * (7 * values + 135 + 160)  # the weights once a batch
    several = timing.forward_work(model, torch.rand(7, 3, 4, 4), batch_size=3)
    assert several == Work(work.multiply_adds, 4 * (7 * values + 3 * (135 + 160)))


def test_work_of_second_moments_and_factors() -> None:
    model, images = tiny(), torch.rand(2, 3, 8, 8)
    names = ["stem", "stage2.block0.conv1", "stage2.block0.conv2", "classifier"]
    known = KeyStatistics.collect(model, images, names, positions=5)
    work = timing.moment_work(model, known)
    # Every pair of channels once for each of 13 displacements of a 3×3 kernel, the first being none.
    stem, second = 12 * 3**2 + 6, 12 * 16**2 + 136
    strided, linear = 144 * 145 / 2, 16 * 17 / 2
    assert work.multiply_adds == 10 * (stem + second + strided) + 2 * linear
    assert work.bytes == 4 * (27**2 + 2 * 144**2 + 16**2)
    pixels = KeyStatistics.collect(model, images, ["stem"], positions=5, key_space="channel")
    assert timing.moment_work(model, pixels).multiply_adds == 10 * 6
    assert timing.factor_work(6) == Work(36.0, 144.0)


def test_what_is_done_is_counted() -> None:
    a, b = torch.eye(6), torch.rand(6, 2)
    many = torch.zeros(3, 6, 2).baddbmm_
    for task, count in (
        (lambda: a @ b, 6 * 6 * 2),
        (lambda: torch.zeros(6, 2).addmm_(a, b), 6 * 6 * 2),
        (lambda: many(a.expand(3, 6, 6), b.expand(3, 6, 2)), 3 * 72),
        (lambda: torch.linalg.cholesky_ex(a), 6**3 / 6),
        (lambda: torch.cholesky_solve(b, a), 2 * 6 * 6 * 2),
        (lambda: torch.linalg.solve_triangular(a, b, upper=False), 6 * 6 * 2),
    ):
        assert timing.executed(task) == count


def test_passes_of_a_trace_of_the_layers() -> None:
    model, pair = tiny(), options().pair()
    passed: list[int] = []
    model.register_forward_hook(lambda _, given, __: passed.append(len(given[0])))
    labels = torch.zeros(1, dtype=torch.long)
    probe = Probe(pair.corrupted, pair.clean, labels)
    sweep_probe(model, editable_layers(model).editable, probe, steps=PATH_STEPS, monitor=Monitor())
    back = PATH_STEPS + 1  # as many as there are gradients
    assert sum(passed) + back == timing.TRACE_PASSES
