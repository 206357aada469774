"""Which layer to edit: scores, their rendering, and trials measured again by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find import ranking
from rectify_widgets.engine.find.candidates import Candidate
from rectify_widgets.engine.find.localization import Localization, localize
from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.gradients import sweep
from rectify_widgets.engine.model.running import eval_mode
from rectify_widgets.engine.repair.solving import solve_edit
from tests.engine import oracles
from tests.engine.models import branches, images, make
from tests.engine.test_editing import patched
from tests.engine.test_layer_catalog import LAYERS
from tests.engine.toy import Toy, stamped


def scored(toy: Toy, **options: Any) -> Localization:
    return localize(toy.model, toy.pairs[0], **{"reference": toy.reference, **options})


@pytest.mark.parametrize("method", RANKING_METHODS)
def test_every_layer_is_scored_best_first(trojan: Toy, method: str) -> None:
    found = scored(trojan, method=method)
    assert found.method == method
    assert set(found.scores) == set(LAYERS["residual"])
    assert found.order == tuple(LAYERS["residual"])
    values = list(found.scores.values())
    assert values == sorted(values, reverse=True)
    assert found.best == next(iter(found.scores))
    assert not found.refused
    assert set(found.choices) == set(found.scores)
    for direction, ridge in found.choices.values():
        assert direction in {"contrast", "key"}
        assert ridge in {1e-3, 1e-2, 1e-1, 1.0}
    assert set(found.completeness) == set(found.scores)
    assert found.completeness["head"] < 0.01
    assert found.completeness["block2.short"] > 0.5
    assert found.kinds["head"] == "Linear"
    assert found.kinds["stem"] == "Conv2d 3×3"
    again = scored(trojan, method=method)
    assert again.scores == found.scores
    assert again.choices == found.choices


def distance(one: Tensor, other: Tensor) -> float:
    """Mean total variation distance between predictions."""
    return float((one.softmax(1) - other.softmax(1)).abs().sum(dim=1).mean() / 2)


def share_closed(toy: Toy, model: nn.Module, reference: Tensor) -> float:
    """By which share an edited model has made gap and disturbance smaller."""
    with torch.no_grad():
        clean, dirty = toy.model(reference), toy.model(stamped(reference))
        before = distance(dirty, clean)
        after = distance(model(stamped(reference)), clean) + 2 * distance(model(reference), clean)
    return (before - after) / before


def by_hand(toy: Toy, found: Localization, name: str, statistics: KeyStatistics) -> float:
    """What the edit that was chosen for a layer closes of the gap, measured on 24 references."""
    model = copy.deepcopy(toy.model)
    direction, ridge = found.choices[name]
    solve_edit(
        model, toy.pairs[0], layer=name, statistics=statistics, direction=direction, ridge=ridge
    ).apply(model)
    return share_closed(toy, model, toy.reference[:24])


def test_trial_agrees_with_measuring_by_hand(trojan: Toy) -> None:
    """With few references edits are solved from the pair alone, as `solve_edit` does."""
    reference = trojan.reference[:24]
    statistics = KeyStatistics.collect(trojan.model, reference)
    found = scored(trojan, method="trial", reference=reference, statistics=statistics)
    for name, score in found.scores.items():
        measured = by_hand(trojan, found, name, statistics)
        assert score == pytest.approx(measured, abs=1e-4), name


def test_the_default_is_verified_by_trials(trojan: Toy) -> None:
    """The best layer's score is no prediction but what its edit was measured to do."""
    reference = trojan.reference[:24]
    statistics = KeyStatistics.collect(trojan.model, reference)
    options = {"reference": reference, "statistics": statistics}
    found = scored(trojan, **options)
    measured = by_hand(trojan, found, found.best, statistics)
    assert found.scores[found.best] == pytest.approx(measured, abs=1e-4)
    predicted = scored(trojan, **options, trials=0)
    measured = by_hand(trojan, predicted, predicted.best, statistics)
    assert predicted.scores[predicted.best] != pytest.approx(measured, abs=1e-4)


# --- the edit that was scored --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["trial", "edit-attribution"])
def test_the_edit_that_was_scored_can_be_had(
    trojan: Toy, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit; applied, it closes the share of the gap that its trial measured."""
    tried: dict[tuple[str, float], Candidate] = {}
    closed = ranking.Trial.closed

    def noting(trial: ranking.Trial, candidate: Candidate) -> float:
        share = closed(trial, candidate)
        tried[candidate.layer.name, share] = candidate
        return share

    monkeypatch.setattr(ranking.Trial, "closed", noting)
    found = scored(trojan, method=method)
    assert (found.best, found.scores[found.best]) in tried
    assert found.edit() is found.edit(found.best)
    for name, score in found.scores.items():
        edit = found.edit(name)
        assert (edit.direction, edit.ridge) == found.choices[name]
        assert edit.left.untyped_storage().nbytes() == edit.left.nbytes  # and nothing else alive
        assert edit.right.untyped_storage().nbytes() == edit.right.nbytes
        if candidate := tried.get((name, score)):
            assert torch.equal(edit.left, candidate.left.flatten())
            assert torch.equal(edit.right.flatten(), candidate.right.flatten())
            edit.apply(model := copy.deepcopy(trojan.model))
            measured = share_closed(trojan, model, trojan.reference)
            assert score == pytest.approx(measured, abs=1e-4)
        else:
            assert method == "edit-attribution"  # which tries the most promising ones alone


def test_a_layer_scored_by_projection_has_the_edit_of_the_best_prediction(trojan: Toy) -> None:
    found, predicted = scored(trojan, method="projection"), scored(trojan, trials=0)
    for name in found.scores:
        assert torch.equal(found.edit(name).delta, predicted.edit(name).delta)


def test_the_edit_that_was_scored_is_the_one_that_is_solved(trojan: Toy) -> None:
    """Also where nothing is left to choose but what it is solved from."""
    found = scored(trojan)
    best = found.edit()
    given: dict[str, Any] = {"layer": best.layer, "direction": best.direction, "ridge": best.ridge}
    for options in ({}, {"layer": best.layer}, given):
        edit = solve_edit(trojan.model, trojan.pairs[0], reference=trojan.reference, **options)
        assert (edit.layer, edit.solved_for) == (best.layer, best.solved_for)
        assert torch.equal(edit.delta, best.delta) or options  # sums of fewer edits round otherwise
        torch.testing.assert_close(edit.delta, best.delta, rtol=1e-4, atol=1e-5)
    alone = solve_edit(
        trojan.model, trojan.pairs[0], **given,
        statistics=KeyStatistics.collect(trojan.model, trojan.reference),
    )  # fmt: skip
    assert not torch.allclose(alone.delta, best.delta, rtol=0.1)


def test_a_layer_without_an_edit_is_refused() -> None:
    found = example()
    with pytest.raises(ValueError, match=r"layer: .*corruption .* does not reach layer '<head>'"):
        found.edit("<head>")
    with pytest.raises(ValueError, match=r"layer: 'mix' cannot be edited: used 2 times"):
        found.edit("mix")
    with pytest.raises(ValueError, match=r"'body.cnov' was not scored \(did you mean 'body.conv'"):
        found.edit("body.cnov")
    with pytest.raises(TypeError, match="layer: got 0, want the dotted name"):
        found.edit(0)  # type: ignore[arg-type]


def test_projection_is_the_papers_formula(trojan: Toy) -> None:
    """``‖Σ_p M_p (C⁻¹ k̃_p)ᵀ‖_F`` with ``M = (v − ṽ) ⊙ Ḡ``, from numpy and the sweep's gradients."""
    model, pair = copy.deepcopy(trojan.model).double(), trojan.pairs[1]
    start, end = pair.corrupted.double(), pair.clean.double()
    statistics = KeyStatistics.collect(model, trojan.reference, positions=10_000)
    found = localize(model, pair, statistics=statistics, method="projection", steps=4)
    with torch.no_grad():
        labels, scores = model(end).argmax(dim=1), model(start)
    scores[0, labels] = -torch.inf
    layers = editable_layers(model, start).editable
    with eval_mode(model) as module:
        gradients = sweep(
            module, layers, start, end, labels, scores.argmax(dim=1), steps=4, monitor=Monitor()
        )
    for name, layer in layers.items():
        dirty, clean = (
            oracles.keys(layer.module, oracles.layer_input(model, name, x), 1) for x in (start, end)
        )
        change = np.einsum("gok,ngkp->ngop", oracles.flat(layer.module), clean - dirty)
        summed = np.einsum("ngop,ngkp->ok", change * gradients[name].numpy(), dirty)
        moment = statistics[name].moment.numpy()
        rows = [oracles.solve(moment, row[None], 1e-3) for row in summed]
        assert found.scores[name] == pytest.approx(float(np.linalg.norm(rows)), rel=1e-6)


def test_the_default_finds_a_layer_as_good_as_the_oracles(trojan: Toy) -> None:
    oracle = scored(trojan, method="trial").scores
    found = scored(trojan)
    assert oracle[found.best] > next(iter(oracle.values())) - 0.1
    assert found.scores[found.best] > 0.4
    assert found.scores["block2.short"] < 0.2


def test_layers_directions_and_ridges_can_be_chosen(trojan: Toy) -> None:
    some = scored(trojan, layers=["head", "stem"], directions=["key"], ridges=[0.05, 0.5])
    assert some.order == ("stem", "head")
    assert {choice[0] for choice in some.choices.values()} == {"key"}
    assert {choice[1] for choice in some.choices.values()} <= {0.05, 0.5}
    one = scored(trojan, layers="head", directions="contrast", ridges=0.2)
    assert one.choices == {"head": ("contrast", 0.2)}


def test_given_statistics_are_those_collected(trojan: Toy) -> None:
    statistics = KeyStatistics.collect(trojan.model, trojan.reference)
    assert scored(trojan, statistics=statistics).scores == scored(trojan).scores
    fewer = KeyStatistics.collect(trojan.model, trojan.reference[:20])
    assert scored(trojan, statistics=fewer).scores != scored(trojan).scores
    # Statistics alone do: the pairs then serve as references to look at.
    alone = localize(trojan.model, trojan.pairs, statistics=statistics)
    assert set(alone.scores) == set(LAYERS["residual"])


def test_more_steps_and_another_seed_change_the_prediction(trojan: Toy) -> None:
    base = scored(trojan, trials=0).scores
    assert scored(trojan, trials=0, steps=2).scores != base
    assert scored(trojan, trials=0, seed=1).scores != base


@pytest.mark.parametrize("method", RANKING_METHODS)
def test_several_pairs_and_labels(trojan: Toy, method: str) -> None:
    with torch.no_grad():
        labels = trojan.model(trojan.pairs.clean).argmax(dim=1)
    labelled = SamplePairs(trojan.pairs.corrupted, trojan.pairs.clean, labels)
    options: dict[str, Any] = {"reference": trojan.reference[:40], "method": method}
    one, other = (localize(trojan.model, p, **options) for p in (trojan.pairs, labelled))
    assert one.scores == other.scores


def test_without_references_a_warning(trojan: Toy) -> None:
    with pytest.warns(UserWarning, match="16 or more unlabelled inputs"):
        found = localize(trojan.model, trojan.pairs[1])
    assert set(found.scores) == set(LAYERS["residual"])


def test_a_layer_that_the_corruption_does_not_reach_scores_zero() -> None:
    model, corrupted, clean = branches()
    pairs = SamplePairs(corrupted, clean)
    for method in RANKING_METHODS:
        found = localize(model, pairs, reference=images(20), method=method)
        assert found.scores["right"] == 0.0
        assert "right" not in found.choices
        with pytest.raises(ValueError, match="does not reach layer 'right'"):
            found.edit("right")
    with pytest.raises(ValueError, match="reaches none of the layers"):
        localize(model, pairs, reference=images(20), layers=["right"])


@pytest.mark.parametrize("network", LAYERS)
@pytest.mark.parametrize("method", RANKING_METHODS)
def test_every_network(network: str, method: str) -> None:
    model, pairs = make(network), patched(1)
    found = localize(model, pairs, reference=images(20), method=method)
    assert found.order == tuple(LAYERS[network])
    assert all(math.isfinite(score) for score in found.scores.values())
    if network == "fused":
        assert set(found.refused) == {"mix", "mix.out_proj"}


# --- rendering -----------------------------------------------------------------------------------


def example() -> Localization:
    return Localization(
        scores={"body.conv": 0.8123, "<head>": -0.1},
        method="trial",
        choices={"body.conv": ("contrast", 0.01)},
        completeness={"body.conv": 0.25},
        refused={"mix": "used 2 times in one forward pass"},
        order=("<head>", "body.conv"),
        kinds={"body.conv": "Conv2d 3×3", "<head>": "Linear"},
    )


def test_table() -> None:
    lines = str(example()).splitlines()
    assert len({len(line) for line in lines[:2]}) == 1
    assert "body.conv" in lines[1]
    assert "0.812" in lines[1]
    assert "contrast" in lines[1]
    assert "25%" in lines[1]
    assert lines[2].split()[:2] == ["2", "<head>"]
    assert lines[3].endswith("mix        not editable: used 2 times in one forward pass")
    assert repr(example()) == "Localization('trial', 2 layers, best 'body.conv' with 0.812)"


def test_html_is_escaped_and_complete() -> None:
    html = example()._repr_html_()
    assert html.count("<tr>") == 4
    assert "<code>&lt;head&gt;</code>" in html
    assert "<head>" not in html
    assert "0.812" in html
    assert "not editable: used 2 times" in html
    assert "width:12.0em" in html


def test_frame() -> None:
    frame = example().to_frame()
    assert list(frame.index) == ["body.conv", "<head>"]
    assert frame.loc["body.conv", "score"] == 0.8123
    assert frame.loc["body.conv", "ridge"] == 0.01
    assert frame.loc["<head>", "direction"] == ""
    assert frame["rank"].tolist() == [1, 2]


def test_plot_is_in_network_order_with_the_best_marked() -> None:
    figure = example().plot()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["<head>", "body.conv"]
    texts = [text.get_text() for text in axes.texts]
    assert texts == [" -0.1", " 0.81 ★"]
    widths = [patch.get_width() for patch in axes.patches]  # type: ignore[attr-defined]
    assert widths == [-0.1, 0.8123]


# --- progress ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RANKING_METHODS)
def test_progress_and_cancel_at_every_stage(trojan: Toy, method: str) -> None:
    reported: list[float] = []
    messages: set[str] = set()
    limit = 10_000

    def progress(at: float, message: str) -> None:
        reported.append(at)
        messages.add(message)

    def run() -> None:
        localize(
            trojan.model, trojan.pairs[0], reference=trojan.reference[:20], method=method,
            progress=progress, cancel=lambda: len(reported) >= limit,
        )  # fmt: skip

    run()
    assert reported == sorted(reported)
    assert reported[0] == 0.0
    assert reported[-1] == 1.0
    assert len(messages) > 3
    before = {name: tensor.clone() for name, tensor in trojan.model.state_dict().items()}
    for limit in range(0, len(reported), 11):
        reported.clear()
        with pytest.raises(Cancelled):
            run()
        assert len(reported) == limit
    for name, tensor in trojan.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(part._forward_hooks for part in trojan.model.modules())
