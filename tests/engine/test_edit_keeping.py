"""Edits applied, taken back to the bit, stacked, copied with their model, saved and loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from rectify_widgets.engine.edit.edits import Edits, RankOneEdit, digest, load_edits, save_edits
from rectify_widgets.engine.repair.solving import solve_edit
from tests.engine.models import Plain, images, make
from tests.engine.test_editing import patched

Bits = dict[str, Tensor]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def bits(model: nn.Module) -> Bits:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: Bits) -> bool:
    """To the bit: +0 and −0 differ."""
    now = bits(model)
    return now.keys() == before.keys() and all(
        now[name].dtype == before[name].dtype
        and torch.equal(now[name], before[name])
        and torch.equal(now[name].signbit(), before[name].signbit())
        for name in now
    )


def solved(model: nn.Module, layer: str, **options: object) -> RankOneEdit:
    settled = {"direction": "key", "ridge": 0.1, **options}
    return solve_edit(model, patched(), layer=layer, reference=images(4), **settled)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("network", "layer"),
    [
        ("plain", "second"),
        ("perceptron", "layers.1"),
        ("padded", "valid"),
        ("residual", "block2.short"),
    ],
)
def test_apply_and_revert(network: str, layer: str, dtype: torch.dtype) -> None:
    model = make(network).to(dtype)
    before = bits(model)
    edit = solved(model, layer)
    assert same(model, before)  # solving applies nothing
    assert not edit.is_applied(model)
    edit.apply(model)
    assert edit.is_applied(model)
    name = f"{layer}.weight"
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    wanted = (before[name].to(wide) + edit.delta.to(wide)).to(dtype)
    assert same(model, {**before, name: wanted})
    assert not torch.equal(wanted, before[name])
    edit.revert(model)
    assert same(model, before)
    assert not edit.is_applied(model)


def test_a_weight_with_minus_zeros_and_channels_last() -> None:
    model = make("plain").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        model.get_parameter("second.weight")[0] = -0.0
    before = bits(model)
    weight = model.get_parameter("second.weight")
    edit = solved(model, "second")
    for _ in range(3):
        edit.apply(model)
        edit.revert(model)
    assert same(model, before)
    assert model.get_parameter("second.weight") is weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=12)
@given(
    st.lists(st.sampled_from(["first", "second", "hidden", "head"]), min_size=2, max_size=5),
    st.sampled_from(DTYPES),
)
def test_stacked_edits_are_taken_back_in_order(layers: list[str], dtype: torch.dtype) -> None:
    model = make("plain").to(dtype)
    states, edits = [bits(model)], []
    for number, layer in enumerate(layers):
        edit = solved(model, layer, ridge=0.1 * (number + 1), direction="contrast")
        edit.apply(model)
        edits.append(edit)
        states.append(bits(model))
    for edit in edits[:-1]:
        with pytest.raises(ValueError, match=r"revert|not applied"):
            edit.revert(model)
    assert same(model, states[-1])
    copied = copy.deepcopy(model)
    while edits:
        edits.pop().revert(model)
        assert same(model, states[len(edits)])
    assert same(copied, states[-1])


def test_out_of_order_the_error_names_the_later_edit() -> None:
    model = make("plain")
    first = solved(model, "first")
    first.apply(model)
    second = solved(model, "second")
    second.apply(model)
    with pytest.raises(
        ValueError, match=r"layer 'second' was applied after .* 'first'; revert the"
    ):
        first.revert(model)
    with pytest.raises(ValueError, match="model: this edit of layer 'second' is not applied"):
        solved(model, "second").revert(model)
    second.revert(model)
    with pytest.raises(ValueError, match="model: this edit of layer 'second' is not applied"):
        second.revert(model)
    first.revert(model)
    # A later edit that somebody else has overwritten does not stand in the way.
    second = solved(model, "second")
    first.apply(model)
    second.apply(model)
    with torch.no_grad():
        model.get_parameter("second.weight").zero_()
    first.revert(model)
    with pytest.raises(ValueError, match="not applied"):
        second.revert(model)


def test_the_same_edit_twice_with_force() -> None:
    model = make("plain")
    before = bits(model)
    edit = solved(model, "second")
    edit.apply(model)
    once = bits(model)
    with pytest.raises(ValueError, match="not the one that this edit was solved for"):
        edit.apply(model)
    edit.apply(model, force=True)
    edit.revert(model)
    assert same(model, once)
    edit.revert(model)
    assert same(model, before)


def test_a_copy_of_the_edited_model_reverts_too() -> None:
    model = make("plain")
    before = bits(model)
    edits = Edits([solved(model, "second")])
    edits.apply(model)
    copied = copy.deepcopy(model)
    edits.revert(copied)
    assert same(copied, before)
    assert not same(model, before)
    edits.revert(model)
    assert same(model, before)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = make("plain")
    before = bits(model)
    edit = solved(wrap(model), "second")
    edit.apply(wrap(model))
    assert not same(model, before)
    edit.revert(model)
    assert same(model, before)


def test_other_models_are_refused_unless_forced() -> None:
    edit = solved(make("plain"), "second")
    other = make("plain", seed=1)
    before = bits(other)
    with pytest.raises(ValueError, match=r"layer 'second' is not the one .* or pass force=True"):
        edit.apply(other)
    assert same(other, before)
    edit.apply(other, force=True)
    assert torch.equal(other.get_parameter("second.weight"), before["second.weight"] + edit.delta)
    edit.revert(other)
    assert same(other, before)

    wider = make(lambda: Plain(channels=1))
    first = solved(make("plain"), "first")
    for force in (False, True):
        with pytest.raises(ValueError, match=r"has shape \(4, 1, 3, 3\), this edit wants"):
            first.apply(wider, force=force)
        with pytest.raises(ValueError, match=r"no layer 'second'"):
            edit.apply(make("perceptron"), force=force)
    with pytest.raises(ValueError, match=r"not the one"):
        edit.apply(make("plain").double())  # the same weights, but another precision


def test_an_edit_that_would_overflow_is_refused() -> None:
    model = make("plain").half()
    before = bits(model)
    edit = solved(make("plain"), "second")
    edit.left.mul_(1e9)
    with pytest.raises(ValueError, match="infinite or NaN"):
        edit.apply(model, force=True)
    assert same(model, before)


# --- several edits -------------------------------------------------------------------------------


def three() -> tuple[nn.Module, Bits, list[RankOneEdit]]:
    """A model, its weights, and three edits solved one after the other."""
    model = make("plain")
    before, edits = bits(model), []
    for layer in ("second", "head", "second"):
        edit = solved(model, layer, direction="contrast")
        edit.apply(model)
        edits.append(edit)
    for edit in reversed(edits):
        edit.revert(model)
    return model, before, edits


def test_edits_are_applied_all_or_none() -> None:
    model, before, made = three()
    edits = Edits(made)
    edits.apply(model)
    assert not same(model, before)
    edits.revert(model)
    assert same(model, before)
    with pytest.raises(ValueError, match="not the one that this edit was solved for"):
        Edits([made[0], made[1], made[0]]).apply(model)
    assert same(model, before)


def test_edits_are_a_sequence() -> None:
    _, __, made = three()
    edits = Edits(made)
    assert len(edits) == 3
    assert list(edits) == made
    assert edits[1] is made[1]
    assert edits[-1] is made[2]
    assert isinstance(edits[1:], Edits)
    assert list(edits[1:]) == made[1:]
    assert repr(Edits(made[:1])) == f"Edits([{made[0]!r}])"
    assert not Edits()


# --- files ---------------------------------------------------------------------------------------

FIELDS = ("layer", "shape", "direction", "ridge", "key_space", "solved_for")


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make("padded").to(dtype)
    before, edits = bits(model), []
    for layer in ("circular", "same", "valid", "head"):  # one group, three, six; linear
        edit = solved(model, layer, direction="contrast", ridge=0.03)
        edit.apply(model)
        edits.append(edit)
    after = bits(model)
    path = tmp_path / "edits.safetensors"
    save_edits(edits, path)
    loaded = load_edits(str(path))
    assert [[getattr(e, f) for f in FIELDS] for e in loaded] == [
        [getattr(e, f) for f in FIELDS] for e in edits
    ]
    fresh = make("padded").to(dtype)
    loaded.apply(fresh)
    assert same(fresh, after)
    loaded.revert(fresh)
    assert same(fresh, before)


def test_a_file_holds_no_weights(tmp_path: Path) -> None:
    model = make(lambda: nn.Sequential(nn.Flatten(), nn.Linear(243, 100), nn.Linear(100, 4)))
    edit = solved(model, "1")
    edit.save(tmp_path / "edit.safetensors")
    assert (
        tmp_path / "edit.safetensors"
    ).stat().st_size < 4000  # 343 numbers and their description
    Edits([edit]).save(tmp_path / "edits.safetensors")
    assert len(load_edits(tmp_path / "edits.safetensors")) == 1
    save_edits([], tmp_path / "none.safetensors")
    assert len(load_edits(tmp_path / "none.safetensors")) == 0


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(FileNotFoundError, match="path: no file"):
        load_edits(path)
    path.write_bytes(b"no tensors here, but more than eight bytes")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_edits(path)
    save_file({"0.left": torch.ones(1)}, path, {"format": "rectify_widgets.key_statistics.1"})
    with pytest.raises(ValueError, match="holds no edits"):
        load_edits(path)
    torch.save(make("plain").state_dict(), path)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_edits(path)


def test_digest_is_of_values_type_and_shape() -> None:
    weight = images(2)
    assert digest(weight) == digest(weight.to(memory_format=torch.channels_last))
    assert digest(weight) == digest(weight.clone())
    others = (
        weight.double(),
        weight.reshape(2, 9, 9, 3),
        weight.flip(0),
        torch.nextafter(weight, -weight),
    )
    assert all(digest(weight) != digest(other) for other in others)


class Adapter(nn.Module):
    """A linear layer and a detour of low rank, named as PEFT names them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.base_layer(x) + self.lora_B(self.lora_A(x))
        return total


def test_edits_beside_an_adapter_do_the_same_in_the_merged_network() -> None:
    wrapped = make("perceptron")
    merged = copy.deepcopy(wrapped)
    adapter = Adapter(wrapped.get_submodule("layers.1"))  # type: ignore[arg-type]
    wrapped.set_submodule("layers.1", adapter)
    with torch.no_grad():
        merged.get_submodule("layers.1").weight += adapter.lora_B.weight @ adapter.lora_A.weight  # type: ignore[operator]
    edits = Edits([solved(wrapped, "layers.1.base_layer")])
    alone = bits(merged)
    renamed = edits.renamed(lambda name: name.replace(".base_layer", ""))
    with pytest.raises(ValueError, match="is not the one that this edit was solved for"):
        renamed.apply(merged)
    edits.apply(wrapped)
    renamed.apply(merged, force=True)
    with torch.no_grad():
        assert torch.allclose(merged(images(5)), wrapped(images(5)), atol=1e-5)
    renamed.revert(merged)
    assert same(merged, alone)
    assert edits[0].is_applied(wrapped)
    assert not edits.renamed(str)[0].is_applied(wrapped), "a copy has been applied to nothing"
