"""What every method is given: checked input, and the examples that it may learn from.

Imports torch and the engine.  All methods see what `rectify` sees: the pairs and up to 768
references.  References carry no labels, so those that the original model gives them stand in; where
a method trains, they keep it from forgetting.  As in `rectify`, references may carry the corruption
unmarked; these methods do not look for such.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_int, check_module, check_number
from rectify_widgets.engine.data.corruption import touched
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs, check_pairs
from rectify_widgets.engine.find.problem import pose_problem
from rectify_widgets.engine.model.catalog import LayerCatalog
from rectify_widgets.engine.model.running import copied, eval_mode
from rectify_widgets.engine.repair.rectification import check_validation

BATCH = 32
"""Corrupted and clean inputs, each, in one step of training."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs with labels; ``weights`` add to one, half of them on corrupted inputs."""

    inputs: Tensor
    labels: Tensor
    weights: Tensor
    masks: Tensor
    """Where the corruption lies, shaped like the inputs; nothing marked on references."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs of one kind with their labels and annotation masks."""

    inputs: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def draw(self, generator: torch.Generator, size: int = BATCH) -> Examples:
        """Some of them, at random and without repeats."""
        rows = torch.randperm(len(self), generator=generator)[:size].to(self.inputs.device)
        return Examples(self.inputs[rows], self.labels[rows], self.masks[rows])


@dataclass(frozen=True, eq=False)
class Task:
    """The input of one call, on the model's device."""

    model: nn.Module
    """A copy of the model that methods copy again and never change."""
    catalog: LayerCatalog
    pairs: SamplePairs
    """With labels; with ``augmented`` also the references with the transplanted corruption."""
    given: int
    """How many of the pairs are the caller's."""
    references: Tensor | None
    answers: Tensor | None
    """The original model's prediction for each reference."""
    validation: tuple[Tensor, Tensor] | None
    opacity: float | None
    seed: int
    began: float
    """When the call began, in seconds of `time.perf_counter`."""

    @property
    def labels(self) -> Tensor:
        """Labels of the pairs."""
        assert self.pairs.labels is not None  # noqa: S101 - `prepare` has filled them in
        return self.pairs.labels

    @property
    def own(self) -> SamplePairs:
        """The caller's pairs alone."""
        return self.pairs[: self.given]

    @property
    def clean_inputs(self) -> Tensor:
        """References, or the pairs' clean inputs where there are none."""
        return self.own.clean if self.references is None else self.references

    def require_references(self, method: str, why: str) -> Tensor:
        """The references; a `ValueError` where none were given."""
        if self.references is None:
            raise ValueError(f"reference: got None, {method} wants unlabelled inputs {why}")
        return self.references

    def corrupted(self) -> Examples:
        """Corrupted inputs with the labels of their clean counterparts."""
        return Examples(self.pairs.corrupted, self.labels, touched(self.pairs))

    def clean(self) -> Examples:
        """The pairs' clean inputs, and the references with the labels the model gives them."""
        own = self.own
        inputs, labels, masks = own.clean, self.labels[: self.given], touched(own)
        if self.references is not None and self.answers is not None:
            inputs = torch.cat([inputs, self.references])
            labels = torch.cat([labels, self.answers])
            masks = torch.cat([masks, torch.zeros_like(self.references, dtype=torch.bool)])
        return Examples(inputs, labels, masks)


def draw_batch(generator: torch.Generator, corrupted: Examples, clean: Examples) -> Batch:
    """Corrupted and clean examples, as many as there are up to `BATCH` of each."""
    parts = [corrupted.draw(generator), clean.draw(generator)]
    return Batch(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.inputs.new_full((len(part),), 0.5 / len(part)) for part in parts]),
        torch.cat([part.masks for part in parts]),
    )


def prepare(
    model: nn.Module,
    pairs: SamplePairs,
    *,
    reference: Inputs | None,
    validation: tuple[Tensor, Tensor] | None,
    augmented: bool,
    opacity: float | None,
    seed: int,
) -> Task:
    """Check the input of a call; everything later works on copies.

    Raises:
        TypeError, ValueError: bad input, before anything is touched.
    """
    began = time.perf_counter()
    check_module("model", model)
    check_pairs(pairs)
    check_int("seed", seed, low=0)
    if opacity is not None:
        check_number("opacity", opacity, low=0.0, high=1.0)
    if not isinstance(augmented, bool):
        raise TypeError(f"augmented: got {augmented!r}, want True or False")
    if augmented and reference is None:
        raise ValueError(
            "augmented: got True without references, want reference=... to put the corruption on"
        )
    base = copied(model)
    with eval_mode(base) as module:
        problem = pose_problem(
            module, pairs, pairs.clean if reference is None else reference,
            opacity=opacity, seed=seed,
        )  # fmt: skip
        labelled = None
        if validation is not None:
            labelled = check_validation(module, validation, problem.pairs.clean)
    known = problem.pairs
    if augmented:
        known = _joined(known, problem.references, problem.carriers, problem.answers)
    return Task(
        model=base,
        catalog=problem.catalog,
        pairs=known,
        given=len(problem.pairs),
        references=None if reference is None else problem.references,
        answers=None if reference is None else problem.answers,
        validation=labelled,
        opacity=opacity,
        seed=seed,
        began=began,
    )


def _joined(pairs: SamplePairs, clean: Tensor, corrupted: Tensor, answers: Tensor) -> SamplePairs:
    """The pairs and the references that the transplant changes."""
    assert pairs.labels is not None  # noqa: S101 - `pose_problem` has filled them in
    changed = (clean != corrupted).flatten(1).any(dim=1)
    return replace(
        pairs,
        corrupted=torch.cat([pairs.corrupted, corrupted[changed]]),
        clean=torch.cat([pairs.clean, clean[changed]]),
        labels=torch.cat([pairs.labels, answers[changed]]),
    )


def weights_are_finite(model: nn.Module) -> bool:
    """Whether every parameter and buffer is finite."""
    tensors: Iterable[Tensor] = (*model.parameters(), *model.buffers())
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
