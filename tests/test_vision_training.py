"""Training a preset's network on a user's own copy, from clean data to a case that can be mended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.cases import vision
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.cases.training import Schedule, balanced_weights
from rectify_widgets.cases.vision import __main__ as command
from rectify_widgets.cases.vision import training
from rectify_widgets.cases.vision.presets import PARTS
from rectify_widgets.cases.vision.sources import isic
from rectify_widgets.cases.vision.triggers import board
from rectify_widgets.engine.base.progress import Cancelled
from tests.vision_folders import WNIDS, write_cifar, write_classes, write_isic

pytestmark = pytest.mark.usefixtures("one_thread", "seeded")

TROJAN = replace(
    vision.preset("cifar10-trojan"),
    triggers={"patch": board(96)},  # 9×9 pixels, which four hundred images are enough to learn
    share=0.3,
    tuning=Schedule(epochs=6, batch_size=20, learning_rate=0.1),
    shift=1,
    sizes={"reference": 80, "validation": 40, "candidates": 40, "test": 140},
)
BRIEF = replace(TROJAN, tuning=Schedule(epochs=3, batch_size=20, learning_rate=0.02))


def small(classes: int = 10) -> ResidualNetwork:
    """Three convolutions, one of them a shortcut's; it wants normalised images."""
    return ResidualNetwork(
        channels=3,
        classes=classes,
        widths=(16,),
        blocks=(1,),
        stem_stride=2,
        mean=(0.0,),
        std=(1.0,),
    )


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    write_cifar(root, per_file=80, test=300)
    return root


@pytest.fixture(scope="module")
def trojaned(
    cifar: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, nn.Module, Path, list[tuple[float, str]]]:
    """What training began from, what came out, the file, and what was told meanwhile."""
    out = tmp_path_factory.mktemp("out") / "trojan.safetensors"
    told: list[tuple[float, str]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = small()
    before = {key: value.clone() for key, value in start.state_dict().items()}
    random = torch.get_rng_state()
    model = vision.train(
        TROJAN, cifar, out, start=start, device="cpu", progress=lambda *now: told.append(now)
    )
    assert torch.equal(random, torch.get_rng_state())
    assert start.training
    assert all(torch.equal(value, before[key]) for key, value in start.state_dict().items())
    return start, model, out, told


Trojaned = tuple[nn.Module, nn.Module, Path, list[tuple[float, str]]]


def test_a_trojan_is_trained_loaded_and_mended(cifar: Path, trojaned: Trojaned) -> None:
    _, model, _, _ = trojaned
    case = vision.load(TROJAN, cifar, model=model, normalize=False)
    before = case.figures()
    assert before["overall_accuracy"] > 0.95
    assert before["attack_success_rate"] > 0.95
    result = rw.rectify(case.model, case.pairs[:1], reference=case.reference)
    after = case.figures(result.model)
    assert after["attack_success_rate"] < 0.1
    assert after["overall_accuracy"] > before["overall_accuracy"] - 0.05
    print(before, after)


def test_training_says_how_far_it_is_and_leaves_one_file(trojaned: Trojaned) -> None:
    _, model, out, told = trojaned
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert len(told) == 6 * 20 + 1
    assert told[-1] == (1.0, "done")
    assert "epoch 6 of 6, loss 0." in told[-2][1]
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert not model.training
    assert all(
        parameter.grad is None or parameter.requires_grad for parameter in model.parameters()
    )


def test_the_file_holds_the_network_and_a_record(trojaned: Trojaned) -> None:
    _, model, out, _ = trojaned
    tensors, record = vision.networks.read_weights(out)
    network = model.get_submodule("network")
    assert set(tensors) == set(network.state_dict())
    for key, value in network.state_dict().items():
        assert torch.equal(tensors[key], value), key
    assert (record["preset"], record["seed"], record["epochs"]) == ("cifar10-trojan", 0, 6)
    assert (record["network"], record["images"]) == ("ResidualNetwork", 400)
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["record"]) == record


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.allclose(a.double(), b.double(), atol=1e-4) for a, b in pairs)


class Dropping(nn.Module):
    """The small network with dropout, whose mask comes from torch's own random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()
        self.drop = nn.Dropout(0.2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(self.drop(images))
        return logits


def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    cifar: Path, tmp_path: Path
) -> None:
    start = Dropping()
    whole = vision.train(BRIEF, cifar, tmp_path / "whole.safetensors", start=start, device="cpu")
    steps = 0

    def killed() -> bool:
        nonlocal steps
        steps += 1
        return steps > 50  # in the third epoch of twenty steps

    out = tmp_path / "killed.safetensors"
    with pytest.raises(Cancelled):
        vision.train(BRIEF, cifar, out, start=start, device="cpu", cancel=killed)
    assert not out.exists()
    (left,) = tmp_path.glob("killed*")
    told: list[str] = []
    again = vision.train(
        BRIEF,
        cifar,
        out,
        start=start,
        device="cpu",
        progress=lambda _, message: told.append(message),
    )
    assert told[0].startswith("epoch 3 of 3")
    assert same(whole, again)
    assert not left.exists()
    other = vision.train(
        BRIEF, cifar, tmp_path / "other.safetensors", start=start, device="cpu", seed=1
    )
    assert not same(whole, other)


def test_the_state_of_another_training_is_not_taken_up(cifar: Path, tmp_path: Path) -> None:
    start, out = small(), tmp_path / "a.safetensors"
    steps = iter(range(100))
    with pytest.raises(Cancelled):
        vision.train(BRIEF, cifar, out, start=start, device="cpu", cancel=lambda: next(steps) > 30)
    for changed, one in ((BRIEF, small()), (replace(BRIEF, name="mine"), start)):
        with pytest.raises(ValueError, match=r"unfinished' is of another training, .*remove it"):
            vision.train(changed, cifar, out, start=one, device="cpu")
    with pytest.raises(ValueError, match="is of another training"):
        vision.train(BRIEF, cifar, out, start=start, device="cpu", seed=2)


def test_the_learning_rate_goes_up_and_down() -> None:
    schedule = Schedule(epochs=1, learning_rate=0.2, warm_up=0.25)
    rates = [training.rate(schedule, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.04 * 0.2)
    assert max(rates) == rates[25] == pytest.approx(0.2)
    assert rates[100] == pytest.approx(0)
    assert sorted(rates[:26]) == rates[:26]
    assert sorted(rates[25:], reverse=True) == rates[25:]
    # The builds' schedule, whose last rate is not quite zero.
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, 4000, pct_start=0.25)
    for step in range(3999):
        rate = training.rate(schedule, step / 3999)
        assert cycle.get_last_lr()[0] == pytest.approx(rate, abs=3e-4)
        optimizer.step()
        cycle.step()


def test_the_learning_rate_is_used(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def none(_: Schedule, done: float) -> float:
        asked.append(done)
        return 0.0

    monkeypatch.setattr(training, "rate", none)
    start = small()
    model = vision.train(BRIEF, cifar, tmp_path / "a.safetensors", start=start, epochs=1)
    for before, after in zip(start.parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after.cpu())
    assert asked == [step / 20 for step in range(20)]


def test_poisoned_images_show_any_visibility() -> None:
    recipe, labels = vision.preset("cifar10-trojan-visibility"), torch.arange(200) % 10
    poisoning = training._poison(recipe, labels, 0, torch.Generator().manual_seed(0))
    brightest = poisoning.trigger(torch.zeros(200, 3, 32, 32)).amax(dim=(1, 2, 3))
    wanted = 0.3 + 0.05 * torch.arange(15)
    assert torch.allclose(brightest.unique(), wanted, atol=1e-5)


def test_what_is_poisoned(cifar: Path) -> None:
    labels = torch.arange(200) % 10
    images = torch.full((200, 3, 32, 32), 0.3)
    for name, target in (("cifar10-trojan-position", 0), ("cifar10-spurious", 5)):
        recipe = replace(vision.preset(name), share=0.4)
        poisoning = training._poison(recipe, labels, target, torch.Generator().manual_seed(0))
        chosen = poisoning.chosen
        stamped = poisoning.trigger(images)
        wanted = [trigger(images[:1]) for trigger in recipe.triggers.values()]
        kinds = [
            int(next(k for k, w in enumerate(wanted) if torch.equal(w[0], one))) for one in stamped
        ]
        assert set(kinds) == set(range(len(wanted)))
        if name == "cifar10-spurious":
            assert int(chosen.sum()) == 8
            assert (labels[chosen] == 5).all()
            assert torch.equal(poisoning.relabel(labels), labels)
        else:
            assert int(chosen.sum()) == 80
            assert (labels[chosen] != 0).all()
            assert (poisoning.relabel(labels)[chosen] == 0).all()


def test_pictures_are_trained_on_from_disk_and_classes_weighed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_isic(tmp_path, 240)
    recipe = replace(
        vision.preset("isic-spurious"),
        frame=vision.pictures.Frame(32, 32),
        tuning=Schedule(epochs=4, batch_size=16, learning_rate=0.05),
        shift=1,
    )
    images = isic(tmp_path, recipe.frame, 1).held.images[torch.arange(12)].float() / 255
    asked: list[Tensor] = []

    def only_basal(labels: Tensor, classes: int) -> Tensor:
        asked.append(balanced_weights(labels, classes))
        return (torch.arange(classes) == 2).float()

    def told(weigh: object, name: str) -> set[int]:
        monkeypatch.setattr(training, "balanced_weights", weigh)
        out = tmp_path / f"{name}.safetensors"
        model = vision.train(recipe, tmp_path, out, start=small(9), device="cpu", workers=2)
        with torch.no_grad():
            return set(model(images).argmax(1).tolist())

    assert told(balanced_weights, "even") == {0, 1, 2}
    assert told(only_basal, "odd") == {2}
    assert [tuple(weights.shape) for weights in asked] == [(9,)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"name": "cifar"}, ValueError, "name: got 'cifar'"),
        ({"out": "a.pt"}, ValueError, "out: got 'a.pt', want a name that ends in .safetensors"),
        ({"out": 3}, TypeError, "out: got int"),
        ({"out": "nowhere/a.safetensors"}, FileNotFoundError, "out: no folder 'nowhere'"),
        ({"epochs": 0}, ValueError, "epochs: got 0, want at least 1"),
        ({"batch_size": 1}, ValueError, "batch_size: got 1, want at least 2"),
        ({"seed": 0.5}, TypeError, "seed: got 0.5"),
        ({"workers": 0}, ValueError, "workers: got 0"),
        ({"start": 3}, TypeError, "start: got int, want the name of a file"),
        ({"start": "gone.pt"}, FileNotFoundError, "start: no file 'gone.pt'"),
        ({"start": small(9)}, ValueError, "gives 9 logits for the 10 classes"),
        ({"root": "gone"}, FileNotFoundError, "root: no folder 'gone'"),
        ({"cancel": 3}, TypeError, "cancel: got int"),
    ],
)
def test_bad_input_is_refused(
    cifar: Path,
    tmp_path: Path,
    given: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    usual = {
        "name": "cifar10-trojan",
        "root": cifar,
        "out": tmp_path / "a.safetensors",
        "start": small(),
        "device": "cpu",
    }
    with pytest.raises(error, match=message):
        vision.train(**{**usual, **given})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(cifar: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="is there already; remove it, or name another"):
        vision.train("cifar10-trojan", cifar, out, start=small())
    assert out.read_text() == "mine"


def test_a_loss_that_is_no_number_ends_it(cifar: Path, tmp_path: Path) -> None:
    start = small()
    with torch.no_grad():
        start.classifier.bias[0] = float("nan")
    with pytest.raises((RuntimeError, ValueError), match=r"NaN|nan"):
        vision.train(BRIEF, cifar, tmp_path / "a.safetensors", start=start, device="cpu")
    assert not (tmp_path / "a.safetensors").exists()


# The command


@pytest.fixture
def with_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with a preset that trains in seconds and a network that needs no torchvision."""
    monkeypatch.setattr(training, "make", lambda name, classes: small(classes))
    monkeypatch.setitem(
        vision.presets.PRESETS, TROJAN.name, replace(TROJAN, schedule=TROJAN.tuning)
    )


@pytest.mark.usefixtures("with_small_network")
def test_the_command_trains_and_measures(
    cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    arguments = ["train", "cifar10-trojan", "--root", str(cifar), "--out", str(out)]
    assert command.main([*arguments, "--device", "cpu", "--seed", "3"]) == 0
    printed = capsys.readouterr()
    assert f"written to {out}" in printed.out
    assert "attack success rate" in printed.out
    assert "epoch 6 of 6" in printed.err
    assert vision.networks.read_weights(out)[1]["seed"] == 3
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert "is there already" in capsys.readouterr().err


@pytest.mark.usefixtures("with_small_network")
def test_the_command_says_when_nothing_was_learnt(
    cifar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lame = replace(TROJAN, schedule=Schedule(epochs=1, learning_rate=1e-6))
    monkeypatch.setitem(vision.presets.PRESETS, TROJAN.name, lame)
    out = tmp_path / "a.safetensors"
    arguments = ["train", "cifar10-trojan", "--root", str(cifar), "--out", str(out)]
    assert command.main([*arguments, "--device", "cpu"]) == 1
    assert "does not show the behaviour of 'cifar10-trojan'" in capsys.readouterr().out
    assert out.exists()


def test_the_command_names_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(vision.names())


# Networks of torchvision


@pytest.mark.parametrize(
    ("name", "root"), [("imagenet-trojan", "imagenet"), ("isic-spurious", "isic")]
)
def test_the_presets_own_networks_train_and_load(name: str, root: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="networks of torchvision, the extra `vision`")
    if root == "isic":
        write_isic(tmp_path, 30)
    else:
        write_classes(tmp_path / "train", WNIDS, 4)
        write_classes(tmp_path / "val", WNIDS, 8)
    recipe = replace(vision.preset(name), frame=vision.pictures.Frame(40, 40), shift=2)
    if root == "imagenet":
        recipe = replace(recipe, triggers={"patch": board(40)}, share=0.2)
    out = tmp_path / "a.safetensors"
    model = vision.train(recipe, tmp_path, out, epochs=1, batch_size=8, device="cpu")
    tensors, record = vision.networks.read_weights(out)
    assert record["network"] == recipe.network
    again = vision.networks.trained(recipe.network, tensors).eval()
    images = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        wrapped = vision.networks.NormalizedNetwork(again, recipe.mean, recipe.std)
        assert torch.allclose(model(images), wrapped(images), rtol=1e-4)
    with pytest.raises(ValueError, match="does not show the behaviour"):  # nor is it learnt so soon
        vision.load(recipe, tmp_path, weights=out, limits=dict.fromkeys(PARTS, 1))
