"""The networks that speed is measured on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.benchmarks import (
    speed_networks,
)

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


@pytest.mark.parametrize(
    ("depth", "convolutions", "weights"), [(18, 20, 11.17), (50, 53, 23.52), (101, 104, 42.51)]
)
def test_networks_are_those_of_the_literature(
    depth: int, convolutions: int, weights: float
) -> None:
    with torch.device("meta"):
        model = speed_networks.network(depth)
    assert sum(isinstance(part, nn.Conv2d) for part in model.modules()) == convolutions
    million = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert million == pytest.approx(weights, abs=0.01)


def test_bottlenecks_run_and_repeat() -> None:
    model = speed_networks.BottleneckNetwork((1, 2, 1, 1), (4, 4, 8, 8)).eval()
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, speed_networks.CLASSES)
    one, same, other = (speed_networks.network(18, seed) for seed in (1, 1, 2))
    first, again, another = (model.get_parameter("stem.weight") for model in (one, same, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, another)
