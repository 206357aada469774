"""Which layer: every ranking against what the edits of all layers really do.

Imports the engine's rooms.  Beside the three methods of `localize` it tries what could make the
formula of Yang et al. 2026 independent of a layer's activation scale.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from rectify_widgets.benchmarks.measure import PER_CENT, Subject
from rectify_widgets.benchmarks.tables import Table, spearman, spread
from rectify_widgets.engine.attribution import sweep
from rectify_widgets.engine.candidates import (
    Candidate,
    effect,
    layer_keys,
    observe,
    runner_up,
    trying,
)
from rectify_widgets.engine.editing import Unreached, closed_form, key_sums
from rectify_widgets.engine.inspection import inspecting, predict_all
from rectify_widgets.engine.layers import Keys
from rectify_widgets.engine.localization import (
    STEPS,
    VERIFY,
    layer_options,
    layer_scores,
    statistics_for,
)
from rectify_widgets.engine.progress import Monitor
from rectify_widgets.engine.scene import Scene, look
from rectify_widgets.engine.solver import DenseSolver
from rectify_widgets.engine.statistics import KeyStatistics

TRIALS = 12
TEST = 2000
"""Test inputs on which each layer's edit is measured."""

METHODS = {
    "trial": "every layer's edits measured on all references (the oracle)",
    "edit-attribution": f"predicted, then tried from the top on {VERIFY} references (the default)",
    "prediction alone": "edit-attribution without a trial",
    "projection": "the paper's ‖Σ M (C⁻¹k̃)ᵀ‖",
    "projection / K": "the paper's, divided by the square root of the key size",
    "projection, whitened": "‖Σ M (L⁻¹k̃)ᵀ‖ with LLᵀ = C: no unit of the activations left",
    "projection, cosine": "the paper's, divided by ‖M‖ ‖C⁻¹k̃‖",
    "projection, signed": "the paper's direction, signed sum instead of the norm, in shares of the "
    "gap: the attribution of the closed-form edit, on the pair itself",
}


def measure_layers(subject: Subject, pairs: int, progress: Monitor) -> Table:
    """Regret and rank correlation of every method, over ``pairs`` pairs."""
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    chosen: dict[str, list[str]] = {method: [] for method in METHODS}
    for pair in range(pairs):
        progress.report(pair / pairs, f"pair {pair + 1} of {pairs}")
        scores, accuracy = _one_pair(subject, pair)
        oracle = max(scores["trial"], key=lambda name: scores["trial"][name])
        for method, ranking in scores.items():
            best = max(ranking, key=lambda name: ranking[name])
            regret = accuracy["trial"][oracle] - _accuracy(accuracy, method)[best]
            measured = _accuracy(accuracy, method)
            rho = spearman([ranking[n] for n in measured], [measured[n] for n in measured])
            found[method].append((regret, rho))
            chosen[method].append(best)
    table = Table(
        "layers",
        f"{subject.name}: one edit of the layer that each method ranks first, {pairs} pairs.  "
        "Regret: corrupted accuracy (points) after the oracle's edit minus after the chosen one.",
    )
    for method, what in METHODS.items():
        regrets = [regret for regret, _ in found[method]]
        table.add(
            method=method,
            within_5_points=f"{sum(regret <= 0.05 for regret in regrets)} of {pairs}",
            regret=spread(regrets, PER_CENT),
            spearman=spread(rho for _, rho in found[method]),
            chosen=", ".join(
                f"{name} ×{chosen[method].count(name)}" for name in dict.fromkeys(chosen[method])
            ),
            what=what,
        )
    return table


def _accuracy(accuracy: Mapping[str, dict[str, float]], method: str) -> dict[str, float]:
    """Measured accuracy of each layer's edit as the method picks it within the layer."""
    return accuracy[method if method in accuracy else "prediction alone"]


def _one_pair(
    subject: Subject, pair: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Scores by method and layer, and corrupted accuracy by method and layer."""
    monitor = Monitor()
    scores: dict[str, dict[str, float]] = {}
    accuracy: dict[str, dict[str, float]] = {}
    with inspecting(subject.model) as model:
        scene = look(model, subject.pairs[pair], subject.references, seed=pair)
        statistics = statistics_for(scene, scene.references, None, pair, monitor)
        probe = scene.probe(model, pair)
        seen = observe(model, scene.layers, probe, steps=STEPS, monitor=monitor)
        options = layer_options(scene, model, statistics, seen, scene.sources(pair), monitor)
        known: dict[int, float] = {}
        for method, name, trials in (
            ("prediction alone", "edit-attribution", 0),
            ("edit-attribution", "edit-attribution", TRIALS),
            ("trial", "trial", 0),
        ):
            own = dict(options)
            scores[method] = layer_scores(name, scene, statistics, own, STEPS, trials, monitor)
            accuracy[method] = {
                layer: _restored(subject, model, found[0], known) if found else 0.0
                for layer, found in own.items()
            }
        scores |= projections(scene, statistics)
    return scores, accuracy


def _restored(
    subject: Subject, model: nn.Module, candidate: Candidate, known: dict[int, float]
) -> float:
    """Corrupted accuracy on test inputs with the edit in the model."""
    if id(candidate) not in known:
        inputs, labels = subject.corrupted[0][:TEST], subject.corrupted[1][:TEST]
        with trying(candidate):
            right = predict_all(model, inputs).argmax(dim=1) == labels
        known[id(candidate)] = float(right.float().mean())
    return known[id(candidate)]


def projections(scene: Scene, statistics: KeyStatistics) -> dict[str, dict[str, float]]:
    """The paper's score on the pair, and what could make it independent of activation scale."""
    model, probe = scene.model, scene.pair_probe()
    rivals = runner_up(predict_all(model, probe.corrupted), probe.labels)
    path = sweep(
        model, scene.layers, probe.corrupted, probe.clean, probe.labels, rivals,
        steps=STEPS, monitor=Monitor(),
    )  # fmt: skip
    corrupted = layer_keys(model, scene.layers, probe.corrupted)
    clean = layer_keys(model, scene.layers, probe.clean)
    result: dict[str, dict[str, float]] = {
        method: dict.fromkeys(scene.layers, 0.0)
        for method in METHODS
        if method.startswith("projection")
    }
    for name, gradients in path.gradients.items():
        solver = DenseSolver(name, statistics[name].moment)
        attributions = (clean[name] - corrupted[name]).values() * gradients
        summed = corrupted[name].gather(attributions)
        projected = solver.solve(summed, 1e-3)
        size = scene.layers[name].key_size
        result["projection"][name] = float(projected.norm())
        result["projection / K"][name] = float(projected.norm()) / size**0.5
        result["projection, whitened"][name] = float(solver.whiten(summed, 1e-3).norm())
        result["projection, cosine"][name] = _cosine(
            projected, attributions, corrupted[name], solver
        )
        result["projection, signed"][name] = _signed(
            corrupted[name], clean[name], solver, gradients, float(path.gap.mean())
        )
    return result


def _cosine(projected: Tensor, attributions: Tensor, keys: Keys, solver: DenseSolver) -> float:
    """The norm over what it would be if all positions pointed the same way."""
    rows = solver.solve(keys.unfold().permute(1, 0, 3, 2).flatten(1, 2), 1e-3)
    whole = attributions.norm() * rows.norm()
    return float(projected.norm() / whole.clamp_min(1e-30))


def _signed(
    corrupted: Keys, clean: Keys, solver: DenseSolver, gradients: Tensor, gap: float
) -> float:
    """Share of the gap that the closed-form edit in the paper's direction carries on the pair."""
    try:
        source = key_sums(corrupted.layer, corrupted, clean)["key"]
    except (Unreached, KeyError):
        return 0.0
    right = solver.solve(source.unsqueeze(1), 1e-3)
    left = closed_form(right, corrupted, clean)
    return float(effect(left, right, gradients, corrupted).mean()) / gap
