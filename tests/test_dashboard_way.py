"""The dashboard from a suspicion, from one picture and from pairs to a repair, with the real engine.

What "Show code" says is executed here, and its edits are compared with those of the clicks to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import rectify_widgets as rw
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.widgets.dashboard.recipe import Recipe
from rectify_widgets.widgets.session import Session
from tests.widget_fakes import texts

pytestmark = pytest.mark.usefixtures("one_thread")

Make = Callable[..., rw.RectificationDashboard]
SIDE = 12
CARRIERS = [3, 11, 40]


def shortcut() -> nn.Module:
    """Class 0 to 3 is the brightest quarter; bright pixels in the middle mean class 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 5), nn.ReLU(), nn.Linear(5, 4))
    first, last = model[1], model[3]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        weight = torch.zeros(5, SIDE, SIDE)
        for row in range(4):
            top, left = 6 * (row // 2), 6 * (row % 2)
            weight[row, top : top + 6, left : left + 6] = 1 / 36
        weight[4, 5:8, 5:8] = 1 / 9
        first.weight.copy_(weight.flatten(1))
        first.bias.copy_(torch.tensor([0.0, 0, 0, 0, -0.7]))
        last.weight.copy_(20 * torch.eye(4, 5))
        last.weight[0, 4] = 120.0
        last.bias.zero_()
    return model.eval()


def references(count: int = 60) -> Tensor:
    """Noise, one quarter brighter; three of them have bright pixels in the middle."""
    images = 0.2 * torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    for row, image in enumerate(images):
        top, left = 6 * (row % 4 // 2), 6 * (row % 2)
        image[:, top : top + 6, left : left + 6] += 0.3
    images[CARRIERS, :, 5:8, 5:8] = 1.0
    return images


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[rw.RectificationDashboard] = []

    def build(*given: Any, **options: Any) -> rw.RectificationDashboard:
        usual: dict[str, Any] = {"session": Session(synchronous=True), "attribution": "saliency"}
        made.append(rw.RectificationDashboard(*given, **(usual | options)))
        return made[-1]

    yield build
    for dashboard in made:
        dashboard.close()


def executed(dashboard: rw.RectificationDashboard, **given: Any) -> Sequence[RankOneEdit]:
    """The edits that the code makes."""
    names: dict[str, Any] = dict(given)
    exec(dashboard.code, names)  # noqa: S102 - what a user would run
    edits: Sequence[RankOneEdit] = names["edits"]
    assert dashboard.model is not None
    state = names["repaired"].state_dict()
    for name, value in dashboard.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    return edits


def assert_same(edits: Sequence[RankOneEdit], others: Sequence[RankOneEdit]) -> None:
    assert [one.layer for one in edits] == [one.layer for one in others]
    for one, other in zip(edits, others, strict=True):
        assert torch.equal(one.left, other.left)
        assert torch.equal(one.right, other.right)


def test_from_references_alone_to_a_file(make: Make, tmp_path: Path) -> None:
    model, images = shortcut(), references()
    dashboard = make(model, reference=images, classes=["ant", "bee", "cat", "dog"])
    assert dashboard.stage == "reveal"
    assert "no pairs yet" in dashboard.code
    found = dashboard.reveal().wait()
    assert [one.target for one in found.accused] == [0]
    assert set(found[0].inputs.tolist()) == set(CARRIERS)
    dashboard.go_on()
    assert dashboard.stage == "cleanse"
    assert dashboard.pairs is found[0].pairs is not None
    assert dashboard.painter is not None
    assert torch.equal(dashboard.painter.masks, found[0].mask)
    dashboard.go_on()
    assert dashboard.stage == "locate"
    assert dashboard.pairs is found[0].pairs, "nothing was painted anew"
    dashboard.locate().wait()
    dashboard.go_on()
    result = dashboard.rectify().wait()
    assert result.edits
    dashboard.go_on()
    assert dashboard.stage == "evaluate"
    dashboard.go_on()
    path = tmp_path / "fix.safetensors"
    dashboard.save(path).wait()
    shown = dashboard.way.html
    for words in ("1 accused", f"{len(dashboard.pairs)} pairs", "✓", "saved"):
        assert words in shown
    path.unlink()
    assert_same(executed(dashboard, model=model, reference=images), dashboard.edits)
    assert_same(rw.load_edits(path), dashboard.edits)
    assert not rw.reveal(result.model, images).accused


def test_from_one_picture(make: Make) -> None:
    model, images = shortcut(), references()
    odd = images[CARRIERS[:1]]
    dashboard = make(model, odd, reference=images[:40])
    assert dashboard.stage == "cleanse"
    painter = dashboard.painter
    assert painter is not None
    with pytest.raises(ValueError, match="masks: got no painted pixel"):
        dashboard.cleanse()
    masks = painter.masks.clone()
    masks[0, 5:8, 5:8] = True
    masks[0, 5, 8] = True  # no rectangle
    painter.masks, painter.fill = masks, "ring"
    dashboard.go_on()
    assert dashboard.stage == "locate"
    assert dashboard.pairs is not None
    assert torch.equal(dashboard.pairs.clean, rw.cleanse(odd, masks, "ring"))
    dashboard.rectify().wait()
    assert "np.unpackbits" in dashboard.code
    given = {"model": model, "reference": images[:40], "inputs": odd}
    assert_same(executed(dashboard, **given), dashboard.edits)
    painter.masks = masks.clone() & torch.ones(SIDE, SIDE).triu().bool()
    dashboard.stage = "cleanse"
    dashboard.go_on()
    assert dashboard.edits == [], "other pairs begin another repair"
    assert dashboard.result is None
    assert dashboard.model is model


def test_from_selected_references(make: Make) -> None:
    model, images = shortcut(), references()
    dashboard = make(model, reference=images)
    assert dashboard.suspicions is not None
    dashboard.suspicions.selected = (40, 3)
    dashboard.go_on()
    painter = dashboard.painter
    assert painter is not None
    assert torch.equal(painter.inputs, images[[3, 40]])
    masks = painter.masks.clone()
    masks[:, 5:8, 5:8] = True
    painter.masks = masks
    dashboard.go_on()
    dashboard.edit().wait()
    assert "reference[[3, 40]]" in dashboard.code
    assert "masks[1, 5:8, 5:8] = True" in dashboard.code
    assert_same(executed(dashboard, model=model, reference=images), dashboard.edits)


def test_edits_in_turn_undone_and_made_again(make: Make) -> None:
    model, images = shortcut(), references()
    clean = images[[6, 7, 9]]
    corrupted = clean.clone()
    corrupted[:, :, 5:8, 5:8] = 1.0
    pairs = rw.SamplePairs(corrupted, clean)
    dashboard = make(model, pairs, reference=images[:40], max_rounds=3, refine_steps=0)
    assert dashboard.stage == "locate"
    dashboard.layer = "3"
    dashboard.edit().wait()
    dashboard.layer = "1"
    dashboard.edit().wait()
    given = {"model": model, "pairs": pairs, "reference": images[:40]}
    assert_same(executed(dashboard, **given), dashboard.edits)
    dashboard.undo().wait()
    assert "layer='3'" in dashboard.code
    assert "layer='1'" not in dashboard.code
    assert_same(executed(dashboard, **given), dashboard.edits)
    dashboard.undo().wait()
    dashboard.max_degradation = 0.05
    assert dashboard.rectify().wait().edits
    dashboard.edit().wait()
    assert "max_degradation=0.05" in dashboard.code
    assert "max_rounds=3" in dashboard.code
    assert "layer='3'" not in dashboard.code
    for step in range(len(dashboard.edits), 0, -1):
        dashboard.history.step = step
        assert_same(executed(dashboard, **given), dashboard.edits)
    dashboard.history.branch = 0
    assert [edit.layer for edit in dashboard.edits] == ["3", "1"]
    assert_same(executed(dashboard, **given), dashboard.edits)


def test_every_step_can_be_looked_at_and_skipped(make: Make) -> None:
    dashboard = make(shortcut(), reference=references())
    buttons = dashboard._controls.buttons
    for stage in ("cleanse", "locate", "rectify", "evaluate", "save"):
        dashboard.go_on()
        assert dashboard.stage == stage
        assert dashboard.error is None
    assert all(button.disabled for button in buttons.values())
    assert "A repair starts from pairs" in texts(dashboard)
    assert dashboard._controls.onward.disabled
    with pytest.raises(ValueError, match="pairs: got none yet"):
        dashboard.rectify()
    dashboard.way.act({"set": {"stage": "reveal"}})
    assert dashboard.stage == "reveal"
    dashboard.way.act({"set": {"stage": "revael"}})
    assert "did you mean 'reveal'" in str(dashboard.error)


def test_the_code_is_shown_and_follows(make: Make) -> None:
    images = references()
    dashboard = make(shortcut(), images[CARRIERS[:1]], reference=images)
    assert "rw-code" not in texts(dashboard)
    dashboard.toggle_code()
    assert "There are no pairs yet" in texts(dashboard)
    masks = dashboard.painter.masks.clone()  # type: ignore[union-attr]
    masks[:, 5:8, 5:8] = True
    dashboard.painter.masks = masks  # type: ignore[union-attr]
    dashboard.cleanse().wait()
    assert "rw.cleanse(" in texts(dashboard)
    dashboard.toggle_code()
    assert "rw.cleanse(" not in texts(dashboard)


def test_the_code_names_no_edits_of_others() -> None:
    recipe = Recipe(validation=False, reference=None)
    recipe.given()
    stranger: Any = object()
    with pytest.raises(ValueError, match="did not make"):
        recipe.code([stranger])


def test_what_it_starts_from_is_checked(make: Make) -> None:
    with pytest.raises(ValueError, match="pairs: got None without references"):
        make(shortcut())
    with pytest.raises(TypeError, match="pairs: got list, want SamplePairs, odd inputs"):
        make(shortcut(), [1], reference=references())
    with pytest.raises(ValueError, match="reference: got None, want inputs to search"):
        make(shortcut(), references()[:2]).reveal()


@pytest.mark.parametrize("loader", [False, True])
def test_the_code_reads_references_of_any_kind(make: Make, *, loader: bool) -> None:
    model, images = shortcut(), references()
    stored = TensorDataset(images)
    given: Any = DataLoader(stored, 16) if loader else stored
    dashboard = make(model, reference=given)
    assert dashboard.suspicions is not None
    dashboard.suspicions.selected = (3, 40)
    dashboard.go_on()
    assert dashboard.painter is not None
    masks = dashboard.painter.masks.clone()
    masks[:, 5:8, 5:8] = True
    dashboard.painter.masks = masks
    dashboard.cleanse().wait()
    dashboard.edit().wait()
    assert_same(executed(dashboard, model=model, reference=given), dashboard.edits)
