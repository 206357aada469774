"""``python -m tests.benchmarks NAME``: every figure that the project quotes."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from rectify_widgets.engine.base.checks import check_int
from rectify_widgets.engine.base.progress import Monitor
from tests.benchmarks import runner
from tests.benchmarks.carriers import measure_carriers
from tests.benchmarks.carton import measure_carton
from tests.benchmarks.cleanse import measure_cleanse
from tests.benchmarks.failures import measure_failures
from tests.benchmarks.first_edit import measure_first_edit
from tests.benchmarks.heads import measure_heads
from tests.benchmarks.memory import measure_memory
from tests.benchmarks.pace import measure_pace
from tests.benchmarks.plan import COUNTS, GROUPS, LAYER_PAIRS, LAYERS, METHODS, SEEDS, plan
from tests.benchmarks.records import read
from tests.benchmarks.report import write
from tests.benchmarks.reveal import measure_reveal
from tests.benchmarks.reveal_large import measure_reveal_large
from tests.benchmarks.reveal_peers import measure_reveal_peers
from tests.benchmarks.scale import calculate
from tests.benchmarks.several import measure_several
from tests.benchmarks.sources import Source
from tests.benchmarks.speed import NAMES, measure_speed
from tests.benchmarks.summary import Results
from tests.benchmarks.tables import Table
from tests.benchmarks.training import default_cache
from tests.benchmarks.trojan import (
    measure_ablation,
    measure_detection,
    measure_networks,
    measure_seconds,
)
from tests.benchmarks.widgets import measure_widgets
from tests.benchmarks.zoo.attacks import ATTACKS
from tests.benchmarks.zoo.measure import SHOWN, measure_zoo
from tests.benchmarks.zoo.training import NETWORKS

Benchmark = Callable[[Namespace, Monitor], Table | list[Table]]

ALL, REPORT = "all", "report"
COMPARED = {
    "trojan": "the patch, a blend, all-to-all and clean-label Trojans",
    "visibility": "a Trojan of several visibilities, repaired from one of them",
    "position": "a Trojan at several places, repaired from one of them",
    "spurious": "mild and severe spurious correlation",
    "leakage": "feature leakage on BlockMNIST",
    LAYERS: "every ranking of layers against what their edits do, on all Trojans",
    ALL: "all of these",
    REPORT: "the tables of what was measured so far; measures nothing",
}
BENCHMARKS: dict[str, tuple[int, str, Benchmark]] = {
    "ablation": (3, "direction × ridge × method × strategy", measure_ablation),
    "detection": (10, "finding references that carry the trigger", measure_detection),
    "seconds": (5, "time of a rectification by stage", measure_seconds),
    "networks": (3, "other networks and triggers (needs --data with MNIST as IDX files)",
                 measure_networks),
    "several": (SEEDS, "two behaviours in one network, repaired one after the other (--seeds)",
                measure_several),
    "failures": (SEEDS, "where rectification fails, what it says, what then helps (--seeds)",
                 measure_failures),
    "heads": (SEEDS, "one label and many, beside the same networks with classes (--seeds)",
              measure_heads),
    "cleanse": (SEEDS, "repairs from true and suggested masks instead of pairs (--seeds, --cases)",
                measure_cleanse),
    "carton": (10, "a shortcut of an ImageNet network, taken out from one photograph (--methods)",
               measure_carton),
    "zoo": (0, "eleven attacks, patches and others, on three networks (needs --data; --seeds)",
            measure_zoo),
    "carriers": (0, "backdoors that no picture shows, and healthy networks (--data; --seeds, --cases)",
                 measure_carriers),
    "reveal": (10, "unmarked carriers among references, and healthy networks (draws, not pairs; --data)",
               measure_reveal),
    "reveal-peers": (3, "the same beside what others use (needs --data; draws, not pairs; --networks)",
                     measure_reveal_peers),
    "reveal-large": (1, "carriers among photographs of 224 × 224 pixels, time and memory (draws, not pairs)",
                     measure_reveal_large),
    "widgets": (5, "time to the new view, payloads and memory of the widgets (repeats, not pairs)",
                lambda options, monitor: measure_widgets(options.pairs, monitor)),
    "pace": (1, "times that progress bars promise, over those that it took (--cases)", measure_pace),
    "speed": (3, "ratios side by side, distance to the physical limit, profiles (repeats, not pairs)",
              measure_speed),
    "memory": (1, "peaks of memory against the estimated ones", measure_memory),
    "first-edit": (1, "time and memory of the first edit at 224 × 224 pixels (needs torchvision)",
                   measure_first_edit),
    "scale": (1, "what ImageNet and a large transformer should cost on eight GPUs, calculated",
              lambda *_: calculate()),
}  # fmt: skip
"""Pairs to average over, what it measures, and the function."""


def main(arguments: list[str] | None = None) -> None:
    """Run one benchmark and print its tables; ``--out`` keeps them as Markdown and CSV."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.name not in COMPARED:
        _measure(options)
        return
    try:
        _compare(options)
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        parser.error(str(error))


def _measure(options: Namespace) -> None:
    pairs, _, measure = BENCHMARKS[options.name]
    options.pairs = options.pairs or pairs
    with tqdm(total=100, bar_format="{l_bar}{bar}| {elapsed} {postfix}", leave=False) as bar:

        def show(fraction: float, message: str) -> None:
            bar.n = round(100 * fraction)
            bar.set_postfix_str(message)

        made = measure(options, Monitor(show))
    for table in made if isinstance(made, list) else [made]:
        print(table.markdown())
        if options.out is not None:
            table.save(options.out)


def networks(options: Namespace) -> Source:
    """The networks that ship, or those that the command line asks for."""
    seed = check_int("network_seed", options.network_seed, low=0)
    if options.data is None:
        return Source()
    cache = options.cache or (options.out or default_cache()) / "networks"
    return Source(options.data, cache, seed)


def _compare(options: Namespace) -> None:
    """Measure what is left of some tables of the comparison, and write them."""
    groups = (*GROUPS, LAYERS) if options.name == ALL else (options.name,)
    source = networks(options)
    folder = options.out or default_cache() / "benchmarks" / source.title.replace(" ", "-")
    if options.name != REPORT:
        runs = plan(
            groups,
            seeds=options.seeds,
            counts=options.n,
            methods=options.methods,
            only=options.cases,
            layer_pairs=LAYER_PAIRS if options.pairs is None else options.pairs,
            limit=options.limit,
        )
        workers = check_int("workers", options.workers, low=1)
        try:
            runner.measure_all(runs, source, folder, workers=workers, again=options.again)
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on, `report` shows what {folder} has by now")
            raise SystemExit(130) from None
    records = [record for record in read(folder) if record["limit"] == options.limit]
    if not records:
        raise ValueError(
            f"out: {folder} holds no runs; measure some first, with `trojan`, `leakage` or `all`"
        )
    for table in write(Results(records, limit=options.limit), folder):
        if options.name in {ALL, REPORT} or table.name in {*groups, "targets"}:
            print(table.markdown())
    print(f"written to {folder}")


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<10} {what}" for name, what in COMPARED.items()]
    lines += ["", "and, one table each:"]
    lines += [
        f"  {name:<10} {what} ({pairs} pairs)" for name, (pairs, what, _) in BENCHMARKS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure, and print tables.  Compare rectification with other methods:\n"
        + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*COMPARED, *BENCHMARKS])
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="folder for the tables; those of the comparison "
        "and what they are made of lie in ~/.cache/rectify_widgets/benchmarks by default")  # fmt: skip
    add("--data", type=Path, metavar="DIR", help="full data sets: the folders fashion-mnist and "
        "mnist, or one data set, as four IDX files; other networks than those that ship")  # fmt: skip
    add("--cache", type=Path, metavar="DIR", help="where trained networks are kept")
    add("--network-seed", type=int, default=0, metavar="S", help="of trained networks")
    add("--pairs", type=int, metavar="N", help=f"pairs to average over ({LAYERS}: {LAYER_PAIRS})")
    group = parser.add_argument_group("comparison")
    add = group.add_argument
    add("--seeds", type=int, default=SEEDS, metavar="N", help="seeds (default: %(default)s)")
    add("--n", type=int, nargs="+", metavar="N", help="numbers of pairs, in the order in which they "
        f"are measured (default: {' '.join(map(str, COUNTS))}; visibility, position: 1)")  # fmt: skip
    add("--cases", nargs="+", metavar="NAME", help="measure some cases alone")
    add("--methods", nargs="+", metavar="NAME", help=f"of {', '.join(METHODS)}")
    add("--workers", type=int, default=1, metavar="N", help="processes, of one thread each; 1 "
        "measures in this one (default: %(default)s)")  # fmt: skip
    add("--again", nargs="+", default=(), metavar="NAME", help="methods to measure again")
    add("--limit", type=int, help=argparse.SUPPRESS)  # test images, for tests
    add = parser.add_argument_group("zoo").add_argument
    add("--attacks", nargs="+", metavar="NAME", help=f"of {', '.join(ATTACKS)}")
    add("--networks", nargs="+", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    add("--shown", nargs="+", metavar="WHAT", help=f"what a method is given: of {', '.join(SHOWN)}")
    add("--colour", action="store_true", help="on tinted images")
    group = parser.add_argument_group("networks")
    group.add_argument("--only", nargs="+", metavar="NAME", help="one pair, such as 'vit blend'; "
        f"for speed, some of {', '.join(NAMES)}; for memory, networks or calls; for first-edit, networks")  # fmt: skip
    group.add_argument("--budget", type=float, default=0.01, help="max_degradation")
    add = parser.add_argument_group("speed and memory").add_argument
    add("--repeats", type=int, metavar="N", help="runs of each task, in turns (default: 3)")
    add("--device", help="such as cpu or cuda (default: cuda where there is one)")
    add("--threads", type=int, default=2, metavar="N", help="of torch (default: %(default)s)")
    add("--whole", action="store_true", help="time the whole fine-tuning epoch, not some batches")
    add("--references", type=int, default=16, metavar="N", help="of memory (default: %(default)s)")
    add("--most-memory", type=float, default=12.0, metavar="GB", help="a process of the memory "
        "benchmark may take (default: %(default)s)")  # fmt: skip
    add("--share", type=float, metavar="X", help="measure memory also with a memory_limit of this "
        "share of the estimated peak")  # fmt: skip
    return parser


if __name__ == "__main__":
    main()
