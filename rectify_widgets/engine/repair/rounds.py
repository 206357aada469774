"""The loop behind `rectify`: round after round of collecting, ranking, solving and trying.

Imports torch only.  Each round collects the statistics that are stale, scores all layers on the
references whose prediction is still wrong, tries the best few edits, refines the best ones where the
closed form falls short, and keeps the one with the least gap plus weighted disturbance within the
budget.  Edits are solved and refined on one half of the references and judged on the other.  A round
draws from the seed and its own number alone, so that a restored loop goes on as it would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rectify_widgets.engine.base.progress import Cancelled, Monitor
from rectify_widgets.engine.edit.closed_form import Unreached
from rectify_widgets.engine.find.candidates import Candidate, different, trying
from rectify_widgets.engine.find.corrupted import THRESHOLD, corruption_scores, pick_voters
from rectify_widgets.engine.find.problem import Problem
from rectify_widgets.engine.find.proposals import Proposals, StatisticsSource, propose_edits
from rectify_widgets.engine.find.ranking import RANKING_METHODS, RankingMethod
from rectify_widgets.engine.measure.judge import Judge, Verdict
from rectify_widgets.engine.model.memory import FACTOR_ROOM
from rectify_widgets.engine.model.running import predict_all
from rectify_widgets.engine.repair.checkpoint import State
from rectify_widgets.engine.repair.diagnosis import OVER_BUDGET
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.refining import TURNS, WEAKER, Goal, refine, starts
from rectify_widgets.engine.repair.result import Step

STAGES = ("statistics", "sweep", "solving", "refining", "evaluation")
"""Stages whose time is recorded."""
TRIALS = 10
"""Edits tried in one round, before any is refined."""
ENOUGH = 0.5
"""A closed form that closes this share of the gap that is left is not refined."""
NEAR = 2.0
"""Nor is one within this many times the target.  Both were chosen with test figures in view."""
LEAST_GAIN = 1e-3
"""An edit that improves the objective by less is not kept."""
MOST_CORRUPTED = 0.5
"""If more references than this look corrupted, the detection has failed and is not used."""
SAME = 1e-3
"""Two measurements of one gap, perhaps on two machines, differ by less."""


@dataclass
class _Trials:
    """The trials of one round."""

    number: int
    """Number of the round."""
    scores: Mapping[str, float]
    """Editability of the layers in it."""
    measured: list[tuple[float, Candidate]] = field(default_factory=list)
    """Objective and edit of each trial that was measured to the end."""
    best: tuple[Candidate, Verdict, int] | None = None
    """The edit to keep, its verdict, and its row among all steps."""


class Rounds:
    """A rectification in progress: the problem, its options, and the edits and trials so far."""

    def __init__(
        self,
        problem: Problem,
        validation: tuple[Tensor, Tensor] | None,
        options: RectifyOptions,
        monitor: Monitor,
    ) -> None:
        self.problem = problem
        self.state: State
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._nested = 0.0
        self._validation = validation
        self._options = options
        self._method = RANKING_METHODS[options.method]
        self._refine_steps = options.refine_steps or 0
        self._split([], monitor)

    def restore(self, state: State) -> None:
        """Continue from a state: the same references, edits and figures.

        Raises:
            ValueError: the model does not predict as it did when the state was written.
        """
        if state.flagged:
            self._split(state.flagged, Monitor())
        if abs(self.state.start.gap - state.start.gap) > SAME:
            raise ValueError(
                f"checkpoint: it began at a gap of {state.start.gap:.4f}, and the same model and "
                f"references now have one of {self.state.start.gap:.4f}; delete it to start over"
            )
        for edit in state.edits:
            edit.apply(self.problem.model)
        for stage in STAGES:
            self._seconds[stage] += state.seconds[stage]
        self.state = replace(state, seconds=self._seconds)

    def run(self, monitor: Monitor, save: Callable[[], None]) -> str:
        """Run the rounds, calling ``save`` before the first and after each; returns why it ended."""
        stopped, max_rounds = "round limit", self._options.rounds
        save()
        try:
            for number in range(self.state.rounds + 1, max_rounds + 1):
                if self.state.now.gap <= self._options.target_gap:
                    break
                part = monitor.part((number - 1) / max_rounds, number / max_rounds)
                if not self._round(number, part):
                    stopped = "no layer helps"
                    break
                self.state.rounds = number
                save()
        except Cancelled:
            # The best edit of the round that was interrupted has not been applied.
            for row, step in enumerate(self.state.steps):
                if step.accepted and step.round == number:
                    self._reject(row, "cancelled")
            return "cancelled"
        if self.state.now.gap <= self._options.target_gap:
            stopped = "target"
        with suppress(Cancelled):  # there is nothing left to stop
            monitor.report(1.0, f"stopped: {stopped}")
        return stopped

    def _split(self, flagged: list[int], monitor: Monitor) -> None:
        """Solve on one half of the other references and judge on the other, if there are enough."""
        rows = torch.arange(len(self.problem.references))
        if flagged:
            rows = rows[~torch.isin(rows, torch.tensor(flagged))]
        self.solving, self.judging = self.problem.halves(rows, self._options.seed)
        judged = self.judging
        self.shared = torch.equal(self.solving.references, judged.references)
        room = 0 if self.problem.limit else FACTOR_ROOM
        self._collected = StatisticsSource(self.solving, None, None, self._options.seed, room)
        with self._clock("evaluation"):
            self._judge = Judge(
                self.problem.model, judged.references, judged.carriers, self._validation, monitor
            )
            start = self._judge.measure(self.problem.model, monitor.silent())
        self.state = State(start=start, now=start, seconds=self._seconds, flagged=flagged)
        self._goal: Goal | None = None
        if self._refine_steps and not self.shared:  # otherwise overfitting would go unnoticed
            with self._clock("refining"):
                scores = predict_all(self.problem.model, self.solving.references, monitor=monitor)
            self._goal = Goal(self.solving.carriers, self.solving.references, scores.softmax(dim=1))

    def _round(self, number: int, monitor: Monitor) -> bool:
        """One round; returns whether an edit was kept."""
        monitor.report(0.0, f"round {number}: proposing edits")
        proposals = self._propose(number, monitor.part(0.0, 0.25))
        if number == 1 and self._leave_out_corrupted(proposals.options, monitor):
            proposals = self._propose(number, monitor.part(0.25, 0.5))
        options, required = proposals.options, self._options.layer
        if required is not None and not options[required]:
            raise Unreached(f"layer: the corruption of the pairs does not reach layer {required!r}")
        monitor.report(0.5, f"round {number}: ranking layers")
        with self._clock("sweep"):
            scores = self._method.score(self.solving, proposals, 0, monitor.part(0.5, 0.6))
        shortlist = _shortlist(options, scores, self._method)
        with self._clock("evaluation"):
            return self._keep_best(_Trials(number, scores), shortlist, monitor.part(0.6, 1.0))

    def _propose(self, number: int, monitor: Monitor) -> Proposals:
        """Collect what is stale, sweep, and solve for every layer."""
        problem = self.solving
        options, seed = self._options, self._options.seed + number
        with self._clock("sweep"):
            probe = problem.probe(problem.model, seed, monitor)
        return propose_edits(
            problem, self._collected, probe, problem.sources(seed), monitor,
            directions=options.directions, ridges=options.ridges,
            measure=self._method.measure, clock=self._clock,
        )  # fmt: skip

    def _leave_out_corrupted(
        self, options: Mapping[str, list[Candidate]], monitor: Monitor
    ) -> bool:
        """Drop references that carry the corruption already; returns whether there were any."""
        voters, problem = pick_voters(options), self.problem
        if not problem.given or not voters:
            return False
        with self._clock("evaluation"):
            scores = corruption_scores(
                problem.model, problem.pairs, voters, problem.references, monitor
            )
        corrupted = scores > THRESHOLD
        share = float(corrupted.float().mean())
        if share > MOST_CORRUPTED:
            self.state.suspected = share
        if not bool(corrupted.any()) or share > MOST_CORRUPTED:
            return False
        self._split(corrupted.nonzero().flatten().tolist(), monitor)
        return True

    def _keep_best(self, trials: _Trials, shortlist: list[Candidate], monitor: Monitor) -> bool:
        """Try the shortlist on the judging references; returns whether an edit was kept.

        Where none closes much of the gap, the best edits of some layers are refined and tried again.
        """
        model, number = self.problem.model, trials.number
        # What is cached takes memory, which a limit may not allow.
        layers = [] if self.problem.limit else [candidate.layer for candidate in shortlist]
        with self._judge.sharing(model, layers, monitor):
            share = monitor.part(0.0, 0.5 if self._goal else 1.0)
            for position, candidate in enumerate(shortlist):
                name = candidate.layer.name
                share.report(position / len(shortlist), f"round {number}: trying {name}")
                self._try(candidate, trials, monitor)
            if self._goal and self._falls_short(trials.best):
                chosen = starts(trials.measured, shortlist)
                for position, candidate in enumerate(chosen):
                    part = monitor.part(*(0.5 + 0.5 * (position + i) / len(chosen) for i in (0, 1)))
                    self._refine(candidate, trials, part)
        monitor.report(1.0, f"round {number}: done")
        if trials.best is None:
            return False
        candidate, self.state.now, _ = trials.best
        edit = candidate.edit()
        edit.apply(model)
        self.state.edits.append(edit)
        self._collected.forget(self.problem.catalog.after(candidate.layer.name))
        return True

    def _refine(self, candidate: Candidate, trials: _Trials, monitor: Monitor) -> None:
        """Refine an edit and try it; over the budget, again more strictly, and finally scaled down."""
        assert self._goal is not None  # noqa: S101 - checked before
        for turn in range(TURNS):
            with self._clock("refining"):
                candidate = refine(
                    self.problem.model, candidate, self._goal, steps=self._refine_steps,
                    seed=self._options.seed + trials.number, turn=turn,
                    monitor=monitor.part(turn / TURNS, (turn + 1) / TURNS),
                )  # fmt: skip
            if self._try(candidate, trials, monitor) != OVER_BUDGET:
                return
        self._try(replace(candidate, left=WEAKER * candidate.left), trials, monitor)

    def _falls_short(self, best: tuple[Candidate, Verdict, int] | None) -> bool:
        """Whether the best closed form of a round leaves much of the gap, relatively and absolutely."""
        left = self.state.now.gap if best is None else best[1].gap
        return left > NEAR * self._options.target_gap and left > (1.0 - ENOUGH) * self.state.now.gap

    def _try(self, candidate: Candidate, trials: _Trials, monitor: Monitor) -> str | None:
        """Measure an edit, record the step, and remember the edit if it is the best so far.

        Returns why it is not kept, see `_objection`.
        """
        best = trials.best
        bar = (best[1] if best else self.state.now).objective
        began = time.perf_counter()
        name, model = candidate.layer.name, self.problem.model
        with trying(candidate):
            verdict = self._judge.measure_below(model, bar, monitor, name)
        reason = self._objection(verdict, bar)
        step = Step(
            round=trials.number,
            layer=name,
            score=trials.scores[name],
            direction=candidate.direction,
            ridge=candidate.ridge,
            gap_before=self.state.now.gap,
            gap_after=verdict.gap if verdict else None,
            degradation_before=self.state.now.degradation,
            degradation_after=verdict.degradation if verdict else None,
            worst_class=verdict.worst_class if verdict else None,
            accepted=reason is None,
            reason=reason or "best of this round",
            seconds=time.perf_counter() - began,
            sufferer=verdict.sufferer if verdict else None,
            refined=candidate.refined,
        )
        self.state.steps.append(step)
        if verdict is None:
            return reason
        trials.measured.append((verdict.objective, candidate))
        if reason is None:
            if best is not None:
                by = f"{name}{', refined,' if candidate.refined else ''} did better"
                self._reject(best[2], by)
            trials.best = (candidate, verdict, len(self.state.steps) - 1)
        return reason

    def _objection(self, verdict: Verdict | None, bar: float) -> str | None:
        """Why an edit is not kept; None where it is the best so far."""
        if verdict is None:
            return "closes too little of the gap"
        if verdict.objective > self.state.now.objective - LEAST_GAIN:
            return "gap and disturbance together do not fall"
        if not verdict.within(max(self._options.max_degradation, self.state.now.degradation)):
            return OVER_BUDGET
        return None if verdict.objective < bar else "another edit of this round did better"

    def _reject(self, row: int, reason: str) -> None:
        self.state.steps[row] = replace(self.state.steps[row], accepted=False, reason=reason)

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        """Count the block's time as that stage's, without that of stages nested in it."""
        began, around, self._nested = time.perf_counter(), self._nested, 0.0
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._seconds[stage] += took - self._nested
            self._nested = around + took


def _shortlist(
    options: Mapping[str, list[Candidate]], scores: Mapping[str, float], method: RankingMethod
) -> list[Candidate]:
    """The edits to try: by prediction, or the best of each layer in the order of another method."""
    few = {name: different(each) for name, each in options.items()}
    if method.by_edit:
        mixed = [candidate for each in few.values() for candidate in each]
        return sorted(mixed, key=lambda candidate: -candidate.score)[:TRIALS]
    ranked = sorted(few, key=lambda name: -scores[name])
    return [candidate for name in ranked for candidate in few[name]][:TRIALS]
