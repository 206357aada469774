"""How editable each layer is: which one should be edited, by three methods on one signature.

Imports torch; matplotlib and pandas only in `Localization.plot` and `Localization.to_frame`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_number, nearest
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.base.ranks import check_distributed
from rectify_widgets.engine.base.tables import frame, html_table
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.closed_form import DIRECTIONS, Unreached
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.edit.solver import MAX_RIDGE
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.candidates import RIDGES, Candidate, different, trying
from rectify_widgets.engine.find.problem import Problem, pose_problem
from rectify_widgets.engine.find.proposals import Proposals, StatisticsSource, propose_edits
from rectify_widgets.engine.measure.judge import Judge
from rectify_widgets.engine.model.gradients import PATH_STEPS
from rectify_widgets.engine.model.running import eval_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKING_METHODS = ("edit-attribution", "projection", "trial")
TRIALS = 12
"""Most edits that are tried, from the top of the ranking."""
MARGIN = 0.25
"""How far below the best trial a prediction may lie and still turn out better: the first layer of the
shipped case closes 0.93 of the gap where 0.65 is predicted from some references."""
VERIFY = 128
"""References on which an edit at the top of the ranking is tried."""


@dataclass(frozen=True, eq=False)
class Localization:
    """Editability of every layer.

    Attributes:
        scores: layer name to score, best first.  For ``"edit-attribution"`` and ``"trial"`` the
            share of the gap that the layer's edit closes (0.8 reads "80 % of the gap"); for
            ``"projection"`` a number without a unit.
        method: how it was scored.
        choices: for each layer the edit direction and the ridge of its best edit.
        completeness: for each layer the relative error with which attributions add up to the gap;
            large where the layer does not cut every path from input to output.
        refused: layers that cannot be edited, with the reason.
        order: scored layers in network order.
        kinds: what each layer is, for display.
        edits: for each layer the edit that was scored, see `edit`.
    """

    scores: Mapping[str, float]
    method: str
    choices: Mapping[str, tuple[str, float]]
    completeness: Mapping[str, float]
    refused: Mapping[str, str]
    order: tuple[str, ...]
    kinds: Mapping[str, str] = field(default_factory=dict)
    edits: Mapping[str, RankOneEdit] = field(default_factory=dict, repr=False)

    @property
    def best(self) -> str:
        """The most editable layer."""
        return next(iter(self.scores))

    def edit(self, layer: str | None = None) -> RankOneEdit:
        """The edit that gave a layer its score, ready to apply.

        ``"projection"`` scores layers without an edit; there it is the one with the best prediction.

        Args:
            layer: dotted name; None means the best layer.

        Raises:
            TypeError: ``layer`` is not a name.
            ValueError: it was not scored, cannot be edited, or the corruption does not reach it.
        """
        name = self.best if layer is None else layer
        if not isinstance(name, str):
            raise TypeError(f"layer: got {name!r}, want the dotted name of a layer, or None")
        if name in self.edits:
            return self.edits[name]
        if name in self.refused:
            raise ValueError(f"layer: {name!r} cannot be edited: {self.refused[name]}")
        if name in self.scores:
            raise Unreached(f"layer: the corruption of the pairs does not reach layer {name!r}")
        raise ValueError(
            f"layer: {name!r} was not scored{nearest(name, self.scores)}; scored layers: "
            f"{', '.join(self.scores)}"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each scored layer, best first."""
        return [
            {
                "rank": rank,
                "layer": name,
                "kind": self.kinds.get(name, ""),
                "score": score,
                "direction": self.choices[name][0] if name in self.choices else "",
                "ridge": self.choices[name][1] if name in self.choices else float("nan"),
                "completeness_error": self.completeness.get(name, float("nan")),
            }
            for rank, (name, score) in enumerate(self.scores.items(), start=1)
        ]

    def __repr__(self) -> str:
        return (
            f"Localization({self.method!r}, {len(self.scores)} layers, best {self.best!r} "
            f"with {self.scores[self.best]:.3g})"
        )

    def __str__(self) -> str:
        width = max(len("layer"), *(len(name) for name in self.scores))
        head = (
            f"{'rank':>4}  {'layer':<{width}}  {'score':>9}  {'direction':<9} {'ridge':>6}  "
            f"{'completeness error':>18}"
        )
        lines = [head]
        lines += [
            f"{row['rank']:>4}  {row['layer']:<{width}}  {row['score']:>9.3g}  "
            f"{row['direction']:<9} {row['ridge']:>6g}  {row['completeness_error']:>18.0%}"
            for row in self.rows()
        ]
        lines += [
            f"   –  {name:<{width}}  not editable: {why}" for name, why in self.refused.items()
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        top = max((abs(score) for score in self.scores.values()), default=0.0) or 1.0
        bar = "<div style='background:#3b78b0;height:.8em;width:{:.1f}em'></div>"
        rows = [
            (
                str(row["rank"]),
                f"<code>{escape(row['layer'])}</code>",
                escape(row["kind"]),
                bar.format(max(0.0, row["score"]) / top * 12),
                f"{row['score']:.3g}",
                row["direction"],
                f"{row['ridge']:g}",
            )
            for row in self.rows()
        ]
        rows += [
            ("–", f"<code>{escape(name)}</code>", f"not editable: {escape(why)}", "", "", "", "")
            for name, why in self.refused.items()
        ]
        heads = ("rank", "layer", "kind", "", "score", "direction", "ridge")
        return html_table(rows, heads, "rlllrlr")

    def to_frame(self) -> Any:
        """The rows as a pandas ``DataFrame``, best first (needs pandas)."""
        return frame(self.rows()).set_index("layer")

    def plot(self) -> Figure:
        """Bar chart of the scores in network order, the best layer marked with a star."""
        from matplotlib.figure import Figure

        names = list(self.order)
        figure = Figure(figsize=(6.4, 0.6 + 0.26 * len(names)), layout="constrained")
        axes = figure.subplots()
        values = [self.scores[name] for name in names]
        axes.barh(names, values, color=["#d55e00" if n == self.best else "#3b78b0" for n in names])
        axes.axvline(0, color="#888888", linewidth=0.8)
        for row, (name, value) in enumerate(zip(names, values, strict=True)):
            star = " ★" if name == self.best else ""
            axes.text(max(value, 0), row, f" {value:.2g}{star}", va="center", color="#888888")
        axes.invert_yaxis()
        axes.set_xlabel(f"editability ({self.method})", color="#888888")
        axes.tick_params(colors="#888888")
        axes.spines[:].set_visible(False)
        axes.margins(x=0.12)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        return figure


def localize(
    model: nn.Module,
    pairs: SamplePairs,
    *,
    reference: Inputs | None = None,
    statistics: KeyStatistics | None = None,
    method: str = "edit-attribution",
    layers: Sequence[str] | None = None,
    directions: Sequence[str] = DIRECTIONS,
    ridges: Sequence[float] = RIDGES,
    steps: int = PATH_STEPS,
    trials: int = TRIALS,
    memory_limit: int | None = None,
    seed: int = 0,
    distributed: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Localization:
    """Score every editable layer by how much of the behaviour an edit of it alone removes.

    Args:
        model: the classifier; left as it was.
        pairs: corrupted inputs and their clean counterparts.
        reference: unlabelled inputs like those of training (tensor, data set or loader).
        statistics: of ``reference``, where they have been collected already.
        method: ``"edit-attribution"`` predicts the share of the gap that each layer's closed-form
            edit closes, from one sweep over references that carry the corruption, and tries the
            edits at the top;
            ``"projection"`` is the score of Yang et al. 2026; ``"trial"`` applies each layer's edit
            and measures.
        layers: names of the layers to score, None for all.
        directions: edit directions to choose from, ``"contrast"`` and ``"key"``.
        ridges: ridges to choose from, in units of the mean diagonal of the second moment.
        steps: midpoints of the path from corrupted to clean.
        trials: bound on the edits that ``"edit-attribution"`` tries, from the top of the predicted
            ranking until no other one can be expected to do better; 0 scores by prediction
            alone.
        memory_limit: bytes to keep to, see `estimate_memory`: layers are then taken in parts, with the
            same result.
        seed: which references are used.
        distributed: divide statistics, sweep and trials among the processes of
            ``torch.distributed``, every one of which makes this call; see
            `rectify_widgets.engine.base.ranks`.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Raises:
        TypeError, ValueError: bad input; stale statistics; a corruption that reaches no layer; a
            limit that a single layer exceeds.
        Cancelled: ``cancel`` returned True.
    """
    check_choice("method", method, RANKING_METHODS)
    grid = check_grid(directions, ridges)
    check_int("steps", steps, low=1)
    check_int("trials", trials, low=0)
    check_int("seed", seed, low=0)
    ranks = check_distributed(distributed)
    monitor = Monitor(progress, cancel)
    with ExitStack() as stack:
        with ranks.together():
            module = stack.enter_context(eval_mode(model))
            problem = pose_problem(
                module, pairs, reference, statistics=statistics, layers=layers,
                memory_limit=memory_limit, seed=seed, monitor=monitor, ranks=ranks,
            )  # fmt: skip
            collector = StatisticsSource(problem, reference, statistics, seed)
        return rank_layers(
            problem, collector, method=method, directions=grid[0], ridges=grid[1], steps=steps,
            trials=trials, seed=seed, monitor=monitor,
        )  # fmt: skip


def rank_layers(
    problem: Problem,
    collector: StatisticsSource,
    *,
    method: str = "edit-attribution",
    directions: Sequence[str],
    ridges: Sequence[float],
    steps: int = PATH_STEPS,
    trials: int = TRIALS,
    seed: int,
    monitor: Monitor,
) -> Localization:
    """`localize` on a problem that has been posed, with statistics from ``collector``."""
    with problem.ranks.together():
        probe, sources = problem.probe(problem.model, seed, monitor), problem.sources(seed)
    proposals = propose_edits(
        problem, collector, probe, sources, monitor.part(0.0, 0.8),
        directions=directions, ridges=ridges, steps=steps, projection=method == "projection",
    )  # fmt: skip
    options = proposals.options
    if not any(options.values()):
        raise Unreached(
            "pairs: the corruption reaches none of the layers, so that no edit can help"
        )
    scores = layer_scores(method, problem, proposals, trials, monitor.part(0.8, 1.0))
    monitor.report(1.0, "scored all layers")
    order = tuple(problem.layers)
    ranked = dict(sorted(scores.items(), key=lambda item: (-item[1], order.index(item[0]))))
    best = {name: found[0] for name, found in options.items() if found}
    return Localization(
        scores=ranked,
        method=method,
        choices={name: (one.direction, one.ridge) for name, one in best.items()},
        completeness=proposals.completeness,
        refused=dict(problem.catalog.refused),
        order=order,
        kinds={name: layer.kind for name, layer in problem.layers.items()},
        edits={name: one.edit() for name, one in best.items()},
    )


def check_grid(
    directions: Sequence[str], ridges: Sequence[float]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The edit directions and ridges to choose from, checked."""
    kinds = (directions,) if isinstance(directions, str) else directions
    sizes = (ridges,) if isinstance(ridges, int | float | str) else ridges
    for argument, values in (("directions", kinds), ("ridges", sizes)):
        if not isinstance(values, Iterable):
            raise TypeError(f"{argument}: got {values!r}, want a list")
        if not len(values):
            raise ValueError(f"{argument}: got an empty list, want at least one")
    return (
        tuple(check_choice("directions", kind, DIRECTIONS) for kind in kinds),
        tuple(check_number("ridges", ridge, low=0.0, high=MAX_RIDGE) for ridge in sizes),
    )


def layer_scores(
    method: str, problem: Problem, proposals: Proposals, trials: int, monitor: Monitor
) -> dict[str, float]:
    """One score per layer, 0 where the corruption does not reach it.

    Where edits are tried, each layer's best one is moved to the front of its options.
    """
    options = proposals.options
    if method == "projection":
        return proposals.projection
    if method == "edit-attribution" and trials == 0:
        return {name: found[0].score if found else 0.0 for name, found in options.items()}
    if method == "edit-attribution":
        return _verified(problem, options, trials, monitor)
    scores = dict.fromkeys(options, 0.0)
    trial = Trial(problem, len(problem.references), monitor)
    for number, (name, found) in enumerate(options.items()):
        with problem.ranks.together():
            monitor.report(number / len(options), f"trying {name}")
        few = different(found)
        with trial.sharing(few):
            measured = {candidate: trial.closed(candidate) for candidate in few}
        if measured:
            best = max(measured, key=lambda candidate: measured[candidate])
            scores[name] = measured[best]
            options[name] = [best, *(other for other in found if other is not best)]
    return scores


class Trial:
    """Applies an edit, measures on up to ``count`` references, and reverts it.

    Several ranks measure on their own share of the references each.
    """

    def __init__(self, problem: Problem, count: int, monitor: Monitor) -> None:
        self._model, self._ranks, self._monitor = problem.model, problem.ranks, monitor.silent()
        rows, self._counted = problem.ranks.rows(min(count, len(problem.references)))
        with self._ranks.together():
            self._judge = Judge(
                problem.model, problem.references[rows], problem.carriers[rows], None, self._monitor
            )
        self._shares = problem.limit is None  # what is cached takes memory
        self._start = self._objective()

    @contextmanager
    def sharing(self, candidates: Iterable[Candidate]) -> Iterator[None]:
        """Try these edits without running again what comes before their layers."""
        layers = [candidate.layer for candidate in candidates] if self._shares else []
        with ExitStack() as stack:
            with self._ranks.together():
                shared = self._judge.sharing(self._model, layers, self._monitor)
                stack.enter_context(shared)
            yield

    def closed(self, candidate: Candidate) -> float:
        """Share of the gap that the edit closes, less what it disturbs."""
        with trying(candidate):
            after = self._objective(candidate.layer.name)
        return (self._start - after) / max(self._start, 1e-6)

    def _objective(self, edited: str | None = None) -> float:
        with self._ranks.together():
            objective = self._judge.measure(self._model, self._monitor, edited).objective
        return float(self._ranks.mean(torch.tensor(objective, dtype=torch.float64), self._counted))


def _verified(
    problem: Problem, options: dict[str, list[Candidate]], trials: int, monitor: Monitor
) -> dict[str, float]:
    """Scores from trials, from the top of the predictions until no other edit can be expected to win.

    The sweep follows one rival class, so that it overrates edits after which a third class wins,
    and it is a linear approximation, so that it underrates others; a few trials on some references
    correct that.  Predictions that were not tried are scaled down by as much as those that were
    tried turned out too high: on a blend they would come first otherwise.  A layer's score is that
    of its best edit.
    """
    trial = Trial(problem, VERIFY, monitor)
    queue = [candidate for found in options.values() for candidate in different(found)]
    scores = {candidate: candidate.score for candidate in queue}
    queue.sort(key=lambda candidate: -candidate.score)
    best, tried = -math.inf, list[Candidate]()
    with trial.sharing(queue[:trials]):
        for number, candidate in enumerate(queue[:trials]):
            if candidate.score + MARGIN < best:
                break
            with problem.ranks.together():
                monitor.report(number / trials, f"trying {candidate.layer.name}")
            scores[candidate] = trial.closed(candidate)
            tried.append(candidate)
            best = max(best, scores[candidate])
    predicted = sum(max(candidate.score, 0.0) for candidate in tried)
    measured = sum(max(scores[candidate], 0.0) for candidate in tried)
    for candidate in queue[len(tried) :]:
        scores[candidate] *= min(measured / max(predicted, 1e-9), 1.0)
    result = {}
    for name, found in options.items():
        ranked = sorted(different(found), key=lambda candidate: -scores[candidate])
        options[name] = [*ranked, *(other for other in found if other not in ranked)]
        result[name] = scores[ranked[0]] if ranked else 0.0
    return result
