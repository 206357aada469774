"""Every kind of model × every public call: right, or refused with a reason, and the model untouched.

What "right" means is in ``calls.py``.  The verdicts make the table in ``every_kind.md``; after a
change, write it anew with

    RECTIFY_WRITE_TABLES=1 python -m pytest tests/kinds/test_every_kind.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import rectify_widgets as rw
from tests.kinds import architectures, forms, variants  # noqa: F401 - they add kinds
from tests.kinds.calls import CALLS
from tests.kinds.scene import KINDS, Kind
from tests.kinds.verdicts import HEAD, faults, outcomes, row

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE = Path(__file__).with_name("every_kind.md")
NO_MODEL = {"cases"}
"""Public names that take none."""
COMMAND = "RECTIFY_WRITE_TABLES=1 python -m pytest tests/kinds/test_every_kind.py"
STALE = f"out of date; write it anew: {COMMAND}"
WRITES = bool(os.environ.get("RECTIFY_WRITE_TABLES"))


def some(number: int, kind: Kind) -> Any:
    """A kind as a parameter; every fourth is tested by default."""
    return pytest.param(kind, id=str(kind), marks=[pytest.mark.slow] if number % 4 else [])


@pytest.mark.parametrize("kind", [some(*one) for one in enumerate(KINDS)])
def test_every_call(kind: Kind) -> None:
    wrong = faults(kind)
    assert not wrong, "\n".join(wrong)
    refused = [one.refused for one in outcomes(kind).values() if one.refused]
    if kind.refused:
        assert all(re.search(kind.refused, message) for message in refused)
        assert len(refused) > len(CALLS) / 2
    else:
        assert len(refused) < len(CALLS)
    assert WRITES or row(kind) in TABLE.read_text(encoding="utf-8").splitlines(), STALE


def test_there_are_enough() -> None:
    assert len(KINDS) >= 60
    assert len({kind.name for kind in KINDS}) == len(KINDS), "two kinds have one name"
    made = {call.name for call in CALLS}
    takes_models = {
        name
        for name in rw.__all__
        if callable(getattr(rw, name)) and name[0].islower() and name not in NO_MODEL
    }
    viewers = {name for name in rw.__all__ if name.endswith(("Viewer", "Painter", "Dashboard"))}
    missing = {one for one in takes_models | viewers if not any(one in name for name in made)}
    assert not missing


def test_table_is_up_to_date() -> None:
    """Of its rows each kind's test compares its own."""
    if WRITES:
        TABLE.write_text(table([row(kind) for kind in KINDS]), encoding="utf-8")
    written = TABLE.read_text(encoding="utf-8")
    rows = written.splitlines()[-len(KINDS) :]
    assert written == table(rows), STALE
    assert [one.split(" | ")[0] for one in rows] == [f"| {kind}" for kind in KINDS], STALE


def table(rows: list[str]) -> str:
    """The verdicts as Markdown, a row for each kind."""
    calls = ", ".join(f"`{call}`" for call in CALLS)
    rights = sum(int(one.split(" | ")[2]) for one in rows)
    lines = [
        f"# {len(KINDS)} kinds of models × {len(CALLS)} public calls",
        "",
        f"{rights} of {len(KINDS) * len(CALLS)} calls give an answer, which is compared with one that",
        "is computed by other means (second moments of unfolded patches, gradients by autograd, the",
        "best left factor of an edit, covered inputs, or the same network in a plain state); the others",
        "are refused with the reason.  After each call the model's weights and buffers, its flags, hooks,",
        "gradients and attributes, the random numbers of torch, numpy and Python, the modes of",
        "autograd and autocast, and the inputs are compared to the bit with what they were before it.",
        "",
        f"The calls: {calls}.",
        "",
        f"Written by the tests: `{COMMAND}`.",
        "",
        *HEAD,
    ]
    return "\n".join([*lines, *rows]) + "\n"
