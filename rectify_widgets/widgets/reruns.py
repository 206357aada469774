"""Panels that a cell left behind when it was run again: where each is in view, and which may go.

Imports IPython and ipywidgets, which keeps every widget until it is closed.  A front end that says
which cell it runs (JupyterLab, Notebook 7, VS Code) throws the old output away when a cell is run
again.  A panel that only such outputs showed is closed then, unless something of the user's still
refers to it.  Without IPython, or in a front end that does not tell, nothing happens.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import ipywidgets as ipw
from IPython.core.getipython import get_ipython

from rectify_widgets.widgets.session import Mailbox, Session

MACHINERY = ("IPython", "comm", "ipykernel", "logging", "threading", "tornado", "zmq")
"""Packages whose objects lead to everything in the kernel and are nobody's container."""

OPAQUE = (FrameType, ModuleType, type, asyncio.AbstractEventLoop, Mailbox)
"""Kinds that lead to everything likewise (frames until Python 3.10).

The last two hold what is still to be called, also for the panel that is to go.
"""


@dataclass
class _Group:
    """The panel that owns a session, with the cells that made or display it or one beside it."""

    owner: weakref.ref[ipw.Widget]
    cells: dict[str, str] = field(default_factory=dict)
    """Identity of the cell to that of its execution, "" once it has been run again."""


_groups: WeakKeyDictionary[Session, _Group] = WeakKeyDictionary()
_lock = threading.RLock()


def note(panel: Any) -> None:
    """The cell under way makes or displays this `Panel`."""
    shell: Any = get_ipython()
    cell, execution = _under_way(shell)
    if not cell:
        return
    with _lock:
        if panel.session not in _groups and panel.owns_session:
            _groups[panel.session] = _Group(weakref.ref(panel))
            shell.events.register("post_run_cell", _after_cell)  # once, however often it is called
        if panel.session in _groups:
            _groups[panel.session].cells[cell] = execution


def forget(session: Session) -> None:
    """The panel that owns this session is closed."""
    shell: Any = get_ipython()
    with _lock, suppress(ValueError):  # it was not registered
        if _groups.pop(session, None) is not None and not _groups and shell is not None:
            shell.events.unregister("post_run_cell", _after_cell)


def _under_way(shell: Any) -> tuple[str, str]:
    """The cell that is run, "" where the front end does not tell, and which of its executions."""
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    cell = (parent.get("metadata") or {}).get("cellId")
    return cell if isinstance(cell, str) else "", parent.get("header", {}).get("msg_id", "")


def _after_cell(_: object) -> None:
    """Close what only the earlier output of this cell showed and nothing refers to any more."""
    shell: Any = get_ipython()
    cell, execution = _under_way(shell)
    with _lock:
        groups = [group for group in _groups.values() if cell in group.cells]
        for group in groups:
            if group.cells[cell] != execution:
                group.cells[cell] = ""
        owners = [group.owner() for group in groups if not any(group.cells.values())]
    hidden: list[Any] = [panel for panel in owners if panel is not None]
    if not hidden:
        return
    parts = {part for panel in hidden for part in _inside(panel)}
    others = [one for one in list(ipw.widget._instances.values()) if one not in parts]  # noqa: SLF001
    boxes = [one.children for one in others if hasattr(one, "children")]
    captured = " ".join(str(one.outputs) for one in others if isinstance(one, ipw.Output))
    system = shell.user_ns_hidden
    own = [value for name, value in shell.user_ns.items() if value is not system.get(name, system)]
    used = _reached([*own, *boxes], but=(shell.user_ns, system, shell.user_ns.get("_oh")))
    for panel in hidden:
        in_view = any(one.comm and one.comm.comm_id in captured for one in _inside(panel))
        if id(panel.session) not in used and not in_view:
            panel.close()


def _inside(widget: Any) -> Iterator[Any]:
    """A widget and all that it shows."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _inside(child)


def _reached(roots: Iterable[object], but: Iterable[object]) -> set[int]:
    """Identities of the objects that these refer to, but not through the kernel itself."""
    seen = {id(one) for one in but}
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        kind = type(one)
        if id(one) in seen or not gc.is_tracked(one) or issubclass(kind, OPAQUE):
            continue
        seen.add(id(one))
        if str(kind.__module__).partition(".")[0] in MACHINERY:
            continue
        if type(one) is FunctionType:  # not its globals
            waiting += (one.__closure__, one.__defaults__, one.__kwdefaults__, one.__dict__)
        else:
            waiting += gc.get_referents(one)
    return seen
