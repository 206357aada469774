"""What every widget shares: a session, a status, one view, an error in place, and an end.

Imports ipywidgets, the session, the view and the style sheets.  A `Panel` is a box of controls above
one `View`; panels that are part of a larger one share its session.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

import ipywidgets as ipw
import traitlets
from IPython.display import display

from rectify_widgets.widgets import markup, reruns
from rectify_widgets.widgets.checks import check_path
from rectify_widgets.widgets.session import Job, Session
from rectify_widgets.widgets.style import PAGE, SHEETS, element
from rectify_widgets.widgets.view import View, still

T = TypeVar("T")


class Looks:
    """Layouts and styles of the controls in all panels of a session; the last panel closes them."""

    _of: ClassVar[WeakKeyDictionary[Session, Looks]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._parts: dict[tuple[object, ...], ipw.Widget] = {}
        self._panels = 0

    @classmethod
    def of(cls, session: Session) -> Looks:
        """Those of a session."""
        return cls._of.setdefault(session, cls())

    def use(self) -> None:
        """One panel more."""
        self._panels += 1

    def get(self, kind: type[ipw.Widget], **options: Any) -> Any:
        """The one layout or style with these options, made when it is first asked for."""
        key = (kind, *options.items())
        if key not in self._parts:
            self._parts[key] = kind(**options)
            self._parts[key].is_shared = True
        return self._parts[key]

    def release(self) -> None:
        """One panel less."""
        self._panels -= 1
        if not self._panels:
            for part in self._parts.values():
                part.close()
            self._parts.clear()


class Panel(ipw.VBox):
    """Controls above a view, with a worker of its own or a shared one.

    Callbacks of controls check and submit; what takes time runs in the session.  A subclass says in
    `html` what it shows.
    """

    status = traitlets.Unicode("", read_only=True)
    """What the widget is doing or has done, one line."""

    progress = traitlets.Float(0.0, read_only=True)
    """Share of the work under way that is done, 0 to 1."""

    busy = traitlets.Bool(False, read_only=True)
    """Whether work that a button began is under way."""

    error = traitlets.Instance(BaseException, allow_none=True, read_only=True)
    """What went wrong last; None again as soon as something new is begun."""

    sheets: tuple[str, ...] = SHEETS
    """Style sheets of its own; panels inside it bring theirs."""

    handles: tuple[str, ...] = ()
    """Traits that the HTML may set, and methods that it may call."""

    marks: tuple[str, ...] = ()
    """Traits whose value marks the handles that set it."""

    about = ""
    """What it shows in a few words that stay true, such as "8 samples"; for its `repr`."""

    _closed = False
    _action: Job[Any] | None = None
    _label = ""

    def __init__(self, session: Session | None) -> None:
        if session is not None and not isinstance(session, Session):
            raise TypeError(f"session: got {type(session).__name__}, want a Session or None")
        super().__init__()
        self.children: tuple[ipw.Widget, ...] = ()
        self.session = session if session is not None else Session()
        self.owns_session = session is None
        self._job: Job[Any] | None = None
        self._undo_links: list[Callable[[], None]] = []
        self.looks = Looks.of(self.session)
        self.looks.use()
        self.canvas = View(self, self.sheets, layout=self.looks.get(ipw.Layout, width="100%"))
        self.add_class("rw-panel")
        if self.marks:
            self.listen(self, lambda _: self._mark(), list(self.marks))
        reruns.note(self)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        reruns.note(self)
        return super()._repr_mimebundle_(**options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.about})"

    @contextmanager
    def building(self) -> Iterator[None]:
        """Close the panel if the block, which builds it, fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    # -- what is shown ----------------------------------------------------------------------------

    def html(self) -> str:
        """The current view as HTML with its handles (see `view`); a pure function of the state."""
        return ""

    def draw(self) -> None:
        """Show the current state."""
        with self.canvas.hold_sync():  # one message
            self.canvas.html = self.html()
            self._mark()

    def _mark(self) -> None:
        self.canvas.marks = self._marks()

    def _marks(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.marks}

    def still(self) -> str:
        """The current view without handles; a panel of panels puts theirs together."""
        return still(self.html(), self._marks())

    def sheets_with_parts(self) -> tuple[str, ...]:
        """Style sheets of a static view: its own and those of the panels inside."""
        return self.sheets

    def settle(self) -> None:
        """Wait for the view that is being computed; its failure shows in the view itself."""
        if self._job is not None:
            with suppress(Exception):
                self._job.wait()

    def snapshot(self) -> None:
        """Display the current view as a static output.

        It stays readable when the kernel is gone, in a notebook on a web page, and in an export.
        A view that is still being computed is waited for.
        """
        self.settle()
        data = {"text/html": self._static(), "text/plain": repr(self)}
        display(data, raw=True)  # type: ignore[no-untyped-call]

    def to_html(self, path: str | Path) -> Path:
        """Write the current view to a file that opens offline, in any browser, light and dark.

        A view that is still being computed is waited for.

        Raises:
            TypeError: ``path`` is no path.
        """
        goal = check_path("path", path)
        self.settle()
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>{escape(type(self).__name__)}</title>"
            f'<meta name="viewport" content="width=device-width"><style>{PAGE}</style></head>'
            f"<body><main>{self._static()}</main></body></html>"
        )
        goal.write_text(page, encoding="utf-8")
        return goal

    def _static(self) -> str:
        sheets = element(*self.sheets_with_parts())
        return f'{sheets}<div class="rw-static">{self.still()}</div>'

    # -- work -------------------------------------------------------------------------------------

    @property
    def job(self) -> Job[Any] | None:
        """The work begun last, by a button or by looking at something else.

        ``widget.job.wait()`` and ``await widget.job`` give its result or raise what it raised.
        In a cell below a widget that is displayed, `wait` (see `Job`).
        """
        return self.session.latest

    def begin(
        self,
        work: Callable[[Job[T]], T],
        *,
        lane: str,
        label: str,
        short: bool = False,
        on_done: Callable[[Job[T]], None],
        on_progress: Callable[[Job[T]], None] | None = None,
    ) -> Job[T]:
        """Submit work; its failure is kept in `error`, and ``on_done`` sees successes only."""
        self.set_trait("error", None)

        def settle(job: Job[T]) -> None:
            if job.exception is None:
                on_done(job)
            else:
                self.failed(job)

        job = self.session.submit(
            work, lane=lane, label=label, short=short, on_done=settle, on_progress=on_progress
        )
        self._job = job
        return job

    def act(
        self, work: Callable[[Job[T]], T], label: str, show: Callable[[Job[T]], None]
    ) -> Job[T]:
        """Have the long work of a button done; ``show(job)`` sees it if it succeeds.

        Raises:
            RuntimeError: something else is under way.
        """
        self.check_idle()
        self._label, self._action = label, None
        self.set_trait("busy", True)
        self.set_trait("progress", 0.0)
        self.set_trait("status", f"{label}: starting …")

        def finish(job: Job[T]) -> None:
            self.set_trait("progress", 0.0 if job.stopping else 1.0)
            self.set_trait("busy", False)
            show(job)

        lane = f"action {id(self)}"
        try:
            self._action = job = self.begin(
                work, lane=lane, label=label, on_done=finish, on_progress=self.report
            )
        except BaseException:  # the session is closed
            self._rest()
            raise
        return job

    def report(self, job: Job[Any]) -> None:
        """Say how far a job is."""
        self.set_trait("progress", min(max(job.fraction, 0.0), 1.0))
        self.set_trait("status", markup.progress_line(job))

    def check_idle(self) -> None:
        """Raise a `RuntimeError` if something is under way."""
        if self.busy:
            raise RuntimeError(f"{self._label} is under way; wait for it, or cancel() it first")

    def cancel(self) -> Job[Any] | None:
        """Stop what a button began; returns its job."""
        job = self._action if self.busy else None
        if job is not None:
            self.set_trait("status", f"{job.label}: stopping …")
            job.cancel()
        return job

    def failed(self, job: Job[Any]) -> None:
        """Take note of work that failed or was cancelled."""
        if self._action in (None, job):  # None: a synchronous session ends it before we have it
            self._rest()
        if job.was_cancelled:
            self.set_trait("status", f"{job.label}: cancelled")
            return
        self.set_trait("error", job.exception)
        self.set_trait("status", f"{job.label}: failed")

    def _rest(self) -> None:
        self.set_trait("busy", False)
        self.set_trait("progress", 0.0)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take values from the page; one that is refused is shown as an error and taken back there.

        Values of a panel come from links that a user has made in the page (``jslink``), and from
        other pages; within ``set_state`` a check that raises would leave them unchecked.
        """
        good = dict(sync_data)
        own = {*self.class_traits(sync=True)} - {*ipw.VBox.class_traits()}
        for name in own & {*sync_data}:
            value = sync_data[name]
            try:
                with self._lock_property(**{name: value}):  # the page has it already
                    setattr(self, name, value)
            except (TypeError, ValueError, traitlets.TraitError) as error:
                self.set_trait("error", error)
                self.send_state(name)
                self.draw()
                del good[name]
        super().set_state(good)

    def press(self, method: Callable[[], object]) -> None:
        """What a click does: the method; what it raises is shown, since no cell would."""
        try:
            method()
        except Exception as error:  # noqa: BLE001 - shown in place
            self.set_trait("error", error)

    # -- links and the end ------------------------------------------------------------------------

    def listen(
        self, widget: traitlets.HasTraits, handler: Callable[[Any], object], names: Any
    ) -> None:
        """Observe until this panel is closed."""
        widget.observe(handler, names=names)
        self._undo_links.append(lambda: widget.unobserve(handler, names=names))

    def link(
        self,
        name: str,
        other: traitlets.HasTraits,
        its_name: str | None = None,
        transform: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
    ) -> None:
        """Keep a trait equal to one of another widget until this panel is closed.

        ``transform`` makes its value of ours, and ours of its.
        """
        link = traitlets.link((self, name), (other, its_name or name), transform=transform)
        self._undo_links.append(link.unlink)

    def close(self) -> None:
        """Cancel what is under way, and free the worker, the comms, the pictures and the models."""
        if "session" not in self.__dict__ or self._closed:  # refused before it was made, or done
            super().close()
            return
        self._closed = True
        if self.owns_session:
            reruns.forget(self.session)
            self.session.close()
        for undo in self._undo_links:
            undo()
        self._undo_links.clear()
        self.unobserve_all()
        parts = [*self.children, self.canvas]
        self.children = ()
        for child in parts:
            close_tree(child)
        _close_parts(self)
        self.looks.release()
        self._job = self._action = None  # their results are models
        self.forget()
        super().close()

    def __del__(self) -> None:
        """Close what nobody refers to, but not while the interpreter is taken down.

        Tensors that are let go of then, for a second time, make torch abort the process.
        """
        if not sys.is_finalizing():
            super().__del__()

    def forget(self) -> None:
        """Let go of models, inputs and pictures; called once, on closing."""


def close_tree(widget: ipw.Widget) -> None:
    """Close a widget with all that is inside, and with its layout and style."""
    if isinstance(widget, Panel):
        widget.close()
        return
    for child in getattr(widget, "children", ()):
        close_tree(child)
    _close_parts(widget)
    widget.close()


def _close_parts(widget: ipw.Widget) -> None:
    for part in ("layout", "style"):
        piece = getattr(widget, part, None)
        if isinstance(piece, ipw.Widget) and not hasattr(piece, "is_shared"):
            piece.close()
