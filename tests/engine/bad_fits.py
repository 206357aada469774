"""Inputs that are fine by themselves and do not fit the network: other channels, another size.

Imports the engine; adds its cases to ``bad_inputs.CASES``, each kind for every call that runs a network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets import baselines
from tests.engine.bad_inputs import Stage, bad
from tests.engine.traces import Tiny


class OneSize(nn.Module):
    """A network that is right for 3 × 8 × 8 inputs and for nothing else."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.third = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(144, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.third(x)).flatten(1))  # type: ignore[no-any-return]


Shape = tuple[int, ...]


def _inputs(shape: Shape) -> Tensor:
    return torch.rand(64, *shape, generator=torch.Generator().manual_seed(5))


def _pairs(shape: Shape) -> rw.SamplePairs:
    clean = _inputs(shape)[:4]
    marked = clean.clone()
    marked[:, :, :3, :3] = 1.0
    return rw.SamplePairs(marked, clean)


def _masks(shape: Shape) -> Tensor:
    masks = torch.zeros(4, *shape[1:], dtype=torch.bool)
    masks[:, :3, :3] = True
    return masks


LABELS = torch.arange(64) % 4

# fmt: off
CALLS: dict[str, tuple[str, Callable[[Any, Shape], object]]] = {
    "editable_layers": ("example", lambda m, of: rw.editable_layers(m, _inputs(of))),
    "attribute": ("inputs", lambda m, of: rw.attribute(m, _inputs(of), method="saliency")),
    "KeyStatistics.collect": ("reference", lambda m, of: rw.KeyStatistics.collect(m, _inputs(of))),
    "localize": ("pairs", lambda m, of: rw.localize(m, _pairs(of), reference=_inputs(of))),
    "solve_edit": ("pairs", lambda m, of: rw.solve_edit(m, _pairs(of), reference=_inputs(of))),
    "find_corrupted": ("pairs", lambda m, of: rw.find_corrupted(m, _pairs(of), _inputs(of))),
    "find_places": ("pairs", lambda m, of: rw.find_places(m, _pairs(of))),
    "estimate_corruption": ("pairs", lambda m, of: rw.estimate_corruption(m, _pairs(of))),
    "rectify": ("pairs", lambda m, of: rw.rectify(m, _pairs(of), reference=_inputs(of))),
    "evaluate": ("clean", lambda m, of: rw.evaluate(m, (_inputs(of), LABELS))),
    "estimate_memory": ("input_shape", rw.estimate_memory),
    "cleanse": ("inputs", lambda m, of: rw.cleanse(_inputs(of)[:4], _masks(of), model=m)),
    "suggest_masks": ("inputs", lambda m, of: rw.suggest_masks(m, _inputs(of)[:4])),
    "reveal": ("reference", lambda m, of: rw.reveal(m, _inputs(of))),
    "smallest_changes": ("reference", lambda m, of: rw.smallest_changes(m, _inputs(of))),
    "baselines.run": ("pairs", lambda m, of: baselines.run("fine_tuning", m, _pairs(of))),
}
KINDS: dict[str, tuple[Shape, Callable[[], nn.Module], str]] = {
    "one channel": ((1, 8, 8), Tiny, r"\(1, 8, 8\), want 3 channels.*\.expand"),
    "channels last": ((8, 8, 3), Tiny, r"\(8, 8, 3\), want 3 channels.*\.permute\(0, 3, 1, 2\)"),
    "another size": ((3, 8, 6), OneSize, r"\(3, 8, 6\), want samples of the shape"),
}
# fmt: on


def _add(function: str, kind: str) -> None:
    argument, call = CALLS[function]
    shape, model, says = KINDS[kind]

    def made(stage: Stage) -> object:
        return call(stage.model, shape)

    bad(
        function, f"{kind} that the network does not take", argument, ValueError, says, made,
        model=model,
    )  # fmt: skip


for name in CALLS:
    for what in KINDS:
        if (name, what) != ("suggest_masks", "channels last"):  # too narrow for it
            _add(name, what)

bad(
    "KeyStatistics.collect", "a single image without the batch dimension", "reference", ValueError,
    r"\(8, 8\), want .*\[None\]",
    lambda s: rw.KeyStatistics.collect(s.model, s.reference[0]),
)  # fmt: skip
bad(
    "estimate_corruption", "a label past the last class", "pairs.labels", ValueError, "want 0 to 3",
    lambda s: rw.estimate_corruption(
        rw.adapt(s.model, task="multiclass", scores="logits"),  # two samples tell too little
        rw.SamplePairs(s.marked, s.clean, torch.tensor([0, 9])),
    ),
)  # fmt: skip
