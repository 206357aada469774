"""A kernel with widgets in it, and what reaches a browser of them, to the byte and the millisecond.

Imports jupyter_client when a kernel is started.  Nothing here knows how a widget is built: `Kernel`
runs cells and counts the messages of the widgets that come back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

QUIET = 0.2
"""Seconds after the end of a cell in which what it caused may still come."""


@dataclass
class Reply:
    """What a cell caused.

    Attributes:
        printed: what it wrote.
        outputs: what it displayed, as messages.
        opened: comms, one for each widget that a browser has to build.
        seconds: from sending the cell to each message of a widget.
        size: bytes of these messages on the wire.
        texts: their contents.
        errors: tracebacks.
        done: when the cell ended.
    """

    printed: str = ""
    outputs: list[Mapping[str, Any]] = field(default_factory=list)
    opened: int = 0
    seconds: list[float] = field(default_factory=list)
    size: int = 0
    texts: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    done: float | None = None

    def take(self, message: Mapping[str, Any], seconds: float, size: int) -> None:
        """Note one message that came so many seconds after the cell was sent."""
        content, kind = message["content"], message["msg_type"]
        if kind in {"comm_open", "comm_msg"}:
            if content["data"].get("method") == "echo_update":
                return  # what the sender knows already
            self.opened += kind == "comm_open"
            self.seconds.append(seconds)
            self.size += size
            self.texts.append(str(content["data"]))
        elif kind == "stream":
            self.printed += content["text"]
        elif kind == "error":
            self.errors.append("\n".join(content["traceback"]))
        elif kind in {"display_data", "execute_result"}:
            self.outputs.append(message)
        elif kind == "status" and content["execution_state"] == "idle":
            self.done = seconds


class Kernel:
    """Runs cells by the messages of a browser."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, code: str, limit: float = 1200.0) -> Reply:
        """Run a cell and read all that it causes.

        Raises:
            TimeoutError: it still runs after ``limit`` seconds.
            RuntimeError: it raised.
        """
        client, reply = self._client, Reply()
        began = time.perf_counter()
        number = client.execute(code, allow_stdin=False)
        socket, session = client.iopub_channel.socket, client.session
        while True:
            end = limit if reply.done is None else reply.done + QUIET
            left = end - (time.perf_counter() - began)
            if left <= 0 or not socket.poll(round(1000 * left)):
                break
            frames = socket.recv_multipart()
            seconds = time.perf_counter() - began
            _, parts = session.feed_identities(frames)
            message = session.deserialize(parts)
            if message["parent_header"].get("msg_id") == number:
                reply.take(message, seconds, sum(map(len, parts)))
        if reply.done is None:
            raise TimeoutError(f"a cell is still running after {limit:g} s: {code[:80]!r}")
        client.get_shell_msg(timeout=limit)
        if reply.errors:
            raise RuntimeError("\n".join(reply.errors))
        return reply


@contextmanager
def kernel() -> Iterator[Kernel]:
    """A fresh kernel of this environment, which ends with the block.

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
        yield Kernel(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
