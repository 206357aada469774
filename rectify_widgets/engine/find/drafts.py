"""Edits of every layer in closed form, and then what each is predicted to do.

Imports torch only.  Keys and gradients of all layers take far more memory than the edits, so that they
are made for a few samples at a time: once to sum the keys, once to fit the edits, and in one
sweep to predict their effects.  Few enough samples are kept in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.progress import Monitor
from rectify_widgets.engine.edit.closed_form import (
    Fit,
    KeySums,
    Unreached,
    closed_form,
    joined_sums,
)
from rectify_widgets.engine.edit.solver import Solver
from rectify_widgets.engine.find.candidates import Candidate, ProbeSweep, effect, layer_keys
from rectify_widgets.engine.model.computed import ignores_mean, without_mean
from rectify_widgets.engine.model.keys import EditableLayer, Keys

WHOLE = 2**29
"""Bytes of keys on all samples that are held together, of layers that cannot be fitted in pieces."""


@dataclass(frozen=True, eq=False)
class Draft:
    """Edits of one layer that were solved from the same samples."""

    layer: EditableLayer
    grid: Sequence[tuple[str, float]]
    """Direction and ridge of each of ``D`` edits."""
    lefts: Tensor
    """``Λ``, ``G × D × O/G``."""
    rights: Tensor
    """``d``, ``G × D × K``."""

    def effects(self, probed: ProbeSweep) -> Tensor:
        """Predicted shares of the gap and costs, ``2 × N × D``, on the samples of a sweep."""
        name = self.layer.name
        moved = effect(self.lefts, self.rights, probed.path_gradients[name], probed.corrupted[name])
        lost = -effect(self.lefts, self.rights, probed.clean_gradients[name], probed.clean[name])
        shares = (moved / probed.gap.clamp_min(1e-6).unsqueeze(1)).clamp(-1.0, 1.2)
        costs = (lost / probed.clean_margin.clamp_min(1e-6).unsqueeze(1)).clamp(0.0, 1.0)
        return torch.stack([shares, costs])

    def candidates(self, effects: Tensor) -> list[Candidate]:
        """The edits, with the mean of their effects on all samples."""
        shares, costs = effects.mean(dim=1)
        return [
            Candidate(
                self.layer, kind, ridge, self.lefts[:, i], self.rights[:, i],
                float(shares[i]), float(costs[i]),
            )
            for i, (kind, ridge) in enumerate(self.grid)
        ]  # fmt: skip


class _Source:
    """Keys of all layers on samples with and without the corruption, ``most`` samples at a time.

    No more than that are kept; of more samples each pass makes them anew.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, EditableLayer],
        samples: tuple[Tensor, Tensor],
        most: int,
        monitor: Monitor,
    ) -> None:
        self._model, self._layers, self._samples, self._monitor = model, layers, samples, monitor
        self._all = slice(0, len(samples[0]))
        self._rows = chunks(self._all.stop, most)
        self._kept = self._keys(self._all) if len(self._rows) == 1 else None

    def _keys(
        self, rows: slice, names: Iterable[str] | None = None
    ) -> tuple[dict[str, Keys], dict[str, Keys]]:
        self._monitor.check()
        layers = self._layers if names is None else {name: self._layers[name] for name in names}
        corrupted, clean = (layer_keys(self._model, layers, some[rows]) for some in self._samples)
        return corrupted, clean

    def _batches(self) -> Iterator[tuple[dict[str, Keys], dict[str, Keys]]]:
        if self._kept is not None:
            yield self._kept
        else:
            yield from map(self._keys, self._rows)

    def sums(self) -> dict[str, dict[str, Tensor]]:
        """`key_sums` of each layer; layers that the corruption does not reach are missing."""
        parts: dict[str, list[KeySums]] = {name: [] for name in self._layers}
        for corrupted, clean in self._batches():
            for name, some in parts.items():
                some.append(KeySums.of(corrupted[name], clean[name]))
        sums = {}
        for name, some in parts.items():
            with suppress(Unreached):
                sums[name] = joined_sums(self._layers[name], some)
        return sums

    def lefts(self, rights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`closed_form` of some layers, for these right factors of each."""
        whole = [name for name in rights if self._layers[name].computed]
        fits: dict[str, Fit] = {}
        for corrupted, clean in self._batches() if len(whole) < len(rights) else ():
            for name in (name for name in rights if name not in whole):
                fit = Fit.of(rights[name], corrupted[name], clean[name])
                fits[name] = fits[name] + fit if name in fits else fit
        lefts = {name: fit.optimum() for name, fit in fits.items()}
        for names in self._groups(whole):  # their optimum is no sum over samples
            corrupted, clean = self._kept or self._keys(self._all, names)
            for name in names:
                lefts[name] = closed_form(rights[name], corrupted[name], clean[name])
        return {name: lefts[name] for name in rights}

    def _groups(self, names: Sequence[str]) -> list[list[str]]:
        """Layers whose keys on all samples may be held together."""
        if self._kept or not names:
            return [list(names)] if names else []
        one = self._keys(slice(0, 1), names)[0]
        groups, room = list[list[str]](), 0
        for name in names:
            size = 2 * self._all.stop * one[name].inputs.nbytes
            if size > room:
                groups.append([])
                room = WHOLE
            groups[-1].append(name)
            room -= size
        return groups


def chunks(count: int, most: int) -> list[slice]:
    """Rows, ``most`` at a time."""
    return [slice(first, min(first + most, count)) for first in range(0, count, most)]


def draft_edits(
    model: nn.Module,
    layers: Mapping[str, EditableLayer],
    solver_of: Callable[[str], Solver],
    sources: Sequence[tuple[Tensor, Tensor]],
    *,
    directions: Sequence[str],
    ridges: Sequence[float],
    most: int,
    monitor: Monitor,
) -> dict[str, list[Draft]]:
    """Edits of each layer, a draft for each source that reaches it.

    Args:
        model: in evaluation mode.
        layers: those to edit.
        solver_of: the solver of a layer by its name; a `ValueError` leaves the layer out.
        sources: corrupted and clean samples to solve from.
        directions, ridges: the grid.
        most: samples whose keys are held at one time.
        monitor: progress and cancellation.
    """
    made = [_Source(model, layers, samples, most, monitor) for samples in sources]
    sums = [source.sums() for source in made]
    grids: list[dict[str, list[tuple[str, float]]]] = [{} for _ in made]
    rights: list[dict[str, Tensor]] = [{} for _ in made]
    for number, (name, layer) in enumerate(layers.items()):
        monitor.report(number / len(layers), f"solving {name}")
        try:
            solver = solver_of(name)
        except ValueError:  # a layer whose inputs are zero on all references
            continue
        for known, grid, right in zip(sums, grids, rights, strict=True):
            found = known.get(name, {})
            kinds = [kind for kind in dict.fromkeys(directions) if kind in found]
            if kinds:
                stacked = torch.stack([found[kind] for kind in kinds], dim=1)
                solved = {ridge: solver.solve(stacked, ridge) for ridge in ridges}
                if layer.computed and ignores_mean(layer.module):
                    ones = stacked.new_ones(len(stacked), 1, stacked.shape[2])
                    solved = {
                        ridge: without_mean(one, solver.solve(ones, ridge))
                        for ridge, one in solved.items()
                    }
                grid[name] = [(kind, ridge) for kind in kinds for ridge in ridges]
                columns = [solved[ridge][:, kinds.index(kind)] for kind, ridge in grid[name]]
                right[name] = torch.stack(columns, dim=1)
    drafts: dict[str, list[Draft]] = {name: [] for name in layers}
    for source, grid, right in zip(made, grids, rights, strict=True):
        for name, left in source.lefts(right).items():
            drafts[name].append(Draft(layers[name], grid[name], left, right[name]))
    return drafts


class Predictions:
    """Effects of drafts, gathered from sweeps of a few samples each."""

    def __init__(self, drafts: Mapping[str, Sequence[Draft]]) -> None:
        self._drafts = drafts
        self._effects: dict[str, list[list[Tensor]]] = {}
        self._errors: dict[str, list[Tensor]] = {}
        self._gaps: list[Tensor] = []

    def add(self, probed: ProbeSweep) -> None:
        """Add the samples of one sweep."""
        self._gaps.append(probed.gap)
        for name, gradients in probed.path_gradients.items():
            change = (probed.clean[name] - probed.corrupted[name]).values()
            total = (change * gradients).sum(dim=(1, 2, 3))
            self._errors.setdefault(name, []).append((total - probed.gap).abs())
            effects = [draft.effects(probed) for draft in self._drafts[name]]
            self._effects.setdefault(name, []).append(effects)

    def options(self) -> dict[str, list[Candidate]]:
        """All edits of each layer; none where the gradient did not reach it throughout."""
        return {
            name: [
                candidate
                for number, draft in enumerate(drafts)
                for candidate in draft.candidates(
                    torch.cat([part[number] for part in self._effects[name]], dim=1)
                )
            ]
            if name in self._reached()
            else []
            for name, drafts in self._drafts.items()
        }

    def errors(self) -> tuple[dict[str, Tensor], Tensor]:
        """By layer how far attributions are from adding up to the gap, on average, and the mean gap."""
        errors = {name: torch.cat(self._errors[name]).mean() for name in self._reached()}
        return errors, torch.cat(self._gaps).abs().mean()

    def _reached(self) -> list[str]:
        return [name for name, parts in self._effects.items() if len(parts) == len(self._gaps)]
