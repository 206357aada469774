"""How pytest runs the tutorials: which are slow, which is compared, what follows a failed cell.

Imports pytest and nbval's cells only.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

SLOW = (
    "03_spurious_correlation", "05_which_layer", "07_a_pretrained_imagenet_network",
    "08_any_corruption", "10_what_is_wrong_with_this_model", "11_a_fault_nobody_planted",
)  # fmt: skip
"""Tutorials of more than half a minute."""

STRICT = "02_widget_gallery"
"""Every output of this one must come out as it was committed, but for what sanitize.cfg names."""

FAILED = pytest.StashKey[str]()
"""The first cell of a notebook that failed."""


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> list[pytest.Collector]:
    """Have every output of the gallery compared."""
    found: list[pytest.Collector] = yield
    for file in found:
        if isinstance(file, IPyNbFile) and file_path.stem == STRICT:
            file.compare_outputs = True
            file.get_sanitize_files = lambda: [file_path.with_name("sanitize.cfg")]
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cells of slow tutorials."""
    for item in items:
        if isinstance(item, IPyNbCell) and Path(item.path).stem in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what follows a failed cell: it would fail for want of what that cell makes."""
    first = item.parent.stash.get(FAILED, None) if isinstance(item.parent, IPyNbFile) else None
    if first is not None:
        pytest.skip(f"{first} of this notebook failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> pytest.TestReport:
    """Remember which cell failed first."""
    report: pytest.TestReport = yield
    if isinstance(item.parent, IPyNbFile) and report.failed:
        item.parent.stash.setdefault(FAILED, item.name)
    return report
