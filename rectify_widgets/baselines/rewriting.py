"""Rewriting: a rank-one edit at a fixed layer, by iteration.  Imports torch and the engine.

Santurkar, Tsipras, Elango, Bau, Torralba and Mądry 2021, "Editing a classifier by rewriting its
prediction rules", NeurIPS; after Bau, Liu, Wang, Zhu and Torralba 2020, "Rewriting a Deep Generative
Model", ECCV.  In the space of per-pixel channel keys,

    Λ = argmin ‖v* − f(k*; W + Λ dᵀ)‖²   with   d = C⁻¹ k*,

found by Adam.  Published defaults: rank one, 2,001 steps, learning rate 0.05, ``C`` from clean
inputs.  No layer is published as *the* layer; here it is the last convolution, which is what the
static strategy of `rectify` edits, and it is not tuned.

What differs from the published code: ``Λ`` itself is what Adam moves, as in the formula, where the
code moves the whole weight and projects it on ``d`` every ten steps; the loss is the squared
distance of the formula, where the code has the absolute one; ``f`` is the bare layer, so that values
are those before normalisation and activation; ``C`` gets a ridge, where the code takes the nearest
positive-definite matrix; ``k*`` is the mean of the keys weighted by how far the corruption moves
them, where the code takes the first singular vector of the keys under a mask.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.baselines.latent import passes
from rectify_widgets.baselines.method import Method, Option, Options, count, number
from rectify_widgets.baselines.task import Task
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.model.keys import EditableLayer, pad
from rectify_widgets.engine.model.running import unwrap
from rectify_widgets.engine.repair.solving import solve_edit


def _last(task: Task) -> list[str]:
    """The last convolution or, without one, the last linear layer."""
    editable = list(task.problem.catalog)
    convolutions = [layer for layer in editable if isinstance(layer.module, nn.Conv2d)]
    return [(convolutions or editable)[-1].name]


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    def ask() -> bool:
        monitor.check()  # which raises
        return False

    closed = solve_edit(
        model, task.pairs, layer=options["layer"], reference=task.problem.references, direction="key",
        ridge=options["ridge"], key_space="channel", seed=task.seed, cancel=ask,
    )  # fmt: skip
    right = closed.right / closed.right.norm()
    design, missing = least_squares(model, task.pairs, replace(closed, right=right))
    left = descend(design, missing, options["steps"], options["learning_rate"], monitor)
    replace(closed, left=left.reshape(closed.left.shape).to(closed.left), right=right).apply(model)


def least_squares(model: nn.Module, pairs: SamplePairs, edit: RankOneEdit) -> tuple[Tensor, Tensor]:
    """What ``Λ`` is to fit along the edit's direction: ``‖design Λᵀ − missing‖²``, group by group.

    Returns:
        The design, ``G × (N · P) × (kh · kw)``: the response ``⟨d, k̃⟩`` as the layer unfolds it.
        What is missing, ``G × (N · P) × O/G``: clean minus corrupted values.
    """
    part = unwrap(model).get_submodule(edit.layer)
    assert isinstance(part, nn.Conv2d | nn.Linear)  # noqa: S101 - `solve_edit` has checked it
    layer = EditableLayer(edit.layer, part)
    count = len(pairs)
    corrupted, clean = (
        next(passes(model, part, samples, count))[0] for samples in (pairs.corrupted, pairs.clean)
    )
    change = layer.keys(clean, count) - layer.keys(corrupted, count)
    missing = change.values().permute(1, 0, 3, 2).flatten(1, 2)
    right = edit.right.reshape(layer.groups, -1).to(missing)
    if not isinstance(part, nn.Conv2d):
        response = layer.keys(corrupted, count).respond(right.unsqueeze(1))
        return response.permute(1, 0, 3, 2).flatten(1, 2), missing
    grouped = corrupted.to(missing).unflatten(1, (layer.groups, -1))
    image = torch.einsum("gc,ngchw->nghw", right, grouped)
    rows = functional.unfold(pad(part, image), part.kernel_size, part.dilation, 0, part.stride)
    return rows.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2), missing


def descend(
    design: Tensor, missing: Tensor, steps: int, learning_rate: float, monitor: Monitor
) -> Tensor:
    """``Λ``, ``G × O/G × (kh · kw)``, after so many steps of Adam from zero on the mean square."""
    left = design.new_zeros(len(design), design.shape[2], missing.shape[2])
    optimiser = torch.optim.Adam([left], lr=learning_rate)
    scale = 2.0 / missing.numel()
    gram, aim = design.transpose(1, 2) @ design * scale, design.transpose(1, 2) @ missing * scale
    for step in range(steps):
        if step % 50 == 0:
            monitor.report(step / steps, f"step {step + 1} of {steps}")
        left.grad = gram @ left - aim
        optimiser.step()
    return left.detach().transpose(1, 2)


REWRITING = Method(
    "rewriting",
    (
        {
            "layer": Option(
                "an editable layer by its dotted name: the last convolution or, without one, the "
                "last linear layer",
                _last,
                lambda task, argument, given: task.problem.catalog.get(argument, given).name,
            )
        },
        {"learning_rate": number("of Adam", 0.05, 0.005, 0.0005)},
        # The first is the least that single precision bears.
        {"ridge": number("in units of the mean diagonal of C", 1e-4, 1e-2, 1e-1)},
        {"steps": count("of Adam", 2001)},
    ),
    _attempt,
    needs_references="for the second moment of their keys",
)
