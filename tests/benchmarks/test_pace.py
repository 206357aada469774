"""What the benchmark of progress bars counts, on reports whose truth is known."""

from __future__ import annotations

from tests.benchmarks.pace import promises


def test_a_bar_that_runs_with_the_time_promises_what_comes() -> None:
    told = promises([(float(at), at / 20.0, "working") for at in range(20)], 20.0)
    assert told["seconds"] == 20.0
    assert told["silent"] == 1.0
    assert told["outside, %"] == 0.0
    assert [told[f"at {share}%"] for share in (20, 40, 60, 80)] == ["1.00"] * 4


def test_what_is_promised_too_late_and_not_at_all() -> None:
    """Nothing until 10 s, then 30 s to come of which there are 10."""
    told = promises([(0.0, 0.0, "a"), (5.0, 0.04, "b"), (10.0, 0.25, "c"), (19.0, 0.95, "d")], 20.0)
    assert [told[f"at {share}%"] for share in (20, 40, 60, 80)] == [
        "–", "–",
        f"{30.0 / 8.0:.2f}", f"{30.0 / 4.0:.2f}",
    ]  # fmt: skip
    assert told["outside, %"] == 45.0
    assert (told["silent"], told["after"]) == (9.0, "c")
