"""The comparison of rectification with other methods, from measuring to tables.

Imports this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rectify_widgets.engine.base.checks import check_int
from tests.benchmarks.plan import LAYER_PAIRS, SEEDS, Record, plan
from tests.benchmarks.records import read
from tests.benchmarks.report import write
from tests.benchmarks.runner import run
from tests.benchmarks.sources import Source
from tests.benchmarks.summary import Results
from tests.benchmarks.tables import Table
from tests.benchmarks.training import default_cache


def source(data: Path | None, cache: Path | None, seed: int, out: Path | None) -> Source:
    """The networks that ship, or those that the command line asks for."""
    check_int("network_seed", seed, low=0)
    if data is None:
        return Source()
    return Source(data, cache or (out or default_cache()) / "networks", seed)


def default_folder(networks: Source) -> Path:
    """Where the cells are kept unless told otherwise: a folder for each set of networks."""
    return default_cache() / "benchmarks" / networks.title.replace(" ", "-")


def measure(
    groups: Sequence[str],
    networks: Source,
    folder: Path,
    *,
    seeds: int = SEEDS,
    counts: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    layer_pairs: int = LAYER_PAIRS,
    limit: int | None = None,
    workers: int = 1,
    again: Sequence[str] = (),
) -> list[Record]:
    """Measure what a folder lacks of some groups of tables; see `plan.plan` and `runner.run`."""
    check_int("workers", workers, low=0)
    cells = plan(
        groups,
        seeds=seeds,
        counts=counts,
        methods=methods,
        only=only,
        layer_pairs=layer_pairs,
        limit=limit,
    )
    return run(cells, networks, folder, workers=workers, again=again)


def publish(folder: Path, *, limit: int | None = None) -> list[Table]:
    """Write the tables and the report of what a folder holds, without measuring anything.

    Raises:
        ValueError: there are no cells, or a damaged one.
    """
    records = [record for record in read(folder) if record["limit"] == limit]
    if not records:
        raise ValueError(
            f"out: {folder} holds no cells; measure some first, with `trojan`, `leakage` or `all`"
        )
    return write(Results(records, limit=limit), folder)
