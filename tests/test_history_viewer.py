"""`HistoryViewer` by its traits, and what it draws, on edits made by hand."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import traitlets
from torch import nn

from rectify_widgets.engine.edit.edits import RankOneEdit, digest, load_edits
from rectify_widgets.engine.measure.judge import Verdict
from rectify_widgets.engine.repair.result import Rectification
from rectify_widgets.widgets.history import html as pieces
from rectify_widgets.widgets.history import viewer as histories
from rectify_widgets.widgets.history.viewer import HistoryViewer
from rectify_widgets.widgets.session import Job, Session
from tests.test_timeline import edit as named
from tests.test_timeline import trial
from tests.widget_fakes import network, texts

Bits = dict[str, torch.Tensor]


def bits(model: nn.Module) -> Bits:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: Bits) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def edit(model: nn.Module, layer: str, seed: int) -> RankOneEdit:
    """A random edit of a model as it is, applied to it."""
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, torch.Tensor)
    generator = torch.Generator().manual_seed(seed)
    made = RankOneEdit(
        layer,
        torch.randn(weight.shape[0], generator=generator),
        torch.randn(weight[0].numel(), generator=generator),
        tuple(weight.shape), "contrast", 0.1, "patch", digest(weight),
    )  # fmt: skip
    made.apply(model)
    return made


def rectification(layers: str = "036") -> Rectification:
    """One round a layer; each keeps its second trial, and a last round keeps none."""
    model = network()
    edits = [edit(model, layer, seed) for seed, layer in enumerate(layers)]
    steps = []
    for number, layer in enumerate(layers, start=1):
        gap = 0.5**number
        steps += [trial(number, "6"), trial(number, layer, kept=True, gap=gap)]
    steps.append(trial(len(layers) + 1, "0", gap=0.3))
    return Rectification(
        model, edits, steps, "dynamic", "no layer helps", 1.0, 0.5 ** len(layers), 0.01,
        torch.empty(0, dtype=torch.long), {}, 0.05, 0.2,
    )  # fmt: skip


def verdict(gap: float, loss: float = 0.0) -> Verdict:
    return Verdict(gap, 0.0, loss, 0.0)


def rows(viewer: HistoryViewer) -> list[str]:
    """Step and layer of each row of the list."""
    body = viewer.canvas.html.partition("<tbody>")[2]
    found = re.findall(r'<tr data-set="{&quot;step&quot;: \d+}"[^>]*>(.*?)</tr>', body)
    plain = (re.sub("<.*?>", " ", row).split() for row in found)
    return [" ".join(words[: 1 + (words[1] == "as") + 1]) for words in plain]


def click(viewer: HistoryViewer, name: str) -> None:
    viewer._buttons[name].click()


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(synchronous=True)
    yield made
    made.close()


@pytest.fixture
def viewer(session: Session) -> Iterator[HistoryViewer]:
    made = HistoryViewer(rectification(), session=session)
    yield made
    made.close()


# --- the model at a step -------------------------------------------------------------------------


def test_every_step_has_its_model(viewer: HistoryViewer) -> None:
    result = rectification()
    assert (viewer.step, len(viewer.edits)) == (3, 3)
    for step in (3, 1, 2):
        viewer.step = step
        assert viewer.model is not None
        assert same(viewer.model, bits(result.at(step)))
        assert [e.layer for e in viewer.edits] == list("036")[:step]
    viewer.step = 0
    assert viewer.model is None
    assert viewer.edits == []


def test_going_back_gives_the_same_model_while_it_is_kept(
    viewer: HistoryViewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {}
    for step in (1, 2, 3):
        viewer.step = step
        first[step] = viewer.model
    for step in (2, 0, 3, 1):
        viewer.step = step
        assert viewer.model is first.get(step)
    assert histories.COPIES >= 3
    monkeypatch.setattr(histories, "COPIES", 2)
    gone = weakref.ref(first.pop(2))
    viewer.step = 3
    gc.collect()
    assert gone() is None, "the model not seen for longest is let go"
    assert len(viewer._models) == 2
    viewer.step = 2
    assert viewer.model is not None


def test_the_models_given_stay_as_they_are(session: Session) -> None:
    result = rectification()
    before = bits(result.model)
    viewer = HistoryViewer(result, session=session)
    for step in (0, 2, 1, 3):
        viewer.step = step
        assert viewer.model is not result.model
    assert same(result.model, before)
    viewer.close()
    model = network()
    before = bits(model)
    viewer = HistoryViewer(model, session=session)
    viewer.append(result.edits)
    assert same(model, before)
    assert viewer.model is not None
    assert same(viewer.model, bits(result.model))
    viewer.close()


def test_a_model_that_was_changed_meanwhile_is_an_error_in_place(session: Session) -> None:
    result = rectification()
    viewer = HistoryViewer(result, session=session)
    with torch.no_grad():
        result.model.get_submodule("3").weight.zero_()  # type: ignore[operator]
    viewer.step = 1
    assert isinstance(viewer.error, ValueError)
    assert "✗ ValueError" in texts(viewer)
    viewer.step = 0
    assert viewer.error is None
    assert "✗" not in texts(viewer)
    viewer.close()


# --- buttons, rows and traits say the same -------------------------------------------------------


def test_undo_and_redo(viewer: HistoryViewer) -> None:
    end = viewer.model
    job = viewer.undo()
    assert isinstance(job, Job)
    assert job.wait() is viewer.model
    assert viewer.step == 2
    assert viewer.redo().wait() is end
    click(viewer, "undo")
    click(viewer, "undo")
    assert viewer.step == viewer._steps.slider.value == 1
    click(viewer, "redo")
    assert viewer.step == 2
    viewer.step = 3
    with pytest.raises(ValueError, match="redo: this is the last step"):
        viewer.redo()
    viewer.step = 0
    with pytest.raises(ValueError, match="undo: this is the model as given"):
        viewer.undo()


def test_what_cannot_be_done_cannot_be_pressed(viewer: HistoryViewer) -> None:
    def off() -> set[str]:
        return {name for name, button in viewer._buttons.items() if button.disabled}

    assert off() == {"redo", "branch_off"}
    viewer.step = 1
    assert off() == set()
    viewer.step = 0
    assert off() == {"undo", "save"}


def test_a_click_on_a_row_or_a_point_goes_to_its_step(viewer: HistoryViewer) -> None:
    assert rows(viewer) == ["0 as given", "1 0", "2 3", "3 6"]
    assert viewer.canvas.html.count("&quot;step&quot;: 2}") == 3, "a row, and a place in each chart"
    before = viewer.canvas.html
    sent: list[object] = []
    viewer.canvas.observe(sent.append, names=["html"])
    viewer.canvas.act({"set": {"step": 1}})
    assert viewer.step == 1
    assert viewer.canvas.marks == {"step": 1, "branch": 0}
    assert not sent, "a step is marked by the page"
    assert "Step 1 of 3, after editing 0: gap 50.0 %, degradation 1.0 %." in texts(viewer)
    assert "<title>Step 2: Gap 25.00 %</title>" in before
    viewer.canvas.act({"set": {"step": 9}})
    assert "want 0 to 3" in str(viewer.error)


def test_the_slider_and_bad_steps(viewer: HistoryViewer) -> None:
    viewer._steps.slider.value = 2
    assert viewer.step == 2
    for bad in (-1, 4):
        with pytest.raises(ValueError, match="step: got"):
            viewer.step = bad
    with pytest.raises(traitlets.TraitError):
        viewer.step = 1.5  # type: ignore[assignment]
    with pytest.raises(ValueError, match="branch: got 1, want 0 to 0"):
        viewer.branch = 1
    with pytest.raises(ValueError, match="target_gap: got 2"):
        viewer.target_gap = 2.0
    assert (viewer.step, viewer.branch) == (2, 0)


def test_linked_views_follow(viewer: HistoryViewer) -> None:
    class View(traitlets.HasTraits):
        after = traitlets.Instance(nn.Module, allow_none=True)

    view = View()
    traitlets.dlink((viewer, "model"), (view, "after"))
    viewer.step = 1
    assert view.after is viewer.model
    viewer.step = 0
    assert view.after is None


# --- branches ------------------------------------------------------------------------------------


def test_branching_keeps_the_later_steps(viewer: HistoryViewer) -> None:
    result = rectification()
    end = viewer.model
    viewer.step = 1
    base = result.at(1)
    other = edit(base, "6", 9)
    viewer.append([other], [verdict(0.1, 0.02)])
    assert (viewer.branch, viewer.step) == (1, 2)
    assert viewer.model is not None
    assert same(viewer.model, bits(base))
    assert rows(viewer) == ["0 as given", "1 0", "2 6"]
    assert "rw-hidden" not in viewer._branches.box._dom_classes
    viewer.branch = 0
    assert (viewer.step, viewer.model is end) == (3, True)
    viewer._branches.list.value = 1
    assert (viewer.branch, viewer.step) == (1, 2)
    html = texts(viewer)
    assert "branch 0: 3 steps, gap 12.5 % leaves here" in html
    assert "branch 1, in view" in html
    assert viewer._branches.list.options[1][0] == "branch 1 from 1: 2 steps, gap 10.0 %"
    viewer.canvas.act({"set": {"branch": 0, "step": 2}})  # a point of the other branch
    assert (viewer.branch, viewer.step) == (0, 2)
    viewer.canvas.act({"do": {"show_branch": 1}})  # the line where it leaves
    assert (viewer.branch, viewer.step) == (1, 2)


def test_branch_off(viewer: HistoryViewer) -> None:
    assert "rw-hidden" in viewer._branches.box._dom_classes
    with pytest.raises(ValueError, match="go back to an earlier step"):
        viewer.branch_off()
    viewer.step = 2
    kept = viewer.model
    assert viewer.branch_off().wait() is kept
    assert (viewer.branch, viewer.step, len(viewer.timeline.path)) == (1, 2, 3)
    assert viewer._steps.slider.max == 2
    viewer.branch = 0
    assert (viewer.step, viewer._steps.slider.max) == (3, 3)


def test_edits_go_where_they_were_made_from(viewer: HistoryViewer) -> None:
    started = viewer.timeline.here.number
    model = rectification().at(3)
    made = edit(model, "0", 5)
    viewer.step = 1  # somebody looks elsewhere while the edit is being made
    viewer.append([made], [verdict(0.01)], parent=started, model=model)
    assert (viewer.branch, viewer.step) == (0, 4)
    assert viewer.model is model, "the model at hand is used"
    viewer.step = 1
    viewer.step = 4
    assert viewer.model is model


def test_append_refuses_what_does_not_fit(viewer: HistoryViewer) -> None:
    viewer.step = 1
    with pytest.raises(ValueError, match="figures: got 0 for 1 edits"):
        viewer.append([named("x")], [], parent=3)
    with pytest.raises(ValueError, match="number: got 9"):
        viewer.append([named("x")], parent=9)
    assert (viewer.step, len(viewer.timeline)) == (1, 4)
    viewer.append([], trials=[trial(1, "6")])
    assert (viewer.step, len(viewer.timeline)) == (1, 4)
    assert "after this step, 1 trial rolled back: too little of the gap (1)" in texts(viewer)


def test_a_history_that_grows(session: Session) -> None:
    model = network()
    viewer = HistoryViewer(model, session=session, controls=False, target_gap=0.1)
    assert repr(viewer) == "HistoryViewer(Sequential)"
    assert (viewer.step, viewer.model, viewer.status) == (0, None, "No edits yet.")
    assert "<svg" not in viewer.canvas.html, "there is nothing to draw"
    assert viewer._buttons.keys() == {"branch_off"}
    base = copy.deepcopy(model)
    viewer.append([edit(base, "3", 1)], [verdict(0.4, 0.003)])
    viewer.measured({0: verdict(0.9)})
    assert viewer.status == "Step 1 of 1, after editing 3: gap 40.0 %, degradation 0.3 %."
    assert "Gap over 1 step: 90.0 % as given, 40.0 % after step 1; target 10.0 %, not met." in (
        viewer.canvas.html
    )
    viewer.target_gap = 0.5
    assert "target 50.0 %, met." in viewer.canvas.html
    viewer.close()


# --- saving --------------------------------------------------------------------------------------


def test_saving_the_edits_up_to_here(viewer: HistoryViewer, tmp_path: Path) -> None:
    viewer.step = 2
    path = viewer.save(tmp_path / "two.safetensors").wait()
    model = network()
    load_edits(path).apply(model)
    assert viewer.model is not None
    assert same(model, bits(viewer.model))
    assert viewer.status == "Saved 2 edits to two.safetensors."
    viewer.file = str(tmp_path / "three.safetensors")
    viewer.step = 3
    click(viewer, "save")
    assert len(load_edits(tmp_path / "three.safetensors")) == 3
    viewer.file = str(tmp_path / "none" / "x.safetensors")
    click(viewer, "save")
    assert "want a file in a folder that exists" in texts(viewer)
    viewer.step = 0
    with pytest.raises(ValueError, match="save: there are no edits"):
        viewer.save(tmp_path / "zero.safetensors")
    with pytest.raises(TypeError, match="path: got int"):
        viewer.save(3)  # type: ignore[arg-type]


def test_bad_calls(session: Session) -> None:
    with pytest.raises(TypeError, match="rectification: got int, want a Rectification"):
        HistoryViewer(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="did you mean 'target_gap'"):
        HistoryViewer(network(), target=0.1)
    with pytest.raises(ValueError, match="max_degradation: got 7"):
        HistoryViewer(network(), max_degradation=7, session=session)


# --- what it shows -------------------------------------------------------------------------------


def test_static_view(viewer: HistoryViewer) -> None:
    viewer.step = 2
    html = viewer.still()
    assert html.count("<img") == 2
    assert "Gap over 3 steps: 100.0 % as given, 50.0 % after step 1" in html
    assert "target 20.0 %, met" in html
    assert "budget 5.0 %, met" in html
    assert '<tr data-chosen><td class="rw-right">▸ 2</td><td><code>3</code>' in html
    assert html.count("data-chosen") == 1
    assert html.count("<summary>") == 4
    assert "<script" not in html
    assert "✓ best of this round" in html
    assert "✓ 3 edits kept · ↺ 4 trials rolled back" in html


def test_long_histories_are_one_list(session: Session) -> None:
    viewer = HistoryViewer(nn.Identity(), session=session)
    count = 60

    class Nothing:
        layer = "x"
        settings = ""

        def apply(self, model: nn.Module) -> None:
            """Leave the model as it is."""

    things: list[Any] = [Nothing() for _ in range(count)]
    viewer.append(things, [verdict(0.5)] * count)
    assert rows(viewer)[-1] == f"{count} x"
    assert len(rows(viewer)) == count + 1
    assert len(viewer.canvas.html) < 90_000
    words = re.findall('aria-label="(.*?)"', viewer.canvas.html)
    assert words[0].count("after step") <= pieces.SPOKEN + 1
    viewer.close()
