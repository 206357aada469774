"""The editability viewer alone, by its traits, with the synchronous session and a fake engine."""

from __future__ import annotations

import gc
import json
import re
import time
import weakref
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

import ipywidgets as ipw
import pytest
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.widgets import actions
from rectify_widgets.widgets.editability.viewer import TREE_ENTRIES, EditabilityViewer
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import LAYERS, SCORES, fake_localization, network, pairs, texts

BLOCKS = 50


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.conv1(x))
        return out


class Deep(nn.Module):
    """A network of 101 editable layers and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(81, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).flatten(1))
        return out


def found(method: str = "edit-attribution", **scores: float) -> Localization:
    given = {name.strip("_"): score for name, score in scores.items()} or SCORES
    order = tuple(name for name in LAYERS if name in given)
    return Localization(given, method, {}, {}, {"9": "a layer of no use"}, order)


Make = Callable[..., EditabilityViewer]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(actions, "localize", fake_localization)
    made: list[EditabilityViewer] = []

    def build(model: Any = None, given: Any = None, **options: Any) -> EditabilityViewer:
        options = {"session": Session(synchronous=True)} | options
        if model is None or isinstance(model, nn.Module):
            model, given = model or network(), given or pairs()
        viewer = EditabilityViewer(model, given, **options)
        made.append(viewer)
        return viewer

    yield build
    for viewer in made:
        viewer.close()


def lines(viewer: EditabilityViewer) -> list[str]:
    return viewer.canvas.html.split("<tr")[2:]


def name(line: str) -> str:
    """What stands in the first cell of a row."""
    first = line.partition("<td>")[2].partition("</td>")[0]
    return re.sub("<[^>]*>", "", first).replace("&nbsp;" * 4, "  ")


def names(viewer: EditabilityViewer) -> list[str]:
    return [name(line) for line in lines(viewer)]


def click(viewer: EditabilityViewer, key: str) -> None:
    """What a click on the element with that key sends."""
    tag = re.search(
        rf'<[^>]* data-(set|do)="([^"]*)" data-key="{re.escape(key)}"', viewer.canvas.html
    )
    assert tag is not None, f"{key} is no handle"
    viewer.canvas.act({tag[1]: json.loads(unescape(tag[2]))})


def button(viewer: ipw.Widget, text: str) -> ipw.Button:
    (found,) = (w for w in widgets(viewer) if getattr(w, "description", "") == text)
    return found


def widgets(viewer: ipw.Widget) -> list[ipw.Widget]:
    return [viewer, *(w for child in getattr(viewer, "children", ()) for w in widgets(child))]


# -- one and several methods ----------------------------------------------------------------------


def test_a_localization_is_shown_at_once(make: Make) -> None:
    viewer = make(found("trial"))
    assert viewer.layer == "3"
    assert viewer.method == "trial"
    assert dict(viewer.scores) == SCORES
    assert "a layer of no use" in texts(viewer)
    assert "share of the gap, by trial" in texts(viewer)
    assert names(viewer) == ["0", "3", "6", "9"]
    with pytest.raises(ValueError, match="cannot be edited: a layer of no use"):
        viewer.layer = "9"
    with pytest.raises(ValueError, match="want a model"):
        viewer.locate()
    with pytest.raises(ValueError, match="no model to score"):
        viewer.method = "projection"
    assert repr(viewer) == "EditabilityViewer(3 layers)"


def test_locate_adds_a_column_and_comes_to_the_front(make: Make) -> None:
    viewer = make()
    assert viewer.status.startswith("Ready")
    assert viewer.layer is None
    assert "Not scored yet" in texts(viewer)
    first = viewer.locate().wait()
    assert viewer.localization is first
    assert viewer.status == "3 scores best, 80.0 %"
    assert (viewer.progress, viewer.busy) == (1.0, False)
    assert viewer.layer == "3"
    second = viewer.locate("projection").wait()
    assert viewer.method == second.method == "projection"
    assert viewer.localizations == {"edit-attribution": first, "projection": second}
    assert "predicted share" in texts(viewer)
    assert "no unit" in texts(viewer)
    viewer.method = "edit-attribution"
    assert viewer.localization is first
    viewer.method = "trial"
    assert viewer.scores == {}
    assert viewer.status == "trial: not scored yet"
    assert viewer.localization is None
    viewer.locate().wait()
    assert list(viewer.localizations) == ["edit-attribution", "projection", "trial"]


def test_the_method_is_chosen_by_list_or_trait(make: Make) -> None:
    viewer = make()
    method = next(w for w in widgets(viewer) if getattr(w, "description", "") == "Method")
    method.value = "trial"
    assert viewer.method == "trial"
    viewer.method = "projection"
    assert method.value == "projection"
    button(viewer, "Locate").click()
    assert list(viewer.localizations) == ["projection"]


def test_show_replaces_and_compares(make: Make) -> None:
    viewer = make()
    viewer.show(found(), "of the model as given")
    viewer.show(found("trial", _0=0.5, _3=0.4, _6=0.0), "after 1 edit")
    assert viewer.layer == "3", "what was chosen stays"
    assert list(viewer.scores) == ["0", "3", "6"]
    assert "after 1 edit" in texts(viewer)
    viewer.show([found("projection"), found("trial")])
    assert viewer.method == "projection"
    assert dict(viewer.localizations["trial"].scores) == SCORES
    several = make({m: found(m) for m in ("trial", "projection")})
    assert several.method == "trial"
    method = next(w for w in widgets(several) if getattr(w, "description", "") == "Method")
    assert list(method.options) == ["trial", "projection"]
    several.method = "projection"
    assert several.status == "3 scores best, 0.8"


def test_what_cannot_be_shown_is_refused(make: Make) -> None:
    other = Localization({"7": 1.0}, "trial", {}, {}, {}, ("7",))
    viewer = make()
    viewer.show(found())
    with pytest.raises(ValueError, match="scores '7', which is no layer here"):
        viewer.show(other)
    for wrong, why in (
        ([], "got none, want one"),
        ([found(), found()], "one Localization a method"),
        ({"trial": found()}, "under 'trial'"),
        (found(_3=1.0).__class__({}, "trial", {}, {}, {}, ()), "without scores"),
    ):
        with pytest.raises(ValueError, match=why):
            make(wrong)
    with pytest.raises(TypeError, match="got str, want a Localization"):
        make([found(), "trial"])
    assert dict(viewer.scores) == SCORES


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match=r"model: got int, want a torch\.nn\.Module"):
        EditabilityViewer(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pairs: got NoneType"):
        EditabilityViewer(network())
    with pytest.raises(ValueError, match=r"method: got 'trail'.*did you mean 'trial'"):
        EditabilityViewer(network(), pairs(), method="trail")
    with pytest.raises(TypeError, match="controls: got 1"):
        EditabilityViewer(network(), pairs(), controls=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed: got -1"):
        EditabilityViewer(network(), pairs(), seed=-1)
    with pytest.raises(TypeError, match=r"'refrence' \(did you mean 'reference'\?\)"):
        EditabilityViewer(network(), pairs(), refrence=1)


def test_traits_are_checked(make: Make) -> None:
    viewer = make()
    for name, value, why in (
        ("layer", "33", r"'33' is unknown \(did you mean '3'\?\)"),
        ("order", "ranked", "did you mean 'rank'"),
        ("view", "tabel", "did you mean 'table'"),
        ("method", "trail", "did you mean 'trial'"),
        ("edited", ("0", "8"), "edited: '8' is unknown"),
        ("measured", {"8": 0.5}, "measured: '8' is unknown"),
        ("measured", {"3": float("nan")}, r"measured\['3'\]: got nan"),
        ("folded", ("stage",), "folded: got 'stage'"),
    ):
        before = getattr(viewer, name)
        with pytest.raises(ValueError, match=why):
            setattr(viewer, name, value)
        assert getattr(viewer, name) == before
    wrong: dict[str, Any] = {"layer": 3, "view": None, "measured": 3, "edited": 3}
    for name, value in wrong.items():
        with pytest.raises((traitlets.TraitError, ValueError)):
            setattr(viewer, name, value)
    for name in ("scores", "busy", "status", "progress"):
        with pytest.raises(traitlets.TraitError):
            setattr(viewer, name, getattr(viewer, name))


# -- choosing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["bars", "table", "tree"])
def test_a_row_chooses_its_layer_in_every_view(make: Make, view: str) -> None:
    viewer = make()
    viewer.view = view
    seen: list[Any] = []
    viewer.observe(lambda change: seen.append(change["new"]), names="layer")
    before = viewer.canvas.html
    click(viewer, "6")
    click(viewer, "0")
    assert seen == ["6", "0"]
    assert viewer.canvas.marks == {"layer": "0"}
    assert viewer.canvas.html is before, "a choice does not send the rows again"
    assert viewer.still().count("<tr data-chosen") == 1
    viewer.layer = None
    assert viewer.canvas.marks == {"layer": None}
    assert "data-chosen" not in viewer.still()
    viewer.canvas.act({"set": {"layer": "33"}})
    assert "'33' is unknown" in str(viewer.error)


def test_rows_say_what_is_drawn_in_them(make: Make) -> None:
    viewer = make()
    viewer.locate().wait()
    viewer.edited, viewer.measured = ("0",), {"0": 0.25}
    assert (
        'title="0 (Conv2d 3×3) · edit-attribution 20.0 % · measured after the edit 25.0 % · edited"'
        in lines(viewer)[0]
    )
    assert '80.0 % · best"' in lines(viewer)[1]
    viewer.order = "rank"
    assert names(viewer) == ["3", "0", "6"]
    viewer.measured = {}
    assert "measured" not in texts(viewer).lower()


def test_layers_that_cannot_be_edited_have_rows_that_choose_nothing(make: Make) -> None:
    viewer = make(Deep())
    viewer.layer = "head"
    unused, head = lines(viewer)[-2:]
    assert (name(unused), name(head)) == ("unused", "head")
    assert "data-set" not in unused
    assert "not editable: the forward pass does not call it" in unused
    assert "data-set" in head


def test_a_model_that_is_one_layer(make: Make) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(81, 3))
    viewer = make(model)
    assert names(viewer) == ["1"]
    alone = EditabilityViewer(Localization({"": 0.4}, "trial", {}, {}, {}, ("",)))
    assert alone.layer == ""
    assert names(alone) == ["(the model itself)"]
    alone.view = "tree"
    alone.layer = None
    click(alone, "")
    assert alone.layer == ""
    alone.close()


# -- deep networks --------------------------------------------------------------------------------


def test_every_layer_of_a_deep_network_is_a_row_of_one_message(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = make(Deep())
    order = viewer._layers.order
    comms = len(ipw.widget._instances)
    sent: list[Any] = []
    monkeypatch.setattr(viewer.canvas, "_send", lambda message, buffers=None: sent.append(message))
    viewer.show(
        [
            Localization(dict.fromkeys(order, 0.1), method, {}, {}, {}, order)
            for method in ("edit-attribution", "projection", "trial")
        ]
    )
    updates = [message for message in sent if message.get("method") == "update"]
    assert len(updates) == 1, "scores, layer and method in one"
    assert len(names(viewer)) == 102
    for view in ("table", "tree", "bars"):
        start = time.perf_counter()
        viewer.view = view
        assert time.perf_counter() - start < 0.15
    assert len(names(viewer)) == 102
    assert len(ipw.widget._instances) == comms, "rows are no widgets"
    assert len(viewer.canvas.html) < 130_000


def test_the_tree_begins_folded_and_unfolds_to_the_layer(make: Make) -> None:
    viewer = make(Deep())
    assert "fold_all" not in viewer.canvas.html
    viewer.view = "tree"
    assert len(names(viewer)) <= TREE_ENTRIES
    assert names(viewer) == ["▸ body (100)", "unused", "head"]
    viewer.layer = "body.3.conv2"
    assert names(viewer)[:2] == ["▾ body (100)", "  ▸ 0 (2)"]
    assert names(viewer)[4:7] == ["  ▾ 3 (2)", "    conv1", "    conv2"]
    click(viewer, "group body.3")
    assert names(viewer)[4:6] == ["  ▸ 3 (2)", "  ▸ 4 (2)"]
    assert viewer.layer == "body.3.conv2", "folding chooses nothing"
    assert "body.3" in viewer.folded
    click(viewer, "group body.3")
    assert "    conv2" in names(viewer)
    click(viewer, "fold all")
    assert names(viewer) == ["▸ body (100)", "unused", "head"]
    assert set(viewer.folded) == {"body", *(f"body.{n}" for n in range(BLOCKS))}
    click(viewer, "unfold all")
    assert len(names(viewer)) == 153
    viewer.canvas.act({"do": {"fold": "nothing"}})
    assert "folded: got 'nothing'" in str(viewer.error)


# -- the whole ------------------------------------------------------------------------------------


def test_every_control_is_named(make: Make) -> None:
    for widget in widgets(make(Deep())):
        if isinstance(widget, ipw.Button):
            assert widget.description or widget.tooltip
        elif hasattr(widget, "description") and not isinstance(
            widget, ipw.HTML | ipw.FloatProgress
        ):
            assert widget.description


def test_the_static_view_has_everything(make: Make) -> None:
    viewer = make([found(), found("projection", _3=7.25, _0=1.0)])
    viewer.edited, viewer.measured = ("0",), {"0": 0.31}
    html = viewer.still()
    for text in ("80.0 %", "7.25", "31.0 %", "● edited", "★ scores best", "a layer of no use"):
        assert text in html
    assert "<svg" not in html
    assert html.count('<img src="data:image/svg+xml;base64,') == 6
    assert "data-set" not in html
    assert "Not scored yet" in make().still()
    assert html.index("<code>0<") < html.index("<code>3<")
    viewer.order = "rank"
    html = viewer.still()
    assert html.index("<code>3<") < html.index("<code>0<")
    viewer.view = "tree"
    assert "Fold all" not in viewer.html(), "there is no group"
    deep = make(Deep())
    deep.view = "tree"
    assert "Fold all" in deep.html()
    assert "Fold all" not in deep.still()


def test_closing_frees_the_model_and_every_widget(make: Make) -> None:
    model = Deep()
    gone = weakref.ref(model)
    before = set(ipw.widget._instances)
    viewer = EditabilityViewer(model, pairs())
    assert len(ipw.widget._instances) - len(before) <= 30
    viewer.view, viewer.folded = "tree", ()
    viewer.close()
    assert set(ipw.widget._instances) == before
    del model, viewer
    gc.collect()
    assert gone() is None
    assert torch.is_grad_enabled()
