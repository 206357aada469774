"""Candidate edits of every layer, with what each is predicted to do.  Imports torch only.

For each layer, edit direction and ridge the closed form gives one edit.  The gradients of one sweep
predict which *share* of the gap it closes on references that carry the transplanted corruption, and
what it *costs* on the same references without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import SILENT, Monitor
from rectify_widgets.engine.edit.edits import RankOneEdit, digest
from rectify_widgets.engine.model.computed import moved
from rectify_widgets.engine.model.gradients import layer_gradients, margin, sweep
from rectify_widgets.engine.model.heads import label_weights, runner_up
from rectify_widgets.engine.model.keys import EditableLayer, Keys
from rectify_widgets.engine.model.running import (
    capturing,
    chunk_size,
    in_chunks,
    predict,
    working_dtype,
)

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Grid of ridges, in units of the mean diagonal of the second moment."""
PER_LAYER = 3
"""Edits of one layer that are tried."""
ALIKE = 0.95
"""Edits of a layer that are more alike than this count as one."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One possible edit, and its predicted effect."""

    layer: EditableLayer
    direction: str
    ridge: float
    left: Tensor
    """``Λ``, ``G × O/G``."""
    right: Tensor
    """``d``, ``G × K``."""
    share: float
    """Predicted share of the gap closed, averaged over references; -1 to 1.2."""
    cost: float
    """Predicted share of the margin that clean references lose; 0 to 1."""
    refined: bool = False
    """Whether gradient steps followed on the closed form, see `refining`."""

    @property
    def score(self) -> float:
        """Predicted share of the gap closed, less what it is predicted to cost."""
        return self.share - self.cost

    def likeness(self, other: Candidate) -> float:
        """Cosine of two updates of one layer, times the lesser of their lengths over the greater."""
        own, theirs = self._gram(self), other._gram(other)
        return float(self._gram(other) / own.maximum(theirs).clamp_min(1e-300))

    def _gram(self, other: Candidate) -> Tensor:
        lefts = self.left.double() * other.left.double()  # in float32 small edits vanish
        rights = self.right.double() * other.right.double()
        return (lefts.sum(dim=1) * rights.sum(dim=1)).sum()

    @property
    def weight(self) -> Tensor:
        """The layer's weight with the edit, in its own type."""
        return self.added_to(self.layer.module.weight.detach())

    def added_to(self, weight: Tensor) -> Tensor:
        """A weight of the layer with the edit, in its own type."""
        delta = torch.einsum("go,gk->gok", self.left, self.right).reshape(weight.shape)
        return (weight.to(delta) + delta).to(weight)

    def edit(self) -> RankOneEdit:
        """The edit as an object of its own, on the CPU, for the weight that the layer has now."""
        right = self.right[0] if self.layer.groups == 1 else self.right
        return RankOneEdit(
            layer=self.layer.name,
            left=self.left.reshape(-1).to("cpu", copy=True),  # not a view of the whole grid
            right=right.to("cpu", copy=True),
            shape=tuple(self.layer.module.weight.shape),
            direction=self.direction,
            ridge=self.ridge,
            key_space="patch",
            solved_for=digest(self.layer.module.weight),
            refined=self.refined,
        )


def different(candidates_of_layer: Sequence[Candidate]) -> list[Candidate]:
    """The first few edits of a layer, leaving out near-duplicates of an earlier one."""
    kept: list[Candidate] = []
    for candidate in candidates_of_layer:
        if all(candidate.likeness(other) < ALIKE for other in kept):
            kept.append(candidate)
        if len(kept) == PER_LAYER:
            break
    return kept


@contextmanager
def trying(candidate: Candidate) -> Iterator[None]:
    """Put the edit into the model while the block runs; afterwards the weight is what it was."""
    with exchanged([(candidate.layer.module.weight, candidate.weight)]):
        yield


@contextmanager
def exchanged(weights: Iterable[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give parameters other values while the block runs.

    Their data is exchanged, not overwritten, so that a graph that the caller holds stays valid.
    """
    with ExitStack() as stack:
        for weight, value in weights:
            stack.callback(setattr, weight, "data", weight.data)
            weight.data = weight.data.clone().copy_(value)
        yield


@dataclass(frozen=True)
class Probe:
    """``N × C × H × W`` samples with and without the corruption, and the classes they should have."""

    corrupted: Tensor
    clean: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, rows: slice) -> Probe:
        """Some of the samples."""
        return Probe(self.corrupted[rows], self.clean[rows], self.labels[rows])


@dataclass(frozen=True)
class ProbeSweep:
    """Inputs of every layer on a probe, and the gradients of its margins."""

    corrupted: Mapping[str, Keys]
    clean: Mapping[str, Keys]
    path_gradients: Mapping[str, Tensor]
    clean_gradients: Mapping[str, Tensor]
    gap: Tensor
    clean_margin: Tensor


def layer_keys(
    model: nn.Module, layers: Mapping[str, EditableLayer], inputs: Tensor
) -> dict[str, Keys]:
    """Each layer's keys on ``inputs``, as they were before anything changed them in place."""
    return keys_and_scores(model, layers, inputs)[0]


def keys_and_scores(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    inputs: Tensor,
    monitor: Monitor = SILENT,
) -> tuple[dict[str, Keys], Tensor]:
    """See `layer_keys`, and the scores that the same passes give, in float32 or better."""

    def run(rows: slice) -> tuple[dict[str, Keys], Tensor]:
        monitor.check()
        keys: dict[str, Keys] = {}

        def keep(name: str, layer_input: Tensor, _: Tensor) -> None:
            keys[name] = layers[name].keys(layer_input.clone(), samples=rows.stop - rows.start)

        with capturing({name: layer.module for name, layer in layers.items()}, keep):
            scores = predict(model, inputs[rows])
        return keys, scores.to(working_dtype(scores.dtype))

    chunks = in_chunks(len(inputs), chunk_size(inputs, inputs.device), run)
    parts, scores = zip(*chunks, strict=True)
    return _joined(layers, parts), torch.cat(scores)


def _joined(
    layers: Mapping[str, EditableLayer], parts: Sequence[dict[str, Keys]]
) -> dict[str, Keys]:
    """Keys of all samples from those of some at a time, which are given up."""
    return {
        name: Keys(layer, torch.cat([part.pop(name).inputs for part in parts]))
        for name, layer in layers.items()
        if name in parts[0]
    }


def sweep_probe(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    probe: Probe,
    *,
    steps: int,
    monitor: Monitor,
) -> ProbeSweep:
    """One sweep along the path of the probe and one pass at its clean end; all of it is held at once."""
    labels = probe.labels
    corrupted, before = keys_and_scores(model, layers, probe.corrupted, monitor)

    def at_clean_end(rows: slice) -> tuple[dict[str, Keys], Tensor, dict[str, Tensor]]:
        monitor.check()
        keys: dict[str, Keys] = {}
        given: list[Tensor] = []

        def see(name: str, layer_input: Tensor) -> None:
            keys[name] = layers[name].keys(layer_input.clone(), samples=rows.stop - rows.start)

        def clean_margin(scores: Tensor) -> Tensor:
            given.append(known := scores.detach().to(working_dtype(scores.dtype)))
            still = label_weights(before[rows], known)[1]
            return margin(scores, labels[rows], runner_up(known, labels[rows]), still)

        gradients = layer_gradients(model, layers, probe.clean[rows], clean_margin, see)
        return keys, given[0], gradients

    most = chunk_size(probe.clean, probe.clean.device)
    parts, scores, slopes = zip(*in_chunks(len(probe), most, at_clean_end), strict=True)
    clean, after = _joined(layers, parts), torch.cat(scores)
    rivals, seconds = runner_up(before, labels), runner_up(after, labels)
    path, still = label_weights(before, after)
    reached = [name for name in layers if all(name in part for part in slopes)]
    return ProbeSweep(
        corrupted=corrupted,
        clean=clean,
        path_gradients=sweep(
            model, layers, probe.corrupted, probe.clean, labels, rivals, weights=path,
            steps=steps, monitor=monitor,
        ),
        clean_gradients={name: torch.cat([part[name] for part in slopes]) for name in reached},
        gap=margin(after, labels, rivals, path) - margin(before, labels, rivals, path),
        clean_margin=margin(after, labels, seconds, still),
    )  # fmt: skip


def effect(lefts: Tensor, rights: Tensor, gradients: Tensor, keys: Keys) -> Tensor:
    """First-order change of the margin, ``Σ_p Ḡ_p · Λ (dᵀ k_p)``, ``N × D`` for ``D`` edits."""
    if keys.layer.computed:
        edits = zip(lefts.unbind(dim=1), rights.unbind(dim=1), strict=True)
        changes = [keys.respond(moved(keys.layer.module, *edit)) for edit in edits]
        return torch.stack([(one * gradients).sum(dim=(1, 2, 3)) for one in changes], dim=1)
    if keys.layer.groups > 1:  # few weights a group, so that their gradients come cheaper
        return torch.einsum("gdo,ngok,gdk->nd", lefts, keys.gather(gradients, each=True), rights)
    slopes = torch.einsum("gdo,ngop->ngdp", lefts, gradients)
    return (slopes * keys.respond(rights)).sum(dim=(1, 3))
