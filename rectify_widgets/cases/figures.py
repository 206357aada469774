"""The figures by which each behaviour is judged, by name.  Imports torch and the engine.

For all behaviours:

- ``overall_accuracy``: of clean images.
- ``corrupted_accuracy``: of corrupted images, by their true labels.

Trojan: ``attack_success_rate``: corrupted images whose class the trigger leads away from itself and
that are given the class it leads to.  ``clean_target_rate``: the same images, clean: a floor
under the former that no repair need go below.

Spurious correlation: ``recall_without`` and ``recall_with``: accuracy of the affected class without
and with the artefact; ``spurious_bias``: the second minus the first; ``pulled_in``: images of other
classes with the artefact that are given the affected class; ``clean_target_rate``: the same images
without it; ``worst_group_accuracy``: the least over (label, with or without artefact).

Feature leakage, means over the first `ATTRIBUTED` images: ``net_attribution``: absolute sum of
Integrated Gradients (of the true label's logit, from a black image) over the label-free block;
``attribution_share``: sum of its absolute values there as a share of the whole; ``logit_change``:
absolute change of the true label's logit when the block is removed.

Shortcut of a network that was trained without any: ``logit_rise``: by how much the corruption raises
the target's logit, on average over unlabelled images too; ``rise_rank``: the place of the target
among all classes by that, 1 the first; ``answers_changed``: images that get another class.

``clean`` is ``N × C × H × W`` images with their ``N`` labels throughout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from rectify_widgets.cases.triggers import Aim, Trigger
from rectify_widgets.engine.model.running import eval_mode, predict_all

Labelled: TypeAlias = tuple[Tensor, Tensor]
"""Images and their labels."""

ATTRIBUTED = 256
"""Images whose attributions are averaged."""
INTEGRATION_STEPS = 16
"""Points on the path of Integrated Gradients."""


def of_trojan(
    model: nn.Module, clean: Labelled, triggers: Mapping[str, Trigger], goals: Sequence[int]
) -> dict[str, float]:
    """Figures of a Trojan; those of all triggers but the first carry its name in brackets.

    ``goals`` is the class that every trigger leads to, for each true class.
    """
    images, labels = clean
    goal = torch.tensor(goals, device=labels.device)[labels]
    led = goal != labels
    answers = classes(model, images)
    found = {"overall_accuracy": share(answers == labels)}
    for number, (name, trigger) in enumerate(triggers.items()):
        answer = classes(model, trigger(images))
        end = f" ({name})" if number else ""
        found[f"attack_success_rate{end}"] = share((answer == goal)[led])
        found[f"corrupted_accuracy{end}"] = share(answer == labels)
    found["clean_target_rate"] = share((answers == goal)[led])
    return found


def of_several(
    model: nn.Module,
    clean: Labelled,
    triggers: Mapping[str, Trigger],
    aims: Mapping[str, Aim],
) -> dict[str, float]:
    """Figures of several behaviours; those of all but the first carry its name in brackets.

    ``aims`` is what each trigger does, by the same names.
    """
    found: dict[str, float] = {}
    for name, trigger in triggers.items():
        aim = aims[name]
        if aim.behaviour == "spurious" and aim.target is not None:
            own = of_spurious(model, clean, trigger(clean[0]), aim.target)
        else:
            own = of_trojan(model, clean, {name: trigger}, aim.goals)
        if found:
            own.pop("overall_accuracy")
            own = {f"{figure} ({name})": value for figure, value in own.items()}
        found |= own
    return found


def of_spurious(
    model: nn.Module, clean: Labelled, corrupted: Tensor, target: int
) -> dict[str, float]:
    """Figures of a spurious correlation: ``corrupted`` with the artefact, ``target`` affected."""
    images, labels = clean
    without, with_it = classes(model, images), classes(model, corrupted)
    affected = labels == target
    groups = [
        share((answer == labels)[labels == label])
        for answer in (without, with_it)
        for label in labels.unique().tolist()
    ]
    recall_without = share((without == target)[affected])
    recall_with = share((with_it == target)[affected])
    return {
        "overall_accuracy": share(without == labels),
        "corrupted_accuracy": share(with_it == labels),
        "recall_without": recall_without,
        "recall_with": recall_with,
        "spurious_bias": recall_with - recall_without,
        "pulled_in": share((with_it == target)[~affected]),
        "clean_target_rate": share((without == target)[~affected]),
        "worst_group_accuracy": min(groups),
    }


def of_shortcut(
    model: nn.Module,
    clean: Labelled,
    unlabelled: Tensor,
    triggers: Mapping[str, Trigger],
    target: int,
) -> dict[str, float]:
    """Figures of a shortcut; those of all triggers but the first carry its name in brackets."""
    images, labels = clean
    found = {"overall_accuracy": share(classes(model, images) == labels)}
    with eval_mode(model), torch.inference_mode():
        before = predict_all(model, unlabelled)
        for number, (name, trigger) in enumerate(triggers.items()):
            after = predict_all(model, trigger(unlabelled))
            rise = (after - before).mean(dim=0)
            end = f" ({name})" if number else ""
            found[f"corrupted_accuracy{end}"] = share(classes(model, trigger(images)) == labels)
            found[f"logit_rise{end}"] = float(rise[target])
            found[f"rise_rank{end}"] = 1.0 + int((rise > rise[target]).sum())
            found[f"answers_changed{end}"] = share(after.argmax(dim=1) != before.argmax(dim=1))
    return found


def of_leakage(
    model: nn.Module, clean: Labelled, corrupted: Tensor, mask: Tensor
) -> dict[str, float]:
    """Figures of feature leakage: ``corrupted`` without the block on which ``mask`` is true."""
    images, labels = clean
    answers = {"overall_accuracy": images, "corrupted_accuracy": corrupted}
    found = {name: share(classes(model, part) == labels) for name, part in answers.items()}
    few = slice(ATTRIBUTED)
    truth = labels[few, None]
    heat = integrated_gradients(model, images[few], labels[few]).flatten(1)
    inside = mask[few].flatten(1)
    with eval_mode(model) as module:
        change = predict_all(module, images[few]) - predict_all(module, corrupted[few])
    leaked = (heat * inside).abs().sum(dim=1) / heat.abs().sum(dim=1).clamp_min(1e-12)
    return {
        **found,
        "net_attribution": float((heat * inside).sum(dim=1).abs().mean()),
        "attribution_share": float(leaked.mean()),
        "logit_change": float(change.gather(1, truth).abs().mean()),
    }


def integrated_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Integrated Gradients of each image's own label from a black image, shaped like ``images``.

    Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks", by the midpoint
    rule.  Pixels that are black in the image get exactly nothing.
    """
    total = torch.zeros_like(images)
    with eval_mode(model) as module, torch.enable_grad():
        for step in range(INTEGRATION_STEPS):
            point = (images * ((step + 0.5) / INTEGRATION_STEPS)).requires_grad_()
            score = module(point).gather(1, labels[:, None]).sum()
            total += torch.autograd.grad(score, point)[0]
    return images * total / INTEGRATION_STEPS


def classes(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes, ``N``, of ``N × C × H × W`` images, on their device."""
    with eval_mode(model) as module:
        return predict_all(module, images).argmax(dim=1).to(images.device)


def share(hits: Tensor) -> float:
    """The share (0..1) of true values; 0 where there are none to count."""
    return float(hits.double().mean()) if hits.numel() else 0.0
