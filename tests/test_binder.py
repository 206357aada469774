"""The Binder files install, in a fresh environment, what they promise.

Installs exactly binder/requirements.txt (from the top of the repository, as Binder does, but most of
it with uv) and runs binder/postBuild.  That is all of an image that can be tried without a container.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path

import pytest

OFFLINE = re.compile(
    r"NewConnectionError|ConnectTimeout|Temporary failure in name resolution|"
    r"Name or service not known|Network is unreachable|error sending request",
)


def pins(path: Path) -> dict[str, str]:
    """Name -> version of every pinned line."""
    found = re.findall(r"^([\w-]+)==([\w.+]+)", path.read_text(), re.MULTILINE)
    return dict(found)


def test_pins_are_those_the_tests_pass_with(repository: Path) -> None:
    binder = pins(repository / "binder/requirements.txt")
    tested = pins(repository / ".ci/constraints.txt")
    assert binder.items() <= tested.items()


def test_every_dependency_is_pinned(repository: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["lab"]]
    names = {re.split(r"[^\w-]", line)[0] for line in wanted}
    assert names <= set(pins(repository / "binder/requirements.txt"))


def test_files_are_as_binder_reads_them(repository: Path) -> None:
    binder = repository / "binder"
    assert (binder / "runtime.txt").read_text().strip() == "python-3.11"
    assert "." in (binder / "requirements.txt").read_text().splitlines()
    assert (binder / "postBuild").read_text().startswith("#!/bin/bash\n")
    assert os.access(binder / "postBuild", os.X_OK)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="binder/runtime.txt names Python 3.11")
def test_fresh_environment_from_exactly_these_files(repository: Path, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_QUIET"}
    } | {"PATH": path}
    run = partial(
        subprocess.run, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    own, to = [sys.executable, "-m"], ["--python", str(python)]
    torch = f"torch=={pins(repository / 'binder/requirements.txt')['torch']}"
    for command in (
        [*own, "pip", *to, "install", "-q", "--no-compile", torch],  # finds the wheel for CPUs
        [*own, "uv", "pip", "install", "-q", *to, "-r", "binder/requirements.txt"],
        [*own, "uv", "pip", "check", "-q", *to],
    ):
        done = run(command, cwd=repository)
        if done.returncode and OFFLINE.search(done.stderr):
            pytest.skip(f"offline: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stdout + done.stderr

    # From another folder, so that the installed copy is imported and not the checkout.
    build = run([repository / "binder" / "postBuild"], cwd=tmp_path)
    assert build.returncode == 0, build.stderr
    assert re.search(r"^rectify_widgets \d+\.\d+\.\d+ on torch 2\.", build.stdout, re.MULTILINE)

    where = "import rectify_widgets as rw; rw.cases.load('trojan'); print(rw.__file__)"
    found = run([python, "-c", where], cwd=tmp_path)
    assert found.stdout.startswith(str(place)), found.stderr
