"""The widgets on a model that tells several labels, against its own labels one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import texts

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["cup", "dog", "hat"]
X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
TRUTH = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0]])


class Finds(nn.Module):
    """Three labels as logits; the second is lost where the last pixel is bright."""

    def __init__(self, loss: float) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.loss = nn.Parameter(torch.tensor(loss))

    def forward(self, x: Tensor) -> Tensor:
        bright = (x[:, 0, 3, 3] > 1).float()
        hidden = torch.stack([0 * bright, bright, 0 * bright], dim=1)
        answer: Tensor = 0.1 * self.head(x.flatten(1)) + 2.0 - self.loss * hidden
        return answer


@pytest.fixture
def models() -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        one = Finds(9.0)
    other = Finds(0.0)
    other.head.load_state_dict(one.head.state_dict())
    return [rw.adapt(each.eval(), task="multilabel", scores="logits") for each in (one, other)]


def at_once() -> Session:
    return Session(synchronous=True)


def pairs() -> rw.SamplePairs:
    bad = X.clone()
    bad[..., 3, 3] = 2.0
    return rw.SamplePairs(bad, X, TRUTH)


@pytest.mark.parametrize("target", [None, 1, "dog", torch.tensor(1)])
def test_predictions_are_those_of_the_label_that_the_corruption_hides(
    models: list[nn.Module], target: Any
) -> None:
    viewer = rw.PredictionViewer(
        models[0], models[1], pairs(), target=target, classes=NAMES, session=at_once()
    )
    assert viewer.error is None
    assert viewer.labels is not None
    assert torch.equal(viewer.labels, TRUTH[:, 1])
    assert viewer.counts["corrupted"]["fixed"] == int(TRUTH[:, 1].sum())
    assert viewer.counts["clean"]["broken"] == 0
    before, after = viewer.reports
    assert before.corrupted_accuracy == pytest.approx(float((TRUTH[:, 1] == 0).double().mean()))
    assert after.corrupted_accuracy == pytest.approx(float((TRUTH[:, 1] == 1).double().mean()))
    assert "with dog" in texts(viewer)
    viewer.close()


def test_the_label_to_look_at_can_be_chosen(models: list[nn.Module]) -> None:
    viewer = rw.PredictionViewer(
        models[0], models[1], pairs(), target="hat", classes=NAMES, session=at_once()
    )
    assert viewer.labels is not None
    assert torch.equal(viewer.labels, TRUTH[:, 2])
    assert viewer.counts["corrupted"]["changed"] == 0
    viewer.close()


def test_classes_instead_of_labels_are_refused(models: list[nn.Module]) -> None:
    viewer = rw.PredictionViewer(
        models[0], None, X, labels=torch.zeros(6).long(), session=at_once()
    )
    assert "want zeros and ones, a column for each" in str(viewer.error)
    viewer.close()


def test_maps_explain_the_named_label(models: list[nn.Module]) -> None:
    viewer = rw.AttributionViewer(
        models[0], pairs(), method="saliency", target="dog", classes=NAMES, session=at_once()
    )
    assert viewer.target == 1
    assert viewer.error is None
    assert "dog" in texts(viewer)
    assert "cup" in [text for text, _ in viewer.targets.list.options]
    viewer.close()
