"""`PredictionViewer` by its traits, with the synchronous session and models that say what they see.

What it shows is checked against `rectify_widgets.evaluate` and against counts by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
import traitlets
from torch import nn

from rectify_widgets.engine.measure.metrics import evaluate
from rectify_widgets.widgets.prediction import html as pieces
from rectify_widgets.widgets.prediction import viewer as prediction
from rectify_widgets.widgets.prediction.data import Comparison, Predictions
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
    assert "broken" not in viewer.canvas.html


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
    html = viewer.canvas.html
    assert "ape ✗ → bee ✓" in html
    assert "↑ fixed" in html
    assert "cat ✗, before and after" in html
    assert html.count('alt="Clean input 5"') == 1
    assert '<tr title="bee: 4.33 % → 87.00 %">' in html, "the numbers of a row under the pointer"
    viewer.samples.slider.value = 4
    assert viewer.index == 3
    assert "&lt;dog&gt;" in viewer.canvas.html
    assert "<dog>" not in viewer.canvas.html


def test_the_label_is_shown_however_unlikely_it_is() -> None:
    shares = [[0.0, 0.3, 0.25, 0.25, 0.2, 0.0], [0.0, 0.3, 0.25, 0.25, 0.1, 0.1]]
    found = [
        Predictions({"X": np.array([1])}, {"X": np.array([row], np.float32)}) for row in shares
    ]
    compared = Comparison(
        {"X": torch.zeros(1)}, np.array([0]), "", True, None, None, None, None, found
    )
    html = pieces.sample(compared, 0, lambda *_: "")
    assert "class 0 <" in html
    assert html.count("<tr title=") == pieces.ROWS
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
    html = viewer.canvas.html
    for words in ("Attack success rate, to cat", "the floor", "75.0 %", "100.0 %"):
        assert words in html
    assert "<title>Overall accuracy: before 75.0 %, from 40.9 to 92.9; after" in html
    assert re.search('<img [^>]*alt="Overall accuracy: before 75.0 %', viewer.still())
    viewer.after = None
    assert len(viewer.reports) == 1
    assert "<th>Model</th>" in viewer.canvas.html


def test_one_column_has_figures_of_its_own(make: Make) -> None:
    viewer = make(after=Says(SWAP), inputs=saying(CLEAN), labels=torch.tensor(LABELS), target=0)
    assert "Taken for ape" in viewer.canvas.html
    assert "Corrupted" not in viewer.canvas.html
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
    shown = re.findall('<div class="rw-flip"[^>]* title="([^"]*)"', viewer.canvas.html)
    assert len(shown) == 4
    assert shown[0] == "Sample 2, clean: broken, bee to ape"
    assert shown[1] == "Sample 6, clean: changed, bee to ape, label cat"
    assert viewer.status == "8 samples, 4 flips"
    with pytest.raises(traitlets.TraitError):
        viewer.counts = {}


def test_a_flip_reads_without_its_style(make: Make) -> None:
    """A notebook that is not trusted shows snapshots without any."""
    viewer = make(after=Says(SWAP))
    viewer.page = "flips"
    lines = re.sub("<[^>]*>", "", viewer.still().replace("</div>", "\n")).splitlines()
    start = lines.index("↓ broken 1, clean")
    assert lines[start + 1 : start + 3] == ["✓ ape 87.0 %", "✗ bee 87.0 %"]


def click(viewer: PredictionViewer, found: str, place: int = 0) -> None:
    """Click on the handle of that number whose element holds these words."""
    handles = re.findall(
        f"<(?:div|td|span)([^>]* data-(?:set|do)=[^>]*)(?=>)(?:[^<]|<(?!/(?:div|td)))*?{found}",
        viewer.canvas.html,
    )
    names = dict(re.findall('data-(set|do)="([^"]*)"', handles[place]))
    viewer.canvas.act({name: json.loads(unescape(text)) for name, text in names.items()})
    assert viewer.error is None


def chosen(viewer: PredictionViewer) -> list[str]:
    """Titles of the tiles that a snapshot marks."""
    return re.findall('<div class="rw-flip" data-chosen title="([^:]*)', viewer.still())


def test_choosing_a_flip(make: Make) -> None:
    viewer = make(after=Says(SWAP))
    viewer.page = "flips"
    before = viewer.canvas.html
    click(viewer, 'alt="Clean input 5"')
    assert (viewer.index, viewer.page) == (4, "flips"), "beside other widgets the list stays"
    assert viewer.canvas.html == before
    assert viewer.canvas.marks["index"] == 4, "a mark, not another view"
    assert chosen(viewer) == ["Sample 5, clean"]
    viewer.opens = True
    viewer.draw()
    viewer.canvas.act({"set": {"index": 0}})
    assert (viewer.index, viewer.page) == (0, "flips"), "an arrow key only chooses"
    click(viewer, 'alt="Clean input 6"')
    assert (viewer.index, viewer.page) == (5, "sample")
    alone = PredictionViewer(Says(), Says(SWAP), samples())
    assert alone.opens
    alone.close()


def test_a_number_of_flips_lists_them(make: Make) -> None:
    viewer = make(after=Says(SWAP))
    click(viewer, ">2<")
    assert (viewer.page, viewer.column, viewer.filter) == ("flips", "clean", "broken")
    assert "data-set" not in re.findall("<td[^>]*>0<", viewer.canvas.html)[0], "there is none"


def test_a_long_list_begins_with_what_there_is_room_for(make: Make) -> None:
    count = 300
    x = saying([0] * count)
    viewer = make(after=Says(SWAP), inputs=x, labels=torch.zeros(count, dtype=torch.int64))
    viewer.page = "flips"
    first = viewer.canvas.html.count('class="rw-flip"')
    assert 12 < first < count
    assert prediction.ROOM < len(viewer.canvas.html) < 60_000
    assert f"The first {first} of {count} flips" in viewer.canvas.html
    assert "Show more" not in viewer.still()
    assert 5 < viewer.still().count('class="rw-flip"') < first, "a snapshot does not scroll"
    viewer.canvas.act({"do": {"show_more": None}})
    assert 2 * first - 2 <= viewer.canvas.html.count('class="rw-flip"') <= 2 * first + 2
    viewer.sort = "change"
    assert viewer.canvas.html.count('class="rw-flip"') == first, "another list starts anew"
    viewer.after = Says()
    assert viewer.counts["input"]["broken"] == 0
    assert "The first" not in viewer.canvas.html


def test_thumbnails_are_made_for_what_is_in_view_and_kept(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = pieces.thumbnail

    def count(compared: Comparison, column: str, sample: int, width: int) -> str:
        made.append(sample)
        return real(compared, column, sample, width)

    monkeypatch.setattr(pieces, "thumbnail", count)
    viewer = make(after=Says(SWAP), inputs=saying([0] * 300))
    assert made == [0]
    viewer.page = "flips"
    first = len(made) - 1
    assert 12 < first < 300
    for page in ("sample", "flips", "classes", "flips"):
        viewer.page = page
    assert len(made) == 1 + first
    viewer.close()
    assert viewer._picture.cache_info().currsize == 0


def test_thumbnails_undo_a_normalisation_and_are_small(make: Make) -> None:
    image = torch.rand(1, 3, 300, 200, generator=torch.manual_seed(0))
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    normal = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    one = make(inputs=image)
    other = make(inputs=normal, mean=mean, std=std)
    for width, height in ((32, 48), (48, 72)):
        tag = one._picture("Input", 0, height)
        assert tag == other._picture("Input", 0, height)
        assert f'alt="Input input 1" width="{width}" height="{height}"' in tag
        assert len(tag) < 8_000


# -- classes --------------------------------------------------------------------------------------


def cells(html: str) -> list[list[str]]:
    """The numbers of each heat map's rows."""
    rows = re.findall('<tr><th scope="row">.*?</tr>', html)
    return [re.findall("<td[^>]*>([^<]*)</td>", row) for row in rows]


def test_the_page_of_classes(make: Make) -> None:
    viewer = make(after=Says(SWAP))
    viewer.page = "classes"
    # Rows by label: 0: one 0 → 1.  1: one 1 → 0, one 0 → 1.  2: one 1 → 0.
    clean = [["−1", "+1", "", ""], ["", "", "", ""], ["+1", "−1", "", ""], [""] * 4]
    assert cells(viewer.canvas.html) == clean + [[""] * 4] * 4
    assert 'title="ape → bee: +1"' in viewer.canvas.html
    assert "Right before" in viewer.canvas.html
    viewer.column = "corrupted"
    assert cells(viewer.canvas.html) == [[""] * 4] * 4
    assert "nothing changed" in viewer.canvas.html
    viewer.after = None
    assert "nothing to compare with" in viewer.canvas.html
    assert cells(viewer.canvas.html) == []


def test_a_cell_lists_its_flips(make: Make) -> None:
    viewer = make(after=Says(SWAP))
    viewer.page = "classes"
    click(viewer, r"\+1<", 1)  # a cat that is now taken for an ape
    assert viewer.confusion == ("clean", 2, 0)
    assert "<b>1 flip</b>" in re.sub(' class="[^"]*"', "", viewer.canvas.html)
    assert "True class cat, ape before or after, clean inputs" in viewer.canvas.html
    assert re.findall('title="(Sample [^:]*)', viewer.canvas.html) == ["Sample 6, clean"]
    assert "data-chosen" in viewer.still()
    viewer.confusion = ("clean", 1, 0)
    assert re.findall('title="(Sample [^:]*)', viewer.canvas.html) == [
        "Sample 2, clean", "Sample 5, clean",
    ], "what comes and what goes, though the numbers add up to nothing"  # fmt: skip
    viewer.column = "corrupted"
    assert "Sample 2" not in viewer.canvas.html, "its heat map is not in view"
    viewer.column = "all"
    click(viewer, "✕ Close")
    assert viewer.confusion is None
    assert "rw-flip" not in viewer.canvas.html


# -- static views ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["sample", "flips", "classes"])
@pytest.mark.parametrize("after", [None, Says(SWAP)])
def test_static_views(make: Make, tmp_path: Path, page: str, after: nn.Module | None) -> None:
    viewer = make(after=after, target=2)
    viewer.page = page
    html = viewer.still()
    assert "<script" not in html
    assert "<dog>" not in html
    images = re.findall("<img [^>]*>", html)
    assert all(' alt="' in image and " width=" in image for image in images)
    assert "Overall accuracy" in html
    wanted = {"sample": "Clean input", "flips": "↔ changed", "classes": "Right before"}[page]
    if after is None and page != "sample":
        assert "nothing to compare with" in html
    else:
        assert wanted in html
    assert html.count("<div") == html.count("</div")
    written = viewer.to_html(tmp_path / "view.html").read_text("utf-8")
    assert wanted in written or after is None


def test_the_groups_before_and_after(make: Make) -> None:
    where = ["<tag>", "<tag>", "none", "none"] * 2
    viewer = make(after=Says(SWAP), groups=where, labels=torch.tensor(CLEAN))
    viewer.page = "classes"
    table = viewer.reports[1].groups
    assert table is not None
    assert [(row.label, row.group, row.before, row.right) for row in table.rows] == [
        (0, "<tag>", 2, 0), (1, "<tag>", 2, 0), (2, "none", 2, 2), (3, "none", 2, 2),
    ]  # fmt: skip
    for page in (viewer.canvas.html, viewer.still()):
        assert "Loses 100.0 points: bee, group &lt;tag&gt; (2 → 0 of 2 right)." in page
        assert "&lt;dog&gt;" in page
        assert "<tag>" not in page
    viewer.page = "flips"
    assert "Loses" not in viewer.canvas.html


def test_groups_need_labels_of_their_number() -> None:
    with pytest.raises(ValueError, match=r"^groups: got 3 values, want 8"):
        PredictionViewer(Says(), None, samples(), groups=[1, 2, 3])
    with pytest.raises(ValueError, match=r"^groups: got them without labels"):
        PredictionViewer(Says(), None, saying(CLEAN), groups=[1] * 8)
