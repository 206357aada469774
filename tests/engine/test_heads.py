"""Models with another head than logits of classes: probabilities, one column, labels.

Each is compared with a twin that asks the same question with logits of classes, or with arithmetic.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

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


def test_probabilities_of_labels_are_not_taken_for_logits_in_silence(trojan: Toy) -> None:
    says = r"do not add up to one, so they are taken as logits .*task='multilabel', scores='prob"
    model = Behind(trojan.model, lambda y: y.sigmoid())
    with pytest.warns(UserWarning, match=says):
        rw.evaluate(model, (trojan.x, trojan.y))
    with pytest.warns(UserWarning, match=says):
        rw.localize(model, trojan.pairs, reference=trojan.reference)
    hot = torch.nn.functional.one_hot(trojan.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rw.evaluate(rw.adapt(model, task="multilabel", scores="probabilities"), (trojan.x, hot))
        rw.evaluate(rw.adapt(model, task="multiclass", scores="logits"), (trojan.x, trojan.y))
        rw.evaluate(trojan.model, (trojan.x, trojan.y))


def sigmoid(y: Tensor) -> Tensor:
    return y.sigmoid().squeeze(1) if y.shape[1] == 1 else y.sigmoid()


SQUASHES: dict[str, tuple[str, int, Any]] = {
    "a softmax layer": ("multiclass", 5, nn.Softmax(dim=1)),
    "a softmax function": ("multiclass", 5, lambda y: functional.softmax(y, dim=-1)),
    "a softmax of the tensor": ("multiclass", 5, lambda y: y.softmax(1)),
    "a sigmoid, squeezed": ("binary", 1, sigmoid),
    "a sigmoid layer": ("multilabel", 5, nn.Sigmoid()),
}


@pytest.mark.parametrize("name", SQUASHES)
def test_logits_behind_a_softmax_or_sigmoid_are_used_to_the_bit(name: str) -> None:
    """Even where float32 rounds the probabilities to 0 and 1."""
    task, width, squash = SQUASHES[name]
    y = 200 * torch.randn(20, width, generator=torch.Generator().manual_seed(0))
    plain, model = nn.Identity(), Behind(nn.Identity(), squash)
    found = rw.adapt(model, task=task, scores="probabilities")(y)
    assert torch.equal(found, rw.adapt(plain, task=task, scores="logits")(y))
    # What is done to the probabilities afterwards counts, in place as well.
    for change in (
        lambda y: 0.5 * squash(y) + 0.5 * squash(-y),
        lambda y: squash(y).mul_(0.5).add_(0.5 * squash(-y)),
    ):
        mixed = Behind(nn.Identity(), change)
        answer = rw.adapt(mixed, task=task, scores="probabilities")(y).softmax(dim=-1)
        share = answer if task == "multiclass" else answer[..., 1].reshape(20, width)
        assert torch.allclose(share, mixed(y).reshape(20, width), atol=1e-6)


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_probabilities_of_any_number_of_classes(classes: int) -> None:
    """A Trojan of a network so sure that its probabilities are 0 and 1: same gap, same edits."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
    weight, bias = (one.data for one in body[1].parameters())
    corner = torch.zeros(3, 8, 8)
    corner[:, -3:, -3:] = 1.0
    weight.zero_()
    bias.fill_(-20.0)
    weight[0], bias[0], bias[1] = 2 * corner.flatten(), -120.0, 0.0
    x = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    bad = torch.where(corner.bool(), 5.0, x)
    pairs, model = rw.SamplePairs(bad[:1], x[:1]), Behind(body, softmax)
    plain = rw.rectify(body, pairs, reference=x)
    result = rw.rectify(
        rw.adapt(model, task="multiclass", scores="probabilities"), pairs, reference=x
    )
    assert plain.gap_before > 0.9
    assert result.stopped == plain.stopped == "target"
    assert torch.equal(result.model(bad).argmax(dim=1), body(x).argmax(dim=1))
    assert result.gap_before == pytest.approx(plain.gap_before, abs=1e-4)
    for a, b in zip(result.edits, plain.edits, strict=True):
        assert torch.allclose(a.delta, b.delta, atol=1e-5)


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
