"""Break lines of the package one by one and count how many the tests notice.

``python -m tests.mutation --count 40 --seed 0`` draws lines that do something, changes one operator,
number or truth value in each, in a copy of the checkout, and runs fast tests to the first failure: those
that import the broken file and, with ``--thorough``, then all of that part of the package.  ``--checkout DIR`` breaks another version instead, and ``--again FILE`` the
lines that an earlier run printed, so that the tests of two versions can be compared.
Imports the standard library only.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SWAPS: dict[type[ast.AST], str] = {
    ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*",
}  # fmt: skip
"""Operator to what takes its place."""

TESTS = {
    "engine": ["tests/engine"],
    "widgets": ["tests", "--ignore=tests/engine", "--ignore=tests/benchmarks"],
    "cases": ["tests", "--ignore=tests/engine", "--ignore=tests/benchmarks"],
    "baselines": ["tests", "--ignore=tests/engine", "--ignore=tests/benchmarks"],
}
"""Part of the package to the tests that are run for its lines."""


@dataclass(frozen=True)
class Mutant:
    """One changed line: the file, and the line before and after."""

    path: str
    number: int
    before: str
    after: str


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """Every change of one operator, number or truth value within one line."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        for start, end, text in _changes(node, lines):
            line = lines[node.lineno - 1]  # type: ignore[attr-defined]
            yield Mutant(path, node.lineno, line, line[:start] + text + line[end:])  # type: ignore[attr-defined]


def _changes(node: ast.AST, lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """Columns of what is replaced, in characters, and the replacement."""
    if isinstance(node, ast.Constant) and node.lineno == node.end_lineno:
        start, end = _columns(node, lines)
        if isinstance(node.value, bool):
            yield start, end, str(not node.value)
        elif isinstance(node.value, int | float):
            yield start, end, f"({node.value!r} + 1)"
    operands: list[tuple[ast.expr, ast.AST, ast.expr]] = []
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        operands = [(node.left, node.ops[0], node.comparators[0])]
    elif isinstance(node, ast.BinOp):
        operands = [(node.left, node.op, node.right)]
    for left, operator, right in operands:
        if type(operator) in SWAPS and left.end_lineno == right.lineno == node.lineno:  # type: ignore[attr-defined]
            start, end = _columns(left, lines)[1], _columns(right, lines)[0]
            between = lines[left.end_lineno - 1][start:end]
            if between.strip("() ") and "(" not in between and ")" not in between:
                yield start, end, f" {SWAPS[type(operator)]} "


def _columns(node: ast.expr, lines: list[str]) -> tuple[int, int]:
    """First and last column in characters; the parser counts bytes."""
    first = lines[node.lineno - 1].encode()[: node.col_offset].decode()
    last = lines[(node.end_lineno or node.lineno) - 1].encode()[: node.end_col_offset].decode()
    return len(first), len(last)


def lines_to_break(checkout: Path) -> dict[str, list[Mutant]]:
    """Lines that stand in one place only, by their text, with all that could be changed in them."""
    found: dict[str, dict[tuple[str, int], list[Mutant]]] = {}
    for path in sorted((checkout / "rectify_widgets").rglob("*.py")):
        name = path.relative_to(checkout).as_posix()
        if name.split("/")[1] in TESTS and "/vision/" not in name:
            for mutant in mutants(name, path.read_text("utf-8")):
                places = found.setdefault(mutant.before.strip(), {})
                places.setdefault((name, mutant.number), []).append(mutant)
    return {text: next(iter(p.values())) for text, p in found.items() if len(p) == 1}


def draw(checkout: Path, count: int, seed: int) -> list[Mutant]:
    """Lines of the package to break, one mutant each."""
    found = lines_to_break(checkout)
    drawn = random.Random(seed).sample(sorted(found), count)
    return [random.Random(f"{seed} {text}").choice(found[text]) for text in drawn]


def again(checkout: Path, output: Path) -> list[Mutant]:
    """The changes that an earlier run printed, where the same lines stand now."""
    found = lines_to_break(checkout)
    chosen = []
    for line in output.read_text("utf-8").splitlines():
        if line.count("\t") == 3:
            _, _, before, after = line.split("\t")
            same = [m for m in found.get(before, ()) if m.after.strip() == after]
            chosen += same[:1]
            if not same:
                print(f"gone\t\t{before}\t{after}")
    return chosen


def importers(copy: Path, path: str) -> list[str]:
    """Test files that import the broken file."""
    dotted = path.removesuffix(".py").replace("/", ".")
    room, _, name = dotted.rpartition(".")
    ways = re.compile(rf"from {room} import .*\b{name}\b|\b{dotted}\b")
    files = sorted((copy / "tests").rglob("test_*.py"))
    found = [file for file in files if ways.search(file.read_text("utf-8"))]
    return [f.relative_to(copy).as_posix() for f in found if "browser" not in f.parts]


def noticed(mutant: Mutant, copy: Path, workers: int, *, thorough: bool) -> bool:
    """Whether a test fails with the changed line."""
    path = copy / mutant.path
    source = path.read_text("utf-8")
    lines = source.splitlines(keepends=True)
    lines[mutant.number - 1] = mutant.after + "\n"
    path.write_text("".join(lines), "utf-8")
    part = TESTS[mutant.path.split("/")[1]]
    near = importers(copy, mutant.path)
    try:
        return any(
            fails(copy, tests, workers)
            for tests in ([near] if near else []) + ([part] if thorough or not near else [])
        )
    finally:
        path.write_text(source, "utf-8")


def fails(copy: Path, tests: list[str], workers: int) -> bool:
    """Whether these tests find something; a run without an end counts as found."""
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n", str(workers), *options, *tests],
            cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True,
            check=False, timeout=600,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    return done.returncode not in (0, 5)  # 5: no test is fast


def main() -> None:
    """Print each change and whether it was noticed, and the count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--thorough", action="store_true")
    options = parser.parse_args()
    red = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skipped = shutil.ignore_patterns(".git", ".venv", "*cache*", ".hypothesis")
        shutil.copytree(options.checkout, copy, ignore=skipped)
        if options.again:
            chosen = again(options.checkout, options.again)
        else:
            chosen = draw(options.checkout, options.count, options.seed)
        for mutant in chosen:
            found = noticed(mutant, copy, options.workers, thorough=options.thorough)
            red += found
            place = f"{mutant.path}:{mutant.number}"
            words = (
                "red" if found else "GREEN",
                place,
                mutant.before.strip(),
                mutant.after.strip(),
            )
            print(*words, sep="\t", flush=True)
    print(f"{red} of {len(chosen)} noticed")


if __name__ == "__main__":
    main()
