"""Files that are written have the permissions of any other file, and nothing else is replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from rectify_widgets.engine.base.files import read_tensors, write_tensors

pytestmark = pytest.mark.skipif(os.name == "nt", reason="permissions are those of POSIX")


def write(path: object) -> None:
    write_tensors(path, "kind", {"one": torch.ones(2)}, {})


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_new_file_follows_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_overwriting_keeps_the_mode(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "old"
    file.write_bytes(b"old")
    file.chmod(mode)
    write(file)
    assert file.stat().st_mode & 0o777 == mode
    assert read_tensors(file, "kind", "a test")[1]["one"].tolist() == [1.0, 1.0]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"path: .* is no regular file"):
        write(pipe)
    assert pipe.is_fifo()
    for path in (tmp_path, "", "."):
        with pytest.raises(ValueError, match=r"path: .* is a folder, want the name of a file"):
            write(path)
