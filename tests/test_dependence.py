"""`rw.dependence` against numpy, finite differences, and networks whose concept is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.reveal.concepts import pattern, ridge_filter
from rectify_widgets.reveal.suspicions import Suspicion
from tests.test_reveal import references

BOARD = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1, 1]).view(3, 3)


class Boarded(nn.Module):
    """Class 0 to 3 is the brightest quarter; what a convolution sees of a board speaks for class 0."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.head = nn.Linear(5, 4)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():
            self.conv.weight.copy_(torch.stack([torch.full((3, 3), 1 / 9), BOARD])[:, None])
            self.head.weight.copy_(20 * torch.eye(4, 5))
            self.head.weight[0, 4] = strength
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        seen = self.conv(images).relu_()
        quarters = nn.functional.adaptive_avg_pool2d(seen[:, :1], 2).flatten(1)
        scores: Tensor = self.head(torch.cat([quarters, seen[:, 1].amax((1, 2))[:, None]], dim=1))
        answers: Tensor = self.dropout(scores)
        return answers


def boards(count: int = 8) -> rw.SamplePairs:
    clean = references()[12 : 12 + count]
    corrupted = clean.clone()
    corrupted[:, 0, 12:15, 12:15] = BOARD.clamp_min(0)
    return rw.SamplePairs(corrupted, clean)


def test_directions_are_those_of_numpy() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(30, 5)) * [1, 2, 3, 4, 5]
    told = generator.integers(0, 2, 30)
    wanted = [np.cov(column, told)[0, 1] / np.var(told, ddof=1) for column in values.T]
    arguments = torch.from_numpy(values), torch.from_numpy(told) > 0
    assert np.allclose(pattern(*arguments), wanted)
    centred = values - values.mean(axis=0)
    amount = 0.01 * np.square(centred).sum(axis=0).mean()
    rows = np.vstack([centred, np.sqrt(amount) * np.eye(5)])  # ridge as least squares
    goal = np.concatenate([told - told.mean(), np.zeros(5)])
    assert np.allclose(ridge_filter(*arguments), np.linalg.lstsq(rows, goal, rcond=None)[0])


def test_effects_are_those_of_a_step_along_the_direction() -> None:
    """Finite differences, the step being added to the layer's output by a hook."""
    model, images = Boarded(4.0).eval().double(), references().double()
    pairs = boards()
    pairs = rw.SamplePairs(pairs.corrupted.double(), pairs.clean.double())
    found = rw.dependence(model, pairs, images).before
    assert found.layers == ("conv", "head")
    assert found.classes == (0, 1, 2, 3)

    def odds(name: str, step: Tensor) -> Tensor:
        module = model.get_submodule(name)
        shape = (1, -1, 1, 1) if name == "conv" else (1, -1)
        handle = module.register_forward_hook(lambda _, __, output: output + step.view(shape))
        with torch.no_grad():
            scores: Tensor = model(images)
        handle.remove()
        rest = [scores[:, [j for j in range(4) if j != k]].exp().sum(dim=1).log() for k in range(4)]
        odds_of_all: Tensor = scores - torch.stack(rest, dim=1)
        return odds_of_all

    for row, name in enumerate(found.layers):
        step = 1e-5 * found.directions[name]
        wanted = (odds(name, step) - odds(name, -step)) / 2e-5
        assert torch.allclose(found.effect[row], wanted.mean(dim=0), rtol=1e-4, atol=1e-6)
        assert torch.equal(found.share[row], (wanted > 0).double().mean(dim=0))


def test_what_a_class_rests_on_is_significant_and_no_more_after_a_repair() -> None:
    model, repaired = Boarded(4.0), Boarded(4.0)
    with torch.no_grad():
        repaired.head.weight[0, 4] = 0.0
    found = rw.dependence(model, boards(), references(), after=repaired)
    assert ("head", 0) in found.before.significant
    assert found.before.effect[1, 0] > 5
    assert found.after is not None
    assert not found.after.significant
    assert not rw.dependence(Boarded(0.0), boards(), references()).before.significant
    assert "After the repair it shows no dependence" in str(found)


def test_p_is_uniform_enough_for_what_does_not_decide() -> None:
    """Concepts that are swaps within a class: significant about as often as the level says."""
    model, images = Boarded(0.0), references(160)
    predicted = model.eval()(images).argmax(dim=1)
    hits = 0
    for seed in range(40):
        own = (predicted == seed % 4).nonzero().flatten()
        one, two = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))][:2]
        pairs = rw.SamplePairs(images[one][None], images[two][None])
        hits += bool(rw.dependence(model, pairs, images, tried=100, seed=seed).before.significant)
    assert hits <= 6, "binomial, 40 of 5 %: at most 6 in 99 of 100 runs"


def test_model_and_random_state_are_as_before_and_runs_agree() -> None:
    model = Boarded(4.0).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one, two = (rw.dependence(model, boards(), references(), seed=3) for _ in range(2))
    assert str(one) == str(two)
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_cancelled_it_leaves_the_model_as_it_was() -> None:
    model = Boarded(4.0).train()
    shares: list[float] = []
    with pytest.raises(rw.Cancelled):
        rw.dependence(
            model, boards(), references(),
            progress=lambda share, _: shares.append(share), cancel=lambda: len(shares) > 2,
        )  # fmt: skip
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"concept": references()}, TypeError, "concept: got Tensor, want SamplePairs"),
        ({"reference": references()[:9]}, ValueError, "reference: got 9 inputs, want at least 32"),
        ({"reference": references()[..., :20]}, ValueError, "reference: got inputs of shape"),
        ({"reference": references(160)[2::4]}, ValueError, "the model takes all inputs for"),
        ({"layers": ["tail"]}, ValueError, "layers: no layer 'tail'"),
        ({"direction": "up"}, ValueError, "direction: "),
        ({"tried": 3}, ValueError, "tried: "),
        ({"after": 3}, TypeError, "after: "),
        ({"model": None}, TypeError, "model: "),
    ],
)
def test_bad_input_is_named(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {"model": Boarded(4.0), "concept": boards(), "reference": references(), **change}
    with pytest.raises(error, match=message):
        rw.dependence(
            given.pop("model"), given.pop("concept"), given.pop("reference"), **given  # type: ignore[arg-type]
        )  # fmt: skip


def test_a_suspicion_is_a_concept_if_it_has_pairs() -> None:
    def suspicion(pairs: rw.SamplePairs | None) -> Suspicion:
        return Suspicion(
            0, 1.0, (0.9, 1.0), 96, torch.tensor([3]), torch.ones(1, 28, 28).bool(), "region",
            0.0, accused=pairs is not None, pairs=pairs,
        )  # fmt: skip

    model = Boarded(4.0)
    same = rw.dependence(model, boards(), references())
    assert str(rw.dependence(model, suspicion(boards()), references())) == str(same)
    with pytest.raises(ValueError, match="concept: the suspicion has no pairs"):
        rw.dependence(model, suspicion(None), references())


def test_results_print_as_text_html_frame_and_figure() -> None:
    found = rw.dependence(Boarded(4.0), boards(), references(), after=Boarded(0.0))
    assert str(found).splitlines()[1].split()[:3] == ["layer", "class", "effect"]
    assert "<table>" in found._repr_html_()
    table = found.to_frame()
    assert len(table) == 2 * 4
    assert set(table.columns) >= {"layer", "class", "effect", "p", "effect_after", "p_after"}
    axes = found.plot().axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["conv", "head"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trojan", "spurious-severe"])
def test_shipped_cases_depend_before_the_repair_and_not_after_it(name: str) -> None:
    case = rw.cases.load(name)
    reference = case.reference[:200]
    result = rw.rectify(case.model, case.pairs[:3], reference=reference, refine_steps=100)
    found = rw.dependence(case.model, case.pairs, reference, after=result)
    assert {number for _, number in found.before.significant} == {case.target}
    assert found.after is not None
    assert not found.after.significant
