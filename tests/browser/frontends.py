"""The front ends that the browser tests drive, each a real server behind one interface.

`Lab`, `Notebook` and `Voila` serve one folder on a port of their own, with a home, settings and
runtime of their own, so that nothing of the user's is read or written.  Imports the standard
library and, when a kernel is asked, jupyter_client.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from jupyter_client.blocking.client import BlockingKernelClient

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "notebooks" / "01_remove_a_trojan.ipynb"

HOMES = {
    "HOME": "home",
    "IPYTHONDIR": "ipython",
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
}
"""Environment variable to a folder inside the server's home."""


class Server:
    """A front end serving one folder.

    Args:
        folder: where the notebooks are.
        home: an empty folder for all that the server and its kernels write.
    """

    name: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()
    """What must be installed."""

    has_cells: ClassVar[bool] = True
    """Whether the reader sees cells, runs them, and can save the notebook."""

    own_requests: ClassVar[tuple[str, ...]] = ()
    """Other hosts that the front end's own pages ask, whatever the notebook holds."""

    own_errors: ClassVar[tuple[str, ...]] = ()
    """Errors that its pages report for an empty notebook too."""

    ready: ClassVar[str] = "api/status"
    """What a server that is up answers."""

    stop: ClassVar[signal.Signals] = signal.SIGTERM
    """The signal on which the server ends its kernels and itself."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self._process: subprocess.Popen[bytes] | None = None
        self._client: BlockingKernelClient | None = None
        self._asking = ThreadPoolExecutor(1)  # Playwright's own loop runs on the tests' thread

    @classmethod
    def missing(cls) -> str:
        """Why no test can run in this front end here, or an empty string."""
        if not CHROMIUM:
            return "Chromium is not installed"
        for name in ("playwright", *cls.modules):
            if importlib.util.find_spec(name) is None:
                return f"{name} is not installed"
        return ""

    def arguments(self) -> list[str]:
        """What follows ``python -m``."""
        return [
            *("--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={self.port}"),
            *("--IdentityProvider.token=", "--ServerApp.password="),
            "--ServerApp.disable_check_xsrf=True",
            f"--ServerApp.root_dir={self.folder}",
        ]

    def page(self, notebook: str, *, dark: bool = False) -> str:
        """Address of a notebook; ``dark`` matters where a page keeps the theme it came with."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        environment = dict(os.environ)
        for variable, name in HOMES.items():
            (self.home / name).mkdir(parents=True, exist_ok=True)
            environment[variable] = str(self.home / name)
        path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}
        _no_news(self.home / "settings")
        self._log = (self.home / "server.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self.arguments()],
            cwd=self.folder,
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        limit = time.monotonic() + 90
        while time.monotonic() < limit and self._process.poll() is None:
            with suppress(OSError):
                self._get(self.ready)
                return self
            time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"{self.name} did not start: {(self.home / 'server.log').read_text()}")

    def __exit__(self, *_: object) -> None:
        self._asking.submit(self._hang_up).result()
        self._asking.shutdown()
        if self._process is None:
            return
        for number in (self.stop, signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
                break
        self._process = None
        self._log.close()

    def _get(self, path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", method=method)  # noqa: S310
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            body: bytes = answer.read()
        return body

    def api(self, path: str, method: str = "GET") -> Any:
        """Answer of the server's REST interface."""
        body = self._get(f"api/{path}", method)
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
        """End the kernels of all pages."""
        for session in self.api("sessions"):
            self.api(f"sessions/{session['id']}", "DELETE")

    def ask(self, code: str, seconds: float = 60) -> str:
        """Run code in the newest kernel, as a second client beside the page; give what it prints.

        It works the same in every front end, with and without cells.
        """
        connections = sorted(self.home.rglob("kernel-*.json"), key=lambda p: p.stat().st_mtime)
        assert connections, "no kernel is running"
        return self._asking.submit(self._ask, connections[-1], code, seconds).result()

    def _ask(self, connection: Path, code: str, seconds: float) -> str:
        """The same through the client of the last question, unless there is a newer kernel."""
        from jupyter_client.blocking.client import BlockingKernelClient

        if self._client is None or self._client.connection_file != str(connection):
            self._hang_up()
            self._client = BlockingKernelClient(connection_file=str(connection))
            self._client.load_connection_file()
            self._client.start_channels(stdin=False, hb=False)
            self._client.wait_for_ready(timeout=seconds)
        with suppress(queue.Empty):
            while True:  # what the kernel has said to others since
                self._client.get_iopub_msg(timeout=0)
        printed: list[str] = []

        def note(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = self._client.execute_interactive(
            code, output_hook=note, timeout=seconds, allow_stdin=False
        )
        content = reply["content"]
        if content["status"] != "ok":
            raise AssertionError("\n".join(content.get("traceback", [str(content)])))
        return "".join(printed).strip()

    def _hang_up(self) -> None:
        from jupyter_core.utils import ensure_event_loop

        if self._client is not None:
            self._client.stop_channels()
            self._client = None
            ensure_event_loop().close()  # this thread's, which the client made


class Lab(Server):
    """JupyterLab."""

    name = "lab"
    modules = ("jupyterlab",)

    def arguments(self) -> list[str]:
        """Of ``python -m``; the page may be driven by JupyterLab's commands."""
        return ["jupyterlab", *super().arguments(), "--LabApp.expose_app_in_browser=True"]

    def page(self, notebook: str, *, dark: bool = False) -> str:
        """One notebook alone, without what an earlier session had open."""
        del dark
        return f"{self.url}/doc/tree/{notebook}"


class Notebook(Server):
    """Jupyter Notebook 7."""

    name = "notebook"
    modules = ("notebook",)
    own_errors = ("Cannot read properties of undefined (reading 'schema')",)  # 7.6.5

    def arguments(self) -> list[str]:
        """Of ``python -m``; the page may be driven by the same commands as JupyterLab."""
        exposed = "--JupyterNotebookApp.expose_app_in_browser=True"
        return ["notebook", *super().arguments(), exposed]

    def page(self, notebook: str, *, dark: bool = False) -> str:
        """One notebook."""
        del dark
        return f"{self.url}/notebooks/{notebook}"


class Voila(Server):
    """Voilà: a notebook as an application.  It runs by itself, and shows outputs only."""

    name = "voila"
    modules = ("voila",)
    has_cells = False
    own_requests = ("https://cdn.jsdelivr.net/npm/@fortawesome/",)  # icons, in its page template
    ready = "voila/static/voila.js"
    stop = signal.SIGINT

    def arguments(self) -> list[str]:
        """Of ``python -m``; kernels are found through their connection files in the home."""
        connections = self.home / "connections"
        connections.mkdir(exist_ok=True)
        return [
            *("voila", str(self.folder), "--no-browser", f"--port={self.port}"),
            "--Voila.ip=127.0.0.1",
            f"--Voila.connection_dir_root={connections}",
            "--VoilaConfiguration.show_tracebacks=True",
            # Made for Notebook alone, but loaded wherever both are installed.
            "--VoilaConfiguration.extension_denylist=['@jupyter-notebook/lab-extension']",
        ]

    def page(self, notebook: str, *, dark: bool = False) -> str:
        """One notebook, in the theme that the address names."""
        return f"{self.url}/voila/render/{notebook}?theme={'dark' if dark else 'light'}"

    def wait_for_kernel(self, seconds: float = 60) -> str:
        """Wait until a kernel exists; the page waits for its outputs itself."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if found := list(self.home.rglob("kernel-*.json")):
                return found[-1].stem.removeprefix("kernel-")
            time.sleep(0.2)
        raise TimeoutError("no kernel was started")

    def end_kernels(self) -> None:
        """Nothing to do: Voilà ends a page's kernel when the page is left."""


FRONTENDS: dict[str, type[Server]] = {kind.name: kind for kind in (Lab, Notebook, Voila)}


def free_port() -> int:
    """A port that nobody listens on."""
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


def _no_news(settings: Path) -> None:
    """Switch the pop-up off that asks whether to fetch news."""
    folder = settings / "@jupyterlab" / "apputils-extension"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False}), "utf-8"
    )
