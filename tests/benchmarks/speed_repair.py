"""Speed of a whole rectification, and of its rounds, on a really Trojaned ResNet-18.

Imports the engine, the training of the cases and this folder's speed modules.
"""

from __future__ import annotations

import copy
import re
from itertools import pairwise

import torch

from rectify_widgets.cases.training import Schedule, fit
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.problem import PROBE
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from tests.benchmarks.speed_bench import Bench, Cost, Measured, Row
from tests.benchmarks.speed_limits import (
    BATCH,
    LOOK_PASSES,
    Work,
    forward_work,
    moment_work,
)
from tests.benchmarks.speed_timing import Clock, Ratio, Span, three_digits
from tests.benchmarks.speed_trojan import Trojan


def measure_rectify(bench: Bench) -> Measured:
    """Dynamic rectification from one pair against one epoch of fine-tuning."""
    trojan, sizes = bench.trojan(), bench.sizes
    references = trojan.references[: sizes.repaired]
    epoch = Schedule(epochs=1, learning_rate=0.01)
    timed = sizes.tuned if bench.whole_epoch else min(sizes.batches * epoch.batch_size, sizes.tuned)
    images, labels = trojan.images[:timed], trojan.labels[:timed]
    results: list[Rectification] = []

    def repair() -> None:
        results.append(rectify(trojan.model, trojan.pairs[0], reference=references))

    def tune() -> None:
        generator = torch.Generator().manual_seed(0)
        fit(copy.deepcopy(trojan.model), images, labels, epoch, generator=generator, quiet=True)

    tuning, repairing = bench.clock.turns([tune, repair], bench.repeats, warm=False)
    scale = sizes.tuned / timed
    result = results[-1]
    before, after = trojan.figures(trojan.model), trojan.figures(result.model)
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    reckoned = "" if scale == 1 else f", reckoned from {timed:,}"
    row = Row(
        f"dynamic rectification, one pair, {len(references)} references",
        f"one epoch of fine-tuning on {sizes.tuned:,} images{reckoned}",
        Ratio(repairing, tuning, 1 / scale),
        0.5,
        faster=False,
        note=f"ASR {100 * before.attack_success:.1f} to {100 * after.attack_success:.1f} %, OA "
        f"{100 * before.accuracy:.1f} to {100 * after.accuracy:.1f} %, "
        f"{len(result.edits)} edits in {len(result.steps)} trials; {stages}",
    )
    return Measured(
        [row],
        [Cost(row.what, bench.clock.cost(repairing), rectify_work(bench, trojan, result), 0.0)],
    )


def rectify_work(bench: Bench, trojan: Trojan, result: Rectification) -> Work:
    """What the loop asks of the model: answers, moments, sweeps, and trials on the judging half.

    Statistics after the first round, which are partial, are left out.
    """
    one = forward_work(trojan.model, trojan.references[:BATCH]) * (1 / BATCH)
    half = bench.sizes.repaired / 2
    rounds = max([1, *(step.round for step in result.steps)])
    finished = sum(1 for step in result.steps if step.gap_after is not None)
    started = len(result.steps)
    probe = min(half, PROBE)
    passes = 2 * bench.sizes.repaired + half  # answers, the first measure, the statistics
    passes += (started + finished) * half + rounds * probe * LOOK_PASSES
    statistics = KeyStatistics.collect(trojan.model, trojan.references[: int(half)])
    return one * passes + moment_work(trojan.model, statistics)


class RoundTimes:
    """A progress hook that notes when each round of a rectification ended."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[tuple[float, float]] = []

    def __call__(self, _: float, message: str) -> None:
        """Called by the loop with what it is about to do."""
        began = not self._marks and message.startswith("collecting")
        if began or re.fullmatch(r"round \d+: done", message):
            self._clock.wait()
            self._marks.append((self._clock.now(), self._clock.busy()))

    @property
    def spans(self) -> list[Span]:
        """What each round took, from the first word of the statistics of round one."""
        return [
            Span(after[0] - before[0], after[1] - before[1])
            for before, after in pairwise(self._marks)
        ]


def measure_rounds(bench: Bench) -> Measured:
    """Rounds after the first against the first, of rectifications that go on to the end."""
    trojan, sizes = bench.trojan(), bench.sizes
    first: list[Span] = []
    later: list[Span] = []
    notes = []
    for seed in range(bench.repeats):
        times = RoundTimes(bench.clock)
        result = rectify(
            trojan.model, trojan.pairs[seed], reference=trojan.references[: sizes.repaired],
            target_gap=0.0, max_rounds=sizes.rounds, seed=seed, progress=times,
        )  # fmt: skip
        start, *rest = times.spans
        first += [start] * len(rest)
        later += rest
        taken = ", ".join(three_digits(span.seconds) for span in times.spans)
        where = ", ".join(edit.layer for edit in result.edits) or "nothing"
        notes.append(f"pair {seed}: {taken} s, edited {where}")
    if not later:
        raise RuntimeError("no rectification had a second round")
    row = Row(
        "a round after the first",
        "the first round",
        Ratio(tuple(later), tuple(first)),
        0.5,
        faster=False,
        note="; ".join(notes),
    )
    return Measured([row])
