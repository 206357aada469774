"""The attribution viewer by its traits, its two pages, and what it keeps."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets import explain
from rectify_widgets.engine.pairs import SamplePairs
from rectify_widgets.engine.progress import Cancelled
from rectify_widgets.widgets import maps
from rectify_widgets.widgets.attribution import AttributionViewer
from rectify_widgets.widgets.concentration import concentration
from rectify_widgets.widgets.maps import MapCache, Query, SetScores
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import network, pairs, texts

Make = Callable[..., AttributionViewer]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[AttributionViewer] = []

    def build(model: nn.Module | None = None, inputs: Any = None, **options: Any) -> Any:
        chosen: dict[str, Any] = {"session": Session(synchronous=True), "method": "saliency"}
        given = pairs() if inputs is None else inputs
        viewer = AttributionViewer(model or network(), given, **(chosen | options))
        made.append(viewer)
        return viewer

    yield build
    for viewer in made:
        viewer.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of inputs of each call of `attribute`."""
    seen: list[int] = []
    real = explain.attribute

    def count(model: nn.Module, inputs: Tensor, **options: Any) -> Tensor:
        seen.append(len(inputs))
        return real(model, inputs, **options)

    monkeypatch.setattr(maps, "attribute", count)
    return seen


def view(viewer: AttributionViewer) -> str:
    """What the page in view says, without the pictures' data."""
    return re.sub(r'src="[^"]*"|<style>.*?</style>', "", texts(viewer))


def pictures(html: str) -> list[str]:
    return re.findall(r'src="(data:image/[^"]*)"', html)


# -- one sample -----------------------------------------------------------------------------------


def test_plain_inputs_have_one_column(make: Make) -> None:
    viewer = make(inputs=torch.rand(3, 1, 9, 9))
    html = view(viewer)
    assert "saliency map of the input, map: evidence for class " in html
    assert "Clean" not in html
    assert len(pictures(texts(viewer))) == 3, "the input, its map and the colour scale"


def test_both_columns_share_one_scale_and_one_range_of_greys(make: Make) -> None:
    clean = torch.zeros(1, 1, 9, 9)
    corrupted = clean.clone()
    corrupted[..., 0] = 4.0
    viewer = make(inputs=SamplePairs(corrupted, clean))
    images = viewer._pictures.of(0)
    assert images["Clean"].max() == 0, "black, though nothing in it is darker"
    assert images["Corrupted"][0, 0, 0] == 255
    assert images["Corrupted"][0, 1, 0] == 0
    assert view(viewer).count("rw-legend") == 1


def test_what_can_be_stepped_through(make: Make) -> None:
    viewer = make()
    controls = viewer._controls
    assert viewer.samples.slider.max == 3
    viewer.samples.children[2].click()
    assert viewer.index == 1
    assert "sample 1" in view(viewer)
    controls.methods.children[2].click()
    assert viewer.method == "input-x-gradient"
    assert "input-x-gradient map" in view(viewer)
    controls.methods.choice.value = "occlusion"
    assert viewer.method == "occlusion"
    assert make(inputs=pairs(1)).samples.layout.display == "none"


def test_layers_are_offered_where_the_method_looks_at_one(make: Make) -> None:
    viewer = make()
    layers = viewer._controls.layers
    assert layers.layout.display == "none"
    viewer.method = "grad-cam"
    assert layers.layout.display is None
    assert layers.values == [None, "0", "3"]
    last = view(viewer)
    layers.children[2].click()
    assert viewer.layer == "0"
    assert view(viewer) != last
    viewer.layer = "3"
    assert layers.choice.value == "3"
    assert view(viewer) == last
    viewer.layer = None
    assert layers.choice.label == "last convolution (3)"


def test_any_layer_can_be_named(make: Make) -> None:
    viewer = make(method="grad-cam", layer="2")
    assert viewer.error is None
    assert viewer._controls.layers.values == [None, "0", "3", "2"]
    seen: list[object] = []
    viewer.observe(lambda change: seen.append(change["new"]), names="layer")
    viewer.layer = "4"
    assert viewer._controls.layers.choice.value == "4"
    assert seen == ["4"]
    viewer.layer = "6"
    assert isinstance(viewer.error, ValueError)
    assert "name a convolution" in view(viewer)
    assert "name a convolution" in viewer.static_html()
    viewer.layer = None
    assert viewer.error is None
    assert seen == ["4", "6", None]


def test_a_target_is_explained_for_every_input(make: Make) -> None:
    viewer = make(target=2, classes=["ape", "bee", "cat"])
    targets = viewer._controls.targets
    assert view(viewer).count(">for cat<") == 2
    assert targets.values == [None, 0, 1, 2]
    targets.choice.value = 1
    assert viewer.target == 1
    assert view(viewer).count(">for bee<") == 2
    viewer.target = None
    assert targets.choice.label == "own prediction"
    with pytest.raises(ValueError, match="target: got 7, want 0 to 2: one of 3 classes"):
        viewer.target = 7
    assert viewer.target is None


def test_classes_without_names_are_learnt_from_the_model(make: Make) -> None:
    assert make()._controls.targets.values == [None, 0, 1, 2]
    late = make(target=9)
    assert "want 0 to 2" in view(late), "nothing is known of the classes before the first run"


def test_of_very_many_classes_those_in_view_are_listed(make: Make) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(81, 500))
    viewer = make(model)
    values = viewer._controls.targets.values
    assert 2 <= len(values) <= 3
    viewer.target = 321
    assert 321 in viewer._controls.targets.values
    assert ">for class 321<" in view(viewer)


def test_a_new_look_needs_no_new_maps(make: Make, calls: list[int]) -> None:
    viewer = make(method="input-x-gradient")
    first = texts(viewer)
    viewer.opacity = 0.3
    assert texts(viewer) != first
    viewer.opacity = 0.85
    assert texts(viewer) == first
    viewer.signed = False
    assert "Colour scale from 0" in view(viewer)
    assert calls == [2]


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 33, 20), (4, 12, 40), (2, 9, 9), (3, 300, 150), (3, 8, 200)]
)
def test_any_channels_size_and_proportions(make: Make, shape: tuple[int, int, int]) -> None:
    model = nn.Sequential(
        nn.Conv2d(shape[0], 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    x = torch.randn(3, *shape)
    viewer = make(model, SamplePairs(x.flip(-1), x), mean=[0.5] * shape[0], std=[0.2] * shape[0])
    assert viewer.error is None
    for width, height in re.findall(r'width="(\d+)" height="(\d+)"', view(viewer))[:4]:
        assert int(width) / int(height) == pytest.approx(shape[2] / shape[1], rel=0.1)
    viewer.page = "set"
    assert viewer.error is None


def test_photographs_stay_small_on_the_wire(make: Make) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 7, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    x = torch.rand(9, 3, 224, 224)
    viewer = make(model, SamplePairs(x.roll(1, 0), x), after=nn.Sequential(model))
    one = pictures(texts(viewer))
    assert len(one) == 7
    assert max(map(len, one)) < 100_000
    viewer.page = "set"
    tiles = pictures(texts(viewer._set))
    assert len(tiles) == 4 + 2 * 2 * 7 + 1
    assert max(map(len, tiles)) < 20_000
    assert sum(map(len, tiles)) < 560_000


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
    assert "After" in view(viewer)


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
    kept = len(viewer._cache)
    other = network()
    viewer.after = other
    assert len(viewer._cache) == 2 * kept
    gone = weakref.ref(other)
    viewer.after = None
    del other
    viewer.index = 1
    gc.collect()
    assert gone() is None
    assert len(viewer._cache) == kept + 1


def test_the_cache_has_a_bound_in_bytes() -> None:
    cache = MapCache(limit=1000)
    models = [network(), network()]
    for number in range(20):
        cache.put(models[number % 2], number, SetScores(np.zeros((1, 25))))
        assert cache.nbytes <= 1000
    assert len(cache) == 5
    assert cache.get(models[1], 19, SetScores) is not None
    assert cache.get(models[1], 15, SetScores) is not None, "used, and the newest but for 19"
    for number in range(20, 24):
        cache.put(models[0], number, SetScores(np.zeros((1, 25))))
    assert cache.get(models[1], 15, SetScores) is not None
    assert cache.get(models[1], 17, SetScores) is None
    assert cache.get(models[0], 15, SetScores) is None
    cache.put(models[0], "huge", SetScores(np.zeros((1, 2500))))
    assert cache.nbytes == 0, "what is larger than the bound is not kept"


def test_the_viewers_own_bound_holds(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "CACHE_BYTES", 2000)
    viewer = make(inputs=pairs(20))
    for index in range(20):
        viewer.index = index
        assert viewer._cache.nbytes <= 2000
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
    for column, row in viewer._set._rows.items():
        opened = [int(box.children[1].description.split()[1]) for box in row.children]
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
    assert viewer._shown is not None
    assert viewer._shown.views["Map"].scores[1] == pytest.approx(found, abs=1e-6)
    assert f"concentration {found:.2f}" in view(viewer)


def test_a_tile_opens_its_sample(make: Make) -> None:
    viewer = make(inputs=pairs(30))
    viewer.page = "set"
    button = viewer._set._rows["Clean"].children[4].children[1]
    button.click()
    assert viewer.page == "sample"
    assert button.description == f"Sample {viewer.index}"
    assert f"input, sample {viewer.index}" in view(viewer)
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
    assert viewer._set._ranking.layout.display is None
    scored = len(calls)
    viewer.ranking = "after"
    assert "concentration, after, most" in view(viewer)
    scores = viewer.concentration["Clean", "After"]
    last = viewer._set._rows["Clean"].children[-1].children[1].description
    assert last == f"Sample {scores.argmax()}"
    viewer.after = None
    assert viewer._set._ranking.layout.display == "none"
    assert ", after: " not in texts(viewer._set)
    assert len(calls) == scored, "all of these maps were there"
    with pytest.raises(ValueError, match="did you mean 'before'"):
        viewer.ranking = "befor"


def test_coming_back_to_the_set_computes_nothing(make: Make, calls: list[int]) -> None:
    viewer = make(inputs=pairs(12))
    viewer.page = "set"
    done, html = len(calls), texts(viewer._set)
    viewer.index = 3
    assert len(calls) == done, "the sample is not in view"
    viewer.page = "sample"
    viewer.page = "set"
    assert len(calls) <= done + 1
    assert texts(viewer._set) == html


def test_small_maps_of_the_set_are_kept_for_a_closer_look(
    make: Make, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = make(inputs=pairs(12))
    viewer.page = "set"
    done = len(calls)
    viewer.open_sample(7)
    assert len(calls) == done
    monkeypatch.setattr(maps, "CACHE_BYTES", 4 * 11 * 2 * 81 * 4)
    large = make(inputs=pairs(12))
    large.page = "set"
    done = len(calls)
    unseen = set(range(12)) - set(large._set.picked(large._set.scores["Map"])) - {0}
    large.open_sample(unseen.pop())
    assert len(calls) == done + 1


def test_a_set_is_bounded_by_a_fair_draw(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "SET_LIMIT", 10)
    viewer = make(inputs=pairs(40))
    viewer.page = "set"
    scores = viewer.concentration["Clean", "Map"]
    assert np.isfinite(scores).sum() == 10
    assert np.flatnonzero(np.isfinite(scores)).max() > 20
    assert "Scored: 10 of 40 samples, drawn at random." in view(viewer)
    orders = [maps.spread_order(40).tolist() for _ in range(2)]
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
    monkeypatch.setattr(maps, "attribute", stop_at_the_third)
    viewer.page = "set"
    scores = viewer.concentration["Clean", "Map"]
    assert np.isfinite(scores).sum() == 16
    assert "saliency: 16 samples scored of 30, stopped" in view(viewer)
    assert viewer.error is None
    assert viewer._set._go_on.layout.display is None
    assert len(viewer._set._rows["Clean"].children) == 7, "what is scored is shown"
    viewer._set._go_on.click()
    assert np.isfinite(viewer.concentration["Clean", "Map"]).all()
    kept = viewer.concentration["Clean", "Map"][np.isfinite(scores)]
    np.testing.assert_array_equal(kept, scores[np.isfinite(scores)])
    assert viewer._set._go_on.layout.display == "none"


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
    assert "sample 0" in viewer.status
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
    assert "name a convolution" in viewer.static_html()
    viewer.opacity = 0.5
    assert "name a convolution" in view(viewer)
    viewer.layer = "0"
    assert viewer.error is None
    assert "Scored: 4 samples." in view(viewer)


# -- traits, static views, end --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"metod": "saliency"}, TypeError, "did you mean 'method'"),
        ({"method": "saliancy"}, ValueError, "did you mean 'saliency'"),
        ({"layer": "33"}, ValueError, "did you mean '3'"),
        ({"target": -1}, ValueError, "at least 0"),
        ({"target": 3, "classes": ["a", "b", "c"]}, ValueError, "one of 3 classes"),
        ({"opacity": 2.0}, ValueError, "0.0 to 1.0"),
        ({"after": "model"}, TypeError, "torch.nn.Module"),
        ({"inputs": [1]}, TypeError, "SamplePairs or a tensor"),
        ({"inputs": torch.rand(3, 9, 9)}, ValueError, "add the batch dimension"),
        ({"mean": [0.5, 0.5]}, ValueError, "one a channel"),
    ],
)
def test_bad_arguments_are_named(
    make: Make, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make(**options)


def test_bad_traits_are_refused(make: Make) -> None:
    viewer = make()
    for name, value, message in (
        ("page", "sett", "did you mean 'set'"),
        ("index", 4, "0 to 3"),
        ("layer", "x", "no module 'x'"),
        ("method", "occlussion", "did you mean 'occlusion'"),
    ):
        before = getattr(viewer, name)
        with pytest.raises(ValueError, match=message):
            setattr(viewer, name, value)
        assert getattr(viewer, name) == before
    with pytest.raises(traitlets.TraitError):
        viewer.set_trait("after", "model")


@pytest.mark.parametrize("page", ["sample", "set"])
def test_static_views_are_plain_html(make: Make, page: str) -> None:
    viewer = make(inputs=pairs(8), after=network(), classes=["<ape>", "bee", "cat"], target=0)
    viewer.page = page
    html = viewer.static_html()
    assert "&lt;ape&gt;" in html
    assert "<ape>" not in html
    assert "<script" not in html
    assert "<button" not in html
    images = re.findall("<img [^>]*>", html)
    assert len(images) == 7 if page == "sample" else 4 + 2 * 2 * 7 + 1
    assert all(re.search('alt="[^"]+"', image) for image in images)
    if page == "set":
        assert html.count(">sample ") == 14


def test_settle_waits_for_what_is_in_view() -> None:
    viewer = AttributionViewer(network(), pairs(20), method="saliency")
    viewer.page = "set"
    viewer.settle()
    assert "Scored: 20 samples." in viewer.static_html()
    viewer.open_sample(3)
    viewer.settle()
    assert "clean input, sample 3" in viewer.static_html()
    viewer.close()


def test_closing_lets_go_of_models() -> None:
    def open_and_close() -> list[weakref.ref[nn.Module]]:
        models = [network(), network()]
        viewer = AttributionViewer(models[0], pairs(9), after=models[1], method="saliency")
        viewer.page = "set"
        viewer.settle()
        viewer.close()
        return [weakref.ref(model) for model in models]

    gone = open_and_close()
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_keys_of_the_cache_tell_questions_apart() -> None:
    assert Query("grad-cam", "0") != Query("grad-cam", "3")
    assert Query("saliency", None, 1) != Query("saliency")
