"""The most memory that a block of code takes: resident on a CPU, as Linux tells it, or of a GPU.

Imports the engine's memory.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from rectify_widgets.engine.model.memory import hand_back

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """The most memory beyond what was held before, in bytes; None where nobody can tell."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device | None = None) -> Iterator[Peak]:
    """Measure what a block takes at most; the figure is there when the block has ended.

    Args:
        device: whose memory; None is that of the CPU.
    """
    device = device or torch.device("cpu")
    before, peak = _restart(device), Peak()
    yield peak
    if before is not None:
        peak.bytes = max(_highest(device) - before, 0)


def check_peaks(device: torch.device) -> None:
    """Refuse a device whose peaks nobody can tell.

    Raises:
        ValueError: it is no GPU of CUDA, and this is not Linux.
    """
    if _restart(device) is None:
        raise ValueError(
            f"device: got {str(device)!r}, whose peaks of memory cannot be told here; "
            "want 'cpu' on Linux, or 'cuda'"
        )


def _restart(device: torch.device) -> int | None:
    """Forget the highest so far; answers the bytes held now, None where nobody can tell.

    What earlier work freed but did not hand back to the system is handed back first: it would hide
    what comes next.
    """
    gc.collect()
    hand_back(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        RESET.write_text("5", encoding="ascii")  # what was highest becomes what is held now
        return _status("VmRSS")
    except (OSError, ValueError):
        return None


def _highest(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int:
    """A line of the process's status, in bytes."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"{STATUS} has no line {name}")
