"""The pure renderers: right colours, small pictures, escaped text, and sense without a style sheet."""

from __future__ import annotations

import io
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.widgets import markup, render
from rectify_widgets.widgets.style import SHEETS, element


def decode(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def lightness(colour: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> float:
    return float(colour.astype(float) @ [0.2126, 0.7152, 0.0722])


def bytes_of(tag: str) -> bytes:
    return b64decode(re.findall('base64,([^"]+)', tag)[0])


def test_small_pictures_are_kept_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 30, 3), dtype=np.uint8)
    kind, data = render.encode(pixels)
    assert kind == "image/png"
    np.testing.assert_array_equal(decode(data), pixels)


def test_charts_of_any_size_are_kept_exactly() -> None:
    chart = np.full((256, 256, 3), 240, np.uint8)
    chart[100:120, 20:200] = 17
    kind, data = render.encode(chart)
    assert kind == "image/png"
    np.testing.assert_array_equal(decode(data), chart)


def test_photographs_are_as_good_to_look_at() -> None:
    y, x = np.mgrid[0:224, 0:224]
    smooth = np.stack([y, x, (x + y) // 2], axis=-1).astype(np.uint8)
    grain = np.random.default_rng(0).integers(-4, 5, smooth.shape)
    photograph = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    kind, data = render.encode(photograph)
    assert kind == "image/jpeg"
    assert len(data) < 40_000
    assert np.abs(decode(data).astype(int) - photograph).mean() < 4


@pytest.mark.parametrize("side", [224, 256, 512, 1500])
@pytest.mark.parametrize("channel", [None, 0, 2])
def test_no_picture_takes_more_than_100_kb_on_the_wire(side: int, channel: int | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    if channel is not None:
        noise[..., [place for place in range(3) if place != channel]] = 0
    tag = render.image_tag(noise, "noise", width=120)
    assert len(tag) < 100_000
    assert len(bytes_of(tag)) <= render.BYTES


def test_long_pictures_keep_their_proportions() -> None:
    tag = render.image_tag(np.zeros((40, 100, 3), np.uint8), "wide", width=200)
    assert 'width="200" height="80"' in tag
    assert render.shrink(np.zeros((100, 1000, 3), np.uint8), 256).shape == (26, 256, 3)
    assert render.shrink_plane(np.ones((1000, 10), np.float32)).shape == (256, 3)
    assert render.shrink_plane(np.ones((300, 400), np.float32)).mean() == pytest.approx(1.0)


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(20, 400))
def test_pictures_take_about_the_same_room(height: int, width: int, side: int) -> None:
    across = render.fit((height, width, 3), side)
    down = across * height / width
    assert 1 <= across <= 2 * side
    assert down <= 1.5 * side + height / width
    if 0.5 < width / height < 2:
        assert across * down == pytest.approx(side * side, rel=0.1)


def test_histograms_show_every_bar_that_is_there() -> None:
    tag = render.histogram_tag([0, 1, 1000, 0], 'a "chart"', width=40, height=20)
    assert 'width="40" height="20"' in tag
    assert "&quot;chart&quot;" in tag
    picture = np.asarray(Image.open(io.BytesIO(bytes_of(tag))))
    assert picture.shape == (40, 80, 4)
    heights = (picture[:-2, ::20, 3] > 0).sum(axis=0)
    assert heights.tolist() == [0, 2, 38, 0]
    assert picture[0, 5, 3] == 0, "transparent, for light and dark pages"
    assert render.histogram_tag([], "nothing", width=10)


def test_images_side_by_side_share_black_and_white() -> None:
    dark, bright = torch.zeros(1, 2, 2), torch.full((1, 2, 2), 4.0)
    assert render.display_limits(dark) == (0.0, 1.0)
    assert render.display_limits(bright) == (4.0, 4.0)
    assert render.to_rgb(bright, limits=(0.0, 8.0)).max() == 128


def test_images_of_every_kind() -> None:
    grey = torch.linspace(0, 1, 12).reshape(1, 3, 4)
    assert render.to_rgb(grey).shape == (3, 4, 3)
    assert render.to_rgb(grey)[0, 0].tolist() == [0, 0, 0]
    assert render.to_rgb(grey)[-1, -1].tolist() == [255, 255, 255]
    colour = torch.zeros(3, 2, 2)
    colour[0] = 1.0
    assert render.to_rgb(colour)[0, 0].tolist() == [255, 0, 0]
    assert render.to_rgb(torch.rand(5, 2, 2)).shape == (2, 2, 3)
    stretched = render.to_rgb(torch.tensor([[[-2.0, 2.0]]], dtype=torch.float64))
    assert stretched[0, :, 0].tolist() == [0, 255]
    normalised = (colour - 0.5) / 0.25
    undone = render.to_rgb(normalised, mean=[0.5] * 3, std=[0.25] * 3)
    np.testing.assert_array_equal(undone, render.to_rgb(colour))
    assert render.to_rgb(torch.full((1, 2, 2), 0.5, dtype=torch.bfloat16)).max() == 128


def test_colours_darken_to_both_ends_and_differ_in_hue() -> None:
    values = np.linspace(-1, 1, 21, dtype=np.float32)
    ramp = render.colours(values)
    light = [lightness(colour) for colour in ramp]
    assert light[:11] == sorted(light[:11])
    assert light[10:] == sorted(light[10:], reverse=True)
    assert ramp[0, 2] > ramp[0, 0]
    assert ramp[-1, 0] > ramp[-1, 2]
    np.testing.assert_array_equal(render.colours(values * 5)[[0, -1]], ramp[[0, -1]])


def test_one_scale_for_all_maps() -> None:
    weak = np.full((10, 10), 0.1, np.float32)
    strong = np.full((10, 10), -2.0, np.float32)
    assert render.shared_scale([weak, strong]) == pytest.approx(2.0)
    assert render.shared_scale([]) == 1.0
    assert render.shared_scale([np.zeros((2, 2), np.float32)]) == 1.0
    lonely = np.zeros((100, 100), np.float32)
    lonely[0, 0] = 3.0
    assert render.shared_scale([lonely]) == pytest.approx(3.0)


def test_planes_add_channels() -> None:
    attribution = torch.tensor([1.0, -3.0]).reshape(2, 1, 1)
    assert render.to_plane(attribution).tolist() == [[-2.0]]
    assert render.to_plane(attribution, signed=False).tolist() == [[4.0]]


def test_overlay_shows_the_image_alone_at_no_opacity() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    plane = np.ones((6, 5), np.float32)
    np.testing.assert_array_equal(render.overlay(image, plane, 1.0, opacity=0.0), image)
    orange = render.overlay(image, plane, 1.0, opacity=1.0)
    blue = render.overlay(image, -plane, 1.0, opacity=1.0)
    np.testing.assert_array_equal(orange[0, 0], render.colours(np.ones(1, np.float32))[0])
    np.testing.assert_array_equal(blue[0, 0], render.colours(-np.ones(1, np.float32))[0])


def test_the_legend_has_numbers_and_words() -> None:
    signed, absolute = render.legend_tag(1.234), render.legend_tag(0.5, signed=False)
    assert "−1.2" in signed
    assert "+1.2" in signed
    assert "against" in signed
    assert "−" not in re.sub('src="[^"]*"', "", absolute)
    assert 'alt="Colour scale from 0' in absolute


def test_bars_are_pictures_of_the_right_length() -> None:
    assert 'width="50"' in render.bar_tag(0.5, width=100)
    assert 'width="100"' in render.bar_tag(7.0, width=100)
    assert render.bar_tag(-1.0, width=100) == ""
    data = b64decode(re.findall('base64,([^"]+)', render.bar_tag(1.0, width=9))[0])
    assert decode(data).tolist() == [[[0x3B, 0x78, 0xB0]]]


def test_percent_and_duration_read_well() -> None:
    assert [markup.percent(x) for x in (-4e-4, -4e-3, 1.0, 0.004, 0.9994, float("nan"))] == [
        "0.0 %",
        "−0.4 %",
        "100.0 %",
        "0.4 %",
        "99.9 %",
        "–",
    ]
    assert [markup.duration(s) for s in (0.2, 42.4, 75.0)] == ["1 s", "42 s", "1 min 15 s"]


NASTY = "<script>alert('x')</script>"


@pytest.mark.parametrize(
    "html",
    [
        markup.heading(NASTY, NASTY),
        markup.status_line(NASTY),
        markup.error_box(ValueError(NASTY)),
        render.image_tag(np.zeros((2, 2, 3), np.uint8), NASTY + '"', width=3),
    ],
)
def test_everything_from_outside_is_escaped(html: str) -> None:
    assert "<script" not in html
    assert html.count('"') % 2 == 0


def test_colours_of_text_and_surfaces_are_the_themes() -> None:
    style = element(*SHEETS)
    assert style.count("{") == style.count("}")
    assert "http" not in style
    for name in ("--jp-ui-font-color1", "--jp-border-color2", "--jp-layout-color2"):
        assert f"var({name}, " in style


def test_a_rectification_that_had_nothing_to_do_says_so() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    result = Rectification(
        torch.nn.Identity(), [], [], "dynamic", "target", 0.01, 0.01, 0.0, empty, {"all": 0.1}
    )
    assert markup.outcome(result) == "Nothing to rectify: the gap is 1.0 %, within its target."
