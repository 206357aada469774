"""The loop behind `rectify`: round after round of collecting, ranking, solving and trying.

Imports torch only.  Each round collects the statistics that are stale, scores all layers on the
references whose prediction is still wrong, tries the best few edits, and keeps the one with the least
gap plus weighted disturbance within the budget.  Where the best closed form leaves much of the gap,
edits of all layers are refined together, and if they do better they are kept and end the loop.  Edits are solved and refined on one half of the references and judged on the other.  A round
draws from the seed and its own number alone, so that a restored loop goes on as it would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

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
from rectify_widgets.engine.model.heads import answers, changed
from rectify_widgets.engine.model.memory import FACTOR_ROOM
from rectify_widgets.engine.model.running import predict_all
from rectify_widgets.engine.repair.checkpoint import State
from rectify_widgets.engine.repair.diagnosis import OVER_BUDGET
from rectify_widgets.engine.repair.joint import (
    JOINT,
    as_candidates,
    by_use,
    fewest,
    left_out,
    scaled,
    some_layers,
    together,
)
from rectify_widgets.engine.repair.options import RectifyOptions
from rectify_widgets.engine.repair.refining import Goal, first_factors, refine
from rectify_widgets.engine.repair.result import Step

STAGES = ("statistics", "sweep", "solving", "refining", "evaluation")
"""Stages whose time is recorded."""
TRIALS = 10
"""Edits tried in one round, before any is refined."""
ENOUGH = 0.5
"""A closed form that closes this share of the gap that is left is not refined."""
NEAR = 2.0
"""Nor is one within this many times the target.  Both were chosen with test figures in view."""
REHEARSED = 192
"""References of those to solve from that say which of the refined edits are idle."""
REPEATS = 2
"""Rounds at most that try edits of all layers together."""
TURNS = 3
"""Most times that edits of many layers are refined, more strictly each time."""
WEAKER = 0.75
"""Factor by which edits that are still over the budget are scaled for a last trial."""
LEAST_GAIN = 1e-3
"""An edit that improves the objective by less is not kept."""
MOST_CORRUPTED = 0.5
"""If more references than this look corrupted, the detection has failed and is not used."""
REFINED = "layers refined"
"""Why a rectification has ended whose last edits were refined together: what they leave, no other closes."""
SAME = 1e-3
"""Two measurements of one gap, perhaps on two machines, differ by less."""


@dataclass
class _Trials:
    """The trials of one round."""

    number: int
    """Number of the round."""
    scores: Mapping[str, float]
    """Editability of the layers in it."""
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
        self._plain = answers(predict_all(problem.model, problem.pairs.clean, monitor=monitor))
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
                if self._done():
                    break
                if self._refined():
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
        if self._done():
            stopped = "target"
        elif self._refined():  # another round would change nothing
            stopped = REFINED
        with suppress(Cancelled):  # there is nothing left to stop
            monitor.report(1.0, f"stopped: {stopped}")
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
        judged = self.judging
        self.shared = torch.equal(self.solving.references, judged.references)
        room = 0 if self.problem.limit else FACTOR_ROOM
        self._collected = StatisticsSource(self.solving, None, None, self._options.seed, room)
        with self._clock("evaluation"):
            self._judge = Judge(
                self.problem.model,
                judged.references,
                judged.carriers,
                judged.origins,
                self._validation,
                monitor,
            )
            start = self._judge.measure(self.problem.model, monitor.silent())
        self.state = State(start=start, now=start, seconds=self._seconds, flagged=flagged)
        self._rehearsal: Judge | None = None
        if self._refine_steps and not self.shared:  # otherwise overfitting would go unnoticed
            with self._clock("refining"):
                some = self.solving.only(slice(0, REHEARSED))
                self._rehearsal = Judge(
                    some.model, some.references, some.carriers, some.origins, monitor=monitor
                )

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
        if problem.corruption is None or not voters:
            return False
        with self._clock("evaluation"):
            corrupted, more = (
                corruption_scores(problem.model, problem.pairs, voters, some, monitor) > THRESHOLD
                for some in (problem.references, problem.spare)
            )
        share = float(corrupted.float().mean())
        if share > MOST_CORRUPTED:
            self.state.suspected = share
            return False
        if bool(corrupted.any()):
            self._split(corrupted.nonzero().flatten().tolist(), monitor)
        self.state.spare_flagged = more.nonzero().flatten().tolist()
        return bool(corrupted.any())

    def _keep_best(self, trials: _Trials, shortlist: list[Candidate], monitor: Monitor) -> bool:
        """Try the shortlist on the judging references; returns whether an edit was kept.

        Where none closes much of the gap, edits of all layers are refined together and tried.
        """
        model, number = self.problem.model, trials.number
        # What is cached takes memory, which a limit may not allow.
        layers = [] if self.problem.limit else [candidate.layer for candidate in shortlist]
        with self._judge.sharing(model, layers, monitor):
            share = monitor.part(0.0, 0.3 if self._rehearsal else 1.0)
            for position, candidate in enumerate(shortlist):
                name = candidate.layer.name
                share.report(position / len(shortlist), f"round {number}: trying {name}")
                self._try(candidate, trials, monitor)
        if (
            self._rehearsal
            and self._falls_short(trials.best)
            and len({step.round for step in self.state.steps if step.direction == JOINT}) < REPEATS
            and self._refine(self._rehearsal, trials, monitor.part(0.3, 1.0))
        ):
            return True
        monitor.report(1.0, f"round {number}: done")
        if trials.best is None:
            return False
        candidate, self.state.now, _ = trials.best
        self._keep(candidate)
        return True

    def _keep(self, candidate: Candidate) -> None:
        edit = candidate.edit()
        edit.apply(self.problem.model)
        self.state.edits.append(edit)
        self._collected.forget(self.problem.catalog.after(candidate.layer.name))

    def _refine(self, rehearsal: Judge, trials: _Trials, monitor: Monitor) -> bool:
        """Refine edits of all layers together; returns whether they were kept.

        Over the budget they are refined again, more strictly, and finally scaled down.
        """
        model, seed, began = (
            self.problem.model,
            self._options.seed + trials.number,
            time.perf_counter(),
        )
        draw = torch.Generator().manual_seed(seed)
        layers = {name: self.problem.layers[name] for name in trials.scores}
        factors = {name: first_factors(layer, draw) for name, layer in layers.items()}
        goal, cached = self._goal(), not self.problem.limit
        for turn in range(TURNS + 1):
            part = monitor.part(turn / (TURNS + 1), (turn + 1) / (TURNS + 1))
            with self._clock("refining"):
                if turn < TURNS:
                    factors = refine(
                        model, layers, factors, goal, steps=self._refine_steps, seed=seed, turn=turn,
                        monitor=part.part(0.0, 0.8),
                    )  # fmt: skip
                else:
                    factors = scaled(factors, WEAKER)
                edits = as_candidates(layers, factors)
                if not edits:
                    return False
                some = by_use(model, edits, rehearsal, part.part(0.8, 0.9), cached=cached)
                edits = fewest(
                    model, some, rehearsal, self._options.target_gap, part.part(0.9, 0.95)
                )
            with together(edits):
                verdict = self._judge.measure(model, part.silent())
            bar = (trials.best[1] if trials.best else self.state.now).objective
            reason = self._objection(verdict, bar)
            if reason is None:
                self._keep_all(edits, trials, part.part(0.95, 1.0))
                return True
            name = some_layers(edits)
            self.state.steps.append(
                self._step(trials, edits[0], verdict, self.state.now, reason, began, layer=name)
            )
            if reason != OVER_BUDGET:
                return False
        return False

    def _keep_all(self, edits: list[Candidate], trials: _Trials, monitor: Monitor) -> None:
        """Keep edits of many layers, each with what they do up to there and without it alone."""
        model, before, began = self.problem.model, self.state.now, time.perf_counter()
        steps = []
        for number, edit in enumerate(edits):
            monitor.report(0.5 * number / len(edits), f"measuring {edit.layer.name}")
            with together(edits[: number + 1]):
                verdict = self._judge.measure(model, monitor.silent())
            reason = f"refined together with {len(edits) - 1} others"
            steps.append(self._step(trials, edit, verdict, before, None, began, kept=reason))
            before, began = verdict, time.perf_counter()
        cached = not self.problem.limit
        gaps = left_out(model, edits, self._judge, monitor.part(0.5, 1.0), cached=cached)
        if trials.best is not None:
            self._reject(trials.best[2], "many layers together did better")
        self.state.steps += [
            replace(step, gap_without=gap) for step, gap in zip(steps, gaps, strict=True)
        ]
        self.state.now = before
        for edit in edits:
            self._keep(edit)

    def _goal(self) -> Goal:
        """What edits of many layers are refined towards, on the references to solve from."""
        problem = self.solving
        original: dict[str, Tensor] = {}
        for edit in self.state.edits:
            layer = problem.layers[edit.layer]
            before = original.get(edit.layer, layer.module.weight.detach())
            delta = edit.delta.to(device=before.device)
            original[edit.layer] = (before.to(delta) - delta).to(before)
        shown = problem.pairs.corrupted, problem.pairs.clean
        spare = torch.ones(len(self.problem.spare), dtype=torch.bool)
        spare[self.state.spare_flagged] = False
        more = self.problem.spare[spare.to(self.problem.spare.device)]
        references = torch.cat([problem.references, more])
        return Goal(problem.corruption, shown, references, original)

    def _falls_short(self, best: tuple[Candidate, Verdict, int] | None) -> bool:
        """Whether the best closed form of a round leaves much of the gap, relatively and absolutely."""
        left = self.state.now.gap if best is None else best[1].gap
        return left > NEAR * self._options.target_gap and left > (1.0 - ENOUGH) * self.state.now.gap

    def _try(self, candidate: Candidate, trials: _Trials, monitor: Monitor) -> None:
        """Measure an edit, record the step, and remember the edit if it is the best so far."""
        best = trials.best
        bar = (best[1] if best else self.state.now).objective
        began = time.perf_counter()
        name, model = candidate.layer.name, self.problem.model
        with trying(candidate):
            verdict = self._judge.measure_below(model, bar, monitor, name)
        reason = self._objection(verdict, bar)
        self.state.steps.append(
            self._step(trials, candidate, verdict, self.state.now, reason, began)
        )
        if verdict is not None and reason is None:
            if best is not None:
                self._reject(best[2], f"{name} did better")
            trials.best = (candidate, verdict, len(self.state.steps) - 1)

    def _step(
        self,
        trials: _Trials,
        candidate: Candidate,
        verdict: Verdict | None,
        before: Verdict,
        reason: str | None,
        began: float,
        *,
        layer: str | None = None,
        kept: str = "best of this round",
    ) -> Step:
        """The record of a trial; ``reason`` says why the edit is not kept, ``kept`` otherwise."""
        name = candidate.layer.name
        return Step(
            round=trials.number,
            layer=layer or name,
            score=trials.scores[name],
            direction=candidate.direction,
            ridge=candidate.ridge,
            gap_before=before.gap,
            gap_after=verdict.gap if verdict else None,
            degradation_before=before.degradation,
            degradation_after=verdict.degradation if verdict else None,
            worst_class=verdict.worst_class if verdict else None,
            accepted=reason is None,
            reason=reason or kept,
            seconds=time.perf_counter() - began,
            sufferer=verdict.sufferer if verdict else None,
            refined=candidate.refined,
        )

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
