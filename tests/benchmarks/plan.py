"""What the comparison measures: its runs, and the order in which they are measured.

Imports the names of cases and baselines.  A *run* is one number of every table: a case, a method,
``n`` pairs and a seed.  The seed draws the pairs and is handed to the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rectify_widgets.baselines import BASELINES
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.definition import DEFINITIONS
from rectify_widgets.engine.base.checks import check_choice, check_int

Record = dict[str, Any]
"""What was measured in a run, with the fields of the run; plain JSON."""

BEFORE, LAYERS = "before", "layers"
EVERY, AFFECTED, OTHERS = "all", "affected class", "other classes"
"""Which of a case's pairs are drawn from."""

TROJANS = ("trojan", "trojan-blend", "trojan-all-to-all", "trojan-clean-label")
GROUPS: dict[str, tuple[str, ...]] = {
    "trojan": TROJANS,
    "visibility": ("trojan-visibility",),
    "position": ("trojan-position",),
    "spurious": ("spurious-mild", "spurious-severe"),
    "leakage": ("leakage",),
}
"""Cases by table."""
LAYER_CASES = (*TROJANS, "trojan-visibility", "trojan-position")

EVERYWHERE, CAREFUL, TO_THE_END = "dynamic, everywhere", "dynamic, careful", "dynamic, to the end"
CLOSED_FORM = "dynamic, closed form"
SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    CLOSED_FORM: (tuple(GROUPS), {"refine_steps": 0}),
    EVERYWHERE: (("position",), {}),
    CAREFUL: (("spurious",), {"max_degradation": 0.003}),
    TO_THE_END: (("leakage",), {"target_gap": 0.0}),
}
"""Dynamic rectification with other settings: the groups of tables, and what differs from the
defaults.  `CLOSED_FORM` refines no edit, as the paper has it.  `EVERYWHERE` has the patch in every
place where it works, see `find_places`, and searches the result again.  The budget of `CAREFUL` and
the least share of `find_places` were chosen when test figures of three seeds were known: these rows
show what can be had, and the comparison judges `dynamic` with its defaults."""
OWN = ("dynamic", "static", *SETTINGS)
PEERS = tuple(BASELINES)
METHODS = (*OWN, *PEERS)

COUNTS = (1, 5, 10, 20)
FEW = (1,)
"""Numbers of pairs where there are several triggers."""
SEEDS = 5
LAYER_PAIRS = 5


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        case: what `rectify_widgets.cases.load` knows.
        method: one of `METHODS`, ``"before"`` for the unrepaired network, or ``"layers"`` for the
            ranking of layers (then the seed is the number of the pair).
        pool: which of the case's pairs are drawn from.
        n: how many.
        seed: draws them, and seeds the method.
        limit: test images that are measured on, the first ones; None for all.
    """

    case: str
    method: str
    pool: str = EVERY
    n: int = 1
    seed: int = 0
    limit: int | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Run:
        """The run that a record is of."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})

    def fields(self) -> Record:
        """Its attributes by name, the beginning of its record."""
        return asdict(self)

    @property
    def tunes(self) -> bool:
        """Whether options are chosen in this run."""
        return self.method in PEERS and self.seed == 0

    @property
    def tuned_by(self) -> Run | None:
        """The run whose choice of options this one takes over; None where it needs none."""
        return replace(self, seed=0) if self.method in PEERS and self.seed else None


def pools(case: str) -> tuple[str, ...]:
    """Which pairs of a case are tables of their own, the main one first."""
    return (AFFECTED, OTHERS) if DEFINITIONS[case].behaviour == "spurious" else (EVERY,)


def plan(
    groups: Sequence[str],
    *,
    seeds: int = SEEDS,
    counts: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    layer_pairs: int = LAYER_PAIRS,
    limit: int | None = None,
) -> list[Run]:
    """The runs of some groups of tables, what matters most first.

    That is: the unrepaired networks, our own method, the layers, then the peers, number of pairs
    by number of pairs in the order given, those that choose options before those that take them
    over; pairs of classes that a spurious artefact does not affect come last.

    Args:
        groups: names in `GROUPS`, or ``"layers"``.
        seeds: how many, from 0.
        counts: numbers of pairs; None means `COUNTS`, and `FEW` where there are several triggers.
        methods: of `METHODS`; None means all.
        only: cases of these groups; None means all.
        layer_pairs: pairs of each case in the table of layers.
        limit: see `Run`.

    Raises:
        TypeError, ValueError: an unknown name, or a count below 1.
    """
    check_int("seeds", seeds, low=1)
    check_int("pairs", layer_pairs, low=1)
    if limit is not None:
        check_int("limit", limit, low=1)
    for n in counts or ():
        check_int("n", n, low=1)
    for group in groups:
        check_choice("group", group, (*GROUPS, LAYERS))
    chosen = [check_choice("methods", one, METHODS) for one in methods or METHODS]
    known = [case for group in groups for case in (GROUPS | {LAYERS: LAYER_CASES})[group]]
    wanted = {check_choice("cases", one, known) for one in only or known}
    placed: list[tuple[tuple[int, ...], Run]] = []
    for group in groups:
        if group == LAYERS:
            placed += [
                ((1, 1, pair), Run(case, LAYERS, seed=pair, limit=limit))
                for case in LAYER_CASES
                for pair in range(layer_pairs)
            ]
            continue
        several = group in {"visibility", "position"}
        for case in GROUPS[group]:
            placed.append(((0,), Run(case, BEFORE, n=0, limit=limit)))
            placed += [
                (
                    (1, 0, later, turn) if method in OWN else (2, later, turn, min(seed, 1)),
                    Run(case, method, pool, n, seed, limit),
                )
                for later, pool in enumerate(pools(case))
                for turn, n in enumerate(counts or (FEW if several else COUNTS))
                for method in chosen
                if method not in SETTINGS or group in SETTINGS[method][0]
                for seed in range(seeds)
            ]
    order = sorted(placed, key=lambda one: one[0])
    return list(dict.fromkeys(run for _, run in order if run.case in wanted))


def draw_rows(case: Case, run: Run) -> Tensor:
    """Rows of the case's pairs that a run works from.

    Draws of one seed are nested: those of n = 5 contain those of n = 1.

    Raises:
        ValueError: there are not that many.
    """
    rows = torch.arange(len(case.pairs))
    if run.pool != EVERY:
        assert case.pairs.labels is not None
        affected = case.pairs.labels.cpu() == case.target
        rows = rows[affected if run.pool == AFFECTED else ~affected]
    argument, wanted = ("pairs", run.seed + 1) if run.method == LAYERS else ("n", run.n)
    if wanted > len(rows):
        raise ValueError(
            f"{argument}: got {wanted}, want at most {len(rows)}, the pairs of {case.name!r} "
            f"({run.pool}); give smaller numbers with --{argument}"
        )
    generator = torch.Generator().manual_seed(run.seed)
    return rows[torch.randperm(len(rows), generator=generator)[: run.n]]
