"""A kernel and what a browser would know of its widgets, to the byte and the millisecond.

Imports jupyter_client when one is started.  `Page` speaks the kernel's own protocol: it learns of
widgets by ``comm_open``, keeps their state up to date, and moves a slider or clicks a button with
the very messages that a front end sends, on a sub-shell where the kernel has those.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

State: TypeAlias = dict[str, Any]

QUIET = 0.4
"""Seconds without a message after which a view counts as complete."""

PREFIX = "IPY_MODEL_"


@dataclass(frozen=True)
class Update:
    """One message that changed a widget: when it came, its size on the wire, and the new state."""

    seconds: float
    size: int
    comm: str
    state: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The new state as text, to look for what a view must hold."""
        return str(dict(self.state))


@dataclass(frozen=True)
class Answer:
    """What came back on a click: seconds to the last message of the view, and bytes in all."""

    seconds: float
    size: int


def answer(updates: list[Update], began: float, wanted: Callable[[Update], bool]) -> Answer | None:
    """When the view was complete that holds what is wanted; None if it is not there (yet)."""
    if not any(wanted(update) for update in updates):
        return None
    return Answer(updates[-1].seconds - began, sum(update.size for update in updates))


class Page:
    """One kernel with the widgets in it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.models: dict[str, State] = {}
        self.received = 0
        self.outputs: list[dict[str, Any]] = []
        self.printed: list[str] = []
        self._subshell: str | None = None
        self._idle: set[str] = set()
        self._errors: list[str] = []

    # -- what a reader does -----------------------------------------------------------------------

    def run(self, code: str, seconds: float = 300.0) -> str:
        """Run a cell and give what it prints; `outputs` has what it displays."""
        self.outputs, self.printed, self._errors = [], [], []
        number = self._client.execute(code, allow_stdin=False)
        limit = time.perf_counter() + seconds
        while number not in self._idle:
            if time.perf_counter() > limit:
                raise TimeoutError(f"a cell is still running after {seconds:g} s: {code[:80]!r}")
            self.receive(0.5)
        self._client.get_shell_msg(timeout=seconds)
        if self._errors:
            raise RuntimeError("\n".join(self._errors))
        return "".join(self.printed).strip()

    def set(self, comm: str, **state: object) -> float:
        """Change a widget as a reader would; the time it was sent."""
        return self._send(comm, {"method": "update", "state": state, "buffer_paths": []})

    def click(self, comm: str) -> float:
        """Click a button; the time it was sent."""
        return self._send(comm, {"method": "custom", "content": {"event": "click"}})

    def _send(self, comm: str, data: State) -> float:
        session = self._client.session
        message = session.msg("comm_msg", {"comm_id": comm, "data": data})
        if self._subshell is not None:
            message["header"]["subshell_id"] = self._subshell
        began = time.perf_counter()
        self._client.shell_channel.send(message)
        return began

    # -- what a reader sees -----------------------------------------------------------------------

    def find(self, root: str, kind: str, **state: object) -> str:
        """Id of the widget of this kind and state inside another: the first one in view."""
        for comm in self.inside(root):
            model = self.models[comm]
            if model.get("_model_name") == f"{kind}Model" and all(
                model.get(name) == value for name, value in state.items()
            ):
                return comm
        raise LookupError(f"{root}: no {kind} with {state}")

    def inside(self, root: str, *, hidden: bool = False) -> Iterator[str]:
        """Ids of a widget and of all inside it, from the top; without those that are hidden."""
        model = self.models.get(root.removeprefix(PREFIX))
        if model is None:
            return
        layout = self.models.get(str(model.get("layout", "")).removeprefix(PREFIX), {})
        if layout.get("display") == "none" and not hidden:
            return
        yield root.removeprefix(PREFIX)
        for child in model.get("children", ()):
            yield from self.inside(child, hidden=hidden)

    def view(
        self, began: float, wanted: Callable[[Update], bool], seconds: float = 120.0
    ) -> Answer:
        """Wait until the view that holds what is wanted is complete."""
        updates: list[Update] = []
        while time.perf_counter() < began + seconds:
            update = self.receive(QUIET)
            if update is not None:
                updates.append(update)
            elif (found := answer(updates, began, wanted)) is not None:
                return found
        raise TimeoutError(f"the view is not there after {seconds:g} s")

    def until(
        self, began: float, wanted: Callable[[Update], bool], seconds: float = 120.0
    ) -> float:
        """Seconds until the first message that is wanted."""
        while time.perf_counter() < began + seconds:
            update = self.receive(0.5)
            if update is not None and wanted(update):
                return update.seconds - began
        raise TimeoutError(f"no such message after {seconds:g} s")

    def settle(self) -> None:
        """Read until nothing more comes."""
        quiet = time.perf_counter() + QUIET
        while time.perf_counter() < quiet:
            if self.receive(QUIET) is not None:
                quiet = time.perf_counter() + QUIET

    def receive(self, seconds: float) -> Update | None:
        """Read one message, if any comes in time; what it changes in a widget, else None."""
        channel = self._client.iopub_channel
        limit = time.perf_counter() + seconds
        while (left := limit - time.perf_counter()) > 0:
            if not channel.socket.poll(max(round(1000 * left), 1)):
                return None
            frames = channel.socket.recv_multipart()
            now = time.perf_counter()
            _, parts = self._client.session.feed_identities(frames)
            size = sum(len(part) for part in parts)
            self.received += size
            message = self._client.session.deserialize(parts)
            update = self._take(message, now, size)
            if update is not None or message["msg_type"] == "status":
                return update
        return None

    def _take(self, message: Mapping[str, Any], now: float, size: int) -> Update | None:
        content, kind = message["content"], message["msg_type"]
        if kind in {"comm_open", "comm_msg"}:
            data = content["data"]
            if kind == "comm_msg" and data.get("method") != "update":
                return None  # an echo of what this page sent
            self.models.setdefault(content["comm_id"], {}).update(data.get("state", {}))
            return Update(now, size, content["comm_id"], data.get("state", {}))
        if kind == "comm_close":
            self.models.pop(content["comm_id"], None)
        elif kind == "status" and content["execution_state"] == "idle":
            self._idle.add(message["parent_header"].get("msg_id", ""))
        elif kind == "stream":
            self.printed.append(content["text"])
        elif kind == "error":
            self._errors.append("\n".join(content["traceback"]))
        elif kind in {"display_data", "execute_result"}:
            output = {"output_type": kind, "data": content["data"], "metadata": {}}
            self.outputs.append(output)
        return None

    def use_subshell(self) -> bool:
        """Send what widgets get on a sub-shell from now on, as JupyterLab does where there are any."""
        info = self._client.kernel_info(reply=True, timeout=60)["content"]
        if "kernel subshells" not in info.get("supported_features", ()):
            return False
        session, channel = self._client.session, self._client.control_channel
        channel.send(session.msg("create_subshell_request", {}))
        while True:
            try:
                reply = channel.get_msg(timeout=10)
            except queue.Empty:
                return False
            if reply["msg_type"] == "create_subshell_reply":
                self._subshell = reply["content"].get("subshell_id")
                return self._subshell is not None


@contextmanager
def kernel() -> Iterator[Page]:
    """A page of a fresh kernel of this environment; the kernel ends with the block.

    Raises:
        ImportError: jupyter_client or ipykernel is not installed.
    """
    try:
        import ipykernel  # noqa: F401 - the kernel itself
        from jupyter_client.manager import start_new_kernel
    except ImportError as error:
        raise ImportError(
            "widgets: this benchmark starts a kernel, and needs the extra `lab`: "
            "pip install 'rectify_widgets[lab]'"
        ) from error
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        page = Page(client)
        page.use_subshell()
        yield page
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
