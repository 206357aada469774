"""A real JupyterLab and a real browser for the tests in this folder.

`Lab` starts a server with a home, settings and runtime of its own, so that nothing of the user's is
read or written; `open_page` opens one notebook in Chromium and notes what goes wrong on the page.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
ROOT = Path(__file__).resolve().parents[2]
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
"""Console messages of the front end itself that say nothing about our widgets."""


def missing() -> str:
    """Why no browser test can run here, or an empty string."""
    if not CHROMIUM:
        return "Chromium is not installed"
    for name in ("jupyterlab", "playwright"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_notebook(path: Path, sources: Iterable[str]) -> None:
    """A notebook of code cells, none of which has run."""
    cells: list[dict[str, object]] = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "execution_count": None,
            "metadata": {},
            "outputs": [],
            "source": source,
        }
        for number, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(notebook), "utf-8")


class Lab:
    """JupyterLab serving one folder, on a port and with a home of its own."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Lab:  # noqa: PYI034 - Self needs Python 3.11
        names = {
            "HOME": "home",
            "IPYTHONDIR": "ipython",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        }
        environment = dict(os.environ)
        for variable, name in names.items():
            (self.home / name).mkdir(parents=True, exist_ok=True)
            environment[variable] = str(self.home / name)
        path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}
        news = self.home / "settings" / "@jupyterlab" / "apputils-extension"
        news.mkdir(parents=True)
        (news / "notification.jupyterlab-settings").write_text(
            json.dumps({"fetchNews": "false", "checkForUpdates": False}), "utf-8"
        )
        self._log = (self.home / "lab.log").open("wb")
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                f"--port={self.port}",
                "--IdentityProvider.token=",
                "--ServerApp.password=",
                "--ServerApp.disable_check_xsrf=True",
                f"--ServerApp.root_dir={self.folder}",
                "--LabApp.expose_app_in_browser=True",
            ],
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        limit = time.monotonic() + 90
        while time.monotonic() < limit:
            with suppress(OSError):
                self.api("status")
                return self
            time.sleep(0.3)
        self.__exit__()
        raise RuntimeError(f"JupyterLab did not start: {(self.home / 'lab.log').read_text()}")

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None
            self._log.close()

    def api(self, path: str, method: str = "GET") -> Any:
        """Answer of the server's REST interface."""
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            body = answer.read()
        return json.loads(body) if body else None

    def wait_for_kernel(self, seconds: float = 60) -> str:
        """Wait until a kernel is idle and connected to a page; give its id."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            with suppress(OSError):  # the list fails for a moment while a kernel is being ended
                for kernel in self.api("kernels"):
                    if kernel["execution_state"] == "idle" and kernel["connections"] > 0:
                        return str(kernel["id"])
            time.sleep(0.2)
        raise TimeoutError("no kernel is idle and connected")

    def end_kernels(self) -> None:
        for session in self.api("sessions"):
            self.api(f"sessions/{session['id']}", "DELETE")


@dataclass
class Watched:
    """A page, with what went wrong on it."""

    page: Any
    lab: Lab
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def command(self, name: str, **arguments: object) -> None:
        """Run one of JupyterLab's commands."""
        self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments]
        )

    def theme(self, name: str) -> None:
        """Switch to the theme "JupyterLab Light" or "JupyterLab Dark"."""
        self.command("apputils:change-theme", theme=name)
        dark = "false" if "Dark" in name else "true"
        self.page.wait_for_selector(f'body[data-jp-theme-light="{dark}"]', state="attached")
        self.page.wait_for_timeout(400)

    def run_all(self, seconds: float = 120) -> None:
        """Run every cell and wait for the last; a cell that fails fails the test."""
        self.lab.wait_for_kernel()
        self.command("notebook:run-all-cells")
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self.page.wait_for_timeout(300)
            prompts = self.prompts()
            if prompts and all(prompt.strip("[]: ").isdigit() for prompt in prompts):
                return
            problem = self.page.query_selector(
                '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"], '
                '.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]'
            )
            if problem is not None and "Error" in problem.inner_text():
                raise AssertionError(problem.inner_text())
        raise TimeoutError(f"cells are still running: {self.prompts()}")

    def prompts(self) -> list[str]:
        """Prompts of the code cells that are not empty, as ``[3]:``."""
        return [
            cell.query_selector(".jp-InputPrompt").inner_text()
            for cell in self.page.query_selector_all(".jp-CodeCell")
            if cell.query_selector(".cm-content").inner_text().strip()
        ]

    def picture(self, name: str, selector: str | None = None) -> Path:
        """Screenshot of the page or of one element, kept in the ignored folder."""
        SCREENSHOTS.mkdir(exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        if selector is None:
            self.page.screenshot(path=path)
        else:
            self.page.locator(selector).first.screenshot(path=path)
        return path


@contextmanager
def open_page(
    lab: Lab, notebook: str, *, width: int = 1280, height: int = 1400, scale: float = 1.0
) -> Iterator[Watched]:
    """One notebook of the lab in Chromium, on its own page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=list(ARGUMENTS)
        )
        page = browser.new_page(
            viewport={"width": width, "height": height}, device_scale_factor=scale
        )
        watched = Watched(page, lab)

        def on_console(message: Any) -> None:
            if message.type == "error" and not any(word in message.text for word in IGNORED):
                watched.errors.append(message.text)

        def on_request(request: Any) -> None:
            if not request.url.startswith(
                (lab.url, "data:", "blob:", lab.url.replace("http", "ws"))
            ):
                watched.foreign.append(request.url)

        page.on("console", on_console)
        page.on("pageerror", lambda error: watched.errors.append(str(error)))
        page.on("request", on_request)
        page.set_default_timeout(30_000)
        page.goto(f"{lab.url}/doc/tree/{notebook}")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        try:
            yield watched
        finally:
            browser.close()
