"""Train a preset's network: ``python -m rectify_widgets.cases.vision train PRESET --root DIR ...``.

``list`` names the presets.  Imports this folder, the build's command and tqdm.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from rectify_widgets.cases.build import epochs, print_figures
from rectify_widgets.cases.vision import load, names, preset, train


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0, or 2 where it was asked for what cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m rectify_widgets.cases.vision",
        description="Networks with the unreliable behaviours of the paper, on your own data.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the presets")
    command = commands.add_parser("train", help="train a preset's network and write its weights")
    command.add_argument("preset", choices=names())
    command.add_argument("--root", type=Path, required=True, metavar="DIR", help="your copy")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="*.safetensors")
    command.add_argument("--start", type=Path, metavar="FILE", help="weights to begin from")
    command.add_argument("--epochs", type=epochs, metavar="N", help="default: the preset's")
    command.add_argument("--device", help="default: cuda where there is one, otherwise cpu")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    if options.command == "list":
        for name in names():
            print(f"{name:28} {preset(name).title}")
        return 0
    recipe = preset(options.preset)
    if options.epochs is not None:
        kind = "schedule" if options.start is None else "tuning"
        changed = replace(getattr(recipe, kind), epochs=options.epochs)
        recipe = replace(recipe, **{kind: changed})
    bar = tqdm(total=1000, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")

    def progress(fraction: float, message: str) -> None:
        bar.set_postfix_str(message, refresh=False)
        bar.update(round(1000 * fraction) - bar.n)

    try:
        model = train(
            recipe, options.root, options.out, start=options.start, device=options.device,
            seed=options.seed, progress=progress,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        parser.error(str(error))
    finally:
        bar.close()
    print(f"written to {options.out}")
    try:
        case = load(recipe, options.root, model=model)
    except ValueError as error:  # trained, but to no behaviour
        print(error)
        return 1
    print_figures(case.figures())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
