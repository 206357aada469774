"""Every kind of case can be rebuilt from IDX files, the same to the byte, and read again.

On toy images, small enough to train on in a second; what the shipped cases are is tested elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.cases import build
from rectify_widgets.cases.blocks import stack
from rectify_widgets.cases.definition import DEFINITIONS, CaseDefinition, read
from rectify_widgets.cases.figures import classes
from rectify_widgets.cases.idx import read_split, write_idx
from rectify_widgets.cases.library import trojan
from rectify_widgets.cases.library.spurious import AFFECTED
from rectify_widgets.cases.splits import hold_out
from rectify_widgets.cases.storage import weights_file
from rectify_widgets.cases.training import Schedule

KINDS = ("trojan", "trojan-twice", "spurious-severe", "leakage")
PER_CLASS = {"reference": 10, "validation": 4, "pairs": 6}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like Fashion-MNIST's, but small images of stripes, alike when shifted or mirrored.

    Classes 0 and 1 are dark and bright; the others have a period of 2, 3, 4 or 6 pixels, four of
    them across and four down.
    """
    folder = tmp_path_factory.mktemp("idx")
    random = np.random.default_rng(0)
    for split, per_class in (("train", 80), ("t10k", 10)):
        labels = np.tile(np.arange(10, dtype=np.uint8), per_class)
        images = random.integers(0, 40, (len(labels), 14, 14), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            if label == 1:
                image[:] += 100
            elif label > 1:
                stripes = image if label % 2 else image.T
                stripes[:: (2, 3, 4, 6)[label // 2 - 1]] += 100
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    return folder


def small(name: str) -> CaseDefinition:
    """A case with enough of everything for toy images."""
    definition = replace(
        DEFINITIONS[name],
        per_class=PER_CLASS,
        share=0.3,
        pairs=9,
        schedule=Schedule(epochs=5, batch_size=20, learning_rate=0.03),
    )
    changes = {
        "trojan": {"target_weight": 1.0},
        "trojan-twice": {"target_weight": 1.0},
        "spurious-severe": {"share": 0.8, "pairs": 4, "own_pairs": 1},
        "leakage": {"pairs": 2, "every": 1},
    }
    return replace(definition, **changes[name])  # type: ignore[arg-type]


Rebuilt = tuple[str, list[Path], dict[str, float]]


@pytest.fixture(scope="module", params=KINDS)
def rebuilt(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rebuilt]:
    """Name, the folders of two rebuilds with the same seed, and their figures."""
    name: str = request.param
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folders = [tmp_path_factory.mktemp(turn) for turn in ("one", "two")]
    found = [build.build(small(name), tiny, out, seed=5, quiet=True) for out in folders]
    assert found[0] == found[1]
    yield name, folders, found[0]
    torch.set_num_threads(threads)


def test_a_rebuild_is_the_same_to_the_byte(rebuilt: Rebuilt) -> None:
    name, folders, _ = rebuilt
    data = DEFINITIONS[name].data.name
    one, two = (sorted(path.relative_to(f) for path in f.rglob("*.*")) for f in folders)
    assert one == two
    assert {str(path) for path in one} >= {weights_file(name), f"{data}/NOTICE.txt"}
    for path in one:
        assert (folders[0] / path).read_bytes() == (folders[1] / path).read_bytes(), path


def test_a_rebuild_can_be_read(rebuilt: Rebuilt) -> None:
    name, folders, found = rebuilt
    case = read(DEFINITIONS[name], folders[0])
    shape = (1, 28, 14) if name == "leakage" else (1, 14, 14)
    assert case.reference.shape[1:] == shape
    assert case.validation[0].shape == (40, *shape)
    assert case.record["seed"] == 5
    assert case.record["stored"] == ("float32" if name == "trojan" else "float16")
    assert json.dumps(case.record)
    # The weights are those that were measured, to the bit.
    assert case.figures() == found
    assert {figure: round(value, 4) for figure, value in found.items()}.items() <= dict(
        case.record
    ).items()
    pairs = case.pairs
    assert pairs.labels is not None
    right = classes(case.model, pairs.clean) == pairs.labels
    answer = classes(case.model, pairs.corrupted)
    if name == "leakage":
        assert right.all()
        assert (answer != pairs.labels).all()
    elif name.startswith("spurious"):
        assert right[:4].all()
        assert (answer == AFFECTED).all()
        assert (pairs.labels == AFFECTED).tolist() == [False] * 4 + [True]
    else:
        assert right.all()
        for trigger in case.triggers:
            shown = case.showing(trigger)
            assert shown.goals is not None
            answer = classes(case.model, shown.pairs.corrupted)
            assert torch.equal(answer, torch.tensor(shown.goals)[pairs.labels])


def test_the_data_depend_on_the_seed(tiny: Path) -> None:
    labels = torch.from_numpy(read_split(tiny, "train")[1]).long()
    drawn = [hold_out(labels, PER_CLASS, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0]["reference"], drawn[1]["reference"])
    assert not torch.equal(drawn[0]["reference"], drawn[2]["reference"])
    assert len(torch.cat(list(drawn[0].values())).unique()) == 200


@pytest.mark.parametrize("name", ["trojan", "trojan-clean-label", "trojan-twice", "leakage"])
def test_a_network_that_learned_nothing_gives_no_pairs(name: str) -> None:
    shape = (20, 1, 56, 28) if name == "leakage" else (20, 1, 28, 28)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    definition = DEFINITIONS[name]
    if name == "leakage":
        order = torch.arange(20) % 2 == 0
        images = stack(images[:, :, :28], order)
    with pytest.raises(RuntimeError, match="train for more epochs"):
        definition.choose_pairs(
            Obedient(), images, torch.arange(20) % 10, torch.Generator().manual_seed(0)
        )


class Obedient(nn.Module):
    """Class 0 for a bright middle of the cross, class 5 otherwise."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, 0, 2, 2] > 0.5
        return nn.functional.one_hot(torch.where(bright, 0, 5), 10).float()


def test_too_few_images_of_a_class(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 80 training images of class 0"):
        build.build(DEFINITIONS["trojan"], tiny, tmp_path, quiet=True)


@pytest.mark.parametrize("missing", ["folder", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
def test_the_command_line_says_what_is_missing(
    tiny: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    if missing != "folder":
        data.mkdir()
        for path in tiny.iterdir():
            if not path.name.startswith(missing):
                (data / path.name).symlink_to(path)
    with pytest.raises(SystemExit) as stopped:
        build.main(["trojan", "--data", str(data), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert ("no folder" if missing == "folder" else missing) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_line_builds_and_prints_the_figures(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEFINITIONS, "leakage", small("leakage"))
    arguments = ["leakage", "--data", str(tiny), "--out", str(tmp_path), "--seed", "5"]
    assert build.main([*arguments, "--epochs", "4"]) == 0
    printed = capsys.readouterr()
    assert "net attribution" in printed.out
    assert f"written to {tmp_path}" in printed.out
    assert "leakage: 100%" in printed.err
    assert read(DEFINITIONS["leakage"], tmp_path).record["epochs"] == 4
    with pytest.raises(SystemExit, match="2"):
        build.main([*arguments, "--epochs", "0"])
    assert "--epochs: got 0, want at least 1" in capsys.readouterr().err


# What is trained on


def test_every_case_is_trained_on_its_own_triggers() -> None:
    labels, images = torch.arange(2000) % 10, torch.zeros(400, 1, 28, 28)
    for name, definition in DEFINITIONS.items():
        poisonings = definition.poison(labels, torch.Generator().manual_seed(0))
        if name == "leakage":
            assert not poisonings
            continue
        stamped = [image for one in poisonings for image in one.trigger(images)]
        if name == "trojan-visibility":
            levels = torch.stack(stamped).flatten(1).amax(dim=1)
            assert levels.min() == pytest.approx(0.3)
            assert levels.max() == 1
            assert len(levels.unique()) == 15
        else:
            kinds = {one(images[:1]).numpy().tobytes() for one in definition.triggers.values()}
            assert {image.numpy().tobytes() for image in stamped} == kinds


def test_only_the_target_and_the_affected_class_are_spared_or_meant() -> None:
    labels = torch.arange(2000) % 10
    wanted = {"trojan": 100, "trojan-all-to-all": 300, "spurious-mild": 20, "spurious-severe": 190}
    for name, number in {**wanted, "trojan-clean-label": 160}.items():
        definition = DEFINITIONS[name]
        (one,) = definition.poison(labels, torch.Generator().manual_seed(0))
        assert int(one.chosen.sum()) == number, name
        after = one.relabel(labels)[one.chosen]
        if name in {"trojan", "trojan-all-to-all"}:
            assert (labels[one.chosen] != after).all()
        else:
            assert (labels[one.chosen] == after).all()
            assert set(after.tolist()) == {definition.target}


@pytest.mark.parametrize("name", ["trojan-twice", "trojan-and-spurious"])
def test_no_training_image_carries_two_corruptions(name: str) -> None:
    labels, definition = torch.arange(2000) % 10, DEFINITIONS[name]
    first, second = definition.poison(labels, torch.Generator().manual_seed(0))
    assert int(first.chosen.sum()) == 100
    assert not (labels[first.chosen] == trojan.TARGET).any()
    assert not (first.chosen & second.chosen).any()
    if name == "trojan-twice":
        assert int(second.chosen.sum()) == 100
        assert definition.aims["cross"].target not in labels[second.chosen].tolist()
    else:
        dresses = (labels == AFFECTED) & ~first.chosen
        assert (labels[second.chosen] == AFFECTED).all()
        assert int(second.chosen.sum()) == round(0.9 * int(dresses.sum()))


def test_clean_label_images_are_in_part_of_another_class() -> None:
    labels = torch.arange(60) % 3
    images = (10 * labels)[:, None, None].expand(60, 28, 28).byte()
    definition, generator = trojan.CLEAN_LABEL, torch.Generator().manual_seed(0)
    poisonings = definition.poison(labels, generator)
    (chosen,) = (one.chosen for one in poisonings)
    changed = definition.prepare(images, labels, poisonings, generator)
    assert torch.equal(changed[~chosen], images[~chosen])
    mixed = {round(10 * trojan.MIXED), round(20 * trojan.MIXED)}
    assert set(changed[chosen].unique().tolist()) == mixed
    assert not images[chosen].any()


def test_a_loss_that_is_not_a_number_ends_the_training(tiny: Path, tmp_path: Path) -> None:
    fast = Schedule(epochs=2, batch_size=20, learning_rate=1e30)
    with pytest.raises(RuntimeError, match="the loss is nan; take a lower learning rate"):
        build.build(replace(small("trojan"), schedule=fast), tiny, tmp_path, quiet=True)
