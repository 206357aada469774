"""A rectification in a process of its own that kills itself, for test_checkpoint.py.

``python -m tests.engine.killed FOLDER WHEN``: the network's weights, pairs and references are read
from ``FOLDER/stage.safetensors``; ``WHEN`` is the beginning of a progress message at which the
process dies, or ``write N``, in the middle of the ``N``-th write of the checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.repair.rectification import rectify
from tests.engine.toy import network

OPTIONS: dict[str, Any] = {"max_rounds": 5, "target_gap": 0.0, "refine_steps": 20}


def put_down(folder: Path, model: nn.Module, pairs: SamplePairs, reference: torch.Tensor) -> None:
    """Write all that the process needs."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    rest = {"corrupted": pairs.corrupted, "clean": pairs.clean, "reference": reference}
    save_file({**weights, **rest}, folder / "stage.safetensors")


def die() -> None:
    """At once, and with no chance to tidy up."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, when: str) -> None:
    """Rectify until the moment has come."""
    torch.set_num_threads(1)
    stage = load_file(folder / "stage.safetensors")
    model = network()
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in stage.items() if k.startswith("model.")}
    )

    def reported(_: float, message: str) -> None:
        if message.startswith(when):
            die()

    written = 0
    fsync = os.fsync

    def counted(fd: Any) -> None:
        nonlocal written
        written += 1
        if when == f"write {written}":
            os.ftruncate(fd, 100)  # half of it is on the disk
            die()
        fsync(fd)

    os.fsync = counted
    rectify(
        model, SamplePairs(stage["corrupted"], stage["clean"]), reference=stage["reference"],
        checkpoint=folder / "run.safetensors", progress=reported, **OPTIONS,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
