"""The file of measured cells: one line of JSON each, safe against a kill.  Imports the plan.

    FOLDER/cells.jsonl

A line is on disk before the next cell is measured.  What a kill left of a line is dropped when the
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

NAME = "cells.jsonl"
LOCK = ".lock"


def read(folder: Path) -> list[Record]:
    """The records of a folder, in the order in which they were measured; none where none are.

    Raises:
        ValueError: a line other than the last is damaged.
    """
    return _parsed(folder / NAME)[0]


class Journal:
    """The file of a folder, open to go on; nobody else may at the same time.

    Raises:
        ValueError: a line other than the last is damaged.
        BlockingIOError: another run has the folder open.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / LOCK).open("w", encoding="utf-8")
        self._file: IO[bytes] | None = None
        try:
            _hold(self._lock, folder)
            self._path = folder / NAME
            self.records, size = _parsed(self._path)
            self._file = self._path.open("ab")
            self._file.truncate(size)
        except BaseException:
            self.close()
            raise

    def append(self, record: Record) -> None:
        """Write a record, and wait until the disk has it."""
        assert self._file is not None
        self._file.write(_line(record))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)

    def forget(self, gone: Callable[[Record], bool]) -> int:
        """Drop records; answers how many.  They are all there, or all gone."""
        kept = [record for record in self.records if not gone(record)]
        dropped = len(self.records) - len(kept)
        if dropped:
            assert self._file is not None
            draft = self._path.with_suffix(".draft")
            with draft.open("wb") as file:
                file.writelines(map(_line, kept))
                file.flush()
                os.fsync(file.fileno())
            self._file.close()
            draft.replace(self._path)
            self._file = self._path.open("ab")
            self.records = kept
        return dropped

    def close(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            self._file.close()
        self._lock.close()


@contextmanager
def journal(folder: Path) -> Iterator[Journal]:
    """The `Journal` of a folder for a block."""
    opened = Journal(folder)
    try:
        yield opened
    finally:
        opened.close()


def _parsed(path: Path) -> tuple[list[Record], int]:
    """All records, and how many bytes of the file they are."""
    if not path.exists():
        return [], 0
    content = path.read_bytes()
    size = content.rfind(b"\n") + 1
    lines = content[:size].splitlines()
    return [_record(path, number, line) for number, line in enumerate(lines, 1)], size


def _record(path: Path, number: int, line: bytes) -> Record:
    try:
        record: Record = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{path}: got no JSON in line {number} ({error}); take the line out to go on"
        ) from error
    return record


def _line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


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
