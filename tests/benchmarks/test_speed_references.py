"""Growth of the cost of statistics with references, from made-up peaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.benchmarks import (
    speed_references,
)
from tests.benchmarks.memory import Job, Spent
from tests.benchmarks.speed_fakes import SMALL, bench
from tests.benchmarks.speed_timing import Span

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def test_growth_with_references() -> None:
    jobs: list[Job] = []

    def run(job: Job) -> Spent:
        jobs.append(job)
        return Spent(Span(9.0, 0.5 * job.references), 10**8 + job.references * 10**5, 1)

    made = bench(workers=3, sizes=replace(SMALL, streamed=10))
    rows = speed_references.measure_references(made, run)
    assert [job.references for job in jobs] == [10, 40, 160]
    assert {(job.workers, job.threads, job.call) for job in jobs} == {(3, 1, "collect")}
    assert [row["processor, times"] for row in rows] == ["1×", "4×", "16×"]
    assert [row["peak MB"] for row in rows] == ["101", "104", "116"]
    assert [row["peak, times"] for row in rows] == ["1×", "1.03×", "1.15×"]
    assert {row["processor ms a reference"] for row in rows} == {"500"}
    assert {row["seconds"] for row in rows} == {"9"}
