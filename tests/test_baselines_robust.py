"""Peers that learn at perturbed weights, against arithmetic worked out here."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.baselines.adversarial_neuron_pruning import (
    MaskedNetwork,
    adversarial_loss,
    ascend,
    batch_statistics,
    masked_layers,
    prune,
)
from rectify_widgets.baselines.sharpness_aware import sharpness_aware
from rectify_widgets.baselines.task import Examples, pose_task
from rectify_widgets.baselines.training import CLIP, MOMENTUM, cross_entropy, train
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.model.outputs import adapt
from rectify_widgets.engine.model.running import eval_mode
from tests.engine.models import make
from tests.engine.traces import Tiny, images, untouched
from tests.test_baselines import batch_of, repair, through, tiny_input, tiny_pairs, tiny_task

pytestmark = pytest.mark.usefixtures("one_thread")


# Sharpness-aware fine-tuning


class Two(nn.Module):
    """Two weights that a quadratic loss depends on, and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([1.0, -2.0, 0.0]))
        self.second = nn.Parameter(torch.tensor([0.5]))
        self.idle = nn.Parameter(torch.ones(2))


GOALS = torch.tensor([3.0, 1.0, 2.0, -30.0])


def distance(model: nn.Module, _: object) -> Tensor:
    both = torch.cat([model.get_parameter("first"), model.get_parameter("second")])
    return (both - GOALS).square().sum()


def test_a_step_follows_the_gradient_at_the_worst_weights_nearby() -> None:
    model, task, radius, rate, steps = Two(), tiny_task(), 0.7, 0.3, 4
    one = Examples(torch.zeros(1, 3), torch.zeros(1), torch.zeros(1, 3).bool())
    weight = torch.tensor([1.0, -2.0, 0.0, 0.5])
    with eval_mode(model):
        train(
            model, task, {"steps": steps, "learning_rate": rate}, Monitor(), distance, (one, one),
            descended=sharpness_aware(radius),
        )  # fmt: skip
    velocity = torch.zeros(4)
    for step in range(steps):
        scaled = weight.abs() * 2 * (weight - GOALS)  # T ∇L
        shift = radius * weight.abs() * scaled / scaled.norm()
        there = 2 * (weight + shift - GOALS)
        velocity = MOMENTUM * velocity + there * min(1.0, CLIP / float(there.norm()))
        weight = weight - rate * (1 - step / steps) * velocity
    torch.testing.assert_close(torch.cat([model.first, model.second]).detach(), weight)
    assert torch.equal(model.idle, torch.ones(2))


def test_looking_for_the_worst_weights_leaves_them_as_they_were() -> None:
    model = Tiny()
    parameters = list(model.parameters())
    batch = batch_of(images(6), torch.arange(6) % 4)
    with eval_mode(model):
        kept = [one.clone() for one in parameters]
        found = sharpness_aware(0.5)(model, batch, cross_entropy, parameters)
        assert all(torch.equal(one, old) for one, old in zip(parameters, kept, strict=True))
        here = sharpness_aware(0.0)(model, batch, cross_entropy, parameters)
    assert all(one is not None and torch.isfinite(one).all() for one in found)
    assert not torch.equal(found[0], here[0])  # type: ignore[arg-type]


def test_without_a_gradient_nothing_moves() -> None:
    model = Two()
    with eval_mode(model):
        found = sharpness_aware(2.0)(
            model, batch_of(images(1), torch.zeros(1)), lambda net, _: 0 * distance(net, _),
            [model.first, model.second],
        )  # fmt: skip
    assert all(torch.equal(one, torch.zeros_like(one)) for one in found if one is not None)
    assert model.first.tolist() == [1.0, -2.0, 0.0]


def test_at_radius_zero_it_is_fine_tuning() -> None:
    options = {"learning_rate": 0.01, "steps": 4, "validation": None}
    plain = repair("fine_tuning", trained="all", **options).model.state_dict()
    same = repair("sharpness_aware", radius=0.0, **options).model.state_dict()
    wide = repair("sharpness_aware", radius=1.0, **options).model.state_dict()
    assert all(torch.equal(value, same[name]) for name, value in plain.items())
    assert not torch.equal(wide["head.weight"], plain["head.weight"])


# Adversarial neuron pruning


def layers_of(model: nn.Module) -> list[str]:
    x = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    task = pose_task(model, SamplePairs(x + 0.1, x), None, None)
    names = {part: name for name, part in model.named_modules()}
    with eval_mode(model) as module:
        return [names[part] for part in masked_layers(module, task)]


def test_every_channel_before_the_scores_has_one_mask() -> None:
    assert layers_of(make("residual")) == [
        "norm", "block1.norm1", "block1.norm2", "block2.norm1", "block2.norm2", "block2.short",
    ]  # fmt: skip
    assert layers_of(make("plain")) == ["first", "second", "hidden"]
    assert layers_of(make("transformer")) == [
        "embed", "block.attention.qkv", "block.attention.proj", "block.mlp.0", "block.mlp.2",
    ]  # fmt: skip
    assert layers_of(adapt(make("plain"), output=lambda scores: scores)) == [
        "module.first", "module.second", "module.hidden",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="model: it has no layer before"):
        layers_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 81, 4)))


def masked_tiny() -> tuple[nn.Module, MaskedNetwork]:
    """`Tiny` in double precision, with masks on ``norm``, ``second`` and ``third``."""
    model = Tiny().double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in (model.norm.bias, model.second.bias, model.third.bias):
            value.copy_(torch.randn(len(value), generator=generator))  # type: ignore[union-attr, arg-type]
    masked = MaskedNetwork(model, [model.norm, model.second, model.third])
    with torch.no_grad():
        for mask in masked.masks:
            mask.uniform_(0.3, 1.0, generator=generator)
    return model, masked


def scaled(model: nn.Module, masks: list[Tensor], noise: list[Tensor]) -> nn.Module:
    """A copy with ``(m + δ) w`` and ``(1 + ξ) b`` in its weights."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask, (delta, xi) in zip(("norm", "second", "third"), masks, noise, strict=True):
            part = changed.get_submodule(name)
            for channel in range(len(mask)):
                part.get_parameter("weight")[channel] *= float(mask[channel] + delta[channel])
                part.get_parameter("bias")[channel] *= float(1 + xi[channel])
    return changed


def test_masks_and_noise_scale_weights_and_biases_of_channels() -> None:
    model, masked = masked_tiny()
    generator = torch.Generator().manual_seed(2)
    masks = [mask.detach() for mask in masked.masks]
    noise = [torch.randn(2, len(mask), generator=generator).double() for mask in masks]
    x = images(5).double()
    assert [name for name, _ in masked.named_parameters()] == ["masks.0", "masks.1", "masks.2"]
    with untouched(model, x), torch.no_grad():
        plain = [torch.zeros_like(one) for one in noise]
        torch.testing.assert_close(masked(x), scaled(model, masks, plain)(x))
        masked.noise = noise
        torch.testing.assert_close(masked(x), scaled(model, masks, noise)(x))


def test_the_noise_climbs_along_signs_and_stays_within_its_limit() -> None:
    model, masked = masked_tiny()
    x, y = images(4).double(), torch.arange(4)
    generator = torch.Generator().manual_seed(3)
    masks = [mask.detach() for mask in masked.masks]
    start = [0.3 * (2 * torch.rand(2, len(m), generator=generator).double() - 1) for m in masks]

    def loss(noise: list[Tensor]) -> float:
        with torch.no_grad():
            return float(functional.cross_entropy(scaled(model, masks, noise)(x), y))

    masked.noise = [one.clone() for one in start]
    ascend(masked, batch_of(x, y), limit=0.3, step=0.2)
    for row, one in enumerate(start):
        for place in torch.ones_like(one).nonzero().tolist():
            ends = []
            for by in (1e-5, -1e-5):
                moved = [other.clone() for other in start]
                moved[row][tuple(place)] += by
                ends.append(loss(moved))
            if abs(ends[0] - ends[1]) < 1e-10:  # a dead channel: its gradient is zero
                continue
            up = 1 if ends[0] > ends[1] else -1
            wanted = min(max(float(one[tuple(place)]) + 0.2 * up, -0.3), 0.3)
            assert float(masked.noise[row][tuple(place)]) == pytest.approx(wanted, abs=1e-12)
    assert loss(masked.noise) > loss(start)
    assert not any(one.requires_grad for one in masked.noise)


@pytest.mark.parametrize("ascents", [1, 3])
def test_the_loss_weighs_masks_alone_and_masks_under_noise(ascents: int) -> None:
    _, masked = masked_tiny()
    x, y = images(4).double(), torch.arange(4)
    batch = batch_of(x, y)
    with torch.no_grad():
        masked.masks[0][:2] = torch.tensor([-0.5, 1.5])  # a step of descent went too far
    with torch.enable_grad():
        value = adversarial_loss(0.2, 0.4, ascents, torch.Generator().manual_seed(7))(masked, batch)
    assert masked.masks[0][:2].tolist() == [0.0, 1.0]
    generator = torch.Generator().manual_seed(7)
    masked.noise = [
        0.4 * (2 * torch.rand(2, len(mask), generator=generator) - 1).double()
        for mask in masked.masks
    ]
    for _ in range(ascents):
        ascend(masked, batch, 0.4, 0.4 / ascents)
    robust = functional.cross_entropy(masked(x), y)
    masked.noise = []
    natural = functional.cross_entropy(masked(x), y)
    assert bool(robust > natural)
    torch.testing.assert_close(value, 0.2 * natural + 0.8 * robust, rtol=1e-6, atol=1e-6)
    wanted = torch.autograd.grad(0.2 * natural + 0.8 * robust, list(masked.masks))
    found = torch.autograd.grad(value, list(masked.masks))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_batch_norms_go_by_the_batch_and_keep_their_statistics() -> None:
    model = make("residual")
    norm = model.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    x = torch.rand(6, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with untouched(model), torch.no_grad(), batch_statistics(model):
        given, output = through(model, "norm", x)
    mean, variance = given.mean(dim=(0, 2, 3)), given.var(dim=(0, 2, 3), unbiased=False)
    shape = (1, -1, 1, 1)
    wanted = (given - mean.reshape(shape)) / (variance.reshape(shape) + norm.eps).sqrt()
    wanted = wanted * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    torch.testing.assert_close(output, wanted.detach())


def test_a_pruned_channel_is_its_bias() -> None:
    model, x = Tiny(), images(5)
    with torch.no_grad():
        model.norm.bias.fill_(0.25)
        prune(
            [model.norm, model.third],
            [torch.tensor([0.1, 0.2, 0.21, 1.0]), torch.tensor([1.0, 1, 1, 0, 1, 1])], 0.2,
        )  # fmt: skip
    assert (model.norm.weight == 0).tolist() == [True, True, False, False]
    normed = model.norm(model.first(x))
    assert torch.equal(normed[:, :2], torch.full_like(normed[:, :2], 0.25))
    convolved = model.third(torch.rand(2, 6, 4, 4))
    assert model.third.bias is not None
    assert torch.equal(convolved[:, 3], model.third.bias[3].expand_as(convolved[:, 3]))
    assert (convolved.flatten(2).std(dim=2)[:, [0, 1, 2, 4, 5]] > 0).all()


def test_pruning_sets_weights_to_zero_and_leaves_all_else() -> None:
    model = Tiny()
    gone: list[set[tuple[str, int]]] = []
    for threshold in (0.5, 0.95):
        result = repair(
            "neuron_pruning", model=model, threshold=threshold, perturbation=0.4, steps=20,
            validation=None,
        )  # fmt: skip
        gone.append(set())
        for name, value in result.model.state_dict().items():
            given = model.state_dict()[name]
            if name in {"norm.weight", "second.weight", "third.weight"}:
                gone[-1] |= {(name, row) for row, one in enumerate(value) if not one.any()}
                rows = [row for row in range(len(value)) if (name, row) not in gone[-1]]
                assert torch.equal(value[rows], given[rows]), name
            else:
                assert torch.equal(value, given), name
    assert gone[0] < gone[1]
    assert len(gone[1]) < 16


def test_masks_are_learnt_from_clean_inputs_alone() -> None:
    options = {"perturbation": 0.4, "threshold": 0.95, "steps": 20, "validation": None}
    clean = tiny_pairs().clean
    labels = Tiny()(clean).argmax(1)
    results = [
        repair("neuron_pruning", pairs=SamplePairs(wrong, clean, labels), **options)
        .model.state_dict()
        for wrong in (tiny_pairs().corrupted, 1 - clean)
    ]  # fmt: skip
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())
    other = {**options, "reference": 1 - tiny_input()["reference"]}
    changed = repair("neuron_pruning", **other).model.state_dict()
    assert any(not torch.equal(value, results[0][name]) for name, value in changed.items())
