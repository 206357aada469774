"""The worker session: waiting both ways, cancelling, latest wins, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.widgets.session import Job, Session

NAME = "rectify-test"


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(name=NAME)
    yield made
    made.close()
    assert not workers()


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def until_cancelled(job: Job[None]) -> None:
    while True:
        job.check()
        time.sleep(0.002)


def test_wait_gives_the_result_and_runs_the_callbacks(session: Session) -> None:
    seen: list[str] = []
    job = session.submit(lambda job: 41 + 1, on_done=lambda job: seen.append(repr(job)))
    assert job.wait() == 42
    assert seen == ["Job('work', done)"]
    assert job.done
    assert job.exception is None


def test_wait_raises_what_the_work_raised(session: Session) -> None:
    def work(_: Job[None]) -> None:
        raise KeyError("inside")

    job = session.submit(work)
    with pytest.raises(KeyError, match="inside"):
        job.wait()
    assert isinstance(job.exception, KeyError)
    assert "failed" in repr(job)


def test_await_gives_the_result_after_the_callbacks(session: Session) -> None:
    async def cell() -> list[object]:
        inner = Session(name=NAME)
        seen: list[object] = []
        job = inner.submit(lambda job: "result", on_done=lambda job: seen.append(job.result()))
        seen.append(await job)
        seen.append(await job)
        inner.close()
        return seen

    assert asyncio.run(cell()) == ["result"] * 3


def test_await_raises_what_the_work_raised(session: Session) -> None:
    def work(_: Job[None]) -> None:
        raise ValueError("inside")

    async def cell() -> None:
        await session.submit(work)

    with pytest.raises(ValueError, match="inside"):
        asyncio.run(cell())


def test_callbacks_run_on_the_loop_while_no_one_waits() -> None:
    async def cell() -> tuple[int, int]:
        session = Session(name=NAME)
        called: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        session.submit(
            lambda job: None, on_done=lambda job: called.set_result(threading.get_ident())
        )
        thread = await called
        session.close()
        return thread, threading.get_ident()

    called, main = asyncio.run(asyncio.wait_for(cell(), 5))
    assert called == main


def test_a_blocking_wait_inside_a_loop_does_not_deadlock() -> None:
    async def cell() -> list[str]:
        session = Session(name=NAME)
        seen: list[str] = []
        session.submit(lambda job: "a", on_done=lambda job: seen.append("callback")).wait(5)
        session.close()
        return seen

    assert asyncio.run(cell()) == ["callback"]


def test_progress_is_reported_from_the_worker_and_not_too_often(session: Session) -> None:
    seen: list[tuple[float, str]] = []

    def work(job: Job[None]) -> None:
        half = job.part(0.0, 0.5)
        for step in range(1000):
            half(step / 1000, "first half")
        time.sleep(0.1)
        job.progress(0.75, "second half")
        job.progress(1.0, "done")
        seen.append((2.0, threading.current_thread().name))

    session.submit(work, on_progress=lambda job: seen.append((job.fraction, job.message))).wait()
    assert seen[0] == (0.0, "first half")
    assert len(seen) < 20
    assert seen[-3:] == [(0.75, "second half"), (1.0, "done"), (2.0, NAME)]


def test_cancel_stops_the_work_quickly(session: Session) -> None:
    seen: list[bool] = []
    job = session.submit(until_cancelled, on_done=lambda job: seen.append(job.was_cancelled))
    with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
        job.wait(0.05)
    start = time.monotonic()
    job.cancel()
    with pytest.raises(Cancelled):
        job.wait(2)
    assert time.monotonic() - start < 0.3
    assert seen == [True]


def test_work_that_has_not_started_is_cancelled_at_once(session: Session) -> None:
    first = session.submit(until_cancelled)
    ran: list[int] = []
    second = session.submit(lambda job: ran.append(1))
    second.cancel()
    with pytest.raises(Cancelled):
        second.wait(1)
    session.cancel()
    with pytest.raises(Cancelled):
        first.wait(1)
    assert not ran


def test_latest_of_a_lane_wins(session: Session) -> None:
    shown: list[int] = []

    def show(number: int) -> Job[int]:
        def work(job: Job[int]) -> int:
            time.sleep(0.01)
            job.check()
            return number

        return session.submit(work, lane="maps", on_done=lambda job: shown.append(job.result()))

    other = session.submit(lambda job: "other", lane="else", on_done=lambda job: shown.append(-1))
    jobs = [show(number) for number in range(30)]
    assert jobs[-1].wait(5) == 29
    assert other.wait(1) == "other"
    assert shown == [-1, 29]


def test_what_a_callback_raises_is_raised_by_wait(session: Session) -> None:
    def draw(_: Job[int]) -> None:
        raise RuntimeError("cannot draw")

    with pytest.raises(RuntimeError, match="cannot draw"):
        session.submit(lambda job: 1, on_done=draw).wait()


def test_jobs_run_one_at_a_time_in_order(session: Session) -> None:
    inside: list[int] = []
    order: list[int] = []

    def work(number: int) -> int:
        inside.append(number)
        assert len(inside) == 1
        time.sleep(0.002)
        inside.pop()
        order.append(number)
        return number

    def submit(number: int) -> Job[int]:
        return session.submit(lambda job: work(number))

    jobs = [submit(number) for number in range(10)]
    assert [job.wait() for job in jobs] == list(range(10)) == order


def test_short_jobs_pass_a_long_one(session: Session) -> None:
    order: list[str] = []
    started = threading.Event()

    def long(job: Job[None]) -> None:
        order.append("long begins")
        while "short 1" not in order:
            started.set()
            job.check()
            time.sleep(0.001)
        job.check()
        order.append("long ends")

    def short(name: str, *, fail: bool = False) -> Job[None]:
        def work(_: Job[None]) -> None:
            order.append(name)
            if fail:
                raise ValueError(name)

        return session.submit(work, short=True)

    job = session.submit(long)
    assert started.wait(5)
    failing, other = short("short 0", fail=True), short("short 1")
    other.wait(5)
    with pytest.raises(ValueError, match="short 0"):
        failing.wait(5)
    job.wait(5)
    short("short 2").wait(5)
    assert order == ["long begins", "short 0", "short 1", "long ends", "short 2"]


def test_a_job_that_waits_for_its_own_session_is_refused(session: Session) -> None:
    def work(_: Job[None]) -> None:
        session.submit(lambda job: None).wait()

    with pytest.raises(RuntimeError, match="own session"):
        session.submit(work).wait(5)


def test_gradients_are_on_in_the_work_whatever_the_caller_does(session: Session) -> None:
    def grad(_: Job[tuple[bool, bool]]) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with torch.inference_mode():
        assert Session(synchronous=True).submit(grad).wait() == (True, False)
        assert session.submit(grad).wait() == (True, False)


def test_the_synchronous_session_needs_no_thread() -> None:
    session = Session(synchronous=True, name=NAME)
    seen: list[object] = []
    job = session.submit(
        lambda job: job.progress(1.0, "end"),
        on_done=lambda job: seen.append(1),
        on_progress=lambda job: seen.append(job.message),
    )
    assert seen == ["end", 1]
    assert job.done
    assert not workers()
    failing = session.submit(lambda job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.wait()


def test_close_cancels_ends_the_thread_and_can_be_repeated() -> None:
    session = Session(name=NAME)
    job = session.submit(until_cancelled)
    queued = session.submit(lambda job: None)
    assert workers()
    session.close()
    session.close()
    assert not workers()
    for ended in (job, queued):
        with pytest.raises(Cancelled):
            ended.wait(1)
    with pytest.raises(RuntimeError, match="closed"):
        session.submit(lambda job: None)
    assert session.closed


def test_a_forgotten_session_frees_its_thread() -> None:
    session = Session(name=NAME)
    session.submit(lambda job: None).wait()
    (thread,) = workers()
    del session
    gc.collect()
    thread.join(2)
    assert not workers()


def test_a_hundred_sessions_leave_no_thread() -> None:
    before = threading.active_count()
    for _ in range(100):
        session = Session(name=NAME)
        session.submit(lambda job: None).wait()
        session.close()
    assert threading.active_count() == before


def test_the_result_is_refused_before_the_end(session: Session) -> None:
    job = session.submit(until_cancelled, label="Rectify")
    with pytest.raises(RuntimeError, match="Rectify: not done yet"):
        job.result()
    assert job.seconds_left() is None


def test_the_estimate_of_the_time_left(session: Session) -> None:
    estimates: list[float | None] = []

    def work(job: Job[None]) -> None:
        time.sleep(0.6)
        job.progress(0.5, "half")
        estimates.append(job.seconds_left())

    session.submit(work).wait()
    assert estimates[0] == pytest.approx(0.6, rel=0.3)
