"""One thread for tiny networks, and a tiny Trojaned network that many tests share."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from rectify_widgets.engine.base import progress
from tests.engine.toy import Toy, load


@pytest.fixture(scope="session", autouse=True)
def unhurried() -> Iterator[None]:
    """No report is repeated after a second of silence: tests count them, on machines of any speed."""
    before, progress.PULSE = progress.PULSE, math.inf
    yield
    progress.PULSE = before


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for one another here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trojan() -> Toy:
    """A tiny Trojaned network, which tests leave as it is."""
    return load()
