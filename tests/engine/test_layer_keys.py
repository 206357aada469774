"""A layer's keys and values against patches cut out by loops, over every kind of convolution."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.engine.model.keys import EditableLayer, Keys, pad
from tests.engine import oracles
from tests.engine.models import images, make

Mode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]

# torch tells once a process that it copies such inputs.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    """A convolution of any kind that torch has, in float64, and an input that fits it."""
    size = st.integers(1, 3)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inside, outside = draw(size), draw(size)  # 1 and 1 with groups: depthwise
    kernel, dilation = draw(st.tuples(size, size)), draw(st.tuples(size, size))
    mode: Mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(
        st.one_of(st.just("same"), st.just("valid"), st.tuples(*[st.integers(0, 2)] * 2))
    )
    stride = (1, 1) if padding == "same" else draw(st.tuples(size, size))
    seed = draw(st.integers(0, 1000))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    height, width = (s + draw(st.integers(0, 4)) + 2 for s in span)
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(
        groups * inside, groups * outside, kernel, stride, padding, dilation, groups,
        bias=draw(st.booleans()), padding_mode=mode,
    ).double()  # fmt: skip
    for parameter in conv.parameters():
        nn.init.normal_(parameter, generator=generator)
    inputs = torch.randn(2, groups * inside, height, width, generator=generator).double()
    return conv, inputs


def close(found: Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-10)


@given(convolutions(), st.integers(1, 2))
def test_convolution_keys(case: tuple[nn.Conv2d, Tensor], count: int) -> None:
    conv, inputs = case
    layer = EditableLayer("conv", conv)
    keys = layer.keys(inputs, samples=2)
    wanted = oracles.keys(conv, inputs, 2)
    close(keys.unfold(), wanted)
    close(keys.norms(), np.linalg.norm(wanted, axis=2))
    close(keys.squares().unfold(), wanted**2)
    close(keys.rows(slice(1, 2)).unfold(), wanted[1:])
    other = layer.keys(inputs.flip(0), samples=2)
    close((keys - other).unfold(), wanted - wanted[::-1])

    generator = torch.Generator().manual_seed(count)
    vectors = torch.randn(conv.groups, count, layer.key_size, generator=generator).double()
    answers = np.einsum("gdk,ngkp->ngdp", vectors.numpy(), wanted)
    close(keys.respond(vectors), answers)
    weights = torch.randn(answers.shape, generator=generator).double()
    close(keys.gather(weights), np.einsum("ngdp,ngkp->gdk", weights.numpy(), wanted))
    apart = np.einsum("ngdp,ngkp->ngdk", weights.numpy(), wanted)
    close(keys.gather(weights, each=True), apart)


@given(convolutions())
def test_convolution_values_are_its_outputs(case: tuple[nn.Conv2d, Tensor]) -> None:
    conv, inputs = case
    layer = EditableLayer("conv", conv)
    with torch.no_grad():
        outputs = conv(inputs)
        bare = outputs if conv.bias is None else outputs - conv.bias.reshape(1, -1, 1, 1)
    values = layer.keys(inputs, samples=2).values()
    np.testing.assert_allclose(values, layer.positions(bare, samples=2), rtol=1e-9, atol=1e-9)
    close(values, np.einsum("gok,ngkp->ngop", oracles.flat(conv), oracles.keys(conv, inputs, 2)))
    # Position p is row p // width, column p % width of the output, group by group.
    by_group = outputs.reshape(2, conv.groups, -1, *outputs.shape[2:])
    flat = layer.positions(outputs, samples=2)
    width = outputs.shape[3]
    last = flat.shape[3] - 1
    assert torch.equal(flat[..., last], by_group[..., last // width, last % width])


@given(convolutions())
def test_padding_is_the_convolutions_own(case: tuple[nn.Conv2d, Tensor]) -> None:
    conv, inputs = case
    with torch.no_grad():
        wanted = conv(inputs)
        found = functional.conv2d(
            pad(conv, inputs), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups
        )
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@given(convolutions())
def test_pixel_keys(case: tuple[nn.Conv2d, Tensor]) -> None:
    conv, inputs = case
    found = EditableLayer("conv", conv).pixels(inputs, samples=2)
    close(found, oracles.pixels(conv, inputs))


@pytest.mark.parametrize(
    ("shape", "samples", "positions"),
    [((4, 5), 4, 1), ((4, 7, 5), 4, 7), ((12, 7, 5), 4, 21), ((4, 2, 3, 5), 4, 6)],
    ids=["N×K", "N×T×K", "windows", "N×H×W×K"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_linear_keys(shape: tuple[int, ...], samples: int, positions: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(5, 3).double()
    inputs = torch.randn(shape, generator=generator).double()
    layer = EditableLayer("linear", linear)
    keys = layer.keys(inputs, samples)
    wanted = oracles.keys(linear, inputs, samples)
    assert wanted.shape == (samples, 1, 5, positions)
    close(keys.unfold(), wanted)
    close(keys.norms(), np.linalg.norm(wanted, axis=2))
    close(layer.pixels(inputs, samples), wanted)
    assert len(keys) == samples

    vectors = torch.randn(1, count, 5, generator=generator).double()
    answers = np.einsum("gdk,ngkp->ngdp", vectors.numpy(), wanted)
    close(keys.respond(vectors), answers)
    weights = torch.randn(answers.shape, generator=generator).double()
    close(keys.gather(weights), np.einsum("ngdp,ngkp->gdk", weights.numpy(), wanted))
    apart = np.einsum("ngdp,ngkp->ngdk", weights.numpy(), wanted)
    close(keys.gather(weights, each=True), apart)
    with torch.no_grad():
        bare = layer.positions(linear(inputs) - linear.bias, samples)
    torch.testing.assert_close(keys.values(), bare, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_keys_are_float32_or_better(dtype: torch.dtype) -> None:
    linear, conv = nn.Linear(3, 2).to(dtype), nn.Conv2d(3, 2, 3).to(dtype)
    wanted = torch.float64 if dtype is torch.float64 else torch.float32
    for module, inputs in ((linear, torch.rand(2, 3)), (conv, torch.rand(2, 3, 5, 5))):
        layer = EditableLayer("layer", module)
        keys = layer.keys(inputs.to(dtype), samples=2)
        assert keys.unfold().dtype is wanted
        assert keys.values().dtype is wanted
        assert layer.positions(inputs.to(dtype).new_ones(2, 2, 3, 3), 2).dtype is wanted


def test_keys_ignore_the_memory_format() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    inputs = images(2, channels=4)
    wanted = EditableLayer("conv", conv).keys(inputs, 2)
    vectors = torch.ones(2, 1, 18)
    conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = EditableLayer("conv", conv).keys(inputs.to(memory_format=torch.channels_last), 2)
    for operation in (Keys.unfold, Keys.norms, Keys.values):
        torch.testing.assert_close(operation(found), operation(wanted))
    torch.testing.assert_close(
        found.gather(found.respond(vectors)), wanted.gather(wanted.respond(vectors))
    )


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize("padding", [0, 1])
def test_keys_of_a_convolution_have_plain_strides(channels: int, padding: int) -> None:
    """In channels_last the weight gradient of this very convolution ends the process on the CPU."""
    conv = nn.Conv2d(channels, 4, 1, stride=2, padding=padding)
    x = images(33, channels=channels, size=10).to(memory_format=torch.channels_last)
    keys = EditableLayer("conv", conv).keys(x, samples=33)
    assert keys.inputs.stride() == torch.empty(keys.inputs.shape).stride()
    weights = torch.ones(33, 1, 2, keys.unfold().shape[3])
    wanted = oracles.keys(conv, x, 33).sum(axis=(0, 3))
    np.testing.assert_allclose(keys.gather(weights)[:, 0], wanted, rtol=1e-4)


@pytest.mark.parametrize("network", ["plain", "residual", "padded", "mobile", "transformer"])
def test_keys_of_every_layer_in_a_network(network: str) -> None:
    model, x = make(network), images(3)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layer, inputs = EditableLayer(name, module), oracles.layer_input(model, name, x)
            values = layer.keys(inputs, samples=3).values()
            outputs = layer.positions(oracles.layer_output(model, name, x), samples=3)
            if module.bias is not None:
                outputs = outputs - module.bias.detach().reshape(1, layer.groups, -1, 1)
            torch.testing.assert_close(values, outputs, rtol=1e-4, atol=1e-5)


def test_shape_and_kind_in_words() -> None:
    conv = EditableLayer("c", nn.Conv2d(4, 6, (3, 1), groups=2))
    linear = EditableLayer("l", nn.Linear(7, 5))
    assert (conv.groups, conv.outputs, conv.key_size) == (2, 6, 6)
    assert (linear.groups, linear.outputs, linear.key_size) == (1, 5, 7)
    assert conv.kind == "Conv2d 3×1, 2 groups"
    assert linear.kind == "Linear"
    assert EditableLayer("c", nn.Conv2d(1, 1, 5)).kind == "Conv2d 5×5"
