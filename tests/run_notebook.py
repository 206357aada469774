"""Run tutorials again: ``python -m tests.run_notebook notebooks/03_spurious_correlation.ipynb``.

Each file is left as the house rules want it committed: the outputs of one fresh run, without widget
state, times or the version of Python.  Nothing is written where a cell fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> None:
    """Run all cells and write the file."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for name in ("version", "codemirror_mode"):
        notebook.metadata.language_info.pop(name, None)
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
