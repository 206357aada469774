"""A fault that nobody planted, taken out from one photograph.  Imports cases, engine and baselines.

One repair for each of some photographs and methods; a record is on disk before the next one begins.
"""

from __future__ import annotations

import time
import warnings
from argparse import Namespace

import torch
from pandas import DataFrame
from torch import Tensor, nn

from rectify_widgets import baselines
from rectify_widgets.cases import pretrained
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.figures import classes, share
from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.rectification import rectify
from tests.benchmarks import records
from tests.benchmarks.peaks import peak_memory
from tests.benchmarks.plan import BEFORE, Record
from tests.benchmarks.tables import Cell, Table, spread
from tests.benchmarks.training import default_cache

CLOSED_FORM, DYNAMIC = "closed form", "dynamic"
CARTON_METHODS = CLOSED_FORM, DYNAMIC, "p_clarc", "fine_tuning", "last_layer"
SHOWN = {
    "rise": "logit_rise",
    "rank": "rise_rank",
    "rise, other text": "logit_rise (other)",
    "rise, headline": "logit_rise (headline)",
    "rise, top": "logit_rise (top)",
    "rise, Latin": "logit_rise (latin)",
    "right with it": "corrupted_accuracy",
    "right without": "overall_accuracy",
    "same answers": "same",
    "boxes": "boxes",
}
"""Columns of the table and the figures in them."""
OF_TWENTY = {"right with it", "right without"}


def measure_carton(options: Namespace, monitor: Monitor) -> Table:
    """Measure what the folder lacks, and tell all that it has."""
    methods = [check_choice("methods", one, CARTON_METHODS)
               for one in options.methods or CARTON_METHODS]  # fmt: skip
    case = pretrained.carton()
    boxes = pretrained.cardboard_boxes()
    drawn = torch.randperm(len(case.pairs), generator=torch.Generator().manual_seed(0))
    runs = [(method, row) for method in methods for row in drawn[: options.pairs].tolist()]
    folder = (options.out or default_cache() / "benchmarks") / "carton"
    with records.opened(folder) as kept:
        done = {(record["method"], record["photograph"]) for record in kept.records}
        for number, (method, row) in enumerate(runs):
            monitor.report(number / len(runs), f"{method}, photograph {row}")
            if (method, row) not in done:
                kept.append(measured(case, boxes, method, row))
        return table(case, boxes, list(kept.records))


def measured(case: Case, boxes: Tensor, method: str, row: int) -> Record:
    """One repair from the photograph ``row``, with the others as references."""
    others = case.reference[[other for other in range(len(case.pairs)) if other != row]]
    start = time.process_time()
    with warnings.catch_warnings(), peak_memory() as peak:
        warnings.simplefilter("ignore")
        model, details = _repaired(case, method, row, others)
    seconds = round(time.process_time() - start, 1)
    return {
        "method": method, "photograph": row, "seconds": seconds, "memory": peak.bytes,
        **details, "figures": figures(case, boxes, model),
    }  # fmt: skip


def _repaired(case: Case, method: str, row: int, others: Tensor) -> tuple[nn.Module, Record]:
    pair = case.pairs[row : row + 1]
    if method not in {CLOSED_FORM, DYNAMIC}:
        return baselines.run(method, case.model, pair, reference=others).model, {}
    steps = 0 if method == CLOSED_FORM else RectifyOptions.refine_steps
    result = rectify(case.model, pair, reference=others, refine_steps=steps)
    return result.model, {"layers": [edit.layer for edit in result.edits]}


def figures(case: Case, boxes: Tensor, model: nn.Module) -> dict[str, float]:
    """Those of the case, photographs with the answer of before, and boxes that are cartons."""
    found = case.figures(model)
    same = classes(model, case.reference) == classes(case.model, case.reference)
    return found | {
        "same": share(same),
        "boxes": share(classes(model, boxes).eq(int(case.target or 0))),
    }


def table(case: Case, boxes: Tensor, kept: list[Record]) -> Table:
    """A row before any repair, and one for each method."""
    made = Table(
        "carton",
        "White Chinese text at half opacity on 35 photographs, EfficientNet-Lite0 with its "
        "ImageNet weights; each repair from one photograph with and without it, the other 34 as "
        "references; means over photographs and their spread.  Rise: of the logit of *carton* by "
        "the text, on average over all 35; rank: of that among 1,000 classes; right: of 20 "
        "labelled photographs; same answers: of 35 photographs without text; boxes: of 40 drawn "
        "cardboard boxes, how many are still cartons.  Methods other than ours have their "
        "published options, since there is nothing to tune them on.",
    )
    before = figures(case, boxes, case.model)
    made.add(method=BEFORE, photographs="–", **_cells(DataFrame([before])), layer="–",
             seconds="–", MiB="–")  # fmt: skip
    for method, group in DataFrame(kept).groupby("method", sort=False) if kept else ():
        layers = [set(one) for one in group.get("layers", ()) if isinstance(one, list)]
        first = {str(*one) if len(one) == 1 else f"{len(one)} layers" for one in layers}
        made.add(
            method=str(method), photographs=len(group),
            **_cells(DataFrame(list(group["figures"]))), layer=", ".join(sorted(first)) or "–",
            seconds=spread(group["seconds"], digits=0),
            MiB=f"{group['memory'].max() / 2**20:.0f}",
        )  # fmt: skip
    return made


def _cells(found: DataFrame) -> dict[str, Cell]:
    cells: dict[str, Cell] = {}
    for column, name in SHOWN.items():
        scale = 20.0 if column in OF_TWENTY else {"same": 35.0, "boxes": 40.0}.get(name, 1.0)
        digits = 2 if column.startswith("rise") else 1
        one = scale * float(found[name].iloc[0])
        cells[column] = (
            f"{one:.{digits}f}" if len(found) == 1 else spread(found[name], scale, digits)
        )
    return cells
