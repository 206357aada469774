"""The file of measured runs: one line of JSON each, safe against a kill.  Imports the plan.

    FOLDER/runs.jsonl

A line is on disk before the next run is measured.  What a kill left of a line is dropped when the
file is opened to go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.benchmarks.plan import Record

NAME = "runs.jsonl"


def read(folder: Path) -> list[Record]:
    """The records of a folder, in the order in which they were measured; none where none are.

    Raises:
        ValueError: a line other than the last is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [_record(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        record: Record = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{path}: got no JSON in line {number} ({error}); take the line out to go on"
        ) from error
    return record


@contextmanager
def opened(folder: Path) -> Iterator[RecordFile]:
    """The `RecordFile` of a folder for a block; nobody else may have it at the same time.

    Raises:
        ValueError: a line other than the last is damaged.
        BlockingIOError: another process has the folder open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
        _hold(lock, folder)
        yield RecordFile(folder)


class RecordFile:
    """The records of a folder, to go on with."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.keep(lambda _: True)

    def append(self, record: Record) -> None:
        """Write a record, and wait until the disk has it."""
        with self._path.open("ab") as file:
            _write(file, record)
        self.records.append(record)

    def keep(self, wanted: Callable[[Record], bool]) -> None:
        """Drop the other records, and what a kill left of a line; all of them or none."""
        self.records = [record for record in read(self._path.parent) if wanted(record)]
        draft = self._path.with_suffix(".draft")
        with draft.open("wb") as file:
            _write(file, *self.records)
        draft.replace(self._path)


def _write(file: IO[bytes], *records: Record) -> None:
    for record in records:
        file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _hold(lock: IO[str], folder: Path) -> None:
    """Keep others out; systems without such locks trust the user."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BlockingIOError(
            f"out: another run has {folder} open; wait for it or give another folder"
        ) from error
