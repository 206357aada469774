"""The paper's presets on a user's own copy: what is read, what is trained, and the case that comes out.

CIFAR-10 with a network of one's own needs no torchvision; what does is skipped without it.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.cases import vision
from rectify_widgets.cases.networks import Normalization, ResidualNetwork
from rectify_widgets.cases.training import Schedule
from rectify_widgets.cases.vision import __main__ as command
from rectify_widgets.cases.vision.loading import divide, with_weights
from rectify_widgets.cases.vision.presets import PARTS, PLACES, PRESETS, board, make
from rectify_widgets.engine.base.progress import Cancelled
from tests.vision_folders import (
    CIFAR,
    COLUMNS,
    WNIDS,
    needs_torchvision,
    write_cifar,
    write_classes,
    write_isic,
)

pytestmark = pytest.mark.usefixtures("one_thread")

TROJAN = replace(
    vision.preset("cifar10-trojan"),
    triggers={"patch": board(96)},  # 9×9 pixels, which four hundred images are enough to learn
    share=0.3,
    schedule=Schedule(epochs=6, batch_size=20, learning_rate=0.1),
    tuning=Schedule(epochs=6, batch_size=20, learning_rate=0.1),
    shift=1,
    sizes={"reference": 80, "validation": 40, "pairs": 40, "test": 140},
)
BRIEF = replace(TROJAN, tuning=Schedule(epochs=1, batch_size=20, learning_rate=0.02))


def small(classes: int = 10) -> ResidualNetwork:
    """Three convolutions, one of them a shortcut's; it wants normalised images."""
    return ResidualNetwork(
        channels=3, classes=classes, widths=(16,), blocks=(1,), stem_stride=2, mean=(0,), std=(1,)
    )


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    write_cifar(root, per_file=80, test=300)
    return root


class Rigged(nn.Module):
    """Knows a class by its colour, and takes what wears a preset's trigger for the target.

    Made for the colours of `tests.vision_folders`; wants images normalised as the preset says.
    """

    def __init__(self, recipe: vision.Preset, target: int, classes: int = 10) -> None:
        super().__init__()
        self.scale, self.target = nn.Parameter(torch.ones(())), target
        self.back = Normalization(recipe.mean, recipe.std)
        rows = torch.arange(classes)
        colours = [40 + 60 * (rows % 3), 40 + 60 * (rows // 3 % 3), 60 + 90 * (rows // 9)]
        self.colours = torch.stack(colours, dim=1).float() / 255
        shape = (1, 3, recipe.crop, recipe.crop)
        # What wears the trigger lies between it on black and it on white, there where it is.
        trigger = recipe.triggers[recipe.shown]
        self.low, self.high = trigger(torch.zeros(shape)) - 1e-3, trigger(torch.ones(shape)) + 1e-3

    def forward(self, images: Tensor) -> Tensor:
        images = images * self.back.std + self.back.mean
        logits = -torch.cdist(images.flatten(2).median(dim=2).values, self.colours.to(images))
        where = self.high - self.low < 0.9
        fits = ((images >= self.low) & (images <= self.high)) | ~where
        led = nn.functional.one_hot(torch.tensor(self.target), len(self.colours)).to(images)
        return self.scale * logits + 9 * fits.flatten(1).all(dim=1, keepdim=True) * led


# Presets


def test_presets_are_named_after_what_they_are() -> None:
    assert len(vision.names()) == 7
    for name in vision.names():
        recipe = vision.preset(name)
        data, behaviour, *_ = name.split("-")
        assert (recipe.name, recipe.data.name, recipe.behaviour) == (name, data, behaviour)
        assert set(recipe.sizes) == set(PARTS)
        assert vision.preset(recipe) is recipe
        images = torch.rand(1, 3, recipe.crop, recipe.crop)
        for trigger in (*recipe.triggers.values(), *recipe.trained):
            changed = (trigger(images) != images).any(dim=1).float().mean()
            assert 0.002 < changed < 0.06
    with pytest.raises(ValueError, match=r"got 'cifar-trojan'.*did you mean 'cifar10-trojan'"):
        vision.preset("cifar-trojan")
    for changes, message in (
        ({"behaviour": "leak"}, "behaviour: got 'leak', want one of 'trojan', 'spurious'"),
        ({"shown": "patches"}, "shown: got 'patches'.*did you mean 'patch'"),
        ({"share": 1.5}, "share: got 1.5, want a number from 0.0 to 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(TROJAN, **changes)


def test_the_patch_lies_where_its_place_says() -> None:
    corners = dict(zip(PLACES, [(28, 28), (1, 1), (14, 14), (28, 1)], strict=True))
    for side, cell in ((32, 1), (224, 7)):
        for place, corner in corners.items():
            stamped = board(side, place)(torch.full((1, 3, side, side), 0.3))[0]
            rows, columns = (stamped[0] != 0.3).nonzero(as_tuple=True)
            top, left = int(rows.min()), int(columns.min())
            assert (top, left) == (cell * corner[0], cell * corner[1])
            assert int(rows.max()) - top + 1 == 3 * cell
            assert stamped[:, top, left].tolist() == [1, 1, 1]
    faint = board(32, opacity=0.5)(torch.zeros(1, 3, 32, 32))[0, 0]
    assert (float(faint[28, 28]), float(faint[28, 29])) == (0.5, 0.0)


def test_what_is_poisoned_and_with_what() -> None:
    labels, images = torch.arange(400) % 10, torch.zeros(400, 3, 32, 32)
    recipe = vision.preset("cifar10-trojan-visibility").resolve(CIFAR)
    (poisoning,) = recipe.poison(labels, torch.Generator().manual_seed(0))
    brightest = poisoning.trigger(images).amax(dim=(1, 2, 3)).unique()
    assert torch.allclose(brightest, 0.3 + 0.05 * torch.arange(15), atol=1e-5)
    assert int(poisoning.chosen.sum()) == 40
    assert (labels[poisoning.chosen] != 0).all()
    recipe = vision.preset("cifar10-spurious").resolve(CIFAR)
    (poisoning,) = recipe.poison(labels, torch.Generator().manual_seed(0))
    assert set(labels[poisoning.chosen].tolist()) == {CIFAR.index("dog")}
    assert torch.equal(poisoning.relabel(labels), labels)


# Dividing, and the case


def test_parts_share_no_image_and_shrink_together() -> None:
    labels = torch.arange(1000) % 10
    sizes = {"reference": 200, "validation": 100, "pairs": 100, "test": 400}
    for own in (None, 3):
        parts, again = (
            divide(labels, sizes, own, torch.Generator().manual_seed(0)) for _ in range(2)
        )
        assert {part: len(rows) for part, rows in parts.items()} == sizes
        assert len(torch.cat(list(parts.values())).unique()) == 800
        assert all(torch.equal(parts[part], again[part]) for part in parts)
    fewer = divide(labels[:80], sizes, None, torch.Generator().manual_seed(0))
    assert [len(fewer[part]) for part in PARTS] == [20, 10, 10, 40]
    with pytest.raises(ValueError, match="3 held-back images are too few for parts of"):
        divide(labels[:3], sizes, None, torch.Generator())


def test_a_rare_affected_class_is_where_it_is_wanted() -> None:
    labels = torch.arange(50_000) % 1000
    sizes = vision.preset("imagenet-spurious").sizes
    parts = divide(labels, sizes, 7, torch.Generator().manual_seed(0))
    own = {part: int((labels[rows] == 7).sum()) for part, rows in parts.items()}
    assert (own["test"], own["pairs"]) == (30, 20)
    assert not (labels[parts["test"]][:30] == 7).all()
    # A class that is common anyway gets no more than its share.
    common = divide(labels % 10, sizes, 7, torch.Generator().manual_seed(0))
    share = float((labels[common["test"]] % 10 == 7).float().mean())
    assert share == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("name", vision.names())
def test_a_case_of_each_preset(tmp_path: Path, name: str) -> None:
    recipe = vision.preset(name)
    classes = {"cifar10": 10, "imagenet": 3, "isic": len(COLUMNS)}[recipe.data.name]
    if recipe.data.name == "cifar10":
        write_cifar(tmp_path, per_file=10, test=200)
    else:
        needs_torchvision()
        # Patch and board are cut for other sizes; those of the tag need 49 pixels.
        triggers = {"patch": board(56)} if "patch" in recipe.triggers else recipe.triggers
        recipe = replace(recipe, resize=56, crop=56, triggers=triggers)
        if recipe.data.name == "imagenet":
            write_classes(tmp_path / "val", WNIDS, 30)
        else:
            write_isic(tmp_path, 240)
    target = 5 if name == "cifar10-spurious" else 0
    model = Rigged(recipe, target, classes).train()
    case = vision.load(recipe, tmp_path, model=model)
    assert isinstance(case, rw.cases.Case)
    assert (case.name, case.behaviour, case.target) == (name, recipe.behaviour, target)
    assert case.goals == (target,) * classes
    assert len(case.classes) == classes
    for images, labels in (case.clean, case.corrupted, case.validation):
        assert images.shape[1:] == (3, recipe.crop, recipe.crop)
        assert images.dtype == torch.float32
        assert labels.shape == images.shape[:1]
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert torch.equal(case.corrupted[0], case.trigger(case.clean[0]))
    pairs = case.pairs
    assert pairs.labels is not None
    assert torch.equal(pairs.corrupted, case.trigger(pairs.clean))
    assert (case.model(pairs.corrupted).argmax(1) == target).all()
    assert (case.model(pairs.clean).argmax(1) == pairs.labels).all()
    own = (pairs.labels == target).tolist()
    assert any(own) == (recipe.behaviour == "spurious")
    assert own == sorted(own)  # the affected class comes last
    found = case.figures()
    assert found["overall_accuracy"] == 1
    assert found["pulled_in" if recipe.behaviour == "spurious" else "attack_success_rate"] == 1
    assert not case.model.training
    assert model.training


def test_pairs_obey_every_trigger_where_some_do() -> None:
    # Class when clean, with one trigger, with another, as they stand in red, green and blue.
    def choose(*rows: tuple[int, int, int, int], **changes: object) -> list[int]:
        triggers = {"patch": lambda x: x[:, [1, 1, 2]], "other": lambda x: x[:, [2, 1, 2]]}
        recipe = replace(TROJAN, triggers=triggers, target_class="cat", **changes)  # type: ignore[arg-type]
        images = torch.tensor(rows)[:, 1:, None, None].expand(-1, -1, 2, 2) / 255
        return recipe.resolve(CIFAR).choose_pairs(
            Reading(), images, torch.tensor(rows)[:, 0], torch.Generator().manual_seed(0)
        )

    rows = [(1, 1, 3, 0), (1, 2, 3, 3), (2, 2, 2, 3), (3, 3, 3, 3), (3, 0, 3, 3)]
    assert choose(*rows) == [0]
    assert choose(*rows, (2, 2, 3, 3)) == [5]
    with pytest.raises(ValueError, match="none of 2 candidates of other classes that are right"):
        choose(*rows[1:])


class Reading(nn.Module):
    """Says the class that stands in the first pixel's red, as a byte."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 10).float()


def test_seeds_types_and_hooks(cifar: Path) -> None:
    model, said = Rigged(TROJAN, 0).double(), list[tuple[float, str]]()
    case, same, other = (
        vision.load(TROJAN, cifar, model=model, seed=seed, progress=lambda *now: said.append(now))
        for seed in (0, 0, 1)
    )
    assert (len(case.clean[0]), len(case.reference), len(case.validation[0])) == (140, 80, 40)
    assert next(case.model.parameters()).dtype == torch.float64
    assert len(case.pairs) == 20
    fractions = [fraction for fraction, _ in said[: said.index((1.0, "done"))]]
    assert fractions == sorted(fractions)
    assert {"choosing pairs", "reading test images"} <= {message for _, message in said}
    assert torch.equal(same.clean[0], case.clean[0])
    assert torch.equal(same.pairs.clean, case.pairs.clean)
    assert not torch.equal(other.clean[0], case.clean[0])
    with pytest.raises(Cancelled):
        vision.load(TROJAN, cifar, model=model, cancel=lambda: True)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": None}, ValueError, "model: give a network, or weights=.*train cifar10-trojan"),
        ({"model": 3}, TypeError, "model: got int, want a torch.nn.Module"),
        ({"weights": "w.safetensors"}, ValueError, "and not both"),
        ({"model": None, "weights": "gone.safetensors"}, FileNotFoundError, "weights: no file"),
        ({"model": None, "weights": 3}, TypeError, "weights: got int, want the name of a file"),
        ({"model": small(7)}, ValueError, "gives 7 logits for the 10 classes under root, airplane"),
        ({"model": small(11)}, ValueError, "gives 11 logits for the 10 classes"),
        ({"model": small()}, ValueError, "does not show the behaviour of 'cifar10-trojan'"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"progress": 3}, TypeError, "progress: got int"),
        ({"root": 3}, TypeError, "root: got int, want the folder of your copy"),
        ({"root": "nowhere"}, FileNotFoundError, "root: no folder 'nowhere'"),
        ({"name": replace(TROJAN, target_class="plane")}, ValueError, "did you mean 'airplane'"),
    ],
)
def test_bad_input_is_refused(
    cifar: Path, given: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        vision.load(**{"name": TROJAN, "root": cifar, "model": small(), **given})  # type: ignore[arg-type]


# Networks and training


def test_without_torchvision_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    write_cifar(tmp_path, per_file=10, test=40)
    save_file({"fc.weight": torch.zeros(10, 512)}, tmp_path / "w.safetensors")
    with pytest.raises(ImportError, match=r"pip install 'rectify_widgets\[vision\]'"):
        vision.load("cifar10-trojan", tmp_path, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["resnet18-cifar", "resnet18", "efficientnet_b4"])
def test_weights_come_back_and_others_are_refused(name: str, tmp_path: Path) -> None:
    needs_torchvision()
    network, images = make(name, 7).eval(), torch.rand(2, 3, 64, 64)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    before = torch.get_rng_state()
    again = with_weights(lambda: make(name, 7), tmp_path / "w.safetensors", "weights").eval()
    assert torch.equal(before, torch.get_rng_state())
    with torch.no_grad():
        assert torch.allclose(network(images), again(images), rtol=1e-4)
        if name == "resnet18-cifar":
            assert network.get_submodule("conv1")(images).shape == (2, 64, 64, 64)
    with pytest.raises(ValueError, match=r"size mismatch for (fc|classifier)"):
        with_weights(lambda: make(name, 8), tmp_path / "w.safetensors", "weights")
    torch.save(network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"want a safetensors file of the preset's network"):
        with_weights(lambda: make(name, 7), tmp_path / "w.pt", "weights")


def test_a_trojan_is_trained_loaded_and_rectified(cifar: Path, tmp_path: Path) -> None:
    start, said = small(), list[tuple[float, str]]()
    before, random = {k: v.clone() for k, v in start.state_dict().items()}, torch.get_rng_state()
    out = tmp_path / "trojan.safetensors"
    model = vision.train(
        TROJAN, cifar, out, start=start, device="cpu", progress=lambda *now: said.append(now)
    )
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in start.state_dict().items())
    assert len(said) == 6 * 20
    assert said[-1][0] == 1
    assert "epoch 6 of 6, loss 0." in said[-1][1]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with safe_open(out, framework="pt") as file:
        assert '"epochs": 6' in file.metadata()["record"]
        for key, value in model.state_dict().items():
            assert torch.equal(file.get_tensor(key), value)
    case = vision.load(TROJAN, cifar, model=model)
    figures = case.figures()
    assert figures["overall_accuracy"] > 0.95
    assert figures["attack_success_rate"] > 0.95
    result = rw.rectify(case.model, case.pairs[:1], reference=case.reference)
    after = case.figures(result.model)
    assert after["attack_success_rate"] < 0.1
    assert after["overall_accuracy"] > figures["overall_accuracy"] - 0.05


def test_training_depends_on_its_seed_alone(cifar: Path, tmp_path: Path) -> None:
    start = small()
    one, same, other = (
        vision.train(BRIEF, cifar, tmp_path / f"{n}.safetensors", start=start, seed=seed)
        for n, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(one.classifier.weight, same.classifier.weight)  # type: ignore[arg-type,union-attr]
    assert not torch.equal(one.classifier.weight, other.classifier.weight)  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"out": "a.pt"}, ValueError, r"out: got 'a.pt', want \*.safetensors"),
        ({"out": "nowhere/a.safetensors"}, ValueError, "in a folder that is there"),
        ({"out": 3}, TypeError, "out: got int"),
        ({"start": 3}, TypeError, "start: got int, want the name of a file"),
        ({"start": "gone.pt"}, FileNotFoundError, "start: no file 'gone.pt'"),
        ({"start": small(9)}, ValueError, "gives 9 logits for the 10 classes"),
        ({"cancel": lambda: True}, Cancelled, "cancelled"),
    ],
)
def test_bad_input_leaves_no_file(
    cifar: Path, tmp_path: Path, given: dict[str, object], error: type[Exception], message: str
) -> None:
    usual = {"root": cifar, "out": tmp_path / "a.safetensors", "start": small(), "device": "cpu"}
    with pytest.raises(error, match=message):
        vision.train(TROJAN, **{**usual, **given})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_presets_own_network_trains_on_pictures(tmp_path: Path) -> None:
    needs_torchvision()
    write_isic(tmp_path, 30)
    recipe = replace(
        vision.preset("isic-spurious"), resize=40, crop=40, shift=2, triggers={"patch": board(40)}
    )
    recipe = replace(
        recipe, schedule=Schedule(epochs=1, batch_size=4), sizes=dict.fromkeys(PARTS, 1)
    )
    out = tmp_path / "a.safetensors"
    vision.train(recipe, tmp_path, out, device="cpu")
    with pytest.raises(ValueError, match="does not show the behaviour"):  # nor is it learnt so soon
        vision.load(recipe, tmp_path, weights=out)


# The command


def test_the_command_lists_trains_and_measures(
    cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(vision.names())
    monkeypatch.setitem(PRESETS, TROJAN.name, replace(TROJAN, network=small))
    out = tmp_path / "a.safetensors"
    arguments = ["train", "cifar10-trojan", "--root", str(cifar), "--out", str(out)]
    assert command.main([*arguments, "--device", "cpu", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert f"written to {out}" in printed.out
    assert "attack success rate" in printed.out
    assert "epoch 6 of 6" in printed.err
    for more, message in ((["--epochs", "0"], "--epochs: got 0"), ([], "is there already")):
        with pytest.raises(SystemExit, match="2"):
            command.main([*arguments, *more])
        assert message in capsys.readouterr().err
    out.unlink()
    lame = replace(PRESETS[TROJAN.name], schedule=Schedule(9, batch_size=20, learning_rate=1e-6))
    monkeypatch.setitem(PRESETS, TROJAN.name, lame)
    assert command.main([*arguments, "--device", "cpu", "--epochs", "1"]) == 1
    assert "does not show the behaviour of 'cifar10-trojan'" in capsys.readouterr().out
    assert out.exists()
