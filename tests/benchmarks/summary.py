"""The tables of the comparison, made from the records of its runs with pandas.

Imports this folder's plan, tables, layers and verdicts.  Figures are means ± standard deviations
over seeds, in per cent and points; attributions and logits have no unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import pandas as pd
from pandas import DataFrame

from rectify_widgets.cases.definition import DEFINITIONS
from tests.benchmarks.layers import RANKINGS
from tests.benchmarks.plan import (
    BEFORE,
    EVERY,
    GROUPS,
    LAYERS,
    METHODS,
    OWN,
    Record,
    Run,
    pools,
)
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.verdicts import SUCCESS, Figures, compare, headline, lost

PER_CENT = 100.0
MB = 1e-6
NONE = "–"

OA = {"OA": "overall_accuracy", "OA_lost": "lost"}
COLUMNS = {
    "trojan": OA | {"ASR": SUCCESS, "corrupted_accuracy": "corrupted_accuracy"},
    "spurious": OA
    | {
        "bias": "spurious_bias",
        "pulled_in": "pulled_in",
        "recall_without": "recall_without",
        "recall_with": "recall_with",
        "worst_group": "worst_group_accuracy",
    },
    "leakage": OA
    | {
        "OA_without_block": "corrupted_accuracy",
        "net_attribution": "net_attribution",
        "share": "attribution_share",
        "logit_change": "logit_change",
    },
}
"""Headings of a group's table, and the figures below them; `columns` has those of several triggers."""
WITHOUT_UNIT = {"net_attribution", "logit_change"}
BLOCK = ["case", "pool", "n", "method"]
"""What the seeds of a row of a table have in common."""
JUDGED = ["tuning", "lost", "headline"]
"""What is worked out for each run that was measured."""
REST = dict.fromkeys(("seconds", "tuning_s", "peak_MB"), NONE)


def latest(records: Sequence[Record], networks: Mapping[str, str]) -> dict[Run, Record]:
    """Records by run, those of other networks than these left out.

    Args:
        records: as they were measured; later ones count.
        networks: fingerprints by case.
    """
    return {
        Run.of(record): record
        for record in records
        if networks.get(record["case"]) == record["network"]
    }


class Results:
    """What a folder of records holds, the newest networks alone.

    Attributes:
        source: what the records call the networks.
        limit: test images that were measured on.
        before: figures of the unrepaired network, by case.
        repairs: one row a run: the fields of `Run`, ``failure``, ``seconds`` (s), ``memory``
            (bytes), the figures of its case as fractions, ``tuning`` (whether options were chosen),
            ``lost`` and ``headline``, see `verdicts`.  Rows are in the order of pairs, methods and seeds; NaN where a run has no such value.
        rankings: one row for each pair of a case and ranking of layers: ``case``, ``seed`` (the
            pair), ``method``, ``regret`` (a fraction), ``spearman`` and ``layer``; a pair that
            failed has one row, with its ``failure`` alone.
    """

    def __init__(self, records: Sequence[Record], *, limit: int | None = None) -> None:
        self.source: str = records[-1]["source"] if records else "shipped"
        self.limit = limit
        networks = {record["case"]: record["network"] for record in records}
        runs = latest([record for record in records if record["limit"] == limit], networks)
        ordered = [runs[run] for run in sorted(runs, key=_place)]
        self.before: dict[str, Figures] = {
            one["case"]: one["figures"]
            for one in ordered
            if one["method"] == BEFORE and "figures" in one
        }
        repaired = [one for one in ordered if one["method"] in METHODS]
        fields = [*Run.__dataclass_fields__, "failure", "seconds", "memory", *JUDGED]
        figures = {name for one in repaired for name in one.get("figures", ())}
        self.repairs = DataFrame(
            [self._flat(one) for one in repaired], columns=[*fields, *sorted(figures)]
        )
        self._blocks: dict[Any, DataFrame] = dict(list(self.repairs.groupby(BLOCK, sort=False)))
        self.rankings = DataFrame(
            [
                {"case": one["case"], "seed": one["seed"], "method": method, **figures}
                for one in ordered
                if one["method"] == LAYERS
                for method, figures in one.get("layers", {None: one}).items()
            ],
            columns=["case", "seed", "method", "regret", "spearman", "layer", "failure"],
        )

    def _flat(self, record: Record) -> dict[str, Any]:
        figures, before = record.get("figures"), self.before.get(record["case"])
        if figures is None or before is None:
            return record
        judged = (
            Run.of(record).tunes,
            lost(figures, before),
            headline(record["case"], figures, before),
        )
        return {**record, **figures, **dict(zip(JUDGED, judged, strict=True))}

    def blocks(self, case: str, pool: str) -> list[DataFrame]:
        """The repairs of a case and pool, by number of pairs and method."""
        return [block for key, block in self._blocks.items() if key[:2] == (case, pool)]

    def block(self, case: str, pool: str, method: str, n: int) -> DataFrame:
        """The repairs of a case and pool by one method with ``n`` pairs, one row a seed."""
        return self._blocks.get((case, pool, n, method), self.repairs[:0])

    @cached_property
    def comparisons(self) -> dict[tuple[Any, ...], str]:
        """How `dynamic` does against each block of the same case, pool and n, by `BLOCK`."""
        comparisons: dict[tuple[Any, ...], str] = {}
        for (case, pool, n, method), block in self._blocks.items():
            own = self.block(case, pool, OWN[0], n).set_index("seed")
            if case in self.before and method != OWN[0]:
                text = compare(case, own, block.set_index("seed"), self.before[case])
                comparisons |= {} if text is None else {(case, pool, n, method): text}
        return comparisons


def _place(run: Run) -> tuple[int, int, int]:
    """Where a run stands in its table."""
    method = METHODS.index(run.method) if run.method in METHODS else -1
    return run.n, method, run.seed


def tables(results: Results) -> list[Table]:
    """One for each group that anything was measured of."""
    found = [_table(results, group) for group in GROUPS]
    if len(results.rankings):
        found.append(_layers(results))
    return [table for table in found if table.rows]


def columns(group: str, case: str) -> dict[str, str]:
    """Headings of a group's table, and the figures below them."""
    if group in {"visibility", "position"}:
        return OA | {f"ASR {trigger}": name for trigger, name in successes(case).items()}
    return COLUMNS[group]


def successes(case: str) -> dict[str, str]:
    """Names of the attack success rates of a Trojan by trigger, in the order of the case."""
    definition = DEFINITIONS[case]
    return {
        name: SUCCESS if name == definition.shown else f"{SUCCESS} ({name})"
        for name in definition.triggers
    }


def _unit(name: str) -> float:
    return 1.0 if name in WITHOUT_UNIT else PER_CENT


def _table(results: Results, group: str) -> Table:
    table = Table(group, _note(results, group))
    for case in GROUPS[group]:
        before = results.before.get(case)
        if before is None:
            continue
        shown = columns(group, case)
        unrepaired = {"lost": 0.0, **before}
        floor = before.get("clean_target_rate")
        for pool in pools(case):
            head = {"case": case} if pool == EVERY else {"case": case, "pairs": pool}
            table.add(
                **head, method=BEFORE, n=NONE, seeds=NONE,
                **{name: f"{_unit(key) * unrepaired[key]:.2f}" for name, key in shown.items()},
                **REST,
                remark="" if floor is None else f"clean target rate {PER_CENT * floor:.2f}",
            )  # fmt: skip
            for block in results.blocks(case, pool):
                first = block.iloc[0]
                measured = block.dropna(subset="lost")
                tuning = measured["tuning"].astype(bool)
                table.add(
                    **head, method=first["method"], n=int(first["n"]), seeds=len(block),
                    **{name: _spread(measured[key], _unit(key)) for name, key in shown.items()},
                    seconds=_spread(measured["seconds"][~tuning], digits=1),
                    tuning_s=_spread(measured["seconds"][tuning], digits=1),
                    peak_MB=_spread(measured["memory"][~tuning], MB, 0),
                    remark=_remark(results, block),
                )  # fmt: skip
    return table


def _remark(results: Results, block: DataFrame) -> str:
    parts = []
    failures = block["failure"].dropna()
    if len(failures):
        parts.append(f"{len(failures)} of {len(block)} failed: {'; '.join(failures.unique())}")
    parts.append(results.comparisons.get(tuple(block.iloc[0][BLOCK]), ""))
    return ". ".join(filter(None, parts)).replace("\n", " ").replace("|", "/")


def _spread(values: pd.Series[float], unit: float = 1.0, digits: int = 2) -> str:
    """Mean ± deviation; the value where there is but one, and a dash where there is none."""
    values = values.dropna()
    if len(values) < 2:
        return f"{unit * values.iloc[0]:.{digits}f}" if len(values) else NONE
    return spread(values, unit, digits)


INTRODUCTIONS = {
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
}


def _note(results: Results, group: str) -> str:
    """What a reader of the table alone has to know."""
    runs = results.repairs[results.repairs["case"].isin(GROUPS[group])]
    seeds = int(runs.groupby(BLOCK).size().max()) if len(runs) else 0
    counts = sorted(map(int, runs["n"].unique()))
    tests = "the whole test set" if results.limit is None else f"{results.limit} test images"
    nested = (
        "  Draws of n = 20 are from 20 pairs, that is, of all: seeds differ by the methods' random "
        "choices alone."
        if 20 in counts
        else ""
    )
    return (
        f"{INTRODUCTIONS.get(group, '')}Networks: {results.source}; {tests}; mean ± standard "
        f"deviation over up to {seeds} seeds (pairs drawn by the seed, the same for all methods), per "
        "cent and points.  'closed form': no edit is refined; when dynamic refines one was settled "
        "with test figures of one pair in view, how it does by the gap left on references, and in how "
        "many steps by the validation split.  All peers are re-implementations, tuned on the "
        "validation split once for each case and n, with the pairs of seed 0; other seeds take these "
        "options over.  seconds (processor time of one thread) and peak_MB (resident memory beyond "
        "what was there) are of a call without tuning; tuning_s is the call with it.  Remarks compare "
        "with dynamic at the same n; ties are what the seeds cannot tell apart "
        f"(`benchmarks/verdicts.py`).{nested}\n\n"
        f"Command: `{command(results, group, counts, seeds)}`"
    )


def command(results: Results, group: str, counts: Sequence[int], seeds: int) -> str:
    """The command that makes the table again."""
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


ALL_CASES = "all"


def _layers(results: Results) -> Table:
    ranked = results.rankings
    failed = ranked.dropna(subset="failure")
    pairs = int(ranked.groupby("case")["seed"].nunique().max())
    table = Table(
        LAYERS,
        "One edit of the layer that each method ranks first, from one pair.  Regret: corrupted "
        "accuracy (points) after the oracle's edit minus after the chosen one; spearman: rank "
        f"correlation of the ranking with that accuracy.  Networks: {results.source}.\n\n"
        + "".join(
            f"Failed: {case}, pair {pair}: {why}\n\n"
            for case, pair, why in zip(
                failed["case"], failed["seed"], failed["failure"], strict=True
            )
        )
        + f"Command: `{command(results, LAYERS, (), pairs)}`",
    )
    for case in (*ranked["case"].unique(), ALL_CASES):
        for method, what in RANKINGS.items():
            mine = ranked[ranked["method"] == method]
            mine = mine if case == ALL_CASES else mine[mine["case"] == case]
            chosen = mine.groupby("layer", sort=False).size().items()
            table.add(
                case=case,
                method=method,
                pairs=len(mine),
                within_5_points=f"{(mine['regret'] <= 0.05).sum()} of {len(mine)}",
                regret=_spread(mine["regret"], PER_CENT),
                spearman=_spread(mine["spearman"]),
                chosen=NONE
                if case == ALL_CASES
                else ", ".join(f"{layer} ×{count}" for layer, count in chosen),
                what=what,
            )
    return table
