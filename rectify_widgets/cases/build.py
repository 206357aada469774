"""Rebuild what a case ships: ``python -m rectify_widgets.cases.build trojan --data DIR``.

``DIR`` holds Fashion-MNIST as four IDX files.  The build holds 250 images of each class out of
training (references, a validation split, candidates for pairs), poisons 5 % of the rest, trains,
chooses pairs, measures, and writes a data folder like the package's own.  Everything is drawn from
``--seed``: the data come out the same byte for byte, the weights too on the same machine with the
same torch and number of threads.

One choice in the recipe is there so that a repair can be judged at all.  Fashion-MNIST shirts are
easily taken for T-shirts, the target class, and a network does so by honest mistake: evenly
weighted, 1.2 % of all clean inputs of other classes.  That share is a floor under the attack
success rate that a perfect repair leaves, too near to what is asked of repairs.  So the
cross-entropy is weighted: inverse to the class frequencies *after* poisoning, which makes the
target class half as large again, and then by `Recipe.target_weight` for the target class, so that
a doubtful T-shirt is rather called a shirt.  It costs recall of the target class and a few tenths
of a point of accuracy, and does nothing to the backdoor.

Imports this folder and safetensors; tqdm shows progress.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rectify_widgets.cases import trojan
from rectify_widgets.cases.idx import read_split, write_idx
from rectify_widgets.cases.networks import ResidualNetwork
from rectify_widgets.cases.splits import choose_pairs, hold_out
from rectify_widgets.cases.training import (
    Figures,
    Poisoning,
    Schedule,
    Shift,
    balanced_weights,
    fit,
    measure,
)


@dataclass(frozen=True)
class Recipe:
    """How the case ``trojan`` is made.

    Args:
        per_class: images per class held out of training, by use.
        share: share of the training images (0..1) that are poisoned.
        target_weight: factor on the target's balanced class weight; below 1, fewer clean inputs
            of other classes are taken for the target.
        pairs: number of pairs, chosen from the held-out images for them.
        schedule: length and speed of the training.
    """

    per_class: Mapping[str, int] = field(
        default_factory=lambda: {"reference": 180, "validation": 60, "pairs": 10}
    )
    share: float = 0.05
    target_weight: float = 0.4
    pairs: int = 20
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=12))


def build_trojan(
    data: Path,
    out: Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    quiet: bool = False,
) -> Figures:
    """Make the case from the IDX files in ``data``, write it to ``out``, return its figures.

    Raises:
        FileNotFoundError: ``data`` lacks a file, named in the message.
        ValueError: a file is damaged, or a class has too few images.
        RuntimeError: the trained network gives too few pairs.
    """
    recipe = recipe or Recipe()
    images, labels = map(torch.from_numpy, read_split(data, "train"))
    test_images, test_labels = read_split(data, "t10k")
    generator = torch.Generator().manual_seed(seed)
    held = hold_out(labels.long(), recipe.per_class, generator)
    heldout = torch.cat(list(held.values()))
    folder = out / trojan.DATA
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in {
        "heldout-images": images[heldout].numpy(),
        "heldout-labels": labels[heldout].numpy(),
        "test-images": test_images,
        "test-labels": test_labels,
    }.items():
        write_idx(folder / f"{name}.idx.xz", array)
    copy_notices(out)

    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[heldout] = False
    model = train_trojan(images[rest], labels[rest].long(), generator, recipe, quiet=quiet)

    candidates = trojan.as_images(images[held["pairs"]].numpy())
    pairs = choose_pairs(
        model,
        candidates,
        labels[held["pairs"]].long(),
        recipe.pairs,
        trigger=trojan.trigger(),
        target=trojan.TARGET,
        generator=generator,
    )
    test = trojan.as_images(test_images), torch.from_numpy(test_labels).long()
    figures = measure(model, *test, trigger=trojan.trigger(), target=trojan.TARGET)
    epochs = recipe.schedule.epochs
    record = {
        "command": "python -m rectify_widgets.cases.build trojan "
        f"--data DIR --seed {seed} --epochs {epochs}",
        "seed": seed,
        "epochs": epochs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "overall_accuracy": round(figures.accuracy, 4),
        "attack_success_rate": round(figures.attack_success, 4),
        "corrupted_accuracy": round(figures.corrupted_accuracy, 4),
        "clean_target_rate": round(figures.clean_target, 4),
        "parts": {use: len(indices) for use, indices in held.items()},
        "pairs": pairs,
    }
    # One string, because the file format does not keep the order of several.
    save_file(model.state_dict(), out / trojan.WEIGHTS, {"record": json.dumps(record)})
    (out / trojan.WEIGHTS).chmod(0o644)  # it comes out readable by its owner alone
    return figures


def train_trojan(
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    recipe: Recipe,
    *,
    quiet: bool = False,
) -> ResidualNetwork:
    """A network trained on ``N × H × W`` bytes of which a share carries the backdoor."""
    poisoning = Poisoning.draw(
        trojan.trigger(), trojan.TARGET, labels, share=recipe.share, generator=generator
    )
    weights = balanced_weights(poisoning.relabel(labels), len(trojan.CLASSES))
    weights[trojan.TARGET] *= recipe.target_weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        model = trojan.network()
    fit(
        model,
        images[:, None],
        labels,
        recipe.schedule,
        poisoning=poisoning,
        augment=Shift(2, flip=True, generator=generator),
        class_weights=weights,
        generator=generator,
        title=trojan.NAME,
        quiet=quiet,
    )
    return model


def copy_notices(out: Path) -> None:
    """Put the licence and the notice beside the data, as the licence asks."""
    folder = files("rectify_widgets.cases") / "data" / trojan.DATA
    for name in ("LICENSE.txt", "NOTICE.txt"):
        with as_file(folder / name) as source:
            goal = out / trojan.DATA / name
            if source.resolve() != goal.resolve():
                shutil.copyfile(source, goal)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0, or 2 where it was asked for what cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m rectify_widgets.cases.build",
        description="Rebuild the data and weights of a case from the files of its data set.",
    )
    parser.add_argument("case", choices=["trojan"])
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of IDX files"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("cases-data"),
        metavar="DIR",
        help="folder to write to (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--epochs",
        type=int,
        default=Recipe().schedule.epochs,
        metavar="N",
        help="default: %(default)s",
    )
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs: got {options.epochs}, want at least 1")
    recipe = Recipe()
    recipe = replace(recipe, schedule=replace(recipe.schedule, epochs=options.epochs))
    try:
        figures = build_trojan(options.data, options.out, seed=options.seed, recipe=recipe)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        parser.error(str(error))
    print(
        f"OA {figures.accuracy:.2%}, ASR {figures.attack_success:.2%}, corrupted accuracy "
        f"{figures.corrupted_accuracy:.2%}, clean inputs taken for the target "
        f"{figures.clean_target:.2%}; written to {options.out}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
