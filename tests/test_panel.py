"""What every widget has from its base: pages, paths, steppers, choices, the style sheets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import ipywidgets as ipw
import pytest
import traitlets

from rectify_widgets.widgets.base import Panel
from rectify_widgets.widgets.session import Session
from rectify_widgets.widgets.stepper import ChoiceStepper, SampleStepper
from rectify_widgets.widgets.style import PAGE, SHEETS, element, read_sheets


class Small(Panel):
    index = traitlets.Int(0)
    method = traitlets.Unicode("a")

    def static_html(self) -> str:
        return f"<p>sample {self.index}, drückt</p>"


@pytest.fixture
def panel() -> Iterator[Small]:
    small = Small(Session(synchronous=True))
    yield small
    small.close()


def press(box: ipw.HBox, what: str) -> None:
    (button,) = (
        child for child in box.children if isinstance(child, ipw.Button) and child.tooltip == what
    )
    button.click()


def test_samples_are_stepped_through_around_both_ends(panel: Small) -> None:
    stepper = SampleStepper(panel, 3)
    press(stepper, "Next sample")
    assert panel.index == stepper.slider.value == stepper.play.value == 1
    press(stepper, "Previous sample")
    press(stepper, "Previous sample")
    assert panel.index == 2
    press(stepper, "Next sample")
    assert panel.index == 0
    stepper.play.value = 2  # as the front end does while playing
    assert panel.index == 2
    assert stepper.layout.display is None
    stepper.resize(1)
    assert stepper.layout.display == "none", "there is nothing to step through"


def test_choices_are_stepped_through(panel: Small) -> None:
    stepper = ChoiceStepper(panel, "method", ["a", "b", "c"], "Method")
    press(stepper, "Previous method")
    assert panel.method == stepper.choice.value == "c"
    panel.method = "b"
    press(stepper, "Next method")
    assert panel.method == "c"


def test_a_row_of_choices_follows_its_trait_and_sets_it(panel: Small) -> None:
    buttons = panel.choices("method", {"a": "By name", "b": "By rank"}, "Order")
    assert buttons.description == "Order"
    buttons.value = "b"
    assert panel.method == "b"
    panel.method = "a"
    assert buttons.label == "By name"


class Pieces(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_a_page_stands_alone(panel: Small, tmp_path: Path) -> None:
    panel.index = 7
    path = panel.to_html(tmp_path / "view.html")
    text = path.read_text("utf-8")
    pieces = Pieces()
    pieces.feed(text)
    assert "sample 7, drückt" in text
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
    assert {path.stem for path in folder.glob("*.css")} == {*SHEETS, "base", "page"}
    for sheet in (*SHEETS, "base", "page"):
        text = read_sheets(sheet)
        assert text.count("{") == text.count("}"), sheet
        assert "/*" not in text
        assert len(element(sheet)) < 10_000, "it travels with every widget"
    assert "http" not in element(*SHEETS) + PAGE
