"""`MaskPainter` by its traits: what the page sends, what comes of it, and what bad input gets.

The page is stood in for by the message that it sends, made here with numpy; the tools themselves run
in a browser, see tests/browser/test_painter.py.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.reveal.cleansing import cleanse
from rectify_widgets.widgets.painter.viewer import MaskPainter
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import network, texts

Make = Callable[..., MaskPainter]

SIDE = 9


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[MaskPainter] = []

    def build(given: Any = None, **options: Any) -> MaskPainter:
        session = Session(synchronous=True)
        painter = MaskPainter(inputs() if given is None else given, session=session, **options)
        made.append(painter)
        return painter

    yield build
    for painter in made:
        painter.close()


def inputs(count: int = 3) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def spot(*rows: int, count: int = 3) -> Tensor:
    """Masks with three pixels painted in some samples."""
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.bool)
    for row in rows:
        masks[row, 4, 3:6] = True
    return masks


def paint(painter: MaskPainter, mask: Tensor, *, index: int | None = None, late: int = 0) -> None:
    """What the page sends when a stroke ends; ``late`` changes of Python's had not arrived."""
    seen = painter.paper.mask
    bits = zlib.compress(np.packbits(mask.numpy()).tobytes())
    place = seen["index"] if index is None else index
    message = {"index": place, "serial": seen["serial"] - late, "bits": memoryview(bits)}
    painter.paper.set_state({"mask": message})


def on_page(painter: MaskPainter) -> tuple[int, Tensor]:
    """The sample and the mask that a page would show."""
    shown = painter.paper.mask
    bits = np.frombuffer(zlib.decompress(shown["bits"]), np.uint8)
    flat = np.unpackbits(bits)[: SIDE * SIDE].astype(bool)
    return shown["index"], torch.from_numpy(flat.reshape(SIDE, SIDE))


# -- strokes --------------------------------------------------------------------------------------


def test_a_stroke_comes_back_to_the_pixel(make: Make) -> None:
    painter = make()
    heard: list[Tensor] = []
    painter.observe(lambda change: heard.append(change["new"]), names="masks")
    mask = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(5)) < 0.4
    paint(painter, mask)
    assert painter.masks.dtype is torch.bool
    assert torch.equal(painter.masks[0], mask)
    assert not painter.masks[1:].any()
    assert painter.painted == [0]
    assert torch.equal(heard[-1], painter.masks)
    assert "1 of 3 samples painted" in painter.status


def test_a_sample_keeps_its_mask_while_others_are_in_view(make: Make) -> None:
    painter = make()
    paint(painter, spot(0)[0])
    painter.index = 2
    assert on_page(painter)[0] == 2
    assert not on_page(painter)[1].any()
    paint(painter, ~spot(0)[0])
    painter.index = 0
    index, mask = on_page(painter)
    assert index == 0
    assert torch.equal(mask, spot(0)[0])
    assert painter.painted == [0, 2]


def test_a_late_stroke_belongs_to_the_sample_that_it_was_painted_on(make: Make) -> None:
    painter = make()
    painter.index = 1
    paint(painter, spot(0)[0], index=0, late=1)
    assert torch.equal(painter.masks, spot(0))
    assert on_page(painter)[0] == 1, "what is saved with the notebook is the sample in view"


def test_a_stroke_on_a_mask_that_was_replaced_is_left_out(make: Make) -> None:
    painter = make()
    painter.masks = spot(0)
    paint(painter, ~spot(0)[0], late=1)
    assert torch.equal(painter.masks, spot(0))
    assert torch.equal(on_page(painter)[1], spot(0)[0])


def test_a_message_of_another_size_is_refused(make: Make) -> None:
    painter = make()
    for count in (SIDE * SIDE - 8, SIDE * SIDE + 8, 8_000_000):
        with pytest.raises(ValueError, match="want 11 for 9 × 9"):
            paint(painter, torch.zeros(count, dtype=torch.bool))
    assert not painter.masks.any()


def test_masks_set_in_python_appear_on_the_page(make: Make) -> None:
    painter = make(masks=spot(0, 1))
    assert torch.equal(on_page(painter)[1], spot(0)[0])
    given = spot(2)
    painter.masks = given
    assert not on_page(painter)[1].any()
    given[:] = True
    assert torch.equal(painter.masks, spot(2)), "the painter has its own copy"


# -- what comes of the mask -----------------------------------------------------------------------


def test_clean_is_what_cleanse_gives_and_the_rest_stays(make: Make) -> None:
    x, masks = inputs(), spot(0, 2)
    painter = make(x, masks=masks, fill="ring")
    assert torch.equal(painter.clean[[0, 2]], cleanse(x[[0, 2]], masks[[0, 2]], "ring"))
    assert torch.equal(painter.clean[1], x[1])
    pairs = painter.pairs
    assert torch.equal(pairs.corrupted, x[[0, 2]])
    assert torch.equal(pairs.clean, painter.clean[[0, 2]])
    before = painter.clean
    other = masks[0].T.clone()
    paint(painter, other)
    painter.fill = "blur"
    after = painter.clean
    assert torch.equal(after[2], cleanse(x[[2]], masks[[2]], "blur")[0])
    assert torch.equal(after[0], cleanse(x[[0]], other[None], "blur")[0])
    assert not torch.equal(after[0], before[0])


def test_a_number_is_a_fill_too(make: Make) -> None:
    painter = make(masks=spot(0), fill=0.25)
    assert bool((painter.clean[0, 0][spot(0)[0]] == 0.25).all())
    painter.fill = 0.5
    assert bool((painter.clean[0, 0][spot(0)[0]] == 0.5).all())
    painter.fill = "ring"
    assert "fill: ring" in texts(painter)


def test_the_reference_is_a_fill_where_there_is_one(make: Make) -> None:
    others = inputs(8)
    painter = make(masks=spot(0), reference=others, fill="reference")
    assert painter.error is None
    assert torch.equal(
        painter.clean[:1], cleanse(inputs()[:1], spot(0)[:1], "reference", None, others)
    )
    with pytest.raises(ValueError, match="fill"):
        make(fill="reference")


def test_the_model_answers_for_both(make: Make) -> None:
    model = network().eval()
    painter = make(masks=spot(0), model=model, fill="ring", classes=["a<b", "c", "d"])
    with torch.no_grad():
        both = torch.cat([inputs()[:1], cleanse(inputs()[:1], spot(0)[:1], "ring")])
        shares = model(both).softmax(dim=1)
    html = painter.canvas.html
    for share in shares.flatten():
        assert f"{100 * float(share):.1f}" in html
    assert "a&lt;b" in html
    assert "a<b" not in html
    paint(painter, torch.zeros(SIDE, SIDE, dtype=torch.bool))
    assert "Nothing is painted yet" in painter.canvas.html
    assert "Cleansed" not in painter.canvas.html


def test_the_model_is_left_as_it_was(make: Make) -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    painter = make(masks=spot(0), model=model)
    assert len(painter.pairs) == 1
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


def test_a_mask_that_leaves_nothing_is_said_in_place(make: Make) -> None:
    painter = make(masks=spot(0))
    assert "Cleansed input 1" in painter.canvas.html
    paint(painter, torch.ones(SIDE, SIDE, dtype=torch.bool))
    assert "covers the whole input" in str(painter.error)
    assert "covers the whole input" in texts(painter)
    assert "Cleansed input 1" not in painter.canvas.html
    with pytest.raises(ValueError, match="covers the whole input"):
        _ = painter.clean
    paint(painter, spot(0)[0])
    assert painter.error is None
    assert "Cleansed input 1" in painter.canvas.html


def test_pairs_want_paint(make: Make) -> None:
    painter = make()
    with pytest.raises(ValueError, match="masks: got no painted pixel"):
        _ = painter.pairs
    assert torch.equal(painter.clean, inputs())


def test_the_snapshot_shows_the_painted_input(make: Make) -> None:
    painter = make(masks=spot(0), model=network())
    still = painter.still()
    assert "Input 1, painted" in still
    assert "Cleansed input 1, fill: best" in still
    assert "Input 1, painted" not in painter.canvas.html, "the canvas shows it"
    assert repr(painter) == "MaskPainter(3 samples)"


# -- suggestions ----------------------------------------------------------------------------------


class SeesTheCorner(nn.Module):
    """Class 1 where the upper left 3 × 3 pixels are bright, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        bright = x[:, 0, :3, :3].mean(dim=(1, 2)) - 0.6
        return torch.stack([-self.weight * bright, self.weight * bright], dim=1)


def cornered() -> Tensor:
    x = 0.3 * torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(7))
    x[:2, :, :3, :3] = 1.0
    return x


def test_suggestions_go_where_nothing_is_painted(make: Make) -> None:
    x = cornered()
    painter = make(x, model=SeesTheCorner(), fill="ring")
    own = torch.zeros(16, 16, dtype=torch.bool)
    own[10, 10] = True
    masks = painter.masks.clone()
    masks[1] = own
    painter.masks = masks
    found = painter.suggest().wait()
    assert len(found) == 2, "the first and the third: the second has paint, and is not in view"
    assert painter.masks[0, :3, :3].any()
    assert not painter.masks[0, 8:, 8:].any()
    assert torch.equal(painter.masks[0], torch.as_tensor(found[0]))
    assert torch.equal(painter.masks[1], own)
    assert not painter.busy
    assert type(painter.masks) is Tensor
    assert "it changes to" in painter.canvas.html


def test_where_nothing_local_carries_the_answer_it_is_said(make: Make) -> None:
    painter = make(torch.zeros(2, 1, 16, 16), model=SeesTheCorner(), fill="ring")
    found = painter.suggest().wait()
    assert not found.found.any()
    assert "in 2 nothing local carries the answer" in painter.status
    assert not painter.masks.any()


def test_suggestions_want_a_model(make: Make) -> None:
    painter = make()
    with pytest.raises(ValueError, match="model: got None"):
        painter.suggest()
    assert not painter.busy


def test_a_suggestion_that_is_cancelled_leaves_the_masks(make: Make) -> None:
    painter = MaskPainter(cornered(), model=SeesTheCorner(), fill="ring")
    try:
        painter.settle()
        job = painter.suggest()
        painter.cancel()
        with pytest.raises(Cancelled):
            job.wait()
        assert not painter.busy
        assert not painter.masks.any()
        assert "cancelled" in painter.status
    finally:
        painter.close()


# -- what is sent ---------------------------------------------------------------------------------


def test_little_is_saved_with_a_notebook(make: Make) -> None:
    noise = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(1, 512, 512, dtype=torch.bool)
    masks[0, 100:200, 50:400] = True
    painter = make(noise, masks=masks, fill="ring")
    state = painter.paper.get_state()
    assert len(state["image"]) <= 24_000
    assert len(state["mask"]["bits"]) < 1_000
    assert len(painter.canvas.html) < 20_000


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"masks": spot(0).float()}, TypeError, "masks: got dtype torch.float32"),
        ({"masks": spot(0)[:2]}, ValueError, r"masks: got shape \(2, 9, 9\)"),
        ({"masks": [[True]]}, TypeError, "masks: got list"),
        ({"model": "cnn"}, TypeError, "model: got str"),
        ({"fill": "magic"}, ValueError, "fill"),
        ({"fill": True}, TypeError, "fill"),
        ({"fill": float("nan")}, ValueError, "fill"),
        ({"given": torch.rand(1, 9, 9)}, ValueError, "inputs: got shape"),
        ({"given": torch.full((1, 1, 9, 9), float("nan"))}, ValueError, "inputs"),
        ({"modle": None}, TypeError, "did you mean 'model'"),
    ],
)
def test_bad_arguments_are_named(
    make: Make, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        make(**options)


def test_bad_values_of_traits_are_refused_and_change_nothing(make: Make) -> None:
    painter = make(masks=spot(0))
    for name, value in {"masks": spot(0)[:1], "index": 3, "fill": "magic"}.items():
        before = getattr(painter, name)
        with pytest.raises((ValueError, traitlets.TraitError)):
            setattr(painter, name, value)
        assert getattr(painter, name) is before or torch.equal(getattr(painter, name), before)


def test_a_failing_model_is_said_in_place(make: Make) -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError(f"no answer for {len(x)}")

    painter = make(masks=spot(0), model=Fails(), fill="ring")
    assert "no answer" in str(painter.error)
    assert "no answer" in texts(painter)
