"""Buttons that do something, and a line that says how far it is.  Imports ipywidgets.

All buttons of the widgets come from here, so that they look and are named alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as ipw

from rectify_widgets.widgets import markup
from rectify_widgets.widgets.jobs import Job


def action_button(
    text: str,
    icon: str,
    tip: str,
    press: Callable[[], object],
    *,
    name: str = "",
    primary: bool = False,
) -> ipw.Button:
    """A button with a text; ``name`` gives it the class ``rw-NAME`` to be found by."""
    button = ipw.Button(
        description=text,
        icon=icon,
        tooltip=tip,
        button_style="primary" if primary else "",
        layout=ipw.Layout(width="auto", flex="0 0 auto", margin="2px 6px 4px 0"),
    )
    button.add_class("rw-action")
    if name:
        button.add_class(f"rw-{name.replace('_', '-')}")
    button.on_click(lambda _: press())
    return button


def step_button(icon: str, what: str, press: Callable[[], object]) -> ipw.Button:
    """A small button with an icon; ``what`` it does is its tooltip and its name."""
    button = ipw.Button(
        icon=icon, tooltip=what, layout=ipw.Layout(width="32px", flex="0 0 auto", margin="2px 0")
    )
    button.add_class("rw-step")
    button.on_click(lambda _: press())
    return button


def progress_bar() -> ipw.FloatProgress:
    """A bar for 0 to 1 that takes the room that is left in its row."""
    bar = ipw.FloatProgress(
        min=0.0,
        max=1.0,
        layout=ipw.Layout(flex="1 1 140px", min_width="80px", width="auto", height="28px"),
    )
    bar.add_class("rw-progress")
    return bar


def progress_line(job: Job[Any]) -> str:
    """What a job is at, how far it is, and how long it may take: one line."""
    words = [f"{job.label}: {job.message}", f"{100 * job.fraction:.0f} %"]
    left = job.seconds_left()
    if left is not None:
        words.append(f"about {markup.duration(left)} left")
    return " · ".join(words)
