"""What an edit is predicted to do, against what it does."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.solver import DenseSolver
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find import candidates as looking
from rectify_widgets.engine.find.candidates import (
    Candidate,
    Probe,
    different,
    effect,
    keys_and_scores,
    layer_keys,
    sweep_probe,
    trying,
)
from rectify_widgets.engine.find.drafts import Predictions, chunks, draft_edits
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.gradients import margin, sweep
from rectify_widgets.engine.model.heads import runner_up
from rectify_widgets.engine.model.running import eval_mode
from rectify_widgets.engine.repair.solving import solve_edit
from tests.engine import oracles
from tests.engine.models import images, make
from tests.engine.test_editing import patched
from tests.engine.test_layer_catalog import LAYERS
from tests.kinds.architectures import Scaled, Standardised

GRID = [(direction, ridge) for direction in ("contrast", "key") for ridge in (0.01, 1.0)]


def grid_of(model: nn.Module, count: int = 6) -> dict[str, list[Candidate]]:
    """Candidates of every layer, predicted on ``count`` patched references."""
    pairs, reference = patched(), patched(count, seed=11)
    catalog = editable_layers(model, pairs.clean)
    statistics = KeyStatistics.collect(model, images(8).double())
    with eval_mode(model) as module:
        answers = module(reference.clean).argmax(dim=1)
        probe = Probe(reference.corrupted, reference.clean, answers)
        seen = sweep_probe(module, catalog.editable, probe, steps=4, monitor=Monitor())
        drafts = draft_edits(
            module, catalog.editable, lambda name: DenseSolver(name, statistics[name].moment),
            [(pairs.corrupted, pairs.clean)], directions=("contrast", "key"), ridges=(0.01, 1.0),
            most=64, monitor=Monitor(),
        )  # fmt: skip
        predictions = Predictions(drafts)
        predictions.add(seen)
        return predictions.options()


@pytest.mark.parametrize("network", ["residual", "padded", "transformer"])
def test_effect_is_the_slope_of_the_margin(network: str) -> None:
    """Against the margin of a network with a thousandth of the edit in it."""
    model = make(network).double()
    x, labels = images(3).double(), torch.tensor([0, 1, 2])
    rivals = torch.tensor([1, 3, 0])
    for name, found in grid_of(model).items():
        candidate = found[0]
        layers = {name: candidate.layer}
        with eval_mode(model) as module:
            still = sweep(module, layers, x, x, labels, rivals, steps=1, monitor=Monitor())
            keys = layer_keys(module, layers, x)[name]
            predicted = effect(
                candidate.left.unsqueeze(1), candidate.right.unsqueeze(1),
                still[name], keys,
            )[:, 0]  # fmt: skip
            changed = copy.deepcopy(module)
            margins = []
            for sign in (1, -1):
                part = candidate.layer.module.weight + sign * 1e-4 * candidate.edit().delta
                changed.get_parameter(f"{name}.weight").copy_(part)
                margins.append(margin(changed(x), labels, rivals))
        slope = (margins[0] - margins[1]) / 2e-4
        torch.testing.assert_close(predicted, slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("network", LAYERS)
def test_every_direction_and_ridge_of_every_layer(network: str) -> None:
    model, pairs = make(network).double(), patched()
    statistics = KeyStatistics.collect(model, images(8).double())
    found = grid_of(model)
    assert list(found) == LAYERS[network]
    for name, options in found.items():
        assert [(c.direction, c.ridge) for c in options] == GRID
        for candidate in options[1:3]:
            edit = solve_edit(
                model, pairs, layer=name, statistics=statistics,
                direction=candidate.direction, ridge=candidate.ridge,
            )  # fmt: skip
            own = candidate.edit()
            torch.testing.assert_close(own.delta, edit.delta)
            assert own.solved_for == edit.solved_for
            assert -1 <= candidate.share <= 1.2
            assert 0 <= candidate.cost <= 1
            assert candidate.score == candidate.share - candidate.cost


@pytest.mark.parametrize("chunk", [None, 2])
def test_what_is_observed_of_margins_is_the_models_own(
    chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk is not None:
        monkeypatch.setattr(looking, "chunk_size", lambda *_: chunk)
    model, reference = make("residual").double(), patched(5, seed=11)
    reference = replace(reference, corrupted=4.0 * images(5, seed=29).double())
    with torch.no_grad():  # even classes: another comes second with the corruption than without
        model.get_parameter("head.bias").sub_(model(reference.clean).mean(dim=0))
    with eval_mode(model) as module:
        before, after = (module(x) for x in (reference.corrupted, reference.clean))
        labels = after.argmax(dim=1)
        probe = Probe(reference.corrupted, reference.clean, labels)
        layers = editable_layers(model, reference.clean).editable
        seen = sweep_probe(module, layers, probe, steps=1, monitor=Monitor())
        keys, scores = keys_and_scores(module, layers, reference.clean)
        torch.testing.assert_close(scores, after)
        ends = reference.clean, reference.clean, labels, runner_up(after, labels)
        still = sweep(module, layers, *ends, steps=1, monitor=Monitor())
    assert list(seen.clean) == list(keys) == list(layers)
    for name, slopes in still.items():
        torch.testing.assert_close(seen.clean_gradients[name], slopes)
        torch.testing.assert_close(seen.clean[name].inputs, keys[name].inputs)
    assert not torch.equal(runner_up(before, labels), runner_up(after, labels))
    for row, label in enumerate(labels.tolist()):
        others = [number for number in range(after.shape[1]) if number != label]
        rival = max(others, key=lambda number: float(before[row, number]))
        gained = (after - before)[row, label] - (after - before)[row, rival]
        assert float(seen.gap[row]) == pytest.approx(float(gained))
        least = min(float(after[row, label] - after[row, number]) for number in others)
        assert float(seen.clean_margin[row]) == pytest.approx(least)


def test_share_and_cost_are_of_margins() -> None:
    """The head cuts every path and is linear: what is predicted there is exact."""
    model = make("plain").double()
    reference = patched(6, seed=11)
    head = grid_of(model)["head"]
    with torch.no_grad():
        labels = model(reference.clean).argmax(dim=1)
        before, clean = model(reference.corrupted), model(reference.clean)
        rivals, seconds = runner_up(before, labels), runner_up(clean, labels)
        gap = margin(clean, labels, rivals) - margin(before, labels, rivals)
        least = torch.tensor(1e-6)
        for candidate in head:
            edited = copy.deepcopy(model)
            candidate.edit().apply(edited)
            won = margin(edited(reference.corrupted) - before, labels, rivals)
            lost = -margin(edited(reference.clean) - clean, labels, seconds)
            share = (won / gap.float().maximum(least)).clamp(-1, 1.2).mean()
            cost = (lost / margin(clean, labels, seconds).maximum(least)).clamp(0, 1).mean()
            assert candidate.share == pytest.approx(float(share), rel=1e-5)
            assert candidate.cost == pytest.approx(float(cost), rel=1e-5)


def test_runner_up_is_the_best_of_the_others() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, -1.0]])
    assert runner_up(scores, torch.tensor([0, 1, 1])).tolist() == [2, 0, 0]
    assert float(scores[0, 0]) == 3.0


def test_keys_are_those_before_anything_changed_them_in_place() -> None:
    class Preactivated(nn.Module):
        """The activation comes between two uses of a tensor, and overwrites it."""

        def __init__(self) -> None:
            super().__init__()
            self.short = nn.Conv2d(3, 4, 3)
            self.long = nn.Conv2d(3, 4, 3)
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x - 0.5
            total = self.short(x) + self.long(x.relu_())
            x = total.mean(dim=(2, 3))
            scores: Tensor = self.left(x) + self.right(x.relu_())
            return scores

    model, x = make(Preactivated), images(2)
    with eval_mode(model) as module:
        keys = layer_keys(module, editable_layers(model).editable, x)
    for name, found in keys.items():
        inputs = oracles.layer_input(model, name, x)
        wanted = torch.from_numpy(oracles.keys(model.get_submodule(name), inputs, 2))
        torch.testing.assert_close(found.unfold().double(), wanted, rtol=1e-6, atol=1e-6)
    least = {name: float(found.unfold().min()) for name, found in keys.items()}
    assert least["short"] < 0 <= least["long"]
    assert least["left"] < 0 <= least["right"]


def test_trying_puts_the_weight_back() -> None:
    model = make("residual").double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    candidate = grid_of(model)["block2.conv1"][0]
    weight, wanted = model.get_parameter("block2.conv1.weight"), candidate.weight
    torch.testing.assert_close(wanted, before["block2.conv1.weight"] + candidate.edit().delta)

    def inside() -> None:
        assert torch.equal(weight, wanted)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), trying(candidate):
        inside()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.get_parameter("block2.conv1.weight") is weight
    assert weight.requires_grad


def test_likeness() -> None:
    found = grid_of(make("padded").double())["same"]
    for one in found:
        assert one.likeness(one) == pytest.approx(1.0)
        for other in found:
            deltas = [c.edit().delta.flatten() for c in (one, other)]
            lengths = [float(delta.norm()) for delta in deltas]
            cosine = float(deltas[0] @ deltas[1]) / (lengths[0] * lengths[1])
            wanted = cosine * min(lengths) / max(lengths)
            assert one.likeness(other) == pytest.approx(wanted, rel=1e-6)


def test_only_different_edits_are_tried() -> None:
    found = grid_of(make("residual").double())["block1.conv1"]
    assert different([found[0]] * 5) == [found[0]]
    kept = different(found)
    assert kept[0] is found[0]
    assert 1 <= len(kept) <= 3
    for i, one in enumerate(kept):
        assert all(one.likeness(other) < 0.95 for other in kept[:i])


def standardised_or(network: str) -> nn.Module:
    """A network of `make`, or one with layers that compute their weight."""
    if network != "standardised":
        return make(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last = Standardised(3, 8, 3), nn.Linear(8, 4)
        parts = first, nn.GroupNorm(2, 8), nn.ReLU(), Scaled(8, 8, 3)
        pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*parts, *pool, last).eval()


@pytest.mark.parametrize("network", ["residual", "padded", "transformer", "standardised"])
def test_edits_made_from_a_few_samples_at_a_time_are_the_same(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rectify_widgets.engine.find.drafts.WHOLE", 20_000)
    model, pairs = standardised_or(network).double(), patched(5, seed=11)
    statistics = KeyStatistics.collect(model, images(8).double())
    with eval_mode(model) as module:
        layers = editable_layers(module, pairs.clean).editable
        probe = Probe(pairs.corrupted, pairs.clean, module(pairs.clean).argmax(dim=1))
        found = {}
        for most in (64, 2):
            drafts = draft_edits(
                module, layers, lambda name: DenseSolver(name, statistics[name].moment),
                [(pairs.corrupted, pairs.clean)], directions=("contrast", "key"),
                ridges=(0.01, 1.0), most=most, monitor=Monitor(),
            )  # fmt: skip
            predictions = Predictions(drafts)
            for rows in chunks(len(probe), most):
                one = probe.only(rows)
                predictions.add(sweep_probe(module, layers, one, steps=2, monitor=Monitor()))
            found[most] = predictions.options(), predictions.errors()
    (whole, errors), (some, others) = found[64], found[2]
    assert list(whole) == list(some) == list(layers)
    for name, options in whole.items():
        assert options
        for edit, other in zip(options, some[name], strict=True):
            assert (edit.direction, edit.ridge) == (other.direction, other.ridge)
            torch.testing.assert_close(edit.left, other.left)
            torch.testing.assert_close(edit.right, other.right)
            assert edit.score == pytest.approx(other.score)
    torch.testing.assert_close(others, errors)
