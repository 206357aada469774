"""A line for work that takes long: how far it is, Cancel, or what went wrong.  Imports ipywidgets."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as ipw

from rectify_widgets.widgets.buttons import action_button, progress_bar


class WaitRow(ipw.HBox):
    """Words with a progress bar and Cancel, or with Try again; hidden while there are no words.

    Args:
        cancel: called by a click on Cancel.
        again: called by a click on Try again.
    """

    def __init__(self, cancel: Callable[[], object], again: Callable[[], object]) -> None:
        self._words = ipw.HTML(layout=ipw.Layout(flex="0 1 auto", margin="0 8px 0 0"))
        self._bar = progress_bar()
        self.stop = action_button("Cancel", "stop", "Stop what is under way", cancel)
        self.again = action_button("Try again", "refresh", "Do again what did not succeed", again)
        super().__init__(
            [self._words, self._bar, self.stop, self.again],
            layout=ipw.Layout(width="100%", flex_flow="row wrap", align_items="center"),
        )
        self.rest()

    def rest(self) -> None:
        """Hide: nothing is under way that takes long."""
        self.layout.display = "none"
        self._words.value = ""

    def busy(self, share: float, words: str) -> None:
        """Show how far the work is; words are HTML.  It may be called from a worker's thread."""
        self._show(words, busy=True)
        self._bar.value = share

    def failed(self, words: str) -> None:
        """Show what went wrong; words are HTML."""
        self._show(words, busy=False)

    def _show(self, words: str, *, busy: bool) -> None:
        self._words.value = words
        self._bar.layout.display = self.stop.layout.display = None if busy else "none"
        self.again.layout.display = "none" if busy else None
        self.layout.display = None
