"""Two behaviours in one network, repaired one after the other, in both orders, and in one go.

Imports the cases, the engine, `trojan` and `tables`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping

import torch
from pandas import DataFrame
from torch import nn

from rectify_widgets import cases
from rectify_widgets.cases.definition import DEFINITIONS
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks.plan import BEFORE
from tests.benchmarks.tables import Cell, Table, spread
from tests.benchmarks.trojan import PER_CENT

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


def measure_several(options: Namespace, monitor: Monitor) -> Table:
    """Before, after the first, after the second; both orders, and both at once."""
    seeds = options.seeds
    table = Table(
        "several",
        f"Two behaviours repaired by dynamic rectification, one pair of each, {seeds} seeds (each "
        f"another pair), {TEST} test images, per cent.  'then' is a second call of `rectify` on the "
        "model that the first one made, which knows nothing of the first pair; 'together' is one "
        "call with the pairs of both.",
    )
    for number, name in enumerate(CASES):
        case = cases.load(name)
        before = case.figures(limit=TEST)
        table.note += _floors(name, before)
        rows = [{"order": "–", "when": BEFORE, "edits": 0} | before]
        for seed in range(seeds):
            part = (number + seed / seeds) / len(CASES)
            monitor.report(part, f"{name}, pair {seed + 1} of {seeds}")
            for order, when, model, edits in _repairs(case, seed):
                figures = case.figures(model, limit=TEST)
                rows.append({"order": order, "when": when, "edits": edits} | figures)
        for key, stages in DataFrame(rows).groupby(["order", "when"], sort=False):
            order, when = map(str, key)
            shown: dict[str, Cell] = dict.fromkeys(FIGURES, "–")
            for column, figure in FIGURES.items():
                if figure in stages:
                    first = PER_CENT * float(stages[figure].iloc[0])
                    shown[column] = first if when == BEFORE else spread(stages[figure], PER_CENT)
            mean_edits = spread(stages["edits"], digits=1)
            table.add(case=name, order=order, when=when, **shown, edits=mean_edits)
    return table


def _repairs(case: cases.Case, seed: int) -> Iterator[tuple[str, str, nn.Module, int]]:
    """Order, what is done by then, the model, and edits so far, for one pair of each behaviour."""
    pairs = {name: case.pairs_by(name)[seed] for name in case.triggers}
    for order in (tuple(pairs), tuple(reversed(pairs))):
        model, edits = case.model, 0
        for place, name in zip(("first", "second"), order, strict=True):
            result = rectify(model, pairs[name], reference=case.reference, seed=seed)
            model, edits = result.model, edits + len(result.edits)
            yield ", then ".join(order), f"after the {place} ({name})", model, edits
    joint = SamplePairs(
        torch.cat([one.corrupted for one in pairs.values()]),
        torch.cat([one.clean for one in pairs.values()]),
    )
    result = rectify(case.model, joint, reference=case.reference, seed=seed)
    yield "together", "after both", result.model, len(result.edits)


def _floors(name: str, figures: Mapping[str, float]) -> str:
    floors = [
        f"{PER_CENT * value:.2f}{figure.removeprefix(FLOOR)}"
        for figure, value in figures.items()
        if figure.startswith(FLOOR)
    ]
    return f"  Clean images of other classes that {name} takes for a target: {', '.join(floors)}."
