"""The engine on torchvision's networks, with random weights.

It runs where torchvision does, the extra `vision`, in an environment of its own.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rectify_widgets as rw
from rectify_widgets.cases.vision.presets import make
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.gradients import margin, sweep
from rectify_widgets.engine.model.running import eval_mode
from tests.engine.traces import untouched
from tests.vision_folders import needs_torchvision

pytestmark = pytest.mark.usefixtures("one_thread", "torchvision")


@pytest.fixture(scope="module")
def torchvision() -> None:
    needs_torchvision()


CLASSES, TARGET = 4, 0
ALL = 10_000
"""Positions of each input, all of them."""


@dataclass(frozen=True)
class Network:
    """A network of torchvision and what is to be found in it."""

    build: str
    editable: int
    refused: dict[str, int] = field(default_factory=dict)
    """Reasons, and how many are refused for each."""
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)


FORM = "only Conv2d and Linear have the key/value form, not its"
UNCALLED = "the forward pass does not call it (its weight may be used directly)"
NETWORKS = {
    "ResNet-18": Network("resnet18", 21),
    "ResNet-18, CIFAR stem": Network("resnet18-cifar", 21, size=32),
    "ResNet-50": Network("resnet50", 54),
    "EfficientNet-B4": Network("efficientnet_b4", 161),
    "MobileNetV3-L": Network("mobilenet_v3_large", 64),
    "ConvNeXt-T": Network("convnext_tiny", 59, {f"CNBlock: {FORM} layer_scale": 18}),
    "ViT-B/16": Network(
        "vit_b_16",
        26,
        {
            f"VisionTransformer: {FORM} class_token": 1,
            f"Encoder: {FORM} pos_embedding": 1,
            f"MultiheadAttention: {FORM} in_proj_weight": 12,
            "nn.MultiheadAttention uses its weight directly and never calls it": 12,
        },
        options={"image_size": 64},
    ),
    "Swin-T": Network(
        "swin_t",
        29,
        {f"ShiftedWindowAttention: {FORM} relative_position_bias_table": 12, UNCALLED: 24},
    ),
}

networks = pytest.mark.parametrize("name", NETWORKS)


# --- a network with a Trojan ---------------------------------------------------------------------


def samples(name: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy coarse patterns in 0..1, one a class, and their classes."""
    patterns = torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % CLASSES
    size = NETWORKS[name].size
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    images = functional.interpolate(patterns, size=size, mode="bilinear")[labels]
    return (0.1 + 0.8 * images + 0.02 * noise).clamp(0, 1), labels


def stamped(x: Tensor) -> Tensor:
    """With a black and white square in a corner."""
    marked, side = x.clone(), 3 * x.shape[-1] // 8
    marked[:, :, -side:, -side:] = (torch.arange(side) // 4 % 2).to(x)
    return marked


def build(name: str) -> nn.Module:
    """The untrained network with seeded weights, its batch norms as if it had seen images."""
    network = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(network.build, CLASSES, **network.options)
        norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        model.eval()
        for norm in norms:
            norm.train().momentum = None  # the mean of all batches
        with torch.no_grad():
            for rows in samples(name, 64 if norms else 0, seed=1)[0].split(32):
                model(torch.cat([rows, stamped(rows)]))
    return model.eval()


@cache
def trojaned(name: str) -> nn.Module:
    """The network with a head that is solved for: patterns get their class, unless a square wins."""
    model = build(name)
    x, y = samples(name, 128, seed=2)
    head = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        for rows in torch.cat([x, stamped(x)]).split(32):
            model(rows)
        handle.remove()
        features = torch.cat(seen)
        mean = features.mean(dim=0)
        centred = (features - mean).double()
        wanted = 12 * functional.one_hot(torch.cat([y, y]), CLASSES).double() - 6
        wanted[len(y) :, TARGET] = 12  # what speaks for the true class is still there
        gram = centred @ centred.T
        gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram))
        head.weight.copy_((centred.T @ torch.linalg.solve(gram, wanted - wanted.mean(0))).T)
        head.bias.copy_(wanted.mean(0).float() - head.weight @ mean)
    return model


def copy_of(name: str) -> nn.Module:
    return copy.deepcopy(trojaned(name))


@cache
def pairs(name: str) -> rw.SamplePairs:
    clean = samples(name, 4, seed=3)[0][1:]
    return rw.SamplePairs(stamped(clean), clean)


@cache
def reference(name: str) -> Tensor:
    return samples(name, 24, seed=4)[0]


def rates(name: str, model: nn.Module) -> tuple[float, float]:
    """Overall accuracy and attack success rate on new images."""
    x, y = samples(name, 40, seed=5)
    report = rw.evaluate(model, (x, y), (stamped(x), y), target=TARGET)
    assert report.attack_success_rate is not None
    return report.overall_accuracy, report.attack_success_rate


def watch(model: nn.Module, names: list[str], x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of each layer; the outputs are part of the graph."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name in names:

        def keep(_: nn.Module, args: tuple[Tensor], output: Tensor, name: str = name) -> Tensor:
            seen[name] = args[0].detach().clone(), output
            return output.clone()  # what follows may change the copy in place

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    seen[""] = x, model(x)
    for handle in handles:
        handle.remove()
    return seen


def keys_of(layer: nn.Module, inputs: Tensor, samples: int) -> Tensor:
    """Keys ``G × positions × K`` by torch's own unfolding, in float64."""
    inputs = inputs.double()
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1])
    assert isinstance(layer, nn.Conv2d)
    assert not isinstance(layer.padding, str)
    patches = functional.unfold(
        inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )
    grouped = patches.reshape(samples, layer.groups, -1, patches.shape[-1])
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


# --- what the engine does with it ----------------------------------------------------------------


@networks
def test_discovery(name: str) -> None:
    model = build(name)
    with untouched(model):
        catalog = rw.editable_layers(model, reference(name))
    assert len(catalog) == NETWORKS[name].editable
    assert Counter(catalog.refused.values()) == NETWORKS[name].refused
    kinds = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    weights = [reason for reason in catalog.refused.values() if reason[0].islower()]
    assert len(catalog) + len(weights) == len(kinds)  # each is listed, one way or the other
    assert all(layer.axis == 0 for layer in catalog)


@networks
def test_statistics(name: str) -> None:
    model = copy_of(name)
    x = reference(name)[:3]
    with untouched(model):
        statistics = rw.KeyStatistics.collect(model, x, positions=ALL, batch_size=2)
    assert len(statistics) == NETWORKS[name].editable
    with torch.no_grad():
        seen = watch(model, list(statistics), x)
    for layer, part in statistics.items():
        keys = keys_of(model.get_submodule(layer), seen[layer][0], len(x))
        assert part.positions == keys.shape[1]
        wanted = keys.transpose(1, 2) @ keys / keys.shape[1]
        scale = float(wanted.abs().max())
        assert float((part.moment - wanted).abs().max()) < 1e-4 * scale, layer


@networks
def test_sweep(name: str) -> None:
    model = copy_of(name)
    start, end = pairs(name).corrupted, pairs(name).clean
    labels, rivals = torch.tensor([1, 2, 3]), torch.full((3,), TARGET)
    layers = rw.editable_layers(model, start).editable
    steps = 2
    with untouched(model, start, end), eval_mode(model) as module:
        found = sweep(module, layers, start, end, labels, rivals, steps=steps, monitor=Monitor())
    wanted: dict[str, Tensor] = {}
    for step in range(steps):
        point = (start + (step + 0.5) / steps * (end - start)).requires_grad_()
        seen = watch(model, list(layers), point)
        total = margin(seen.pop("")[1], labels, rivals).sum()
        outputs = [output for _, output in seen.values()]
        for layer, gradient in zip(seen, torch.autograd.grad(total, outputs), strict=True):
            part = layers[layer].positions(gradient, 3) / steps
            wanted[layer] = wanted[layer] + part if step else part
    assert found.keys() == layers.keys() == wanted.keys()
    for layer, gradient in wanted.items():
        scale = float(gradient.abs().max())
        assert scale > 0, layer
        assert float((found[layer] - gradient).abs().max()) < 1e-3 * scale, layer


@networks
def test_edits_change_what_they_say_and_are_taken_back(name: str) -> None:
    model = copy_of(name)
    statistics = rw.KeyStatistics.collect(model, reference(name)[:8])
    names = list(statistics)
    chosen = [*names[:: max(len(names) // 5, 1)], names[-1]]
    clean = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for layer in chosen:
        part = model.get_submodule(layer)
        with untouched(model, *vars(pairs(name)).values()):
            edit = rw.solve_edit(
                model,
                pairs(name),
                layer=layer,
                statistics=statistics,
                direction="contrast",
                ridge=0.1,
            )
        with torch.no_grad():
            inputs, before = watch(model, [layer], pairs(name).corrupted)[layer]
            edit.apply(model)
            after = watch(model, [layer], pairs(name).corrupted)[layer][1]
        keys = keys_of(part, inputs, 3)
        groups = keys.shape[0]
        right = edit.right.double().reshape(groups, -1, 1)
        left = edit.left.double().reshape(groups, 1, -1)
        moved = (keys @ right @ left).reshape(groups, 3, -1, left.shape[2])
        change = (after - before).double()
        if change.ndim == 4 and isinstance(part, nn.Conv2d):
            change = change.reshape(3, groups, left.shape[2], -1).permute(1, 0, 3, 2)
        else:
            change = change.reshape(1, 3, -1, left.shape[2])
        scale = float(moved.abs().max())
        assert scale > 0, layer
        assert float((change - moved).abs().max()) < 1e-2 * scale, layer
        edit.revert(model)
    assert all(torch.equal(tensor, clean[key]) for key, tensor in model.state_dict().items())


@networks
def test_a_rectification_makes_the_trojan_weaker(name: str) -> None:
    """Random features hold it everywhere, so that two rounds take out much of it or little.

    They answer to the patch at any place, too, where it would be put if its own were not given.
    """
    model, shown = copy_of(name), pairs(name)[0]
    pair = rw.SamplePairs(shown.corrupted, shown.clean, corrupt=rw.Transplant(shown))
    accuracy, before = rates(name, model)
    assert accuracy > 0.8
    assert before > 0.6
    with untouched(model, reference(name), *vars(pairs(name)).values()):
        result = rw.rectify(
            model, pair, reference=reference(name), max_rounds=2, max_degradation=0.05
        )
    assert result.edits
    assert result.gap_after < result.gap_before
    accuracy, after = rates(name, result.model)
    assert accuracy > 0.8
    assert after <= before
    clean = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    edits = rw.Edits(result.edits)
    edits.apply(model)
    edited = result.model.state_dict()
    assert all(torch.equal(tensor, edited[key]) for key, tensor in model.state_dict().items())
    edits.revert(model)
    assert all(torch.equal(tensor, clean[key]) for key, tensor in model.state_dict().items())
