"""``python -m tests.benchmarks pace``: whether what the progress bars promise comes true."""

from __future__ import annotations

import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial

import torch

import rectify_widgets as rw
from rectify_widgets.cases import pretrained
from rectify_widgets.cases.case import Case
from rectify_widgets.engine.base.progress import UNKNOWN, Monitor
from tests.benchmarks.reveal import CASES, COUNT, carriers_of
from tests.benchmarks.tables import Cell, Table

CARTON = "carton"
"""The case of 224 × 224 pixels; its network comes from a file, so it is measured where it is named."""
AT = 0.2, 0.4, 0.6, 0.8
"""Shares of the time at which the estimate is looked at."""
Heard = Sequence[tuple[float, float, str]]
"""Seconds since the beginning, and the fraction and message reported."""


def measure_pace(options: Namespace, monitor: Monitor) -> Table:
    """Each long call on each case, once; ``--cases carton`` measures one at 224 × 224 pixels."""
    table = Table(
        "pace",
        "Seconds that a bar promises at some shares of the time, over those that are left; '–': no "
        "time is told yet. Outside: share of the time after the first fifth at which a time is told "
        "that is off by more than a factor of two (and more than two seconds). Silent: the longest "
        "time between two reports, in seconds, and what was reported before it.",
    )
    names = options.cases or CASES
    for number, name in enumerate(names):
        case = pretrained.carton() if name == CARTON else rw.cases.load(name)
        for call, work in _calls(case).items():
            monitor.report(number / len(names), f"{name}: {call}")
            heard: list[tuple[float, float, str]] = []
            began = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work(progress=lambda *report, heard=heard, began=began: heard.append(
                    (time.perf_counter() - began, *report)
                ))  # fmt: skip
            table.add(call=call, case=name, **promises(heard, time.perf_counter() - began))
    return table


def _calls(case: Case) -> dict[str, Callable[..., object]]:
    pair = case.pairs[:1]
    calls: dict[str, Callable[..., object]] = {
        "rectify": partial(rw.rectify, case.model, pair, reference=case.reference),
        "closed form": partial(
            rw.rectify, case.model, pair, reference=case.reference, refine_steps=0
        ),
        "localize": partial(rw.localize, case.model, pair, reference=case.reference),
    }
    if case.name in CASES:
        images = case.reference[:COUNT].clone()
        images[:20] = carriers_of(case, images[:20], torch.Generator().manual_seed(0))
        calls["reveal"] = partial(rw.reveal, case.model, images)
    return calls


def promises(heard: Heard, took: float) -> dict[str, Cell]:
    """The columns of one call that took so many seconds."""
    ends = [*(at for at, *_ in heard), took]
    silent, after = max(
        (end - at, text)
        for (at, _, text), end in zip([(0.0, 0.0, "the call"), *heard], ends, strict=True)
    )
    outside = 0.0
    for (at, fraction, _), end in zip(heard, ends[1:], strict=True):
        told, left = _told(at, fraction), took - at
        if told is not None and at > 0.2 * took and abs(told - left) > 2.0:
            outside += (end - at) * (max(told, left) > 2.0 * min(told, left))
    return {
        "seconds": took,
        **{f"at {at:.0%}": _ratio(heard, at, took) for at in AT},
        "outside, %": 100.0 * outside / took,
        "silent": silent,
        "after": after,
    }


def _told(at: float, fraction: float) -> float | None:
    """The seconds left as widgets tell them, see `Job.seconds_left`."""
    return None if fraction <= UNKNOWN else at * (1.0 - fraction) / fraction


def _ratio(heard: Heard, share: float, took: float) -> str:
    now = share * took
    told = next((_told(*report[:2]) for report in reversed(heard) if report[0] <= now), None)
    return "–" if told is None else f"{told / (took - now):.2f}"
