"""Rewriting and last-layer retraining, against closed forms and optimality conditions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.baselines import run
from rectify_widgets.baselines.last_layer import balance, logistic_regression
from rectify_widgets.baselines.rewriting import descend, least_squares
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.repair.solving import solve_edit
from tests.engine.models import make
from tests.engine.traces import Tiny, corrupted, images
from tests.test_baselines import through

LAYERS = [
    ("plain", "second"),
    ("plain", "hidden"),
    ("padded", "same"),
    ("padded", "valid"),
    ("padded", "reflect"),
    ("residual", "block2.conv1"),
    ("transformer", "block.mlp.0"),
]


pytestmark = pytest.mark.usefixtures("one_thread")


def pairs_of(count: int = 3) -> tuple[SamplePairs, Tensor]:
    x = torch.rand(40, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    bad = x[:count].clone()
    bad[:, :, 3:6, 3:6] = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    return SamplePairs(bad, x[:count]), x


def closed(network: str, layer: str) -> tuple[nn.Module, SamplePairs, Tensor, RankOneEdit]:
    model = make(network).double()
    pairs, x = pairs_of()
    pairs, x = SamplePairs(pairs.corrupted.double(), pairs.clean.double()), x.double()
    edit = solve_edit(
        model, pairs, layer=layer, reference=x, direction="key", ridge=0.01, key_space="channel"
    )
    return model, pairs, x, edit


def residual(model: nn.Module, edited: nn.Module, layer: str, pairs: SamplePairs) -> float:
    """``‖v − f(k̃; W')‖²``, measured on the layers themselves."""
    wanted = through(model, layer, pairs.clean)[1]
    keys = through(model, layer, pairs.corrupted)[0]
    with torch.no_grad():
        return float((edited.get_submodule(layer)(keys) - wanted).square().sum())


@pytest.mark.parametrize(("network", "layer"), LAYERS)
def test_the_least_squares_problem_is_that_of_the_layer(network: str, layer: str) -> None:
    model, pairs, _, edit = closed(network, layer)
    with torch.no_grad():
        design, missing = least_squares(model, pairs, edit)
    groups = len(design)
    for seed in range(2):
        left = torch.randn(edit.left.shape, generator=torch.Generator().manual_seed(seed)).double()
        tried = copy.deepcopy(model)
        RankOneEdit(**{**vars(edit), "left": left}).apply(tried)
        fitted = design @ left.reshape(groups, -1, design.shape[2]).transpose(1, 2)
        found = float((missing - fitted).square().sum())
        assert found == pytest.approx(residual(model, tried, layer, pairs), rel=1e-8)


def test_the_iteration_comes_to_the_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, target = (
        torch.randn(2, 30, 4, generator=generator),
        torch.randn(2, 30, 5, generator=generator),
    )
    rows, target = rows.double(), target.double()
    wanted = torch.linalg.lstsq(rows, target).solution
    found = descend(rows, target, 2001, 0.05, Monitor())
    torch.testing.assert_close(found.transpose(1, 2), wanted, rtol=1e-6, atol=1e-6)


def test_rewriting_applies_what_it_found() -> None:
    model, pairs, x, edit = closed("residual", "block2.conv1")
    result = run(
        "rewriting", model, pairs, reference=x, layer="block2.conv1", ridge=0.01, learning_rate=0.05
    )
    optimum = copy.deepcopy(model)
    edit.apply(optimum)
    least = residual(model, optimum, "block2.conv1", pairs)
    before = residual(model, model, "block2.conv1", pairs)
    found = residual(model, result.model, "block2.conv1", pairs)
    assert least <= found < least + 0.05 * (before - least)
    changed = {
        name for name, value in result.model.state_dict().items()
        if not torch.equal(value, model.state_dict()[name])
    }  # fmt: skip
    assert changed == {"block2.conv1.weight"}
    delta = result.model.get_parameter(changed.pop()) - model.get_parameter("block2.conv1.weight")
    spread = torch.linalg.svdvals(delta.detach().permute(0, 2, 3, 1).flatten(0, 2))
    assert spread[1] < 1e-9 * spread[0]  # one direction of channels


def test_the_layer_is_the_last_convolution_unless_named() -> None:
    pairs, x = pairs_of()
    for network, layer in (("plain", "second"), ("perceptron", "layers.5"), ("mobile", "project")):
        result = run("rewriting", make(network), pairs, reference=x, steps=1)
        assert result.options["layer"] == layer


# The last layer


def problem(count: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    features = torch.randn(count, 6, generator=generator).double()
    features[:, :3] += torch.eye(3).double()[labels]
    carries = torch.rand(count, generator=generator) < 0.2
    return features, labels, balance(labels, carries)


@pytest.mark.parametrize("penalty", [0.1, 0.01, 0.001])
def test_the_regression_is_at_its_optimum(penalty: float) -> None:
    """A zero subgradient: ``−λ sign W`` where the weight is not zero, at most ``λ`` elsewhere."""
    x, y, w = problem()
    weight, bias = logistic_regression(x, y, w, classes=3, penalty=penalty, monitor=Monitor())
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    losses = nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="none")
    slopes = torch.autograd.grad((w * losses).sum(), (weight, bias))
    torch.testing.assert_close(slopes[1], torch.zeros_like(slopes[1]), rtol=0, atol=1e-5)
    free = weight.detach() != 0
    assert free.any()
    torch.testing.assert_close(
        slopes[0][free], -penalty * weight.detach().sign()[free], rtol=0, atol=1e-5
    )
    assert slopes[0][~free].abs().le(penalty + 1e-5).all()


def test_a_large_penalty_leaves_no_weight_and_the_frequencies_in_the_bias() -> None:
    x, y, w = problem()
    weight, bias = logistic_regression(x, y, w, classes=3, penalty=9.0, monitor=Monitor())
    assert weight.abs().max() == 0
    shares = torch.stack([w[y == label].sum() for label in range(3)])
    torch.testing.assert_close(bias.softmax(0), shares, rtol=1e-5, atol=1e-5)


def test_groups_count_alike() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 0])
    carries = torch.tensor([False, False, False, False, True, True])
    weights = balance(labels, carries)
    torch.testing.assert_close(
        weights, torch.tensor([1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 4, 1 / 4]).double()
    )


class Bare(Tiny):
    """A last layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        weight = self.head.weight.detach()
        self.head = nn.Linear(24, 4, bias=False).eval()
        self.head.weight = nn.Parameter(weight)


@pytest.mark.parametrize("build", [Tiny, Bare])
def test_the_retrained_layer_is_the_regression_on_standardised_features(build: type[Tiny]) -> None:
    model, clean, reference = build().double(), images(2, seed=3).double(), images(30, seed=5)
    reference = reference.double()
    pairs = SamplePairs(corrupted(clean), clean)
    result = run("last_layer", model, pairs, reference=reference, strength=0.5)
    with torch.no_grad():
        usual = torch.cat([clean, reference])
        labels = torch.cat([model(usual), model(clean)]).argmax(dim=1)
    x = torch.cat([through(model, "head", v)[0] for v in (usual, pairs.corrupted)])
    middle, spread = x[:32].mean(dim=0), x[:32].std(dim=0, correction=0)
    spread[spread == 0] = 1.0
    carries = torch.arange(34) >= 32
    weight, bias = logistic_regression(
        (x - middle) / spread, labels, balance(labels, carries), classes=4,
        penalty=1 / (0.5 * 34), monitor=Monitor(),
    )  # fmt: skip
    with torch.no_grad():
        scores = result.model(torch.cat([usual, pairs.corrupted]))
    torch.testing.assert_close(scores, (x - middle) / spread @ weight.T + bias)
    for name, value in model.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(value, result.model.state_dict()[name])
    if build is Bare:
        assert model.head.bias is None
        assert not result.model.get_submodule("head").training


def test_a_new_layer_trains_with_the_rest() -> None:
    model, clean = Bare().train(), images(2)
    pairs = SamplePairs(corrupted(clean), clean)
    result = run("last_layer", model, pairs, reference=images(9), strength=0.5)
    assert result.model.get_parameter("head.bias").shape == (4,)
    assert all(part.training for part in result.model.modules())


def test_scores_that_do_not_come_from_a_linear_layer_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Tanh()).eval()
    clean = images(2)
    with pytest.raises(ValueError, match="not the output of a linear layer"):
        run("last_layer", model, SamplePairs(corrupted(clean), clean), reference=images(9))
