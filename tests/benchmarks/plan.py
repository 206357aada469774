"""What the comparison measures: its cells, and the order in which they are measured.

Imports the names of cases and baselines.  A *cell* is one number of every table: a case, a method,
``n`` pairs and a seed.  The seed draws the pairs and is handed to the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rectify_widgets.baselines import BASELINES
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.definition import DEFINITIONS
from rectify_widgets.engine.base.checks import check_choice, check_int

Record = dict[str, Any]
"""What was measured in a cell, with the fields of the cell; plain JSON."""

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
EVERYWHERE, CAREFUL, TO_THE_END = "dynamic, everywhere", "dynamic, careful", "dynamic, to the end"
CLOSED_FORM = "dynamic, closed form"
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    CLOSED_FORM: (tuple(GROUPS), {"refine_steps": 0}),
    EVERYWHERE: (("position",), {}),
    CAREFUL: (("spurious",), {"max_degradation": 0.003}),
    TO_THE_END: (("leakage",), {"target_gap": 0.0}),
}
"""Dynamic rectification as one may want it: the groups of tables, and what differs from the defaults.
`CLOSED_FORM` refines no edit, as the paper has it.  `EVERYWHERE` has the patch in every place where it
works, see `find_places`, and looks again at what comes out.  The budget of `CAREFUL` and the least share
of `find_places` were chosen when test figures of three seeds were known: these rows show what can be had,
and the comparison judges `dynamic` with its defaults."""
OWN = ("dynamic", "static", *VARIANTS)
PEERS = tuple(BASELINES)

LAYER_CASES = (*TROJANS, "trojan-visibility", "trojan-position")
COUNTS = (1, 5, 10, 20)
FEW = (1,)
"""Numbers of pairs where there are several triggers."""
SEEDS = 5
LAYER_PAIRS = 5


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        case: what `rectify_widgets.cases.load` knows.
        method: ``"dynamic"``, ``"static"``, a name of ``baselines.METHODS``, ``"before"`` for the
            unrepaired network, or ``"layers"`` for the ranking of layers (then the seed is the
            number of the pair).
        pool: which of the case's pairs are drawn from.
        n: how many.
        seed: draws them, and seeds the method.
        limit: test images that are measured on, the first ones; None for all.
    """

    case: str
    method: str
    pool: str
    n: int
    seed: int
    limit: int | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Cell:
        """The cell that a record is of."""
        return cls(**{name: record[name] for name in cls.__dataclass_fields__})

    def fields(self) -> Record:
        """Its attributes by name, the beginning of its record."""
        return asdict(self)

    @property
    def tuned_by(self) -> Cell | None:
        """The cell whose choice of options this one takes over; None where it needs none."""
        if self.method not in PEERS or self.seed == 0:
            return None
        return Cell(self.case, self.method, self.pool, self.n, 0, self.limit)

    @property
    def tunes(self) -> bool:
        """Whether options are chosen in this cell."""
        return self.method in PEERS and self.seed == 0

    def __str__(self) -> str:
        pool = "" if self.pool == EVERY else f", {self.pool}"
        tuning = ", tuning" if self.tunes else ""
        return f"{self.case}{pool}, {self.method}, n = {self.n}, seed {self.seed}{tuning}"


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
) -> list[Cell]:
    """The cells of some groups of tables, what matters most first.

    That is: the unrepaired networks, our own method, the layers, then the peers, number of pairs
    by number of pairs in the order given; pairs of classes that a spurious artefact does not affect
    come last.

    Args:
        groups: names in `GROUPS`, or ``"layers"``.
        seeds: how many, from 0.
        counts: numbers of pairs; None means `COUNTS`, and `FEW` where there are several triggers.
        methods: of `OWN` and `PEERS`; None means all.
        only: cases of these groups; None means all.
        layer_pairs: pairs of each case in the table of layers.
        limit: see `Cell`.

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
    chosen = [check_choice("methods", one, (*OWN, *PEERS)) for one in methods or (*OWN, *PEERS)]
    known = [case for group in groups for case in (GROUPS | {LAYERS: LAYER_CASES})[group]]
    wanted = {check_choice("cases", one, known) for one in only or known}
    found: list[tuple[tuple[int, ...], Cell]] = []
    for group in groups:
        if group == LAYERS:
            found += [
                ((1, 1, pair), Cell(case, LAYERS, EVERY, 1, pair, limit))
                for case in LAYER_CASES
                for pair in range(layer_pairs)
            ]
            continue
        several = group in {"visibility", "position"}
        for case in GROUPS[group]:
            found.append(((0,), Cell(case, BEFORE, EVERY, 0, 0, limit)))
            for later, pool in enumerate(pools(case)):
                for turn, n in enumerate(counts or (FEW if several else COUNTS)):
                    for method in chosen:
                        if method in VARIANTS and group not in VARIANTS[method][0]:
                            continue
                        place = (1, 0, later) if method in OWN else (2, later)
                        found += [
                            ((*place, turn), Cell(case, method, pool, n, seed, limit))
                            for seed in range(seeds)
                        ]
    found = [(place, cell) for place, cell in found if cell.case in wanted]
    return list(dict.fromkeys(cell for _, cell in sorted(found, key=lambda one: one[0])))


def drawn(case: Case, cell: Cell) -> Tensor:
    """Rows of the case's pairs that a cell works from.

    Draws of one seed are nested: those of n = 5 contain those of n = 1.

    Raises:
        ValueError: there are not that many.
    """
    rows = torch.arange(len(case.pairs))
    if cell.pool != EVERY:
        assert case.pairs.labels is not None
        affected = case.pairs.labels.cpu() == case.target
        rows = rows[affected if cell.pool == AFFECTED else ~affected]
    argument, wanted = ("pairs", cell.seed + 1) if cell.method == LAYERS else ("n", cell.n)
    if wanted > len(rows):
        raise ValueError(
            f"{argument}: got {wanted}, want at most {len(rows)}, the pairs of {case.name!r} "
            f"({cell.pool}); give smaller numbers with --{argument}"
        )
    generator = torch.Generator().manual_seed(cell.seed)
    return rows[torch.randperm(len(rows), generator=generator)[: cell.n]]
