"""The tutorials are fit to be read, and able to fail.

pytest runs every cell of them (nbval, see pyproject.toml), and test_house.py sees to it that they
are committed complete.  This file checks what a reader needs besides, and that a run turns red when
the engine is broken and when a printed verdict changes.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = ROOT / "notebooks" / "01_remove_a_trojan.ipynb"

MAX_BYTES = 1_500_000
MAX_CELL = 25
"""Lines of code that a reader takes in at once."""

STRICT = ROOT / "notebooks" / "02_widget_gallery.ipynb"
"""Every output of this one must come out as it was committed; conftest.py beside it says so."""

VERDICT = "nbval-check-output"
"""Tag of the cells whose printed output must stay as it was committed."""

Notebook = dict[str, Any]


def read(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def code(notebook: Notebook) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def tags(cell: dict[str, Any]) -> set[str]:
    return set(cell["metadata"].get("tags", []))


def trees(notebook: Notebook) -> Iterator[tuple[str, ast.Module]]:
    for cell in code(notebook):
        flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        yield cell["id"], compile(source(cell), cell["id"], "exec", flags)


# --- fit to be read ------------------------------------------------------------------------------


def unsteady(notebook: Notebook, path: Path) -> list[str]:
    """What would change with every run or editor: cell ids, timings, the interpreter's version."""
    known = {"kernelspec", "language_info"}
    complaints = [f"metadata {name}" for name in notebook["metadata"].keys() - known]
    if notebook["metadata"]["kernelspec"]["name"] != "python3":
        complaints.append("a kernel other than python3")
    if "version" in notebook["metadata"]["language_info"]:
        complaints.append("a Python version")
    ids = [cell.get("id", "") for cell in notebook["cells"]]
    complaints += [f"two cells {name!r}" for name in set(ids) if ids.count(name) > 1]
    complaints += [
        f"cell id {name!r}, want a word"
        for name in ids
        if not re.fullmatch(r"[a-z][a-z-]+[a-z]", name)
    ]
    complaints += [
        f"cell {cell['id']} has {', '.join(cell['metadata'])}"
        for cell in notebook["cells"]
        if cell["metadata"].keys() - {"tags"}
    ]
    if path.exists() and path.stat().st_size > MAX_BYTES:
        complaints.append(f"{path.stat().st_size} bytes")
    return complaints


def hard_to_see(notebook: Notebook, _: Path) -> list[str]:
    """Pictures without a text alternative, and live widgets without a static view after them."""
    complaints, live, static = [], "", False
    for cell in code(notebook):
        for output in cell["outputs"]:
            data = output.get("data", {})
            html = "".join(data.get("text/html", []))
            complaints += [f"{cell['id']}: {kind}" for kind in data if kind.startswith("image/")]
            complaints += [
                f"{cell['id']}: a picture without alt"
                for tag in re.findall(r"<img\b[^>]*>", html)
                if " alt=" not in tag
            ]
            if "application/vnd.jupyter.widget-view+json" in data:
                live, static = cell["id"], False
            chart = "application/vnd.plotly.v1+json" in data
            if chart and "".join(data.get("text/plain", ["Figure("])).startswith("Figure("):
                complaints.append(f"{cell['id']}: a chart without text alternative")
            static = static or "rw-static" in html
    if live and not static:
        complaints.append(f"{live}: no snapshot() after it, the view is lost with the kernel")
    return complaints


def hard_to_follow(notebook: Notebook, _: Path) -> list[str]:
    """Long cells, and anything but the public interface."""
    complaints = [
        f"{cell['id']}: {source(cell).count(chr(10)) + 1} lines"
        for cell in code(notebook)
        if source(cell).count("\n") >= MAX_CELL
    ]
    for name, tree in trees(notebook):
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            complaints += [f"{name}: {m}" for m in modules if m.startswith("rectify_widgets.")]
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                complaints.append(f"{name}: {ast.unparse(node)}")
    return complaints


def toothless(notebook: Notebook, path: Path) -> list[str]:
    """No assertions, no verdicts, or verdicts that nbval could not compare."""
    complaints = []
    if not any(isinstance(node, ast.Assert) for _, tree in trees(notebook) for node in tree.body):
        complaints.append("no assertion")
    verdicts = [cell for cell in code(notebook) if VERDICT in tags(cell)]
    if not verdicts and path != STRICT:
        complaints.append(f"no cell tagged {VERDICT}")
    complaints += [
        f"{cell['id']}: want one printed output"
        for cell in verdicts
        if [output.get("name") for output in cell["outputs"]] != ["stdout"]
    ]
    return complaints


def shows_photographs(notebook: Notebook, _: Path) -> list[str]:
    """Pictures of others, which may not be handed on, in the file."""
    return [
        f"{cell['id']}: a photograph"
        for cell in code(notebook)
        if "photographs" in tags(cell)
        and re.search(r"base64,|image/png", json.dumps(cell["outputs"]))
    ]


RULES = [unsteady, hard_to_see, hard_to_follow, toothless, shows_photographs]


def test_there_are_notebooks() -> None:
    assert FIRST in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", RULES)
def test_notebook_is_fit_to_be_read(
    rule: Callable[[Notebook, Path], list[str]], path: Path
) -> None:
    complaints = rule(read(path), path)
    assert not complaints, f"{path.name}: " + "; ".join(complaints)


def spoil(cell: int = 0, **values: Any) -> Callable[[Notebook], object]:
    return lambda notebook: code(notebook)[cell].update(values)


def shows(**data: str) -> list[dict[str, Any]]:
    kinds = {
        "html": "text/html",
        "png": "image/png",
        "live": "application/vnd.jupyter.widget-view+json",
        "chart": "application/vnd.plotly.v1+json",
        "plain": "text/plain",
    }
    found = {kinds[kind]: [text] for kind, text in data.items()}
    return [{"output_type": "display_data", "data": found, "metadata": {}}]


BROKEN: list[tuple[Callable[[Notebook, Path], list[str]], Callable[[Notebook], object], str]] = [
    (unsteady, spoil(id="3f2a91bc"), "want a word"),
    (unsteady, lambda n: n["cells"].append(n["cells"][0]), "two cells"),
    (unsteady, spoil(metadata={"execution": {}}), "execution"),
    (unsteady, lambda n: n["metadata"]["kernelspec"].update(name="rw"), "kernel"),
    (unsteady, lambda n: n["metadata"]["language_info"].update(version="3.11.2"), "version"),
    (hard_to_see, spoil(outputs=shows(png="")), "image/png"),
    (hard_to_see, spoil(outputs=shows(html='<p><img src="x"></p>')), "without alt"),
    (hard_to_see, spoil(outputs=shows(chart="", plain="Figure({})")), "text alternative"),
    (hard_to_see, spoil(-1, outputs=shows(live="")), "snapshot"),
    (hard_to_follow, spoil(source=["x = 1\n"] * 26), "lines"),
    (hard_to_follow, spoil(source="from rectify_widgets.engine.edit import edits"), "edits"),
    (hard_to_follow, spoil(source="import rectify_widgets.explain"), "explain"),
    (hard_to_follow, spoil(source="dashboard._groups.clear()"), "_groups"),
    (
        shows_photographs,
        spoil(metadata={"tags": ["photographs"]}, outputs=shows(html='<img src="data:;base64,A">')),
        "a photograph",
    ),
    (toothless, lambda n: [cell.update(source="1") for cell in code(n)], "no assertion"),
    (toothless, lambda n: [cell.update(metadata={}) for cell in code(n)], "tagged"),
    (toothless, spoil(metadata={"tags": [VERDICT]}, outputs=shows(html="1")), "printed"),
]


@pytest.mark.parametrize(("rule", "change", "word"), BROKEN)
def test_each_rule_can_fail(
    rule: Callable[[Notebook, Path], list[str]], change: Callable[[Notebook], object], word: str
) -> None:
    notebook = read(FIRST)
    change(notebook)
    assert any(word in complaint for complaint in rule(notebook, Path("changed.ipynb")))


# --- able to fail --------------------------------------------------------------------------------


def run(
    notebook: Notebook,
    folder: Path,
    before: str = "",
    options: Sequence[str] = ("-x",),
    name: str = "changed.ipynb",
) -> subprocess.CompletedProcess[str]:
    """Run a notebook as pytest runs the tutorials, to the first red cell.

    ``before`` is run in the notebook's kernel before its first cell; ``options`` are pytest's.
    """
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-before.py").write_text(before, encoding="utf-8")
    (folder / name).write_text(json.dumps(notebook), encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment |= {"IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": path}
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), *options]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *settings, "-p", "no:cacheprovider", "-v",
         "--color=no", str(folder / name)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


def cells(notebook: Notebook, wanted: Callable[[set[str]], bool]) -> Notebook:
    """The notebook with some of its cells."""
    return notebook | {"cells": [cell for cell in notebook["cells"] if wanted(tags(cell))]}


def printing(text: str, committed: str) -> Notebook:
    """The tutorial's frame with one verdict, printed and committed."""
    output = {"output_type": "stream", "name": "stdout", "text": [f"{committed}\n"]}
    verdict = {
        "cell_type": "code",
        "id": "verdict",
        "execution_count": 1,
        "metadata": {"tags": [VERDICT]},
        "outputs": [output],
        "source": [f"print({text!r})"],
    }
    return read(FIRST) | {"cells": [verdict]}


def test_a_changed_verdict_is_red(tmp_path: Path) -> None:
    sound = run(printing("kept: True", "kept: True"), tmp_path / "sound")
    assert sound.returncode == 0, sound.stdout
    changed = run(printing("kept: False", "kept: True"), tmp_path / "changed")
    assert changed.returncode == 1, changed.stdout
    assert "mismatch" in changed.stdout


def test_what_follows_a_failed_cell_is_skipped(tmp_path: Path) -> None:
    shutil.copy(FIRST.parent / "conftest.py", tmp_path)
    notebook = printing("1", "1")
    (cell,) = notebook["cells"]
    sources = {"good": "x = 1", "bad": "1 / 0", "first-after": "x", "second-after": "y"}
    notebook["cells"] = [
        cell | {"id": name, "source": [text], "metadata": {}} for name, text in sources.items()
    ]
    done = run(notebook, tmp_path, options=["--rootdir", str(tmp_path)])
    assert "1 failed, 1 passed, 2 skipped" in done.stdout
    assert "Cell 1 of this notebook failed" in done.stdout


UNREFINED = """
import sys
import rectify_widgets
from rectify_widgets.engine.repair import refining

refined = refining.refine

def as_it_was(model, layers, start, *goal, **options):
    return start

for module in list(sys.modules.values()):
    if getattr(module, "refine", None) is refined:
        module.refine = as_it_was
"""
"""It would find back from a wrong edit, and takes long where none helps."""

WRONG_SIGN = f"""{UNREFINED}
from rectify_widgets.engine.edit import closed_form as closed

sound = closed.Fit.optimum
closed.Fit.optimum = lambda fit: -sound(fit)
"""


@pytest.mark.slow
def test_a_broken_closed_form_is_red(tmp_path: Path) -> None:
    done = run(read(FIRST), tmp_path, WRONG_SIGN)
    assert done.returncode == 1, done.stdout
    assert "AssertionError" in done.stdout
    assert "1 failed" in done.stdout
    assert done.stdout.count("PASSED") > 5, "it ran well until the first edit was looked at"


NOTHING_CHANGES = f"""{UNREFINED}
from rectify_widgets.engine.edit.edits import RankOneEdit

RankOneEdit.apply = lambda *_, **__: None
"""


@pytest.mark.slow
def test_a_dashboard_that_does_not_work_is_red(tmp_path: Path) -> None:
    part = cells(read(FIRST), lambda found: bool(found & {"setup", "dashboard"}))
    done = run(part, tmp_path, NOTHING_CHANGES)
    assert done.returncode == 1, done.stdout
    assert "AssertionError" in done.stdout
    assert "1 failed" in done.stdout
    assert done.stdout.count("PASSED") > 3, "it ran well until the button was pressed"


# --- the gallery, to the letter --------------------------------------------------------------------


def first_cells(count: int) -> Notebook:
    notebook = read(STRICT)
    return notebook | {"cells": code(notebook)[:count]}


@pytest.mark.slow
def test_a_changed_snapshot_is_red(tmp_path: Path) -> None:
    notebook = first_cells(4)
    page = notebook["cells"][3]["outputs"][0]["data"]["text/html"]
    changed = "".join(page).replace("T-shirt/top", "Trouser")
    assert changed != "".join(page)
    notebook["cells"][3]["outputs"][0]["data"]["text/html"] = [changed]
    for name in ("conftest.py", "sanitize.cfg"):
        shutil.copy(STRICT.with_name(name), tmp_path)
    done = run(notebook, tmp_path, name=STRICT.name)
    assert done.returncode == 1, done.stdout
    assert "1 failed, 3 passed" in done.stdout
    assert "mismatch" in done.stdout


def test_the_gallery_shows_every_widget() -> None:
    import rectify_widgets as rw

    widgets = [name for name in rw.__all__ if name.endswith(("Viewer", "Dashboard", "Painter"))]
    assert len(widgets) == 7
    cells = code(read(STRICT))
    made = {
        ast.unparse(node.func)
        for _, tree in trees(read(STRICT))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert {f"rw.{name}" for name in widgets} <= made
    assert sum("snapshot()" in source(cell) for cell in cells) >= len(widgets)
