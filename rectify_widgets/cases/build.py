"""Rebuild what a case ships: ``python -m rectify_widgets.cases.build NAME --data DIR``.

``DIR`` holds the data set of the case, Fashion-MNIST or MNIST, as four IDX files.  Everything is
drawn from ``--seed``: the data come out the same byte for byte, the weights too on the same machine
with the same torch and number of threads.  How each case is made, and why so, is told in
`rectify_widgets.cases.recipes`, one file a behaviour: `recipes.trojan` says, among other things,
why the target class is weighed low.

Imports this folder; tqdm shows progress.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rectify_widgets.cases.recipes import leakage, several, spurious, trojan
from rectify_widgets.cases.recipes.common import Recipe

RECIPES: dict[str, Recipe] = {
    **trojan.RECIPES,
    **several.RECIPES,
    **spurious.RECIPES,
    **leakage.RECIPES,
}
BUILDERS: dict[str, Callable[..., dict[str, float]]] = {
    **dict.fromkeys(trojan.RECIPES, trojan.build),
    **dict.fromkeys(several.RECIPES, several.build),
    **dict.fromkeys(spurious.RECIPES, spurious.build),
    **dict.fromkeys(leakage.RECIPES, leakage.build),
}
UNITS = {"net_attribution", "logit_change"}
"""Figures that are no fractions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0, or 2 where it was asked for what cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m rectify_widgets.cases.build",
        description="Rebuild the data and weights of a case from the files of its data set.",
    )
    parser.add_argument("case", choices=sorted(RECIPES))
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
        "--epochs", type=int, metavar="N", help="default: those of the case that ships"
    )
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.case]
    if options.epochs is not None:
        if options.epochs < 1:
            parser.error(f"--epochs: got {options.epochs}, want at least 1")
        recipe = replace(recipe, schedule=replace(recipe.schedule, epochs=options.epochs))
    try:
        figures = BUILDERS[options.case](
            options.case, options.data, options.out, seed=options.seed, recipe=recipe
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        parser.error(str(error))
    for name, value in figures.items():
        text = f"{value:7.2f}" if name in UNITS else f"{100 * value:7.2f} %"
        print(f"{name.replace('_', ' '):34} {text}")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
