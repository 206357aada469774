"""Reading and writing tensors with a description, as safetensors.

Nothing in such a file can be executed; a file of another kind is refused before a tensor is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(
    path: object, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write ``tensors`` as a file of that ``kind``, see `write_whole`.

    Raises:
        TypeError, FileNotFoundError, PermissionError, ValueError: see `check_file`.
    """
    file = check_file("path", path)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(file, lambda beside: save_file(held, beside, {"format": kind, **metadata}))


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a temporary name and then move it to ``file``.

    An interruption leaves the old file or the new one, never half of it.
    """
    target = Path(os.path.realpath(file))  # a link stays one
    beside = target.with_name(f".{target.name}.partial")
    try:
        write(beside)
        beside.chmod(_mode_for(target))
        with beside.open("rb+") as written:
            os.fsync(written.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _mode_for(target: Path) -> int:
    """The permissions of the file that is replaced; of a new one, those that any new file gets."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def read_tensors(path: object, kind: str, what: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file of that ``kind``; ``what`` names its content in messages.

    Raises:
        TypeError: ``path`` is not a path.
        FileNotFoundError: there is no such file.
        ValueError: it is not a safetensors file, or one of another kind.
    """
    file = _path("path", path)
    if not file.is_file():
        raise FileNotFoundError(f"path: no file {str(file)!r}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"path: {str(file)!r} is not a safetensors file ({error})") from None
    if metadata.get("format") != kind:
        raise ValueError(f"path: {str(file)!r} holds no {what}, want a file written by save")
    return metadata, tensors


def check_file(argument: str, path: object) -> Path:
    """``path`` if a file can be written there.

    Raises:
        TypeError: it is not a path.
        FileNotFoundError: its folder does not exist.
        PermissionError: nothing can be written into that folder.
        ValueError: it is a folder itself, a device or the like.
    """
    file = _path(argument, path)
    if file.is_dir():
        raise ValueError(f"{argument}: {str(file)!r} is a folder, want the name of a file")
    if file.exists() and not file.is_file():
        raise ValueError(f"{argument}: {str(file)!r} is no regular file, want the name of a file")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{argument}: no folder {str(file.parent)!r}; make it first")
    folder = Path(os.path.realpath(file)).parent  # a link may point into another one
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{argument}: cannot write into the folder {str(folder)!r}; choose another one"
        )
    return file


def _path(argument: str, path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{argument}: got {type(path).__name__}, want the name of a file")
    return Path(os.fspath(path))
