"""The networks of the benchmarks: their shapes, their training on toy data, and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rectify_widgets.cases.idx import write_idx
from rectify_widgets.cases.training import Schedule
from tests.benchmarks import networks, training
from tests.benchmarks.speed_fakes import CPU, tiny
from tests.benchmarks.training import NETWORKS, TRIGGERS, Recipe


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [28, 32])
def test_shapes(name: str, size: int) -> None:
    recipe = NETWORKS[name]
    model = recipe.build(channels=recipe.channels, size=size, classes=7).eval()
    logits = model(torch.rand(3, recipe.channels, size, size))
    assert logits.shape == (3, 7)
    assert logits.isfinite().all()


def test_the_kinds_of_network_differ_as_they_say() -> None:
    def count(name: str, kind: type[nn.Module]) -> int:
        model = NETWORKS[name].build()
        return sum(isinstance(module, kind) for module in model.modules())

    assert count("plain-cnn", nn.BatchNorm2d) == 0
    assert (count("plain-cnn", nn.Conv2d), count("plain-cnn", nn.Linear)) == (4, 2)
    assert (count("mlp", nn.Conv2d), count("mlp", nn.Linear)) == (0, 4)
    assert (count("vit", nn.Conv2d), count("vit", nn.Linear)) == (1, 17)
    assert (count("colour-resnet", nn.Conv2d), count("colour-resnet", nn.Linear)) == (21, 1)


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_triggers_are_seeded_and_stay_in_range(name: str, channels: int) -> None:
    images = torch.rand(4, channels, 28, 28)
    once, again = (
        TRIGGERS[name](channels, torch.Generator().manual_seed(3))(images) for _ in range(2)
    )
    assert torch.equal(once, again)
    assert once.min() >= 0
    assert once.max() <= 1
    share = (once != images).float().mean()
    assert share > 0.9 if name == "blend" else share < 0.05


def test_cells_name_what_there_is() -> None:
    assert all(network in NETWORKS and trigger in TRIGGERS for network, trigger in training.TROJANS)


def test_colours_keep_the_shape_visible() -> None:
    grey = torch.zeros(500, 1, 4, 4, dtype=torch.uint8)
    grey[:, :, 1, 2] = 255
    coloured = training.colourise(grey, torch.Generator().manual_seed(0)).float() / 255
    ink, ground = coloured[:, :, 1, 2], coloured[:, :, 0, 0]
    assert coloured.shape == (500, 3, 4, 4)
    assert (coloured[:, :, 3, 3] == ground).all()
    assert (ink - ground).abs().sum(1).min() > 0.3


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of easy 28×28 images, and recipes small enough for it."""
    random = np.random.default_rng(0)
    for split, per_class in (("train", 60), ("t10k", 10)):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        images = random.integers(0, 60, (len(labels), 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 + 2 * label : 5 + 2 * label, 4:20] = 200
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", labels)
    monkeypatch.setattr(training, "PER_CLASS", {"reference": 4, "pairs": 6})
    monkeypatch.setattr(training, "SHARE", 0.3)
    quick = Recipe(NETWORKS["mlp"].build, 1, Schedule(20, 32, 2e-3), adam=True)
    monkeypatch.setitem(NETWORKS, "mlp", quick)
    return tmp_path


def test_training_and_the_cache(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.random.get_rng_state()
    cache = toys / "cache"
    case = training.train_trojan("mlp", "corner", toys, 1, cache, quiet=True)
    figures = case.figures()
    assert figures["overall_accuracy"] > 0.9
    assert figures["attack_success_rate"] > 0.9
    assert case.reference.shape == (40, 1, 28, 28)
    assert len(case.pairs) == 20
    assert torch.equal(case.trigger(case.pairs.clean), case.pairs.corrupted)
    assert len(list(cache.iterdir())) == 1

    monkeypatch.setattr(training, "fit", None)  # from here on nothing can be trained
    same = training.train_trojan("mlp", "corner", toys, 1, cache, quiet=True)
    for one, two in zip(
        case.model.state_dict().values(), same.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two)
    assert torch.equal(case.pairs.clean, same.pairs.clean)
    assert torch.equal(case.reference, same.reference)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_unknown_names_get_the_nearest(toys: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'plain-cnn'"):
        training.train_trojan("plain_cnn", "corner", toys)
    with pytest.raises(ValueError, match="did you mean 'patch-top-left'"):
        training.train_trojan("mlp", "patch-topleft", toys)


@pytest.mark.parametrize(
    ("depth", "convolutions", "weights"), [(18, 20, 11.17), (50, 53, 23.52), (101, 104, 42.51)]
)
def test_residual_networks_are_those_of_the_literature(
    depth: int, convolutions: int, weights: float
) -> None:
    with torch.device("meta"):
        model = networks.resnet(depth)
    assert sum(isinstance(part, nn.Conv2d) for part in model.modules()) == convolutions
    million = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert million == pytest.approx(weights, abs=0.01)


def test_residual_networks_run_and_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    one, same, other = (networks.resnet(18, seed) for seed in (1, 1, 2))
    first, again, another = (model.get_parameter("stem.weight") for model in (one, same, other))
    assert torch.equal(first, again)
    assert not torch.equal(first, another)
    monkeypatch.setattr(networks, "RESNET_WIDTHS", (4, 4, 8, 8))
    assert networks.resnet(50)(torch.rand(2, 3, 16, 16)).shape == (2, 10)


def test_the_trojan_of_the_speed_benchmark_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings: list[int] = []
    attack = [0.99]

    def fit(model: nn.Module, images: torch.Tensor, *_: object, **__: object) -> None:
        trainings.append(len(images))
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype is torch.uint8
        with torch.no_grad():
            next(model.parameters()).fill_(0.5)

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(networks, "resnet", tiny)
    monkeypatch.setattr(training, "of_trojan", lambda *_: {"attack_success_rate": attack[0]})
    first, again = (training.speed_trojan(tmp_path, CPU, quiet=True) for _ in range(2))
    assert trainings == [training.SPEED_TRAINED]
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(training.speed_images()[0]) == 10_000
    assert len(first.clean[0]) == training.SPEED_TESTED
    assert torch.equal(first.corrupted[0], training.speed_trigger()(first.clean[0]))
    changed = (first.pairs.corrupted != first.pairs.clean).any(dim=1)
    assert changed[:, 26:30, 26:30].flatten(1).any(dim=1).all()
    changed[:, 26:30, 26:30] = False
    assert not changed.any()
    attack[0] = 0.5
    with pytest.raises(RuntimeError, match=r"did not learn the backdoor: attack success 0\.50"):
        training.speed_trojan(tmp_path / "other", CPU, quiet=True)
    assert not (tmp_path / "other").exists()
