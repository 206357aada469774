"""The most memory that a block of code takes: resident on a CPU, as Linux counts it, or of a GPU.

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
    """The most memory beyond what was held before, in bytes; None where it is not known."""

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
        on_gpu = device.type == "cuda"
        most = torch.cuda.max_memory_allocated(device) if on_gpu else _status("VmHWM")
        peak.bytes = max(most - before, 0)


def check_peaks(device: torch.device) -> None:
    """Refuse a device whose peaks are not known.

    Raises:
        ValueError: it is no GPU of CUDA, and this is not Linux.
    """
    if _restart(device) is None:
        raise ValueError(
            f"device: got {str(device)!r}, whose peaks of memory are not known here; "
            "want 'cpu' on Linux, or 'cuda'"
        )


def _restart(device: torch.device) -> int | None:
    """Forget the highest so far; answers the bytes held now, None where they are not known.

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
    except (OSError, KeyError):
        return None


def _status(name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[name].split()[0])
