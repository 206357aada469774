"""Film the dashboard at work in JupyterLab: screenshots between real clicks, as an animated WebP.

`film` presses the buttons as a user would and keeps what the page shows, each view for the time that
it takes to read.  Imports the servers, Pillow, and Playwright when a page is opened.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tests.browser import parts
from tests.browser.frontends import Lab, write_notebook
from tests.browser.pages import Watched, open_page

NOTEBOOK = "remove_a_trojan.ipynb"

CELLS = (
    """import rectify_widgets as rw

case = rw.cases.load("trojan")  # whatever carries a small patch is a T-shirt for this model
model, pairs, reference = case.model, case.pairs[3], case.reference[:400]""",
    """rw.RectificationDashboard(model, pairs, reference=reference, examples=case.pairs[4:],
                          classes=case.classes, target="T-shirt/top")""",
)

WIDTH, HEIGHT, SCALE = 1176, 1140, 0.85
"""Of the page, in its own pixels, and the picture's pixels for each; the cards lie in two columns."""

FRAME: dict[str, tuple[str, dict[str, str]]] = {
    ".jp-SideBar.jp-mod-left": ("application:toggle-side-tabbar", {"side": "left"}),
    ".jp-SideBar.jp-mod-right": ("application:toggle-side-tabbar", {"side": "right"}),
    "#jp-main-statusbar": ("statusbar:toggle", {}),
}
"""What takes room beside the notebook, and the command of JupyterLab that hides it."""

CALM = 700
"""Milliseconds until what a click changed has settled."""


@dataclass
class Film:
    """Screenshots of a page, each with how long it is shown."""

    page: Any
    frames: list[Image.Image] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def keep(self, milliseconds: int, *, calm: int = CALM) -> None:
        """Show the page as it is now for a while."""
        self.page.wait_for_timeout(calm)
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        self.frames.append(shot)
        self.times.append(milliseconds)

    def scroll(self, pixels: int, steps: int = 3) -> None:
        """Turn the mouse wheel over the notebook's margin, and show the way."""
        self.page.mouse.move(WIDTH - 20, HEIGHT / 2)
        for _ in range(steps):
            self.page.mouse.wheel(0, pixels / steps)
            self.keep(120, calm=250)

    def during(self, ended: Callable[[], bool], milliseconds: int, every: float) -> None:
        """Show a view of each ``every`` seconds until something has ended, for so long in all."""
        start = len(self.frames)
        while not ended():
            self.keep(0, calm=0)
            after = time.monotonic() + every
            while time.monotonic() < after and not ended():
                self.page.wait_for_timeout(50)
        count = len(self.frames) - start
        self.times[start:] = [milliseconds // count] * count

    def save(self, path: Path) -> None:
        """Write the frames without a loss, round and round."""
        first, *rest = self.frames
        first.save(
            path, save_all=True, append_images=rest, duration=self.times, loop=0,
            lossless=True, quality=100, method=4, minimize_size=True,
        )  # fmt: skip
        seconds = sum(self.times) / 1000
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB, {seconds:.1f} s")


def film(lab: Lab, path: Path, theme: str) -> None:
    """Film the dashboard on the Trojan case in a theme, "Light" or "Dark"."""
    write_notebook(lab.folder / NOTEBOOK, CELLS)
    for name in ("repair.html", "repair.json"):
        (lab.folder / name).unlink(missing_ok=True)
    with open_page(lab, NOTEBOOK, width=WIDTH, height=HEIGHT, scale=SCALE) as watched:
        watched.theme(f"JupyterLab {theme}")
        for shown, (command, arguments) in FRAME.items():
            if watched.page.locator(shown).is_visible():
                watched.command(command, **arguments)
        watched.run_all()
        watched.page.wait_for_selector(parts.MAP)
        watched.page.evaluate("document.activeElement.blur()")
        reel = Film(watched.page)
        repair(watched, reel)
        look_back(watched, reel)
        report(watched, reel, theme)
        watched.assert_quiet()
        reel.save(path)
    lab.end_kernels()


def repair(watched: Watched, reel: Film) -> None:
    """Rank the layers, choose one, and rectify."""
    page = watched.page
    reel.keep(2200, calm=2500)
    page.click(parts.LOCATE)
    watched.wait_for_status("scores best")
    reel.keep(2000)
    page.locator(parts.LAYER).nth(3).click()
    reel.keep(1200)
    page.click(parts.RECTIFY)
    watched.wait_for_status("Rectify: ")
    page.mouse.move(WIDTH - 20, HEIGHT / 2)
    reel.during(lambda: "Rectify: " not in watched.status(), 3000, every=2.5)
    watched.wait_for_status("Target reached")
    page.wait_for_selector(parts.MAP_AFTER)
    reel.keep(2500, calm=2500)


def look_back(watched: Watched, reel: Film) -> None:
    """Go through the history, back to the model as given and forth again."""
    page = watched.page
    reel.scroll(640)
    reel.keep(1200)
    steps = page.locator(parts.STEP).count() - 1
    page.locator(parts.STEPS).focus()
    for key in ("ArrowLeft", "ArrowRight"):
        for _ in range(steps):
            page.keyboard.press(key)
            reel.keep(800, calm=1500)
    reel.times[-1] += 400
    reel.scroll(-640)


def report(watched: Watched, reel: Film, theme: str) -> None:
    """Write the report, and open it."""
    page = watched.page
    page.click(parts.WAY_TAB.format("save"))
    reel.keep(1000)
    page.click(parts.REPORT)
    watched.wait_for_status("Wrote repair.html")
    reel.keep(1600)
    page.emulate_media(color_scheme=theme.lower())
    page.goto(f"{watched.server.url}/files/repair.html")
    reel.keep(2600)
