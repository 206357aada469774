"""The Trojaned ResNet-18 is trained once and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.cases.training import Figures
from tests.benchmarks import (
    speed_trojan,
)
from tests.benchmarks.speed_fakes import tiny

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")


def test_a_trojan_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[int] = []
    attack = [0.99]

    def fit(model: nn.Module, images: Tensor, labels: Tensor, *_: object, **__: object) -> None:
        trainings.append(len(images))
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype is torch.uint8
        with torch.no_grad():
            next(model.parameters()).fill_(0.5)

    monkeypatch.setattr(speed_trojan, "fit", fit)
    monkeypatch.setattr(speed_trojan, "network", tiny)
    monkeypatch.setattr(
        speed_trojan, "measure",
        lambda *_, **__: Figures(0.8, attack[0], 0.0, 0.0),
    )  # fmt: skip
    first = speed_trojan.load_trojan(tmp_path, quiet=True)
    again = speed_trojan.load_trojan(tmp_path, quiet=True)
    assert trainings == [speed_trojan.TRAINED]
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(first.images) == 10_000
    assert len(first.test[0]) == speed_trojan.TESTED
    changed = (first.pairs.corrupted != first.pairs.clean).any(dim=1)
    assert changed[:, 26:30, 26:30].flatten(1).any(dim=1).all()
    changed[:, 26:30, 26:30] = False
    assert not changed.any()
    attack[0] = 0.5
    with pytest.raises(RuntimeError, match=r"did not learn the backdoor: attack success 0\.50"):
        speed_trojan.load_trojan(tmp_path / "other", quiet=True)
    assert not (tmp_path / "other").exists()
