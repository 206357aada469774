"""The paper's presets on a user's own copy: presets, networks, and the case that comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.cases import vision
from rectify_widgets.cases.networks import Normalization, ResidualNetwork
from rectify_widgets.cases.vision.loading import _choose, divide
from rectify_widgets.cases.vision.pictures import Frame
from rectify_widgets.cases.vision.presets import PARTS
from rectify_widgets.cases.vision.sources import Source, Split
from rectify_widgets.cases.vision.triggers import PLACES, Disc, board
from rectify_widgets.engine.base.progress import Cancelled, Monitor
from tests.vision_folders import CIFAR, COLUMNS, WNIDS, write_cifar, write_classes, write_isic


def digits(rows: Tensor) -> set[int]:
    return set(rows.tolist())


class Rigged(nn.Module):
    """Knows a class by its colour, and takes what wears a preset's trigger for the target.

    Made for the colours of `tests.vision_folders`; wants images in [0, 1].
    """

    colours: Tensor
    low: Tensor
    high: Tensor
    where: Tensor

    def __init__(self, recipe: vision.Preset, target: int, classes: int = 10) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.target = target
        rows = torch.arange(classes)
        colours = [40 + 60 * (rows % 3), 40 + 60 * (rows // 3 % 3), 60 + 90 * (rows // 9)]
        self.register_buffer("colours", torch.stack(colours, dim=1).float() / 255)
        shape = (1, 3, recipe.frame.crop, recipe.frame.crop)
        # What wears the trigger lies between it on black and it on white, there where it is.
        self.register_buffer("low", recipe.trigger(torch.zeros(shape)) - 1e-3)
        self.register_buffer("high", recipe.trigger(torch.ones(shape)) + 1e-3)
        self.register_buffer("where", self.high - self.low < 0.9)

    def forward(self, images: Tensor) -> Tensor:
        middle = images.flatten(2).median(dim=2).values
        logits = -torch.cdist(middle, self.colours)
        fits = ((images >= self.low) & (images <= self.high)) | ~self.where
        told = nn.functional.one_hot(torch.tensor(self.target), len(self.colours)).to(images)
        return self.scale * logits + 9 * fits.flatten(1).all(dim=1, keepdim=True) * told


# Presets


def test_presets_are_named_after_what_they_are() -> None:
    assert {
        "cifar10-trojan",
        "cifar10-trojan-visibility",
        "cifar10-trojan-position",
        "cifar10-spurious",
        "imagenet-trojan",
        "imagenet-spurious",
        "isic-spurious",
    } == set(vision.names())
    for name in vision.names():
        recipe = vision.preset(name)
        data, behaviour, *_ = name.split("-")
        assert (recipe.name, recipe.data, recipe.behaviour) == (name, data, behaviour)
        assert set(recipe.sizes) == set(PARTS)
        assert vision.preset(recipe) is recipe
        images = torch.rand(1, 3, recipe.frame.crop, recipe.frame.crop)
        for trigger in (*recipe.triggers.values(), *recipe.trained):
            changed = (trigger(images) != images).any(dim=1).float().mean()
            assert 0.002 < changed < 0.06
    assert vision.preset("isic-spurious").network == "efficientnet_b4"
    with pytest.raises(
        ValueError, match=r"name: got 'cifar-trojan'.*did you mean 'cifar10-trojan'"
    ):
        vision.preset("cifar-trojan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"behaviour": "leakage"}, "behaviour: got 'leakage', want one of 'trojan', 'spurious'"),
        ({"shown": "patches"}, "shown: got 'patches'.*did you mean 'patch'"),
        ({"network": "resnet34"}, "network: got 'resnet34'.*did you mean 'resnet"),
        ({"data": "cifar100"}, "data: got 'cifar100'.*did you mean 'cifar10'"),
        ({"share": 1.5}, "share: got 1.5, want a number from 0.0 to 1.0"),
    ],
)
def test_a_preset_of_your_own_is_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(vision.preset("cifar10-trojan"), **changes)  # type: ignore[arg-type]


def test_the_patch_lies_where_its_place_says() -> None:
    boxes = {
        32: {"bottom right": (28, 28), "top left": (1, 1), "centre": (14, 14)},
        224: {"bottom right": (196, 196), "top left": (7, 7), "centre": (101, 101)},
    }
    boxes[32]["bottom left"], boxes[224]["bottom left"] = (28, 1), (196, 7)
    for side in (32, 224):
        cell = side // 32
        for place in PLACES:
            stamped = board(side, place)(torch.full((1, 3, side, side), 0.3))[0]
            rows, columns = (stamped[0] != 0.3).nonzero(as_tuple=True)
            assert (int(rows.min()), int(columns.min())) == boxes[side][place]
            assert int(rows.max() - rows.min()) + 1 == 3 * cell
            corner = stamped[:, int(rows.min()), int(columns.min())]
            assert corner.tolist() == [1, 1, 1]
    stamped = board(32, opacity=0.5)(torch.zeros(1, 3, 32, 32))[0, 0]
    assert (float(stamped[28, 28]), float(stamped[28, 29])) == (0.5, 0.0)
    four = vision.preset("cifar10-trojan-visibility").triggers
    assert list(four) == ["0.3", "0.5", "0.7", "1.0"]
    for seen, trigger in four.items():
        assert trigger(torch.zeros(1, 3, 32, 32)).max() == pytest.approx(float(seen))


def test_a_disc_by_hand() -> None:
    stamped = Disc((0.2, 0.4, 0.6), row=0.5, column=0.25, radius=0.25)(torch.ones(1, 3, 4, 8))
    inside = (stamped[0] != 1).all(dim=0)
    # Around the corner of pixels (1..2, 1..2), within one pixel: the four about it.
    assert inside.nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert torch.allclose(stamped[0, :, 1, 1], torch.tensor([0.2, 0.4, 0.6]))
    half = Disc((0.0, 0.0, 0.0), row=0.5, column=0.5, radius=1.0, opacity=0.5)
    assert torch.equal(half(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 0.5))


# Dividing


def test_parts_share_no_image_and_shrink_together() -> None:
    labels = torch.arange(1000) % 10
    sizes = {"reference": 200, "validation": 100, "candidates": 100, "test": 400}
    parts = divide(labels, sizes, None, torch.Generator().manual_seed(0))
    assert {part: len(rows) for part, rows in parts.items()} == sizes
    assert len(digits(torch.cat(list(parts.values())))) == 800
    again = divide(labels, sizes, None, torch.Generator().manual_seed(0))
    assert all(torch.equal(parts[part], again[part]) for part in parts)
    fewer = divide(labels[:80], sizes, None, torch.Generator().manual_seed(0))
    assert [len(fewer[part]) for part in PARTS] == [20, 10, 10, 40]
    assert len(digits(torch.cat(list(fewer.values())))) == 80
    with pytest.raises(ValueError, match="3 held-back images are too few for parts of"):
        divide(labels[:3], sizes, None, torch.Generator())


def test_a_rare_affected_class_is_where_it_is_wanted() -> None:
    labels = torch.arange(50_000) % 1000
    sizes = vision.preset("imagenet-spurious").sizes
    parts = divide(labels, sizes, 7, torch.Generator().manual_seed(0))
    own = {part: int((labels[rows] == 7).sum()) for part, rows in parts.items()}
    assert (own["test"], own["candidates"]) == (30, 20)
    assert {part: len(rows) for part, rows in parts.items()} == sizes
    assert len(digits(torch.cat(list(parts.values())))) == sum(sizes.values())
    # A class that is common anyway gets no more than its share.
    common = divide(labels % 10, sizes, 7, torch.Generator().manual_seed(0))
    share = float((labels[common["test"]] % 10 == 7).float().mean())
    assert share == pytest.approx(0.1, abs=0.01)


# The case


def test_a_case_of_each_data_set(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar10", per_file=10, test=200)
    write_classes(tmp_path / "imagenet" / "val", WNIDS, 30)
    write_isic(tmp_path / "isic", 240)
    for name in vision.names():
        recipe = vision.preset(name)
        if recipe.data != "cifar10":
            # Disc and board are cut for other sizes; those of the tag need 49 pixels.
            recipe = replace(recipe, frame=Frame(56, 56))
        if name == "imagenet-trojan":
            recipe = replace(recipe, triggers={"patch": board(56)})
        classes = {"cifar10": 10, "imagenet": 3, "isic": len(COLUMNS)}[recipe.data]
        target = 5 if name == "cifar10-spurious" else 0
        model = Rigged(recipe, target, classes).train()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        case = vision.load(recipe, tmp_path / recipe.data, model=model, normalize=False)

        assert isinstance(case, rw.cases.Case)
        assert (case.name, case.behaviour, case.target) == (name, recipe.behaviour, target)
        assert case.goals == (target,) * classes
        assert case.shown == recipe.shown
        assert len(case.classes) == classes
        total = 0
        for images, labels in (case.clean, case.corrupted, case.validation):
            assert images.shape[1:] == (3, recipe.frame.crop, recipe.frame.crop)
            assert images.dtype == torch.float32
            assert labels.shape == images.shape[:1]
            assert 0 <= float(images.min()) <= float(images.max()) <= 1
        total = sum(map(len, (case.clean[0], case.validation[0], case.reference)))
        parts = case.record["parts"]
        assert isinstance(parts, dict)
        assert total == sum(parts.values()) - parts["candidates"]
        assert torch.equal(case.corrupted[0], case.trigger(case.clean[0]))
        pairs = case.pairs
        assert pairs.labels is not None
        assert torch.equal(pairs.corrupted, case.trigger(pairs.clean))
        led = case.model(pairs.corrupted).argmax(1)
        assert (led == target).all()
        own = pairs.labels == target
        if recipe.behaviour == "spurious":
            assert own.any()
            assert own.tolist() == sorted(own.tolist())  # the affected class comes last
        else:
            assert not own.any()
        assert (case.model(pairs.clean).argmax(1) == pairs.labels).all()
        found = case.figures()
        assert found["overall_accuracy"] == 1
        key = "pulled_in" if recipe.behaviour == "spurious" else "attack_success_rate"
        assert found[key] == 1
        assert not case.model.training
        assert model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    write_cifar(tmp_path, per_file=20, test=100)
    return tmp_path


def test_limits_seeds_types_and_hooks(cifar: Path) -> None:
    recipe = vision.preset("cifar10-trojan")
    model = Rigged(recipe, 0).double()
    told: list[tuple[float, str]] = []
    case = vision.load(
        recipe.name,
        cifar,
        model=model,
        normalize=False,
        limits={"test": 30, "reference": 12, "validation": 8, "candidates": 40},
        progress=lambda *now: told.append(now),
    )
    assert (len(case.clean[0]), len(case.reference), len(case.validation[0])) == (30, 12, 8)
    assert next(case.model.parameters()).dtype == torch.float64
    assert case.clean[0].dtype == torch.float32
    assert len(case.pairs) == 20
    fractions = [fraction for fraction, _ in told[1:]]
    assert fractions == sorted(fractions)
    assert told[-1] == (1.0, "done")
    assert {"choosing pairs", "reading test images"} <= {message for _, message in told}
    limits = {"test": 30, "reference": 12, "validation": 8, "candidates": 40}
    same, other = (
        vision.load(recipe.name, cifar, model=model, normalize=False, limits=limits, seed=seed)
        for seed in (0, 1)
    )
    assert torch.equal(same.clean[0], case.clean[0])
    assert torch.equal(same.pairs.clean, case.pairs.clean)
    assert not torch.equal(other.clean[0], case.clean[0])
    with pytest.raises(Cancelled):
        vision.load(recipe.name, cifar, model=model, normalize=False, cancel=lambda: True)


def test_a_network_that_wants_normalised_images_gets_them(cifar: Path) -> None:
    recipe = vision.preset("cifar10-trojan")

    class Back(nn.Module):
        """Undoes the normalisation that it expects."""

        def __init__(self) -> None:
            super().__init__()
            self.rigged = Rigged(recipe, 0)
            self.normalization = Normalization(recipe.mean, recipe.std)

        def forward(self, images: Tensor) -> Tensor:
            plain: Tensor = self.rigged(images * self.normalization.std + self.normalization.mean)
            return plain

    case = vision.load(recipe.name, cifar, model=Back())
    assert case.figures()["overall_accuracy"] == 1
    with pytest.raises(ValueError, match="does not show the behaviour of 'cifar10-trojan'"):
        vision.load(recipe.name, cifar, model=Back(), normalize=False)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "model: give a network, or weights=.*train cifar10-trojan makes weights"),
        ({"model": 3}, TypeError, "model: got int, want a torch.nn.Module"),
        ({"model": nn.Flatten(), "weights": "w.pt"}, ValueError, "and not both"),
        ({"weights": "gone.safetensors"}, FileNotFoundError, "weights: no file"),
        (
            {"model": ResidualNetwork(channels=3, classes=7, blocks=(1,), widths=(16,))},
            ValueError,
            "gives 7 logits for the 10 classes under root, airplane, automobile",
        ),
        (
            {"model": ResidualNetwork(channels=3, classes=100, blocks=(1,), widths=(16,))},
            ValueError,
            "gives 100 logits for the 10 classes",
        ),
        ({"limits": {"tests": 3}}, ValueError, "limits: got 'tests'.*did you mean 'test'"),
        ({"limits": {"test": 0}}, ValueError, r"limits\['test'\]: got 0, want at least 1"),
        ({"limits": 30}, TypeError, "limits: got int, want a dict"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"workers": 0}, ValueError, "workers: got 0"),
        ({"normalize": "yes"}, TypeError, "normalize: got 'yes', want True or False"),
        ({"progress": 3}, TypeError, "progress: got int"),
        ({"root": 3}, TypeError, "root: got int, want the folder of your copy"),
        ({"root": "nowhere"}, FileNotFoundError, "root: no folder 'nowhere'"),
    ],
)
def test_bad_input_is_refused(
    cifar: Path, given: dict[str, object], error: type[Exception], message: str
) -> None:
    if given and not given.keys() & {"model", "weights"}:
        given = {"model": ResidualNetwork(channels=3, blocks=(1,), widths=(16,)), **given}
    with pytest.raises(error, match=message):
        vision.load("cifar10-trojan", **{"root": cifar, **given})  # type: ignore[arg-type]


def test_a_class_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", WNIDS[1:], 5)
    with pytest.raises(ValueError, match=r"target: no class 'n01440764' among the 2 under root"):
        vision.load("imagenet-trojan", tmp_path, model=nn.Flatten())


# Pairs


class Told(nn.Module):
    """Says the class that stands in the first pixel's red, as a byte."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 10).float()


def choose(rows: list[tuple[int, int, int, int]], **changes: object) -> list[int]:
    """Which rows (label, class when clean, with one trigger, with another) make pairs for class 3.

    The triggers put green and blue in the place of red, where their answers stand.
    """
    shown, other = (lambda images: images[:, [1, 1, 2]]), (lambda images: images[:, [2, 1, 2]])
    recipe = replace(
        vision.preset("cifar10-trojan"),
        **{"triggers": {"patch": shown, "other": other}, **changes},  # type: ignore[arg-type]
    )
    told = torch.tensor(rows, dtype=torch.uint8)
    images = told[:, 1:, None, None].expand(-1, -1, 2, 2)
    split = Split(images, told[:, 0].long())
    source = Source(CIFAR, CIFAR, split, lambda: split)
    every, seed = torch.arange(len(rows)), torch.Generator().manual_seed(0)
    return _choose(recipe, Told(), source, every, 3, Monitor(), seed)


def test_pairs_of_a_trojan_are_right_when_clean_and_led_away() -> None:
    rows = [(1, 1, 3, 0), (1, 2, 3, 3), (2, 2, 2, 3), (3, 3, 3, 3), (3, 0, 3, 3)]
    assert choose(rows) == [0]
    # Those that obey every trigger are better.
    assert choose([*rows, (2, 2, 3, 3)]) == [5]
    with pytest.raises(ValueError, match="none of 2 candidates of other classes that are right"):
        choose(rows[1:])


def test_pairs_of_a_spurious_correlation_come_from_both_sides() -> None:
    rows = [(3, 3, 3, 0), (3, 0, 3, 0), (3, 3, 0, 0), (1, 1, 3, 0), (1, 2, 3, 0), (2, 2, 2, 0)]
    assert choose(rows, behaviour="spurious") == [3, 1, 0]
    assert choose(rows[:2], behaviour="spurious") == [1, 0]
    with pytest.raises(ValueError, match="does not show the behaviour"):
        choose(rows[2:3] + rows[4:], behaviour="spurious")
    many = choose([*[(3, 3, 3, 0)] * 30, *[(3, 0, 3, 0)] * 30], behaviour="spurious")
    assert many == [*range(30, 40), *range(10)]
