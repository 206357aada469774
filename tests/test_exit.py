"""The interpreter ends while a widget works: nothing is aborted, and the exit status is 0."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import time
import torch
from torch import nn
import rectify_widgets as rw

torch.set_num_threads(1)
network = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
).eval()
clean = torch.rand(40, 3, 64, 64)
marked = clean.clone()
marked[:, :, :8, :8] = 1
pairs = rw.SamplePairs(marked, clean)
{widget}
time.sleep(0.2)
print("done" if widget.job.done else "at work")
"""
DASHBOARD = "widget = rw.RectificationDashboard(network, pairs, reference=clean); widget.rectify()"
VIEWER = "widget = rw.PredictionViewer(network, network, pairs)"
PAINTER = "widget = rw.MaskPainter(clean, model=network)"


def ended(widget: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(widget=widget)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("widget", "says"),
    [(DASHBOARD, "at work"), (VIEWER, ""), (PAINTER, "")],
    ids=["dashboard", "viewer", "painter"],
)
def test_ends_while_a_widget_works(widget: str, says: str) -> None:
    run = ended(widget)
    assert (run.returncode, run.stderr) == (0, "")
    assert says in run.stdout
