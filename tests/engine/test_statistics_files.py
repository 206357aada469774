"""Statistics on disk, and statistics that have gone stale."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.model.catalog import LayerCatalog, editable_layers
from tests.engine.models import images, make


@pytest.mark.parametrize("key_space", ["patch", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path: Path, key_space: str, dtype: torch.dtype) -> None:
    model = make("mobile").to(dtype)
    statistics = KeyStatistics.collect(model, images(5), key_space=key_space)
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = KeyStatistics.load(str(tmp_path / "statistics.safetensors"))
    assert list(loaded) == list(statistics)  # in network order
    assert loaded.key_space == key_space
    assert loaded.references == 5
    for name, part in statistics.items():
        assert torch.equal(loaded[name].total, part.total)
        assert loaded[name].total.dtype is dtype
        assert loaded[name].positions == part.positions
        assert loaded[name].fingerprint == part.fingerprint
    loaded.check(model, editable_layers(model, images(1)), list(loaded))


def write_text(path: Path) -> None:
    path.write_text("not a tensor in it")


def write_weights(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path)


def write_other_format(path: Path) -> None:
    save_file({"0.left": torch.ones(2)}, path, {"format": "rectify_widgets.edits.1"})


def write_pickle(path: Path) -> None:
    torch.save({"total": torch.ones(2)}, path)


@pytest.mark.parametrize(
    "write", [write_text, write_weights, write_other_format, write_pickle, Path.touch]
)
def test_other_files_are_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "other.safetensors"
    write(path)
    with pytest.raises(ValueError, match=r"path: '.*other.safetensors'"):
        KeyStatistics.load(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path: no file"):
        KeyStatistics.load(tmp_path / "nothing.safetensors")


def test_file_is_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    KeyStatistics.collect(make("plain"), images(2)).save(path)
    head = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + head])
    assert header.pop("__metadata__")["references"] == "2"
    assert sorted(header) == ["first", "head", "hidden", "second"]


# --- stale statistics ----------------------------------------------------------------------------


def stale(model: nn.Module, statistics: KeyStatistics) -> set[str]:
    """Layers whose statistics are refused."""
    catalog = editable_layers(model, images(1))
    return {name for name in statistics if refuses(model, statistics, catalog, name)}


def refuses(model: nn.Module, statistics: KeyStatistics, catalog: LayerCatalog, name: str) -> bool:
    try:
        statistics.check(model, catalog, [name])
    except ValueError as error:
        return f"stale for layer '{name}'" in str(error)
    return False


def change(model: nn.Module, name: str) -> None:
    """Change one number of a parameter or buffer by the least amount."""
    tensor = model.get_parameter(name) if "running" not in name else model.get_buffer(name)
    with torch.no_grad():
        flat: Tensor = tensor.view(-1)
        flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))


LATER = {
    "stem.weight": "block1.conv1 block1.conv2 block2.conv1 block2.conv2 block2.short head",
    "norm.running_var": "block1.conv1 block1.conv2 block2.conv1 block2.conv2 block2.short head",
    "block1.conv2.weight": "block2.conv1 block2.conv2 block2.short head",
    "block2.norm1.bias": "block2.conv2 block2.short head",
    "block2.short.bias": "head",
    "head.weight": "",
}


@pytest.mark.parametrize("name", LATER)
def test_a_change_makes_just_the_layers_after_it_stale(name: str) -> None:
    model = make("residual")
    statistics = KeyStatistics.collect(model, images(3))
    assert stale(model, statistics) == set()
    change(model, name)
    assert stale(model, statistics) == set(LATER[name].split())


def test_the_error_names_every_stale_layer() -> None:
    model = make("plain")
    statistics = KeyStatistics.collect(model, images(3))
    change(model, "second.weight")
    with pytest.raises(
        ValueError, match="stale for layer 'hidden', 'head', since weights upstream"
    ):
        statistics.check(model, editable_layers(model, images(1)), list(statistics))
    with pytest.raises(ValueError, match="none for layer 'neck'"):
        statistics.check(model, editable_layers(model, images(1)), ["neck"])


def test_weights_that_a_parent_uses_itself_count() -> None:
    """torch's attention never calls its output projection, and yet what comes after depends on it."""
    model = make("fused")
    statistics = KeyStatistics.collect(model, images(3))
    for name in ("mix.in_proj_weight", "mix.out_proj.weight"):
        changed = make("fused")
        change(changed, name)
        assert stale(changed, statistics) == {"head"}, name
    token = make("transformer")
    statistics = KeyStatistics.collect(token, images(3))
    change(token, "place")
    assert {"head", "block.mlp.0"} <= stale(token, statistics)


def test_updated_statistics_are_fresh() -> None:
    model = make("residual")
    statistics = KeyStatistics.collect(model, images(3))
    change(model, "block2.norm1.bias")
    newer = KeyStatistics.collect(model, images(3), ["block2.conv2", "block2.short", "head"])
    assert stale(model, statistics.updated(newer)) == set()


def test_the_fingerprint_forgets_memory_format_and_wrapper() -> None:
    model = make("residual")
    statistics = KeyStatistics.collect(model, images(3))
    moved = make("residual").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert stale(moved, statistics) == set()
    wrapped = KeyStatistics.collect(nn.DataParallel(model), images(3))
    assert stale(model, wrapped) == set()
