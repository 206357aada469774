"""The rules of the house hold, and each of them can fail.

The rules are in house.py; this file reads what git knows of and imports the package once.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import house

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

ROOT = Path(__file__).resolve().parents[1]
TEXT = {"", ".cfg", ".css", ".html", ".js", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}


def files() -> list[str]:
    """Tracked files and those about to be, as paths from the top with forward slashes."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:  # an unpacked sdist is no checkout
        found = [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*") if p.is_file()]
        return [name for name in found if "__pycache__" not in name and not name.startswith(".")]
    return [name for name in sorted(set(listing.stdout.splitlines())) if (ROOT / name).is_file()]


def python(under: str) -> list[str]:
    return [name for name in files() if name.startswith(under) and name.endswith(".py")]


def notebooks() -> list[str]:
    return [name for name in files() if name.endswith(".ipynb")]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def apply(rule: Callable[[str, str], list[str]], names: list[str]) -> None:
    complaints = [complaint for name in names for complaint in rule(read(name), name)]
    assert not complaints, "\n".join(dict.fromkeys(complaints))


def test_there_is_something_to_check() -> None:
    assert len(python("rectify_widgets/engine/")) > 5
    assert "rectify_widgets/__init__.py" in files()
    assert notebooks()


def test_imports_run_one_way() -> None:
    apply(house.one_way, python("rectify_widgets/"))


def test_rooms_of_the_engine_import_one_way() -> None:
    apply(house.engine_runs_one_way, python("rectify_widgets/engine/"))


def test_no_modules_import_each_other() -> None:
    assert not house.import_cycle({name: read(name) for name in python(IN)})


def test_import_cycle_is_found() -> None:
    sources = {
        IN + "a.py": "from rectify_widgets import b",
        IN + "b.py": "def f():\n    from rectify_widgets.c import d",
        IN + "c/__init__.py": "import torch",
    }
    assert not house.import_cycle(sources)
    sources[IN + "c/__init__.py"] = "if TYPE_CHECKING:\n    from ..a import f"
    assert set(house.import_cycle(sources)) == set(sources)


def test_engine_imports_torch_only() -> None:
    apply(house.engine_is_torch_only, python("rectify_widgets/engine/"))


def test_session_imports_no_widgets() -> None:
    sessions = [name for name in python("rectify_widgets/widgets/") if "session" in name]
    assert sessions
    apply(house.session_has_no_widgets, sessions)


def module_of(requirement: str) -> str:
    """`pillow>=10` -> `PIL`."""
    name = re.split(r"[^\w-]", requirement)[0]
    others = {"pillow": "PIL", "ipython": "IPython", "scikit-image": "skimage"}
    return {**others, "scikit-learn": "sklearn"}.get(name, name)


def test_third_party_imports_are_declared() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    optional = project["optional-dependencies"].values()
    base = {module_of(line) for line in project["dependencies"]}
    extras = {module_of(line) for lines in optional for line in lines}
    apply(
        lambda source, name: house.undeclared(source, name, base, extras),
        python("rectify_widgets/"),
    )


def test_files_are_short() -> None:
    apply(house.short, python(""))


def test_files_say_what_they_are_for() -> None:
    apply(house.introduced, [name for name in python("") if read(name).strip()])


def test_nothing_executable_is_loaded() -> None:
    apply(house.nothing_executable, python("rectify_widgets/"))


def test_no_pyplot() -> None:
    apply(house.no_pyplot, python("rectify_widgets/"))


def test_no_output_blocks() -> None:
    apply(house.no_output_blocks, python("rectify_widgets/"))


def test_no_machine_paths() -> None:
    names = [name for name in files() if Path(name).suffix in TEXT]
    assert ".ci/run" in names
    apply(house.no_machine_paths, names)


@pytest.mark.parametrize("name", notebooks())
def test_notebook_is_complete_and_names_no_machine(name: str) -> None:
    notebook = json.loads(read(name))
    complaints = house.notebook_is_complete(notebook, name)
    complaints += house.no_machine_paths(house.notebook_text(notebook), name)
    assert not complaints, "\n".join(complaints)


def test_the_architecture_page_shows_every_room() -> None:
    picture = read("notebooks/images/architecture.svg")
    for room in (*house.MAY_IMPORT, *house.ENGINE_ROOMS):
        assert room.startswith("__") or f">{room}</text>" in picture, room
    assert "notebooks/images/architecture.svg" in read("ARCHITECTURE.md")


def test_public_names_are_documented() -> None:
    import rectify_widgets as rw

    assert rw.__doc__
    bare = []
    for name in rw.__all__:
        thing = getattr(rw, name)
        if inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing):
            # `__doc__` of the thing itself: a class does not inherit a docstring here.
            own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
            bare += [] if own and own.strip() else [name]
        if inspect.isclass(thing):
            bare += [
                f"{name}.{method}"
                for method, value in vars(thing).items()
                if not method.startswith("_")
                and (inspect.isfunction(value) or isinstance(value, classmethod | property))
                and not value.__doc__
            ]
    assert not bare, f"public and without a docstring: {', '.join(bare)}"


IN = "rectify_widgets/"
BROKEN = [
    (house.one_way, IN + "engine/a.py", "from rectify_widgets.widgets import render"),
    (house.one_way, IN + "engine/a.py", "from ..cases import load"),
    (house.one_way, IN + "engine/a.py", "from .. import explain"),
    (house.one_way, IN + "engine/a.py", "def f():\n    import rectify_widgets.explain"),
    (house.one_way, IN + "engine/a.py", "import rectify_widgets as rw"),
    (house.one_way, IN + "explain.py", "from rectify_widgets.cases import load"),
    (house.one_way, IN + "cases/a.py", "from rectify_widgets import explain"),
    (house.one_way, IN + "widgets/a.py", "from rectify_widgets.baselines import x"),
    (house.one_way, IN + "__init__.py", "from rectify_widgets.baselines import x"),
    (house.one_way, IN + "attic/a.py", ""),
    (house.engine_runs_one_way, IN + "engine/attic/a.py", ""),
    (house.engine_runs_one_way, IN + "engine/__init__.py", "from .repair import options"),
    (house.engine_runs_one_way, IN + "engine/base/a.py", "from ..model import keys"),
    (
        house.engine_runs_one_way,
        IN + "engine/find/a.py",
        "if TYPE_CHECKING:\n    from rectify_widgets.engine.repair.result import Step",
    ),
    (house.engine_is_torch_only, IN + "engine/a.py", "import captum"),
    (house.engine_is_torch_only, IN + "engine/a.py", "from matplotlib.figure import Figure"),
    (house.engine_is_torch_only, IN + "engine/a.py", "def f():\n    import ipywidgets"),
    (house.engine_is_torch_only, IN + "engine/a.py", "if True:\n    import pandas"),
    (house.engine_is_torch_only, IN + "engine/a.py", "class A:\n    import plotly"),
    (house.session_has_no_widgets, IN + "widgets/session.py", "from ipywidgets import VBox"),
    (house.session_has_no_widgets, IN + "widgets/session.py", "def f():\n    import IPython"),
    (house.short, IN + "a.py", "\n" * 451),
    (house.introduced, IN + "a.py", "x = 1"),
    (house.no_pyplot, IN + "a.py", "from matplotlib import pyplot as plt"),
    (house.no_pyplot, IN + "a.py", "import matplotlib.pyplot as plt"),
    (house.no_machine_paths, "a.txt", "see /".replace("/", "/ro" + "ot/x")),
    (house.no_machine_paths, "a.txt", "saved to '/" + "tmp/ipykernel_12/3.py'"),
    (house.no_machine_paths, "a.txt", "x" + "='/" + "home/me/data'"),
    (house.nothing_executable, IN + "a.py", "import pickle"),
    (house.nothing_executable, IN + "a.py", "torch.load(path)"),
    (house.nothing_executable, IN + "a.py", "torch.load(path, weights_only=False)"),
    (house.nothing_executable, IN + "a.py", "np.load(path)"),
    (house.nothing_executable, IN + "a.py", "numpy.load(path, allow_pickle=True)"),
    (house.nothing_executable, IN + "a.py", "torch.save(state, path)"),
    (house.nothing_executable, IN + "a.py", "eval(text)"),
    (house.no_output_blocks, IN + "a.py", "with widgets.Output():\n    pass"),
    (house.no_output_blocks, IN + "a.py", "with self.output:\n    pass"),
]


@pytest.mark.parametrize(("rule", "name", "source"), BROKEN)
def test_each_rule_can_fail(rule: Callable[[str, str], list[str]], name: str, source: str) -> None:
    complaints = rule(source, name)
    assert complaints
    assert all(complaint.startswith(name) for complaint in complaints)


SOUND = [
    (
        house.one_way,
        IN + "widgets/a.py",
        "from rectify_widgets.engine.data.pairs import SamplePairs",
    ),
    (house.one_way, IN + "widgets/a.py", "from .session import Session"),
    (house.engine_runs_one_way, IN + "engine/find/a.py", "from ..edit.edits import digest"),
    (house.engine_runs_one_way, IN + "engine/find/a.py", "from .problem import Problem"),
    (house.engine_is_torch_only, IN + "engine/a.py", "import json\nimport torch.nn.functional"),
    (house.engine_is_torch_only, IN + "engine/a.py", "def f():\n    import pandas"),
    (house.no_machine_paths, "a.txt", "the files under notebooks/work/x and ${TMPDIR:-/tmp}/x"),
    (house.no_machine_paths, "a.txt", "https://example.org/home/page"),
    (house.nothing_executable, IN + "a.py", "torch.load(path, weights_only=True)\nmodel.eval()"),
]


@pytest.mark.parametrize(("rule", "name", "source"), SOUND)
def test_rules_leave_sound_code_alone(
    rule: Callable[[str, str], list[str]], name: str, source: str
) -> None:
    assert rule(source, name) == []


def test_undeclared_import_is_found() -> None:
    lazy = "def f():\n    import pandas"
    typing = "if TYPE_CHECKING:\n    import pandas"
    assert house.undeclared("import torch\nimport pandas", IN + "a.py", {"torch"}, {"pandas"})
    assert house.undeclared(lazy, IN + "a.py", {"torch"}, {"seaborn"})
    assert not house.undeclared(lazy, IN + "a.py", {"torch"}, {"pandas"})
    assert not house.undeclared(typing, IN + "a.py", {"torch"}, {"pandas"})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda n: n["cells"][1].update(execution_count=None), "execution counts"),
        (lambda n: n["cells"][1].update(execution_count=7), "execution counts"),
        (lambda n: [cell.update(outputs=[]) for cell in n["cells"]], "without outputs"),
        (lambda n: n["cells"][0]["outputs"][0].update(output_type="error"), "an error"),
        (lambda n: n["metadata"].update(widgets={}), "widget state"),
    ],
)
def test_incomplete_notebook_is_found(
    change: Callable[[house.Notebook], object], word: str
) -> None:
    output = {"output_type": "stream", "text": ["one"]}
    notebook: house.Notebook = {
        "metadata": {},
        "cells": [
            {"cell_type": "code", "source": "1", "execution_count": 1, "outputs": [output]},
            {"cell_type": "code", "source": "2", "execution_count": 2, "outputs": []},
        ],
    }
    assert house.notebook_is_complete(notebook, "a.ipynb") == []
    change(notebook)
    assert any(word in complaint for complaint in house.notebook_is_complete(notebook, "a.ipynb"))


def test_notebook_text_leaves_pictures_out() -> None:
    path = "/" + "tmp/x"
    outputs = [
        {"output_type": "display_data", "data": {"image/png": path}},
        {
            "output_type": "display_data",
            "data": {"text/html": [f'<img src="data:x;base64,{path}">']},
        },
    ]
    notebook: house.Notebook = {"cells": [{"source": ["1"], "outputs": outputs}]}
    assert not house.no_machine_paths(house.notebook_text(notebook), "a.ipynb")
    outputs.append({"output_type": "stream", "text": [path]})
    assert house.no_machine_paths(house.notebook_text(notebook), "a.ipynb")
