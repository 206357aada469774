"""Make the pictures of the widgets from the real thing: ``python -m tests.browser.pictures``.

They show each of the widgets on the Trojan case, in both themes, and the dashboard at work.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import parts
from tests.browser.frontends import ROOT, Lab, write_notebook
from tests.browser.movie import film
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
layers.folded = ("stage1.block0", "stage2.block1")
layers""",
    "prediction": """predictions = rw.PredictionViewer(
    case.model, result.model, test, target=case.target, classes=case.classes)
predictions.page = "flips"
predictions.filter = "broken"
predictions""",
    "history": """history = rw.HistoryViewer(result)
history""",
    "suspicions": """inputs, labels = case.corrupted
met = torch.cat([case.reference[:292], inputs[labels != case.target][:8]])
suspicions = rw.SuspicionViewer(case.model, met, classes=case.classes)
suspicions.reveal().wait()
suspicions.settle()
suspicions""",
    "painter": """painter = suspicions.paint()
painter""",
    "dashboard": """dashboard = rw.RectificationDashboard(
    case.model, pair, examples=case.pairs[others], reference=reference,
    classes=case.classes, target=case.target)
dashboard.rectify().wait()
dashboard""",
}
"""Name of a picture to the cell that shows the widget."""

PATIENCE = 2_500
"""Milliseconds until a view has settled."""

MARGIN = 18
"""Pixels around a widget, in the colour of the notebook."""


def main() -> None:
    """Take every widget's picture in both themes, and film the dashboard in both."""
    GOAL.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        (top / "notebooks").mkdir()
        with Lab(top / "notebooks", top / "home") as lab:
            take(lab)
            for theme in ("Light", "Dark"):
                film(lab, GOAL / f"dashboard-{theme.lower()}.webp", theme)


def take(lab: Lab) -> None:
    """Run the notebook and take every widget's picture twice."""
    write_notebook(lab.folder / "picture.ipynb", [SETUP, *WIDGETS.values()])
    with open_page(lab, "picture.ipynb", width=1240, height=8500, scale=1.5) as watched:
        watched.run_all(seconds=600)
        page = watched.page
        page.wait_for_selector(parts.MAP_AFTER, timeout=300_000)
        page.wait_for_selector(parts.SET_TILE, timeout=300_000)
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
    lab.end_kernels()


def keep(shot: bytes, path: Path) -> None:
    """Write a screenshot with a margin and without its alpha channel."""
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    framed = image.crop((0, 0, 1, 1)).resize((image.width + 2 * MARGIN, image.height + 2 * MARGIN))
    framed.paste(image, (MARGIN, MARGIN))
    framed.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
