"""Train a preset's network: ``python -m rectify_widgets.cases.vision train PRESET --root DIR ...``.

``list`` names the presets.  A training that was stopped goes on where the same command is given
again.  Imports this folder; tqdm shows progress.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rectify_widgets.cases.vision import load, names, preset, train
from rectify_widgets.cases.vision.loading import WORKERS


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
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="weights, *.safetensors"
    )
    command.add_argument(
        "--start", type=Path, metavar="FILE", help="weights to begin from (default: from scratch)"
    )
    command.add_argument("--epochs", type=int, metavar="N", help="default: the preset's")
    command.add_argument("--batch-size", type=int, metavar="N", help="default: the preset's")
    command.add_argument("--device", help="default: cuda where there is one, else cpu")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.add_argument(
        "--workers", type=int, default=WORKERS, metavar="N", help="threads that decode pictures"
    )
    options = parser.parse_args(arguments)
    if options.command == "list":
        for name in names():
            _say(f"{name:28} {preset(name).title}")
        return 0
    try:
        with _bar("training") as progress:
            model = train(
                options.preset,
                options.root,
                options.out,
                start=options.start,
                epochs=options.epochs,
                batch_size=options.batch_size,
                device=options.device,
                seed=options.seed,
                workers=options.workers,
                progress=progress,
            )
    except (OSError, TypeError, ValueError, RuntimeError, ImportError) as error:
        parser.error(str(error))
    _say(f"written to {options.out}")
    try:
        with _bar("measuring") as progress:
            case = load(
                options.preset,
                options.root,
                model=model,
                normalize=False,
                workers=options.workers,
                progress=progress,
            )
    except ValueError as error:  # trained, but to no behaviour
        _say(str(error))
        return 1
    for figure, value in case.figures().items():
        _say(f"{figure.replace('_', ' '):42} {100 * value:7.2f} %")
    return 0


def _say(line: str) -> None:
    print(line)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar in thousandths, and the hook that moves it."""
    from tqdm import tqdm

    with tqdm(
        total=1000, desc=title, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    ) as bar:

        def progress(fraction: float, message: str) -> None:
            bar.set_postfix_str(message, refresh=False)
            bar.update(round(1000 * fraction) - bar.n)

        yield progress


if __name__ == "__main__":
    raise SystemExit(main())
