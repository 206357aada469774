"""The tables of the comparison, made from the records of its cells.

Imports this folder's plan, tables, layers and verdicts.  Figures are means ± standard deviations
over seeds, in per cent and points; attributions and logits have no unit.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from rectify_widgets.cases.definition import DEFINITIONS
from tests.benchmarks.layers import METHODS as RANKINGS
from tests.benchmarks.plan import (
    BEFORE,
    EVERY,
    GROUPS,
    LAYERS,
    OWN,
    PEERS,
    Cell,
    Record,
    pools,
)
from tests.benchmarks.runner import known
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.verdicts import SUCCESS, Comparison, Figures, compare, lost

PER_CENT = 100.0
MB = 1e-6
NONE = "–"
METHODS = (*OWN, *PEERS)

Column = tuple[str, Callable[[Figures, Figures], float], float]
"""Heading, value from the figures after and before, and what it is multiplied with."""


@dataclass(frozen=True)
class Block:
    """All cells of a case, a pool, a method and a number of pairs, by seed."""

    case: str
    pool: str
    method: str
    n: int
    records: Mapping[int, Record] = field(default_factory=dict)

    @property
    def figures(self) -> dict[int, Figures]:
        """Figures by seed, failures left out."""
        return {seed: r["figures"] for seed, r in self.records.items() if "figures" in r}

    @property
    def failures(self) -> list[str]:
        """Why cells failed."""
        return [record["failure"] for record in self.records.values() if "failure" in record]

    def values(self, name: str, *, tuning: bool) -> list[float]:
        """``"seconds"`` or ``"memory"`` of the cells that chose their options, or of the others."""
        return [
            record[name]
            for seed, record in self.records.items()
            if record.get(name) is not None
            and Cell.of(record).tunes == tuning
            and (seed in self.figures)
        ]


class Results:
    """What a folder of cells holds, the newest networks alone."""

    def __init__(self, records: Sequence[Record], *, limit: int | None = None) -> None:
        self.source = records[-1]["source"] if records else "shipped"
        networks = {record["case"]: record["network"] for record in records}
        cells = known([r for r in records if r["limit"] == limit], networks)
        self.limit = limit
        self.before: dict[str, Figures] = {}
        self.layers: dict[str, dict[int, Record]] = {}
        found: dict[tuple[str, str, str, int], dict[int, Record]] = {}
        for cell, record in sorted(cells.items(), key=lambda item: item[0].seed):
            if cell.method == BEFORE:
                if "figures" in record:
                    self.before[cell.case] = record["figures"]
            elif cell.method == LAYERS:
                self.layers.setdefault(cell.case, {})[cell.seed] = record
            else:
                key = (cell.case, cell.pool, cell.method, cell.n)
                found.setdefault(key, {})[cell.seed] = record
        self._blocks = {key: Block(*key, by_seed) for key, by_seed in found.items()}

    def block(self, case: str, pool: str, method: str, n: int) -> Block:
        """A block, empty where nothing was measured."""
        key = (case, pool, method, n)
        return self._blocks.get(key, Block(*key))

    def counts(self, case: str, pool: str) -> list[int]:
        """Numbers of pairs that were measured."""
        return sorted({n for one, other, _, n in self._blocks if (one, other) == (case, pool)})

    def blocks(self, case: str, pool: str) -> list[Block]:
        """What was measured, by number of pairs and method."""
        found = [block for key, block in self._blocks.items() if key[:2] == (case, pool)]
        return sorted(found, key=lambda block: (block.n, METHODS.index(block.method)))

    def compared(self, block: Block) -> Comparison | None:
        """How `dynamic` does against a block of the same case, pool and n."""
        before = self.before.get(block.case)
        own = self.block(block.case, block.pool, OWN[0], block.n)
        if before is None or block.method == OWN[0]:
            return None
        return compare(block.case, own.figures, block.figures, before)


def tables(results: Results) -> list[Table]:
    """One for each group that anything was measured of."""
    found = [_table(results, group) for group in GROUPS]
    if results.layers:
        found.append(_layers(results))
    return [table for table in found if table.rows]


def columns(group: str, case: str) -> list[Column]:
    """The figures of a group's table."""

    def plain(heading: str, name: str, unit: float = PER_CENT) -> Column:
        return heading, lambda after, _: after[name], unit

    first = [plain("OA", "overall_accuracy"), ("OA_lost", lost, PER_CENT)]
    if group in {"visibility", "position"}:
        return [*first, *(plain(f"ASR {one}", name) for one, name in successes(case).items())]
    if group == "spurious":
        return [
            *first,
            plain("bias", "spurious_bias"),
            plain("pulled_in", "pulled_in"),
            plain("recall_without", "recall_without"),
            plain("recall_with", "recall_with"),
            plain("worst_group", "worst_group_accuracy"),
        ]
    if group == "leakage":
        return [
            *first,
            plain("OA_without_block", "corrupted_accuracy"),
            plain("net_attribution", "net_attribution", 1.0),
            plain("share", "attribution_share"),
            plain("logit_change", "logit_change", 1.0),
        ]
    return [*first, plain("ASR", SUCCESS), plain("corrupted_accuracy", "corrupted_accuracy")]


def successes(case: str) -> dict[str, str]:
    """Names of the attack success rates of a Trojan by trigger, in the order of the case."""
    definition = DEFINITIONS[case]
    return {
        name: SUCCESS if name == definition.shown else f"{SUCCESS} ({name})"
        for name in definition.triggers
    }


def _table(results: Results, group: str) -> Table:
    table = Table(group, _note(results, group))
    for case in GROUPS[group]:
        before = results.before.get(case)
        if before is None:
            continue
        shown = columns(group, case)
        for pool in pools(case):
            head = {"case": case} if pool == EVERY else {"case": case, "pairs": pool}
            cells = {name: f"{unit * value(before, before):.2f}" for name, value, unit in shown}
            rest = dict.fromkeys(("seconds", "tuning_s", "peak_MB"), NONE)
            table.add(
                **head, method=BEFORE, n=NONE, seeds=NONE, **cells, **rest, remark=_floor(before)
            )
            for block in results.blocks(case, pool):
                table.add(
                    **head,
                    method=block.method,
                    n=block.n,
                    seeds=len(block.records),
                    **{
                        name: _spread((value(one, before) for one in block.figures.values()), unit)
                        for name, value, unit in shown
                    },
                    seconds=_spread(block.values("seconds", tuning=False), 1.0, 1),
                    tuning_s=_spread(block.values("seconds", tuning=True), 1.0, 1, alone=True),
                    peak_MB=_spread(block.values("memory", tuning=False), MB, 0),
                    remark=_remark(results, block),
                )
    return table


def _floor(before: Figures) -> str:
    rate = before.get("clean_target_rate")
    return "" if rate is None else f"clean target rate {PER_CENT * rate:.2f}"


def _remark(results: Results, block: Block) -> str:
    parts = []
    if block.failures:
        kinds = "; ".join(dict.fromkeys(block.failures))
        parts.append(f"{len(block.failures)} of {len(block.records)} failed: {kinds}")
    compared = results.compared(block)
    if compared is not None:
        parts.append(compared.text)
    return ". ".join(parts).replace("\n", " ").replace("|", "/")


def _spread(values: Iterable[float], unit: float, digits: int = 2, *, alone: bool = False) -> str:
    """Mean ± deviation; the value where there is but one, and a dash where there is none."""
    known_values = list(values)
    if not known_values:
        return NONE
    if alone or len(known_values) == 1:
        return f"{unit * statistics.fmean(known_values):.{digits}f}"
    return spread(known_values, unit, digits)


def _note(results: Results, group: str) -> str:
    """What a reader of the table alone has to know."""
    every = [
        block
        for case in GROUPS[group]
        for pool in pools(case)
        for block in results.blocks(case, pool)
    ]
    seeds = max((len(block.records) for block in every), default=0)
    counts = sorted({block.n for block in every})
    shown = {
        "visibility": "Repaired from visibility 0.5, measured on all.  ",
        "position": "Repaired from the bottom right, measured on all; 'everywhere': from the same "
        "pairs with their patch put in every place where it works (`find_places`, whose least share "
        "was chosen when test figures of three seeds were known), and again in the places where the "
        "result still gives a tenth of the references another class, until there are none or "
        "three times are over (the tenth was chosen on the validation split).  ",
        "spurious": "Bias: recall with the artefact minus recall without.  Pairs of the affected "
        "class are what a user who can look would choose.  'careful': max_degradation=0.003, so that "
        "no class may lose more than 1.5 points of the references; the figure was chosen when test "
        "figures of three seeds were known.  ",
        "leakage": "OA_without_block: accuracy without the label-free block; share: of absolute "
        "attribution that lies on it.  'to the end': target_gap=0, which goes on until nothing helps.  ",
    }.get(group, "")
    tests = "the whole test set" if results.limit is None else f"{results.limit} test images"
    nested = (
        "  Draws of n = 20 are from 20 pairs, that is, of all: seeds differ by the methods' random "
        "choices alone."
        if 20 in counts
        else ""
    )
    return (
        f"{shown}Networks: {results.source}; {tests}; mean ± standard deviation over up to {seeds} "
        "seeds (pairs drawn by the seed, the same for all methods), per cent and points.  'closed "
        "form': no edit is refined; when dynamic refines one was settled with test figures of one pair "
        "in view, how it does by the gap left on references, and in how many steps by the validation "
        "split.  All peers are re-implementations, tuned on the validation split once for each case "
        "and n, with the pairs of seed 0; other seeds take these options over.  seconds (processor time of "
        "one thread) and peak_MB (resident memory beyond what was there) are of a call without "
        "tuning; tuning_s is the call with it.  Remarks compare with dynamic at the same n; ties are what the seeds cannot "
        f"tell apart (`benchmarks/verdicts.py`).{nested}\n\n"
        f"Command: `{command(results, group, counts, seeds)}`"
    )


def command(results: Results, group: str, counts: Sequence[int], seeds: int) -> str:
    """What makes the table anew."""
    parts = ["python -m tests.benchmarks", group]
    if results.source != "shipped":
        parts += ["--data DIR", f"--network-seed {results.source.rpartition(' ')[2]}"]
    if group == LAYERS:
        parts.append(f"--pairs {seeds}")
    else:
        parts += [f"--seeds {seeds}", f"--n {' '.join(map(str, counts))}"]
    if results.limit is not None:
        parts.append(f"--limit {results.limit}")
    return " ".join(parts)


# -- layers ---------------------------------------------------------------------------------------

ALL_CASES = "all"


def ranked(results: Results, case: str) -> list[Mapping[str, Mapping[str, float]]]:
    """Regret, correlation and layer by method, one for each pair of a case, or of all cases."""
    chosen = results.layers if case == ALL_CASES else {case: results.layers.get(case, {})}
    return [
        record["layers"]
        for by_pair in chosen.values()
        for record in by_pair.values()
        if "layers" in record
    ]


def _layers(results: Results) -> Table:
    pairs = max(len(by_pair) for by_pair in results.layers.values())
    failed = [
        f"{case}, pair {pair}: {record['failure']}"
        for case, by_pair in results.layers.items()
        for pair, record in by_pair.items()
        if "failure" in record
    ]
    table = Table(
        LAYERS,
        "One edit of the layer that each method ranks first, from one pair.  Regret: corrupted "
        "accuracy (points) after the oracle's edit minus after the chosen one; spearman: rank "
        f"correlation of the ranking with that accuracy.  Networks: {results.source}.\n\n"
        + "".join(f"Failed: {one}\n\n" for one in failed)
        + f"Command: `{command(results, LAYERS, (), pairs)}`",
    )
    for case in (*results.layers, ALL_CASES):
        found = ranked(results, case)
        for method, what in RANKINGS.items():
            mine = [one[method] for one in found]
            regrets = [one["regret"] for one in mine]
            layers = [str(one["layer"]) for one in mine]
            table.add(
                case=case,
                method=method,
                pairs=len(mine),
                within_5_points=f"{sum(regret <= 0.05 for regret in regrets)} of {len(mine)}",
                regret=_spread(regrets, PER_CENT),
                spearman=_spread((one["spearman"] for one in mine), 1.0),
                chosen=NONE if case == ALL_CASES else _counted(layers),
                what=what,
            )
    return table


def _counted(names: Sequence[str]) -> str:
    return ", ".join(
        f"{name} ×{len(list(same))}" for name, same in groupby(sorted(names, key=names.index))
    )
