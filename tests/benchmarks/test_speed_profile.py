"""Profiles name operators and add up."""

from __future__ import annotations

import pytest

from tests.benchmarks import (
    speed_profile,
)
from tests.benchmarks.speed_fakes import bench

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def test_profiles_name_operators_and_add_up() -> None:
    for name in ("statistics", "sweep", "solving"):
        rows = speed_profile.profile(name, bench())
        assert len(rows) == speed_profile.SHOWN + 2
        assert {row["task"] for row in rows} == {name}
        assert sum(float(row["share, %"]) for row in rows[:-1]) == pytest.approx(100, abs=1)
        assert not any(str(row["operator"]).startswith("aten::") for row in rows)
