"""Which edits a round tries: each layer at the top once before any is tried again, none twice.

Oracle: candidates with made-up predictions, whose order can be told by hand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from rectify_widgets.engine.find.candidates import Candidate
from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.repair.shortlist import TRIALS, shortlist
from tests.engine.models import images, make

BY_EDIT = RANKING_METHODS["edit-attribution"]
BY_LAYER = RANKING_METHODS["projection"]


def options_of(shares: dict[str, list[float]]) -> dict[str, list[Candidate]]:
    """Layers with edits of these predictions, each at right angles to the others of its layer."""
    layers = list(editable_layers(make("residual"), images(2)))
    found: dict[str, list[Candidate]] = {}
    for layer, (name, values) in zip(layers, shares.items(), strict=False):
        own = replace(layer, name=name)
        found[name] = []
        for number, share in enumerate(values):
            left = torch.zeros(own.groups, own.outputs // own.groups)
            right = torch.zeros(own.groups, own.key_size)
            left[:, 0], right[:, number] = 1.0, 1.0
            found[name].append(Candidate(own, "key", 10.0**-number, left, right, share, 0.0))
    assert len(found) == len(shares)
    return found


def tried(options: dict[str, list[Candidate]], method: str = BY_EDIT.name) -> list[str]:
    scores = {name: found[0].score if found else 0.0 for name, found in options.items()}
    chosen = shortlist(options, scores, RANKING_METHODS[method])
    assert len(chosen) == len(set(chosen))
    return [f"{one.layer.name}{options[one.layer.name].index(one)}" for one in chosen]


@pytest.mark.parametrize("method", [BY_EDIT.name, BY_LAYER.name])
def test_every_layer_comes_once_before_any_comes_again(method: str) -> None:
    options = options_of({"a": [0.9, 0.88, 0.86], "b": [0.5, 0.4], "c": [0.3], "d": []})
    assert tried(options, method) == ["a0", "b0", "c0", "a1", "a2", "b1"]


def test_layers_that_fill_the_list_with_their_second_edits_keep_none_out() -> None:
    """By prediction alone the first ten edits are those of four layers."""
    shares = {name: [0.9, 0.89, 0.88] for name in "abcd"} | {name: [0.2] for name in "ef"}
    order = tried(options_of(shares))
    assert order[:6] == [f"{name}0" for name in "abcdef"]
    assert Counter(name[0] for name in order[6:]) == {"a": 2, "b": 2, "c": 1, "d": 1}


def test_an_edit_that_is_there_twice_is_tried_once() -> None:
    options = options_of({"a": [0.9, 0.1], "b": [0.5]})
    twin = replace(options["a"][0], direction="contrast")
    options["a"].insert(1, twin)
    assert tried(options) == ["a0", "b0", "a2"]
    small = options["b"][0]
    tiny = replace(small, left=1e-20 * small.left, right=1e-20 * small.right)
    options["b"] = [tiny, replace(tiny, direction="contrast")]
    assert tried(options)[:2] == ["a0", "b0"]
    assert len([name for name in tried(options) if name[0] == "b"]) == 1


def test_where_trials_take_long_no_edit_is_tried_that_costs_more_than_it_closes() -> None:
    options = options_of({"a": [0.9, -0.1], "b": [0.0, -0.2], "c": [0.3, 0.2]})
    scores = {name: found[0].score for name, found in options.items()}
    names = [one.layer.name for one in shortlist(options, scores, BY_EDIT, hopeful=True)]
    assert names == ["a", "c", "c"]
    every = shortlist(options, scores, BY_LAYER)
    assert every == shortlist(options, scores, BY_LAYER, hopeful=True)  # it predicts no cost
    del options["a"], options["c"]
    assert len(shortlist(options, scores, BY_EDIT, hopeful=True)) == 2  # there are no others


def test_all_that_the_predictions_alone_would_try_is_tried() -> None:
    layers = "abcdefg"
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(len(layers), 3, generator=draw).sort(dim=1, descending=True).values
    options = options_of(dict(zip(layers, values.tolist(), strict=True)))
    flat = sorted(
        (one.score, one.layer.name, one.ridge) for each in options.values() for one in each
    )
    scores = {name: found[0].score for name, found in options.items()}
    chosen = {(one.layer.name, one.ridge) for one in shortlist(options, scores, BY_EDIT)}
    assert {(name, ridge) for _, name, ridge in flat[-TRIALS:]} <= chosen
