"""The targets of the comparison, measured: the numbers stand here, the verdicts are computed.

Imports this folder's plan, summary, tables and verdicts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
from tests.benchmarks.summary import ALL_CASES, NONE, Results, ranked, successes
from tests.benchmarks.tables import Table, spread
from tests.benchmarks.verdicts import SUCCESS, VERDICTS, WINS, Figures, lost

MOST, LEAST = "≤", "≥"
YES, NO, UNKNOWN, PARTLY = "yes", "no", "not measured", "partly measured"

DEFAULT, PAPERS = "edit-attribution", "projection"
"""Rankings of layers."""


@dataclass(frozen=True)
class Target:
    """A bound on the mean over seeds of one figure of a method of our own.

    Attributes:
        case, n: where.
        what: the figure, for people.
        sign: `MOST` or `LEAST`.
        bound: a fraction.
        value: the figure from those after and before.
        method: `dynamic`, or the same from every place where the patch works.
    """

    case: str
    n: int
    what: str
    sign: str
    bound: float
    value: Callable[[Figures, Figures], float]
    method: str = OWN[0]

    @property
    def pool(self) -> str:
        """The main pool of the case."""
        return pools(self.case)[0]


def _after(name: str) -> Callable[[Figures, Figures], float]:
    return lambda after, _: after[name]


def _cut(name: str) -> Callable[[Figures, Figures], float]:
    """By what share an absolute figure has fallen."""
    return lambda after, before: 1.0 - abs(after[name]) / max(abs(before[name]), 1e-12)


def _fallen(name: str) -> Callable[[Figures, Figures], float]:
    return lambda after, before: before[name] - after[name]


def _loss(case: str, n: int, bound: float, method: str = OWN[0]) -> Target:
    return Target(case, n, "OA loss", MOST, bound, lost, method)


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
    yield from _spurious(OWN[0])
    yield from _spurious(CAREFUL)
    yield from _leakage(OWN[0])
    yield from _leakage(TO_THE_END)


def _spurious(method: str) -> Iterator[Target]:
    for n, bound in ((1, 0.70), (20, 0.95)):
        yield Target("spurious-mild", n, "bias cut by", LEAST, bound, _cut("spurious_bias"), method)
        yield _loss("spurious-mild", n, 0.003, method)
    severe = "spurious-severe"
    for n, bound, pulled in ((1, 0.50, 0.06), (10, 0.75, 0.03)):
        yield Target(severe, n, "bias cut by", LEAST, bound, _cut("spurious_bias"), method)
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
    before = results.before.get(target.case)
    block = results.block(target.case, target.pool, target.method, target.n)
    values = [] if before is None else [target.value(one, before) for one in block.figures.values()]
    met = UNKNOWN
    if values:
        mean = statistics.fmean(values)
        met = YES if (mean <= target.bound if target.sign == MOST else mean >= target.bound) else NO
    table.add(
        case=target.case if target.method == OWN[0] else f"{target.case} ({target.method})",
        n=target.n,
        target=f"{target.what} {target.sign} {100 * target.bound:.1f}",
        measured=spread(values, 100.0) if values else NONE,
        seeds=len(values),
        met=met,
        remark=_context(target, before),
    )


def _context(target: Target, before: Figures | None) -> str:
    """What bounds the figure whatever a repair does."""
    if before is None:
        return ""
    if target.what.startswith("ASR"):
        return f"clean target rate before {100 * before['clean_target_rate']:.2f}"
    if target.what in {"corrupted accuracy", "accuracy without the block"}:
        return f"OA before {100 * before['overall_accuracy']:.2f}"
    if target.what.startswith("bias"):
        return f"before {100 * before['spurious_bias']:.2f}"
    return ""


def _add_wins(table: Table, results: Results, case: str) -> None:
    """Whether `dynamic` beats static, and every peer, at every n that was measured."""
    for pool in pools(case):
        for what, methods in (("beats static", OWN[1:2]), ("beats every peer", PEERS)):
            blocks = [one for one in results.blocks(case, pool) if one.method in methods]
            found = [results.compared(block) for block in blocks]
            verdicts = [one.verdict for one in found if one is not None]
            failed = sum(bool(block.failures) and not block.figures for block in blocks)
            counts = sorted({block.n for block in blocks})
            remark = [] if pool in {EVERY, AFFECTED} else [f"pairs of {pool}"]
            remark += [f"{failed} failed and are not counted"] if failed else []
            table.add(
                case=case,
                n=", ".join(map(str, counts)) or NONE,
                target=what,
                measured=", ".join(
                    f"{one}: {verdicts.count(one)}" for one in VERDICTS if one in verdicts
                )
                or NONE,
                seeds=max((len(block.records) for block in blocks), default=0),
                met=UNKNOWN if not verdicts else YES if set(verdicts) == {WINS} else NO,
                remark="; ".join(remark),
            )


def _add_layers(table: Table, results: Results) -> None:
    """The choice of layers."""
    cases = [case for case in LAYER_CASES if ranked(results, case)]
    missing = [case for case in LAYER_CASES if case not in cases]
    without = f"without {', '.join(missing)}" if missing else ""
    every = ranked(results, ALL_CASES)

    def add(target: str, measured: str, met: bool | None, remark: str = "") -> None:
        table.add(
            case="all Trojans",
            n=1,
            target=target,
            measured=measured,
            seeds=len(every),
            met=UNKNOWN if met is None else PARTLY if met and missing else YES if met else NO,
            remark="; ".join(filter(None, (without, remark))),
        )

    regrets = [one[DEFAULT]["regret"] for one in every]
    add(
        f"mean regret of the default ranking {MOST} 3.0",
        spread(regrets, 100.0) if regrets else NONE,
        statistics.fmean(regrets) <= 0.03 if regrets else None,
    )
    for figure, better in (("regret", -1.0), ("spearman", 1.0)):
        behind = [
            case
            for case in cases
            if statistics.fmean(
                better * (one[DEFAULT][figure] - one[PAPERS][figure])
                for one in ranked(results, case)
            )
            <= 0
        ]
        add(
            f"default ranking beats the paper's score on every case: {figure}",
            f"{len(cases) - len(behind)} of {len(cases)} cases" if cases else NONE,
            not behind if cases else None,
            f"not {', '.join(behind)}" if behind else "",
        )
