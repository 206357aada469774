"""Fine-tuning, fine-pruning and right reasons, against arithmetic worked out here."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.baselines import BASELINES, run
from rectify_widgets.baselines.fine_pruning import mean_activations
from rectify_widgets.baselines.latent import Mask
from rectify_widgets.baselines.right_for_right_reasons import penalised, saliency_masks
from rectify_widgets.baselines.task import Examples
from rectify_widgets.baselines.training import CLIP, MOMENTUM, train
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.running import eval_mode
from tests.engine.traces import Tiny, corrupted, images
from tests.test_baselines import batch_of, repair, tiny_pairs, tiny_task

pytestmark = pytest.mark.usefixtures("one_thread")


# The loop


def test_the_loop_is_stochastic_gradient_descent_by_hand() -> None:
    """Clipped gradients, momentum, and a rate that falls evenly to zero."""
    task = tiny_task()
    model = nn.Linear(3, 1, bias=False)
    start, goal = model.weight.detach().clone(), torch.tensor([[1.0, 2.0, 30.0]])
    steps, rate = 5, 0.3
    one = Examples(torch.zeros(1, 3), torch.zeros(1), torch.zeros(1, 3).bool())
    with eval_mode(model):
        train(
            model, task, {"steps": steps, "learning_rate": rate}, Monitor(),
            lambda net, _: (net.get_parameter("weight") - goal).square().sum(), (one, one),
        )  # fmt: skip
    weight, velocity = start.clone(), torch.zeros_like(start)
    for step in range(steps):
        gradient = 2 * (weight - goal)
        gradient = gradient * min(1.0, CLIP / float(gradient.norm()))
        velocity = MOMENTUM * velocity + gradient
        weight = weight - rate * (1 - step / steps) * velocity
    torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-5, atol=1e-5)


def test_what_is_not_trained_stays_to_the_bit() -> None:
    model, options = Tiny(), {"steps": 4, "learning_rate": 0.1, "validation": None}
    result = repair("fine_tuning", trained="linear", **options)
    for name, value in result.model.state_dict().items():
        same = torch.equal(value, model.state_dict()[name])
        assert same != name.startswith("head"), name
    whole = repair("fine_tuning", trained="all", **options)
    statistics = whole.model.get_submodule("norm")
    assert isinstance(statistics, nn.BatchNorm2d)
    assert torch.equal(statistics.running_mean, model.norm.running_mean)  # type: ignore[arg-type]
    assert not torch.equal(statistics.weight, model.norm.weight)


def test_a_model_without_linear_layers_cannot_train_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 6), nn.Flatten())
    with pytest.raises(ValueError, match="trained: got 'linear'"):
        run("fine_tuning", model, tiny_pairs(), trained="linear")


def test_fine_tuning_learns_the_pairs() -> None:
    model, clean = Tiny(), images(4, seed=3)
    pairs = SamplePairs(corrupted(clean), clean, torch.tensor([0, 1, 2, 3]))
    result = run("fine_tuning", model, pairs, learning_rate=0.1, steps=100)
    assert result.model(pairs.corrupted).argmax(1).tolist() == [0, 1, 2, 3]
    assert result.model(pairs.clean).argmax(1).tolist() == [0, 1, 2, 3]


# Pruning


class Dormant(nn.Module):
    """Eight channels, of which clean inputs use some; the trigger alone wakes the others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.head = nn.Linear(8, 4)
        weight = torch.zeros(8, 3)
        weight[:4, 0] = torch.tensor([1.0, 0.5, 2.0, 1.5])
        weight[4:, 2] = 1.0  # clean inputs have nothing in channel 2
        with torch.no_grad():
            self.conv.weight.copy_(weight[:, :, None, None])
            self.conv.bias.copy_(torch.tensor([0.0, -0.1, -0.3, -0.2, -0.5, -0.4, -0.3, -0.2]))  # type: ignore[union-attr]
            generator = torch.Generator().manual_seed(0)
            self.head.weight.copy_(torch.randn(4, 8, generator=generator))
            self.head.bias.zero_()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(x).relu().mean(dim=(2, 3)))
        return scores


def without_blue(count: int, seed: int) -> Tensor:
    x = images(count, seed=seed)
    x[:, 2] = 0.0
    x[:, 0] *= torch.linspace(0.2, 3, count)[:, None, None]
    return x


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5])
def test_dormant_channels_go_first_until_accuracy_drops(drop: float) -> None:
    model, x = Dormant(), without_blue(40, seed=5)
    blue = torch.tensor([0, 0, 1.0])[:, None, None]
    with eval_mode(model):
        use = mean_activations(model, "conv", x)
    torch.testing.assert_close(use, model.conv(x).relu().mean(dim=(0, 2, 3)).detach())
    order, labels = use.argsort(stable=True).tolist(), model(x).argmax(1)
    assert (use > 0).tolist() == [True] * 4 + [False] * 4
    pairs = SamplePairs(x[:2] + blue, x[:2])
    result = run("fine_pruning", model, pairs, reference=x, max_drop=drop, learning_rate=0.0)
    assert result.options["layer"] == "conv"
    (mask,) = (part for part in result.model.modules() if isinstance(part, Mask))
    gone = (mask.kept == 0).nonzero().flatten().tolist()
    assert sorted(order[: len(gone)]) == gone

    def accuracy(count: int) -> float:
        kept = torch.ones(8)
        kept[order[:count]] = 0
        scores = model.head((model.conv(x).relu().mean(dim=(2, 3))) * kept)
        return float((scores.argmax(1) == labels).double().mean()) + 1e-9

    assert all(accuracy(count) >= 1 - drop for count in range(len(gone) + 1))
    assert len(gone) == 7 or accuracy(len(gone) + 1) < 1 - drop
    # The channels that the trigger alone wakes are dormant, so it does nothing any more.
    assert not torch.equal(model(x + blue), model(x))
    torch.testing.assert_close(result.model(x + blue), result.model(x))


# Right reasons


def test_the_penalty_is_the_squared_input_gradient_under_the_masks() -> None:
    model = Tiny().double()
    x, y = images(2, seed=2).double(), torch.tensor([1, 3])
    masks = torch.zeros_like(x).bool()
    masks[0, 1, 2:4, 5] = True
    masks[1, 0, 7, 7] = True
    losses = [
        float(penalised(weight)(model, batch_of(x, y, masks)).detach()) for weight in (0.0, 1.0)
    ]
    torch.testing.assert_close(
        torch.tensor(losses[0]), functional.cross_entropy(model(x), y).float().detach()
    )

    def total(inputs: Tensor) -> float:
        with torch.no_grad():
            return float(model(inputs).log_softmax(1).sum())

    wanted = 0.0
    for place in masks.nonzero().tolist():
        moved = [x.clone(), x.clone()]
        moved[0][tuple(place)] += 1e-6
        moved[1][tuple(place)] -= 1e-6
        wanted += ((total(moved[0]) - total(moved[1])) / 2e-6) ** 2
    assert losses[1] - losses[0] == pytest.approx(wanted / 2, rel=1e-5)


def test_right_reasons_looks_away_from_the_corruption() -> None:
    model = Tiny()
    pairs = tiny_pairs(8)

    def share(tried: nn.Module) -> float:
        x = pairs.corrupted.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(tried(x).log_softmax(1).sum(), x)
        squares = gradient.square()
        return float(squares[:, :, :3, :3].sum() / squares.sum())

    options: dict[str, Any] = {"learning_rate": 0.02, "steps": 60, "reference": images(20, seed=5)}
    results = [run("right_reasons", model, pairs, penalty=p, **options).model for p in (0.0, 100.0)]
    assert share(results[1]) < 0.3 * share(results[0])


def test_right_reasons_tries_rates_and_penalties_together() -> None:
    labels = torch.arange(20) % 3
    result = run(
        "right_reasons", Tiny(), tiny_pairs(2), validation=(images(20, seed=5), labels), steps=1
    )
    tried = [(trial.options["learning_rate"], trial.options["penalty"]) for trial in result.trials]
    options = BASELINES["right_reasons"].options
    values = (options[name].values(tiny_task()) for name in ("learning_rate", "penalty"))
    assert tried == list(itertools.product(*values))
    assert tried[0] == (1e-3, 1e3)  # the published penalty first


def test_what_a_model_looks_at_is_where_its_gradient_is_near_the_largest() -> None:
    model, x = Tiny().double(), images(3, seed=2).double()
    found = saliency_masks(model, x, Monitor())
    for sample, mask in zip(x, found, strict=True):
        changes = torch.zeros_like(sample)
        for place in torch.ones_like(sample).nonzero().tolist():
            ends = []
            for by in (1e-6, -1e-6):
                moved = sample.clone()
                moved[tuple(place)] += by
                with torch.no_grad():
                    ends.append(float(model(moved[None]).softmax(1).max()))
            changes[tuple(place)] = abs(ends[0] - ends[1]) / 2e-6
        sure = (changes - 0.67 * changes.max()).abs() > 1e-4 * changes.max()
        assert torch.equal(mask[sure], (changes > 0.67 * changes.max())[sure])
        assert mask.any()


def test_another_explanation_puts_away_what_the_model_looked_at() -> None:
    model, x = Tiny(), images(20, seed=5)
    with eval_mode(model):
        before = saliency_masks(model, x, Monitor())

    def size(tried: nn.Module) -> float:
        inputs = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(tried(inputs).log_softmax(1).sum(), inputs)
        return float(gradient[before].square().sum() / gradient.square().sum())

    options: dict[str, Any] = {"learning_rate": 0.02, "steps": 50, "reference": x}
    found = [
        run("another_explanation", model, tiny_pairs(), penalty=p, explanations=1, **options).model
        for p in (0.0, 300.0)
    ]
    assert size(found[1]) < 0.6 * size(found[0])
