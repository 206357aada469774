"""The viewers alone, by their traits, with the synchronous session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.widgets.editability import EditabilityViewer, row_rules, shorten
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
