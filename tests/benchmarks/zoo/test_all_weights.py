"""The bound: every weight is free, the original stays, and the better rate is taken."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.zoo import all_weights
from tests.benchmarks.zoo.all_weights import free_all_weights
from tests.engine.toy import load


def test_every_weight_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = load()
    monkeypatch.setattr(all_weights, "STEPS", 100)
    monkeypatch.setattr(all_weights, "RATES", (1e-9, 3e-3))
    before = {name: one.clone() for name, one in toy.model.named_parameters()}
    accuracy, success = toy.rates(toy.model)
    model, rate = free_all_weights(toy.model, toy.pairs[0], toy.reference, seed=0)
    assert rate == 3e-3
    for name, now in model.named_parameters():
        assert not torch.equal(now, before[name]), name
    assert all(torch.equal(one, before[name]) for name, one in toy.model.named_parameters())
    repaired, left = toy.rates(model)
    assert repaired > accuracy - 0.02
    assert left < 0.1 * success
