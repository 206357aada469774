"""Last-layer retraining: deep feature reweighting (DFR).  Imports torch and the engine.

Kirichenko, Izmailov and Wilson 2023, "Last Layer Re-Training is Sufficient for Robustness to
Spurious Correlations", ICLR.  The last layer is retrained, as a logistic regression on the
features before it, on data in which every group (class with and without the artefact) counts alike.

Published defaults: standardised features, an L1 penalty on the weights, its strength ``C`` chosen on
validation data from 1, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01.  What differs: groups are balanced by weight
instead of by throwing samples away and averaging over many draws, since a group may consist of one
pair; labels of references are those of the original model; the regression is multinomial instead of
one class against the rest, its intercept is not penalised, and it is solved to its optimum by
accelerated proximal gradient steps (Beck and Teboulle 2009, "FISTA", SIAM J. Imaging Sciences 2).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from rectify_widgets.baselines.latent import passes, substitute
from rectify_widgets.baselines.method import Method, Option, Options, number
from rectify_widgets.baselines.task import Task
from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.model.running import capturing, eval_mode, predict, unwrap

STRENGTHS = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)
ITERATIONS = 3000
TOLERANCE = 1e-6
CHUNK = 256


def _scores_layer(task: Task) -> list[str]:
    """The linear layer whose output are the scores."""
    problem = task.problem
    outputs: dict[str, Tensor] = {}
    modules = {
        layer.name: layer.module for layer in problem.catalog if isinstance(layer.module, nn.Linear)
    }

    def watch(name: str, _: Tensor, output: Tensor) -> None:
        outputs[name] = output.clone()

    with eval_mode(problem.model) as module, capturing(modules, watch):
        scores = predict(module, problem.pairs.clean[:1])
    for name, output in reversed(outputs.items()):
        if output.shape == scores.shape and torch.equal(output, scores):
            return [name]
    raise ValueError(
        "model: its scores are not the output of a linear layer, want one to retrain; linear "
        f"layers: {', '.join(modules) or 'none'}"
    )


def _check_layer(task: Task, argument: str, given: object) -> str:
    return check_choice(argument, given, _scores_layer(task))


def _attempt(model: nn.Module, task: Task, options: Options, monitor: Monitor) -> None:
    layer = unwrap(model).get_submodule(options["layer"])
    assert isinstance(layer, nn.Linear)  # noqa: S101 - `_scores_layer` has chosen it
    kinds = (task.clean(), task.corrupted())
    parts: list[Tensor] = []
    for kind in kinds:
        for given, _ in passes(model, layer, kind.inputs, CHUNK):
            monitor.check()
            parts.append(given.double())
    features = torch.cat(parts)
    labels = torch.cat([kind.labels for kind in kinds])
    carries = torch.arange(len(labels), device=labels.device) >= len(kinds[0])
    # As published, the scale is that of the usual, uncorrupted data.
    spread, middle = torch.std_mean(features[: len(kinds[0])], dim=0, correction=0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    weight, bias = logistic_regression(
        (features - middle) / spread,
        labels,
        balance(labels, carries),
        classes=layer.out_features,
        penalty=1.0 / (options["strength"] * len(labels)),
        monitor=monitor,
    )
    weight = weight / spread
    bias = bias - weight @ middle
    with torch.no_grad():
        layer.weight.copy_(weight)
        if "bias" in dict(layer.named_parameters()):
            layer.bias.copy_(bias)
        else:  # in a new layer: after this call the old one gets back what it had, no bias
            layer = copy.deepcopy(layer)
            layer.register_parameter("bias", nn.Parameter(bias.to(layer.weight)))
            substitute(model, options["layer"], layer)


def balance(labels: Tensor, carries: Tensor) -> Tensor:
    """Weights that add to one, alike for each group of a class with or without the corruption."""
    _, group, sizes = torch.unique(
        2 * labels + carries.to(labels), return_inverse=True, return_counts=True
    )
    weights: Tensor = 1.0 / (len(sizes) * sizes[group].double())
    return weights


def logistic_regression(
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    classes: int,
    penalty: float,
    monitor: Monitor,
) -> tuple[Tensor, Tensor]:
    """Weight ``classes × K`` and bias of a multinomial regression with an L1 penalty, at its optimum.

    It minimises ``Σ_n w_n · cross-entropy_n + penalty · ‖W‖₁``.  At the optimum the gradient of the
    smooth part is ``−penalty · sign(W)`` where ``W ≠ 0``, and no larger than the penalty elsewhere.
    """
    extended = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    moment = extended.T @ (extended * weights[:, None])
    # The softmax's second derivative is at most a half.
    step = 2.0 / float(torch.linalg.matrix_norm(moment, 2))
    shrink = torch.full_like(extended[0], penalty)
    shrink[-1] = 0.0
    target = functional.one_hot(labels, classes).to(extended)

    def gradient(at: Tensor) -> Tensor:
        errors = (extended @ at.T).softmax(dim=1) - target
        return (errors * weights[:, None]).T @ extended

    def shrunk(at: Tensor) -> Tensor:
        return at.sign() * (at.abs() - step * shrink).clamp_min(0)

    found = extended.new_zeros(classes, extended.shape[1])
    ahead, speed = found, 1.0
    for iteration in range(ITERATIONS):
        if iteration % 50 == 0:
            monitor.report(iteration / ITERATIONS, "solving the last layer")
        following = shrunk(ahead - step * gradient(ahead))
        if bool(((ahead - following) * (following - found)).sum() > 0):
            speed = 1.0  # it went past: start anew (O'Donoghue and Candès 2015)
        next_speed = (1 + (1 + 4 * speed * speed) ** 0.5) / 2
        ahead_next = following + (speed - 1) / next_speed * (following - found)
        moved = float((following - ahead).abs().max()) / step
        found, ahead, speed = following, ahead_next, next_speed
        if moved <= TOLERANCE:
            break
    return found[:, :-1], found[:, -1]


LAST_LAYER = Method(
    "last_layer",
    (
        {
            "layer": Option("the linear layer that gives the scores", _scores_layer, _check_layer),
            "strength": number("C, the inverse of the penalty", *STRENGTHS, positive=True),
        },
    ),
    _attempt,
    needs_references="as the clean groups",
)
