"""Run tutorials again: ``python -m tests.run_notebook notebooks/03_spurious_correlation.ipynb``.

Each file is left as the house rules want it committed: the outputs of one fresh run, without widget
state, times or the version of Python.  Cells tagged ``photographs`` show pictures of others: those are
not kept.  Nothing is written where a cell fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

LEFT_OUT = (
    '<div class="rw-static"><p><em>Photographs, which this file does not keep: run the cell to see '
    "them.</em></p></div>"
)


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
    for cell in notebook.cells:
        if "photographs" in cell.metadata.get("tags", ()):
            for output in cell.outputs:
                if "text/html" in output.get("data", {}):
                    output.data["text/html"] = LEFT_OUT
    for name in ("version", "codemirror_mode"):
        notebook.metadata.language_info.pop(name, None)
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
