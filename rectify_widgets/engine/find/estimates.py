"""`estimate_memory`: the peak memory of a call, before it is made.  Imports torch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import nn

from rectify_widgets.engine.base.checks import check_choice, check_int
from rectify_widgets.engine.base.tables import html_table
from rectify_widgets.engine.edit.statistics import BATCH
from rectify_widgets.engine.find.candidates import RIDGES
from rectify_widgets.engine.find.problem import SPLIT, counts_of
from rectify_widgets.engine.measure.replay import ROOM
from rectify_widgets.engine.model import memory
from rectify_widgets.engine.model.catalog import editable_layers
from rectify_widgets.engine.model.running import eval_mode, model_device, model_dtype

CALLS = ("collect", "localize", "rectify")


@dataclass(frozen=True)
class MemoryEstimate:
    """Result of `estimate_memory`; all numbers are bytes, beyond what the model takes already.

    Attributes:
        peak: the most that is alive at one time.
        phases: the most of each phase.
        passes: parts into which the layers are divided, one after the other.
        largest: the layers that take most, with what they take.

    Example:
        >>> estimate = rw.estimate_memory(model, (1, 12, 12), references=96)
        >>> estimate.passes, list(estimate.phases)
        (1, ['statistics', 'sweep and solving', 'trying edits', 'refining'])
    """

    peak: int
    phases: Mapping[str, int]
    passes: int
    largest: Mapping[str, int]

    def __str__(self) -> str:
        return "\n".join(f"{memory.format_bytes(size):>10}  {what}" for what, size in self._rows())

    def _repr_html_(self) -> str:
        rows = [(escape(what), memory.format_bytes(size)) for what, size in self._rows()]
        return html_table(rows, align="lr")

    def _rows(self) -> list[tuple[str, int]]:
        return [
            (f"peak, {self.passes} pass{'es' * (self.passes > 1)}", self.peak),
            *self.phases.items(),
            *((f"layer {name}", size) for name, size in self.largest.items()),
        ]


def estimate_memory(
    model: nn.Module,
    input_shape: Sequence[int],
    *,
    call: str = "rectify",
    pairs: int = 1,
    references: int = 256,
    memory_limit: int | None = None,
) -> MemoryEstimate:
    """Estimate the peak memory of a call before it is made, from one pass of a single sample.

    Args:
        model: the classifier; left as it was.
        input_shape: ``(C, H, W)`` of one sample.
        call: ``"collect"`` (`KeyStatistics.collect` of all layers), ``"localize"`` or
            ``"rectify"``, each with its defaults.
        pairs: number of pairs.
        references: number of references.
        memory_limit: of the call, in bytes.

    Raises:
        TypeError, ValueError: bad input; a limit below what a single layer takes.

    Example:
        >>> estimate = rw.estimate_memory(model, (1, 12, 12), call="localize")
        >>> estimate.peak < 100 * 2**20
        True
    """
    check_choice("call", call, CALLS)
    check_int("pairs", pairs, low=1)
    check_int("references", references, low=0)
    limit = memory.check_limit(memory_limit)
    want = "(channels, height, width)"
    if not isinstance(input_shape, tuple | list):
        raise TypeError(f"input_shape: got {input_shape!r}, want {want}")
    shape = [check_int("input_shape", side, low=1) for side in input_shape]
    if len(shape) != 3:
        raise ValueError(f"input_shape: got {tuple(shape)}, want {want}")
    with eval_mode(model, "input_shape") as module:
        example = torch.zeros(1, *shape, device=model_device(module), dtype=model_dtype(module))
        catalog = editable_layers(module, example)
        layers = catalog.select("layers", None)
        sizes = memory.measure_sizes(module, layers, example, copied=call == "rectify")
    counts = counts_of(pairs, references, example)
    names = list(sizes.layers)
    budget = memory.budget(example.device)
    if call == "collect":
        groups = [names]
    elif limit is None:
        groups = memory.by_moments(layers, budget // 2)
    else:
        groups = memory.parts(sizes, counts, names, limit)
    batch = max(min(BATCH, references), 1)
    if limit is None:
        batch = min(batch, counts.chunk)
    chunks = [memory.collect_chunk(sizes, group, batch, limit) for group in groups]
    peaks = [memory.collect_peak(sizes, *one) for one in zip(groups, chunks, strict=True)]
    phases = {"statistics": max(peaks)}
    if call != "collect":
        phases["sweep and solving"] = max(
            memory.proposal_peak(sizes, counts, group) for group in groups
        )
        shared = counts.references * sum(size.outputs for size in sizes.layers.values())
        moments = sum(size.moment for size in sizes.layers.values())
        phases["trying edits"] = (
            2 * counts.references * sizes.sample
            + counts.chunk * sizes.forward
            + sizes.copy
            + (2 * min(ROOM, budget // 4, shared) + moments if limit is None else 0)
        )
    if call == "rectify" and references >= SPLIT:
        chunk = memory.refining_chunk(sizes, counts, limit)
        phases["refining"] = memory.refining_peak(sizes, counts, chunk)
    if call == "rectify" and limit is None:
        kept = min(budget // 4, len(RIDGES) * moments)
        phases = {name: size + kept for name, size in phases.items()}
    taken = {
        name: memory.held(size, counts) if call != "collect" else size.moment
        for name, size in sizes.layers.items()
    }
    largest = sorted(taken, key=lambda name: -taken[name])[:5]
    return MemoryEstimate(
        peak=max(phases.values()),
        phases=phases,
        passes=len(groups),
        largest={name: taken[name] for name in largest},
    )
