"""What the dashboard's buttons have done in the background.  Imports the engine and the jobs.

Each function is the work of one job: it takes the job's hooks, calls the engine, and returns what
the widget shows.  None of them touches a widget, and none changes the model that it is given: they
work on a copy, so that maps of the model can be drawn meanwhile (see `session`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rectify_widgets.engine.editability import Localization
from rectify_widgets.engine.editing import RankOneEdit, save_edits
from rectify_widgets.engine.history import Rectification
from rectify_widgets.engine.inspection import unwrap
from rectify_widgets.engine.localization import localize
from rectify_widgets.engine.pairs import SamplePairs
from rectify_widgets.engine.rectification import rectify
from rectify_widgets.engine.solving import solve_edit
from rectify_widgets.widgets.jobs import Job


@dataclass(frozen=True)
class Edited:
    """A model with one more group of edits.

    Attributes:
        model: a copy with all edits so far; None where none is left.
        edits: the group that was added, empty after an undo.
    """

    model: nn.Module | None
    edits: tuple[RankOneEdit, ...]


def copied(model: nn.Module) -> nn.Module:
    """A copy of the unwrapped model that shares nothing with it."""
    try:
        return copy.deepcopy(unwrap(model))
    except Exception as error:
        raise ValueError(
            f"model: it cannot be copied ({type(error).__name__}: {error}); detach tensors kept as "
            "attributes, or give modules that hold locks or files a __deepcopy__"
        ) from error


def locate(
    job: Job[Any],
    model: nn.Module,
    pairs: SamplePairs,
    *,
    span: tuple[float, float] = (0.0, 1.0),
    **options: Any,
) -> Localization:
    """Score every layer; ``span`` is the slice of the job's progress that it takes."""
    return localize(copied(model), pairs, progress=job.part(*span), cancel=job.cancelled, **options)


def edit_layer(
    job: Job[Any], model: nn.Module, pairs: SamplePairs, layer: str | None, **options: Any
) -> Edited:
    """Solve the edit of one layer and apply it to a copy of the model."""
    edited = copied(model)
    edit = solve_edit(
        edited, pairs, layer=layer, progress=job.progress, cancel=job.cancelled, **options
    )
    job.check()
    edit.apply(edited)
    return Edited(edited, (edit,))


def rectify_model(
    job: Job[Any],
    model: nn.Module,
    pairs: SamplePairs,
    *,
    span: tuple[float, float] = (0.0, 1.0),
    **options: Any,
) -> Rectification:
    """Edit until the target is reached; ``span`` is the slice of the job's progress."""
    return rectify(model, pairs, progress=job.part(*span), cancel=job.cancelled, **options)


def replay(_: Job[Any], model: nn.Module, edits: Iterable[RankOneEdit]) -> Edited:
    """A copy of the model with these edits applied in order."""
    remaining = list(edits)
    if not remaining:
        return Edited(None, ())
    edited = copied(model)
    for edit in remaining:
        edit.apply(edited)
    return Edited(edited, ())


def save(_: Job[Any], edits: Iterable[RankOneEdit], path: Path) -> Path:
    """Write the edits to a safetensors file."""
    save_edits(list(edits), path)
    return path


def join(first: SamplePairs, second: SamplePairs) -> SamplePairs:
    """Pairs followed by further pairs of the same sample shape."""
    if first.clean.shape[1:] != second.clean.shape[1:]:
        raise ValueError(
            f"examples: got samples of shape {tuple(second.clean.shape[1:])}, want "
            f"{tuple(first.clean.shape[1:])} as in pairs"
        )
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = torch.cat([first.labels, second.labels.to(first.labels)])
    return SamplePairs(
        torch.cat([first.corrupted, second.corrupted.to(first.corrupted)]),
        torch.cat([first.clean, second.clean.to(first.clean)]),
        labels,
    )
