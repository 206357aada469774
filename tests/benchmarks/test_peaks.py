"""Peaks of memory are those of what was allocated, whatever the process freed before."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from tests.benchmarks import peaks
from tests.benchmarks.memory import Job, in_process
from tests.benchmarks.speed_fakes import PIECE, freed, pieces, taken

known = pytest.mark.skipif(not peaks.RESET.exists(), reason="this system does not say")


def resident() -> int:
    return peaks._status("VmRSS")


@known
def test_what_a_block_gave_back_counts() -> None:
    sizes = []
    for megabytes in (0, 64, 0, 128):
        with peaks.peak_memory() as peak:
            held = torch.ones(megabytes, 2**18)
            del held
        assert peak.bytes is not None
        sizes.append(peak.bytes / 2**20)
    assert sizes[0] < 16
    assert 60 < sizes[1] < 90
    assert sizes[2] < 16
    assert 120 < sizes[3] < 160


def one_block() -> None:
    torch.ones(40 * 2**18)


def many_pieces() -> None:
    pieces(40)


@known
@pytest.mark.parametrize("take", [one_block, many_pieces])
def test_what_was_freed_before_hides_nothing(take: object) -> None:
    assert callable(take)
    ctypes.CDLL(None).malloc_trim(0)  # what other tests freed goes back, and is not taken again
    before = resident()
    kept = freed(256)
    assert resident() - before > 200 * 2**20  # the heap stayed
    with peaks.peak_memory(torch.device("cpu")) as peak:
        take()
    assert kept.sum() == PIECE // 4
    assert peak.bytes is not None
    assert 38 * 2**20 < peak.bytes < 60 * 2**20


@known
def test_the_same_in_a_fresh_process() -> None:
    spent = in_process(Job("", "", 40), taken)
    assert 38 * 2**20 < spent.bytes < 60 * 2**20


def test_a_gpu_is_asked_for_what_it_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    allocated = {"now": 300, "most": 900}

    def reset(_: torch.device) -> None:
        allocated["most"] = allocated["now"]

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: allocated["most"])
    with peaks.peak_memory(device) as peak:
        allocated["most"] = max(allocated["most"], 750)
    assert peak.bytes == 450
    peaks.check_peaks(device)


def test_elsewhere_peaks_are_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with peaks.peak_memory(torch.device("meta")) as peak:
        pass
    assert peak.bytes is None
    monkeypatch.setattr(peaks, "RESET", tmp_path / "nowhere" / "clear_refs")
    with peaks.peak_memory() as peak:
        pass
    assert peak.bytes is None
    with pytest.raises(ValueError, match=r"device: got 'cpu'.* want 'cpu' on Linux, or 'cuda'"):
        peaks.check_peaks(torch.device("cpu"))


@known
def test_an_error_in_the_block_gets_through() -> None:
    with pytest.raises(ZeroDivisionError), peaks.peak_memory() as peak:
        raise ZeroDivisionError
    assert peak.bytes is None
