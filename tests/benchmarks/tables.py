"""Tables of measurements: rows in, Markdown and CSV out.  Imports pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pandas as pd

Cell: TypeAlias = str | float | int
Row: TypeAlias = Mapping[str, Cell]


@dataclass
class Table:
    """A named table; every row has the columns of the first."""

    name: str
    note: str
    rows: list[Row] = field(default_factory=list)

    def add(self, **cells: Cell) -> None:
        """Append a row."""
        self.rows.append(cells)

    def markdown(self) -> str:
        """The table as GitHub draws it, under its name and note."""
        columns = list(self.rows[0]) if self.rows else []
        lines = [columns, *([_text(row[column]) for column in columns] for row in self.rows)]
        head, *body = [f"| {' | '.join(line)} |" for line in lines]
        rule = "|" + "---|" * len(columns)
        return "\n".join([f"### {self.name}", "", self.note, "", head, rule, *body, ""])

    def save(self, folder: Path) -> None:
        """Write ``name.md`` and ``name.csv``."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / self.name.replace(" ", "-")
        stem.with_suffix(".md").write_text(self.markdown(), encoding="utf-8")
        frame = pd.DataFrame(self.rows, dtype=object)
        frame.to_csv(stem.with_suffix(".csv"), index=False, lineterminator="\r\n")


def spread(values: Iterable[float], scale: float = 1.0, digits: int = 2) -> str:
    """``mean ± standard deviation`` of values times ``scale``."""
    scaled = scale * pd.Series(list(values), dtype=float)
    deviation = scaled.std() if len(scaled) > 1 else 0.0
    return f"{scaled.mean():.{digits}f} ± {deviation:.{digits}f}"


def _text(cell: Cell) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
