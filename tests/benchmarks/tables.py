"""Tables of measurements: rows in, Markdown and CSV out.  Imports the standard library only."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

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
        lines = [
            "| " + " | ".join(columns) + " |",
            "|" + "|".join("---" for _ in columns) + "|",
            *(
                "| " + " | ".join(_text(row[column]) for column in columns) + " |"
                for row in self.rows
            ),
        ]
        return f"### {self.name}\n\n{self.note}\n\n" + "\n".join(lines) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``name.md`` and ``name.csv``."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = self.name.replace(" ", "-")
        (folder / f"{stem}.md").write_text(self.markdown(), encoding="utf-8")
        with (folder / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]) if self.rows else [])
            writer.writeheader()
            writer.writerows(self.rows)


def spread(values: Iterable[float], scale: float = 1.0, digits: int = 2) -> str:
    """``mean ± standard deviation`` of values times ``scale``."""
    scaled = [scale * value for value in values]
    deviation = statistics.stdev(scaled) if len(scaled) > 1 else 0.0
    return f"{statistics.mean(scaled):.{digits}f} ± {deviation:.{digits}f}"


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, ties sharing their mean."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop + 1 < len(order) and values[order[stop + 1]] == values[order[start]]:
            stop += 1
        for position in range(start, stop + 1):
            result[order[position]] = (start + stop) / 2 + 1
        start = stop + 1
    return result


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; 0 where one of the two is constant."""
    a, b = ranks(first), ranks(second)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return 0.0
    return statistics.correlation(a, b)


def _text(cell: Cell) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
