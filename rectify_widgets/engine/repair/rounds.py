"""The loop behind `rectify`: round after round of collecting, ranking, solving and trying.

Imports torch only.  Each round collects the statistics that are stale, scores all layers on the
references whose prediction is still wrong, tries the best few edits, and keeps the one with the least
gap plus weighted disturbance within the budget.  Where the best closed form leaves much or costs much,
edits of all layers are refined together, and if they do better they are kept and end the loop.
Edits are solved and refined on one half of the references and judged on the other.  A round draws
from the seed and its own number alone, so that a restored loop goes on as it would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from rectify_widgets.engine.base.pace import Pace
from rectify_widgets.engine.base.progress import UNKNOWN, Cancelled, Monitor
from rectify_widgets.engine.edit.closed_form import Unreached
from rectify_widgets.engine.find.candidates import Candidate, trying
from rectify_widgets.engine.find.corrupted import carrying, pick_voters
from rectify_widgets.engine.find.problem import Problem
from rectify_widgets.engine.find.proposals import Proposals, StatisticsSource, propose_edits
from rectify_widgets.engine.find.ranking import RANKING_METHODS
from rectify_widgets.engine.measure.judge import Judge, Verdict
from rectify_widgets.engine.model.gradients import large, quick_steps
from rectify_widgets.engine.model.heads import answers, changed
from rectify_widgets.engine.model.running import predict_all
from rectify_widgets.engine.repair.checkpoint import State
from rectify_widgets.engine.repair.diagnosis import OVER_BUDGET
from rectify_widgets.engine.repair.joint import (
    JOINT,
    Refined,
    as_candidates,
    by_use,
    fewest,
    goal_of,
    left_out,
    some_layers,
    together,
)
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.refining import KEEP, LEFT, ROOM, STRICTER, first_factors, refine
from rectify_widgets.engine.repair.shortlist import TRIALS, shortlist
from rectify_widgets.engine.repair.trials import SHARE, Trials, rounds_to_come

STAGES = ("statistics", "sweep", "solving", "refining", "evaluation")
"""Stages whose time is recorded."""
ENOUGH = 0.5
"""A closed form that closes this share of the gap that is left, within `ROOM` of the budget, is not refined."""
NEAR = 2.0
"""Nor is one within this many times the target.  Both were chosen with test figures in view."""
REHEARSED = 192
"""References of those to solve from that say which of the refined edits are idle."""
REPEATS = 2
"""Rounds at most that try edits of all layers together."""
TURNS = 3
"""Most times that edits of many layers are refined, each time more strictly or more boldly."""
EACH = 1.2
"""Measurements that choosing and keeping a refined edit takes; a few are dropped, the others take two."""
LEAST_GAIN = 1e-3
"""An edit that improves the objective by less is not kept."""
MOST_CORRUPTED = 0.5
"""If more references than this look corrupted, the detection has failed and is not used."""
WHEN_CANCELLED = "best so far when cancelled"
"""Why the edit is kept that was the best of a round which did not come to its end."""
REFINED = "layers refined"
"""Why a rectification has ended whose last edits were refined together: what they leave, no other closes."""
SAME = 1e-3
"""Two measurements of one gap, perhaps on two machines, differ by less."""


class Rounds:
    """A rectification in progress: the problem, its options, and the edits and trials so far."""

    def __init__(
        self,
        problem: Problem,
        validation: tuple[Tensor, Tensor] | None,
        options: RectifyOptions,
        pace: Pace,
    ) -> None:
        monitor = pace.stage("starting", lambda _: None)
        monitor.report(0.0, "predicting pairs and references")
        self.problem, self._pace = problem, pace
        self.state: State
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._nested = 0.0
        self._trials = Trials(0, {})
        self._options, self._validation = options, validation
        self._method = RANKING_METHODS[options.method]
        self._refine_steps = options.refine_steps or 0
        self._plain, self._large = answers(problem.before.pairs[1]), large(problem.references)
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

    def run(self, save: Callable[[], None]) -> str:
        """Run the rounds, calling ``save`` before the first and after each; returns why it ended."""
        stopped, max_rounds = "round limit", self._options.rounds
        save()
        try:
            for number in range(self.state.rounds + 1, max_rounds + 1):
                if self._done() or self._refined():
                    break
                if not self._round(number):
                    stopped = "no layer helps"
                    break
                self.state.rounds = number
                save()
        except Cancelled:
            best = self._trials.best
            if best is not None:  # of the round that was interrupted, within the budget
                row = best[2]
                self.state.steps[row] = replace(self.state.steps[row], reason=WHEN_CANCELLED)
                self._keep_edit(self._trials)
            return "cancelled"
        if self._done():
            stopped = "target"
        elif self._refined():  # another round would change nothing
            stopped = REFINED
        return stopped

    def _done(self) -> bool:
        """Whether the gap is closed and the corruption changes the prediction of no pair any more."""
        if self.state.now.gap > self._options.target_gap:
            return False
        now = predict_all(self.problem.model, self.problem.pairs.corrupted)
        return not bool(changed(answers(now), self._plain).any())

    def _refined(self) -> bool:
        """Whether edits of all layers are kept, after which no round follows."""
        return any(edit.direction == JOINT for edit in self.state.edits)

    def _split(self, flagged: list[int], monitor: Monitor) -> None:
        """Solve on one half of the other references and judge on the other, if there are enough."""
        rows = torch.arange(len(self.problem.references))
        if flagged:
            rows = rows[~torch.isin(rows, torch.tensor(flagged))]
        self.solving, self.judging = self.problem.halves(rows, self._options.seed)
        self.shared = torch.equal(self.solving.references, self.judging.references)
        self._collected = StatisticsSource(
            self.solving, None, None, self._options.seed, self.problem.room
        )
        with self._clock("evaluation"):
            self._judge = self.judging.judge(monitor, self._validation, steady=True)
        start = self._judge.original(self.judging.before.carriers)
        self._measuring = self._judge.inputs * self.judging.before.seconds
        self._trying = SHARE * TRIALS * self._measuring
        self.state = State(start=start, now=start, seconds=self._seconds, flagged=flagged)
        self._rehearsal: Judge | None = None
        if self._refine_steps and not self.shared:  # otherwise overfitting would go unnoticed
            with self._clock("refining"):
                self._rehearsal = self.solving.only(slice(0, REHEARSED)).judge(monitor)

    def _round(self, number: int) -> bool:
        """One round; returns whether an edit was kept."""
        self._trials = Trials(number, {})
        monitor = self._pace.stage("proposing", self._after_proposing)
        monitor.report(0.0, f"round {number}: proposing edits")
        proposals = self._propose(number, monitor.part(0.0, 0.95))
        if number == 1 and self._leave_out_corrupted(proposals.options, monitor.silent()):
            monitor = self._pace.stage("proposing", self._after_proposing)
            proposals = self._propose(number, monitor.part(0.0, 0.95))
        options, required = proposals.options, self._options.layer
        if required is not None and not options[required]:
            raise Unreached(f"layer: the corruption of the pairs does not reach layer {required!r}")
        monitor = self._pace.stage("ranking", self._after_proposing)
        monitor.report(0.0, f"round {number}: ranking layers")
        with self._clock("sweep"):
            scores = self._method.score(self.solving, proposals, 0, monitor)
        chosen = shortlist(options, scores, self._method, hopeful=self._large)
        with self._clock("evaluation"):
            self._trials = Trials(number, scores, len(chosen))
            return self._keep_best(self._trials, chosen)

    def _after_proposing(self, cost: float) -> float | None:
        """Seconds to expect after a stage of this round before its trials, which takes ``cost``."""
        if self._may_refine():
            return None
        trying = self._pace.took.get("trying", self._trying)
        return trying + self._rounds_to_come() * (cost + trying)

    def _after_trying(self, cost: float) -> float | None:
        """Seconds to expect after the trials of this round, which take ``cost``."""
        trials = self._trials
        if self._may_refine():
            return None
        if trials.best and trials.best[1].gap <= self._options.target_gap:
            return 0.0
        return self._rounds_to_come() * (self._pace.took["proposing"] + cost)

    def _may_refine(self) -> bool:
        """Whether edits may be refined, which takes far longer than all else; not if a time was told."""
        best = self._trials.best
        left = best[1].gap if best else self.state.now.gap
        told = self._pace.fraction > UNKNOWN
        return self._rehearsal is not None and not told and left > NEAR * self._options.target_gap

    def _rounds_to_come(self) -> float:
        """Rounds to expect after this one: the fewer, the more trials there were without success."""
        trials, at_most = self._trials, self._options.rounds - self._trials.number
        if trials.best:
            return min(1.0 + rounds_to_come(trials.number, at_most), at_most)
        tried = sum(step.round == trials.number for step in self.state.steps)
        failing = 1.0 - tried / trials.count if trials.count else 1.0
        return failing**2 * rounds_to_come(trials.number - 1, at_most)

    def _propose(self, number: int, monitor: Monitor) -> Proposals:
        """Collect what is stale, sweep, and solve for every layer."""
        problem = self.solving
        options, seed = self._options, self._options.seed + number
        with self._clock("sweep"):
            scores = None
            if self.state.edits and problem.corruption is not None:
                scores = predict_all(problem.model, problem.carriers, monitor=monitor)
            probe = problem.probe(seed, scores)
        return propose_edits(
            problem, self._collected, probe, problem.sources(seed), monitor,
            directions=options.directions, ridges=options.ridges,
            steps=quick_steps(probe.clean), measure=self._method.measure, clock=self._clock,
        )  # fmt: skip

    def _leave_out_corrupted(
        self, options: Mapping[str, list[Candidate]], monitor: Monitor
    ) -> bool:
        """Drop references that carry the corruption already; returns whether there were any."""
        voters, problem = pick_voters(options), self.problem
        if problem.corruption is None or not voters:
            return False
        with self._clock("evaluation"):
            corrupted, more = carrying(problem, voters, monitor)
        share = float(corrupted.float().mean())
        if share > MOST_CORRUPTED:
            self.state.suspected = share
            return False
        if bool(corrupted.any()):
            self._split(corrupted.nonzero().flatten().tolist(), monitor)
        self.state.spare_flagged = more.nonzero().flatten().tolist()
        return bool(corrupted.any())

    def _keep_best(self, trials: Trials, chosen: list[Candidate]) -> bool:
        """Try the chosen edits on the judging references; returns whether an edit was kept.

        Where none closes much of the gap at little cost, edits of all layers are refined together and tried.
        """
        model, number = self.problem.model, trials.number
        monitor = self._pace.stage("trying", self._after_trying, self._trying)
        # What is cached takes memory, which a limit may not allow.
        layers = [] if self.problem.limit else [candidate.layer for candidate in chosen]
        monitor.report(0.0, f"round {number}: trying {len(chosen)} edits")
        hopeless = set[str]()
        with self._judge.sharing(model, layers, monitor):
            for position, candidate in enumerate(chosen):
                name = candidate.layer.name
                monitor.report(position / len(chosen), f"round {number}: trying {name}")
                if name not in hopeless and not self._try(candidate, trials, monitor.silent()):
                    hopeless.add(name)
        if (
            self._rehearsal
            and self._falls_short(trials.best)
            and len({step.round for step in self.state.steps if step.direction == JOINT}) < REPEATS
            and self._refine(self._rehearsal, trials)
        ):
            return True
        monitor.report(1.0, f"round {number}: done")
        return self._keep_edit(trials)

    def _keep_edit(self, trials: Trials) -> bool:
        """Keep the best edit that was tried, if there is one; asks nobody whether to stop."""
        if trials.best is None:
            return False
        (candidate, self.state.now, _), trials.best = trials.best, None
        self._keep(candidate)
        return True

    def _keep(self, candidate: Candidate) -> None:
        edit = candidate.edit()
        edit.apply(self.problem.model)
        self.state.edits.append(edit)
        self._collected.forget(self.problem.catalog.after(candidate.layer.name))

    def _refine(self, rehearsal: Judge, trials: Trials) -> bool:
        """Refine edits of all layers together; returns whether they were kept."""
        found: Refined | None = None
        try:
            for better in self._refinements(rehearsal, trials):
                found = better
        except Cancelled:
            if found:
                self._keep_all(*found, trials)
            raise
        if found:
            self._keep_all(*found, trials)
        return found is not None

    def _refinements(self, rehearsal: Judge, trials: Trials) -> Iterator[Refined]:
        """Edits to keep, ever better: over the budget refined on more strictly, far below more boldly."""
        model, seed = self.problem.model, self._options.seed + trials.number
        began = time.perf_counter()
        draw = torch.Generator().manual_seed(seed)
        layers = {name: self.problem.layers[name] for name in trials.scores}
        factors = {name: first_factors(layer, draw) for name, layer in layers.items()}
        monitor = self._pace.stage("preparing", lambda _: None)
        goal = goal_of(self.solving, self.problem.spare, self.state, seed, monitor)
        pieces = EACH * self._measuring * sum(right.shape[1] for _, right in factors.values())
        bar = (trials.best[1] if trials.best else self.state.now).objective
        keep, bold = KEEP, False
        for turn in range(TURNS):
            took = self._pace.took.get("refining") if turn else None
            part = self._pace.stage("refining", lambda _: pieces, took and took / STRICTER)
            part.report(0.0, f"round {trials.number}: refining {len(layers)} layers together")
            with self._clock("refining"):
                factors = refine(
                    model, layers, factors, goal, steps=self._refine_steps, seed=seed, turn=turn,
                    keep=keep, monitor=part, chunk=self.problem.lesson,
                )  # fmt: skip
                edits = as_candidates(layers, factors)
                if not edits:
                    return
                part = self._pace.stage("dropping", lambda cost: 2.0 * cost, pieces / 3.0)
                some = by_use(model, edits, rehearsal, part, cached=not self.problem.limit)
                edits = fewest(model, some, rehearsal, self._options.target_gap, part)
            with together(edits):
                verdict = self._judge.measure(model, part.silent())
            reason = self._objection(verdict, bar)
            far_below = verdict.within(ROOM * self._options.max_degradation)
            if reason is None and bold and not far_below:
                reason = "more than half of the budget for what is left"
            if reason is None:
                yield edits, verdict
                bar, keep, bold = verdict.objective, keep / STRICTER, True
                if verdict.gap <= LEFT or not far_below:
                    return
            else:
                about, name = (edits[0], verdict, self.state.now, reason, began), some_layers(edits)
                self.state.steps.append(trials.step(*about, layer=name))
                if bold or reason != OVER_BUDGET:
                    return
                keep *= STRICTER

    def _keep_all(self, edits: list[Candidate], final: Verdict, trials: Trials) -> None:
        """Keep edits of many layers, each with what they do up to there and without it alone.

        All of them together have been measured: on cancel they are kept with the figures there are.
        """
        model, before, began = self.problem.model, self.state.now, time.perf_counter()
        monitor = self._pace.stage("keeping", lambda _: 0.0, 2.0 * self._measuring * len(edits))
        kept = f"refined together with {len(edits) - 1} others"
        verdicts: list[Verdict | None] = []
        gaps: list[float | None] = [None] * len(edits)
        cancelled = None
        try:
            for number, edit in enumerate(edits):
                monitor.report(0.5 * number / len(edits), f"measuring {edit.layer.name}")
                if number == len(edits) - 1:  # that is known
                    break
                with together(edits[: number + 1]):
                    verdicts.append(self._judge.measure(model, monitor.silent()))
            cached = not self.problem.limit
            part = monitor.part(0.5, 1.0)
            gaps = [*left_out(model, edits, self._judge, part, cached=cached)]
        except Cancelled as stop:
            cancelled, kept = stop, f"{kept}; {WHEN_CANCELLED}"
        if trials.best is not None:
            self._reject(trials.best[2], "many layers together did better")
            trials.best = None
        verdicts += [None] * (len(edits) - 1 - len(verdicts))
        for edit, verdict, gap in zip(edits, [*verdicts, final], gaps, strict=True):
            step = trials.step(edit, verdict, before, None, began, kept=kept)
            self.state.steps.append(replace(step, gap_without=gap))
            before = verdict or before
        self.state.now = final
        for edit in edits:
            self._keep(edit)
        if cancelled is not None:
            raise cancelled

    def _falls_short(self, best: tuple[Candidate, Verdict, int] | None) -> bool:
        """Whether the best closed form of a round leaves much of the gap, or costs much for what it does."""
        verdict = best[1] if best else self.state.now
        much = verdict.gap > (1.0 - ENOUGH) * self.state.now.gap
        costly = not verdict.within(ROOM * self._options.max_degradation)
        return verdict.gap > NEAR * self._options.target_gap and (much or costly)

    def _try(self, candidate: Candidate, trials: Trials, monitor: Monitor) -> bool:
        """Measure an edit, record the step, and remember the edit if it is the best so far.

        Returns whether to try further edits of this layer: where trials take long, not if this one leaves
        the gap as it is, or more than the best so far (of 37 further ones kept none came after that).
        """
        best = trials.best
        bar = (best[1] if best else self.state.now).objective
        began, name = time.perf_counter(), candidate.layer.name
        with trying(candidate):
            verdict = self._judge.measure_below(
                self.problem.model, bar, monitor, name, self.state.now.objective - LEAST_GAIN
            )
        reason = self._objection(verdict, bar)
        self.state.steps.append(trials.step(candidate, verdict, self.state.now, reason, began))
        if verdict is not None and reason is None:
            if best is not None:
                self._reject(best[2], f"{name} did better")
            trials.best = (candidate, verdict, len(self.state.steps) - 1)
        return verdict is not None or not self._large

    def _objection(self, verdict: Verdict | None, bar: float) -> str | None:
        """Why an edit is not kept; None where it is the best so far."""
        if verdict is None:
            return "closes too little of the gap"
        if verdict.objective >= self.state.now.objective - LEAST_GAIN:
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
