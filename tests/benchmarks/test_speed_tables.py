"""Tables in a folder take rows in place of those of the same key."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.speed_tables import put_rows, saved_rows
from tests.benchmarks.tables import Row, Table


def put(table: Table, out: Path | None, *rows: Row) -> list[str]:
    put_rows(table, out, rows, key=["a", "b"], order=lambda row: str(row["b"]))
    return [f"{row['a']}{row['b']}{row['c']}" for row in table.rows]


def row(a: str, b: str, c: int) -> Row:
    return {"a": a, "b": b, "c": c}


@pytest.mark.parametrize("kept", [True, False])
def test_rows_of_the_same_key_are_replaced(tmp_path: Path, *, kept: bool) -> None:
    table, out = Table("x y", "note"), tmp_path if kept else None
    assert put(table, out, row("p", "2", 1), row("p", "2", 2)) == ["p21", "p22"]
    assert put(table, out, row("p", "1", 3)) == ["p13", "p21", "p22"]
    assert put(table, out, row("p", "2", 4)) == ["p13", "p24"]
    assert put(table, out, row("q", "2", 5)) == ["p13", "p24", "q25"]
    assert {path.name for path in tmp_path.iterdir()} == ({"x-y.md", "x-y.csv"} if kept else set())


def test_a_new_table_goes_on_where_the_folder_ends(tmp_path: Path) -> None:
    put(Table("x", "note"), tmp_path, row("p", "1", 1), row("p", "2", 2))
    assert put(Table("x", "note"), tmp_path, row("p", "1", 3)) == ["p13", "p22"]
    assert "| p | 1 | 3 |" in (tmp_path / "x.md").read_text(encoding="utf-8")
    assert put(Table("x", "another note"), tmp_path, row("p", "1", 4)) == ["p14"]


def test_rows_with_other_columns_are_not_taken(tmp_path: Path) -> None:
    table = Table("x", "note")
    put(table, tmp_path, row("p", "1", 1))
    assert saved_rows(table, tmp_path, ["a", "b", "c"]) == [{"a": "p", "b": "1", "c": "1"}]
    assert saved_rows(table, tmp_path, ["a", "b"]) == []
    assert saved_rows(Table("y", "note"), tmp_path, ["a", "b", "c"]) == []
