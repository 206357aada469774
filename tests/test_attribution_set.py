"""The attribution viewer's page of a whole set, and what the viewer keeps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets import explain
from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.widgets.attribution import data
from rectify_widgets.widgets.attribution.concentration import concentration
from rectify_widgets.widgets.attribution.data import MapCache, SetScores, Version
from rectify_widgets.widgets.attribution.viewer import AttributionViewer
from rectify_widgets.widgets.session import Session
from tests.map_fakes import Make, count_calls, hidden, making, tiles, view
from tests.widget_fakes import network, pairs, texts


@pytest.fixture
def make() -> Iterator[Make]:
    with making() as build:
        yield build


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return count_calls(monkeypatch)


# -- what is kept ---------------------------------------------------------------------------------


def test_going_back_costs_nothing(make: Make, calls: list[int]) -> None:
    viewer = make(inputs=pairs(5))
    for index in (1, 0, 1, 0):
        viewer.index = index
    assert calls == [2, 2]


def test_scrubbing_through_models_costs_nothing_the_second_time(
    make: Make, calls: list[int]
) -> None:
    viewer = make()
    versions = [network() for _ in range(3)]
    for version in (*versions, None, *reversed(versions)):
        viewer.after = version
    assert calls == [2] * 4
    assert "Clean, after" in view(viewer)


def test_a_model_edited_in_place_gets_new_maps(make: Make, calls: list[int]) -> None:
    model = network()
    viewer = make(model)
    before = texts(viewer)
    with torch.no_grad():
        next(model.parameters()).mul_(-1)
    viewer.refresh()
    assert calls == [2, 2]
    assert texts(viewer) != before


def test_maps_of_a_model_go_with_it(make: Make) -> None:
    viewer = make()
    kept = len(viewer._attributions.cache)
    other = network()
    viewer.after = other
    assert len(viewer._attributions.cache) == 2 * kept
    gone = weakref.ref(other)
    viewer.after = None
    del other
    viewer.index = 1
    gc.collect()
    assert gone() is None
    assert len(viewer._attributions.cache) == kept + 1


def test_the_cache_has_a_bound_in_bytes() -> None:
    cache = MapCache(limit=1000)
    models = [network(), network()]
    versions = [Version.of(model) for model in models]
    for number in range(20):
        cache.put(versions[number % 2], number, SetScores(np.zeros((1, 25))))
        assert cache.nbytes <= 1000
    assert len(cache) == 5
    assert cache.get(versions[1], 19) is not None
    assert cache.get(versions[1], 15) is not None, "used, and the newest but for 19"
    for number in range(20, 24):
        cache.put(versions[0], number, SetScores(np.zeros((1, 25))))
    assert cache.get(versions[1], 15) is not None
    assert cache.get(versions[1], 17) is None
    assert cache.get(versions[0], 15) is None
    cache.put(versions[0], "huge", SetScores(np.zeros((1, 2500))))
    assert cache.nbytes == 0, "what is larger than the bound is not kept"


def test_the_viewers_own_bound_holds(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "CACHE_BYTES", 2000)
    viewer = make(inputs=pairs(20))
    for index in range(20):
        viewer.index = index
        assert viewer._attributions.cache.nbytes <= 2000
    viewer.page = "set"
    assert viewer.error is None
    assert len(viewer.concentration["Clean", "Map"]) == 20


# -- the whole set --------------------------------------------------------------------------------


def test_the_set_is_scored_and_shown_at_percentiles(make: Make) -> None:
    viewer = make(inputs=pairs(30), classes=["ape", "bee", "cat"])
    viewer.page = "set"
    assert viewer.status == "saliency: 30 samples scored"
    assert viewer.progress == 1.0
    scores = viewer.concentration
    assert list(scores) == [("Clean", "Map"), ("Corrupted", "Map")]
    assert all(np.isfinite(part).all() and len(part) == 30 for part in scores.values())
    html = view(viewer)
    for words in ("Clean samples", "Corrupted samples", "Scored: 30 samples."):
        assert words in html
    for column in ("Clean", "Corrupted"):
        opened = tiles(viewer, column)
        assert len(opened) == 7
        assert opened[0] == scores[column, "Map"].argmin()
        assert opened[-1] == scores[column, "Map"].argmax()
        assert scores[column, "Map"][opened].tolist() == sorted(scores[column, "Map"][opened])


@pytest.mark.parametrize("method", ["saliency", "smoothgrad"])
def test_a_sample_has_the_same_score_on_both_pages(make: Make, method: str) -> None:
    viewer = make(inputs=pairs(11), method=method)
    viewer.page = "set"
    found = viewer.concentration["Corrupted", "Map"][6]
    viewer.open_sample(6)
    assert f"concentration {found:.2f}" in view(viewer)


def test_a_tile_opens_its_sample(make: Make) -> None:
    viewer = make(inputs=pairs(30))
    viewer.page = "set"
    fifth = tiles(viewer, "Clean")[4]
    viewer.canvas.act({"do": {"open_sample": fifth}})
    assert (viewer.page, viewer.index) == ("sample", fifth)
    assert f"input, sample {viewer.index + 1}" in view(viewer)
    with pytest.raises(ValueError, match="0 to 29"):
        viewer.open_sample(30)


def test_before_and_after_stand_under_each_other(make: Make, calls: list[int]) -> None:
    viewer = make(inputs=pairs(12), after=network())
    viewer.page = "set"
    assert set(viewer.concentration) == {
        (column, row) for column in ("Clean", "Corrupted") for row in ("Before", "After")
    }
    html = view(viewer)
    assert "concentration, before, most" in html
    assert ", after: evidence for" in html
    assert not hidden(viewer._percentiles)
    scored = len(calls)
    viewer.ranking = "after"
    assert "concentration, after, most" in view(viewer)
    scores = viewer.concentration["Clean", "After"]
    assert tiles(viewer, "Clean")[-1] == scores.argmax()
    viewer.after = None
    assert hidden(viewer._percentiles)
    assert ", after: " not in view(viewer)
    assert len(calls) == scored, "all of these maps were there"
    with pytest.raises(ValueError, match="did you mean 'before'"):
        viewer.ranking = "befor"


def test_coming_back_to_the_set_computes_nothing(make: Make, calls: list[int]) -> None:
    viewer = make(inputs=pairs(12))
    viewer.page = "set"
    done, html = len(calls), view(viewer)
    viewer.index = 3
    assert len(calls) == done, "the sample is not in view"
    viewer.page = "sample"
    viewer.page = "set"
    assert len(calls) <= done + 1
    assert view(viewer) == html


def test_small_maps_of_the_set_are_kept_for_a_closer_look(
    make: Make, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = make(inputs=pairs(12))
    viewer.page = "set"
    done = len(calls)
    viewer.open_sample(7)
    assert len(calls) == done
    monkeypatch.setattr(data, "CACHE_BYTES", 4 * 11 * 2 * 81 * 4)
    large = make(inputs=pairs(12))
    large.page = "set"
    done = len(calls)
    shown = {*tiles(large, "Clean"), *tiles(large, "Corrupted")}
    unseen = set(range(12)) - shown - {0}
    large.open_sample(unseen.pop())
    assert len(calls) == done + 1


def test_a_set_is_bounded_by_a_fair_draw(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SET_LIMIT", 10)
    viewer = make(inputs=pairs(40))
    viewer.page = "set"
    scores = viewer.concentration["Clean", "Map"]
    assert np.isfinite(scores).sum() == 10
    assert np.flatnonzero(np.isfinite(scores)).max() > 20
    assert "Scored: 10 of 40 samples, drawn at random." in view(viewer)
    orders = [data.spread_order(40).tolist() for _ in range(2)]
    assert orders[0] == orders[1]
    assert len(set(orders[0])) == 10


def test_scoring_can_be_stopped_and_gone_on_with(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = explain.attribute
    parts: list[int] = []

    def stop_at_the_third(model: nn.Module, inputs: Tensor, **options: Any) -> Tensor:
        parts.append(len(inputs))
        if len(parts) == 3:
            assert viewer.job is not None
            viewer.job.cancel()
        return real(model, inputs, **options)

    viewer = make(inputs=pairs(30))
    monkeypatch.setattr(data, "attribute", stop_at_the_third)
    viewer.page = "set"
    scores = viewer.concentration["Clean", "Map"]
    assert np.isfinite(scores).sum() == 16
    assert "saliency: 16 samples scored of 30, stopped" in view(viewer)
    assert viewer.progress == pytest.approx(16 / 30), "the bar says as much"
    assert viewer.error is None
    assert not hidden(viewer._continue)
    assert not hidden(viewer._scoring)
    assert len(tiles(viewer, "Clean")) == 7, "what is scored is shown"
    viewer._continue.click()
    assert np.isfinite(viewer.concentration["Clean", "Map"]).all()
    kept = viewer.concentration["Clean", "Map"][np.isfinite(scores)]
    np.testing.assert_array_equal(kept, scores[np.isfinite(scores)])
    assert hidden(viewer._scoring)


def test_cancel_gives_the_job_and_settle_shows_what_there_is() -> None:
    viewer = AttributionViewer(network(), pairs(300), method="occlusion")
    viewer.settle()
    assert viewer.cancel() is None
    viewer.page = "set"
    job = viewer.cancel()
    assert job is not None
    viewer.settle()
    assert job.was_cancelled
    assert "300, stopped" in view(viewer)
    viewer.close()


def test_short_jobs_pass_while_a_set_is_scored() -> None:
    """Grad-CAM hooks the model, and another view of the same model is computed in between."""
    session = Session()
    model = network()
    viewer = AttributionViewer(model, pairs(60), method="grad-cam", session=session)
    other = AttributionViewer(model, pairs(60), method="grad-cam", session=session)
    viewer.settle()
    other.settle()
    alone = make_scores(model)
    viewer.page = "set"
    job = viewer.job
    assert job is not None
    for index in range(1, 9):
        other.index = index
        assert other.job is not None
        other.job.wait(10)
    job.wait(60)
    np.testing.assert_allclose(viewer.concentration["Clean", "Map"], alone, atol=1e-5)
    viewer.close()
    other.close()
    session.close()


def make_scores(model: nn.Module) -> list[float]:
    found = explain.attribute(model, pairs(60).clean, method="grad-cam")
    return [concentration(one[0].numpy()) for one in found]


def test_leaving_the_page_stops_the_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = AttributionViewer(network(), pairs(200), method="occlusion")
    viewer.settle()
    viewer.page = "set"
    scoring = viewer.job
    assert scoring is not None
    viewer.page = "sample"
    viewer.settle()
    assert "sample 1" in viewer.status
    with pytest.raises(Cancelled):
        scoring.wait(10)
    viewer.close()


def test_a_set_of_one_and_a_set_without_weight(make: Make) -> None:
    viewer = make(inputs=pairs(1))
    viewer.page = "set"
    assert "Scored: 1 sample." in view(viewer)
    assert "0 to 100 %" in view(viewer)
    blind = nn.Sequential(nn.Flatten(), nn.Linear(81, 2))
    nn.init.zeros_(blind[1].weight)  # type: ignore[arg-type]
    viewer = make(blind, pairs(3))
    viewer.page = "set"
    assert viewer.error is None
    assert "no map" in view(viewer)
    assert "Empty maps, which have no score: 6." in view(viewer)


def test_a_failure_shows_on_the_page_of_the_set(make: Make) -> None:
    viewer = make(method="grad-cam", layer="6")
    viewer.page = "set"
    assert isinstance(viewer.error, ValueError)
    assert "name a convolution" in view(viewer)
    assert "name a convolution" in viewer.still()
    viewer.opacity = 0.5
    assert "name a convolution" in view(viewer)
    viewer.layer = "0"
    assert viewer.error is None
    assert "Scored: 4 samples." in view(viewer)
