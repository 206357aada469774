"""Which layers are listed as editable, in which order, and why the others are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from rectify_widgets.engine.model.catalog import LayerCatalog, editable_layers
from rectify_widgets.engine.model.keys import EditableLayer
from tests.engine.models import CLASSES, NETWORKS, Perceptron, Plain, Transformer, images, make

LAYERS = {
    "plain": ["first", "second", "hidden", "head"],
    "plain-inplace": ["first", "second", "hidden", "head"],
    "residual": [
        "stem", "block1.conv1", "block1.conv2",
        "block2.conv1", "block2.conv2", "block2.short", "head",
    ],
    "perceptron": ["layers.1", "layers.3", "layers.5"],
    "transformer": [
        "embed", "block.attention.qkv", "block.attention.proj", "block.mlp.0", "block.mlp.2", "head",
    ],
    "windows": ["inside", "head"],
    "padded": ["reflect", "circular", "replicate", "same", "valid", "head"],
    "mobile": ["stem", "expand", "depthwise", "squeeze", "excite", "project", "head"],
    "fused": ["embed", "head"],
}  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_editable_layers_of_every_network(network: str) -> None:
    catalog = editable_layers(make(network), images(2))
    assert list(catalog.editable) == LAYERS[network]
    assert [layer.name for layer in catalog] == LAYERS[network]
    assert len(catalog) == len(LAYERS[network])
    for name, layer in catalog.editable.items():
        assert catalog[name] is layer
        assert layer == EditableLayer(name, layer.module)


class Backwards(nn.Module):
    """Registered in the order opposite to that of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)
        self.second = nn.Conv2d(4, 4, 1)
        self.first = nn.Conv2d(3, 4, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.second(self.first(x)).mean(dim=(2, 3)))
        return scores


def test_order_is_that_of_the_forward_pass() -> None:
    model = make(Backwards)
    catalog = editable_layers(model, images(1))
    assert list(catalog.editable) == ["first", "second", "head"]
    assert "does not call it" in catalog.refused["unused"]
    # Without an example nobody knows better than the order of registration.
    assert list(editable_layers(model).editable) == ["head", "second", "first", "unused"]


def test_what_comes_after_a_layer() -> None:
    catalog = editable_layers(make("residual"), images(1))
    assert catalog.after("block2.conv2") == ["block2.short", "head"]
    assert catalog.after("head") == []
    assert catalog.after("stem") == LAYERS["residual"][1:]
    assert "stem" in catalog.upstream["block1.conv1"]
    assert "norm" in catalog.upstream["block1.conv1"]
    assert "block1.norm1" not in catalog.upstream["block1.conv1"]


# --- refusals ------------------------------------------------------------------------------------


class Twice(Plain):
    """Uses one layer in two places."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.second(self.relu(self.first(x)))).mean(dim=(2, 3))
        x = self.relu(self.hidden(x))
        scores: Tensor = self.head(functional.relu(self.hidden(x[:, :6])))
        return scores


class Tied(Plain):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 6)
        self.middle = nn.Linear(6, 6)
        self.middle.weight = self.hidden.weight
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.second(self.relu(self.first(x)))).mean(dim=(2, 3))
        scores: Tensor = self.head(self.middle(self.hidden(x)))
        return scores


class OneDimensional(nn.Module):
    """Convolutions that are not two-dimensional, or run backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.ConvTranspose2d(3, 4, 3)
        self.line = nn.Conv1d(4, 4, 3)
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.line(self.back(x).flatten(2)).mean(dim=2))
        return scores


class Scaled(nn.Linear):
    """A Linear with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return 2 * super().forward(input)


def with_hidden(change: Callable[[nn.Linear], nn.Module]) -> Callable[[], nn.Module]:
    """A plain network whose hidden layer has been changed."""

    def build() -> nn.Module:
        model = Plain()
        model.hidden = change(model.hidden)  # type: ignore[assignment]
        return model

    return build


def old_weight_norm(layer: nn.Linear) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return nn.utils.weight_norm(layer)


def own_forward(layer: nn.Linear) -> nn.Module:
    scaled = Scaled(6, 8)
    scaled.load_state_dict(layer.state_dict())
    return scaled


def hooked(layer: nn.Linear) -> nn.Module:
    layer.register_forward_hook(lambda _, __, output: output + 1)
    return layer


def integers(layer: nn.Linear) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        model = nn.Sequential(layer)
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    part = quantised[0]
    assert isinstance(part, nn.Module)
    return part


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "used twice": (Twice, "hidden", "used 2 times in one forward pass"),
    "tied": (Tied, "hidden", "shared by hidden.weight and middle.weight"),
    "tied, the other": (Tied, "middle", "shared by hidden.weight and middle.weight"),
    "quantised": (with_hidden(integers), "hidden", "quantised"),
    "parametrised": (with_hidden(parametrizations.weight_norm), "hidden", "computed from other"),
    "weight norm": (with_hidden(old_weight_norm), "hidden", "computed from other parameters"),
    "spectral norm": (with_hidden(parametrizations.spectral_norm), "hidden", "computed from"),
    "pruned": (
        with_hidden(lambda m: prune.l1_unstructured(m, "weight", amount=0.5)),
        "hidden",
        "computed from other parameters",
    ),
    "own forward": (with_hidden(own_forward), "hidden", "not W k + b"),
    "hooked": (with_hidden(hooked), "hidden", "not W k + b"),
    "fused attention": (
        NETWORKS["fused"],
        "mix",
        "MultiheadAttention: only Conv2d and Linear have the key/value form, not its in_proj_weight",
    ),
    "inside fused attention": (NETWORKS["fused"], "mix.out_proj", "directly and never calls it"),
    "Conv1d": (OneDimensional, "line", "Conv1d: only Conv2d and Linear"),
    "ConvTranspose2d": (OneDimensional, "back", "ConvTranspose2d: only Conv2d and Linear"),
    "Embedding": (OneDimensional, "table", "Embedding: only Conv2d and Linear"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(case: str) -> None:
    build, name, reason = REFUSED[case]
    catalog = editable_layers(make(build), images(1))
    assert name not in catalog.editable
    assert reason in catalog.refused[name]
    assert len(catalog) > 0
    with pytest.raises(ValueError, match=f"layer: '{name}' cannot be edited"):
        catalog[name]


def test_lazy_layers_are_refused_until_the_model_has_run() -> None:
    with warnings.catch_warnings(action="ignore"):  # torch: lazy modules are a new feature
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(CLASSES))
    catalog = editable_layers(model)
    assert not catalog.editable
    assert "lazy" in catalog.refused["0"]
    assert "run the model once" in catalog.refused["2"]
    model(images(1))
    assert list(editable_layers(model, images(1)).editable) == ["0", "2"]


def test_other_weights_that_cannot_be_edited() -> None:
    nowhere = Perceptron().to("meta")
    assert "meta device" in editable_layers(nowhere).refused["layers.1"]


def test_a_weight_that_is_a_view_of_another_is_shared() -> None:
    model = Perceptron()
    first, second = model.layers[1], model.layers[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    second.weight = nn.Parameter(first.weight.detach()[:8, :12])
    refused = editable_layers(model).refused
    assert "shared by layers.1.weight and layers.3.weight" in refused["layers.1"]


def test_an_unbatched_convolution_is_refused() -> None:
    class Unbatched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.stack([self.conv(image).mean(dim=(1, 2)) for image in x])
            scores: Tensor = self.head(rows)
            return scores

    catalog = editable_layers(make(Unbatched), images(1))
    assert "not N × C × H × W" in catalog.refused["conv"]
    assert list(catalog.editable) == ["head"]


# --- choosing ------------------------------------------------------------------------------------


def test_unknown_names_are_answered_with_the_nearest() -> None:
    catalog = editable_layers(make("plain"), images(1))
    with pytest.raises(ValueError, match=r"no layer 'frist'.*did you mean 'first'"):
        catalog["frist"]
    with pytest.raises(TypeError, match="dotted name"):
        catalog.get("layer", 3)


def test_select_keeps_network_order() -> None:
    catalog = editable_layers(make("plain"), images(1))
    assert list(catalog.select("layers", ["head", "first"])) == ["first", "head"]
    assert list(catalog.select("layers", "second")) == ["second"]
    assert list(catalog.select("layers", None)) == LAYERS["plain"]
    with pytest.raises(ValueError, match="layers: got an empty list"):
        catalog.select("layers", [])
    with pytest.raises(ValueError, match="layers: no layer 'neck'"):
        catalog.select("layers", ["head", "neck"])
    with pytest.raises(ValueError, match=r"no editable layer.*mix.out_proj: lazy"):
        LayerCatalog({}, {"mix.out_proj": "lazy"}).select("layers", None)


# --- wrappers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = make("residual")
    catalog = editable_layers(wrap(model), images(2))
    assert list(catalog.editable) == LAYERS["residual"]
    assert catalog["stem"].module is model.stem


def test_a_model_compiled_in_place() -> None:
    model = make("plain")
    model.compile()
    assert list(editable_layers(model, images(2)).editable) == LAYERS["plain"]


def test_torchs_own_encoder_layer_shows_its_linear_layers() -> None:
    """Its fast path would call neither of them."""

    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 3, stride=3)
            self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            self.head = nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.layer(self.embed(x).flatten(2).transpose(1, 2))
            scores: Tensor = self.head(tokens.mean(dim=1))
            return scores

    catalog = editable_layers(make(Encoded), images(2))
    assert list(catalog.editable) == ["embed", "layer.linear1", "layer.linear2", "head"]


# --- no trace ------------------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_looking_leaves_no_hook_and_no_flag() -> None:
    model = make("residual").train()
    model.get_submodule("drop").eval()
    flags = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    editable_layers(model, images(1))
    assert hooks(model) == 0
    assert [part.training for part in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_hooks_come_off_when_the_model_fails() -> None:
    class Broken(Transformer):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("broken")

    model = make(Broken)
    with pytest.raises(RuntimeError, match="broken"):
        editable_layers(model, images(1))
    assert hooks(model) == 0
