"""`PredictionViewer` by its traits, with the synchronous session and models that say what they see.

What it shows is checked against `rectify_widgets.evaluate` and against counts by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.measure.metrics import evaluate
from rectify_widgets.widgets.prediction import comparison, prediction_html
from rectify_widgets.widgets.prediction.flip_list import PER_SHEET
from rectify_widgets.widgets.prediction.viewer import PredictionViewer
from tests.prediction_fakes import (
    CLEAN,
    CORRUPTED,
    LABELS,
    SWAP,
    Make,
    Says,
    making,
    samples,
    saying,
)
from tests.widget_fakes import network, texts


@pytest.fixture
def make() -> Iterator[Make]:
    with making() as build:
        yield build


# -- samples --------------------------------------------------------------------------------------


def test_without_labels_there_is_no_verdict(make: Make) -> None:
    viewer = make(network(), inputs=torch.rand(2, 1, 9, 9))
    html = texts(viewer)
    assert "✓" not in html
    assert "●" in html
    assert "no labels" in html
    assert viewer.labels is None
    assert viewer.reports == ()
    assert viewer.share_right("Input") == []
    viewer.after = network()
    assert viewer.counts["input"].keys() == {"fixed", "broken", "changed"}
    assert "broken" not in viewer._figures.value


def test_it_judges_by_labels(make: Make) -> None:
    model = network().eval()
    x = torch.rand(3, 1, 9, 9)
    labels = model(x).argmax(dim=1)
    viewer = make(model, model, inputs=x, labels=labels)
    assert viewer.share_right("Input") == [1.0, 1.0]
    assert "labels as given" in texts(viewer)
    with pytest.raises(ValueError, match="labels"):
        make(model, inputs=x, labels=labels[:2])


def test_labels_are_the_pairs_own_or_what_the_first_model_says(make: Make) -> None:
    assert "labels of the pairs" in texts(make())
    viewer = make(inputs=samples(None), after=Says(SWAP))
    assert "labels: the first model on clean inputs" in texts(viewer)
    assert viewer.labels is not None
    assert viewer.labels.tolist() == CLEAN
    given = make(labels=torch.tensor(CLEAN))
    assert given.labels is not None
    assert given.labels.tolist() == CLEAN


def test_the_sample_in_view(make: Make) -> None:
    viewer = make(after=Says(SWAP))
    viewer.index = 4  # label 1, said 0 before and 1 after; corrupted 2 both times
    html = viewer._table.value
    assert "ape ✗ → bee ✓" in html
    assert "↑ fixed" in html
    assert "cat ✗, before and after" in html
    assert html.count('alt="Clean input 4"') == 1
    viewer.samples.slider.value = 3
    assert viewer.index == 3
    assert "&lt;dog&gt;" in viewer._table.value
    assert "<dog>" not in viewer._table.value


def test_the_label_is_shown_however_unlikely_it_is() -> None:
    chances = [[0.0, 0.3, 0.25, 0.25, 0.2, 0.0], [0.0, 0.3, 0.25, 0.25, 0.1, 0.1]]
    html = prediction_html.probabilities("X", chances, [1, 1], label=0)
    assert "class 0 <" in html
    assert html.count("<tr>") == 1 + prediction_html.ROWS
    assert "class 5" not in html


# -- figures --------------------------------------------------------------------------------------


def test_figures_are_those_of_evaluate(make: Make) -> None:
    models = (Says(), Says(SWAP))
    viewer = make(*models, target=2)
    labels = torch.tensor(LABELS)
    for model, report in zip(models, viewer.reports, strict=True):
        assert report == evaluate(
            model, (saying(CLEAN), labels), (saying(CORRUPTED, 1.0), labels), 2, confidence=0.95
        )
    html = viewer._figures.value
    for words in ("Attack success rate, to cat", "the floor", "75.0 %", "100.0 %"):
        assert words in html
    assert 'alt="Overall accuracy: before 75.0 %' in html
    viewer.after = None
    assert len(viewer.reports) == 1
    assert "<th>Model</th>" in viewer._figures.value


def test_one_column_has_figures_of_its_own(make: Make) -> None:
    viewer = make(after=Says(SWAP), inputs=saying(CLEAN), labels=torch.tensor(LABELS), target=0)
    assert "Taken for ape" in viewer._figures.value
    assert "Corrupted" not in viewer._figures.value
    report = evaluate(Says(), (saying(CLEAN), torch.tensor(LABELS)), target=0, confidence=0.95)
    assert viewer.reports[0] == report


def test_no_attack_success_rate_where_every_label_is_the_target(make: Make) -> None:
    viewer = make(inputs=samples([2] * 8), target=2)
    assert viewer.error is None
    assert viewer.reports[0].attack_success_rate is None


# -- flips ----------------------------------------------------------------------------------------


def test_flips_are_counted_and_listed(make: Make) -> None:
    viewer = make(after=Says(SWAP))
    # Clean 0 and 1 swap: samples 0 and 1 break, 4 is fixed, 5 goes from one wrong class to another.
    assert viewer.counts == {
        "clean": {"fixed": 1, "broken": 2, "changed": 1},
        "corrupted": {"fixed": 0, "broken": 0, "changed": 0},
    }
    assert viewer.flips is not None
    assert viewer.flips.samples.tolist() == [0, 1, 4, 5]
    viewer.filter = "broken"
    assert viewer.flips.samples.tolist() == [0, 1]
    viewer.column = "corrupted"
    assert len(viewer.flips) == 0
    viewer.page = "flips"
    assert "No flip of this kind" in texts(viewer)
    viewer.filter, viewer.column, viewer.sort = "all", "all", "after"
    assert viewer.flips.samples.tolist() == [1, 5, 0, 4]
    shown = [button.description for button in viewer._list.buttons[:4]]
    assert shown[0] == "Sample 1, clean: broken, bee to ape"
    assert shown[1] == "Sample 5, clean: changed, bee to ape"
    assert viewer.status == "8 samples, 4 flips"
    with pytest.raises(traitlets.TraitError):
        viewer.counts = {}


def test_a_flip_reads_without_its_style(make: Make) -> None:
    """A notebook that is not trusted shows snapshots without any."""
    viewer = make(after=Says(SWAP))
    viewer.page = "flips"
    lines = re.sub("<[^>]*>", "", viewer.static_html().replace("</div>", "\n")).splitlines()
    start = lines.index("↓ broken 0 · clean")
    assert lines[start + 1 : start + 3] == ["✓ ape 87.0 %", "✗ bee 87.0 %"]


def test_choosing_a_flip(make: Make) -> None:
    viewer = make(after=Says(SWAP))
    viewer.page = "flips"
    viewer._list.buttons[2].click()
    assert (viewer.index, viewer.page) == (4, "flips"), "beside other widgets the list stays"
    chosen = [box._dom_classes for box in viewer._list._tiles.children[:4]]
    assert ["rw-chosen" in names for names in chosen] == [False, False, True, False]
    viewer.opens = True
    viewer._list.buttons[3].click()
    assert (viewer.index, viewer.page) == (5, "sample")
    viewer._list.buttons[9].click()
    assert viewer.index == 5, "an empty tile does nothing"
    alone = PredictionViewer(Says(), Says(SWAP), samples())
    assert alone.opens
    alone.close()


def test_the_list_is_paged(make: Make) -> None:
    count = 2 * PER_SHEET + 3
    x = saying([0] * count)
    viewer = make(after=Says(SWAP), inputs=x, labels=torch.zeros(count, dtype=torch.int64))
    viewer.page = "flips"
    assert f"1 to {PER_SHEET} of {count}" in texts(viewer)
    assert viewer._list.back.disabled
    viewer._list.on.click()
    viewer._list.on.click()
    assert viewer.sheet == 2
    assert viewer._list.on.disabled
    shown = [box.layout.display for box in viewer._list._tiles.children]
    assert shown.count("grid") == 3
    with pytest.raises(ValueError, match="want 0 to 2"):
        viewer.sheet = 3
    viewer.sort = "change"
    assert viewer.sheet == 0
    viewer.sheet = 1
    viewer.after = Says()
    assert viewer.sheet == 0, "a shorter list has fewer sheets"
    assert viewer.counts["input"]["broken"] == 0


def test_thumbnails_are_made_for_what_is_in_view_and_kept(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = prediction_html.thumbnail

    def count(image: Tensor, alt: str, **options: Any) -> str:
        made.append(alt)
        return real(image, alt, **options)

    monkeypatch.setattr(prediction_html, "thumbnail", count)
    monkeypatch.setattr(comparison, "PICTURES", 2 * PER_SHEET)
    viewer = make(after=Says(SWAP), inputs=saying([0] * 100))
    assert made == ["Input input 0"]
    viewer.page = "flips"
    assert len(made) == 1 + PER_SHEET
    viewer.sort = "change"
    viewer.page = "sample"
    viewer.page = "flips"
    assert len(made) == 1 + PER_SHEET
    for number in range(5):
        viewer.sheet = number
    assert len(viewer._compared._pictures) == 2 * PER_SHEET


def test_thumbnails_undo_a_normalisation_and_are_small() -> None:
    image = torch.rand(3, 300, 200, generator=torch.manual_seed(0))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    normal = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    one = prediction_html.thumbnail(image, "<x>", width=48)
    other = prediction_html.thumbnail(normal, "<x>", width=48, mean=mean, std=std)
    assert one == other
    assert 'alt="&lt;x&gt;" width="32" height="48"' in one
    assert len(one) < 8_000


# -- classes --------------------------------------------------------------------------------------


def test_the_page_of_classes(make: Make) -> None:
    viewer = make(after=Says(SWAP))
    viewer.page = "classes"
    cells = re.findall("<td[^>]*>([^<]*)</td>", viewer._map._charts[0].value)
    # Rows by label: 0: one 0 → 1.  1: one 1 → 0, one 0 → 1.  2: one 1 → 0.
    assert cells == ["−1", "+1", "", "", "", "", "", "", "+1", "−1", "", "", *[""] * 4]
    cards = viewer._map.children
    assert [card.layout.display for card in cards] == [None, None]
    viewer.column = "corrupted"
    assert [card.layout.display for card in cards] == ["none", None]
    assert "nothing changed" in texts(cards[1])
    viewer.after = None
    assert "nothing to compare with" in texts(viewer)
    assert [card.layout.display for card in cards] == ["none", "none"]


# -- static views ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["sample", "flips", "classes"])
@pytest.mark.parametrize("after", [None, Says(SWAP)])
def test_static_views(make: Make, tmp_path: Path, page: str, after: nn.Module | None) -> None:
    viewer = make(after=after, target=2)
    viewer.page = page
    html = viewer.static_html()
    assert "<script" not in html
    assert "<dog>" not in html
    images = re.findall("<img [^>]*>", html)
    assert all(' alt="' in image and " width=" in image for image in images)
    assert "Overall accuracy" in html
    wanted = {"sample": "Clean input", "flips": "1 to 4 of 4", "classes": "Right before"}[page]
    if after is None and page != "sample":
        assert "nothing to compare with" in html
    else:
        assert wanted in html
    assert html.count("<div") == html.count("</div")
    written = viewer.to_html(tmp_path / "view.html").read_text("utf-8")
    assert wanted in written or after is None
