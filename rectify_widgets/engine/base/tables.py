"""Results as HTML tables and as pandas frames.  Imports pandas when a frame is requested."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def html_table(rows: Iterable[Sequence[str]], heads: Sequence[str] = (), align: str = "") -> str:
    """An HTML table.

    Args:
        rows: cells of each row, markup already: escape what comes from outside.
        heads: titles of the columns; none for a table without a head.
        align: ``"l"`` or ``"r"`` for each column; those beyond are aligned left.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ["right" if side == "r" else "left" for side in align.ljust(len(cells))]
        texts = zip(cells, sides, strict=False)
        return "".join(f"<{tag} style='text-align:{side}'>{cell}</{tag}>" for cell, side in texts)

    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>" if heads else ""
    body = "".join(f"<tr>{line(cells, 'td')}</tr>" for cells in rows)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Any:
    """The rows as a pandas ``DataFrame``.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_frame needs pandas: pip install pandas") from error
    return pd.DataFrame(rows, columns=None if columns is None else list(columns))
