"""Front ends for the browser tests: a server each, shared by all tests that use it.

A test that asks for ``server`` runs in JupyterLab; marked ``every_frontend``, in all of them.  With
``--frontend=NAME`` all of them run in that one, and those that need cells are skipped without.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rectify_widgets.engine.base.checks import check_choice
from tests.browser import pages, parts
from tests.browser.frontends import FRONTENDS, TUTORIAL, Server, write_notebook

OWN = (
    """import torch
import rectify_widgets as rw
torch.set_num_threads(1)
case = rw.cases.load("trojan")""",
    """dashboard = rw.RectificationDashboard(
    case.model, case.pairs[:1], examples=case.pairs[1:8], reference=case.reference[:200],
    classes=case.classes, attribution="saliency",
)
dashboard""",
    "",  # the tests write into this cell, as a user would
)

VIEWERS = (
    """import torch
import rectify_widgets as rw
torch.set_num_threads(1)
case = rw.cases.load("trojan")
result = rw.rectify(case.model, case.pairs[0], reference=case.reference[:64], strategy="static",
                    layer="stem", max_degradation=1.0)
test = rw.SamplePairs(case.corrupted[0][:60], case.clean[0][:60], case.clean[1][:60])
ranking = rw.localize(case.model, case.pairs[0], reference=case.reference[:64], trials=0)""",
    """maps = rw.AttributionViewer(case.model, case.pairs[:6], method="saliency")
maps""",
    """layers = rw.EditabilityViewer(ranking)
layers""",
    """predictions = rw.PredictionViewer(
    case.model, result.model, test, target=case.target, classes=case.classes)
predictions""",
    """history = rw.HistoryViewer(result)
history""",
)
"""The viewers without the dashboard, a cell each."""

PAINTER = (
    """import torch
import rectify_widgets as rw
torch.set_num_threads(1)
case = rw.cases.load("trojan")""",
    """painter = rw.MaskPainter(case.pairs.corrupted[:3], model=case.model, fill="ring",
                         classes=case.classes)
painter""",
)
"""A painter of three small pictures."""

WAY = (
    """import torch
import rectify_widgets as rw
torch.set_num_threads(1)
case = rw.cases.load("trojan")
inputs, labels = case.corrupted
images = torch.cat([case.reference[:92], inputs[labels != case.target][:8]])""",
    """dashboard = rw.RectificationDashboard(
    case.model, reference=images, classes=case.classes, attribution="saliency",
    max_rounds=1, refine_steps=0)
dashboard""",
)
"""The dashboard with references alone, of which the last eight carry the trigger."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the front ends of each test."""
    if "server" not in metafunc.fixturenames:
        return
    only = metafunc.config.getoption("--frontend")
    if only is not None:
        chosen = [check_choice("--frontend", only, tuple(FRONTENDS))]
    elif metafunc.definition.get_closest_marker("every_frontend"):
        chosen = list(FRONTENDS)
    else:
        chosen = ["lab"]
    metafunc.parametrize("server", chosen, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A front end that serves the notebooks of these tests; a failure in CI if it cannot run."""
    kind = FRONTENDS[request.param]
    if problem := kind.missing():
        if os.environ.get("CI"):
            pytest.fail(problem)
        pytest.skip(problem)
    folder: Path = tmp_path_factory.mktemp("notebooks")
    for name in ("own.ipynb", "saved.ipynb"):  # the second is for tests that save it
        write_notebook(folder / name, OWN)
    write_notebook(folder / "viewers.ipynb", VIEWERS)
    write_notebook(folder / "painter.ipynb", PAINTER)
    write_notebook(folder / "way.ipynb", WAY)
    shutil.copy(TUTORIAL, folder / TUTORIAL.name)
    with kind(folder, tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def page_of_dashboard(server: Server) -> Iterator[pages.Watched]:
    with pages.open_page(server, "own.ipynb") as watched:
        watched.run_all()
        yield watched
    server.end_kernels()


@pytest.fixture
def own(page_of_dashboard: pages.Watched) -> pages.Watched:
    """A page with a new dashboard on the Trojan case, its maps in view."""
    if page_of_dashboard.server.has_cells:
        page_of_dashboard.run_again(1)
    page_of_dashboard.page.wait_for_selector(parts.MAP)
    return page_of_dashboard


@pytest.fixture
def cells(server: Server) -> None:
    """For tests that run or save cells."""
    if not server.has_cells:
        pytest.skip(f"{server.name} shows no cells")
