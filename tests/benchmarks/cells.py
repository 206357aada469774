"""Measuring one cell of the comparison: the repair, its figures, its time and its memory.

Imports the engine, the cases, the baselines and this folder's plan, layers and peaks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from rectify_widgets.baselines import run
from rectify_widgets.cases.case import Case
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.places import find_places
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from tests.benchmarks.layers import rank_layers
from tests.benchmarks.peaks import peak_memory
from tests.benchmarks.plan import (
    BEFORE,
    EVERYWHERE,
    LAYERS,
    OWN,
    VARIANTS,
    Cell,
    Record,
    drawn,
)

PASSES = 3
"""Times that a patch is looked for all over and mended, at most."""
STILL, CLOSELY = 0.1, 64
"""After the first time: the share of references that a place has to lead astray, a patch that merely
hides things leads some; and the references that each place is tried on, since this share is small."""


def measure(case: Case, cell: Cell, options: Mapping[str, Any] | None) -> Record:
    """The record of one cell, without the name of the network.

    A method that fails is a result too: the record says ``failure`` and has no figures.

    Args:
        case: that of the cell.
        cell: what to measure.
        options: those of a peer, chosen in another cell; None has a peer choose its own.
    """
    record = cell.fields()
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            record |= _measured(case, cell, options)
        except Exception as error:  # noqa: BLE001 - whatever it is, the table says so
            record["failure"] = f"{type(error).__name__}: {error}"
    record["warnings"] = sorted({str(one.message) for one in heard})
    record["took"] = round(time.perf_counter() - began, 3)
    return record


def _measured(case: Case, cell: Cell, options: Mapping[str, Any] | None) -> Record:
    if cell.method == BEFORE:
        return {"figures": case.figures(limit=cell.limit)}
    if cell.method == LAYERS:
        return {"layers": rank_layers(case, cell.seed, cell.limit)}
    pairs = case.pairs[drawn(case, cell)]
    repair = _own if cell.method in OWN else _peer
    with peak_memory() as peak:
        began = time.process_time()  # of one thread: what it takes where nothing else runs
        model, found = repair(case, cell, pairs, options)
        seconds = time.process_time() - began
    return {
        "figures": case.figures(model, limit=cell.limit),
        "seconds": round(seconds, 3),
        "memory": peak.bytes,
        **found,
    }


def _own(
    case: Case, cell: Cell, pairs: SamplePairs, options: Mapping[str, Any] | None
) -> tuple[nn.Module, Record]:
    """`rectify` with its defaults, or as `VARIANTS` has it."""
    del options
    _, other = VARIANTS.get(cell.method, ((), {}))
    strategy = OWN[0] if cell.method in VARIANTS else cell.method
    given: dict[str, Any] = {"reference": case.reference, "seed": cell.seed}
    if cell.method == EVERYWHERE:
        results = _everywhere(case.model, pairs, given)
    else:
        results = [rectify(case.model, pairs, strategy=strategy, **given, **other)]
    return results[-1].model, {
        "options": dict(other),
        "edits": [edit.layer for result in results for edit in result.edits],
        "stopped": results[-1].stopped,
        "tried": 0,
    }


def _everywhere(
    model: nn.Module, pairs: SamplePairs, given: Mapping[str, Any]
) -> list[Rectification]:
    """Rectify from every place where the patch works, and from those where it still does then."""
    places = find_places(model, pairs, **given)
    results = [rectify(model, places.pairs, **given)]
    while len(results) < PASSES:
        places = find_places(results[-1].model, pairs, least=STILL, samples=CLOSELY, **given)
        if not places.found:
            break
        results.append(rectify(results[-1].model, places.pairs, **given))
    return results


def _peer(
    case: Case, cell: Cell, pairs: SamplePairs, options: Mapping[str, Any] | None
) -> tuple[nn.Module, Record]:
    """A baseline, tuned on the validation split where no options are given."""
    made = run(
        cell.method,
        case.model,
        pairs,
        reference=case.reference,
        validation=case.validation,
        seed=cell.seed,
        **(options or {}),
    )
    return made.model, {
        "options": dict(made.options),
        "edits": [],
        "stopped": None,
        "tried": len(made.trials),
    }
