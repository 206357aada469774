"""Models with another head than logits of classes: probabilities, one column, labels.

Each is compared with a twin that asks the same question with logits of classes, or with arithmetic.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rectify_widgets as rw
from rectify_widgets.engine.model.heads import Head, guess_head, unmasked
from tests.engine.toy import TARGET, Behind, Toy, stamped


def softmax(y: Tensor) -> Tensor:
    return y.softmax(dim=1)


def odds(y: Tensor) -> Tensor:
    """Log-odds of the Trojan's target class against all others."""
    return y[:, TARGET] - torch.cat([y[:, :TARGET], y[:, TARGET + 1 :]], dim=1).logsumexp(dim=1)


def column(y: Tensor) -> Tensor:
    return odds(y).unsqueeze(1)


def two(y: Tensor) -> Tensor:
    """The two-class twin of `column`."""
    return torch.stack([torch.zeros_like(odds(y)), odds(y)], dim=1)


def repaired(model: nn.Module, trojan: Toy, **options: Any) -> rw.Rectification:
    given: dict[str, Any] = {"reference": trojan.reference, "max_rounds": 2, "refine_steps": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rw.rectify(model, trojan.pairs, **given | options)


def assert_same(one: rw.Rectification, other: rw.Rectification) -> None:
    """The same edits for the same reasons."""
    assert [(s.layer, s.direction, s.ridge, s.accepted) for s in one.steps] == [
        (s.layer, s.direction, s.ridge, s.accepted) for s in other.steps
    ]
    assert one.gap_before == pytest.approx(other.gap_before, abs=1e-4)
    assert one.gap_after == pytest.approx(other.gap_after, abs=1e-3)
    assert one.degradation == pytest.approx(other.degradation, abs=1e-3)
    for a, b in zip(one.edits, other.edits, strict=True):
        assert torch.allclose(a.delta, b.delta, atol=1e-4 * float(b.delta.abs().max()) + 1e-7)


# --- reading answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3)])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_two_way_decisions_read_as_the_softmax_of_two(shape: tuple[int, ...], kind: str) -> None:
    z = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    head = Head("multilabel" if shape[1:] == (3,) else "binary", kind)
    scores = head.read(z if kind == "logits" else z.sigmoid())
    assert scores.shape == ((7, 3, 2) if head.task == "multilabel" else (7, 2))
    present = scores.softmax(dim=-1)[..., 1].reshape(shape)
    assert torch.allclose(present, z.sigmoid(), atol=1e-6)
    assert torch.allclose(scores[..., 0], -scores[..., 1])


def test_probabilities_read_as_logits_with_the_same_margins_and_gradients() -> None:
    z = (3 * torch.randn(6, 100, generator=torch.Generator().manual_seed(0))).requires_grad_()
    scores = Head("multiclass", "probabilities").read(z.softmax(dim=1))
    assert torch.allclose(scores - scores[:, :1], z - z[:, :1], atol=1e-4)
    (found,) = torch.autograd.grad((scores[:, 3] - scores[:, 8]).sum(), z)
    wanted = torch.zeros_like(z)
    wanted[:, 3], wanted[:, 8] = 1.0, -1.0
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("answer", "head"),
    [
        (torch.tensor([[0.2, 0.8], [1.0, 0.0]]), Head("multiclass", "probabilities")),
        (torch.tensor([[0.2, 0.8], [0.9, 0.0]]), Head()),
        (torch.tensor([[-0.2, 1.2], [1.0, 0.0]]), Head()),
        (torch.tensor([[0.3], [0.9]]), Head("binary", "probabilities")),
        (torch.tensor([0.3, 1.9]), Head("binary", "logits")),
        (torch.randn(5, 1000).half().softmax(dim=1), Head("multiclass", "probabilities")),
    ],
)
def test_the_head_is_guessed_from_columns_range_and_sums(answer: Tensor, head: Head) -> None:
    assert guess_head(answer) == head


def test_a_masked_class_has_no_probability_and_a_finite_score() -> None:
    z = torch.tensor([[1.0, -torch.inf, 3.0], [0.5, -torch.inf, -2.0]])
    found = unmasked(z)
    assert bool(found.isfinite().all())
    assert torch.equal(found.softmax(dim=1), z.softmax(dim=1))
    assert torch.equal(found[:, [0, 2]], z[:, [0, 2]])
    assert not bool(unmasked(torch.full((1, 2), -torch.inf)).isfinite().any())


# --- the same repair -----------------------------------------------------------------------------


def test_probabilities_give_the_edits_of_logits(trojan: Toy) -> None:
    plain = repaired(Behind(trojan.model, nn.Identity()), trojan)
    assert plain.gap_before > 0.5
    model = Behind(trojan.model, softmax)
    assert_same(repaired(rw.adapt(model, task="multiclass", scores="probabilities"), trojan), plain)
    assert_same(repaired(model, trojan), plain)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_one_column_is_repaired_as_its_two_class_twin(trojan: Toy, kind: str) -> None:
    twin = repaired(Behind(trojan.model, two), trojan)
    assert twin.gap_before > 0.5
    change = column if kind == "logits" else (lambda y: column(y).sigmoid())
    model = Behind(trojan.model, change)
    result = repaired(rw.adapt(model, task="binary", scores=kind), trojan)
    assert_same(result, twin)
    answer = result.model.module(trojan.x)  # type: ignore[operator]
    assert answer.shape == (len(trojan.x), 1)
    assert_same(repaired(model, trojan), twin)


def test_a_guess_is_told_and_what_is_declared_is_not(trojan: Toy) -> None:
    labels = (trojan.y == TARGET).long()
    with pytest.warns(UserWarning, match=r"one column .* logits .* task='binary', scores='logits'"):
        guessed = rw.evaluate(Behind(trojan.model, column), (trojan.x, labels))
    declared = rw.adapt(Behind(trojan.model, column), task="binary", scores="logits")
    assert rw.evaluate(declared, (trojan.x, labels)) == guessed
    assert guessed == rw.evaluate(Behind(trojan.model, two), (trojan.x, labels))
    with pytest.warns(UserWarning, match=r"adds up to one, .* probabilities of a multiclass task"):
        rw.localize(Behind(trojan.model, softmax), trojan.pairs, reference=trojan.reference)


def test_a_masked_class_changes_nothing(trojan: Toy) -> None:
    def masked(y: Tensor) -> Tensor:
        return torch.cat([y, torch.full_like(y[:, :1], -torch.inf)], dim=1)

    assert_same(
        repaired(Behind(trojan.model, masked), trojan),
        repaired(Behind(trojan.model, nn.Identity()), trojan),
    )


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, torch.tensor(0), torch.zeros(1).long().numpy()[0]])
def test_a_target_is_any_whole_number(trojan: Toy, target: Any) -> None:
    corrupted = stamped(trojan.x), trojan.y
    report = rw.evaluate(trojan.model, (trojan.x, trojan.y), corrupted, target)
    assert report == rw.evaluate(trojan.model, (trojan.x, trojan.y), corrupted, TARGET)
    found = rw.attribute(trojan.model, trojan.x[:2], method="saliency", target=target)
    assert torch.equal(found, rw.attribute(trojan.model, trojan.x[:2], method="saliency", target=0))


@pytest.mark.parametrize("target", [0, 1])
def test_one_column_is_explained_by_its_log_odds(trojan: Toy, target: int) -> None:
    x = trojan.x[:3].clone().requires_grad_()
    model = rw.adapt(Behind(trojan.model, column), task="binary", scores="logits")
    sign = 2 * target - 1
    (wanted,) = torch.autograd.grad(sign * column(trojan.model(x)).sum(), x)
    found = rw.attribute(model, x.detach(), method="input-x-gradient", target=target)
    assert torch.allclose(found, wanted * x.detach(), atol=1e-5)
