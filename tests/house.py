"""The house rules as functions from source to complaints; test_house.py applies and breaks them.

Imports the standard library only, and never the package: the rules read source, they do not run it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath
from typing import Any

PACKAGE = "rectify_widgets"
MAX_LINES = 450

MAY_IMPORT = {
    "engine": {"engine"},
    "explain": {"explain", "engine"},
    "reveal": {"reveal", "explain", "engine"},
    "cases": {"cases", "engine"},
    "widgets": {"widgets", "reveal", "explain", "cases", "engine"},
    "baselines": {"baselines", "engine"},
    "__init__": {"widgets", "reveal", "explain", "cases", "engine"},
    "__main__": set(),
}
"""Room -> rooms of this package that it may import: one way, and nothing uses `baselines`."""

ENGINE_ROOMS = ("base", "model", "data", "edit", "measure", "find", "repair")
"""Rooms of the engine; each may import itself and those before it, for typing too."""

ENGINE_MODULES = {"torch", "numpy", "safetensors"}
ENGINE_LAZY_MODULES = {"pandas", "matplotlib"}
"""`.to_frame()` and `.plot()` of a result import these when called."""

Notebook = dict[str, Any]

SESSION_MODULES = {"torch", "numpy", "traitlets"}

_MACHINE_PATH = re.compile(r"(?<![\w.$}~-])/(?:root|work|home|tmp|mnt|opt|srv|Users)/[\w.-]")
_PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def imports(source: str, path: str) -> Iterator[tuple[str, int, bool]]:
    """Dotted name, line and "not run on import" of every import, relative ones resolved."""
    parts = PurePosixPath(path).with_suffix("").parts
    package = parts[:-1]  # the package of `a/b.py` and of `a/__init__.py` is `a`

    def visit(node: ast.AST, lazy: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, lazy
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join([*base, *([child.module] if child.module else [])])
                for alias in child.names:
                    yield f"{module}.{alias.name}", child.lineno, lazy
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                yield from visit(child, lazy or inside or typing)

    yield from visit(ast.parse(source), lazy=False)


def room_of(path: str) -> str:
    """`rectify_widgets/engine/base/checks.py` -> `engine`."""
    return PurePosixPath(path).with_suffix("").parts[1]


def is_third_party(module: str) -> bool:
    """Neither the standard library nor this package."""
    top = module.partition(".")[0]
    return top != PACKAGE and top not in sys.stdlib_module_names


def one_way(source: str, path: str) -> list[str]:
    """Imports inside the package run widgets -> reveal -> explain -> engine, cases -> engine."""
    room = room_of(path)
    allowed = MAY_IMPORT.get(room)
    if allowed is None:
        return [f"{path}: a room that the design does not know"]
    complaints = []
    for module, line, _ in imports(source, path):
        if module.partition(".")[0] != PACKAGE:
            continue
        target = room_of("/".join([*module.split("."), "__init__"]))
        if target == "__version__" or target in allowed:
            continue
        complaints.append(f"{path}:{line}: {room} must not import {target or PACKAGE}")
    return complaints


def engine_runs_one_way(source: str, path: str) -> list[str]:
    """Imports inside the engine run from a later room to an earlier one."""
    parts = PurePosixPath(path).with_suffix("").parts
    if parts[2] == "__init__":
        return [
            f"{path}:{line}: the engine's own __init__ must not import {module}"
            for module, line, _ in imports(source, path)
            if module.startswith(PACKAGE)
        ]
    if parts[2] not in ENGINE_ROOMS:
        return [f"{path}: a room of the engine that the design does not know"]
    complaints = []
    for module, line, _ in imports(source, path):
        top, _, rest = module.partition(".engine.")
        room = rest.partition(".")[0]
        if top == PACKAGE and room not in ENGINE_ROOMS[: ENGINE_ROOMS.index(parts[2]) + 1]:
            complaints.append(f"{path}:{line}: {parts[2]} must not import {room}")
    return complaints


def import_cycle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, by their paths; empty if there is no circle."""
    graph: dict[str, set[str]] = {}
    for path, source in sources.items():
        graph[path] = set()
        for module, _, _ in imports(source, path):
            parts = module.split(".")
            for stop in range(len(parts), 0, -1):
                name = "/".join(parts[:stop])
                if found := next(
                    (p for p in (f"{name}.py", f"{name}/__init__.py") if p in sources), None
                ):
                    graph[path] |= {found} - {path}
                    break
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def engine_is_torch_only(source: str, path: str) -> list[str]:
    """The engine knows no plotting, no widget and no captum."""
    complaints = []
    for module, line, lazy in imports(source, path):
        top = module.partition(".")[0]
        allowed = ENGINE_MODULES | (ENGINE_LAZY_MODULES if lazy else set())
        if is_third_party(module) and top not in allowed:
            complaints.append(f"{path}:{line}: the engine must not import {top}")
    return complaints


def session_has_no_widgets(source: str, path: str) -> list[str]:
    """The session can be driven without a notebook."""
    return [
        f"{path}:{line}: the session must not import {module}"
        for module, line, _ in imports(source, path)
        if is_third_party(module) and module.partition(".")[0] not in SESSION_MODULES
    ]


def undeclared(source: str, path: str, base: set[str], extras: set[str]) -> list[str]:
    """What runs on import is a base dependency; what is imported when called may be an extra."""
    complaints = []
    for module, line, lazy in imports(source, path):
        top = module.partition(".")[0]
        if is_third_party(module) and top not in (base | extras if lazy else base):
            complaints.append(f"{path}:{line}: {top} is not among the dependencies")
    return complaints


def short(source: str, path: str) -> list[str]:
    """A file can be read in one go."""
    lines = source.count("\n")
    return [f"{path}: {lines} lines, want at most {MAX_LINES}"] if lines > MAX_LINES else []


def introduced(source: str, path: str) -> list[str]:
    """A file says in its first lines what it is for."""
    return [] if ast.get_docstring(ast.parse(source)) else [f"{path}: no module docstring"]


def no_pyplot(source: str, path: str) -> list[str]:
    """pyplot keeps global state that threads corrupt; `matplotlib.figure.Figure` does not."""
    return [
        f"{path}:{line}: use matplotlib.figure.Figure instead of pyplot"
        for module, line, _ in imports(source, path)
        if module.startswith(("matplotlib.pyplot", "pylab"))
    ]


def no_machine_paths(text: str, path: str) -> list[str]:
    """Nothing that is tracked names a place of one machine."""
    return [
        f"{path}:{number}: names {match.group()!r}..."
        for number, line in enumerate(text.splitlines(), 1)
        for match in _MACHINE_PATH.finditer(line)
    ]


def nothing_executable(source: str, path: str) -> list[str]:
    """Nothing that is loaded from a file can run code."""
    complaints = [
        f"{path}:{line}: {module} can run code from a file"
        for module, line, _ in imports(source, path)
        if module.partition(".")[0] in _PICKLERS
    ]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        where = f"{path}:{node.lineno}: "
        if name == "torch.save":
            complaints.append(where + "torch.save writes pickles, use safetensors")
        if name == "torch.load" and given.get("weights_only") != "True":
            complaints.append(where + "torch.load without weights_only=True")
        if name in {"np.load", "numpy.load"} and given.get("allow_pickle") != "False":
            complaints.append(where + "numpy.load without allow_pickle=False")
        if name in {"eval", "exec"}:
            complaints.append(where + f"{name}()")
    return complaints


def no_output_blocks(source: str, path: str) -> list[str]:
    """`with Output():` loses lines in a thread and swallows exceptions."""
    return [
        f"{path}:{node.lineno}: `with {ast.unparse(item.context_expr)}`, use append_* or outputs="
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.With)
        for item in node.items
        if re.search(r"\bOutput\(|\boutput$", ast.unparse(item.context_expr))
    ]


def notebook_is_complete(notebook: Notebook, path: str) -> list[str]:
    """Committed as one fresh run left it: counts 1, 2, 3 ..., outputs, no errors, no widget state."""
    complaints = []
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and "".join(c["source"])]
    counts = [cell["execution_count"] for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        complaints.append(f"{path}: execution counts {counts}, want those of one fresh run")
    outputs = [output for cell in cells for output in cell["outputs"]]
    if not outputs:
        complaints.append(f"{path}: committed without outputs")
    if any(output["output_type"] == "error" for output in outputs):
        complaints.append(f"{path}: committed with an error")
    if "widgets" in notebook["metadata"]:
        complaints.append(f"{path}: committed with widget state")
    return complaints


def notebook_text(notebook: Notebook) -> str:
    """Sources and outputs without pictures, whose base64 may spell anything."""
    lines: list[str] = []
    for cell in notebook["cells"]:
        lines += ["".join(cell["source"])]
        for output in cell.get("outputs", []):
            lines += ["".join(output.get("text", [])), *output.get("traceback", [])]
            for kind, data in output.get("data", {}).items():
                text = data if isinstance(data, str) else "".join(map(str, data))
                if not kind.startswith("image/"):
                    lines += [re.sub(r"base64,[A-Za-z0-9+/=\s]+", "base64", text)]
    return "\n".join(lines)
