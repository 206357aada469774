"""Masks instead of true pairs: suggested ones against the true ones, and the repairs from them.

Imports the cases, the engine, `reveal`, `trojan` and `tables`.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator, Mapping

import torch
from pandas import DataFrame
from torch import Tensor

from rectify_widgets import cases
from rectify_widgets.cases import Case
from rectify_widgets.cases.triggers import Trigger
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.reveal.cleansing import cleanse
from rectify_widgets.reveal.masks import suggest_masks
from tests.benchmarks.plan import BEFORE
from tests.benchmarks.tables import Cell, Table, spread
from tests.benchmarks.trojan import PER_CENT

CASES = (
    "trojan",
    "trojan-visibility",
    "trojan-position",
    "trojan-clean-label",
    "trojan-all-to-all",
    "spurious-mild",
    "spurious-severe",
)
"""Those whose corruption is a part of the input."""
TEST = 4000
"""Test images that are measured on."""
INPUTS = 10
"""Corrupted inputs that masks are suggested for."""
TRUE, DRAWN, SUGGESTED = "the true picture", "the true mask", "a suggested mask"
FIGURES = {
    "ASR": ("attack_success_rate", 0.3),
    "bias": ("spurious_bias", 2.0),
    "OA": ("overall_accuracy", 0.2),
}
"""Figures of the cases, and how many points they may be from those of the true pair's repair."""


def measure_cleanse(options: Namespace, monitor: Monitor) -> list[Table]:
    """How well masks are suggested, and what repairs from cleansed inputs are worth."""
    seeds, names = options.seeds, options.cases or CASES
    masks = Table(
        "masks",
        f"Masks suggested for {INPUTS} corrupted inputs of each case: one by one, and for all in one "
        "call.  A hit has an IoU of 0.5 or more with the true mask, or covers it with at most three "
        "times its area.",
    )
    repairs = Table(
        "cleanse",
        f"Dynamic rectification from one pair, {seeds} seed{'s (each another pair)' if seeds > 1 else ''}, {TEST} "
        "test images, per cent.  The clean picture of the pair is the true one, or made by `cleanse` "
        "with the model from the true mask or from the one suggested for this input alone; of what "
        "it differs by from the true pair's repair, the largest difference over seeds, and whether "
        "the mean one is within 0.3 points of ASR, 2 of bias and 0.2 of OA.",
    )
    for number, name in enumerate(names):
        case = cases.load(name)
        part = monitor.part(number / len(names), (number + 1) / len(names))
        for row in _suggested(case, part.part(0.0, 0.2)):
            masks.add(case=name, **row)
        for row in _repaired(case, seeds, part.part(0.2, 1.0)):
            repairs.add(case=name, **row)
        if options.out is not None:  # it takes long: what is measured is kept
            masks.save(options.out)
            repairs.save(options.out)
    return [masks, repairs]


def true_masks(trigger: Trigger, images: Tensor) -> Tensor:
    """Pixels ``N × H × W`` that a trigger changes, whatever lies there."""
    changed = [
        trigger(even) != even for even in (torch.zeros_like(images), torch.ones_like(images))
    ]
    return (changed[0] | changed[1]).any(dim=1)


def hits(masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each mask whether it is good enough, its IoU and its area in units of the true one."""
    size = truth.flatten(1).sum(dim=1)
    both = (masks & truth).flatten(1).sum(dim=1)
    iou = both / (masks | truth).flatten(1).sum(dim=1)
    area = masks.flatten(1).sum(dim=1) / size
    return (iou >= 0.5) | ((both == size) & (area <= 3)), iou, area


def _suggested(case: Case, monitor: Monitor) -> Iterator[dict[str, Cell]]:
    corrupted = case.pairs.corrupted[:INPUTS]
    truth = true_masks(case.trigger, corrupted)
    for how in ("one by one", "together"):
        start, found = time.perf_counter(), []
        for place, some in enumerate(corrupted.split(1 if how == "one by one" else INPUTS)):
            monitor.report(place / INPUTS, f"{case.name}, masks {how}")
            found.append(suggest_masks(case.model, some))
        seconds = (time.perf_counter() - start) / INPUTS
        hit, iou, area = hits(torch.cat([torch.as_tensor(one) for one in found]), truth)
        yield {
            "asked": how,
            "hits": f"{int(hit.sum())} of {INPUTS}",
            "IoU": spread(iou.tolist()),
            "area / true area": spread(area.tolist()),
            "seconds an input": round(seconds, 2),
        }


def _repaired(case: Case, seeds: int, monitor: Monitor) -> Iterator[dict[str, Cell]]:
    before = case.figures(limit=TEST)
    shown = [name for name, (figure, _) in FIGURES.items() if figure in before]
    start = {name: PER_CENT * before[FIGURES[name][0]] for name in shown}
    yield _row(BEFORE, start)
    rows = []
    for seed in range(seeds):
        corrupted, clean = case.pairs.corrupted[seed : seed + 1], case.pairs.clean[seed : seed + 1]
        masks = {
            DRAWN: true_masks(case.trigger, corrupted),
            SUGGESTED: torch.as_tensor(suggest_masks(case.model, corrupted)),
        }
        made = {TRUE: clean}
        made |= {
            how: cleanse(corrupted, mask, model=case.model)
            for how, mask in masks.items()
            if bool(mask.any())
        }
        for number, (how, picture) in enumerate(made.items()):
            monitor.report((seed + number / 3) / seeds, f"{case.name}, pair {seed + 1}, {how}")
            pairs = SamplePairs(corrupted, picture)
            result = rectify(case.model, pairs, reference=case.reference, seed=seed)
            figures = case.figures(result.model, limit=TEST)
            own = {name: PER_CENT * figures[FIGURES[name][0]] for name in shown}
            rows.append({"how": how, "seed": seed, "edits": len(result.edits)} | own)
    table = DataFrame(rows).set_index("seed")
    true = table[table["how"] == TRUE]
    for how in table["how"].unique():
        block = table[table["how"] == how]
        cells = {name: spread(block[name]) for name in shown}
        worse = within = "–"
        if how != TRUE:
            apart = {name: (block[name] - true[name]).dropna() for name in shown}
            worse = ", ".join(f"{name} {values.abs().max():.2f}" for name, values in apart.items())
            close = all(abs(values.mean()) <= FIGURES[name][1] for name, values in apart.items())
            within = "yes" if close and len(block) == seeds else "no"
        yield _row(str(how), cells, len(block), worse, within)


def _row(
    how: str,
    cells: Mapping[str, str | float],
    pairs: int = 0,
    worse: str = "–",
    within: str = "–",
) -> dict[str, Cell]:
    figures: dict[str, Cell] = {name: cells.get(name, "–") for name in FIGURES}
    return {
        "clean by": how,
        "pairs": pairs,
        **figures,
        "largest difference": worse,
        "mean within": within,
    }
