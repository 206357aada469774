"""The targets of the comparison, measured: the numbers stand here, the verdicts are computed.

Imports this folder's plan, summary, tables and verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import pandas as pd
from pandas import DataFrame

from tests.benchmarks.plan import (
    AFFECTED,
    CAREFUL,
    EVERY,
    EVERYWHERE,
    GROUPS,
    LAYER_CASES,
    OWN,
    PEERS,
    TO_THE_END,
    pools,
)
from tests.benchmarks.summary import NONE, Results, successes
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.verdicts import SUCCESS, WINS, Figures, tally

MOST, LEAST = "≤", "≥"
YES, NO, UNKNOWN, PARTLY = "yes", "no", "not measured", "partly measured"

DEFAULT, PAPERS = "edit-attribution", "projection"
"""Rankings of layers."""

Value: TypeAlias = Callable[[DataFrame, Figures], "pd.Series[float]"]
"""A figure by seed, from those after a repair and before."""


class Target(NamedTuple):
    """A bound on the mean over seeds of one figure of a method of our own.

    Attributes:
        case, n: where.
        what: the figure, for people.
        sign: `MOST` or `LEAST`.
        bound: a fraction.
        value: the figure.
        method: `dynamic`, or another of `OWN`.
    """

    case: str
    n: int
    what: str
    sign: str
    bound: float
    value: Value
    method: str = OWN[0]


def _after(name: str) -> Value:
    return lambda after, _: after[name]


def _cut(name: str) -> Value:
    """By what share an absolute figure has fallen."""
    return lambda after, before: 1.0 - after[name].abs() / max(abs(before[name]), 1e-12)


def _fallen(name: str) -> Value:
    return lambda after, before: before[name] - after[name]


def _loss(case: str, n: int, bound: float, method: str = OWN[0]) -> Target:
    return Target(case, n, "OA loss", MOST, bound, _after("lost"), method)


def targets() -> Iterator[Target]:
    """Those on figures, in the order of the table."""
    for n, bound in ((1, 0.010), (20, 0.002)):
        yield Target("trojan", n, "ASR", MOST, bound, _after(SUCCESS))
        yield _loss("trojan", n, 0.001)
    for case, method in (
        ("trojan-visibility", OWN[0]),
        ("trojan-position", OWN[0]),
        ("trojan-position", EVERYWHERE),
    ):
        for trigger, name in successes(case).items():
            yield Target(case, 1, f"ASR, {trigger}", MOST, 0.05, _after(name), method)
        yield _loss(case, 1, 0.01, method)
    blend = "trojan-blend"
    yield Target(blend, 1, "ASR", MOST, 0.012, _after(SUCCESS))
    yield _loss(blend, 1, 0.004)
    yield Target(blend, 1, "corrupted accuracy", LEAST, 0.95, _after("corrupted_accuracy"))
    for method in (OWN[0], CAREFUL):
        yield from _spurious(method)
    for method in (OWN[0], TO_THE_END):
        yield from _leakage(method)


def _spurious(method: str) -> Iterator[Target]:
    mild, severe, cut = "spurious-mild", "spurious-severe", _cut("spurious_bias")
    for n, bound in ((1, 0.70), (20, 0.95)):
        yield Target(mild, n, "bias cut by", LEAST, bound, cut, method)
        yield _loss(mild, n, 0.003, method)
    for n, bound, pulled in ((1, 0.50, 0.06), (10, 0.75, 0.03)):
        yield Target(severe, n, "bias cut by", LEAST, bound, cut, method)
        yield Target(severe, n, "pulled in", MOST, pulled, _after("pulled_in"), method)
        yield _loss(severe, n, 0.01, method)
        recall = _fallen("recall_without")
        yield Target(severe, n, "loss of recall without the artefact", MOST, 0.05, recall, method)


def _leakage(method: str) -> Iterator[Target]:
    leak = "leakage"
    yield Target(leak, 1, "net attribution cut by", LEAST, 0.75, _cut("net_attribution"), method)
    yield Target(leak, 1, "logit change cut by", LEAST, 0.80, _cut("logit_change"), method)
    without = _after("corrupted_accuracy")
    yield Target(leak, 1, "accuracy without the block", LEAST, 0.96, without, method)
    yield _loss(leak, 1, 0.003, method)


def target_table(results: Results) -> Table:
    """Each target, what was measured, and whether it is met."""
    table = Table(
        "targets",
        "What the comparison is to show: means over seeds of `dynamic` (pairs of the affected class "
        "where it matters), per cent and points.  A method is beaten where the headline figure is "
        "lower and the OA loss not larger, see `benchmarks/verdicts.py`; a tie is no win.  Networks: "
        f"{results.source}.",
    )
    for target in targets():
        _add_figure(table, results, target)
    for cases in GROUPS.values():
        for case in cases:
            _add_wins(table, results, case)
    _add_layers(table, results)
    return table


def _add_figure(table: Table, results: Results, target: Target) -> None:
    case, bound = target.case, target.bound
    before = results.before.get(case, {})
    block = results.block(case, pools(case)[0], target.method, target.n).dropna(subset="lost")
    values = target.value(block, before) if len(block) else block["lost"]
    met = UNKNOWN
    if len(values):
        mean = values.mean()
        met = YES if (mean <= bound if target.sign == MOST else mean >= bound) else NO
    table.add(
        case=case if target.method == OWN[0] else f"{case} ({target.method})",
        n=target.n,
        target=f"{target.what} {target.sign} {100 * bound:.1f}",
        measured=spread(values, 100.0) if len(values) else NONE,
        seeds=len(values),
        met=met,
        remark=_context(target.what, before) if before else "",
    )


def _context(what: str, before: Mapping[str, float]) -> str:
    """What bounds the figure whatever a repair does."""
    if what.startswith("ASR"):
        return f"clean target rate before {100 * before['clean_target_rate']:.2f}"
    if what in {"corrupted accuracy", "accuracy without the block"}:
        return f"OA before {100 * before['overall_accuracy']:.2f}"
    return f"before {100 * before['spurious_bias']:.2f}" if what.startswith("bias") else ""


def _add_wins(table: Table, results: Results, case: str) -> None:
    """Whether `dynamic` beats static, and every peer, at every n that was measured."""
    for pool in pools(case):
        for what, methods in (("beats static", OWN[1:2]), ("beats every peer", PEERS)):
            blocks = [one for one in results.blocks(case, pool) if one["method"].iloc[0] in methods]
            counts = sorted({int(block["n"].iloc[0]) for block in blocks})
            failed = sum(bool(block["failure"].notna().all()) for block in blocks)
            verdicts = tally(
                text
                for (*place, _, method), text in results.comparisons.items()
                if place == [case, pool] and method in methods
            )
            remark = [] if pool in {EVERY, AFFECTED} else [f"pairs of {pool}"]
            remark += [f"{failed} failed and are not counted"] if failed else []
            table.add(
                case=case,
                n=", ".join(map(str, counts)) or NONE,
                target=what,
                measured=", ".join(f"{one}: {count}" for one, count in verdicts.items()) or NONE,
                seeds=max(map(len, blocks), default=0),
                met=UNKNOWN if not verdicts else YES if set(verdicts) == {WINS} else NO,
                remark="; ".join(remark),
            )


def _add_layers(table: Table, results: Results) -> None:
    """The choice of layers."""
    means = results.rankings.pivot_table(
        index="case", columns="method", values=["regret", "spearman"], aggfunc="mean"
    )
    regrets = results.rankings.query("method == @DEFAULT")["regret"]
    missing = [case for case in LAYER_CASES if case not in means.index]
    without = f"without {', '.join(missing)}" if missing else ""

    def add(target: str, measured: str, *, met: bool, remark: str = "") -> None:
        verdict = PARTLY if met and missing else YES if met else NO
        table.add(
            case="all Trojans",
            n=1,
            target=target,
            measured=measured if len(regrets) else NONE,
            seeds=len(regrets),
            met=verdict if len(regrets) else UNKNOWN,
            remark="; ".join(filter(None, (without, remark))),
        )

    add(
        f"mean regret of the default ranking {MOST} 3.0",
        spread(regrets, 100.0),
        met=regrets.mean() <= 0.03,
    )
    for figure, better in (("regret", -1.0), ("spearman", 1.0)):
        behind = []
        if len(means):
            gain = better * (means[figure][DEFAULT] - means[figure][PAPERS])
            behind = [case for case in LAYER_CASES if case in gain.index and gain[case] <= 0]
        add(
            f"default ranking beats the paper's score on every case: {figure}",
            f"{len(means) - len(behind)} of {len(means)} cases",
            met=not behind,
            remark=f"not {', '.join(behind)}" if behind else "",
        )
