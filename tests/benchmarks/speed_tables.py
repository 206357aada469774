"""Tables that grow row by row in a folder, so that a long measurement may be broken off.

Imports this folder's tables.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.tables import Cell, Row, Table


def put_rows(
    table: Table,
    out: Path | None,
    rows: Sequence[Row],
    *,
    key: Sequence[str],
    order: Callable[[Row], Any],
) -> None:
    """Put rows into the table in place of those with the same key, and save it.

    A table without rows first takes those of the same name and note that ``out`` holds.

    Args:
        table: what gets the rows.
        out: folder of the table, if it is to be kept.
        rows: at least one, with the columns of the table.
        key: columns that tell what was measured.
        order: what the rows are sorted by.
    """
    if out is not None and not table.rows:
        table.rows += saved_rows(table, out, list(rows[0]))

    def measured(row: Row) -> tuple[Cell, ...]:
        return tuple(row[column] for column in key)

    fresh = {measured(row) for row in rows}
    table.rows[:] = [row for row in table.rows if measured(row) not in fresh]
    table.rows += rows
    table.rows.sort(key=order)
    if out is not None:
        table.save(out)


def saved_rows(table: Table, out: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a table of the same name, note and columns in a folder."""
    stem = out / table.name.replace(" ", "-")
    text, data = stem.with_suffix(".md"), stem.with_suffix(".csv")
    if not text.exists() or table.note not in text.read_text(encoding="utf-8"):
        return []
    with data.open(newline="", encoding="utf-8") as file:
        saved = csv.DictReader(file)
        return [dict(row) for row in saved] if saved.fieldnames == columns else []
