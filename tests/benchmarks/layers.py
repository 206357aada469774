"""Which layer: every ranking against what the edits of all layers really do.

Imports the engine's rooms and the cases.  Beside the three methods of `localize` it tries what could make the
formula of Yang et al. 2026 independent of a layer's activation scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import Tensor, nn

from rectify_widgets.cases.case import Case
from rectify_widgets.cases.figures import Labelled
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.closed_form import Unreached, closed_form, key_sums
from rectify_widgets.engine.edit.solver import DenseSolver
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.candidates import Candidate, effect, sweep_probe, trying
from rectify_widgets.engine.find.problem import Problem, pose_problem
from rectify_widgets.engine.find.proposals import Proposals, StatisticsSource, propose_edits
from rectify_widgets.engine.find.ranking import RANKING_METHODS, VERIFY
from rectify_widgets.engine.model.gradients import PATH_STEPS
from rectify_widgets.engine.model.keys import Keys
from rectify_widgets.engine.model.running import eval_mode, predict_all

TRIALS = 12
TEST = 2000
"""Test inputs on which each layer's edit is measured."""

RANKINGS = {
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


def rank_layers(case: Case, pair: int, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """Regret (a fraction), rank correlation and chosen layer of every method, from one pair.

    Regret is the corrupted accuracy after the oracle's edit minus that after the edit of the layer
    that a method ranks first; what methods are ranked against are the edits they would choose.

    Args:
        case: a Trojan.
        pair: which of its pairs, also the seed.
        limit: test images that are measured on; None takes `TEST`.
    """
    scores, accuracy = _one_pair(case, pair, limit or TEST)
    oracle = max(scores["trial"], key=lambda name: scores["trial"][name])
    found = {}
    for method, ranking in scores.items():
        best = max(ranking, key=lambda name: ranking[name])
        measured = _accuracy(accuracy, method)
        regret = accuracy["trial"][oracle] - measured[best]
        rho = spearman(ranking, measured)
        found[method] = {"regret": regret, "spearman": rho, "layer": best}
    return found


def spearman(scores: Mapping[str, float], measured: Mapping[str, float]) -> float:
    """Rank correlation over the layers that were measured; 0 where one of the two is constant."""
    both = pd.DataFrame({"score": scores, "measured": measured}).dropna().rank()
    constant = bool((both.nunique() < 2).any())
    return 0.0 if constant else float(both["score"].corr(both["measured"]))


def _accuracy(accuracy: Mapping[str, dict[str, float]], method: str) -> dict[str, float]:
    """Measured accuracy of each layer's edit as the method picks it within the layer."""
    return accuracy[method if method in accuracy else "prediction alone"]


def _one_pair(
    case: Case, pair: int, tests: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Scores by method and layer, and corrupted accuracy by method and layer."""
    monitor = Monitor()
    corrupted = case.corrupted[0][:tests], case.corrupted[1][:tests]
    scores: dict[str, dict[str, float]] = {}
    accuracy: dict[str, dict[str, float]] = {}
    with eval_mode(case.model) as model:
        problem = pose_problem(model, case.pairs[pair], case.reference, seed=pair)
        collected = StatisticsSource(problem, None, None, pair)
        probe = problem.probe(pair)
        looked = propose_edits(problem, collected, probe, problem.sources(pair), monitor)
        known: dict[int, float] = {}
        for method, name, trials in (
            ("prediction alone", "edit-attribution", 0),
            ("edit-attribution", "edit-attribution", TRIALS),
            ("trial", "trial", 0),
        ):
            own = dict(looked.options)
            scores[method] = RANKING_METHODS[name].score(problem, Proposals(own), trials, monitor)
            accuracy[method] = {
                layer: _restored(corrupted, model, found[0], known) if found else 0.0
                for layer, found in own.items()
            }
        scores |= projections(problem, collected.of(problem.layers, monitor))
    return scores, accuracy


def _restored(
    corrupted: Labelled, model: nn.Module, candidate: Candidate, known: dict[int, float]
) -> float:
    """Corrupted accuracy on test inputs with the edit in the model."""
    if id(candidate) not in known:
        inputs, labels = corrupted
        with trying(candidate):
            right = predict_all(model, inputs).argmax(dim=1) == labels
        known[id(candidate)] = float(right.float().mean())
    return known[id(candidate)]


def projections(problem: Problem, statistics: KeyStatistics) -> dict[str, dict[str, float]]:
    """The paper's score on the pair, and what could make it independent of activation scale."""
    model, probe = problem.model, problem.pair_probe()
    seen = sweep_probe(model, problem.layers, probe, steps=PATH_STEPS, monitor=Monitor())
    corrupted, clean = seen.corrupted, seen.clean
    result: dict[str, dict[str, float]] = {
        method: dict.fromkeys(problem.layers, 0.0)
        for method in RANKINGS
        if method.startswith("projection")
    }
    for name, gradients in seen.path_gradients.items():
        solver = DenseSolver(name, statistics[name].moment)
        attributions = (clean[name] - corrupted[name]).values() * gradients
        summed = corrupted[name].gather(attributions)
        projected = solver.solve(summed, 1e-3)
        size = problem.layers[name].key_size
        result["projection"][name] = float(projected.norm())
        result["projection / K"][name] = float(projected.norm()) / size**0.5
        result["projection, whitened"][name] = float(solver.whiten(summed, 1e-3).norm())
        result["projection, cosine"][name] = _cosine(
            projected, attributions, corrupted[name], solver
        )
        result["projection, signed"][name] = _signed(
            corrupted[name], clean[name], solver, gradients, float(seen.gap.mean())
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
