"""The attribution viewer by its traits: one sample, static views, and its end."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import traitlets
from torch import nn

from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.explain import ATTRIBUTION_METHODS
from rectify_widgets.widgets.attribution.data import Query
from rectify_widgets.widgets.attribution.html import NO_MAP
from rectify_widgets.widgets.attribution.viewer import AttributionViewer
from tests.map_fakes import Make, count_calls, hidden, making, pictures, press, view
from tests.widget_fakes import network, pairs, texts


@pytest.fixture
def make() -> Iterator[Make]:
    with making() as build:
        yield build


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return count_calls(monkeypatch)


# -- one sample -----------------------------------------------------------------------------------


def test_plain_inputs_have_one_column(make: Make) -> None:
    viewer = make(inputs=torch.rand(3, 1, 9, 9))
    html = view(viewer)
    assert "saliency map of the input, map: evidence for class " in html
    assert "Clean" not in html
    assert len(pictures(texts(viewer))) == 3, "the input, its map and the colour scale"


@pytest.mark.parametrize("method", ATTRIBUTION_METHODS)
def test_a_map_that_is_zero_everywhere_says_why(make: Make, method: str) -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen: torch.Tensor = self.conv(x).mean((2, 3))
            return 0.0 * seen + torch.tensor([0.0, 1.0, 2.0])

    viewer = make(Blind(), inputs=torch.rand(2, 1, 9, 9), method=method)
    html = view(viewer)
    assert html.count("all zero: ") == 1
    assert NO_MAP[method] in html
    assert "zero everywhere" in html
    assert "strongest at" not in html


def test_steps_without_an_edited_model_keep_the_room_of_its_maps(make: Make) -> None:
    viewer = make()
    assert view(viewer).count("<tr>") == 2
    viewer.after = network()
    assert view(viewer).count("<tr>") == 3
    viewer.after = None
    assert view(viewer).count("<tr>") == 3
    assert view(viewer).count("without edits") == 2
    assert "after:" not in view(viewer), "a picture without a map has no words of one"


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
    assert viewer.samples.slider.max == 4
    press(viewer.samples.box, "Next sample")
    assert viewer.index == 1
    assert "sample 2" in view(viewer)
    press(viewer.methods.box, "Next method")
    assert viewer.method == "input-x-gradient"
    assert "input-x-gradient map" in view(viewer)
    viewer.methods.list.value = "occlusion"
    assert viewer.method == "occlusion"
    assert hidden(make(inputs=pairs(1)).samples.box)


def test_layers_are_offered_where_the_method_looks_at_one(make: Make) -> None:
    viewer = make()
    layers = viewer.layers
    assert hidden(layers.box)
    viewer.method = "grad-cam"
    assert not hidden(layers.box)
    assert layers.values == [None, "0", "3"]
    last = view(viewer)
    press(layers.box, "Next layer")
    assert viewer.layer == "0"
    assert view(viewer) != last
    viewer.layer = "3"
    assert layers.list.value == "3"
    assert view(viewer) == last
    viewer.layer = None
    assert layers.list.label == "last convolution (3)"


def test_any_layer_can_be_named(make: Make) -> None:
    viewer = make(method="grad-cam", layer="2")
    assert viewer.error is None
    assert viewer.layers.values == [None, "0", "3", "2"]
    seen: list[object] = []
    viewer.observe(lambda change: seen.append(change["new"]), names="layer")
    viewer.layer = "4"
    assert viewer.layers.list.value == "4"
    assert seen == ["4"]
    viewer.layer = "6"
    assert isinstance(viewer.error, ValueError)
    assert "name a convolution" in view(viewer)
    assert "name a convolution" in viewer.still()
    viewer.layer = None
    assert viewer.error is None
    assert seen == ["4", "6", None]


def test_a_target_is_explained_for_every_input(make: Make) -> None:
    viewer = make(target=2, classes=["ape", "bee", "cat"])
    targets = viewer.targets
    assert view(viewer).count(">for cat<") == 2
    assert targets.values == [None, 0, 1, 2]
    targets.list.value = 1
    assert viewer.target == 1
    assert view(viewer).count(">for bee<") == 2
    viewer.target = None
    assert targets.list.label == "own prediction"
    with pytest.raises(ValueError, match="target: got 7, want 0 to 2: one of 3 classes"):
        viewer.target = 7
    assert viewer.target is None


def test_classes_without_names_are_learnt_from_the_model(make: Make) -> None:
    assert make().targets.values == [None, 0, 1, 2]
    late = make(target=9)
    assert "want 0 to 2" in view(late), "nothing is known of the classes before the first run"


def test_of_very_many_classes_those_in_view_are_listed(make: Make) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(81, 500))
    viewer = make(model)
    values = viewer.targets.values
    assert 2 <= len(values) <= 3
    viewer.target = 321
    assert 321 in viewer.targets.values
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
    for width, height in re.findall(r'width="(\d+)" height="(\d+)"', view(viewer))[1:5]:
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
    small = pictures(texts(viewer))
    assert len(small) == 4 + 2 * 2 * 7 + 1
    assert max(map(len, small)) < 20_000
    assert sum(map(len, small)) < 560_000


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
    html = viewer.still()
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
    assert "Scored: 20 samples." in viewer.still()
    viewer.open_sample(3)
    viewer.settle()
    assert "clean input, sample 4" in viewer.still()
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
