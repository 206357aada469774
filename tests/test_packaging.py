"""The wheel and the sdist hold what they should, and the metadata says what the README promises.

Builds both with hatchling from the working tree, without a network.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

MEGABYTE = 1_000_000
DATA = "rectify_widgets/cases/data/"


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(place)],
        cwd=repository,
        check=True,
        capture_output=True,
        text=True,
    )
    return place


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sizes(wheel: Path) -> dict[str, int]:
    """Path inside the wheel -> bytes."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def test_wheel_holds_the_package_and_nothing_else(sizes: dict[str, int]) -> None:
    strays = [n for n in sizes if not re.match(r"rectify_widgets(-[\d.]+\.dist-info)?/", n)]
    assert not strays
    assert not [n for n in sizes if re.search(r"(^|/)tests?/|\.ipynb$|\.pyc$|\.pt[h]?$|\.pkl$", n)]


def test_wheel_holds_every_source_file(sizes: dict[str, int], repository: Path) -> None:
    sources = {
        p.relative_to(repository).as_posix() for p in repository.glob("rectify_widgets/**/*.py")
    }
    assert sources <= set(sizes)
    assert "rectify_widgets/py.typed" in sizes


def test_wheel_holds_the_data_and_its_licence(sizes: dict[str, int]) -> None:
    data = [name for name in sizes if name.startswith(DATA)]
    assert [name for name in data if re.search(r"licen[cs]e|notice", name, re.IGNORECASE)]
    assert [name for name in data if name.endswith(".safetensors")]
    assert [name for name in sizes if name.endswith(".dist-info/licenses/LICENSE")]


def test_data_is_small(sizes: dict[str, int]) -> None:
    data = {name: size for name, size in sizes.items() if name.startswith(DATA)}
    assert 0 < sum(data.values()) <= 9 * MEGABYTE, data


def test_installed_wheel_loads_its_case_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)  # noqa: S202  # our own wheel
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import rectify_widgets as rw\n"
        "assert rw.__file__.startswith(sys.argv[1]), rw.__file__\n"
        "case = rw.cases.load('trojan')\n"
        "print(len(case.pairs) > 0, len(case.reference) > 0)\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = subprocess.run(
        [sys.executable, "-c", program, str(target)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "True True", run.stderr


def test_sdist_builds_and_tests_itself(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "rectify_widgets/py.typed",
        "tests/conftest.py",
        "binder/requirements.txt",
        ".ci/run",
        ".ci/constraints.txt",
    ):
        assert wanted in names
    assert [n for n in names if n.startswith("notebooks/") and n.endswith(".ipynb")]


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    fields = metadata.partition("\n\n")[0].splitlines()
    assert "License-Expression: BSD-3-Clause" in fields
    assert "Requires-Python: >=3.10" in fields
    extras = {line.removeprefix("Provides-Extra: ") for line in fields if "Provides-Extra" in line}
    assert extras == {"lab", "vision", "photos", "benchmarks", "test", "dev"}
    required = [
        line for line in fields if line.startswith("Requires-Dist: ") and "extra" not in line
    ]
    assert not [line for line in required if "torchvision" in line], "torchvision is an extra"


def test_versions_agree(wheel: Path, repository: Path) -> None:
    import rectify_widgets as rw

    assert wheel.name.split("-")[1] == rw.__version__
    assert f"## [{rw.__version__}]" in (repository / "CHANGELOG.md").read_text()


def test_every_dependency_says_why(repository: Path) -> None:
    text = (repository / "pyproject.toml").read_text()
    arrays = text[text.index("dependencies = [") : text.index("[tool.hatch")]
    lines = re.findall(r'^    "(?!rectify_widgets\[).*$', arrays, re.MULTILINE)
    assert len(lines) > 10
    bare = [line.strip() for line in lines if not re.search(r'",\s+# \S.{9,}$', line)]
    assert not bare, f"no comment says why: {bare}"


def test_every_lint_exception_says_why(repository: Path) -> None:
    text = (repository / "pyproject.toml").read_text()
    section = text[text.index("[tool.ruff.lint]") : text.index("[tool.ruff.lint.isort]")]
    explained = 0
    for paragraph in re.split(r"\n(?=    #)|\[\n", section):
        codes = re.findall(r'^    "[A-Z]+\d*",?', paragraph, re.MULTILINE)
        assert not codes or "#" in paragraph, f"no comment says why: {codes}"
        explained += len(codes)
    assert explained > 20
