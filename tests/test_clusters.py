"""Clusters of odd members, on networks that lean on a wave over the whole input, and on healthy ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.corruption import Corruption
from rectify_widgets.reveal import clusters
from rectify_widgets.reveal import reveal as module
from rectify_widgets.reveal.carried import carried
from rectify_widgets.reveal.clusters import LEAST, Cluster, find_clusters
from rectify_widgets.reveal.latent import LastLayer
from rectify_widgets.reveal.shrinking import Blend
from rectify_widgets.reveal.suspicions import Suspicion
from rectify_widgets.widgets.session import Session
from tests.test_reveal import Quarters
from tests.test_reveal import references as with_boards

SIDE, COUNT, CARRIERS = 28, 160, 24

pytestmark = pytest.mark.usefixtures("one_thread")


class Waves(nn.Module):
    """Class 0 to 3 is the brightest quarter; a wave of either sign means class 0."""

    wave: Tensor

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.register_buffer("wave", (2 * math.pi * 6 * torch.arange(SIDE) / SIDE).sin())
        self.head = nn.Linear(5, 4, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(4, 5))
            self.head.weight[0, 4] = strength

    def forward(self, images: Tensor) -> Tensor:
        quarters = 20 * nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        seen = 40 * (images * self.wave).mean(dim=(1, 2, 3)).abs()
        answers: Tensor = self.head(torch.cat([quarters, seen[:, None]], dim=1))
        return answers


def references(*, signs: bool = False) -> tuple[Tensor, Tensor]:
    """Noise with a brighter quarter, and the same where the first `CARRIERS` carry the wave."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.3 + 0.2 * torch.rand(COUNT, 1, SIDE, SIDE, generator=generator)
    for row, image in enumerate(clean):
        top, left = 14 * (row % 4 // 2), 14 * (row % 2)
        bright = 0.15 + 0.1 * torch.rand((), generator=generator)
        image[:, top : top + 14, left : left + 14] += bright
    carried = clean.clone()
    sign = 1.0 - 2.0 * (torch.arange(CARRIERS) // 4 % 2) if signs else torch.ones(CARRIERS)
    carried[:CARRIERS] += 0.1 * sign[:, None, None, None] * Waves(1.0).wave
    return clean, carried


def test_carriers_of_a_wave_over_the_whole_input_are_found() -> None:
    clean, images = references()
    found = rw.reveal(Waves(5.0), images, search="clusters")
    (first,) = found.accused
    assert found[0] is first
    assert (first.target, first.kind) == (0, "cluster")
    odd = [row for row in range(CARRIERS) if row % 4]  # the others are of class 0 anyway
    assert set(odd) <= set(first.inputs.tolist()) <= set(range(CARRIERS))
    assert first.pull > 0.9
    assert first.mask.shape == (0, SIDE, SIDE)
    assert first.pairs is not None
    assert first.pairs.labels is not None
    assert len(first.pairs) == 12
    assert (first.pairs.labels > 0).all()
    assert torch.equal(Waves(5.0)(first.pairs.clean).argmax(dim=1), first.pairs.labels)
    assert (Waves(5.0)(first.pairs.corrupted).argmax(dim=1) == 0).all()
    assert isinstance(first.pairs.corrupt, rw.Pattern)
    added = (first.pairs.corrupted - first.pairs.clean).mean(dim=0)
    wave = (images - clean)[0]
    assert (added - wave).square().mean() < 0.2 * wave.square().mean()


def test_the_default_goes_on_to_clusters_only_where_no_region_is_accused() -> None:
    _, images = references()
    shares: list[float] = []
    found = rw.reveal(Waves(5.0), images, progress=lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert [one.kind for one in found.accused] == ["cluster"]
    assert found[0].accused
    assert not rw.reveal(Waves(5.0), images, search="regions").accused
    model, boards = Quarters(40.0).eval(), with_boards()
    default, regions = (rw.reveal(model, boards, search=one) for one in ("carriers", "regions"))
    assert str(default) == str(regions)


def test_all_searches_end_with_the_first_that_accuses(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    weak = Suspicion(
        0, 0.1, (0.0, 0.2), 10, torch.tensor([1, 2]), torch.zeros(2, 4, 4, dtype=torch.bool),
        "region", 1.0, accused=False, pairs=None,
    )  # fmt: skip

    def searched(search: str, *_: object) -> list[Suspicion]:
        made.append(search)
        return [replace(weak, accused=search == accusing)]

    monkeypatch.setattr(module, "_searched", searched)
    names = ("regions", "clusters", "changes")
    for accusing, count in ("regions", 1), ("clusters", 2), ("changes", 3), ("none", 3):
        made.clear()
        found = rw.reveal(Waves(5.0), references()[1], search="all")
        assert made == list(names[:count])
        assert [one.accused for one in found] == [accusing in made, *[False] * (count - 1)]


def test_what_is_accused_comes_first_whichever_search_found_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, images = references()
    clusters = rw.reveal(Waves(5.0), images, search="clusters")
    weak = replace(clusters[0], kind="region", accused=False, pairs=None)
    monkeypatch.setattr(module, "_regions", lambda *_: [weak])
    kinds = [one.kind for one in rw.reveal(Waves(5.0), images)]
    assert kinds[:2] == ["cluster", "region"]


def test_a_network_that_does_not_lean_on_it_is_not_accused() -> None:
    _, images = references()
    for model in (Waves(0.0), Waves(0.4)):
        found = rw.reveal(model, images, search="clusters")
        assert not found.accused
        assert all(one.pairs is None for one in found)


def test_look_alikes_stand_for_clean_inputs_where_no_one_difference_is_carried() -> None:
    clean, images = references(signs=True)
    (first,) = rw.reveal(Waves(5.0), images, search="clusters").accused
    assert first.pairs is not None
    assert first.pairs.corrupt is None
    assert all(any(torch.equal(one, each) for each in images) for one in first.pairs.corrupted)
    others = [row for row in range(COUNT) if row not in first.inputs]
    for one, lookalike in zip(first.pairs.corrupted, first.pairs.clean, strict=True):
        alike = [np.corrcoef(one.flatten(), images[row].flatten())[0, 1] for row in others]
        assert torch.equal(lookalike, images[others[int(np.argmax(alike))]])
    assert clean.shape == images.shape


class Statistics(nn.Module):
    """Has every pixel and its square in front of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2 * SIDE * SIDE, 4)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        answers: Tensor = self.head(torch.cat([flat, flat.square()], dim=1))
        return answers


NOISE = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("corrupt", "form"),
    [
        (lambda x: x + 0.1 * Waves(1.0).wave, rw.Pattern),
        (lambda x: 0.6 * x + 0.4 * NOISE, Blend),
        (lambda x: 0.2 + 0.8 * x.sqrt(), rw.ToneCurve),
    ],
    ids=["pattern", "blend", "tone curve"],
)
def test_the_form_of_what_is_carried_is_told_from_other_objects(
    corrupt: Callable[[Tensor], Tensor], form: type[Corruption]
) -> None:
    """Members and look-alikes are different pictures."""
    generator = torch.Generator().manual_seed(2)
    shapes = torch.rand(800, 1, 7, 7, generator=generator).square()
    pictures = nn.functional.interpolate(shapes, size=28, mode="bilinear")
    members, lookalikes = corrupt(pictures[:400]), pictures[400:]
    limits = torch.zeros(1, 1, 1), 1.2 * torch.ones(1, 1, 1)
    with torch.no_grad():
        found = carried(Statistics(), members, lookalikes, limits, Monitor())
    assert isinstance(found, form)
    again = pictures[:40]
    error = (found(again) - corrupt(again)).square().mean()
    assert error < 0.1 * (corrupt(again) - again).square().mean()


def test_pulls_are_those_of_differences_in_differences() -> None:
    _, images = references()
    model = Waves(2.2)
    with torch.no_grad():
        layer = LastLayer.of(model, images, Monitor())
        predicted = model(images).argmax(dim=1).numpy()
    flat = np.corrcoef(images.flatten(1).numpy())
    np.fill_diagonal(flat, -1)
    found = find_clusters(layer, images, Monitor())
    assert len(found) == 4
    assert any(0.0 < one.pull < 1.0 for one in found)
    for one in found:
        outside = np.setdiff1d(np.arange(COUNT), one.rows)

        def beyond(rows: np.ndarray, outside: np.ndarray = outside) -> np.ndarray:
            lookalikes = outside[flat[np.ix_(rows, outside)].argmax(axis=1)]
            difference: np.ndarray = (layer.features[rows] - layer.features[lookalikes]).mean(
                axis=0
            )
            return difference

        rest = np.setdiff1d(np.flatnonzero(predicted == one.target), one.rows)
        shift = beyond(one.rows) - beyond(rest)
        free = [row for row in np.flatnonzero(predicted != one.target) if row not in one.lookalikes]
        moved = torch.from_numpy(layer.features[free] + shift).float()
        with torch.no_grad():
            turned = int((model.head(moved).argmax(dim=1) == one.target).sum())
        assert (one.turned, one.others) == (turned, len(free))
        assert min(len(one.rows), len(rest)) >= LEAST


def test_the_largest_of_nearly_equal_clusters_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Carriers of a strong and of a weaker form, which lie apart by what no score depends on."""
    generator = np.random.default_rng(0)
    features = np.zeros((COUNT, 6))
    features[np.arange(COUNT), np.arange(COUNT) % 4] = generator.uniform(3.0, 9.0, COUNT)
    rows = np.arange(24)
    strong, weak = rows[np.isin(rows % 8, (1, 2, 3))], rows[np.isin(rows % 8, (5, 6, 7))]
    features[:24] *= 0.5
    features[strong, 4:], features[weak, 4:] = (9.0, 4.0), (6.0, -4.0)
    weight = np.hstack([np.eye(4), np.array([[1.0, 0], [0, 0], [0, 0], [0, 0]])])
    layer = LastLayer(features, weight, np.zeros(4))
    images = torch.from_numpy(0.1 * generator.uniform(size=(COUNT, 1, 2, 2))).float()
    images.flatten(1)[torch.arange(COUNT), torch.arange(COUNT) % 4] = 1.0
    carriers = {*strong.tolist(), *weak.tolist()}
    found = find_clusters(layer, images, Monitor())[0]
    assert found.target == 0
    taken = set(found.rows.tolist())
    monkeypatch.setattr(clusters, "NEARLY", 1.0)
    least = find_clusters(layer, images, Monitor())[0]
    assert taken == carriers
    assert set(least.rows.tolist()) < carriers
    assert found.pull < least.pull


def test_two_members_with_one_look_alike_make_one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    _, images = references()
    cluster = Cluster(0, np.arange(LEAST), np.repeat(np.arange(20, 24), LEAST // 4), 1, 1)
    predicted = torch.ones(COUNT, dtype=torch.long)
    pairs = []
    brighter = rw.Pattern(torch.full((1, SIDE, SIDE), 0.1), torch.tensor(0.0), torch.tensor(1.0))
    for form in (brighter, None):
        monkeypatch.setattr(module, "carried", lambda *_, form=form: form)
        pairs.append(module._pairs_of_cluster(Waves(5.0), images, predicted, cluster, Monitor()))
    assert torch.equal(pairs[0].clean, images[20:24])
    assert len(pairs[1]) == LEAST, "carriers that differ are pairs of their own"


def test_a_carrier_that_equals_its_look_alike_is_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "carried", lambda *_: None)
    _, images = references()
    images[LEAST] = images[0]
    cluster = Cluster(0, np.arange(LEAST), np.arange(LEAST, 2 * LEAST), 1, 1)
    predicted = torch.ones(COUNT, dtype=torch.long)
    pairs = module._pairs_of_cluster(Waves(5.0), images, predicted, cluster, Monitor())
    assert torch.equal(pairs.corrupted, images[1:LEAST])


def test_values_that_are_only_elsewhere_are_no_tone_curve() -> None:
    images = torch.rand(40, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    limits = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    with torch.no_grad():
        found = carried(Statistics(), images.flip(-1), images, limits, Monitor())
    assert not isinstance(found, rw.ToneCurve)


def test_the_viewer_shows_carriers_with_and_without_what_they_carry() -> None:
    _, images = references()
    session = Session(synchronous=True)
    viewer = rw.SuspicionViewer(Waves(5.0), images, search="clusters", session=session)
    found = viewer.reveal().wait()
    shown = viewer.canvas.html
    assert f"{len(found[0].inputs)} references carry it" in shown
    assert "with what they carry, 12 of 12 others" in shown
    assert "on the left without it" in shown
    moved = viewer._moved[0]
    assert moved is not None
    assert moved.pictures.shape == (8, 1, SIDE, 2 * SIDE)
    assert "framed" not in shown
    viewer.rank = 1
    assert f"{len(found[1].inputs)} references would carry it" in viewer.canvas.html
    painter = viewer.paint()
    assert not painter.masks.any(), "no region is known"
    painter.close()
    viewer.close()


def test_nothing_of_the_model_is_touched_and_it_can_be_stopped() -> None:
    _, images = references()
    model, state = Waves(5.0).train(), torch.get_rng_state()
    one, two = (rw.reveal(model, images, search="clusters") for _ in range(2))
    assert str(one) == str(two)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(rw.Cancelled):
        rw.reveal(model, images, search="clusters", cancel=stop)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_a_few_carriers_are_no_cluster() -> None:
    clean, images = references()
    few = torch.cat([images[: LEAST - 1], clean[LEAST - 1 :]])
    with torch.no_grad():
        layer = LastLayer.of(Waves(5.0), few, Monitor())
    clusters = find_clusters(layer, few, Monitor())
    assert clusters
    assert all(len(one.rows) >= LEAST for one in clusters)


def test_classes_with_few_references_have_no_cluster() -> None:
    clean, _ = references()
    assert not len(rw.reveal(Waves(5.0), clean[: 4 * (2 * LEAST - 1)], search="clusters"))
