"""Every way in which the engine takes a model, as calls on one small setting.  Imports the package.

`LONG` are the calls that take ``progress`` and ``cancel``, `SHORT` the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import rectify_widgets as rw
from rectify_widgets.engine.model.running import unwrap
from rectify_widgets.engine.repair.measuring import EditMeasure
from tests.engine.traces import corrupted, images

CLEAN = images(2, seed=2)
MARKED = corrupted(CLEAN)
PAIRS = rw.SamplePairs(MARKED, CLEAN)
REFERENCE = images(8)
LABELS = torch.arange(8) % 4
MANY = images(64, seed=3)
"""Enough references to refine edits."""
INPUTS = (CLEAN, MARKED, PAIRS.clean, PAIRS.corrupted, REFERENCE, LABELS, MANY)

Call = Callable[..., Any]

LONG: dict[str, Call] = {
    "collect": lambda model, **o: rw.KeyStatistics.collect(model, REFERENCE, batch_size=2, **o),
    "localize": lambda model, **o: rw.localize(model, PAIRS, reference=REFERENCE, **o),
    "localize by projection": lambda model, **o: rw.localize(
        model, PAIRS, reference=REFERENCE, method="projection", steps=2, **o
    ),
    "localize by trial": lambda model, **o: rw.localize(
        model, PAIRS, reference=REFERENCE, method="trial", steps=2, **o
    ),
    "solve_edit": lambda model, **o: rw.solve_edit(model, PAIRS, reference=REFERENCE, **o),
    "solve_edit of channels": lambda model, **o: rw.solve_edit(
        model, PAIRS, reference=REFERENCE, layer="second", direction="key", ridge=0.1,
        key_space="channel", **o,
    ),
    "find_corrupted": lambda model, **o: rw.find_corrupted(
        model, PAIRS, REFERENCE, reference=REFERENCE, **o
    ),
    "find_places": lambda model, **o: rw.find_places(model, PAIRS, reference=REFERENCE, **o),
    "estimate_corruption": lambda model, **o: rw.estimate_corruption(
        model, PAIRS, reference=REFERENCE, **o
    ),
    "rectify": lambda model, **o: rw.rectify(
        model, PAIRS, reference=REFERENCE, max_rounds=2, target_gap=0.0, max_degradation=0.5, **o
    ),
    "rectify with refining": lambda model, **o: rw.rectify(
        model, PAIRS, reference=MANY, max_rounds=1, target_gap=0.0, max_degradation=1.0,
        directions=("key",), ridges=(1.0,), refine_steps=2, **o,
    ),
}  # fmt: skip

SHORT: dict[str, Call] = {
    "editable_layers": lambda model: rw.editable_layers(model, REFERENCE),
    "evaluate": lambda model: rw.evaluate(
        model, (REFERENCE, LABELS), (corrupted(REFERENCE), LABELS), 0, confidence=0.9, batch_size=3
    ),
    "solve_edit without a matrix": lambda model: rw.solve_edit(
        model, PAIRS, reference=REFERENCE, layer="third", direction="key", ridge=0.1,
        solver="matrix-free",
    ),
    "static rectify": lambda model: rw.rectify(
        model, PAIRS, reference=REFERENCE, strategy="static", target_gap=0.0,
        validation=(REFERENCE, LABELS),
    ),
    "EditMeasure": lambda model: EditMeasure(model, PAIRS, REFERENCE).measure(model),
    "Transplant": lambda _: rw.Transplant(PAIRS, seed=3)(REFERENCE),
}  # fmt: skip
CALLS = {**LONG, **SHORT}


def comparable(result: object) -> object:
    """All figures of a result, without times and models."""
    if isinstance(result, rw.LayerCatalog):
        return list(result.editable), dict(result.refused), dict(result.upstream)
    if isinstance(result, rw.KeyStatistics):
        return [(n, s.total.tolist(), s.positions, s.fingerprint) for n, s in result.items()]
    if isinstance(result, rw.Localization):
        return list(result.scores.items()), result.order, dict(result.refused)
    if isinstance(result, rw.RankOneEdit):
        return result.layer, result.delta.tolist(), result.solved_for
    if isinstance(result, rw.Rectification):
        steps = [replace(step, seconds=0.0) for step in result.steps]
        edits = [comparable(edit) for edit in result.edits]
        state = {n: t.tolist() for n, t in unwrap(result.model).state_dict().items()}
        return steps, edits, state, result.gap_before, result.gap_after, str(result.diagnosis)
    return repr(result)
