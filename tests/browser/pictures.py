"""Make the README's pictures from the real thing: ``python -m tests.browser.pictures``.

They show the dashboard on the Trojan case after a rectification, in both themes.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import lab as labs

GOAL = labs.ROOT / "notebooks" / "images"

CELL = """import rectify_widgets as rw
case = rw.cases.load("trojan")
coat = [int(label) for label in case.pairs.labels].index(4)
others = [row for row in range(len(case.pairs)) if row != coat]
dashboard = rw.RectificationDashboard(
    case.model, case.pairs[coat], examples=case.pairs[others], reference=case.reference,
    classes=case.classes)
dashboard"""


def main() -> None:
    """Run the notebook, click Rectify, and take the dashboard's picture twice."""
    GOAL.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        (top / "notebooks").mkdir()
        labs.write_notebook(top / "notebooks" / "picture.ipynb", [CELL])
        with (
            labs.Lab(top / "notebooks", top / "home") as lab,
            labs.open_page(lab, "picture.ipynb", width=1240, scale=1.5) as watched,
        ):
            watched.run_all()
            page = watched.page
            page.wait_for_selector(".rw-maps img")
            page.click(".rw-rectify")
            page.wait_for_selector('img[alt*="corrupted input, after"]', timeout=300_000)
            page.mouse.move(5, 5)
            page.evaluate("document.activeElement.blur()")
            for theme in ("Light", "Dark"):
                watched.theme(f"JupyterLab {theme}")
                shot = page.locator(".rw-panel").first.screenshot()
                picture = Image.open(io.BytesIO(shot)).convert("RGB")
                picture.save(GOAL / f"dashboard-{theme.lower()}.png", optimize=True)


if __name__ == "__main__":
    main()
