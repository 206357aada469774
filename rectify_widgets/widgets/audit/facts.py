"""What an audit report states, as plain values that go to JSON.  Draws nothing.

Imports the engine.  Shares are fractions from 0 to 1.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import digest
from rectify_widgets.engine.measure.groups import Group, GroupTable
from rectify_widgets.engine.measure.metrics import Report
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.running import unwrap
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.result import Rectification

FORMAT = "rectify_widgets.report.1"
PACKAGES = ("torch", "numpy", "safetensors")


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Digest of named tensors, the same on every device."""
    whole = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        whole.update(f"{name} {digest(tensor)}".encode())
    return whole.hexdigest()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in unwrap(model).state_dict().items() if isinstance(x, Tensor)}


def model_facts(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """The network before and after, by fingerprints of all its weights."""
    return {
        "type": type(unwrap(after)).__name__,
        "parameters": sum(p.numel() for p in after.parameters()),
        "fingerprint_before": fingerprint(_weights(before)),
        "fingerprint_after": fingerprint(_weights(after)),
    }


def pair_facts(pairs: SamplePairs) -> dict[str, Any]:
    """How many pairs, of what shape, and their fingerprint."""
    return {
        "count": len(pairs),
        "shape": list(pairs.corrupted.shape[1:]),
        "labels_given": pairs.labels is not None,
        "fingerprint": fingerprint({"corrupted": pairs.corrupted, "clean": pairs.clean}),
    }


def edit_facts(result: Rectification, before: nn.Module) -> list[dict[str, Any]]:
    """Each kept edit: its layer, how it was solved, its Frobenius norm and its fingerprint."""
    modules = dict(unwrap(before).named_modules())
    found = []
    for edit in result.edits:
        weight: Any = modules[edit.layer].weight
        norm = float(edit.delta.double().norm())
        found.append(
            {
                "layer": edit.layer,
                "weight_shape": list(edit.shape),
                "solved": edit.settings,
                "norm": norm,
                "relative_norm": norm / max(float(weight.detach().double().norm()), 1e-300),
                "solved_for_weight": edit.solved_for,
                "fingerprint": fingerprint({"left": edit.left, "right": edit.right}),
            }
        )
    return found


def repair_facts(result: Rectification) -> dict[str, Any]:
    """How the repair went: gap, degradation, evidence, and every trial."""
    return {
        "strategy": result.strategy,
        "stopped": result.stopped,
        "gap_before": result.gap_before,
        "gap_after": result.gap_after,
        "target_gap": result.target_gap,
        "degradation": result.degradation,
        "max_degradation": result.max_degradation,
        "flagged_references": result.flagged.tolist(),
        "evidence": None if result.evidence is None else asdict(result.evidence),
        "diagnosis": list(result.diagnosis),
        "trials": [asdict(step) for step in result.steps],
    }


def report_facts(report: Report) -> dict[str, Any]:
    """The figures of a test set with their intervals."""
    return {
        "samples": list(report.samples),
        "figures": {
            name: {"value": value, "interval": list(report.intervals.get(name, ())) or None}
            for name, value in report.figures().items()
        },
    }


def table_facts(table: GroupTable | None) -> list[dict[str, Any]] | None:
    """A row for each label and group."""
    return None if table is None else [_row_facts(row) for row in table.rows]


def _row_facts(row: Group) -> dict[str, Any]:
    plain = row.group is None or isinstance(row.group, str | int | float)
    return {
        "attribute": row.attribute or None,
        "label": row.label,
        "present": row.present,
        "group": row.group if plain else str(row.group),
        "samples": row.samples,
        "right_before": row.before,
        "right_after": row.right,
        "interval_before": row.interval_before,
        "interval_after": row.interval,
        "change": row.change,
    }


def not_tried(
    result: Rectification, before: nn.Module, measured: Sequence[str]
) -> dict[str, list[str]]:
    """What a reader must not take for tested: layers, measurements, and other ways.

    ``measured`` names the arguments that were given.
    """
    catalog = editable_layers(before)
    tried = {step.layer for step in result.steps} | {edit.layer for edit in result.edits}
    left = [name for name in catalog.editable if name not in tried]
    rolled = sorted(
        {s.layer for s in result.steps if not s.accepted} - {e.layer for e in result.edits}
    )
    layers = []
    if rolled:
        layers.append(f"Edited and rolled back in: {', '.join(rolled)}.")
    if left:
        layers.append(
            f"{len(left)} layers that can be edited were scored at most: {', '.join(left)}."
        )
    if catalog.refused:
        reasons = "; ".join(f"{name}: {why}" for name, why in catalog.refused.items())
        layers.append(f"These layers cannot be edited ({reasons}).")
    gaps = {
        "clean": "No labelled test set was given: the cost in accuracy is known on references only.",
        "corrupted": "No corrupted test set was given: how often the behaviour is left was not measured.",
        "target": "No target was given: the attack success rate was not measured.",
        "groups": "No groups were given: a subgroup within a class may have lost more than its class.",
    }
    others = [
        "Corruptions other than the one that the pairs show, and inputs unlike those measured here.",
        "An adversary who knows the repair: this is a repair of one behaviour and no defence.",
        "Other remedies, such as training again on corrected data.",
    ]
    missing = [text for name, text in gaps.items() if name not in measured]
    return {"layers": layers, "not measured": missing, "not tested": others}


def reproduce_facts(result: Rectification, code: str) -> dict[str, Any]:
    """Versions, seed, options and the call."""
    options = result.options
    own = sys.modules["rectify_widgets"].__version__  # importing it here would be a circle
    versions = {"rectify_widgets": own, **{name: version(name) for name in PACKAGES}}
    device = next((p.device.type for p in result.model.parameters()), "cpu")
    return {
        "versions": {"Python": platform.python_version(), **versions},
        "system": f"{platform.system()} {platform.machine()}, model on {device}",
        "seed": None if options is None else options.seed,
        "options": None if options is None else asdict(options),
        "call": None if options is None else call_of(options),
        "code": code,
        "seconds": dict(result.seconds),
    }


def call_of(options: RectifyOptions) -> str:
    """The call with every option that is not the default, and the seed."""
    usual = asdict(RectifyOptions(strategy=options.strategy))
    given = {
        name: value
        for name, value in asdict(options).items()
        if value != usual[name] or name in ("strategy", "seed")
    }
    lines = "".join(f"    {name}={value!r},\n" for name, value in given.items())
    return f"result = rw.rectify(\n    model, pairs, reference=reference,\n{lines})"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
