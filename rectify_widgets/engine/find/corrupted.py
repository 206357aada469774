"""Which other inputs carry the corruption of a pair?  Imports torch only.

The edit directions of the best layers respond almost only to the corruption.  An input's score is the
median over the edits of its largest response over positions, on a scale where the pair's clean input
is 0 and its corrupted one 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_int, check_number
from rectify_widgets.engine.base.progress import Cancel, Monitor, Progress
from rectify_widgets.engine.data.inputs import Inputs, batches, count_inputs
from rectify_widgets.engine.data.pairs import SamplePairs, check_pairs
from rectify_widgets.engine.edit.statistics import KeyStatistics
from rectify_widgets.engine.find.candidates import Candidate, layer_keys
from rectify_widgets.engine.find.problem import Problem, pose_problem
from rectify_widgets.engine.find.proposals import StatisticsSource, propose_edits
from rectify_widgets.engine.model.heads import most, probabilities, variation
from rectify_widgets.engine.model.keys import EditableLayer
from rectify_widgets.engine.model.running import chunk_size, eval_mode, model_device, model_dtype

EDITS = 12
"""Edits that vote."""
THRESHOLD = 0.5
UNCHANGED = 0.5
"""Total variation distance below which putting the corruption on says that an input may carry it already."""


@dataclass(frozen=True, eq=False)
class CorruptedInputs:
    """Result of `find_corrupted`, one entry per input.

    Attributes:
        scores: median response, 0 like the pairs' clean inputs and 1 like their corrupted ones.
        flagged: whether the score is above the threshold.
        threshold: as it was used.

    Example:
        >>> found = rw.find_corrupted(model, pairs, torch.cat([reference, x_bad[60:90]]))
        >>> found.threshold, found.flagged[96:].all()
        (0.5, tensor(True))
    """

    scores: Tensor
    flagged: Tensor
    threshold: float

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        count = int(self.flagged.sum())
        return f"CorruptedInputs({count} of {len(self)} inputs carry the corruption)"


def find_corrupted(
    model: nn.Module,
    pairs: SamplePairs,
    inputs: Inputs,
    *,
    reference: Inputs | None = None,
    statistics: KeyStatistics | None = None,
    threshold: float = THRESHOLD,
    batch_size: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> CorruptedInputs:
    """Find the inputs that carry the corruption which the pairs show.

    Args:
        model: the classifier with the behaviour; left as it was.
        pairs: corrupted inputs and their clean counterparts.
        inputs: what to search: a tensor, a data set or a loader (labels ignored).
        reference: unlabelled inputs for the statistics; None takes ``inputs`` themselves.
        statistics: of the references, where they have been collected already.
        threshold: score above which an input is flagged.
        batch_size: inputs in one forward pass.
        seed: which references are proposals at.
        progress, cancel: hooks, see `rectify_widgets.engine.base.progress`.

    Raises:
        TypeError, ValueError: bad input, or a corruption that reaches no layer.
        Cancelled: ``cancel`` returned True.

    Example:
        >>> mixed = torch.cat([reference, x_bad[60:90]])
        >>> rw.find_corrupted(model, pairs, mixed)
        CorruptedInputs(30 of 126 inputs carry the corruption)
    """
    check_int("batch_size", batch_size, low=1)
    check_int("seed", seed, low=0)
    shape = check_pairs(pairs).corrupted
    next(batches("inputs", inputs, batch_size, like=shape))
    threshold = check_number("threshold", threshold, low=0.0, high=1.0)
    monitor = Monitor(progress, cancel)
    reference = inputs if reference is None else reference
    with eval_mode(model, "pairs") as module:
        problem = pose_problem(
            module, pairs, reference, statistics=statistics, seed=seed, monitor=monitor
        )
        proposals = propose_edits(
            problem, StatisticsSource(problem, reference, statistics, seed),
            problem.probe(seed), problem.sources(seed), monitor.part(0.0, 0.6),
        )  # fmt: skip
        voters = pick_voters(proposals.options)
        if not voters:
            raise ValueError("pairs: the corruption reaches none of the layers")
        total = count_inputs(inputs) or 0
        scores: list[Tensor] = []
        done = 0
        for batch in batches("inputs", inputs, batch_size, like=shape):
            monitor.part(0.6, 1.0).report(done / total if total else 0.0, "searching inputs")
            scores.append(corruption_scores(module, problem.pairs, voters, batch, monitor))
            done += len(batch)
        monitor.report(1.0, "searched all inputs")
    joined = torch.cat(scores)
    if bool(joined.isnan().any()):
        raise ValueError(
            "pairs: no layer responds to their corrupted inputs more than to the clean ones, so that "
            "nothing can be told by it"
        )
    return CorruptedInputs(joined, joined > threshold, threshold)


def pick_voters(options: Mapping[str, list[Candidate]]) -> list[Candidate]:
    """The contrast edit with the best prediction of each of the best layers."""
    some = [found for found in options.values() if found]
    best = [next((c for c in found if c.direction == "contrast"), found[0]) for found in some]
    return sorted(best, key=lambda candidate: -candidate.score)[:EDITS]


def carrying(
    problem: Problem, voters: Sequence[Candidate], monitor: Monitor
) -> tuple[Tensor, Tensor]:
    """Which references of a problem carry the corruption already, and which of the spare ones.

    What changes much when it is put on does not carry it, so that it is not looked at.
    """
    before = problem.before
    shift = most(variation(probabilities(before.references), probabilities(before.carriers)))
    rows = (shift < UNCHANGED).nonzero().flatten()
    some, spare = (
        corruption_scores(problem.model, problem.pairs, voters, inputs, monitor) > THRESHOLD
        for inputs in (problem.references[rows], problem.spare)
    )
    corrupted = torch.zeros(len(shift), dtype=torch.bool)
    corrupted[rows.cpu()] = some
    return corrupted, spare


def corruption_scores(
    model: nn.Module,
    pairs: SamplePairs,
    voters: Sequence[Candidate],
    inputs: Tensor,
    monitor: Monitor,
) -> Tensor:
    """Median response of each input, ``N``, on the scale of the pairs; NaN where no layer tells."""
    if not len(inputs):
        return torch.empty(0)
    chosen = {candidate.layer.name: candidate.layer for candidate in voters}
    inputs = inputs.to(device=model_device(model), dtype=model_dtype(model))
    low, high, response = (
        _responses(model, chosen, voters, samples, monitor)
        for samples in (pairs.clean, pairs.corrupted, inputs)
    )
    start, stop = low.mean(dim=0), high.mean(dim=0)
    tell = stop > start  # a corruption may also hide what a key responds to most
    if not bool(tell.any()):
        return torch.full((len(inputs),), math.nan)
    scaled = (response - start)[:, tell] / (stop - start)[tell]
    return scaled.median(dim=1).values.cpu()


def _responses(
    model: nn.Module,
    layers: dict[str, EditableLayer],
    voters: Sequence[Candidate],
    inputs: Tensor,
    monitor: Monitor,
) -> Tensor:
    """Largest ``dᵀ k`` over positions and groups, ``N × voters``."""
    parts = []
    for chunk in inputs.split(min(64, chunk_size(inputs, inputs.device))):
        monitor.check()
        keys = layer_keys(model, layers, chunk)
        columns = [
            keys[voter.layer.name].respond(voter.right.unsqueeze(1)).flatten(1).amax(dim=1)
            for voter in voters
        ]
        parts.append(torch.stack(columns, dim=1))
    return torch.cat(parts)
