"""What localisation, solving, detection and rectification work on: model, pairs, references.

Imports torch only.  A `Problem` is made once per call, from checked input, inside `eval_mode`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_type
from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.base.ranks import ALONE, Ranks
from rectify_widgets.engine.data.corruption import Corruption
from rectify_widgets.engine.data.inputs import Inputs, count_inputs, gather
from rectify_widgets.engine.data.pairs import SamplePairs, check_pairs
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.adversarial import put_onto
from rectify_widgets.engine.find.candidates import Probe
from rectify_widgets.engine.find.transfer import Transfer, choose_corruption
from rectify_widgets.engine.measure.judge import Judge
from rectify_widgets.engine.model import memory
from rectify_widgets.engine.model.catalog import LayerCatalog, editable_layers
from rectify_widgets.engine.model.flow import following
from rectify_widgets.engine.model.gradients import large, margin
from rectify_widgets.engine.model.heads import answers as answers_of
from rectify_widgets.engine.model.heads import check_truth, least, runner_up
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.opening import reached
from rectify_widgets.engine.model.running import (
    batched,
    chunk_size,
    model_device,
    model_dtype,
    predict,
    predict_all,
    unwrap,
    with_head,
)

PROBE, QUICK_PROBE = 32, 12
"""References with the corruption in one sweep; the fewer where inputs are `large`, of which a pass takes
long, and the prediction only chooses what is tried."""
SOLVED, QUICK_SOLVED = 32, 24
"""Those that edits are solved from besides the pairs, likewise."""
SPLIT = 64
"""References from which on solving and judging use disjoint halves."""
MAX_REFERENCES = 768
"""References that are used individually; statistics may stream more."""
SPARE = 1280
"""Further references that refining may learn from ..."""
SPARE_ROOM = 2**26
"""... in so many bytes at most."""
ROOM = 2**28
"""Bytes of the references used individually, at most; fewer are used where they are large, `SPLIT` at
least."""


NO_TRANSFER = Transfer(None, "")


@dataclass(frozen=True, eq=False)
class Before:
    """Scores of a problem's inputs, as `predict_all` gives them, by the model that it was posed for."""

    pairs: tuple[Tensor, Tensor]
    """Corrupted and clean."""
    references: Tensor
    carriers: Tensor
    origins: Tensor
    seconds: float = 0.0
    """That one prediction took, on average."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, the pairs, and references with and without the pairs' corruption."""

    model: nn.Module
    catalog: LayerCatalog
    layers: Mapping[str, EditableLayer]
    pairs: SamplePairs
    """On the model's device, with labels."""
    references: Tensor
    """``M × C × H × W``; the pairs' clean inputs where no references were given."""
    answers: Tensor
    """``M``, the model's own prediction for each reference."""
    carriers: Tensor
    """Inputs with the corruption: the references, each with what `corruption` makes of it, or the pairs."""
    origins: Tensor
    """The same inputs without it."""
    before: Before
    """What the model gave all of them when the problem was posed."""
    spare: Tensor
    """Further references to refine with, none that `references` has."""
    given: bool
    """Whether references were given."""
    transfer: Transfer = NO_TRANSFER
    """How the pairs' corruption comes onto other inputs."""
    limit: int | None = None
    """Bytes to keep to."""
    budget: int = memory.MOST_KEPT
    """Bytes to keep from one step to the next where there is no limit."""
    sizes: memory.Sizes | None = None
    """What the model's passes take; known where there is a limit."""
    ranks: Ranks = ALONE
    """The processes that share the call, each with the same problem."""

    @property
    def corruption(self) -> Corruption | None:
        """What puts the pairs' corruption onto inputs; None where the pairs alone show it."""
        return self.transfer.corruption

    @property
    def coupled(self) -> bool:
        """Whether the inputs with the corruption are the references; otherwise they are the pairs."""
        return self.corruption is not None or not self.given

    @property
    def labels(self) -> Tensor:
        """Labels of the pairs."""
        assert self.pairs.labels is not None  # noqa: S101 - `pose_problem` has filled them in
        return self.pairs.labels

    def parts(self) -> list[dict[str, EditableLayer]]:
        """The layers whose second moments are held at one time: as many as the limit allows.

        Where there is none, their second moments may take half of the budget.
        """
        if self.sizes is None:
            some_at_a_time = memory.by_moments(self.layers, self.budget // 2)
            return [{name: self.layers[name] for name in some} for some in some_at_a_time]
        given = len(self.references) if self.given else 0
        counts = counts_of(len(self.pairs), given, self.references)
        names = memory.parts(self.sizes, counts, list(self.layers), self.limit)
        return [{name: self.layers[name] for name in some} for some in names]

    @property
    def lesson(self) -> int:
        """Samples whose gradients refining takes at one time.

        Raises:
            ValueError: the limit leaves no room for a single one.
        """
        if self.sizes is None:
            return self.chunk
        counts = counts_of(len(self.pairs), len(self.references), self.references)
        counts = replace(counts, spare=len(self.spare))
        return memory.refining_chunk(self.sizes, counts, self.limit)

    def sweeps(self) -> list[dict[str, EditableLayer]]:
        """The layers, as many as one sweep may go through at a time; all where there is no limit."""
        return self.parts() if self.limit is not None else [dict(self.layers)]

    @property
    def room(self) -> int:
        """Bytes that each kind of what only saves time may take; none under a limit."""
        return 0 if self.limit is not None else self.budget // 4

    @property
    def chunk(self) -> int:
        """Samples whose keys and gradients are held at one time."""
        return chunk_size(self.references, self.references.device)

    def hand_back(self) -> None:
        """Between two steps of the work: keep to the limit by returning freed memory."""
        if self.limit is not None:
            memory.hand_back(self.references.device)

    def only(self, rows: Tensor | slice) -> Problem:
        """The same problem with some of the references."""
        before = replace(self.before, references=self.before.references[rows])
        some = replace(
            self, references=self.references[rows], answers=self.answers[rows], before=before
        )
        if not self.coupled:
            return some
        before = replace(before, carriers=before.carriers[rows], origins=before.references)
        return replace(some, carriers=self.carriers[rows], origins=some.references, before=before)

    def judge(
        self,
        monitor: Monitor,
        validation: tuple[Tensor, Tensor] | None = None,
        *,
        steady: bool = False,
    ) -> Judge:
        """A judge of what is left of it, against the model that it was posed for."""
        before = self.before
        return Judge(
            self.model, self.references, self.carriers, self.origins, validation, monitor,
            room=self.room, scores=(before.references, before.origins), steady=steady,
        )  # fmt: skip

    def halves(self, rows: Tensor, seed: int) -> tuple[Problem, Problem]:
        """Problems to solve and to judge with: disjoint halves of these references, if enough."""
        if not self.given or len(rows) < SPLIT:
            return self.only(rows), self.only(rows)
        mixed = rows[_shuffle(len(rows), seed)]
        half = len(rows) // 2
        return self.only(mixed[:half]), self.only(mixed[half:])

    def pair_probe(self) -> Probe:
        """The pairs themselves as a probe."""
        return Probe(self.pairs.corrupted, self.pairs.clean, self.labels)

    def probe(self, seed: int, scores: Tensor | None = None) -> Probe:
        """References on which the behaviour still shows; then those closest to it.

        Judged by these ``scores`` of the carriers, or by those of before.
        """
        if self.corruption is None:
            return self.pair_probe()
        scores = self.before.carriers if scores is None else scores
        margins = least(margin(scores, self.answers, runner_up(scores, self.answers)))
        wrong, most = (margins < 0).nonzero().flatten(), probe_size(self.references)
        if len(wrong) >= most:
            rows = wrong[_shuffle(len(wrong), seed)[:most].to(wrong.device)]
        else:
            rows = margins.argsort()[:most]
        return Probe(self.carriers[rows], self.references[rows], self.answers[rows])

    def sources(self, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Corrupted and clean inputs to solve from.

        The pairs alone and, where there are enough references to judge on others, the pairs with
        references that carry the transplanted corruption.
        """
        sources = [(self.pairs.corrupted, self.pairs.clean)]
        if self.corruption is not None and len(self.references) >= SPLIT // 2:
            rows = _shuffle(len(self.references), seed)[: solved_size(self.references)]
            rows = rows.to(self.references.device)
            more = (self.carriers[rows], self.references[rows])
            sources.append(
                (torch.cat([sources[0][0], more[0]]), torch.cat([sources[0][1], more[1]]))
            )
        return sources


def pose_problem(
    model: nn.Module,
    pairs: object,
    reference: Inputs | None,
    *,
    statistics: object = None,
    layers: object = None,
    argument: str = "layers",
    limit: int = MAX_REFERENCES,
    spare: bool = False,
    transferred: bool = True,
    memory_limit: int | None = None,
    own: bool = False,
    seed: int = 0,
    monitor: Monitor = SILENT,
    ranks: Ranks = ALONE,
) -> Problem:
    """Check the input of a call and put the problem together.

    Args:
        model: in evaluation mode, see `rectify_widgets.engine.model.running.eval_mode`.
        pairs: `SamplePairs`.
        reference: unlabelled inputs; None takes the pairs, with a warning without ``statistics``.
        statistics: of the references, if given.
        layers: names, or None for all editable layers.
        argument: the caller's name for ``layers``.
        limit: references to take.
        spare: whether to take further ones to refine with.
        transferred: whether to put the corruption onto the references.
        memory_limit: bytes to keep to, or None.
        own: whether the model is a copy of the call's own, which takes memory too.
        seed: which references, and which pair's corruption goes onto which.
        monitor: checked between batches.
        ranks: the processes that share the call; all of them get the same problem.
    """
    pairs = check_pairs(pairs)
    if statistics is not None:
        check_type("statistics", statistics, KeyStatistics, "KeyStatistics")
    memory_limit = memory.check_limit(memory_limit)
    pairs = pairs.to(model_device(model), model_dtype(model))
    references, further = pairs.clean, pairs.clean[:0]
    if reference is None and statistics is None:
        warnings.warn(
            "reference: none given, so the pairs' own positions serve as statistics; "
            "16 or more unlabelled inputs make edits far more precise",
            UserWarning,
            stacklevel=3,
        )
    if reference is not None:
        size = max(pairs.clean[0].nbytes, 1)
        limit = min(limit, most_references(size))
        more = most_spare(size) if spare else 0
        taken = _take(reference, limit + more, seed, ranks).to(pairs.clean)
        references, further = taken[:limit], taken[limit:]
        if references.shape[1:] == pairs.clean.shape:
            raise ValueError(
                f"pairs: got samples of shape {tuple(pairs.clean.shape[1:])} for references of "
                f"shape {tuple(references.shape[1:])}; add the batch dimension with [None]"
            )
        if references.shape[1:] != pairs.clean.shape[1:]:
            raise ValueError(
                f"reference: got samples of shape {tuple(references.shape[1:])}, want "
                f"{tuple(pairs.clean.shape[1:])} as in pairs"
            )
    model = with_head(model, pairs.clean, pairs.corrupted, references)
    scores = predict(model, pairs.clean[:1])
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("model: its scores are NaN or infinite, want a model with finite weights")
    catalog = differentiable(model, editable_layers(model, pairs.clean), pairs.clean[:1])
    carriers, transfer = pairs.corrupted, NO_TRANSFER
    labels = pairs.labels
    with following(model, catalog.editable) as flow:
        began = time.perf_counter()
        corrupted, clean = (
            predict_all(model, some, monitor=monitor) for some in (pairs.corrupted, pairs.clean)
        )
        labels = answers_of(clean) if labels is None else labels
        labels = check_truth("pairs.labels", labels, scores)
        given, answers = clean, labels
        if reference is not None:
            given = predict_all(model, references, monitor=monitor)
            answers = answers_of(given)
        took = (time.perf_counter() - began) / (2 * len(pairs) + len(references))
        before = Before((corrupted, clean), given, corrupted, clean, took)
        if reference is not None and transferred:
            transfer, tried = choose_corruption(
                model, pairs, references, (corrupted, clean, given), seed, monitor.silent(),
                adversarial=memory_limit is None,
            )  # fmt: skip
            if transfer.corruption is not None:
                carriers = put_onto(transfer.corruption, references, monitor.silent())
                carriers = carriers.to(references)
                rest = batched(model, carriers[len(tried) :], monitor=monitor)
                before = replace(before, carriers=torch.cat([tried, *rest]), origins=given)
    catalog = catalog.without(flow.reasons())
    chosen = catalog.select(argument, layers)
    sizes = None
    if memory_limit is not None:
        sizes = memory.measure_sizes(model, chosen, pairs.clean[:1], copied=own)
    problem = Problem(
        model=model,
        catalog=catalog,
        layers=chosen,
        pairs=SamplePairs(pairs.corrupted, pairs.clean, labels, pairs.corrupt),
        references=references,
        answers=answers,
        carriers=carriers,
        origins=references if transfer.corruption or reference is None else pairs.clean,
        spare=further,
        before=before,
        given=reference is not None,
        transfer=transfer,
        limit=memory_limit,
        budget=memory.budget(references.device),
        ranks=ranks,
        sizes=sizes,
    )
    problem.parts()  # raises now if the limit is too low
    if spare and problem.given and len(references) >= SPLIT:
        _ = problem.lesson  # likewise
    return problem


def differentiable(model: nn.Module, catalog: LayerCatalog, example: Tensor) -> LayerCatalog:
    """The catalogue without layers that no gradient of the scores comes back to, with the reason."""
    found = reached(partial(predict, model), dict(unwrap(model).named_modules()), example)
    return catalog.without({name: found[name] for name in catalog.editable if found.get(name)})


def most_references(size: int) -> int:
    """References that are used individually at most, of so many bytes each."""
    return min(MAX_REFERENCES, max(ROOM // max(size, 1), SPLIT))


def most_spare(size: int) -> int:
    """Further references to refine with at most, of so many bytes each."""
    return min(SPARE, SPARE_ROOM // max(size, 1))


def probe_size(inputs: Tensor) -> int:
    """References in one sweep, at most, where inputs are like these."""
    return QUICK_PROBE if large(inputs) else PROBE


def solved_size(inputs: Tensor) -> int:
    """References that edits are solved from, at most, where inputs are like these."""
    return QUICK_SOLVED if large(inputs) else SOLVED


def counts_of(pairs: int, references: int, inputs: Tensor) -> memory.Counts:
    """Samples that a call uses, from so many pairs and references (0 for none) like ``inputs``."""
    taken = min(references, most_references(inputs[0].nbytes))
    chunk = chunk_size(inputs, inputs.device)
    sources = [pairs, pairs + solved_size(inputs)] if taken >= SPLIT // 2 else [pairs]
    # Of more samples than go through at once, keys are made twice and not kept.
    kept, passing = (sum(n for n in sources if n <= chunk), chunk * (max(sources) > chunk))
    return memory.Counts(
        references=taken,
        probe=min(probe_size(inputs), taken) if taken else pairs,
        sources=kept + passing,
        chunk=chunk,
        spare=min(references - taken, most_spare(inputs[0].nbytes)),
    )


def _take(reference: Inputs, limit: int, seed: int, ranks: Ranks) -> Tensor:
    """Up to ``limit`` references: at random from a tensor, the first of anything else."""
    total = count_inputs(reference)
    if isinstance(reference, Tensor) and total is not None and total > limit:
        reference = reference[_shuffle(total, seed)[:limit].to(reference.device)]
    return gather("reference", reference, limit, ranks)


def _shuffle(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
