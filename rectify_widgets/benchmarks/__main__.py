"""``python -m rectify_widgets.benchmarks NAME``: every figure that the project quotes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from rectify_widgets.benchmarks.layers import measure_layers
from rectify_widgets.benchmarks.measure import shipped
from rectify_widgets.benchmarks.tables import Table
from rectify_widgets.benchmarks.trojan import (
    measure_ablation,
    measure_detection,
    measure_networks,
    measure_seconds,
    measure_trojan,
)
from rectify_widgets.benchmarks.widgets import measure_widgets
from rectify_widgets.engine.progress import Monitor

Benchmark = Callable[[argparse.Namespace, Monitor], Table]

BENCHMARKS: dict[str, tuple[int, str, Benchmark]] = {
    "trojan": (
        10,
        "the shipped case from one pair",
        lambda options, monitor: measure_trojan(shipped(), options.pairs, monitor),
    ),
    "layers": (
        10,
        "every ranking of layers against what their edits do",
        lambda options, monitor: measure_layers(shipped(), options.pairs, monitor),
    ),
    "ablation": (
        3,
        "direction × ridge × method × strategy",
        lambda options, monitor: measure_ablation(shipped(), options.pairs, monitor),
    ),
    "detection": (
        10,
        "finding references that carry the trigger",
        lambda options, monitor: measure_detection(shipped(), options.pairs, monitor),
    ),
    "seconds": (
        5,
        "time of a rectification by stage",
        lambda options, monitor: measure_seconds(shipped(), options.pairs, monitor),
    ),
    "networks": (
        3,
        "other networks and triggers (needs --data with MNIST as IDX files)",
        lambda options, monitor: measure_networks(
            options.data,
            options.cache,
            options.pairs,
            options.seed,
            monitor,
            only=options.only,
            budget=options.budget,
        ),
    ),
    "widgets": (
        5,
        "time to the new view, payloads and memory of the widgets, in a kernel (repeats, not pairs)",
        lambda options, monitor: measure_widgets(options.pairs, monitor),
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Run one benchmark and print its table; ``--out`` keeps it as Markdown and CSV."""
    lines = [
        f"  {name:<10} {what} ({pairs} pairs)" for name, (pairs, what, _) in BENCHMARKS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m rectify_widgets.benchmarks",
        description="Measure, and print a table:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*BENCHMARKS])
    parser.add_argument("--pairs", type=int, help="pairs to average over")
    parser.add_argument("--seed", type=int, default=0, help="of trained networks")
    parser.add_argument("--data", type=Path, help="folder of the four IDX files of MNIST")
    parser.add_argument("--cache", type=Path, help="where trained networks are kept")
    parser.add_argument("--only", help="networks: one cell, such as 'vit blend'")
    parser.add_argument("--budget", type=float, default=0.01, help="networks: max_degradation")
    parser.add_argument("--out", type=Path, help="folder for NAME.md and NAME.csv")
    options = parser.parse_args(arguments)
    pairs, _, run = BENCHMARKS[options.name]
    options.pairs = options.pairs or pairs
    if options.name == "networks" and options.data is None:
        parser.error("networks: --data DIR is missing, the folder of MNIST's four IDX files")
    with tqdm(total=100, bar_format="{l_bar}{bar}| {elapsed} {postfix}", leave=False) as bar:

        def show(fraction: float, message: str) -> None:
            bar.n = round(100 * fraction)
            bar.set_postfix_str(message)

        table = run(options, Monitor(show))
    print(table.markdown())
    if options.out is not None:
        table.save(options.out)


if __name__ == "__main__":
    main()
