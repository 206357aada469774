"""Make the pictures of the widgets from the real thing: ``python -m tests.browser.pictures``.

They show each of the five widgets on the Trojan case, in both themes; the README shows some.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.frontends import ROOT, Lab, write_notebook
from tests.browser.pages import open_page

GOAL = ROOT / "notebooks" / "images"

SETUP = """import torch
import traitlets
import rectify_widgets as rw
case = rw.cases.load("trojan")
coat = [int(label) for label in case.pairs.labels].index(4)
others = [row for row in range(len(case.pairs)) if row != coat]
pair, reference = case.pairs[coat], case.reference[:400]
result = rw.rectify(case.model, pair, reference=reference)
x, y = case.clean[0][:500], case.clean[1][:500]
test = rw.SamplePairs(case.trigger(x), x, y)"""

WIDGETS = {
    "attribution": """maps = rw.AttributionViewer(
    case.model, case.pairs, after=result.model, classes=case.classes)
maps.page = "set"
maps""",
    "editability": """layers = rw.EditabilityViewer(case.model, pair, reference=reference)
layers.locate().wait()
layers.locate("trial").wait()
layers.locate("projection").wait()
layers.method, layers.view = "edit-attribution", "tree"
layers""",
    "prediction": """predictions = rw.PredictionViewer(
    case.model, result.model, test, target=case.target, classes=case.classes)
predictions.page = "flips"
predictions.filter = "broken"
predictions""",
    "history": """history = rw.HistoryViewer(result)
history""",
    "dashboard": """dashboard = rw.RectificationDashboard(
    case.model, pair, examples=case.pairs[others], reference=reference,
    classes=case.classes, target=case.target)
dashboard.rectify().wait()
dashboard""",
}
"""Name of a picture to the cell that shows the widget."""

PATIENCE = 2_500
"""Milliseconds until a view has settled."""


def main() -> None:
    """Run the notebook and take every widget's picture twice."""
    GOAL.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        (top / "notebooks").mkdir()
        write_notebook(top / "notebooks" / "picture.ipynb", [SETUP, *WIDGETS.values()])
        with (
            Lab(top / "notebooks", top / "home") as lab,
            open_page(lab, "picture.ipynb", width=1240, height=6000, scale=1.5) as watched,
        ):
            watched.run_all(seconds=600)
            page = watched.page
            page.wait_for_selector('img[alt*="corrupted input, after"]', timeout=300_000)
            page.wait_for_selector(".rw-tiles img", timeout=300_000)
            page.mouse.move(5, 5)
            page.evaluate("document.activeElement.blur()")
            for theme in ("Light", "Dark"):
                watched.theme(f"JupyterLab {theme}")
                page.wait_for_timeout(PATIENCE)
                cells = page.locator(
                    ".jp-CodeCell .jp-OutputArea-output > .rw-panel, .jp-OutputArea-output .rw-panel:not(.rw-panel .rw-panel)"
                )
                for place, name in enumerate(WIDGETS):
                    keep(cells.nth(place).screenshot(), GOAL / f"{name}-{theme.lower()}.png")


def keep(shot: bytes, path: Path) -> None:
    """Write a screenshot without its alpha channel."""
    Image.open(io.BytesIO(shot)).convert("RGB").save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
