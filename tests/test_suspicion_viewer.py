"""`SuspicionViewer` by its traits, with the real search on a network whose short cut is known."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import traitlets

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.reveal.reveal import SEARCHES, reveal
from rectify_widgets.reveal.suspicions import Suspicions
from rectify_widgets.widgets.session import Session
from rectify_widgets.widgets.suspicion import viewer as module
from rectify_widgets.widgets.suspicion.data import landscape, transplants
from rectify_widgets.widgets.suspicion.html import framed
from rectify_widgets.widgets.suspicion.viewer import SuspicionViewer
from tests.test_reveal import CARRIERS, Quarters, references
from tests.widget_fakes import texts

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., SuspicionViewer]


def test_every_search_is_offered() -> None:
    assert tuple(module.SEARCHES) == SEARCHES


@pytest.fixture(scope="module")
def found() -> Suspicions:
    return reveal(Quarters(40.0).eval(), references())


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[SuspicionViewer] = []

    def build(strength: float = 40.0, **options: Any) -> SuspicionViewer:
        options = {"session": Session(synchronous=True)} | options
        made.append(SuspicionViewer(Quarters(strength).eval(), references(), **options))
        return made[-1]

    yield build
    for viewer in made:
        viewer.close()


def test_a_search_fills_list_details_and_pairs(make: Make) -> None:
    viewer = make(classes=["ant", "bee", "cat", "<dog>"])
    assert "Not searched yet" in texts(viewer)
    result = viewer.reveal().wait()
    assert viewer.found is result
    assert viewer.rank == 0
    assert viewer.suspicion is result[0]
    assert viewer.pairs is result[0].pairs
    assert viewer.status == "80 references searched"
    assert result.verdict in viewer.canvas.html
    shown = viewer.canvas.html
    assert "⚠ accused" in shown
    assert "3 references carry it" in shown
    assert all(f">reference {row + 1}</div>" in shown for row in CARRIERS)  # people count from 1
    assert f"the region of reference {CARRIERS[0] + 1}, " in shown
    assert "&lt;dog&gt; → ant" in shown
    assert "<dog>" not in texts(viewer)
    assert f"{100 * result[0].pull:.0f} % (" in shown


def test_a_healthy_network_is_told_so(make: Make) -> None:
    viewer = make(0.0)
    result = viewer.reveal().wait()
    assert not result.accused
    assert viewer.pairs is None
    assert "✓ Nothing found on 80 references" in viewer.canvas.html
    assert "⚠ accused" not in viewer.canvas.html


def test_nothing_at_all_is_said_plainly(make: Make) -> None:
    viewer = make(found=Suspicions((), 80))
    assert viewer.rank is None
    assert viewer.suspicion is None
    assert "✓ Nothing found on 80 references" in viewer.canvas.html
    with pytest.raises(ValueError, match="selected: got no reference"):
        viewer.paint()


def test_transplants_are_what_the_model_says_of_them(found: Suspicions) -> None:
    model, images = Quarters(40.0).eval(), references()
    predicted = model(images).argmax(dim=1)
    moved = transplants(model, images, predicted.tolist(), found[0], Monitor())
    assert moved is not None
    assert moved.source == CARRIERS[0]
    where = found[0].mask[0]
    for row, picture, before in zip(moved.rows, moved.pictures, moved.before, strict=True):
        assert torch.equal(picture[:, where], images[moved.source][:, where])
        assert torch.equal(picture[:, ~where], images[row][:, ~where])
        assert before == predicted[row] != 0
    assert (model(moved.pictures).argmax(dim=1) == 0).all()
    assert moved.turned == moved.tried > 0


def test_a_plane_keeps_the_distances_of_two_dimensions() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    flat = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    basis = torch.linalg.qr(torch.randn(4, 2, generator=torch.Generator().manual_seed(2)))[0]
    images = (flat @ basis.T).reshape(30, 1, 2, 2)
    land = landscape(model, images, Monitor())
    assert land.explained == pytest.approx(1.0)
    wanted = torch.cdist(flat, flat).numpy()
    points = torch.from_numpy(land.points).float()
    assert np.allclose(torch.cdist(points, points).numpy(), wanted, atol=1e-3)
    assert land.predicted.tolist() == model(images).argmax(dim=1).tolist()


def test_selecting_by_page_by_trait_and_by_button(make: Make, found: Suspicions) -> None:
    viewer = make(found=found)
    assert viewer.scatter.svg.count("data-point=") == 80
    viewer.scatter.set_state({"selected": [7, 2]})  # what the page sends
    assert list(viewer.selected) == [2, 7]
    assert "2 of 80 references selected" in viewer.canvas.html
    viewer.select_carriers()
    assert list(viewer.selected) == list(CARRIERS)
    assert viewer.scatter.selected == list(CARRIERS)
    assert " data-picked>" in viewer._points(viewer.selected)
    viewer.select_none()
    assert not viewer.selected
    with pytest.raises((ValueError, traitlets.TraitError), match="row numbers of 80"):
        viewer.selected = (80,)
    viewer.scatter.set_state({"selected": [300]})
    assert isinstance(viewer.error, ValueError)
    assert not viewer.selected


def test_the_painter_starts_from_carriers_or_from_what_is_selected(
    make: Make, found: Suspicions
) -> None:
    viewer = make(found=found)
    painter = viewer.paint(fill="ring")
    assert torch.equal(painter.masks, found[0].mask)
    assert painter.pairs.corrupted.shape[0] == len(CARRIERS)
    painter.close()
    viewer.selected = (0, CARRIERS[1])
    painter = viewer.paint(fill="ring")
    assert painter.painted == [1]
    assert torch.equal(painter.masks[1], found[0].mask[1])
    painter.close()


def test_a_row_of_the_list_chooses(make: Make, found: Suspicions) -> None:
    weaker = copy.copy(found[0])
    object.__setattr__(weaker, "pairs", None)
    several = Suspicions((found[0], weaker), 80)
    viewer = make(found=several)
    viewer.canvas.act({"set": {"rank": 1}})
    assert viewer.suspicion is weaker
    assert viewer.pairs is None
    viewer.canvas.act({"set": {"rank": 2}})
    assert "rank: got 2, want 0 to 1" in str(viewer.error)


def test_a_cancelled_search_leaves_the_viewer_as_it_was(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def endless(*given: Any, **options: Any) -> Suspicions:
        begun.set()
        while True:
            Monitor(None, options["cancel"]).check()

    monkeypatch.setattr(module, "reveal", endless)
    viewer = make(session=Session())
    job = viewer.reveal()
    assert begun.wait(5)
    assert viewer.cancel() is job
    with pytest.raises(Cancelled):
        job.wait(5)
    assert viewer.status == "Reveal: cancelled"
    assert viewer.found is None
    assert not viewer.busy


def test_the_model_is_left_as_it_was(found: Suspicions) -> None:
    model = Quarters(40.0).train()
    before = copy.deepcopy(model.state_dict())
    viewer = SuspicionViewer(model, references(), found=found)
    viewer.settle()
    viewer.close()
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_still_view_holds_list_pictures_and_map(make: Make, found: Suspicions) -> None:
    viewer = make(found=found)
    viewer.selected = (1,)
    page = viewer.still()
    assert "data-set" not in page
    assert page.count("<svg") == 0
    assert "data:image/svg+xml" in page
    assert "1 of 80 references selected" in page


def test_the_frame_surrounds_the_mask() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[40:50, 40:50] = True
    shown = framed(pixels, mask)
    assert not shown[40:50, 40:50].any()
    assert shown[38:52, 38:52].any(axis=-1).sum() == 14 * 14 - 100
    assert framed(pixels, None) is pixels


def test_bad_input_is_refused(found: Suspicions) -> None:
    model, images = Quarters(40.0).eval(), references()
    with pytest.raises(TypeError, match="serch"):
        rw.SuspicionViewer(model, images, serch="regions")
    with pytest.raises(ValueError, match="search: got 'x'"):
        rw.SuspicionViewer(model, images, search="x")
    with pytest.raises(TypeError, match="found: got list"):
        rw.SuspicionViewer(model, images, found=[])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found: got suspicions of 80"):
        rw.SuspicionViewer(model, images[:70], found=found)
    with pytest.raises(ValueError, match="reference: got 1"):
        rw.SuspicionViewer(model, images[:1])
