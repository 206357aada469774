"""Peers of `reveal` on features and maps whose odd members are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.benchmarks.reveal_peers import (
    Flags,
    _scored,
    activation_clustering,
    spectral_relevance,
    spectral_signatures,
)

ODD, ALL = 12, 60
TRUTH = np.arange(ALL) < ODD
MODEL = nn.Sequential(nn.Flatten(), nn.Linear(196, 2))


def features() -> np.ndarray:
    """Noise of three dimensions, in one of which the first lie apart."""
    made: np.ndarray = np.random.default_rng(0).normal(size=(ALL, 3))
    made[TRUTH, 2] += 20.0
    return made


@pytest.mark.parametrize("peer", [activation_clustering, spectral_signatures])
def test_members_that_lie_apart_are_flagged(peer: object) -> None:
    assert callable(peer)
    (flags,) = peer(MODEL, torch.zeros(ALL, 1, 14, 14), features(), 0, ODD)
    recall, precision = _scored(flags, TRUTH)
    assert recall == 1.0
    assert precision == (1.0 if peer is activation_clustering else ODD / 18)


def test_maps_that_differ_are_a_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    images = 0.05 * torch.rand(ALL, 1, 14, 14, generator=generator)
    images[:ODD, :, :7] += 1.0
    images[ODD:, :, 7:] += 1.0
    clusters: list[Flags] = spectral_relevance(MODEL, images, np.zeros((ALL, 1)), 0, ODD)
    assert max(_scored(one, TRUTH) for one in clusters) == (1.0, 1.0)


def test_what_is_missed_counts_against_recall() -> None:
    flags = np.array([True, False, True, False])
    truth = np.array([True, True, False, False])
    assert _scored(flags, truth) == (0.5, 0.5)
    assert _scored(flags, truth, 4) == (0.25, 0.5)
    assert _scored(flags & ~flags, truth) == (0.0, 0.0)
