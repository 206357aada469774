"""Attribution maps: the same numbers as captum and as the formulas, and a model left untouched."""

from __future__ import annotations

import threading

import pytest
import torch
from captum.attr import (
    InputXGradient,
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.explain import ATTRIBUTION_METHODS, attribute

SAMPLES, CLASSES = 5, 4


class Net(nn.Module):
    """Convolution, batch norm, ReLU, residual addition: in place or not."""

    def __init__(self, *, inplace: bool, channels: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=inplace)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, CLASSES)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        y = self.second(x)
        x = functional.relu_(y.add_(x)) if self.inplace else functional.relu(y + x)
        scores: Tensor = self.head(self.drop(x).mean(dim=(2, 3)))
        return scores


def twins(channels: int = 1) -> tuple[Net, Net]:
    """The same network written with and without in-place operations, in training mode."""
    torch.manual_seed(0)
    inplace, plain = Net(inplace=True, channels=channels), Net(inplace=False, channels=channels)
    for name, buffer in inplace.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    plain.load_state_dict(inplace.state_dict())
    return inplace, plain


def images(channels: int = 1, size: tuple[int, int] = (9, 11)) -> Tensor:
    return torch.rand(SAMPLES, channels, *size, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([0, 3, 1, 2, 3])


def test_integrated_gradients_equal_captum() -> None:
    inplace, plain = twins()
    x = images()
    mine = attribute(inplace, x, target=TARGETS, batch_size=2, steps=20)
    captum = IntegratedGradients(plain.eval()).attribute(x, target=TARGETS, n_steps=20)
    torch.testing.assert_close(mine, captum.detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("baseline", [0.0, -0.5, torch.full((1, 9, 11), 0.25), images() / 2])
def test_integrated_gradients_are_complete(baseline: float | Tensor) -> None:
    model, _ = twins()
    model.double()
    x = images().double()
    maps = attribute(model, x, target=TARGETS, baseline=baseline, steps=400, batch_size=3)
    start = torch.zeros_like(x) + torch.as_tensor(baseline).double()
    model.eval()
    rows = torch.arange(SAMPLES)
    change = model(x)[rows, TARGETS] - model(start)[rows, TARGETS]
    torch.testing.assert_close(maps.flatten(1).sum(1), change.detach(), atol=2e-4, rtol=2e-3)


def test_saliency_and_input_x_gradient_equal_autograd() -> None:
    inplace, plain = twins(channels=3)
    x = images(3).requires_grad_()
    score = plain.eval()(x).gather(1, TARGETS[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, x)
    x = x.detach()
    torch.testing.assert_close(
        attribute(inplace, x, method="saliency", target=TARGETS), gradient.abs()
    )
    signed = attribute(inplace, x, method="saliency", target=TARGETS, absolute=False, batch_size=2)
    torch.testing.assert_close(signed, gradient)
    product = attribute(inplace, x, method="input-x-gradient", target=TARGETS)
    torch.testing.assert_close(product, gradient * x)
    torch.testing.assert_close(
        product, InputXGradient(plain).attribute(x.requires_grad_(), target=TARGETS).detach()
    )


def test_smoothgrad_equals_captum_with_the_same_noise() -> None:
    inplace, plain = twins()
    x = images(size=(8, 8))  # a multiple of 16 values, which the random stream is cut into
    mine = attribute(inplace, x, method="smoothgrad", target=TARGETS, samples=6, noise=0.2, seed=7)
    for row in range(SAMPLES):
        one = x[row : row + 1]
        torch.manual_seed(7 + row)
        captum = NoiseTunnel(Saliency(plain.eval())).attribute(
            one.clone().requires_grad_(),
            nt_samples=6,
            nt_type="smoothgrad",
            abs=False,
            stdevs=0.2 * float(one.max() - one.min()),
            target=int(TARGETS[row]),
        )
        torch.testing.assert_close(mine[row : row + 1], captum.detach(), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("layer", ["first", "norm", "relu", "second", None])
@pytest.mark.parametrize("relu", [True, False])
def test_grad_cam_is_safe_before_in_place_operations(layer: str | None, relu: bool) -> None:
    inplace, plain = twins()
    x = images()
    mine = attribute(inplace, x, method="grad-cam", target=TARGETS, layer=layer, relu=relu)
    module = plain.get_submodule(layer or "second")
    small = LayerGradCam(plain.eval(), module).attribute(x, target=TARGETS, relu_attributions=relu)
    captum = LayerAttribution.interpolate(small, (9, 11), interpolate_mode="bilinear")
    assert mine.shape == (SAMPLES, 1, 9, 11)
    torch.testing.assert_close(mine, captum.detach())


def test_grad_cam_of_a_strided_layer_is_upsampled() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(CLASSES)
    )
    model(images(3, (16, 20)))
    maps = attribute(model, images(3, (16, 20)), method="grad-cam", layer="0", relu=False)
    assert maps.shape == (SAMPLES, 1, 16, 20)


def test_occlusion_equals_captum() -> None:
    inplace, plain = twins()
    x = images()
    mine = attribute(
        inplace,
        x,
        method="occlusion",
        target=TARGETS,
        window=3,
        stride=2,
        baseline=0.5,
        batch_size=3,
    )
    captum = Occlusion(plain.eval()).attribute(
        x, sliding_window_shapes=(1, 3, 3), strides=(1, 2, 2), baselines=0.5, target=TARGETS
    )
    torch.testing.assert_close(mine, captum, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_the_model_and_the_inputs_are_left_untouched(method: str) -> None:
    model, _ = twins()
    model.first.weight.requires_grad_(False)
    model.norm.eval()
    x = images().requires_grad_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    with torch.no_grad():
        attribute(model, x, method=method, batch_size=2)
    assert torch.equal(state, torch.get_rng_state())
    assert flags == [part.training for part in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not any(part._forward_hooks or part._backward_hooks for part in model.modules())
    assert x.grad is None
    assert x.requires_grad
    assert torch.equal(x.detach(), images())


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_maps_do_not_depend_on_the_batch_size(method: str) -> None:
    model, _ = twins(channels=3)
    x = images(3)
    whole, single = (attribute(model, x, method=method, batch_size=b) for b in (32, 1))
    torch.testing.assert_close(whole, single, atol=1e-6, rtol=1e-4)
    assert whole.shape == (SAMPLES, 1 if method == "grad-cam" else 3, 9, 11)


@pytest.mark.parametrize(("count", "side", "most"), [(40, 8, 32), (7, 224, 3)])
def test_fewer_large_inputs_go_through_at_once(count: int, side: int, most: int) -> None:
    seen: list[int] = []

    class Counting(Net):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    model = Counting(inplace=False, channels=3).eval()
    attribute(model, torch.rand(count, 3, side, side), method="saliency", target=0)
    assert max(seen) == most


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_without_a_target_the_prediction_is_explained(method: str) -> None:
    model, plain = twins()
    x = images()
    predicted = plain.eval()(x).argmax(dim=1)
    torch.testing.assert_close(
        attribute(model, x, method=method), attribute(model, x, method=method, target=predicted)
    )


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
@pytest.mark.parametrize("kind", ["double", "bfloat16", "channels_last", "inference"])
def test_dtypes_and_layouts(method: str, kind: str) -> None:
    model, _ = twins(channels=3)
    x = images(3)
    if kind == "channels_last":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(memory_format=torch.channels_last)
    elif kind == "inference":
        with torch.inference_mode():
            x = x * 1.0
            maps = attribute(model, x, method=method, target=1)
    else:
        dtype = getattr(torch, kind)
        model, x = model.to(dtype), x.to(dtype)
    reference = attribute(twins(channels=3)[0], images(3), method=method, target=1)
    maps = attribute(model, x, method=method, target=1)
    assert maps.dtype == x.dtype
    assert not maps.requires_grad
    if kind != "bfloat16":
        torch.testing.assert_close(maps.float(), reference, atol=1e-6, rtol=1e-4)
    elif method != "occlusion":  # whose differences of scores are below bfloat16's resolution
        assert (
            float(functional.cosine_similarity(maps.float().ravel(), reference.ravel(), dim=0))
            > 0.98
        )


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_cancel_stops_before_the_next_forward_pass(method: str) -> None:
    model, _ = twins()
    answers = iter([False, False])
    with pytest.raises(Cancelled):
        attribute(model, images(), method=method, batch_size=2, cancel=lambda: next(answers, True))
    event = threading.Event()
    event.set()
    with pytest.raises(Cancelled):
        attribute(model, images(), method=method, cancel=event)
    assert model.training
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_progress_rises_to_one(method: str) -> None:
    seen: list[float] = []
    attribute(
        twins()[0],
        images(),
        method=method,
        batch_size=2,
        progress=lambda fraction, message: seen.append(fraction),
    )
    assert seen == sorted(seen)
    assert seen[0] == 0.0
    assert seen[-1] == 1.0


class Broken(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


BAD: list[tuple[str, dict[str, object], type[Exception], str]] = [
    ("unknown method", {"method": "saliancy"}, ValueError, "did you mean 'saliency'"),
    ("unknown option", {"stepz": 3}, TypeError, "did you mean 'steps'"),
    ("an option of another method", {"method": "saliency", "steps": 3}, TypeError, "absolute"),
    ("no options at all", {"method": "input-x-gradient", "steps": 3}, TypeError, "has none"),
    ("not a tensor", {"inputs": [[1.0]]}, TypeError, "inputs: got list"),
    ("whole numbers", {"inputs": torch.zeros(1, 1, 9, 11, dtype=torch.int64)}, TypeError, "float"),
    ("no batch", {"inputs": torch.rand(1, 9, 11)}, ValueError, r"\[None\]"),
    ("empty", {"inputs": torch.rand(0, 1, 9, 11)}, ValueError, "at least one"),
    ("NaN", {"inputs": torch.full((1, 1, 9, 11), float("nan"))}, ValueError, "finite"),
    ("target too large", {"target": 4}, ValueError, "0 to 3"),
    ("target of another length", {"target": torch.tensor([1, 2])}, ValueError, r"\(5,\)"),
    ("target not whole", {"target": 1.5}, TypeError, "whole"),
    ("unknown layer", {"method": "grad-cam", "layer": "secnd"}, ValueError, "'second'"),
    ("layer of another kind", {"method": "grad-cam", "layer": 3}, TypeError, "dotted"),
    ("layer for saliency", {"method": "saliency", "layer": "first"}, ValueError, "grad-cam"),
    ("layer without positions", {"method": "grad-cam", "layer": "head"}, ValueError, "convolution"),
    ("batch size", {"batch_size": 0}, ValueError, "at least 1"),
    ("steps", {"steps": 0}, ValueError, "at least 1"),
    ("baseline shape", {"baseline": torch.zeros(2, 9, 11)}, ValueError, "broadcasts"),
    ("baseline kind", {"baseline": "black"}, TypeError, "baseline"),
    ("noise", {"method": "smoothgrad", "noise": -1.0}, ValueError, "noise"),
    ("flag", {"method": "saliency", "absolute": 1}, TypeError, "True or False"),
    ("window", {"method": "occlusion", "window": 12}, ValueError, "at most 9"),
    ("stride", {"method": "occlusion", "window": 2, "stride": 3}, ValueError, "at most the"),
    ("not a model", {"model": abs}, TypeError, "torch.nn.Module"),
    (
        "no convolution",
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(99, 4)), "method": "grad-cam"},
        ValueError,
        "no convolution",
    ),
    ("scores of another shape", {"model": Broken(torch.zeros(3))}, ValueError, "N × classes"),
    ("not scores", {"model": Broken("scores")}, TypeError, r"adapt\(model, output=f"),
    ("the model raises", {"model": Broken(KeyError("inside"))}, KeyError, "inside"),
    ("cancel", {"cancel": 3}, TypeError, "is_set"),
    ("progress", {"progress": 3}, TypeError, "function"),
]


@pytest.mark.parametrize(("_name", "changes", "kind", "message"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_named(
    _name: str, changes: dict[str, object], kind: type[Exception], message: str
) -> None:
    model = twins()[0]
    arguments: dict[str, object] = {"model": model, "inputs": images(), "batch_size": 2} | changes
    with pytest.raises(kind, match=message):
        attribute(**arguments)  # type: ignore[arg-type]
    assert model.training
    assert not any(part._forward_hooks for part in model.modules())
