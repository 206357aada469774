"""Measuring one run of the comparison: the repair, its figures, its time and its memory.

Imports the engine, the cases, the baselines and this folder's plan, layers and peaks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rectify_widgets import baselines
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
    SETTINGS,
    Record,
    Run,
    draw_rows,
)

PASSES = 3
"""Times that a patch is searched for everywhere and repaired, at most."""
STILL, CLOSELY = 0.1, 64
"""After the first time: the share of references that a place has to lead astray, a patch that merely
hides things leads some; and the references that each place is tried on, since this share is small."""


def measure(case: Case, run: Run, options: Mapping[str, Any] | None) -> Record:
    """The record of one run, without the name of the network; on one thread.

    A method that fails is a result too: the record says ``failure`` and has no figures.

    Args:
        case: that of the run.
        run: what to measure.
        options: those of a peer, chosen in another run; None has a peer choose its own.
    """
    record = run.fields()
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)  # no figure depends on how many there are
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            record |= _measured(case, run, options)
        except Exception as error:  # noqa: BLE001 - whatever it is, the table says so
            record["failure"] = f"{type(error).__name__}: {error}"
        finally:
            torch.set_num_threads(threads)
    record["warnings"] = sorted({str(one.message) for one in caught})
    record["took"] = round(time.perf_counter() - start, 3)
    return record


def _measured(case: Case, run: Run, options: Mapping[str, Any] | None) -> Record:
    if run.method == BEFORE:
        return {"figures": case.figures(limit=run.limit)}
    if run.method == LAYERS:
        return {"layers": rank_layers(case, run.seed, run.limit)}
    pairs = case.pairs[draw_rows(case, run)]
    with peak_memory() as peak:
        start = time.process_time()  # of one thread: what it takes where nothing else runs
        if run.method in OWN:
            model, details = _own(case, run, pairs)
        else:
            model, details = _peer(case, run, pairs, options)
        seconds = time.process_time() - start
    return {
        "figures": case.figures(model, limit=run.limit),
        "seconds": round(seconds, 3),
        "memory": peak.bytes,
        **details,
    }


def _own(case: Case, run: Run, pairs: SamplePairs) -> tuple[nn.Module, Record]:
    """`rectify` with its defaults, or as `SETTINGS` has it."""
    _, settings = SETTINGS.get(run.method, ((), {}))
    strategy = OWN[0] if run.method in SETTINGS else run.method
    common: dict[str, Any] = {"reference": case.reference, "seed": run.seed}
    if run.method == EVERYWHERE:
        results = _everywhere(case.model, pairs, common)
    else:
        results = [rectify(case.model, pairs, strategy=strategy, **common, **settings)]
    return results[-1].model, {
        "options": dict(settings),
        "edits": [edit.layer for result in results for edit in result.edits],
        "stopped": results[-1].stopped,
        "tried": 0,
    }


def _everywhere(
    model: nn.Module, pairs: SamplePairs, common: Mapping[str, Any]
) -> list[Rectification]:
    """Rectify from every place where the patch works, and from those where it still does then."""
    places = find_places(model, pairs, **common)
    results = [rectify(model, places.pairs, **common)]
    while len(results) < PASSES:
        places = find_places(results[-1].model, pairs, least=STILL, samples=CLOSELY, **common)
        if not places.found:
            break
        results.append(rectify(results[-1].model, places.pairs, **common))
    return results


def _peer(
    case: Case, run: Run, pairs: SamplePairs, options: Mapping[str, Any] | None
) -> tuple[nn.Module, Record]:
    """A baseline, tuned on the validation split where no options are given."""
    baseline = baselines.run(
        run.method,
        case.model,
        pairs,
        reference=case.reference,
        validation=case.validation,
        seed=run.seed,
        **(options or {}),
    )
    return baseline.model, {
        "options": dict(baseline.options),
        "edits": [],
        "stopped": None,
        "tried": len(baseline.trials),
    }
