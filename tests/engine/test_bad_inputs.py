"""Every bad input gives an error that says what was wrong, and leaves no trace in model or inputs.

The cases are in ``bad_calls.py``, ``bad_edits.py`` and ``bad_fits.py``.  Their messages make the table in
``bad_inputs.md``; after a change, write it anew with

    RECTIFY_WRITE_TABLES=1 python -m pytest tests/engine/test_bad_inputs.py
"""

from __future__ import annotations

import os
import re
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

from tests.engine import bad_calls, bad_edits, bad_fits  # noqa: F401 - they add the cases
from tests.engine.bad_inputs import CASES, Case
from tests.engine.traces import changes, record

TABLE = Path(__file__).with_name("bad_inputs.md")
COMMAND = "RECTIFY_WRITE_TABLES=1 python -m pytest tests/engine/test_bad_inputs.py"
FOREIGN = (
    # What other packages say changes with their versions, so the table leaves it out.
    (r"(is not a safetensors file) \(.*\)", r"\1 (…)"),
    (r"(cannot be copied|holds damaged [a-z ]+) \(.*\);", r"\1 (…);"),
    (r" \(RuntimeError: .*\)$", " (…)"),
)


@cache
def outcome(case: Case, folder: Path) -> tuple[BaseException | None, list[str]]:
    """What the call raised, and the traces it left."""
    stage = case.stage(folder)
    before = record(stage.model, *stage.arguments())
    raised = None
    try:
        case.call(stage)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test compares it
        raised = error.with_traceback(None)
    left = changes(before, record(stage.model, *stage.arguments()))
    if case.writes:  # written and taken back
        left = [line for line in left if not re.match(r"parameter [\w.]+: version", line)]
    return raised, left


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input(case: Case, folder: Path) -> None:
    raised, left = outcome(case, folder)
    assert raised is not None, "no error at all"
    assert isinstance(raised, case.error), f"{type(raised).__name__}: {raised}"
    message = str(raised)
    if case.argument:
        assert message.startswith(f"{case.argument}: ")
    assert re.search(case.says, message)
    assert not left, "\n".join(left)


def test_there_are_enough_of_each_function() -> None:
    assert len(CASES) >= 150
    assert len({str(case) for case in CASES}) == len(CASES), "two cases have one name"


def test_table_is_up_to_date(folder: Path) -> None:
    written = table(folder)
    if os.environ.get("RECTIFY_WRITE_TABLES"):
        TABLE.write_text(written, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == written, f"out of date; write it anew: {COMMAND}"


def table(folder: Path) -> str:
    """The cases and their messages as Markdown, by function."""
    cases = sorted(CASES, key=lambda case: case.function.lower())
    lines = [
        f"# {len(cases)} bad inputs, and what the engine says to them",
        "",
        "After each of these calls the model's weights (values, strides, place in memory), its",
        "flags, gradients, hooks and attributes, the random numbers of torch, numpy and Python, the",
        "modes of autograd and autocast, and the inputs are compared to the bit with what they were",
        "before it.  `Boom` is an exception of the user's own model, data or hooks, which passes",
        "through as it is.",
        "",
        f"Written by the tests: `{COMMAND}`.",
    ]
    for function, group in groupby(cases, key=lambda case: case.function):
        lines += ["", f"## `{function}`", "", "| bad input | error | message |", "|---|---|---|"]
        lines += [row(case, folder) for case in group]
    return "\n".join(lines) + "\n"


def row(case: Case, folder: Path) -> str:
    """One line of the table."""
    raised, _ = outcome(case, folder)
    message = str(raised).replace(f"{folder}", "…")
    for pattern, text in FOREIGN:
        message = re.sub(pattern, text, message)
    message = message.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")
    return f"| {case.name} | {type(raised).__name__} | {message} |"
