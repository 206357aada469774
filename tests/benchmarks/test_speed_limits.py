"""What a task needs at least and what it does, against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.candidates import Probe, sweep_probe
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.gradients import PATH_STEPS
from tests.benchmarks import (
    speed_limits,
)
from tests.benchmarks.speed_fakes import bench, tiny

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def test_work_of_a_forward_pass() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(80, 2))
    work = speed_limits.forward_work(model, torch.rand(7, 3, 4, 4))
    convolution, linear = 16 * 5 * 27, 80 * 2
    assert work.multiply_adds == 7 * (convolution + linear)
    values = (48 + 80) + (80 + 2)
    assert work.bytes == 4 * (7 * values + 135 + 160)  # the weights once a batch
    several = speed_limits.forward_work(model, torch.rand(7, 3, 4, 4), batch_size=3)
    assert several.bytes == 4 * (7 * values + 3 * (135 + 160))
    assert several.multiply_adds == work.multiply_adds


def test_work_of_second_moments_and_factors() -> None:
    model, images = tiny(), torch.rand(2, 3, 8, 8)
    names = ["stem", "stage2.block0.conv1", "stage2.block0.conv2", "classifier"]
    known = KeyStatistics.collect(model, images, names, positions=5)
    work = speed_limits.moment_work(model, known)
    # Every pair of channels once for each of 13 displacements of a 3×3 kernel, the first being none.
    stem, second = 12 * 3**2 + 6, 12 * 16**2 + 136
    strided, linear = 144 * 145 / 2, 16 * 17 / 2
    assert work.multiply_adds == 10 * (stem + second + strided) + 2 * linear
    assert work.bytes == 4 * (27**2 + 2 * 144**2 + 16**2)
    pixels = KeyStatistics.collect(model, images, ["stem"], positions=5, key_space="channel")
    assert speed_limits.moment_work(model, pixels).multiply_adds == 10 * 6
    assert speed_limits.factor_work([6]) == speed_limits.Work(36.0, 144.0)


def test_what_is_done_is_counted() -> None:
    a, b = torch.eye(6), torch.rand(6, 2)
    assert speed_limits.executed(lambda: a @ b) == 6 * 6 * 2
    assert speed_limits.executed(lambda: torch.zeros(6, 2).addmm_(a, b)) == 6 * 6 * 2
    many = torch.zeros(3, 6, 2).baddbmm_
    assert speed_limits.executed(lambda: many(a.expand(3, 6, 6), b.expand(3, 6, 2))) == 3 * 72
    assert speed_limits.executed(lambda: torch.linalg.cholesky_ex(a)) == 6**3 / 6
    assert speed_limits.executed(lambda: torch.cholesky_solve(b, a)) == 2 * 6 * 6 * 2
    triangular = lambda: torch.linalg.solve_triangular(a, b, upper=False)  # noqa: E731
    assert speed_limits.executed(triangular) == 6 * 6 * 2


def test_passes_of_a_look_at_the_layers() -> None:
    model, pair = tiny(), bench().pair()
    passed: list[int] = []
    model.register_forward_hook(lambda _, given, __: passed.append(len(given[0])))
    labels = torch.zeros(1, dtype=torch.long)
    probe = Probe(pair.corrupted, pair.clean, labels)
    sweep_probe(model, editable_layers(model).editable, probe, steps=PATH_STEPS, monitor=Monitor())
    back = PATH_STEPS + 1  # as many as there are gradients
    assert sum(passed) + back == speed_limits.LOOK_PASSES
