"""One notebook in Chromium, in any of the front ends, with what goes wrong on its page.

Imports the servers, and Playwright when a page is opened.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.browser import parts
from tests.browser.frontends import CHROMIUM, Server

SCREENSHOTS = Path(__file__).parent / ".screenshots"

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

IGNORED = ("favicon", "ResizeObserver loop")
"""Console messages of the front ends themselves that say nothing about our widgets."""

CELL = ".jp-Notebook .jp-CodeCell"

FAILED = (
    '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"], '
    '[data-mime-type="application/vnd.jupyter.error"]'
)
"""What a cell shows that went wrong."""


@dataclass
class Watched:
    """A page, with what went wrong on it."""

    page: Any
    server: Server
    notebook: str
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def open(self, *, dark: bool = False) -> None:
        """Go to the notebook; where there are no cells to run, wait until it has run."""
        self.page.goto(self.server.page(self.notebook, dark=dark))
        if self.server.has_cells:
            self.page.wait_for_selector(CELL)
        else:
            self.page.wait_for_selector(f"{parts.PANEL}, {FAILED}", timeout=90_000)
            if failed := self.page.query_selector(FAILED):
                raise AssertionError(failed.inner_text())

    def command(self, name: str, **arguments: object) -> None:
        """Run one of the commands of JupyterLab and Notebook."""
        self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments]
        )

    def theme(self, name: str) -> None:
        """Switch to the theme "JupyterLab Light" or "JupyterLab Dark".

        Voilà has its theme from the address: the page is opened anew, with a new kernel.
        """
        dark = "Dark" in name
        if self.server.has_cells:
            self.command("apputils:change-theme", theme=name)
            light = "false" if dark else "true"
            self.page.wait_for_selector(f'body[data-jp-theme-light="{light}"]', state="attached")
        else:
            self.open(dark=dark)
        self.page.wait_for_timeout(400)

    def run_all(self, seconds: float = 120) -> None:
        """Run every cell and wait for the last; a cell that fails fails the test."""
        self.server.wait_for_kernel()
        if not self.server.has_cells:
            return
        self.command("notebook:run-all-cells")
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.page.wait_for_timeout(200)
            prompts = self.prompts()
            if prompts and all(prompt.strip("[]: ").isdigit() for prompt in prompts):
                return
            problem = self.page.query_selector(FAILED)
            if problem is not None and "Error" in problem.inner_text():
                raise AssertionError(problem.inner_text())
        raise TimeoutError(f"cells are still running: {self.prompts()}")

    def prompts(self) -> list[str]:
        """Prompts of the code cells that are not empty, as ``[3]:``."""
        return [
            cell.query_selector(".jp-InputPrompt").inner_text()
            for cell in self.page.query_selector_all(CELL)
            if cell.query_selector(".cm-content").inner_text().strip()
        ]

    def ask(self, code: str) -> str:
        """Run code in the page's kernel, once it may have heard of the last click; give what it prints."""
        self.page.wait_for_timeout(400)
        return self.server.ask(code)

    def run_cell(self, code: str, seconds: float = 60) -> str:
        """Run code in the last cell, as a user would, and give what it shows."""
        cell = self.page.locator(CELL).last
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(code)
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_timeout(100)
        limit = time.monotonic() + seconds
        while "[*]" in cell.locator(".jp-InputPrompt").inner_text():
            assert time.monotonic() < limit, f"{code!r} does not end"
            self.page.wait_for_timeout(20)
        output = cell.locator(".jp-OutputArea-output")
        return str(output.first.inner_text()).strip() if output.count() else ""

    def run_again(self, number: int, seconds: float = 60) -> None:
        """Run one cell, with the keyboard, and wait for its end."""
        before = self.prompts()[number]
        self.page.locator(CELL).nth(number).locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")
        limit = time.monotonic() + seconds
        while "*" in self.prompts()[number] or self.prompts()[number] == before:
            assert time.monotonic() < limit, f"cell {number} does not end"
            self.page.wait_for_timeout(50)

    def save(self) -> None:
        """Save the notebook, and wait until it is written."""
        path = self.server.folder / self.notebook
        before = path.stat().st_mtime_ns
        self.command("docmanager:save")
        limit = time.monotonic() + 10
        while path.stat().st_mtime_ns == before:
            assert time.monotonic() < limit, "the notebook is not saved"
            self.page.wait_for_timeout(100)

    def status(self) -> str:
        """The status line of the first dashboard."""
        return str(self.page.locator(parts.STATUS).first.inner_text())

    def wait_for_status(self, *words: str, seconds: float = 120) -> str:
        """Wait until the status line has one of these words; an error in place fails the test."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            text = self.status()
            if any(word in text for word in words):
                return text
            problem = self.page.query_selector(parts.ERROR)
            assert problem is None, problem.inner_text()
            self.page.wait_for_timeout(30)
        raise TimeoutError(f"want {words}, the status is {self.status()!r}")

    def rectify(self) -> str:
        """Press Rectify, and wait until it has ended and the new maps are there."""
        self.page.click(parts.RECTIFY)
        text = self.wait_for_status("Target reached", "Done after", "Round limit")
        self.page.wait_for_selector(parts.MAP_AFTER)
        return text

    def undo_all(self) -> None:
        """Press Undo until no edit is left."""
        for step in range(int(self.ask("print(dashboard.history.step)")), 0, -1):
            self.page.click(parts.UNDO)
            self.wait_for_step(step - 1)
            self.wait_for_status("Took an edit back")
        self.page.wait_for_selector(f"{parts.UNDO}:disabled")

    def wait_for_step(self, step: int) -> None:
        """Wait until the dashboard in Python is at this step of the history."""
        end = time.monotonic() + 30.0
        while self.ask("print(dashboard.history.step)") != str(step):
            assert time.monotonic() < end, f"want step {step}"
            self.page.wait_for_timeout(100)

    def picture(self, name: str, selector: str | None = None) -> Path:
        """Screenshot of the page or of one element, kept in the ignored folder."""
        SCREENSHOTS.mkdir(exist_ok=True)
        path = SCREENSHOTS / f"{self.server.name}-{name}.png"
        if selector is None:
            self.page.screenshot(path=path)
        else:
            self.page.locator(selector).first.screenshot(path=path)
        return path

    def assert_quiet(self) -> None:
        """No error on the console, no request to another host."""
        assert self.errors == []
        assert self.foreign == []


@contextmanager
def open_page(
    server: Server,
    notebook: str,
    *,
    width: int = 1280,
    height: int = 1400,
    scale: float = 1.0,
    dark: bool = False,
) -> Iterator[Watched]:
    """One notebook of a server in Chromium, on its own page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=list(ARGUMENTS)
        )
        page = browser.new_page(
            viewport={"width": width, "height": height}, device_scale_factor=scale
        )
        watched = Watched(page, server, notebook)

        def report(text: str, url: str = "") -> None:
            known = (*IGNORED, *server.own_errors)
            if not any(word in text for word in known) and not url.startswith(server.own_requests):
                watched.errors.append(text)

        def on_console(message: Any) -> None:
            if message.type == "error":
                report(message.text, message.location.get("url", ""))

        def note(url: str) -> None:
            """Keep the address of a request to another host."""
            if server.host not in url.split("/")[:3] and not url.startswith(server.own_requests):
                watched.foreign.append(url)

        def refuse(route: Any) -> None:
            note(route.request.url)
            route.abort()  # nothing leaves this machine, wanted or not

        page.on("console", on_console)
        page.on("pageerror", lambda error: report(str(error)))
        page.on("websocket", lambda opened: note(opened.url))
        # A pattern, not a function: then only what matches waits for this thread.
        page.route(re.compile(f"^https?://(?!{re.escape(server.host)}/)"), refuse)
        page.set_default_timeout(30_000)
        try:
            watched.open(dark=dark)
            yield watched
        finally:
            browser.close()
