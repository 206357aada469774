"""What every widget has from its panel: one view, handles, controls, pages, the style sheets."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import ipywidgets as ipw
import numpy as np
import pytest
import traitlets
from hypothesis import given
from hypothesis import strategies as st

from rectify_widgets.widgets.controls import Controls
from rectify_widgets.widgets.dashboard.dashboard import RectificationDashboard
from rectify_widgets.widgets.panel import Panel
from rectify_widgets.widgets.session import Job, Session
from rectify_widgets.widgets.style import PAGE, SHEETS, element, read_sheets
from rectify_widgets.widgets.view import View, grid, still, to_do, to_set
from tests.widget_fakes import network, pairs

SCRIPT = Path(__file__).parents[1] / "rectify_widgets" / "widgets" / "view.js"


class Small(Panel):
    handles = ("index", "fold", "fail")
    marks = ("index",)

    index = traitlets.Int(0)
    method = traitlets.Unicode("a")
    folded: tuple[str, ...] = ()

    def html(self) -> str:
        rows = "".join(f"<p{to_set(key=str(n), index=n)}>sample {n}, drückt</p>" for n in range(3))
        return f"<div data-list>{rows}</div>"

    def fold(self, name: str) -> None:
        self.folded = (*self.folded, name)

    def fail(self) -> None:
        raise ValueError("index: got none, want one")


@pytest.fixture
def panel() -> Iterator[Small]:
    small = Small(Session(synchronous=True))
    small.draw()
    yield small
    small.close()


# -- the view -------------------------------------------------------------------------------------


def test_a_click_sets_traits_and_calls_methods(panel: Small) -> None:
    panel.canvas.act({"set": {"index": 2}, "do": {"fold": "stage1"}})
    assert (panel.index, panel.folded) == (2, ("stage1",))


def test_only_handles_can_be_set_and_called(panel: Small) -> None:
    panel.canvas.act({"set": {"method": "b", "fold": 1, "nothing": 3}, "do": {"close": None}})
    panel.canvas.act({"do": {"index": 2, "html": None}})
    assert (panel.method, panel.index) == ("a", 0)
    assert callable(panel.fold)
    assert panel.canvas.comm is not None


def test_what_a_click_raises_is_shown(panel: Small) -> None:
    panel.canvas.act({"do": {"fail": None}})
    assert isinstance(panel.error, ValueError)
    panel.canvas.act({"set": {"index": "two"}})
    assert isinstance(panel.error, traitlets.TraitError)


def test_a_choice_does_not_send_the_view_again(panel: Small) -> None:
    sent: list[str] = []
    panel.canvas.observe(lambda change: sent.append(change["name"]))
    panel.index = 1
    assert sent == ["marks"]
    assert panel.canvas.marks == {"index": 1}


def test_a_panel_is_known_to_its_view_until_it_is_closed() -> None:
    small = Small(Session(synchronous=True))
    view = small.canvas
    small.close()
    view.act({"set": {"index": 2}})
    assert small.index == 0


def test_each_set_of_style_sheets_has_a_place_of_its_own(panel: Small) -> None:
    one, other = View(panel, ("history",)), View(panel, ("prediction",))
    assert one._anywidget_id != other._anywidget_id
    assert re.fullmatch(r"[\w-]+", one._anywidget_id), "it stands in a selector of the page"
    assert one._css == read_sheets("base", "history")
    one.close()
    other.close()


def test_the_script_is_small_and_asks_no_other_host() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.encode()) <= 6 * 1024
    assert "import " not in text
    assert "http" not in text
    assert "eval" not in text


# -- the still view -------------------------------------------------------------------------------


def test_the_still_view_has_no_handles_and_keeps_what_is_chosen(panel: Small) -> None:
    panel.index = 1
    html = panel.still()
    assert re.findall(r" data-[\w-]+", html) == [" data-chosen"]
    assert "<p data-chosen>sample 1" in html


def test_a_mark_wants_all_that_a_handle_sets() -> None:
    cell = f"<td{to_set(place=(1, 2))}>3</td>"
    assert " data-chosen" in still(cell, {"place": (1, 2)})
    assert " data-chosen" not in still(cell, {"place": (2, 1)})
    assert " data-chosen" not in still(cell, {"other": 1})


def test_drawings_become_pictures_and_live_parts_go() -> None:
    drawing = (
        '<svg width="20" height="10" aria-label="a &lt;curve&gt;" viewBox="0 0 1 1"><g/></svg>'
    )
    html = still(f"<b>{drawing}</b><label data-only-live>x <input></label>", {})
    found = re.fullmatch(
        r'<b><img src="data:image/svg\+xml;base64,([^"]+)" alt="a &lt;curve&gt;" '
        r'width="20" height="10"></b>',
        html,
    )
    assert found
    assert b"<g/></svg>" in base64.b64decode(found[1])


@given(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none(), min_size=1))
def test_handles_carry_any_value(values: dict[str, object]) -> None:
    class Reader(HTMLParser):
        found: dict[str, str | None]

        def handle_starttag(self, _: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found = dict(attrs)

    names = {f"n{place}": value for place, value in enumerate(values.values())}
    reader = Reader()
    reader.feed(f"<p{to_set(key=next(iter(values)), **names)}>text</p>")
    assert json.loads(reader.found["data-set"] or "") == names
    assert reader.found["data-key"] == next(iter(values))
    assert still(f"<p{to_do('fold', names)}>text</p>", {}) == "<p>text</p>"


def test_the_numbers_of_a_map_travel_in_a_byte_each() -> None:
    plane = np.linspace(-3, 2, 100 * 50, dtype=np.float32).reshape(100, 50)
    said = dict(re.findall(r'data-(\w+)="([^"]*)"', grid(plane, "for <cat>")))
    rows, columns = int(said["rows"]), int(said["cols"])
    assert (rows, columns, said["height"], said["width"]) == (64, 32, "100", "50")
    steps = np.frombuffer(base64.b64decode(said["grid"]), np.int8).reshape(rows, columns)
    values = steps * float(said["top"]) / 127
    assert values[0, 0] == pytest.approx(plane[:2, :2].mean(), abs=0.05)
    assert values[-1, -1] == pytest.approx(plane[-2:, -2:].mean(), abs=0.05)
    assert unescape(said["what"]) == "for <cat>"


# -- controls -------------------------------------------------------------------------------------


def press(box: ipw.HBox, what: str) -> None:
    (button,) = (
        child for child in box.children if isinstance(child, ipw.Button) and child.tooltip == what
    )
    button.click()


def test_samples_are_stepped_through_around_both_ends(panel: Small) -> None:
    samples = Controls(panel).samples(3)
    press(samples.box, "Next sample")
    assert panel.index == samples.play.value == 1
    assert samples.slider.value == 2, "the page counts from 1"
    press(samples.box, "Previous sample")
    press(samples.box, "Previous sample")
    assert panel.index == 2
    press(samples.box, "Next sample")
    assert panel.index == 0
    samples.play.value = 2  # as the front end does while playing
    assert panel.index == 2
    assert "rw-hidden" not in samples.box._dom_classes
    samples.resize(1)
    assert "rw-hidden" in samples.box._dom_classes, "there is nothing to step through"


def test_choices_are_stepped_through(panel: Small) -> None:
    choice = Controls(panel).choice("method", ["a", "b", "c"], "Method")
    press(choice.box, "Previous method")
    assert panel.method == choice.list.value == "c"
    panel.method = "b"
    press(choice.box, "Next method")
    assert panel.method == "c"


def test_a_row_of_choices_follows_its_trait_and_sets_it(panel: Small) -> None:
    buttons = Controls(panel).choices("method", {"a": "By name", "b": "By rank"}, "Order")
    assert buttons.description == "Order"
    buttons.value = "b"
    assert panel.method == "b"
    panel.method = "a"
    assert buttons.label == "By name"


def test_controls_of_a_kind_share_layout_and_style(panel: Small) -> None:
    make = Controls(panel)
    first, second = (make.button(text, "", "", "fail") for text in "ab")
    assert first.layout is second.layout
    assert first.style is second.style
    first.click()
    assert isinstance(panel.error, ValueError), "what a button raises is shown"


# -- pages ----------------------------------------------------------------------------------------


def test_looks_are_shared_by_the_panels_of_a_session_and_end_with_the_last() -> None:
    before = set(ipw.widget._instances)
    session = Session(synchronous=True)
    one, other = Small(session), Small(session)
    first, second = Controls(one).samples(3), Controls(other).samples(3)
    assert first.slider.layout is second.slider.layout
    assert first.slider.style is second.slider.style
    one.children, other.children = (first.box,), (second.box,)
    one.close()
    assert second.slider.layout.comm is not None, "the other panel is still there"
    other.close()
    assert set(ipw.widget._instances) == before


def test_a_whole_dashboard_takes_few_comms() -> None:
    before = set(ipw.widget._instances)
    dashboard = RectificationDashboard(network(), pairs(), target=1, attribution="saliency")
    dashboard.settle()
    count = len(set(ipw.widget._instances) - before)
    dashboard.close()
    assert count <= 120
    assert set(ipw.widget._instances) == before


class Pieces(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_page_stands_alone(panel: Small, tmp_path: Path) -> None:
    text = panel.to_html(tmp_path / "view.html").read_text("utf-8")
    pieces = Pieces()
    pieces.feed(text)
    assert "sample 2, drückt" in text
    assert {"html", "head", "body", "style", "main"} <= set(pieces.tags)
    assert not {"script", "link", "iframe"} & set(pieces.tags)
    assert pieces.links == []
    assert not re.search(r"https?://|url\(", text)
    assert "prefers-color-scheme: dark" in text


def test_a_page_wants_a_file_in_a_folder(panel: Small, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="path: got int"):
        panel.to_html(3)  # type: ignore[arg-type]
    for bad in (tmp_path, tmp_path / "none" / "view.html"):
        with pytest.raises(ValueError, match="want a file in a folder that exists"):
            panel.to_html(bad)


def test_the_style_sheets_are_whole_and_small() -> None:
    folder = Path(__file__).parents[1] / "rectify_widgets" / "widgets" / "style"
    assert {path.stem for path in folder.glob("*.css")} == {*SHEETS, "base", "page", "audit"}
    for sheet in (*SHEETS, "base", "page", "audit"):
        text = read_sheets(sheet)
        assert text.count("{") == text.count("}"), sheet
        assert "/*" not in text
        assert len(read_sheets(sheet)) < 6_000, "it travels with every widget"
    assert "http" not in element(*SHEETS) + PAGE


def test_a_closed_panel_that_is_collected_leaves_the_others_alone() -> None:
    session = Session(synchronous=True)
    old, new = Small(session), Small(session)
    shared = Controls(new).layout(width="77px")
    old.close()
    old.close()  # as the garbage collector does
    assert shared.comm is not None
    new.close()
    assert shared.comm is None
    session.close()


# -- the bar --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [False, True])
def test_the_bar_is_full_after_work_that_came_to_its_end_alone(
    panel: Small, *, stopped: bool
) -> None:
    """A rectification that is cancelled gives what it has; the bar must not say that it is done."""
    bar = Controls(panel).bar()
    seen: list[float] = []

    def work(job: Job[str]) -> str:
        job.progress(0.5, "halfway")
        seen.append(bar.value)
        if stopped:
            job.cancel()
        return "what there is"

    job = panel.act(work, "Rectify", lambda _: None)
    assert job.result() == "what there is"
    assert (seen, bar.value, panel.busy) == ([0.5], 0.0 if stopped else 1.0, False)
