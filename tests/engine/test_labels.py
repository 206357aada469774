"""Models that tell several labels: gap, cost and repair against arithmetic and a multi-class twin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import rectify_widgets as rw
from rectify_widgets import baselines
from rectify_widgets.cases.case import Case
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.measure.judge import Judge
from rectify_widgets.engine.model.gradients import margin, sweep
from rectify_widgets.engine.model.heads import label_weights
from rectify_widgets.engine.model.running import eval_mode
from tests.engine.toy import CLASSES, TARGET, Behind, Toy, odds_of_all, stamped

OTHERS = [number for number in range(CLASSES) if number != TARGET]


class Table(nn.Module):
    """Scores by the number that the input holds, ``N × L × 2`` for log-odds ``rows × L``."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[x[:, 0].long()]


def labelled(rows: Tensor) -> nn.Module:
    return rw.adapt(Table(rows).eval(), task="multilabel", scores="logits")


def test_gap_and_cost_are_those_of_the_labels_by_hand() -> None:
    sure = 8.0
    rows = torch.full((40, 3), -sure)
    rows[:20, 0] = sure  # the first label is there in half of them
    rows[20:30, 1] = 0.4
    x = torch.arange(40.0).unsqueeze(1)
    edited = rows.clone()
    edited[10:20, 0] = -sure  # lost
    edited[20, 1] = -0.4
    judge = Judge(labelled(rows), x[:20], x[20:], x[:20])
    p = rows.sigmoid()
    assert judge.gap(labelled(rows)) == pytest.approx(
        float((p[20:] - p[:20]).abs().amax(dim=1).mean()), abs=1e-6
    )
    judge = Judge(labelled(rows), x, x, x)
    verdict = judge.measure(labelled(edited))
    q = edited.sigmoid()
    lost = (2 * p - 1).abs() * ((p > 0.5) != (q > 0.5))
    assert verdict.gap == pytest.approx(float((p - q).abs().amax(dim=1).mean()), abs=1e-6)
    assert verdict.disturbance == pytest.approx(float((p - q).abs().mean(dim=0).max()), abs=1e-6)
    assert verdict.degradation == pytest.approx(float(lost.mean(dim=0).max()), abs=1e-6)
    # Of the 20 inputs with the label nine are counted: the costliest is left out.
    assert verdict.worst_class == pytest.approx(9 / 20 * float(lost[10, 0]), abs=1e-6)
    assert verdict.sufferer == 0


def test_figures_of_labels_by_hand() -> None:
    rows = torch.tensor([[3.0, -3.0], [3.0, 3.0], [-3.0, -3.0], [-3.0, 3.0]])
    x, hot = torch.arange(4.0).unsqueeze(1), torch.tensor([[1, 0], [1, 0], [0, 0], [1, 1]])
    report = rw.evaluate(labelled(rows), (x, hot), (x, hot.float()), 1)
    assert report.overall_accuracy == pytest.approx(6 / 8)
    assert report.labels == (0.75, 0.75)
    assert report.attack_success_rate == pytest.approx(1 / 3)
    assert report.clean_target_rate == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"clean\[1\]: got shape \(4,\), want .* 4 × 2 zeros"):
        rw.evaluate(labelled(rows), (x, torch.zeros(4).long()))
    with pytest.raises(ValueError, match="target: got 2, want a class from 0 to 1"):
        rw.evaluate(labelled(rows), (x, hot), target=2)


def test_gradients_follow_the_weighted_margins_of_the_labels(trojan: Toy) -> None:
    model = rw.adapt(Behind(trojan.model, odds_of_all), task="multilabel", scores="logits")
    layers = rw.editable_layers(model, trojan.x[:2]).editable
    x = trojan.x[:3]
    with eval_mode(model) as module:
        before, after = module(stamped(x)), module(x)
        path, still = label_weights(before, after)
        assert path is not None
        assert still is not None
        labels = after.argmax(dim=-1)
        found = sweep(
            module, layers, x, x, labels, 1 - labels, weights=path, steps=1, monitor=Monitor()
        )
        seen: list[Tensor] = []
        name = list(layers)[-1]
        handle = layers[name].module.register_forward_hook(lambda _, __, y: seen.append(y))
        with torch.enable_grad():
            total = margin(module(x), labels, 1 - labels, path).sum()
        handle.remove()
        (wanted,) = torch.autograd.grad(total, seen)
    assert torch.allclose(path.sum(dim=1), torch.ones(3))
    assert torch.allclose(still.sum(dim=1), torch.ones(3))
    assert torch.allclose(found[name].reshape(wanted.shape), wanted, atol=1e-6)


@pytest.mark.parametrize("hidden", [False, True], ids=["all labels", "without the target's"])
def test_labels_are_repaired_as_their_multiclass_twin(trojan: Toy, *, hidden: bool) -> None:
    """A patch that adds a label and hides another; without the target's label it hides only."""
    shown = OTHERS if hidden else list(range(CLASSES))
    model = rw.adapt(
        Behind(trojan.model, lambda y: odds_of_all(y)[:, shown]), task="multilabel", scores="logits"
    )
    given: dict[str, Any] = {"reference": trojan.reference, "max_rounds": 2, "refine_steps": 0}
    twin = rw.rectify(trojan.model, trojan.pairs, **given)
    result = rw.rectify(model, trojan.pairs, **given)
    assert result.gap_before == pytest.approx(twin.gap_before, abs=0.05)
    assert result.gap_after <= twin.gap_after + 0.05
    assert result.evidence is not None
    assert result.evidence.classes == len(shown)
    others = trojan.y != TARGET
    truth = one_hot(trojan.y, CLASSES)[:, shown]
    sets = (trojan.x, truth), (stamped(trojan.x[others]), truth[others])
    target = None if hidden else TARGET
    before, after = (rw.evaluate(one, *sets, target) for one in (model, result.model))
    assert (after.corrupted_accuracy or 0.0) > (before.corrupted_accuracy or 1.0)
    assert min(after.labels) > min(before.labels) - 0.02
    edited = {edit.layer.removeprefix("body.") for edit in result.edits}
    assert edited
    assert edited <= set(rw.editable_layers(trojan.model, trojan.x[:2]).editable)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_labels_given_as_probabilities_give_the_same_edits(trojan: Toy, kind: str) -> None:
    def change(y: Tensor) -> Tensor:
        z = odds_of_all(y)
        return z if kind == "logits" else z.sigmoid()

    model = rw.adapt(Behind(trojan.model, change), task="multilabel", scores=kind)
    found = rw.localize(model, trojan.pairs, reference=trojan.reference)
    plain = rw.localize(
        rw.adapt(Behind(trojan.model, odds_of_all), task="multilabel", scores="logits"),
        replace(trojan.pairs, labels=one_hot(torch.tensor(OTHERS), CLASSES)),
        reference=trojan.reference,
    )
    assert found.scores == pytest.approx(plain.scores, abs=2e-3)
    assert found.choices == plain.choices


def test_a_label_is_explained_by_its_log_odds(trojan: Toy) -> None:
    model = rw.adapt(Behind(trojan.model, odds_of_all), task="multilabel", scores="logits")
    x = trojan.x[:3].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(odds_of_all(trojan.model(x))[:, 2].sum(), x)
    found = rw.attribute(model, x.detach(), method="input-x-gradient", target=2)
    assert torch.allclose(found, wanted * x.detach(), atol=1e-5)
    with pytest.raises(ValueError, match="target: got class numbers from 5 to 5, want 0 to 4"):
        rw.attribute(model, x.detach(), method="saliency", target=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trojan", "leakage"])
def test_shipped_networks_in_labels_lose_what_their_twins_lose(name: str) -> None:
    """On 2,500 test images no label loses more than 0.2 points."""
    case: Case = rw.cases.load(name)
    shown = [c for c in range(len(case.classes)) if c != case.target]
    model = rw.adapt(
        Behind(case.model, lambda y: odds_of_all(y)[:, shown]), task="multilabel", scores="logits"
    )
    pairs, reference = replace(case.pairs[:5], labels=None), case.reference[:192]
    given: dict[str, Any] = {"reference": reference, "refine_steps": 20, "max_rounds": 2}
    twin, result = rw.rectify(case.model, pairs, **given), rw.rectify(model, pairs, **given)
    assert twin.edits
    assert result.edits
    (x, y), bad = (one[:2500] for one in case.clean), case.corrupted[0][:2500]
    truth = one_hot(y, len(case.classes))[:, shown]

    def right(one: nn.Module, inputs: Tensor) -> float:
        """Share of the images of these classes whose class scores highest."""
        with torch.no_grad():
            scores = torch.cat([one(some) for some in inputs.split(250)])
        best = scores[..., 1].argmax(dim=1) if scores.ndim > 2 else scores[:, shown].argmax(dim=1)
        some = truth.any(dim=1)
        return float((best == truth.argmax(dim=1))[some].double().mean())

    for inputs in (x, bad):
        assert right(result.model, inputs) == pytest.approx(right(twin.model, inputs), abs=0.0075)
    before, after = (rw.evaluate(one, (x, truth)).labels for one in (model, result.model))
    assert max(a - b for a, b in zip(before, after, strict=True)) <= 0.002


def test_baselines_learn_labels(trojan: Toy) -> None:
    model = rw.adapt(Behind(trojan.model, odds_of_all), task="multilabel", scores="logits")
    truth = one_hot(trojan.y, CLASSES)
    found = baselines.run("fine_tuning", model, trojan.pairs, reference=trojan.reference)
    sets = (trojan.x, truth), (stamped(trojan.x), truth)
    before, after = (rw.evaluate(one, *sets).corrupted_accuracy for one in (model, found.model))
    assert (after or 0.0) > (before or 1.0)
