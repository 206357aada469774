"""Rebuild what a case ships: ``python -m rectify_widgets.cases.build NAME --data DIR``.

``DIR`` holds the data set of the case, Fashion-MNIST or MNIST, as four IDX files.  Everything is
drawn from one generator, seeded once by ``--seed``: the data come out the same byte for byte, the
weights too on the same machine with the same torch and number of threads.  The held-out images are
drawn first, so that all cases on one data set hold out the same ones for a seed.  How each case is
made, and why so, its file in `rectify_widgets.cases.library` says.

Imports this folder; tqdm shows progress.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor

from rectify_widgets.cases.definition import DEFINITIONS, CaseDefinition, assemble
from rectify_widgets.cases.idx import Bytes, read_split, write_idx
from rectify_widgets.cases.splits import hold_out
from rectify_widgets.cases.storage import (
    Record,
    fingerprint,
    halve,
    is_half,
    read_images,
    write_weights,
)

UNITS = {"net_attribution", "logit_change"}
"""Figures that are no fractions."""


def build(
    definition: CaseDefinition, data: Path, out: Path, *, seed: int = 0, quiet: bool = False
) -> dict[str, float]:
    """Make a case from the IDX files in ``data`` and write it to ``out``.

    Args:
        definition: of the case; ``dataclasses.replace`` changes its recipe.
        data: folder of the four files.
        out: folder to write to.
        seed: of everything.
        quiet: no progress bar.

    Returns:
        its figures on the test set, by name, see `rectify_widgets.cases.figures`.

    Raises:
        FileNotFoundError: ``data`` lacks a file, named in the message.
        ValueError: a file is damaged, or a class has too few images.
        RuntimeError: the trained network gives too few pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels, record = write_images(definition, data, out / definition.data.name, generator)
    model = definition.train(images, labels, generator, quiet=quiet)
    if definition.half:
        halve(model)
    parts = read_images(out / definition.data.name, record, torch.device("cpu"), definition.compose)
    record["pairs"] = definition.choose_pairs(model, *parts.candidates, generator)
    found = assemble(definition, model, parts, record).figures()
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    length = definition.schedule.epochs
    start: Record = {
        "command": f"python -m rectify_widgets.cases.build {definition.name} "
        f"--data DIR --seed {seed} --epochs {length}",
        "seed": seed,
        "epochs": length,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stored": "float16" if all(map(is_half, kernels)) else "float32",
        **{figure: round(value, 4) for figure, value in found.items()},
    }
    write_weights(out, definition.name, model, {**start, **record})
    return found


def write_images(
    definition: CaseDefinition, data: Path, folder: Path, generator: torch.Generator
) -> tuple[Tensor, Tensor, Record]:
    """Hold images of the IDX files in ``data`` out and write what ships to ``folder``.

    Returns:
        the images to train on, ``N × 1 × H × W`` bytes, their ``N`` labels, and what the record says of
        those that were held out.
    """
    images, labels = map(torch.from_numpy, read_split(data, "train"))
    test_images, test_labels = (array[:: definition.every] for array in read_split(data, "t10k"))
    held = hold_out(labels.long(), definition.per_class, generator)
    sizes = {use: len(rows) for use, rows in held.items()}
    rows = torch.cat(list(held.values()))
    held_images, held_labels = images[rows].numpy(), labels[rows].numpy()
    arrays: Mapping[str, Bytes] = {
        "heldout-images": held_images,
        "heldout-labels": held_labels,
        "test-images": test_images,
        "test-labels": test_labels,
        **definition.draw_arrays(sizes, len(test_labels), generator),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in arrays.items():
        write_idx(folder / f"{stem}.idx.xz", array)
    copy_notices(folder)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[rows] = False
    record = {"heldout": fingerprint(held_images, held_labels), "parts": definition.parts(sizes)}
    return images[rest][:, None], labels[rest].long(), record


def copy_notices(folder: Path) -> None:
    """Put the licence and the notice of a data set that ships into the folder of that name."""
    own = files("rectify_widgets.cases") / "data" / folder.name
    for notice in ("LICENSE.txt", "NOTICE.txt"):
        if not (own / notice).is_file():
            continue
        with as_file(own / notice) as source:
            if source.resolve() != (folder / notice).resolve():
                shutil.copyfile(source, folder / notice)


def epochs(text: str) -> int:
    """A number of epochs on a command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, want at least 1")
    return int(text)


def print_figures(figures: Mapping[str, float]) -> None:
    """A line a figure."""
    for name, value in figures.items():
        text = f"{value:7.2f}" if name in UNITS else f"{100 * value:7.2f} %"
        print(f"{name.replace('_', ' '):34} {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0, or 2 where it was asked for what cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m rectify_widgets.cases.build",
        description="Rebuild the data and weights of a case from the files of its data set.",
    )
    parser.add_argument("case", choices=sorted(DEFINITIONS))
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="IDX files")
    out = Path("cases-data")
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"default: {out}")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--epochs", type=epochs, metavar="N", help="default: as for what ships")
    options = parser.parse_args(arguments)
    definition = DEFINITIONS[options.case]
    if options.epochs is not None:
        schedule = replace(definition.schedule, epochs=options.epochs)
        definition = replace(definition, schedule=schedule)
    try:
        figures = build(definition, options.data, options.out, seed=options.seed)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        parser.error(str(error))
    print_figures(figures)
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
