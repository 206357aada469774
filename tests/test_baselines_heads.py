"""Baselines on a model behind an adapter, against the twin that answers with logits."""

from __future__ import annotations

import pytest
import torch

from rectify_widgets.baselines import BASELINES
from rectify_widgets.engine.model.outputs import adapt
from tests.engine.traces import Tiny
from tests.test_baselines import QUICK, repair

pytestmark = pytest.mark.usefixtures("one_thread")


class Probable(Tiny):
    """Answers with probabilities."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(dim=1)


@pytest.mark.parametrize("name", BASELINES)
def test_probabilities_are_changed_as_their_logits_are(name: str) -> None:
    adapted = adapt(Probable(), task="multiclass", scores="probabilities")
    found, plain = (
        repair(name, model=model, validation=None, **QUICK[name]) for model in (adapted, Tiny())
    )
    assert found.options == plain.options
    wanted = plain.model.state_dict()
    state = {key.removeprefix("module."): one for key, one in found.model.state_dict().items()}
    assert list(state) == list(wanted)
    for key, value in wanted.items():
        torch.testing.assert_close(state[key], value)
