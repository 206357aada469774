"""Changes of each input's own: against a closed form, when they are looked for, and a repair from them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import SILENT, Cancelled, Monitor
from rectify_widgets.engine.data.corruption import data_range
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.find.adversarial import (
    FEW,
    FINER,
    LED,
    WIDER,
    AdversarialPerturbation,
    changes_of_their_own,
    put_onto,
)
from rectify_widgets.engine.find.problem import pose_problem
from rectify_widgets.engine.find.transfer import LEAST, estimate_corruption
from rectify_widgets.engine.repair.joint import PAIRS_TOO, shifted
from tests.engine.models import images, make
from tests.engine.refining_spy import run
from tests.engine.toy import TARGET, Toy
from tests.engine.traces import untouched

LOW, HIGH = torch.tensor(0.0), torch.tensor(1.0)
WIDE = torch.tensor(-100.0), torch.tensor(100.0)


def norms(change: Tensor) -> Tensor:
    lengths: Tensor = change.flatten(1).norm(dim=1)
    return lengths


# --- what it does --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, 1])
def test_a_linear_model_is_led_along_its_weights(target: int) -> None:
    """Of two classes the gradient points along the difference of their weights, everywhere."""
    linear = nn.Linear(48, 2)
    with torch.no_grad():
        linear.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), linear).eval()
    inputs = images(5, size=4)
    led = AdversarialPerturbation(model, target, 0.7, *WIDE)(inputs)
    along = linear.weight.detach()[target] - linear.weight.detach()[1 - target]
    expected = inputs + 0.7 * (along / along.norm()).reshape(1, 3, 4, 4)
    torch.testing.assert_close(led, expected)


@pytest.mark.parametrize(("pixels", "steps"), [(3, 1), (8, 4), (6, 4), (2, 4), (99, 4)])
def test_the_pixels_of_a_linear_model_that_promise_most(pixels: int, steps: int) -> None:
    """Its gradient is the same everywhere, so that those of all steps are those of one."""
    linear = nn.Linear(48, 2)
    with torch.no_grad():
        linear.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model, inputs = nn.Sequential(nn.Flatten(), linear).eval(), images(5, size=4)
    own = AdversarialPerturbation(model, 1, 0.0, LOW, HIGH, steps=steps, pixels=pixels)
    with untouched(model, inputs):
        led = own(inputs)
    along = (linear.weight[1] - linear.weight[0]).detach().reshape(3, 4, 4).numpy()
    for x, found in zip(inputs.numpy(), led.numpy(), strict=True):
        end = (along > 0).astype(x.dtype)
        gain = (along * (end - x)).sum(axis=0)
        best = gain >= sorted(gain.ravel())[-min(pixels, 16)]
        assert best.sum() == min(pixels, 16)
        np.testing.assert_allclose(found, np.where(best, end, x), atol=1e-6)
    assert repr(own) == f"AdversarialPerturbation(to class 1, {pixels} pixels)"


@pytest.mark.parametrize("network", ["plain", "residual", "transformer"])
def test_changes_keep_within_norm_and_range_and_lead_on(network: str) -> None:
    model, inputs = make(network), images(9)
    own = AdversarialPerturbation(model, 2, 1.5, LOW, HIGH)
    with untouched(model, inputs):
        led = own(inputs)
    assert float(norms(led - inputs).max()) <= 1.5 * (1 + 1e-5)
    assert float(led.min()) >= 0.0
    assert float(led.max()) <= 1.0
    with torch.no_grad():
        before, after = (model(some).log_softmax(dim=1)[:, 2] for some in (inputs, led))
    assert bool((after > before).all())
    torch.testing.assert_close(own(inputs[4:6]), led[4:6], atol=1e-4, rtol=0)  # each for itself
    assert repr(own) == "AdversarialPerturbation(to class 2, norm 1.50)"


def test_a_model_in_training_stays_so() -> None:
    model = make("residual").train()
    inputs = images(4)
    with untouched(model, inputs):
        AdversarialPerturbation(model, 0, 1.0, LOW, HIGH, steps=2)(inputs)
    assert model.training


def test_progress_and_cancel() -> None:
    said: list[str] = []
    model, inputs = make("plain"), images(4)
    own = AdversarialPerturbation(model, 0, 1.0, LOW, HIGH, steps=3)
    put_onto(own, inputs, Monitor(lambda _, message: said.append(message), None))
    assert said == ["looking for a change of each reference"]
    with untouched(model, inputs), pytest.raises(Cancelled):
        put_onto(own, inputs, Monitor(None, lambda: True))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"model": 3}, TypeError, "model"),
        ({"target": -1}, ValueError, "target"),
        ({"target": 0.5}, TypeError, "target"),
        ({"norm": -1.0}, ValueError, "norm"),
        ({"norm": float("nan")}, ValueError, "norm"),
        ({"steps": 0}, ValueError, "steps"),
        ({"pixels": 0}, ValueError, "pixels"),
        ({"pixels": 1.5}, TypeError, "pixels"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], says: str) -> None:
    given: dict[str, Any] = {
        "model": make("plain"),
        "target": 0,
        "norm": 1.0,
        "low": LOW,
        "high": HIGH,
    }
    with pytest.raises(error, match=f"^{says}: got"):
        AdversarialPerturbation(**(given | change))


def test_pixels_are_those_of_pictures() -> None:
    model = nn.Linear(6, 2).eval()
    own = AdversarialPerturbation(model, 0, 0.0, LOW, HIGH, pixels=2)
    with pytest.raises(ValueError, match=r"^inputs: got shape \(3, 6\), want M × C × H × W"):
        own(torch.rand(3, 6))


# --- when it is looked for -----------------------------------------------------------------------


class Twins(nn.Module):
    """Class 0 where the right half resembles the left one, 1 where it does not and the first value is
    large, otherwise 2.

    What leads to class 0 is another change of every input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.same.weight.copy_(torch.eye(3)[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(x)
        apart = (x[..., :4] - x[..., 4:]).square().flatten(1).sum(dim=1)
        first = 8.0 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([4.0 - apart, first, -first], dim=1)


def twins(count: int, seed: int) -> SamplePairs:
    clean = images(count, seed, size=8)
    return SamplePairs(torch.cat([clean[..., :4], clean[..., :4]], dim=3), clean)


def led_by(own: AdversarialPerturbation, references: Tensor, norm: float) -> float:
    """Share of the first references of other classes that changes of that norm lead to the class."""
    with torch.no_grad():
        few = references[:FEW]
        few = few[own.model(few).argmax(dim=1) != own.target]
        return float((own.model(replace(own, norm=norm)(few)).argmax(dim=1) == 0).float().mean())


def test_what_is_different_on_every_input_is_looked_for_on_each() -> None:
    model, pairs, references = Twins().eval(), twins(4, 3), images(40, 5, size=8)
    with untouched(model, pairs.corrupted, pairs.clean, references):
        found = estimate_corruption(model, pairs, reference=references)
    own = found.corruption
    assert isinstance(own, AdversarialPerturbation)
    assert own.target == 0
    assert own.norm < float(norms(pairs.corrupted - pairs.clean).mean())
    enough = [led_by(own, references, own.norm / WIDER / less) >= LED for less in (1.0, FINER)]
    assert enough == [True, False]
    assert found.name == repr(own)
    led = own(references)
    with torch.no_grad():
        assert float((model(references).argmax(dim=1) == 0).float().mean()) < 0.1
        assert float((model(led).argmax(dim=1) == 0).float().mean()) > LEAST
        posed = pose_problem(model, pairs, references)
        assert posed.coupled
        torch.testing.assert_close(posed.carriers, own(posed.references))
        limited = pose_problem(model, pairs, references, memory_limit=2**30)
    assert limited.corruption is None  # it would take more
    assert not limited.coupled


def test_references_of_the_class_have_no_say_in_how_large_changes_are() -> None:
    model, pairs, others = Twins().eval(), twins(4, 3), images(2, 5, size=8)
    references = torch.cat([twins(48, 7).corrupted, others])
    with torch.no_grad():
        scores = model(pairs.corrupted), model(pairs.clean)
    many, few = (
        changes_of_their_own(model, pairs, some, scores, SILENT) for some in (references, others)
    )
    assert many is not None
    assert few is not None
    assert many.norm == few.norm


def test_pairs_that_lead_elsewhere_stand_alone() -> None:
    """To several classes, to none, to scores without a gradient, or to the class of every reference."""

    class Cut(Twins):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.from_numpy(x.detach().numpy()))

    pairs, references = twins(2, 3), images(40, 5, size=8)
    still = SamplePairs(pairs.clean + 1e-3, pairs.clean)
    first = pairs.corrupted.clone()
    first[1] = pairs.clean[1]
    first[1, 0, 0, 0] = 1.0 - first[1, 0, 0, 0].round()  # to class 1 or 2
    first[1, :, 4:, :4] += 1e-3  # more than a patch
    both = SamplePairs(first, pairs.clean)
    there = pairs.corrupted[:1].expand(40, -1, -1, -1) + 1e-4 * references  # all of that class
    for model, some, on in (
        (Twins(), both, references),
        (Twins(), still, references),
        (Cut(), pairs, references),
        (Twins(), pairs, there),
    ):
        found = estimate_corruption(model.eval(), some, reference=on)
        assert not isinstance(found.corruption, AdversarialPerturbation)


# --- a repair from it ----------------------------------------------------------------------------


def test_the_goal_is_led_by_the_original_model_and_unmixed(trojan: Toy) -> None:
    """Pairs that differ in every value, each in another way, and nothing that makes more of them."""
    strong = AdversarialPerturbation(trojan.model, TARGET, 3.0, LOW, HIGH)
    clean = trojan.pairs.clean
    pairs = SamplePairs(strong(clean), clean)
    result, seen = run(trojan, 0.1, pairs=pairs, max_degradation=0.1, refine_steps=100)
    goal = seen.goals[-1]
    assert goal.original  # edits were in place
    assert goal.corrupt is None
    count = len(goal.references)
    (corrupted, too), (origins, clean_too) = (one.split(count) for one in goal.shown)
    assert torch.equal(origins, goal.references)
    assert len(too) == math.ceil(PAIRS_TOO * count)
    shifts: set[tuple[int, int]] = set()
    for row in range(len(too)):
        pair = row % len(pairs)
        moves = [
            (down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)
            if torch.equal(too[row], pairs.corrupted[pair].roll((down, right), (1, 2)))
            and torch.equal(clean_too[row], clean[pair].roll((down, right), (1, 2)))
        ]  # fmt: skip
        assert moves
        shifts.update(moves)
    assert len(shifts) > 4
    with torch.no_grad():
        assert bool((trojan.model(too).argmax(dim=1) == TARGET).all())
    low, high = data_range(torch.cat([trojan.reference, clean, pairs.corrupted]))
    own = seen.loops[-1].problem.corruption
    assert isinstance(own, AdversarialPerturbation)
    assert goal.pursued is own
    assert own.target == TARGET
    assert torch.equal(own.low, low)
    assert torch.equal(own.high, high)
    first = replace(own, model=trojan.model)
    torch.testing.assert_close(corrupted, first(origins), atol=1e-4, rtol=0)
    assert trojan.rates(trojan.model)[1] > 0.95
    assert trojan.rates(result.model)[1] < 0.05  # of the trigger, which nobody showed
    assert result.evidence is not None
    assert result.evidence.adversarial
    assert result.evidence.corruption == repr(own)
    assert any("a change of its own" in sentence for sentence in result.diagnosis)


def test_pairs_are_shifted_where_they_still_lead_to_the_class(trojan: Toy) -> None:
    """A patch has to be about in its place."""
    pairs = trojan.pairs[torch.arange(60) % len(trojan.pairs)]
    corrupted, clean = shifted(trojan.model, pairs, TARGET, 0)
    with torch.no_grad():
        assert bool((trojan.model(corrupted).argmax(dim=1) == TARGET).all())
    still = (clean == pairs.clean).flatten(1).all(dim=1)
    assert torch.equal(corrupted[still], pairs.corrupted[still])
    assert 15 < int(still.sum()) < 60  # a ninth of them would be, if all led


def test_a_change_that_the_user_gave_is_no_makeshift(trojan: Toy) -> None:
    own = AdversarialPerturbation(trojan.model, TARGET, 2.0, LOW, HIGH, steps=2)
    given = SamplePairs.made(own, trojan.pairs.clean)
    result, _ = run(trojan, None, pairs=given, max_rounds=1, refine_steps=2)
    assert result.evidence is not None
    assert result.evidence.corruption == repr(own)
    assert not result.evidence.adversarial
    assert not any("No form of corruption" in sentence for sentence in result.diagnosis)


def test_the_edited_model_is_not_led_where_memory_is_limited(trojan: Toy) -> None:
    own = AdversarialPerturbation(trojan.model, TARGET, 3.0, LOW, HIGH)
    given = SamplePairs.made(own, trojan.pairs.clean)
    _, seen = run(trojan, 2.0, max_rounds=1, refine_steps=2)  # a patch leads nobody
    assert seen.goals[0].corrupt is not None
    assert seen.goals[0].pursued is None
    for limit in (None, 2**33):
        _, seen = run(trojan, 2.0, pairs=given, max_rounds=1, refine_steps=2, memory_limit=limit)
        assert (seen.goals[0].pursued is None) == (limit is not None)
