"""The wheel and the sdist hold what they should, and the metadata says what the README promises.

Builds both with hatchling from the working tree, without a network.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from rectify_widgets import __main__ as command

MEGABYTE = 1_000_000
DATA = "rectify_widgets/cases/data/"
TUTORIALS = "rectify_widgets/tutorials/"


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


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files in a folder for `sys.path`, far from the checkout."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)  # noqa: S202  # our own wheel
    return target


def python(installed: Path, folder: Path, *arguments: str) -> str:
    """What Python prints in a folder, with the installed wheel."""
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def tutorials(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command copies out of the installed package."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    said = python(installed, elsewhere, "-m", "rectify_widgets", "tutorials", "mine")
    assert said.splitlines()[-1].endswith(" -m jupyterlab mine/01_remove_a_trojan.ipynb")
    return elsewhere / "mine"


def test_wheel_holds_the_package_and_nothing_else(sizes: dict[str, int]) -> None:
    strays = [n for n in sizes if not re.match(r"rectify_widgets(-[\d.]+\.dist-info)?/", n)]
    assert not strays
    assert not [n for n in sizes if re.search(r"(^|/)tests?/|\.pyc$|\.pt[h]?$|\.pkl$", n)]


def test_wheel_holds_the_tutorials_within_bounds(sizes: dict[str, int], repository: Path) -> None:
    ours = {name: size for name, size in sizes.items() if name.startswith(TUTORIALS)}
    notebooks = {TUTORIALS + path.name for path in repository.glob("notebooks/*.ipynb")}
    assert {name for name in ours if name.endswith(".ipynb")} == notebooks
    assert {name.rpartition(".")[2] for name in ours} == {"ipynb", "md", "csv", "html"}
    assert not [name for name in sizes if name.endswith(".ipynb") and name not in ours]
    assert sum(ours.values()) <= 6 * MEGABYTE, ours


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


def test_installed_wheel_loads_its_case_from_anywhere(installed: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "import rectify_widgets as rw\n"
        "assert rw.__file__.startswith(sys.argv[1]), rw.__file__\n"
        "case = rw.cases.load('trojan')\n"
        "print(len(case.pairs) > 0, len(case.reference) > 0)\n"
    )
    assert python(installed, tmp_path, "-c", program, str(installed)).strip() == "True True"


def test_every_link_of_the_copied_tutorials_leads_somewhere(tutorials: Path) -> None:
    links = [
        (path, link.partition("#")[0])
        for path in [*tutorials.glob("*.ipynb"), *tutorials.glob("guide/*.md")]
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
        if not link.startswith(("http", "#", "attachment:"))
    ]
    assert {path.suffix for path, _ in links} == {".ipynb", ".md"}
    assert not [f"{path.name}: {link}" for path, link in links if not (path.parent / link).exists()]


def test_every_table_that_a_tutorial_reads_is_beside_it(tutorials: Path) -> None:
    texts = [path.read_text(encoding="utf-8") for path in tutorials.glob("*.ipynb")]
    read = {name for text in texts for name in re.findall(r"\bresults/(\w+\.csv)", text)}
    read |= {name for text in texts for name in re.findall(r'RESULTS / \\"(\w+\.csv)\\"', text)}
    assert {"layers.csv", "targets.csv"} <= read
    assert not [name for name in read if not (tutorials / "results" / name).is_file()]


def refusal(target: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says when it will not copy."""
    with pytest.raises(SystemExit, match=r"^2$"):
        command.main(["tutorials", str(target)])
    return capsys.readouterr().err


def test_a_checkout_copies_its_own_notebooks_and_overwrites_nothing_unasked(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a" / "b"
    assert command.main(["tutorials", str(target)]) == 0
    names = {path.name for path in target.iterdir()}
    assert {path.name for path in repository.glob("notebooks/*.ipynb")} < names
    assert not [name for name in names if name.endswith((".py", ".cfg")) or name.startswith(".")]

    edited = target / "03_spurious_correlation.ipynb"
    edited.write_text("mine", encoding="utf-8")
    (target / command.FIRST).unlink()
    assert "--force overwrites" in refusal(target, capsys)
    assert edited.read_text(encoding="utf-8") == "mine"
    assert not (target / command.FIRST).exists()
    assert command.main(["tutorials", str(target), "--force"]) == 0
    original = repository / "notebooks" / edited.name
    assert edited.read_bytes() == original.read_bytes()


def test_tutorials_go_into_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "want a folder" in refusal(tmp_path / "file", capsys)
    assert "error" in refusal(tmp_path / "file" / "below", capsys)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_the_first_tutorial_runs_from_the_wheel(
    installed: Path, tutorials: Path, tmp_path: Path
) -> None:
    """Up to its first edit; as a whole it runs with the notebooks."""
    tutorial = json.loads((tutorials / command.FIRST).read_text(encoding="utf-8"))
    tutorial["cells"] = tutorial["cells"][:22]
    (tmp_path / command.FIRST).write_text(json.dumps(tutorial), encoding="utf-8")
    execute = "from nbclient.cli import main; main()"
    python(installed, tmp_path, "-c", execute, "--timeout=600", command.FIRST)


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
    assert extras == {"lab", "vision", "photos", "benchmarks", "test", "docs", "dev"}
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
