"""Pieces of work that several widgets have done in the background.  Imports the engine and the jobs.

Each takes the job's hooks, calls the engine, and returns what a widget shows.  None of them touches
a widget or changes the model that it is given (see `session`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.localization import Localization, localize
from rectify_widgets.engine.model.running import copied
from rectify_widgets.widgets.session import Job


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


def join(first: SamplePairs, second: SamplePairs) -> SamplePairs:
    """Pairs followed by further pairs of the same sample shape; they keep the first ones' `corrupt`."""
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
        first.corrupt,
    )
