"""The command line of the package: ``python -m rectify_widgets tutorials DIR``.

Copies the tutorials out of an installed package, where nobody would look for them.  Imports the
standard library only.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

FIRST = "01_remove_a_trojan.ipynb"
OF_THE_CHECKOUT = {".py", ".cfg", ".pyc"}
"""Kinds of files beside the notebooks of a checkout that build the site and run the tests."""


def shipped() -> Path:
    """The folder with the tutorials: in a wheel beside this file, in a checkout ``notebooks``.

    Raises:
        FileNotFoundError: there is neither.
    """
    package = Path(__file__).parent
    for folder in (package / "tutorials", package.parent / "notebooks"):
        if (folder / FIRST).is_file():
            return folder
    raise FileNotFoundError(f"{package}: this installation has no tutorials; install a wheel")


def copy_tutorials(target: Path, *, force: bool = False) -> list[Path]:
    """Copy notebooks, the tables they read and the pages they link to; paths below ``target``.

    Args:
        target: a folder; made if there is none.
        force: overwrite files that are there already.

    Raises:
        FileNotFoundError: see `shipped`.
        FileExistsError: without ``force``, one of the files is there; nothing has been copied.
        OSError: ``target`` is a file, or cannot be written to.
    """
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target}: is a file, want a folder")
    source = shipped()
    names = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    names = [
        name
        for name in names
        if name.suffix not in OF_THE_CHECKOUT and not any(p.startswith(".") for p in name.parts)
    ]
    there = [name for name in names if (target / name).exists()]
    if there and not force:
        raise FileExistsError(
            f"{target}: {len(there)} of the {len(names)} files are there, {there[0]} first; "
            "nothing was copied; --force overwrites them"
        )
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0, or 2 where it was asked for what cannot be."""
    parser = argparse.ArgumentParser(prog="python -m rectify_widgets")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "copy the tutorials into a folder of yours"
    command = commands.add_parser("tutorials", help=about, description=about)
    command.add_argument("folder", type=Path, metavar="DIR", help="made if there is none")
    command.add_argument("--force", action="store_true", help="overwrite files that are there")
    options = parser.parse_args(arguments)
    try:
        copied = copy_tutorials(options.folder, force=options.force)
    except OSError as error:
        command.error(str(error))
    for name in copied:
        if name.suffix == ".ipynb":
            print(options.folder / name)
    print(f"and {sum(name.suffix != '.ipynb' for name in copied)} tables and pages beside them")
    opened = [sys.executable, "-m", "jupyterlab", str(options.folder / FIRST)]
    print(f"Open the first one:  {shlex.join(opened)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
