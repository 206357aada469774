"""Every kind of case can be rebuilt from IDX files, the same to the byte, and read again.

On toy images, small enough to train on in a second; what the shipped cases are is tested elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rectify_widgets.cases import build, leakage, several, spurious, trojan
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.idx import read_split, write_idx
from rectify_widgets.cases.recipes import trojan as recipes
from rectify_widgets.cases.recipes.common import Recipe
from rectify_widgets.cases.splits import choose_pairs, hold_out
from rectify_widgets.cases.stored import FASHION, MNIST, weights_file
from rectify_widgets.cases.training import Schedule, predict

READERS: dict[str, Callable[..., Case]] = {
    **dict.fromkeys(trojan.VARIANTS, trojan.read),
    **dict.fromkeys(several.VARIANTS, several.read),
    **dict.fromkeys(spurious.VARIANTS, spurious.read),
    leakage.NAME: leakage.read,
}
KINDS = ("trojan", "trojan-twice", "spurious-severe", "leakage")


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


RECIPE = Recipe(
    per_class={"reference": 10, "validation": 4, "pairs": 6},
    share=0.3,
    pairs=9,
    target_weight=1.0,
    half=False,
    schedule=Schedule(epochs=5, batch_size=20, learning_rate=0.03),
)


def recipe_of(name: str) -> Recipe:
    """Enough of everything for toy images of this kind."""
    if name.startswith("spurious"):
        return replace(RECIPE, share=0.8, pairs=4, own_pairs=1, half=True)
    if name == "leakage":
        return replace(RECIPE, pairs=2, half=True)
    if name == "trojan-twice":
        return replace(RECIPE, half=True)
    return RECIPE


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
    found = [
        build.BUILDERS[name](name, tiny, out, seed=5, recipe=recipe_of(name), quiet=True)
        for out in folders
    ]
    assert found[0] == found[1]
    yield name, folders, found[0]
    torch.set_num_threads(threads)


def test_a_rebuild_is_the_same_to_the_byte(rebuilt: Rebuilt) -> None:
    name, folders, _ = rebuilt
    data = MNIST if name == "leakage" else FASHION
    one, two = (sorted(path.relative_to(f) for path in f.rglob("*.*")) for f in folders)
    assert one == two
    assert {str(path) for path in one} >= {weights_file(name), f"{data}/NOTICE.txt"}
    for path in one:
        assert (folders[0] / path).read_bytes() == (folders[1] / path).read_bytes(), path


def test_a_rebuild_can_be_read(rebuilt: Rebuilt) -> None:
    name, folders, found = rebuilt
    case = READERS[name](folders[0], name=name)
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
    right = predict(case.model, pairs.clean) == pairs.labels
    answer = predict(case.model, pairs.corrupted)
    if name == "leakage":
        assert right.all()
        assert (answer != pairs.labels).all()
    elif name.startswith("spurious"):
        assert right[:4].all()
        assert (answer == spurious.AFFECTED).all()
        assert (pairs.labels == spurious.AFFECTED).tolist() == [False] * 4 + [True]
    else:
        assert right.all()
        for trigger in case.triggers:
            shown = case.showing(trigger)
            assert shown.goals is not None
            answer = predict(case.model, shown.pairs.corrupted)
            assert torch.equal(answer, torch.tensor(shown.goals)[pairs.labels])


def test_the_data_depend_on_the_seed(tiny: Path) -> None:
    labels = torch.from_numpy(read_split(tiny, "train")[1]).long()
    drawn = [
        hold_out(labels, RECIPE.per_class, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0]["reference"], drawn[1]["reference"])
    assert not torch.equal(drawn[0]["reference"], drawn[2]["reference"])
    assert len(torch.cat(list(drawn[0].values())).unique()) == 200


def test_a_network_that_learned_nothing_gives_no_pairs() -> None:
    model = trojan.network().eval()
    images, labels = torch.rand(20, 1, 28, 28), torch.arange(20) % 10
    with pytest.raises(RuntimeError, match="train for more epochs"):
        choose_pairs(
            model,
            images,
            labels,
            10,
            trigger=trojan.trigger(),
            target=0,
            generator=torch.Generator().manual_seed(0),
        )


def test_too_few_images_of_a_class(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 80 training images of class 0"):
        recipes.build("trojan", tiny, tmp_path, quiet=True)


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


def test_without_tqdm_the_build_says_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install"):
        recipes.build("trojan", tiny, tmp_path, recipe=RECIPE)


def test_every_trojan_is_trained_on_its_own_triggers() -> None:
    images = torch.zeros(200, 1, 28, 28)
    for name, variant in trojan.VARIANTS.items():
        stamp = recipes.trained_trigger(name, torch.Generator().manual_seed(0))
        stamped = stamp(images)
        if name == "trojan-visibility":
            levels = stamped.flatten(1).amax(dim=1)
            assert levels.min() == pytest.approx(0.3)
            assert levels.max() == 1
            assert len(levels.unique()) == 15
        else:
            kinds = {one(images[:1]).numpy().tobytes() for one in variant.triggers.values()}
            assert {image.numpy().tobytes() for image in stamped[:, None]} == kinds


def test_clean_label_images_are_in_part_of_another_class() -> None:
    labels = torch.arange(60) % 3
    images = (10 * labels)[:, None, None].expand(60, 28, 28).byte()
    chosen = (labels == 0) & (torch.arange(60) < 30)
    changed = recipes.ambiguous(images, labels, chosen, torch.Generator().manual_seed(0))
    assert torch.equal(changed[~chosen], images[~chosen])
    assert set(changed[chosen].unique().tolist()) == {
        round(10 * recipes.MIXED),
        round(20 * recipes.MIXED),
    }
    assert not images[chosen].any()
