"""Two behaviours in one network, repaired one after the other, in both orders, and in one go.

Imports the cases, the engine and `tables`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from rectify_widgets import cases
from rectify_widgets.cases.definition import DEFINITIONS
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks.measure import PER_CENT
from tests.benchmarks.tables import Cell, Table, spread

BEFORE = "before"
CASES = tuple(name for name, one in DEFINITIONS.items() if one.aims)
FLOOR = "clean_target_rate"
TEST = 4000
"""Test images that are measured on."""
FIGURES = {
    "patch: ASR": "attack_success_rate",
    "cross: ASR": "attack_success_rate (cross)",
    "tag: pulled in": "pulled_in (tag)",
    "tag: bias": "spurious_bias (tag)",
    "tag: recall without": "recall_without (tag)",
    "OA": "overall_accuracy",
}
"""Columns and the figures of the cases that they show; a dash where a case has no such figure."""


@dataclass(frozen=True)
class Stage:
    """What was repaired by then, and the figures then."""

    order: str
    when: str
    figures: Mapping[str, float]
    edits: int


def measure_several(seeds: int, progress: Monitor) -> Table:
    """Before, after the first, after the second; both orders, and both at once."""
    table = Table(
        "several",
        f"Two behaviours repaired by dynamic rectification, one pair of each, {seeds} seeds (each "
        f"another pair), {TEST} test images, per cent.  'then' is a second call of `rectify` on the "
        "model that the first one made, which knows nothing of the first pair; 'together' is one "
        "call with the pairs of both.",
    )
    runs = len(CASES) * seeds
    for number, name in enumerate(CASES):
        case = cases.load(name)
        start = Stage("–", BEFORE, case.figures(limit=TEST), 0)
        found: dict[tuple[str, str], list[Stage]] = {(start.order, start.when): [start]}
        table.note += _floors(name, start.figures)
        for seed in range(seeds):
            part = (number * seeds + seed) / runs
            progress.report(part, f"{name}, pair {seed + 1} of {seeds}")
            for stage in _stages(case, seed):
                found.setdefault((stage.order, stage.when), []).append(stage)
        for (order, when), stages in found.items():
            table.add(**_row(name, order, when, stages))
    return table


def _stages(case: cases.Case, seed: int) -> Iterator[Stage]:
    """What comes after the start, for one pair of each behaviour."""
    pairs = {name: case.pairs_by(name)[seed] for name in case.triggers}
    for order in (tuple(pairs), tuple(reversed(pairs))):
        model, edits = case.model, 0
        for place, name in enumerate(order):
            result = rectify(model, pairs[name], reference=case.reference, seed=seed)
            model, edits = result.model, edits + len(result.edits)
            yield Stage(
                ", then ".join(order),
                f"after the {'second' if place else 'first'} ({name})",
                case.figures(model, limit=TEST),
                edits,
            )
    joint = SamplePairs(
        torch.cat([one.corrupted for one in pairs.values()]),
        torch.cat([one.clean for one in pairs.values()]),
    )
    result = rectify(case.model, joint, reference=case.reference, seed=seed)
    yield Stage("together", "after both", case.figures(result.model, limit=TEST), len(result.edits))


def _floors(name: str, figures: Mapping[str, float]) -> str:
    floors = [
        f"{PER_CENT * value:.2f}{figure.removeprefix(FLOOR)}"
        for figure, value in figures.items()
        if figure.startswith(FLOOR)
    ]
    return f"  Clean images of other classes that {name} takes for a target: {', '.join(floors)}."


def _row(name: str, order: str, when: str, stages: list[Stage]) -> dict[str, Cell]:
    row: dict[str, Cell] = {"case": name, "order": order, "when": when}
    for column, figure in FIGURES.items():
        values = [stage.figures[figure] for stage in stages if figure in stage.figures]
        if not values:
            row[column] = "–"
        else:
            row[column] = PER_CENT * values[0] if when == BEFORE else spread(values, PER_CENT)
    row["edits"] = spread((float(stage.edits) for stage in stages), digits=1)
    return row
