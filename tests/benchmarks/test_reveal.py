"""What the benchmark of `reveal` counts, on a network whose short cut is known."""

from __future__ import annotations

import torch

from tests.benchmarks.reveal import _draw
from tests.test_reveal import CARRIERS, Quarters, references


def test_a_draw_counts_carriers_and_others() -> None:
    images = references()
    rest = [row for row in range(len(images)) if row not in CARRIERS]
    ordered = images[torch.tensor([*CARRIERS, *rest])]
    *found, seconds = _draw(Quarters(40.0).eval(), ordered, 3, 0, 0)
    assert found == [True, 1, 1.0, 0.0, 1.0, False]
    assert seconds > 0
    first, _, recall, false, *_ = _draw(Quarters(40.0).eval(), ordered, 2, 0, 0)
    assert (first, recall) == (True, 1.0)
    assert false == 1 / 78, "the third one counts as a mistake"
    missed = _draw(Quarters(40.0).eval(), ordered, 3, 2, 0)
    assert missed[:4] == (0.0, missed[1], 0.0, 0.0)
    assert missed[5], "class 0 is accused instead"
