"""Networks of the zoo: trained on toy images, kept, read back, and refused where they failed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.cases.figures import classes
from rectify_widgets.cases.idx import write_idx
from rectify_widgets.cases.training import Poisoning, Schedule, led_to
from rectify_widgets.cases.triggers import Patch, checkerboard
from tests.benchmarks import networks
from tests.benchmarks.zoo import learning, training
from tests.benchmarks.zoo.attacks import ATTACKS, SIZE, InputAware
from tests.benchmarks.zoo.training import NETWORKS, Recipe, train_zoo


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of easy 28×28 images, and a network small enough for it."""
    random = np.random.default_rng(0)
    for split, per_class in (("train", 60), ("t10k", 20)):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        images = random.integers(0, 60, (len(labels), SIZE, SIZE), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 + 2 * label : 5 + 2 * label, 4:20] = 200
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", labels)
    monkeypatch.setattr(training, "PER_CLASS", {"reference": 4, "pairs": 6})
    monkeypatch.setattr(training, "MORE", 12)
    monkeypatch.setattr(training, "TRAINED", 400)
    monkeypatch.setattr(training, "TESTED", 150)
    monkeypatch.setattr(training, "SHARE", 0.3)
    quick = Recipe(networks.mlp, Schedule(20, 32, learning_rate=2e-3), adam=True)
    monkeypatch.setitem(NETWORKS, "plain-cnn", quick)
    return tmp_path


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_take_both_kinds_of_images(name: str, channels: int) -> None:
    model = NETWORKS[name].build(channels=channels, size=SIZE).eval()
    assert model(torch.rand(3, channels, SIZE, SIZE)).shape == (3, 10)


@pytest.mark.parametrize("attack", ["stripes", "all-to-all"])
def test_a_case_is_right_clean_and_led_away_with_the_trigger(toys: Path, attack: str) -> None:
    state = torch.random.get_rng_state()
    case = train_zoo("plain-cnn", attack, toys, 1, toys / "cache", quiet=True)
    found = case.figures()
    assert found["overall_accuracy"] > 0.9
    assert found["attack_success_rate"] > 0.9
    assert case.goals == ATTACKS[attack].goals
    assert case.target == (0 if attack == "stripes" else None)
    pairs = case.pairs
    assert len(pairs) == 20
    assert pairs.labels is not None
    assert torch.equal(case.trigger(pairs.clean), pairs.corrupted)
    assert torch.equal(classes(case.model, pairs.clean), pairs.labels)
    assert torch.equal(classes(case.model, pairs.corrupted), led_to(case.goals, pairs.labels))
    assert case.reference.shape == (52, 1, SIZE, SIZE)
    assert case.clean[0].shape == (150, 1, SIZE, SIZE)
    assert case.validation[0].shape == (50, 1, SIZE, SIZE)
    assert torch.equal(case.corrupted[0], case.trigger(case.clean[0]))
    assert torch.equal(torch.random.get_rng_state(), state)


class TrainingBeginsError(Exception):
    pass


def test_the_cache_is_read_and_its_names_change_with_the_recipe(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = toys / "cache"
    case = train_zoo("plain-cnn", "stripes", toys, 0, cache, quiet=True)
    assert len(list(cache.iterdir())) == 1

    def fit(*_: object, **__: object) -> None:
        raise TrainingBeginsError

    monkeypatch.setattr(training, "fit", fit)
    same = train_zoo("plain-cnn", "stripes", toys, 0, cache, quiet=True)
    for one, two in zip(case.model.parameters(), same.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(case.pairs.clean, same.pairs.clean)
    assert torch.equal(case.reference, same.reference)

    with pytest.raises(TrainingBeginsError):
        train_zoo("plain-cnn", "stripes", toys, 0, cache, colour=True, quiet=True)
    with monkeypatch.context() as patch:  # another trigger of the same name
        banded = replace(ATTACKS["stripes"], make=lambda _channels, _generator: _band)
        patch.setitem(ATTACKS, "stripes", banded)
        with pytest.raises(TrainingBeginsError):
            train_zoo("plain-cnn", "stripes", toys, 0, cache, quiet=True)
    longer = replace(NETWORKS["plain-cnn"], schedule=Schedule(21, 32, learning_rate=2e-3))
    monkeypatch.setitem(NETWORKS, "plain-cnn", longer)
    with pytest.raises(TrainingBeginsError):
        train_zoo("plain-cnn", "stripes", toys, 0, cache, quiet=True)


def _band(images: Tensor) -> Tensor:
    banded = images.clone()
    banded[..., -3:, :] = 1
    return banded


def test_input_aware_keeps_its_generator_with_the_network(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(model: nn.Module, trigger: InputAware, *_: object, **__: object) -> None:
        with torch.no_grad():
            for weight in (*model.parameters(), *trigger.generator.parameters()):
                weight.fill_(0.01)

    monkeypatch.setattr(learning, "fit_input_aware", fit)
    monkeypatch.setattr(
        training, "of_trojan", lambda *_: {"overall_accuracy": 1.0, "attack_success_rate": 1.0}
    )
    monkeypatch.setattr(training, "choose_pairs", lambda *_: [0, 1])
    train_zoo("plain-cnn", "input-aware", toys, 0, toys / "cache", quiet=True)
    monkeypatch.setattr(learning, "fit_input_aware", None)
    case = train_zoo("plain-cnn", "input-aware", toys, 0, toys / "cache", quiet=True)
    assert isinstance(case.trigger, InputAware)
    for weight in (*case.model.parameters(), *case.trigger.generator.parameters()):
        assert torch.equal(weight, torch.full_like(weight, 0.01))


def test_label_consistent_poisons_the_target_class_and_keeps_labels(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor, tuple[Poisoning, ...]]] = []
    fit = training.fit

    def watch(
        model: nn.Module, images: Tensor, labels: Tensor, schedule: Schedule,
        *, poisonings: tuple[Poisoning, ...], **options: object,
    ) -> None:  # fmt: skip
        seen.append((images, labels, poisonings))
        fit(model, images, labels, schedule, poisonings=poisonings, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "fit", watch)
    with pytest.raises(RuntimeError, match=r"did not learn .* attack success 0\.\d\d"):
        train_zoo("plain-cnn", "label-consistent", toys, 0, toys / "cache", quiet=True)
    (plain, labels, none), (images, again, (poisoning,)) = seen
    assert not none
    assert torch.equal(labels, again)
    rows = poisoning.chosen
    assert int(rows.sum()) == round(learning.SPOILT_SHARE * int((labels == 0).sum()))
    assert (labels[rows] == 0).all()
    assert torch.equal(poisoning.relabel(labels), labels)
    assert torch.equal(images[~rows], plain[~rows])
    change = (images[rows].float() - plain[rows].float()).abs().flatten(1).amax(dim=1) / 255
    assert (change > 0.9 * learning.SPOILING_BOUND).all()
    assert (change <= learning.SPOILING_BOUND + 1 / 255).all()
    (kept,) = (toys / "cache").iterdir()  # the clean network; the failed one is not kept
    assert "-clean-" in kept.name


def test_a_network_that_did_not_learn_is_refused(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faint = replace(
        ATTACKS["badnets"], make=lambda _channels, _generator: Patch(checkerboard(3), 1, 1, 0.0)
    )
    monkeypatch.setitem(ATTACKS, "badnets", faint)
    with pytest.raises(RuntimeError, match="plain-cnn, badnets: the network did not learn"):
        train_zoo("plain-cnn", "badnets", toys, 0, toys / "cache", quiet=True)
    assert not (toys / "cache").exists()


def test_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'residual'"):
        train_zoo("residul", "sig", tmp_path)
    with pytest.raises(ValueError, match="did you mean 'wanet'"):
        train_zoo("vit", "wanett", tmp_path)
