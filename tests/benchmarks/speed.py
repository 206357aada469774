"""The speed tables: ratios measured side by side, distance to the physical limit, profiles.

Imports torch's profiler, the engine, and the comparisons of `speed_tasks`.  Rows are kept in CSV
files as soon as they are measured, so a run of some of them (``--only``) leaves the others of the
same device as they were.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from rectify_widgets import cases
from rectify_widgets.cases.case import Case
from rectify_widgets.cases.training import Schedule, fit
from rectify_widgets.engine.base.checks import check_choice
from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.solver import DenseSolver
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.candidates import RIDGES
from rectify_widgets.engine.find.problem import PROBE
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.gradients import sweep
from rectify_widgets.engine.model.running import eval_mode
from rectify_widgets.engine.repair.rectification import rectify
from rectify_widgets.engine.repair.result import Rectification
from tests.benchmarks import speed_timing as timing
from tests.benchmarks.memory import MEGA, Job, Spent, in_process, keep_rows
from tests.benchmarks.speed_tasks import (
    Measurements,
    SpeedOptions,
    measure_depth,
    measure_edit,
    measure_statistics,
    measure_sweep,
)
from tests.benchmarks.tables import Cell, Table
from tests.benchmarks.training import default_cache, speed_images

STREAMED = (1, 4, 16)
"""Multiples of the references that are streamed."""
SHOWN = 6
"""Operators of each profile; the others make one row."""
PROFILED_ROUNDS = 2
"""Of the rectification that is profiled; the others are like the second."""
REPEATS = 3
RESNET = "ResNet-18 with CIFAR stem"
NOTES = {
    "speed": "The median of the ratios of runs side by side and their range; "
    f"{RESNET} on 32×32 images where nothing else is said.",
    "speed limits": "The least is what the task cannot do without: each layer's products once a "
    "pass, its input and output through memory once; done is what the operators did.  Seconds are "
    "those of a machine of one's own: on a CPU processor time over threads.  The machine's best, "
    "measured likewise in the same run, is that of a product of matrices and of a triad.",
    "speed references": "`KeyStatistics.collect` from a `DataLoader` with workers, "
    f"{RESNET}, a fresh process each.",
    "speed profile": f"Operators by their own time, torch.profiler; {RESNET}.",
}
"""What each table says under its name, behind the machine."""

Rows = Sequence[dict[str, Cell]]


def measure_rectify(options: SpeedOptions) -> Measurements:
    """Dynamic rectification from one pair against one epoch of fine-tuning."""
    trojan, references = options.trojan(), options.repaired
    what = f"dynamic rectification, one pair, {references} references"
    row, seconds, result = _against_epoch(what, trojan, references, speed_images(), options)
    yield replace(row, target=0.5)
    yield timing.Cost(what, seconds, rectify_work(trojan, references, result))


def measure_joint(options: SpeedOptions) -> Measurements:
    """Refining edits of all layers of the shipped blend, from one pair, against one such epoch."""
    blend = cases.load("trojan-blend")
    images, labels = blend.clean
    data = (255 * images).round().byte(), labels
    references = len(blend.reference)
    what = f"the shipped blend, edits of many layers, one pair, {references} references"
    row, seconds, _ = _against_epoch(what, blend, references, data, options)
    yield replace(row, note=f"{timing.three_digits(seconds)} s; {row.note}")


def _against_epoch(
    what: str,
    case: Case,
    references: int,
    data: tuple[Tensor, Tensor],
    options: SpeedOptions,
) -> tuple[timing.Comparison, float, Rectification]:
    """Repairs of a case from one pair beside an epoch on such data: the row, seconds, the last result."""
    epoch = Schedule(epochs=1, learning_rate=0.01)
    timed = min(options.tuned, len(data[0]))
    if not options.whole_epoch:
        timed = min(options.batches * epoch.batch_size, timed)
    images, labels = (part[:timed].to(options.device) for part in data)
    results: list[Rectification] = []

    def repair() -> None:
        reference = case.reference[:references]
        results.append(rectify(case.model, case.pairs[0], reference=reference))

    def tune() -> None:
        generator = torch.Generator().manual_seed(0)
        fit(copy.deepcopy(case.model), images, labels, epoch, generator=generator, quiet=True)

    tuning, repairing = timing.take_turns([tune, repair], options.repeats, warm=False)
    result = results[-1]
    changes = []
    for name, figure in (("ASR", "attack_success_rate"), ("OA", "overall_accuracy")):
        before, after = (100 * case.figures(model)[figure] for model in (case.model, result.model))
        changes.append(f"{name} {before:.1f} to {after:.1f} %")
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items())
    estimated = "" if timed == options.tuned else f", estimated from {timed:,}"
    row = timing.Comparison(
        what, f"one epoch of fine-tuning on {options.tuned:,} images{estimated}",
        timing.Ratio.of(repairing, tuning, timed / options.tuned), None, faster=False,
        note=f"{', '.join(changes)}, {len(result.edits)} edits in {len(result.steps)} trials; {stages}",
    )  # fmt: skip
    return row, timing.undisturbed_seconds(repairing, options.device), result


def rectify_work(trojan: Case, references: int, result: Rectification) -> timing.Work:
    """What the loop asks of the model: answers, moments, sweeps, and trials on the judging half.

    Statistics after the first round, which are partial, are left out.
    """
    one = timing.forward_work(trojan.model, trojan.reference[: timing.BATCH]) * (1 / timing.BATCH)
    half, trials = references / 2, len(result.steps)
    rounds = max([1, *(step.round for step in result.steps)])
    finished = sum(step.gap_after is not None for step in result.steps)
    passes = 2 * references + half  # answers, the first measure, the statistics
    passes += (trials + finished) * half + rounds * min(half, PROBE) * timing.TRACE_PASSES
    statistics = KeyStatistics.collect(trojan.model, trojan.reference[: int(half)])
    return one * passes + timing.moment_work(trojan.model, statistics)


class RoundTimes:
    """A progress hook that notes when each round of a rectification ended."""

    def __init__(self) -> None:
        self._marks: list[timing.Span] = []

    def __call__(self, _: float, message: str) -> None:
        """Called by the loop with what it is about to do."""
        began = not self._marks and message.startswith("collecting")
        if began or re.fullmatch(r"round \d+: done", message):
            self._marks.append(timing.Span.now())

    @property
    def spans(self) -> list[timing.Span]:
        """What each round took, from the first word of the statistics of round one."""
        return [after - before for before, after in pairwise(self._marks)]


def measure_rounds(options: SpeedOptions) -> Measurements:
    """Rounds after the first against the first, of rectifications that go on to the end."""
    trojan = options.trojan()
    first: list[timing.Span] = []
    later: list[timing.Span] = []
    notes = []
    for seed in range(options.repeats):
        times = RoundTimes()
        result = rectify(
            trojan.model, trojan.pairs[seed], reference=trojan.reference[: options.repaired],
            target_gap=0.0, max_rounds=options.max_rounds, seed=seed, progress=times,
        )  # fmt: skip
        start, *rest = times.spans
        first += [start] * len(rest)
        later += rest
        seconds = ", ".join(timing.three_digits(span.seconds) for span in times.spans)
        where = ", ".join(edit.layer for edit in result.edits) or "nothing"
        notes.append(f"pair {seed}: {seconds} s, edited {where}")
    if not later:
        raise RuntimeError("no rectification had a second round")
    ratio = timing.Ratio.of(later, first)
    note = "; ".join(notes)
    yield timing.Comparison(
        "a round after the first", "the first round", ratio, 0.5, faster=False, note=note
    )


TASKS: dict[str, Callable[[SpeedOptions], Measurements]] = {
    "sweep": measure_sweep,
    "statistics": measure_statistics,
    "edit": measure_edit,
    "depth": measure_depth,
    "rectify": measure_rectify,
    "joint": measure_joint,
    "rounds": measure_rounds,
}


NAMES = (*TASKS, "references", "profile")


def measure_speed(arguments: argparse.Namespace, monitor: Monitor) -> list[Table]:
    """Measure some or all rows as the command line asks for, with torch's threads set.

    Answers all tables, those rows included that ``arguments.out`` has already.

    Raises:
        ValueError: an unknown name.
    """
    torch.set_num_threads(arguments.threads)
    options = SpeedOptions(
        torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")),
        repeats=arguments.repeats or REPEATS,
        threads=arguments.threads,
        cache=arguments.cache or default_cache(),
        whole_epoch=arguments.whole,
    )
    names = [check_choice("only", name, NAMES) for name in arguments.only or NAMES]
    where = timing.describe(options.device)
    tables = {name: Table(name, f"{where}.  {note}") for name, note in NOTES.items()}

    def keep(table: str, rows: Rows) -> None:
        """All rows of one name at once, in the order of `NAMES`."""
        keep_rows(
            tables[table], arguments.out, rows, key=["row"],
            order=lambda row: NAMES.index(str(row["row"])),
        )  # fmt: skip

    for place, name in enumerate(names):
        monitor.report(place / len(names), name)
        if name == "profile":
            rows: list[dict[str, Cell]] = []
            for task in PROFILES:
                rows += profile(task, options)
                keep("speed profile", rows)
        elif name == "references":
            keep("speed references", measure_references(options))
        else:
            found, rates = list(TASKS[name](options)), timing.best_rates(options.device)
            ratios = [one.cells(name) for one in found if isinstance(one, timing.Comparison)]
            keep("speed", ratios)
            costs = [one.cells(name, rates) for one in found if isinstance(one, timing.Cost)]
            if costs:
                keep("speed limits", costs)
    return [table for table in tables.values() if table.rows]


def measure_references(options: SpeedOptions, run: Callable[[Job], Spent] = in_process) -> Rows:
    """Seconds and peak memory for 1, 4 and 16 times as many references, each in a fresh process."""
    rows: list[dict[str, Cell]] = []
    base: Spent | None = None
    for times in STREAMED:
        count = times * options.streamed
        spent = run(
            Job("resnet18-cifar", "collect", count, options.workers, str(options.device),
                options.threads)
        )  # fmt: skip
        base = base or spent
        rows.append(
            {
                "row": "references",
                "references": count,
                "times": f"{times}×",
                "seconds": timing.three_digits(spent.span.seconds),
                "processor seconds": timing.three_digits(spent.span.processor),
                "processor, times": f"{timing.three_digits(spent.span.processor / base.span.processor)}×",
                "processor ms a reference": timing.three_digits(
                    1000 * spent.span.processor / count
                ),
                "peak MB": timing.three_digits(spent.bytes / MEGA),
                "peak, times": f"{timing.three_digits(spent.bytes / base.bytes)}×",
            }
        )
    return rows


def _profile_statistics(options: SpeedOptions) -> Callable[[], object]:
    model, images = options.network(), options.images(options.collected)
    return lambda: KeyStatistics.collect(model, images, batch_size=timing.BATCH)


def _profile_sweep(options: SpeedOptions) -> Callable[[], object]:
    model, start, end = options.network(), options.images(32, seed=1), options.images(32, seed=2)
    layers = editable_layers(model, end[:1]).editable
    labels = torch.zeros(32, dtype=torch.long, device=end.device)

    def run() -> None:
        with eval_mode(model) as module:
            sweep(module, layers, start, end, labels, labels + 1, steps=8, monitor=Monitor())

    return run


def _profile_solving(options: SpeedOptions) -> Callable[[], object]:
    """Two directions of every layer at every ridge, from the second moments."""
    known = KeyStatistics.collect(options.network(), options.images(timing.BATCH))

    def run() -> None:
        for name in known:
            moment = known[name].moment
            solver = DenseSolver(name, moment)
            for ridge in RIDGES:
                solver.solve(moment[:, :2].contiguous(), ridge)

    return run


def _profile_rectify(options: SpeedOptions) -> Callable[[], object]:
    trojan = options.trojan()
    references = trojan.reference[: options.repaired]
    return lambda: rectify(
        trojan.model, trojan.pairs[0], reference=references, max_rounds=PROFILED_ROUNDS
    )


PROFILES: dict[str, Callable[[SpeedOptions], Callable[[], object]]] = {
    "statistics": _profile_statistics,
    "sweep": _profile_sweep,
    "solving": _profile_solving,
    "rectify": _profile_rectify,
}


def profile(name: str, options: SpeedOptions) -> Rows:
    """The operators that take most of a task's time, and what is left."""
    task = PROFILES[name](options)
    cuda = options.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        whole = timing.time_once(task).seconds
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    own = [(e.key, e.count, getattr(e, field) / 1e6) for e in profiler.key_averages()]
    own.sort(key=lambda event: event[2], reverse=True)
    total = sum(seconds for _, _, seconds in own)
    _, calls, seconds = zip(*own[SHOWN:], strict=True)
    shown: list[tuple[str, int | str, float, float]] = [(*event, total) for event in own[:SHOWN]]
    shown += [
        ("all others", sum(calls), sum(seconds), total),
        ("outside of operators", "", max(whole - total, 0.0), whole),
    ]
    return [
        {
            "row": "profile",
            "task": name,
            "operator": operator.removeprefix("aten::"),
            "calls": count,
            "own seconds": timing.three_digits(part),
            "share, %": timing.three_digits(100 * part / base) if base else "",
        }
        for operator, count, part, base in shown
    ]
