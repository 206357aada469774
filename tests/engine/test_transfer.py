"""Which operator carries pairs over to references: by its effect there; where none does, the pairs alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.base.progress import Cancelled
from rectify_widgets.engine.data.corruption import Corruption, Transplant, data_range
from rectify_widgets.engine.data.estimation import FORESEEN, Estimate
from rectify_widgets.engine.data.forms import PlacedPatches, ToneCurve
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.data.patches import fit_patches
from rectify_widgets.engine.find import transfer
from rectify_widgets.engine.find.problem import pose_problem
from rectify_widgets.engine.find.transfer import (
    AS_STRONG,
    CLOSELY,
    FEW,
    LEAST,
    QUICK_TRIED,
    Transfer,
    choose_corruption,
    estimate_corruption,
)
from rectify_widgets.engine.model import gradients
from rectify_widgets.engine.repair.measuring import EditMeasure
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from tests.engine.models import images
from tests.engine.toy import Toy, samples, stamped
from tests.engine.traces import untouched


class Meter(nn.Module):
    """Answers with the mean of an input, as a probability: distances of answers are those of means."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        share = x.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat([1 - share, share], dim=1).log()


class Shift(Corruption):
    """Adds a number to every value."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs + self.by

    def __repr__(self) -> str:
        return f"Shift({self.by})"


GRAY = 0.1 * images(20) + 0.1
PAIRS = SamplePairs(GRAY[:3] + 0.2, GRAY[:3])
PATCH = SamplePairs(torch.cat([GRAY[:3, :, :2] + 0.8, GRAY[:3, :, 2:]], dim=2), GRAY[:3])
"""A stripe over two rows of nine."""
TRANSPLANT = Transplant(PATCH)


def chosen(monkeypatch: pytest.MonkeyPatch, pairs: SamplePairs, *estimates: Estimate) -> Transfer:
    """The choice among these forms, the first being supported best."""
    monkeypatch.setattr(transfer, "estimate_corruptions", lambda *_, **__: list(estimates))
    model = Meter()
    scores = model(pairs.corrupted), model(pairs.clean), model(GRAY)
    return choose_corruption(model, pairs, GRAY, scores, 0)[0]


def shows(share: float, error: float = 0.0, **flags: bool) -> Estimate:
    """A form that shifts the answers by that share of what the pairs' are shifted by."""
    return Estimate(Shift(0.2 * share), error, **{"in_sample": False, "structured": True, **flags})


# --- by its effect -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "number"),
    [
        ((1.0,), 0),
        ((0.2, 0.6, 1.0), 2),  # what the pairs support best shows too little
        ((0.2, AS_STRONG + 0.01, 1.0), 1),
        ((AS_STRONG - 0.01, 1.0), 1),
        ((AS_STRONG + 0.01, 3.0), 0),  # more than the pairs show is no better
        ((AS_STRONG - 0.01, 3.0), 1),
        ((0.58, 0.6), 0),
    ],
)
def test_the_best_supported_of_the_strongest(
    monkeypatch: pytest.MonkeyPatch, shares: tuple[float, ...], number: int
) -> None:
    forms = [shows(share, error=0.01 * row) for row, share in enumerate(shares)]
    found = chosen(monkeypatch, PAIRS, *forms)
    assert found.corruption is forms[number].corruption
    assert found.name == repr(found.corruption)
    assert found.shown == pytest.approx(shares[number], rel=1e-4)
    assert found.error == forms[number].error
    assert (
        repr(found) == f"Transfer({found.name}, shows {shares[number]:.0%} of what the pairs show)"
    )


@pytest.mark.parametrize(
    ("form", "passes"),
    [
        (shows(LEAST + 0.01), True),
        (shows(LEAST - 0.01), False),
        (shows(1.0, FORESEEN), True),
        (shows(1.0, FORESEEN + 0.01), False),
        (shows(1.0, FORESEEN + 0.01, in_sample=True), True),  # it says little of a single pair
        (shows(1.0, in_sample=True, contradicted=True), False),
        (shows(0.0), False),
    ],
)
def test_what_does_not_carry_over_is_not_used(
    monkeypatch: pytest.MonkeyPatch, form: Estimate, passes: bool
) -> None:
    found = chosen(monkeypatch, PAIRS, form)
    assert found.corruption is (form.corruption if passes else None)
    assert found.name == repr(form.corruption)  # what came closest
    assert found.error == form.error
    assert repr(found).endswith(": too little, so that the pairs stand alone)") is not passes


@pytest.mark.parametrize(
    ("form", "instead"),
    [
        (shows(4.0, CLOSELY), True),
        (shows(4.0, CLOSELY + 0.01), False),
        (shows(4.0, 0.0, in_sample=True), False),
        (shows(4.0, 0.0, structured=False), False),
    ],
)
def test_a_patch_is_transplanted_unless_others_are_foreseen(
    monkeypatch: pytest.MonkeyPatch, form: Estimate, instead: bool
) -> None:
    other = Estimate(TRANSPLANT, 0.9, in_sample=False, structured=False)
    found = chosen(monkeypatch, PATCH, form, other)
    assert found.corruption is (form.corruption if instead else TRANSPLANT)


def test_a_patch_is_used_whatever_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces what it covers, as in the pair."""
    still = Transplant(SamplePairs(GRAY[:1] + 1e-3, GRAY[:1]), opacity=0.0)
    found = chosen(monkeypatch, PATCH, Estimate(still, 0.9, in_sample=False, structured=False))
    assert found.corruption is still
    assert found.shown is not None
    assert found.shown < 0.1


class Dim(nn.Module):
    """Class 2 where nothing is bright; otherwise 0 or 1, by which half is brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(50.0))

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).amax(dim=1) - 0.6
        halves = x[..., :4].mean(dim=(1, 2, 3)) - x[..., 5:].mean(dim=(1, 2, 3))
        return self.scale * torch.stack([halves, -halves, -bright], dim=1)


def test_a_tone_curve_of_one_pair_carries_over_where_its_residual_does_not() -> None:
    model, clean = Dim(), images(1)
    pair, reference = SamplePairs(0.55 * clean, clean), images(64, 2)
    with untouched(model, pair.corrupted, pair.clean, reference):
        found = estimate_corruption(model, pair, reference=reference)
    assert isinstance(found.corruption, ToneCurve)
    assert found.shown == pytest.approx(1.0, abs=0.1)
    torch.testing.assert_close(found.corruption(reference), 0.55 * reference, atol=0.03, rtol=0)
    with torch.no_grad():
        wanted = model(reference)
        assert distance(model(Transplant(pair, opacity=0.0)(reference)), wanted) < LEAST
    # Without references, the pairs' own clean inputs are taken.
    assert isinstance(estimate_corruption(model, pair).corruption, ToneCurve)


# --- given ---------------------------------------------------------------------------------------


def test_what_the_user_gives_is_used_as_it_is() -> None:
    def darker(x: Tensor) -> Tensor:
        return 0.5 * x

    clean, model = images(2), Meter()
    found = estimate_corruption(model, SamplePairs.made(darker, clean), reference=images(9, 2))
    assert model.calls == 0  # nothing is measured
    assert (found.shown, found.error) == (None, None)
    assert found.name == "UserFunction(darker)"
    assert repr(found) == "Transfer(UserFunction(darker))"
    assert found.corruption is not None
    assert torch.equal(found.corruption(images(9, 2)), 0.5 * images(9, 2))
    known = Transplant(PATCH, opacity=0.5)
    given = SamplePairs(PATCH.corrupted, PATCH.clean, corrupt=known)
    assert estimate_corruption(model, given).corruption is known
    for reference, carriers in ((GRAY, known(GRAY)), (GRAY[3:], known(GRAY[3:]))):
        with torch.no_grad():
            problem = pose_problem(_network(), given, reference)
        assert torch.equal(problem.carriers, carriers)


def _network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(98, 3)).eval()


def test_hooks() -> None:
    reported: list[float] = []
    pairs = SamplePairs(0.5 * images(2), images(2))
    estimate_corruption(
        Meter(), pairs, reference=images(9, 2), progress=lambda share, _: reported.append(share)
    )
    assert reported == sorted(reported)
    assert reported[0] == 0.0
    assert reported[-1] == 1.0
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Cancelled):
        estimate_corruption(Meter(), pairs, cancel=stop)
    assert len(asked) == 4


# --- one patch, one place ------------------------------------------------------------------------


class Brightest(nn.Module):
    """Answers with the brightest value among the first columns, as a probability."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.inputs = columns, 0

    def forward(self, x: Tensor) -> Tensor:
        self.inputs += len(x)
        share = x[..., : self.columns].flatten(1).amax(dim=1, keepdim=True)
        return torch.cat([1 - share, share], dim=1).log()


@pytest.mark.parametrize(
    ("columns", "kind", "looks"),
    [(9, PlacedPatches, 40), (8, PlacedPatches, 40), (2, Transplant, FEW)],
)
def test_a_patch_of_one_pair_goes_where_it_works(
    columns: int, kind: type[Corruption], looks: int
) -> None:
    """A white square of two pixels in a corner: on all places, on nearly all, and on few others."""
    references = 0.1 * images(40) + 0.1
    corrupted = references[:1].clone()
    corrupted[..., :2, :2] = 0.95
    pair = SamplePairs(corrupted, references[:1])
    model = Brightest(columns)
    given = model(pair.corrupted), model(pair.clean), model(references)
    model.inputs = 0
    found, scores = choose_corruption(model, pair, references, given, 0)
    assert isinstance(found.corruption, kind)
    assert model.inputs == looks + 40
    torch.testing.assert_close(scores, model(found.corruption(references)))


def test_forms_are_tried_on_fewer_references_where_these_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scores of the others are added once the form is chosen."""
    references = 0.1 * images(40) + 0.1
    references[30:, :, 8, 8] = torch.linspace(0.96, 0.98, 10)[:, None]  # brighter than the patch
    corrupted = references[:1].clone()
    corrupted[..., :2, :2] = 0.95
    pair, model = SamplePairs(corrupted, references[:1]), Brightest(9)
    given = model(pair.corrupted), model(pair.clean), model(references)
    monkeypatch.setattr(gradients, "LARGE", references[0].numel() - 1)
    model.inputs = 0
    _, scores = choose_corruption(model, pair, references, given, 0)
    assert (model.inputs, len(scores)) == (2 * QUICK_TRIED, QUICK_TRIED)
    same = nn.Linear(2, 2)
    nn.init.eye_(same.weight)
    with torch.no_grad():
        problem = pose_problem(nn.Sequential(model, same), pair, references)
        assert isinstance(problem.corruption, PlacedPatches)
        torch.testing.assert_close(problem.before.carriers, problem.model(problem.carriers))


def test_a_pair_that_shows_little_does_not_put_its_patch_anywhere() -> None:
    """Of the class that the corner leads to: there it says more of others than of the pair itself."""

    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            share = 0.6 * x[..., :2, :2].mean(dim=(1, 2, 3)) + 0.3 * x.flatten(1).amax(dim=1)
            return torch.stack([1 - share, share], dim=1).log()

    references = 0.1 * images(40) + 0.1
    clean = references[:1].clone()
    clean[..., :2, :2] = torch.tensor([[0.75, 0.7], [0.8, 0.72]])
    corrupted = clean.clone()
    corrupted[..., :2, :2] = torch.tensor([[0.85, 0.95], [0.82, 0.95]])  # no tone curve does this
    pair, model = SamplePairs(corrupted, clean), Corner()
    given = model(pair.corrupted), model(pair.clean), model(references)
    found, _ = choose_corruption(model, pair, references, given, 0)
    assert isinstance(found.corruption, Transplant)
    assert found.shown is not None
    assert found.shown > 2.0
    anywhere = fit_patches(pair, *data_range(torch.cat([references, corrupted])))
    assert anywhere is not None
    moved = model(anywhere(references)).exp() - given[2].exp()
    assert float(moved[:, 1].mean()) > float((given[0].exp() - given[1].exp())[0, 1])


# --- the pairs alone -----------------------------------------------------------------------------


def strange_pairs() -> SamplePairs:
    """Four inputs, each with the left half of another image: no pair foretells another."""
    x, y = samples(100, seed=9)
    clean, others = x[y == 1][:4], [x[y == other][5] for other in (0, 2, 3, 4)]
    corrupted = clean.clone()
    for row, other in enumerate(others):
        corrupted[row, ..., :7] = other[..., :7]
    return SamplePairs(corrupted, clean)


@pytest.fixture(scope="module")
def alone(trojan: Toy) -> Rectification:
    return rectify(
        trojan.model, strange_pairs(), reference=trojan.reference, max_rounds=2, refine_steps=5,
        target_gap=0.0, max_degradation=0.05,
    )  # fmt: skip


def test_where_nothing_carries_over_the_problem_is_the_pairs(trojan: Toy) -> None:
    pairs, reference = strange_pairs(), trojan.reference
    found = estimate_corruption(trojan.model, pairs, reference=reference)
    assert found.corruption is None
    with torch.no_grad():
        problem = pose_problem(trojan.model, pairs, reference)
        assert not problem.coupled
        assert problem.transfer.name == found.name
        half, other = problem.halves(torch.arange(len(reference)), 0)
        for part in (problem, half, other):
            assert torch.equal(part.carriers, pairs.corrupted)
            assert torch.equal(part.origins, pairs.clean)
        assert len(half.references) == len(other.references) == len(reference) // 2
        probe = problem.probe(0)
    assert torch.equal(probe.corrupted, pairs.corrupted)
    assert torch.equal(probe.clean, pairs.clean)
    ((corrupted, clean),) = problem.sources(0)
    assert torch.equal(corrupted, pairs.corrupted)
    assert torch.equal(clean, pairs.clean)


def distance(one: Tensor, other: Tensor) -> float:
    return float(0.5 * (one.softmax(dim=1) - other.softmax(dim=1)).abs().sum(dim=1).mean())


def test_the_gap_is_that_of_the_pairs(trojan: Toy, alone: Rectification) -> None:
    pairs = strange_pairs()
    with torch.no_grad():
        wanted = trojan.model(pairs.clean)
        before = distance(trojan.model(pairs.corrupted), wanted)
        after = distance(alone.model(pairs.corrupted), wanted)
        disturbed = distance(alone.model(trojan.reference), trojan.model(trojan.reference))
    assert alone.gap_before == pytest.approx(before, abs=1e-5)
    assert alone.gap_after == pytest.approx(after, abs=1e-5)
    assert after < before - 0.1
    assert 0 < disturbed < 0.2
    ruler = EditMeasure(trojan.model, pairs, trojan.reference, exclude=alone.flagged)
    assert ruler.measure(alone.model).gap == pytest.approx(after, abs=1e-5)
    assert ruler.measure(alone.model).degradation == pytest.approx(alone.degradation, abs=1e-5)


def test_the_result_says_so(trojan: Toy, alone: Rectification) -> None:
    evidence = alone.evidence
    assert evidence is not None
    found = estimate_corruption(trojan.model, strange_pairs(), reference=trojan.reference)
    assert not evidence.transferred
    assert evidence.corruption == found.name
    assert evidence.transfer == pytest.approx(found.shown)
    (sentence,) = [one for one in alone.diagnosis if "No form of corruption carries over" in one]
    assert f"{found.name} changes the predictions by {100 * (found.shown or 0):.1f} %" in sentence
    with torch.no_grad():
        clean, corrupted, now = (
            model(x).argmax(dim=1)
            for model, x in (
                (trojan.model, strange_pairs().clean),
                (trojan.model, strange_pairs().corrupted),
                (alone.model, strange_pairs().corrupted),
            )
        )
    assert evidence.shown == float((corrupted != clean).float().mean())
    assert evidence.left == float((now != clean).float().mean())


def test_a_target_that_is_met_on_the_pairs_alone(trojan: Toy) -> None:
    result = rectify(
        trojan.model,
        strange_pairs(),
        reference=trojan.reference,
        refine_steps=200,
        target_gap=0.1,
        max_degradation=0.1,
    )
    assert result.stopped == "target"
    assert any("carries over" in sentence for sentence in result.diagnosis)


def test_what_carries_over_is_named(trojan: Toy) -> None:
    result = rectify(
        trojan.model, trojan.pairs[0], reference=trojan.reference, max_rounds=1, refine_steps=0
    )
    assert result.evidence is not None
    assert result.evidence.transferred
    assert result.evidence.corruption == "Transplant(1 pair, opacity 1.00)"
    assert result.evidence.transfer == pytest.approx(1.0, abs=0.3)
    given = SamplePairs.made(stamped, trojan.pairs.clean[:1])
    known = rectify(trojan.model, given, reference=trojan.reference, max_rounds=1, refine_steps=0)
    assert known.evidence is not None
    assert known.evidence.corruption == "UserFunction(stamped)"
    assert known.evidence.transfer is None


@pytest.mark.parametrize("method", ["edit-attribution", "projection", "trial"])
def test_layers_are_ranked_on_the_pairs_alone(trojan: Toy, method: Any) -> None:
    found = rw.localize(trojan.model, strange_pairs(), reference=trojan.reference, method=method)
    assert len(found.scores) == 7
    assert max(found.scores.values()) > 0
