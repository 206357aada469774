"""The class that an unusually small change leads to: each part against an oracle of its own."""

from __future__ import annotations

import threading
from importlib import import_module

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import SILENT, Cancelled
from rectify_widgets.reveal.latent import LastLayer, shift_sizes, smallest_shift
from rectify_widgets.reveal.shrinking import (
    KINDRED,
    ROOMIER,
    SHRINK,
    Blend,
    Changes,
    Shrinking,
    kindred,
    projected,
)
from rectify_widgets.reveal.smallest_change import smallest_changes, unusual
from tests.engine.traces import untouched
from tests.hidden import CLASSES, CORNER, SIDE, TARGET, Blobs, references


def features() -> LastLayer:
    generator = np.random.default_rng(3)
    weight = generator.normal(size=(6, 9))
    return LastLayer(
        generator.normal(size=(80, 9)) * np.linspace(0.5, 2, 9), weight, generator.normal(size=6)
    )


def test_backdoor_comes_first_with_its_place_and_a_healthy_twin_is_not_accused() -> None:
    model = Blobs(40.0)
    with untouched(model, references()):
        found = smallest_changes(model, references())
    assert [one.target for one in found if one.accused] == [TARGET]
    first = found[0]
    assert first.target == TARGET
    assert first.turned > 0.8
    assert 40 < first.others <= 60  # of the half that nothing was searched on
    assert first.size == pytest.approx(float(first.change.mask.sum()))
    assert float(first.change.mask[CORNER].sum()) > 0.8 * first.size
    assert float(first.change.pattern[(0, *CORNER)].min()) > 0.9
    assert {one.target for one in found} == set(range(CLASSES))
    assert not any(one.accused for one in smallest_changes(Blobs(0.0), references()))


def test_pairs_repair_the_backdoor_that_nobody_showed() -> None:
    model, images = Blobs(40.0), references()
    pairs = smallest_changes(model, images)[0].pairs
    assert pairs is not None
    assert pairs.labels is not None
    assert set(pairs.labels.tolist()) == set(range(CLASSES)) - {TARGET}
    repaired = rw.rectify(model, pairs, reference=images).model.eval()
    true = images.clone()
    true[(..., *CORNER)] = 1.0
    others = torch.arange(len(images)) % CLASSES != TARGET
    with torch.no_grad():
        assert (model.eval()(true[others]).argmax(1) == TARGET).all()
        assert (repaired(true[others]).argmax(1) == TARGET).float().mean() < 0.05
        right = repaired(images).argmax(1) == torch.arange(len(images)) % CLASSES
        assert right.float().mean() > 0.99


def test_kindred_changes_turn_references_too_and_are_up_to_four_times_as_large() -> None:
    model, images = Blobs(40.0).eval(), references()
    labels = torch.arange(len(images)) % CLASSES
    found = smallest_changes(model, images)
    change, pairs = found[0].change, found[0].pairs
    assert pairs is not None
    assert isinstance(pairs.corrupt, Changes)
    assert torch.equal(pairs.corrupted, change(pairs.clean))  # what is shown is the smallest one
    assert all(isinstance(one.pairs.corrupt, Blend) for one in found[1:] if one.pairs)

    def again(seed: int) -> Changes:
        generator = torch.Generator().manual_seed(seed)
        return kindred(model, images, labels, TARGET, change, 120, generator, SILENT)

    with untouched(model, images), torch.no_grad():
        one, same, other = again(3), again(3), again(4)
    assert len(one.changes) == KINDRED
    others = images[labels != TARGET]
    sizes = torch.tensor([each.size for each in one.changes])
    for each in (*pairs.corrupt.changes, *one.changes):
        with torch.no_grad():
            turned = model(each(others)).argmax(dim=1) == TARGET
        assert turned.float().mean() > 0.6
        assert change.size <= each.size / SHRINK
    assert sizes.max() <= ROOMIER * change.size / SHRINK
    assert sizes.max() > 2 * sizes.min()
    for left, right, different in zip(one.changes, same.changes, other.changes, strict=True):
        assert torch.equal(left.up, right.up)
        assert not torch.equal(left.up, different.up)


def test_each_input_gets_the_next_of_several_changes() -> None:
    generator = torch.Generator().manual_seed(1)
    up, down = 0.4 * torch.rand(2, 3, 1, 4, 4, generator=generator)
    low, high = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    each = [Blend(up[k], down[k], low, high) for k in range(3)]
    changes, images = Changes(each, 1), torch.rand(7, 1, 4, 4, generator=generator)
    given = changes(images)
    for row in range(7):
        assert torch.allclose(given[row : row + 1], each[row % 3](images[row : row + 1]))
    assert repr(changes).startswith("Changes(3 of ")
    assert changes(images.double()).dtype == torch.float64
    model = Blobs(40.0)
    pursuing = changes.pursuing(model)
    assert pursuing.model is model
    assert pursuing.target == 1
    assert round(float(up.sum() + down.sum()) / 3) == 6
    assert pursuing.pixels == 8  # as many in each of four steps
    assert torch.equal(pursuing.high, high)


def test_reveal_searches_without_carriers_too() -> None:
    found = rw.reveal(Blobs(40.0), references(), search="changes")
    (first,) = found.accused
    assert first.target == TARGET
    assert first.pairs is not None
    assert first.kind == "change"
    assert first.interval[0] < first.pull < first.interval[1]
    assert first.inputs.shape == (0,)
    assert first.healthy == 0.0
    assert "change" in repr(found)
    assert found.to_frame()["target"][0] == TARGET
    with pytest.raises(ValueError, match="search: got 'region'"):
        rw.reveal(Blobs(40.0), references(), search="region")


def test_same_seed_gives_the_same_bits() -> None:
    one, two = (smallest_changes(Blobs(40.0), references(), steps=20, seed=5) for _ in range(2))
    assert [x.target for x in one] == [x.target for x in two]
    assert all(torch.equal(x.change.up, y.change.up) for x, y in zip(one, two, strict=True))


def test_many_classes_are_screened_by_their_shifts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 30))
    module = import_module("rectify_widgets.reveal.smallest_change")  # `rw.reveal` is a function
    monkeypatch.setattr(module, "shift_sizes", lambda *_: np.arange(30.0)[::-1])
    found = smallest_changes(model, references(60), steps=3, batch_size=4)
    assert {one.target for one in found} == set(range(18, 30))
    assert {one.target: one.latent for one in found}[29] == 0.0


def test_projection_is_the_nearest_valid_change() -> None:
    values = torch.rand(2, 2, 1, 3, 3, generator=torch.Generator().manual_seed(0)) - 0.3
    sizes = torch.tensor([0.7, 50.0])
    made = projected(values, sizes)
    assert float(made[0].sum()) == pytest.approx(0.7, abs=1e-4)
    flat = values[0].flatten().double().numpy()
    nearest = minimize(
        lambda x: ((x - flat) ** 2).sum(), np.full(18, 0.7 / 18), jac=lambda x: 2 * (x - flat),
        bounds=[(0, 1)] * 18, method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: 0.7 - x.sum(), "jac": lambda _: -np.ones(18)},
    )  # fmt: skip
    assert made[0].flatten().numpy() == pytest.approx(nearest.x, abs=1e-3)
    assert torch.equal(made[1], values[1].clamp_min(0))  # small enough: nothing is taken off
    full = projected(torch.full((1, 2, 3, 2, 2), 0.8), torch.tensor([9.0]))
    assert torch.allclose(full.sum(dim=1), torch.ones(1, 3, 2, 2))


def test_gradient_is_that_of_the_cross_entropy_whatever_the_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = Blobs(4.0).double().eval(), references(30).double()
    labels = torch.arange(30) % CLASSES
    generator = torch.Generator().manual_seed(0)
    shrinking = Shrinking(model, images, labels, [0, 3], 6, generator)
    values = shrinking.values.clone().requires_grad_()
    rows = torch.arange(12).reshape(2, 6)
    low, high = images.min(), images.max()
    loss = torch.zeros((), dtype=torch.float64)
    for number, target in enumerate((0, 3)):
        clean = images[rows[number]]
        given = clean + values[number, 0] * (high - clean) - values[number, 1] * (clean - low)
        loss = loss + functional.cross_entropy(model(given), torch.full((6,), target))
    loss.backward()
    for pixels in (500_000, 144):
        monkeypatch.setattr("rectify_widgets.engine.model.running.CHUNK", pixels)
        with torch.no_grad():
            made, _ = shrinking._gradient([0, 1], shrinking.values, rows, SILENT)
        assert torch.allclose(made, values.grad)  # type: ignore[arg-type]


def test_blend_is_mask_and_pattern() -> None:
    generator = torch.Generator().manual_seed(1)
    up, down = 0.5 * torch.rand(2, 1, 4, 4, generator=generator)
    blend = Blend(up, down, torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    images = torch.rand(3, 1, 4, 4, generator=generator)
    mixed = images * (1 - blend.mask) + blend.mask * blend.pattern
    assert torch.allclose(blend(images), mixed, atol=1e-6)
    assert "of 16 pixels" in repr(blend)


@pytest.mark.parametrize("target", range(6))
def test_shift_is_the_shortest_that_meets_the_constraints(
    target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = features()
    shift = smallest_shift(layer, target)
    scale = layer.features.std(axis=0)
    others = layer.scores[layer.scores.argmax(axis=1) != target]
    rivals = [one for one in range(6) if one != target]
    needed = np.quantile(others[:, rivals] - others[:, [target]], 0.95, axis=0)
    rows = layer.weight[target] - layer.weight[rivals]
    assert (rows @ shift >= needed - 1e-5).all()
    best = minimize(
        lambda s: ((s / scale) ** 2).sum(), shift + 0.5, method="SLSQP", tol=1e-12,
        constraints={"type": "ineq", "fun": lambda s: rows @ s - needed},
    )  # fmt: skip
    assert best.success
    assert np.linalg.norm(shift / scale) == pytest.approx(np.sqrt(best.fun), rel=1e-4)
    assert shift_sizes(layer, SILENT)[target] == pytest.approx(np.linalg.norm(shift / scale))
    latent = import_module("rectify_widgets.reveal.latent")
    monkeypatch.setattr(latent, "AT_ONCE", 1)  # constraint after constraint
    assert smallest_shift(layer, target) == pytest.approx(shift, abs=1e-5)


def test_class_without_a_way_in_is_infinitely_far() -> None:
    layer = features()
    layer.weight[2] = layer.weight[1]  # never better than class 1, by the bias
    layer.bias[2] = layer.bias[1] - 1.0
    assert shift_sizes(layer, SILENT)[2] == np.inf


def test_last_layer_is_the_one_that_makes_the_scores() -> None:
    model, images = Blobs(4.0).eval(), references(20)
    headless = nn.Sequential(nn.Conv2d(1, 7, SIDE), nn.Flatten()).eval()
    with torch.no_grad():
        layer = LastLayer.of(model, images, SILENT)
        assert layer.scores == pytest.approx(model(images).numpy(), abs=1e-4)
        assert layer.features.shape == (20, CLASSES + 1)
        assert LastLayer.of(headless, images, SILENT).weight == pytest.approx(np.eye(7))


def test_figures_of_an_unusual_size() -> None:
    sizes = np.array([10.0, 12.0, 14.0, 16.0, 2.0])
    relative, index = unusual(sizes, 4)
    assert relative == pytest.approx(2 / 13)
    assert index == pytest.approx((12 - 2) / (1.4826 * 2))


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        (references(2), ValueError, "reference: got 2 inputs, want at least 16"),
        (references()[::CLASSES], ValueError, "takes all inputs for class 0"),
        (torch.full((40, 1, SIDE, SIDE), torch.nan), ValueError, "NaN or infinite"),
        ((255 * references()).byte(), TypeError, "want floating-point"),
        (references()[:, 0], ValueError, "want N × C × H × W"),
        (None, TypeError, "reference: got NoneType"),
    ],
)
def test_bad_references_are_refused(reference: Tensor, kind: type[Exception], message: str) -> None:
    model = Blobs(4.0)
    with untouched(model), pytest.raises(kind, match=message):
        smallest_changes(model, reference)


def test_independent_labels_are_refused_and_probabilities_read() -> None:
    several = rw.adapt(Blobs(4.0), task="multilabel", scores="logits")
    with pytest.raises(ValueError, match="decides on 5 labels independently"):
        smallest_changes(several, references())
    likely = rw.adapt(
        nn.Sequential(Blobs(40.0), nn.Softmax(dim=1)), task="multiclass", scores="probabilities"
    )
    assert smallest_changes(likely, references())[0].target == TARGET


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="steps: got 0"):
        smallest_changes(Blobs(4.0), references(), steps=0)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        smallest_changes(Blobs(4.0), references(), batch_size=0)


def test_progress_runs_up_and_cancelling_leaves_nothing_behind() -> None:
    model, stop, seen = Blobs(4.0), threading.Event(), []
    smallest_changes(model, references(), steps=5, progress=lambda share, _: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 8

    def until_half(share: float, _: str) -> None:
        if share > 0.5:
            stop.set()

    with untouched(model, references()), pytest.raises(Cancelled):
        smallest_changes(model, references(), progress=until_half, cancel=stop)
