"""Run the shared browser test against another kernel:  ``python -m tests.browser.versions``.

    python -m tests.browser.versions --ipykernel 6.30 --frontend lab
    python -m tests.browser.versions --ipykernel 6.30 7.3 7.4 --frontend lab notebook voila

Each version gets a temporary environment that reuses the packages of the present one and holds
nothing but that ipykernel, and what it needs that is not there.  Imports the standard library only.
"""

from __future__ import annotations

import argparse
import os
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.browser.frontends import FRONTENDS, ROOT
from tests.browser.test_every_frontend import VERSION

TEST = "tests/browser/test_every_frontend.py"


@contextmanager
def environment(ipykernel: str) -> Iterator[Path]:
    """Python of an environment with this ipykernel; what it lacks is taken from the present one."""
    with tempfile.TemporaryDirectory(prefix="rectify_widgets-") as folder:
        place = Path(folder)
        venv.create(place, symlinks=True)
        python = place / "bin" / "python"
        (packages,) = (place / "lib").glob("python*/site-packages")
        # A .pth file comes after the environment's own packages, so these take precedence.
        (packages / "present.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
                *("--disable-pip-version-check", f"ipykernel=={ipykernel}.*"),
            ],
            check=True,
        )
        _link(Path(sys.prefix) / "share" / "jupyter", place / "share" / "jupyter")
        _link(Path(sys.prefix) / "etc" / "jupyter", place / "etc" / "jupyter")
        yield python


def _link(present: Path, place: Path) -> None:
    """Have the front ends' own files in the new environment, but not the kernel's."""
    place.mkdir(parents=True, exist_ok=True)
    for entry in present.iterdir():
        if entry.name != "kernels" and not (place / entry.name).exists():
            (place / entry.name).symlink_to(entry)


def try_version(python: Path, ipykernel: str, frontend: str) -> bool:
    """Whether the shared test passes with this kernel in this front end."""
    command = [str(python), "-m", "pytest", "-q", "-s", TEST, f"--frontend={frontend}"]
    variables = os.environ | {VERSION: ipykernel, "CI": "true"}
    return subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode == 0


def main(arguments: list[str] | None = None) -> None:
    """Run every combination, and say at the end which passed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.browser.versions", description="Browser test with other kernels."
    )
    parser.add_argument("--ipykernel", nargs="+", required=True, help="versions, such as 6.30 7.4")
    parser.add_argument("--frontend", nargs="+", choices=[*FRONTENDS], default=["lab"])
    options = parser.parse_args(arguments)
    passed: dict[str, bool] = {}
    for ipykernel in options.ipykernel:
        with environment(ipykernel) as python:
            for frontend in options.frontend:
                name = f"ipykernel {ipykernel}, {frontend}"
                passed[name] = try_version(python, ipykernel, frontend)
    for name, good in passed.items():
        print(f"{name}: {'passed' if good else 'FAILED'}")
    sys.exit(not all(passed.values()))


if __name__ == "__main__":
    main()
