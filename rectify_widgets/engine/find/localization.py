"""How editable each layer is: which one should be edited, by three methods on one signature.

Imports torch; matplotlib and pandas only in `Localization.plot` and `Localization.to_frame`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from torch import nn

from rectify_widgets.engine.base.checks import check_choice, check_int, check_number, nearest
from rectify_widgets.engine.base.pace import Pace
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.base.ranks import check_distributed
from rectify_widgets.engine.base.tables import frame, html_table
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs
from rectify_widgets.engine.edit.closed_form import DIRECTIONS, Unreached
from rectify_widgets.engine.edit.edits import RankOneEdit
from rectify_widgets.engine.edit.solver import MAX_RIDGE
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.candidates import RIDGES
from rectify_widgets.engine.find.problem import Problem, pose_problem
from rectify_widgets.engine.find.proposals import StatisticsSource, propose_edits
from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.model.gradients import PATH_STEPS
from rectify_widgets.engine.model.running import eval_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRIALS = 12
"""Most edits that are tried, from the top of the ranking."""


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

    Example:
        >>> found = rw.localize(model, pairs, reference=reference)
        >>> found
        Localization('edit-attribution', 3 layers, best 'classifier' with 0.9...)
        >>> found.edit("conv2")
        RankOneEdit('conv2', weight 8 × 8 × 3 × 3, ...)
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
        rows: list[dict[str, Any]] = []
        for rank, (name, score) in enumerate(self.scores.items(), start=1):
            direction, ridge = self.choices.get(name, ("", math.nan))
            row = {"rank": rank, "layer": name, "kind": self.kinds.get(name, ""), "score": score}
            error = self.completeness.get(name, math.nan)
            rows.append(row | {"direction": direction, "ridge": ridge, "completeness_error": error})
        return rows

    def __repr__(self) -> str:
        return (
            f"Localization({self.method!r}, {len(self.scores)} layers, best {self.best!r} "
            f"with {self.scores[self.best]:.3g})"
        )

    def __str__(self) -> str:
        width = max(len("layer"), *(len(name) for name in self.scores))
        head = f"{'rank':>4}  {'layer':<{width}}  {'score':>9}  {'direction':<9} {'ridge':>6}"
        lines = [
            f"{head}  {'completeness error':>18}",
            *(
                f"{row['rank']:>4}  {row['layer']:<{width}}  {row['score']:>9.3g}  "
                f"{row['direction']:<9} {row['ridge']:>6g}  {row['completeness_error']:>18.0%}"
                for row in self.rows()
            ),
            *(f"   –  {name:<{width}}  not editable: {why}" for name, why in self.refused.items()),
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
        for patch in (figure.patch, axes.patch):
            patch.set_alpha(0)
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
            edits at the top; ``"projection"`` is the score of Yang et al. 2026; ``"trial"`` applies
            each layer's edit and measures.
        layers: names of the layers to score, None for all.
        directions: edit directions to choose from, ``"contrast"`` and ``"key"``.
        ridges: ridges to choose from, in units of the mean diagonal of the second moment.
        steps: midpoints of the path from corrupted to clean.
        trials: bound on the edits that ``"edit-attribution"`` tries; 0 scores by prediction alone.
        memory_limit: bytes to keep to, see `estimate_memory`; the result is the same.
        seed: which references are used.
        distributed: divide statistics, sweep and trials among the processes of
            ``torch.distributed``, all of which make this call, see `rectify_widgets.engine.base.ranks`.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Raises:
        TypeError, ValueError: bad input; stale statistics; a corruption that reaches no layer; a
            limit that a single layer exceeds.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> print(rw.localize(model, pairs, reference=reference))
        rank  layer           score  direction  ridge  completeness error
           1  classifier      0.9...
           2  conv...
           3  conv...
    """
    check_choice("method", method, RANKING_METHODS)
    grid = check_grid(directions, ridges)
    check_int("steps", steps, low=1)
    check_int("trials", trials, low=0)
    check_int("seed", seed, low=0)
    ranks = check_distributed(distributed)
    pace = Pace(Monitor(progress, cancel))
    monitor = pace.stage("reading", lambda _: None)
    monitor.report(0.0, "looking at the pairs")
    with ExitStack() as stack:
        with ranks.together():
            module = stack.enter_context(eval_mode(model, "pairs"))
            problem = pose_problem(
                module, pairs, reference, statistics=statistics, layers=layers,
                memory_limit=memory_limit, seed=seed, monitor=monitor, ranks=ranks,
            )  # fmt: skip
            collector = StatisticsSource(problem, reference, statistics, seed)
        return rank_layers(
            problem, collector, method=method, directions=grid[0], ridges=grid[1], steps=steps,
            trials=trials, seed=seed, monitor=pace.stage("scoring", lambda _: 0.0),
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
        probe, sources = problem.probe(seed), problem.sources(seed)
    ranking = RANKING_METHODS[method]
    proposals = propose_edits(
        problem, collector, probe, sources, monitor.part(0.0, 0.9),
        directions=directions, ridges=ridges, steps=steps, measure=ranking.measure,
    )  # fmt: skip
    options = proposals.options
    if not any(options.values()):
        raise Unreached("pairs: the corruption reaches none of the layers, so no edit can help")
    scores = ranking.score(problem, proposals, trials, monitor.part(0.9, 1.0))
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
