"""Ctrl-C at random lines of the package: it ends the call, and the model is as it was."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import rectify_widgets as rw
from tests.engine.traces import Tiny, untouched

PACKAGE = str(Path(rw.__file__).parent)
X = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PAIRS = rw.SamplePairs(X[:2].clamp(max=0.5), X[:2], torch.tensor([0, 1]))

CALLS: dict[str, Callable[[Tiny], object]] = {
    "editable_layers": lambda model: rw.editable_layers(model, X),
    "collect": lambda model: rw.KeyStatistics.collect(model, X),
    "attribute": lambda model: rw.attribute(model, X[:2], steps=4),
    "evaluate": lambda model: rw.evaluate(model, clean=(X, torch.zeros(12, dtype=torch.long))),
    "localize": lambda model: rw.localize(model, PAIRS, reference=X),
    "rectify": lambda model: rw.rectify(
        model, PAIRS, reference=X, max_rounds=1, refine_steps=2, ridges=(0.1,), directions=("key",)
    ),
}


class Lines:
    """Counts the lines of the package that run, and presses Ctrl-C at one of them."""

    def __init__(self, press_at: int = -1) -> None:
        self.count, self.press_at, self.where = 0, press_at, ""

    def __call__(self, frame: FrameType, event: str, _: object) -> Lines | None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.press_at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return self


def traced(lines: Lines, call: Callable[[], object]) -> None:
    """Run the call under the tracer; Python's own handler gets Ctrl-C."""
    before: Any = signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = sys.gettrace()
    sys.settrace(lines)
    try:
        call()
    finally:
        sys.settrace(kept)
        signal.signal(signal.SIGINT, before)


def interrupt(name: str, points: int) -> None:
    model = Tiny()
    counted = Lines()
    traced(counted, lambda: CALLS[name](model))
    draw = random.Random(0)
    for point in sorted(draw.sample(range(1, counted.count), points)):
        lines = Lines(point)
        with untouched(model, when=f"of Ctrl-C at line {point}"), pytest.raises(KeyboardInterrupt):
            traced(lines, lambda: CALLS[name](model))
        assert lines.where


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_of_an_interrupted_call(name: str) -> None:
    interrupt(name, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_of_many_interrupted_calls(name: str) -> None:
    interrupt(name, 60)
