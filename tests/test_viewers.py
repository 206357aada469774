"""The viewers alone, by their traits, with the synchronous session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.widgets.attribution import AttributionViewer
from rectify_widgets.widgets.editability import EditabilityViewer, row_rules, shorten
from rectify_widgets.widgets.prediction import PredictionViewer
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import (
    LAYERS,
    SCORES,
    fake_localization,
    network,
    pairs,
    texts,
)


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(synchronous=True)
    yield made
    made.close()


def test_attribution_viewer_of_plain_inputs(session: Session) -> None:
    viewer = AttributionViewer(
        network(), torch.rand(3, 1, 9, 9), session=session, method="saliency"
    )
    html = texts(viewer)
    assert "saliency map of the input input" not in html
    assert "Clean" not in html
    assert "class " in html
    viewer.close()


def test_maps_are_cached_and_the_cache_is_bounded(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rectify_widgets import explain
    from rectify_widgets.widgets import attribution

    calls: list[int] = []
    real = explain.attribute

    def count(model: nn.Module, inputs: Tensor, **options: Any) -> Tensor:
        calls.append(len(inputs))
        return real(model, inputs, **options)

    monkeypatch.setattr(attribution, "attribute", count)
    monkeypatch.setattr(attribution, "CACHED", 3)
    viewer = AttributionViewer(network(), pairs(5), session=session, method="saliency")
    for index in (1, 0, 1, 0):
        viewer.index = index
    assert calls == [2, 2]
    viewer.opacity = 0.3
    viewer.signed = False
    assert len(calls) == 2, "a new look needs no new maps"
    for index in (2, 3, 4, 0):
        viewer.index = index
    assert len(calls) == 6
    viewer.after = network()
    assert len(calls) == 7, "the maps before the edit are still good"
    viewer.close()


def test_grad_cam_follows_the_layer(session: Session) -> None:
    viewer = AttributionViewer(network(), pairs(), session=session, method="grad-cam", layer="0")
    first = texts(viewer)
    viewer.layer = "3"
    assert texts(viewer) != first
    with pytest.raises(ValueError, match="no module 'x'"):
        viewer.layer = "x"
    viewer.layer = "6"
    assert isinstance(viewer.error, ValueError)
    assert "name a convolution" in texts(viewer)
    viewer.layer = None
    assert viewer.error is None
    viewer.close()


def test_a_target_is_explained_for_every_input(session: Session) -> None:
    viewer = AttributionViewer(
        network(), pairs(), session=session, target=2, classes=["ape", "bee", "cat"]
    )
    assert texts(viewer).count(">for cat<") == 2
    viewer.target = 7
    assert "0 to 2" in texts(viewer)
    viewer.close()


def test_editability_viewer_of_a_localization(session: Session) -> None:
    found = fake_localization(None, None, method="trial", progress=lambda *_: None)
    viewer = EditabilityViewer(found, session=session)
    assert viewer.layer == "3"
    assert "a layer of no use" in texts(viewer)
    with pytest.raises(ValueError, match="cannot be edited: a layer of no use"):
        viewer.layer = "9"
    with pytest.raises(ValueError, match="want a model"):
        viewer.locate()
    viewer.close()


def test_rows_carry_length_sign_and_number() -> None:
    rules = row_rules("rw-e1", LAYERS, SCORES, ["0"])
    assert len(rules) == 3
    best = next(rule for rule in rules if "★" in rule)
    assert "--a: 11.1%; --b: 100.0%" in best
    assert '"● 0.20"' in rules[0]
    assert '" −0.10"' in rules[2]
    assert "--a: 0.0%; --b: 11.1%" in rules[2]
    assert row_rules("rw-e1", LAYERS, {}, []) == []
    assert shorten("short") == "short"
    long = "features.denseblock4.denselayer16.conv2"
    assert len(shorten(long)) == 26
    assert shorten(long).endswith("denselayer16.conv2"[-17:])


def test_prediction_viewer_without_labels_gives_no_verdict(session: Session) -> None:
    viewer = PredictionViewer(network(), None, torch.rand(2, 1, 9, 9), session=session)
    html = texts(viewer)
    assert "✓" not in html
    assert "●" in html
    viewer.close()


def test_prediction_viewer_judges_by_labels(session: Session) -> None:
    model = network().eval()
    x = torch.rand(3, 1, 9, 9)
    labels = model(x).argmax(dim=1)
    viewer = PredictionViewer(model, model, x, labels=labels, session=session)
    assert viewer.share_right("Input") == [1.0, 1.0]
    with pytest.raises(ValueError, match="labels"):
        PredictionViewer(model, None, x, labels=labels[:2], session=session)
    viewer.close()
