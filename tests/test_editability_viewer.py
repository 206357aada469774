"""The editability viewer alone, by its traits, with the synchronous session and a fake engine."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as ipw
import pytest
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.find.localization import Localization
from rectify_widgets.widgets import actions
from rectify_widgets.widgets.editability.layer_list import PAGE
from rectify_widgets.widgets.editability.viewer import TREE_ROWS, EditabilityViewer
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


def names(viewer: EditabilityViewer) -> list[str]:
    return [button.description for button in viewer._rows.values()]


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
    viewer._controls.buttons["locate"].click()  # type: ignore[union-attr]
    assert list(viewer.localizations) == ["projection"]


def test_show_replaces_and_compares(make: Make) -> None:
    viewer = make()
    viewer.show(found(), "of the model as given")
    viewer.show(found("trial", _0=0.5, _3=0.4, _6=0.0), "after 1 edit")
    assert viewer.layer == "3", "what was chosen stays"
    assert list(viewer.scores) == ["0", "3", "6"]
    assert "after 1 edit" in viewer._heading.value
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
        ("page", 1, "want 0 to 0"),
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
    viewer._rows["6"].click()
    viewer._rows["0"].click()
    assert seen == ["6", "0"]
    assert "rw-chosen" in viewer._rows["0"]._dom_classes
    assert "rw-chosen" not in viewer._rows["6"]._dom_classes
    assert viewer._choice.choice.value == "0"
    viewer._choice.choice.value = "3"
    assert "rw-chosen" in viewer._rows["3"]._dom_classes
    viewer.layer = None
    assert not any("rw-chosen" in row._dom_classes for row in viewer._rows.values())
    assert viewer._choice.choice.label == "choose a layer"


def test_rows_say_what_is_drawn_over_them(make: Make) -> None:
    viewer = make()
    viewer.locate().wait()
    viewer.edited, viewer.measured = ("0",), {"0": 0.25}
    assert viewer._rows["0"].tooltip == (
        "0 (Conv2d 3×3) · edit-attribution 20.0 % · measured after the edit 25.0 % · edited"
    )
    assert viewer._rows["3"].tooltip.endswith("80.0 % · best")
    assert "25.0 %" in texts(viewer)
    viewer.order = "rank"
    assert names(viewer) == ["3", "0", "6"]
    viewer.measured = {}
    assert "measured" not in texts(viewer).lower()


def test_layers_that_cannot_be_edited_have_rows_that_cannot_be_pressed(make: Make) -> None:
    viewer = make(Deep())
    viewer.layer = "head"
    rows = viewer._rows
    assert list(rows)[-2:] == ["unused", "head"]
    assert rows["unused"].disabled
    assert "the forward pass does not call it" in rows["unused"].tooltip
    assert "not editable: the forward pass does not call it" in texts(viewer)
    assert not rows["head"].disabled


def test_a_model_that_is_one_layer(make: Make) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(81, 3))
    viewer = make(model)
    assert names(viewer) == ["1"]
    alone = EditabilityViewer(Localization({"": 0.4}, "trial", {}, {}, {}, ("",)))
    assert alone.layer == ""
    assert names(alone) == ["(the model itself)"]
    alone.view = "tree"
    alone.layer = None
    alone._rows[""].click()
    assert alone.layer == ""
    alone.close()


# -- deep networks --------------------------------------------------------------------------------


def test_a_deep_network_makes_no_more_rows_than_fit(make: Make) -> None:
    viewer = make(Deep())
    buttons = [w for w in widgets(viewer) if isinstance(w, ipw.Button)]
    assert len(buttons) < PAGE + 12
    assert len(viewer._rows) == PAGE
    assert f"1 to {PAGE} of 102 rows" in texts(viewer)
    for view in ("table", "tree", "bars"):
        viewer.view = view
        assert len(viewer._rows) <= PAGE
    assert len(texts(viewer)) < 60_000


def test_pages_turn_by_hand_and_to_the_chosen_layer(make: Make) -> None:
    viewer = make(Deep())
    viewer.layer = "head"
    assert viewer.page == 4
    assert "head" in names(viewer)
    viewer.page = 0
    assert "body.0.conv1" in names(viewer)
    assert viewer.layer == "head"
    turn = [w for w in widgets(viewer) if getattr(w, "tooltip", "") == "Rows before"]
    turn[0].click()
    assert viewer.page == 4
    viewer.view = "tree"
    assert viewer.page == 0


def test_the_tree_begins_folded_and_unfolds_to_the_layer(make: Make) -> None:
    viewer = make(Deep())
    viewer.view = "tree"
    assert len(viewer._rows) <= TREE_ROWS
    assert names(viewer) == ["▸ body (100)", "unused", "head"]
    viewer.layer = "body.3.conv2"
    assert "body.3.conv2" in viewer._rows
    assert names(viewer)[:2] == ["▾ body (100)", "  ▸ 0 (2)"]
    viewer._rows["body.3"].click()
    assert "body.3.conv2" not in viewer._rows
    assert viewer.layer == "body.3.conv2", "folding chooses nothing"
    assert "body.3" in viewer.folded
    viewer._rows["body.3"].click()
    assert "body.3.conv1" in viewer._rows
    viewer.folded = ("body",)
    assert names(viewer) == ["▸ body (100)", "unused", "head"]
    for tip in ("Show every layer", "Show the outermost groups"):
        next(w for w in widgets(viewer) if getattr(w, "tooltip", "") == tip).click()
    assert set(viewer.folded) == {"body", *(f"body.{n}" for n in range(BLOCKS))}


def test_an_unfolded_tree_is_paged(make: Make) -> None:
    viewer = make(Deep())
    viewer.view, viewer.folded = "tree", ()
    assert len(viewer._rows) == PAGE
    viewer.layer = "head"
    assert "head" in viewer._rows
    viewer.folded = ("body",)
    assert viewer.page == 0
    assert "head" in viewer._rows


def test_switching_views_is_quick(make: Make) -> None:
    viewer = make(Deep())
    viewer.show(
        [
            Localization(
                dict.fromkeys(viewer._layers.order, 0.1), method, {}, {}, {}, viewer._layers.order
            )
            for method in ("edit-attribution", "projection", "trial")
        ]
    )
    start = time.perf_counter()
    for view in ("table", "tree", "bars"):
        viewer.view = view
    assert (time.perf_counter() - start) / 3 < 0.15


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
    html = viewer.static_html()
    for text in ("80.0 %", "7.25", "31.0 %", "● edited", "★ best", "a layer of no use"):
        assert text in html
    assert "Not scored yet" in make().static_html()
    assert html.index("<code>0<") < html.index("<code>3<")
    viewer.order = "rank"
    html = viewer.static_html()
    assert html.index("<code>3<") < html.index("<code>0<")


def test_closing_frees_the_model_and_every_widget(make: Make) -> None:
    model = Deep()
    gone = weakref.ref(model)
    viewer = EditabilityViewer(model, pairs())
    viewer.view, viewer.folded = "tree", ()
    parts = [*widgets(viewer), *viewer._list._pool]
    viewer.close()
    assert all(part.comm is None for part in parts)
    del model
    gc.collect()
    assert gone() is None
    assert torch.is_grad_enabled()
