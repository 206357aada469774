"""What every method is given: checked input, and the examples that it may learn from.

Imports torch and the engine.  All methods see what `rectify` sees: the pairs and up to 768
references.  References carry no labels, so those that the original model gives them stand in; where
a method trains, they keep it from forgetting.  As in `rectify`, references may carry the corruption
unmarked; these methods do not look for such.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rectify_widgets.engine.base.checks import check_flag, check_int, check_module
from rectify_widgets.engine.data.corruption import touched
from rectify_widgets.engine.data.inputs import Inputs
from rectify_widgets.engine.data.pairs import SamplePairs, check_pairs
from rectify_widgets.engine.find.problem import Problem, pose_problem
from rectify_widgets.engine.model.heads import answers
from rectify_widgets.engine.model.running import copied, eval_mode, predict_all
from rectify_widgets.engine.repair.rectification import check_validation

BATCH = 32
"""Corrupted and clean inputs, each, in one step of training."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs of one kind with their labels and annotation masks."""

    inputs: Tensor
    labels: Tensor
    masks: Tensor
    """Where the corruption lies, shaped like the inputs; nothing marked on references."""

    def __len__(self) -> int:
        return len(self.inputs)

    def draw(self, generator: torch.Generator, size: int = BATCH) -> Examples:
        """Some of them, at random and without repeats."""
        rows = torch.randperm(len(self), generator=generator)[:size].to(self.inputs.device)
        return Examples(self.inputs[rows], self.labels[rows], self.masks[rows])


@dataclass(frozen=True, eq=False)
class Batch(Examples):
    """Corrupted and clean ones together; ``weights`` add to one, half of them on corrupted inputs."""

    weights: Tensor


@dataclass(frozen=True, eq=False)
class Task:
    """The input of one call, on the model's device."""

    problem: Problem
    """Its model is a copy that methods copy again and never change."""
    pairs: SamplePairs
    """Those of the problem; with ``augmented`` also the references that carry the corruption."""
    validation: tuple[Tensor, Tensor] | None
    seed: int

    def corrupted(self) -> Examples:
        """Corrupted inputs with the labels of their clean counterparts."""
        assert self.pairs.labels is not None  # noqa: S101 - `pose_problem` has filled them in
        return Examples(self.pairs.corrupted, self.pairs.labels, touched(self.pairs))

    def clean(self) -> Examples:
        """The pairs' clean inputs, and the references with the labels the model gives them."""
        problem = self.problem
        inputs, labels, masks = problem.pairs.clean, problem.labels, touched(problem.pairs)
        if problem.given:
            inputs = torch.cat([inputs, problem.references])
            labels = torch.cat([labels, problem.answers])
            masks = torch.cat([masks, torch.zeros_like(problem.references, dtype=torch.bool)])
        return Examples(inputs, labels, masks)

    def generator(self) -> torch.Generator:
        """The random numbers of one attempt: the same for every choice of options."""
        return torch.Generator().manual_seed(self.seed)


def accuracy(model: nn.Module, labelled: tuple[Tensor, Tensor]) -> float:
    """The share (0..1) of the inputs that get their label; of several labels, over all of them."""
    inputs, labels = labelled
    return float((answers(predict_all(model, inputs)) == labels).double().mean())


def draw_batch(generator: torch.Generator, corrupted: Examples, clean: Examples) -> Batch:
    """Corrupted and clean examples, as many as there are up to `BATCH` of each."""
    parts = [corrupted.draw(generator), clean.draw(generator)]
    return Batch(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.masks for part in parts]),
        torch.cat([part.inputs.new_full((len(part),), 0.5 / len(part)) for part in parts]),
    )


def pose_task(
    model: nn.Module,
    pairs: SamplePairs,
    reference: Inputs | None,
    validation: tuple[Tensor, Tensor] | None,
    *,
    augmented: bool = False,
    seed: int = 0,
) -> Task:
    """Check the input of a call, see `registry.run`; everything later works on copies."""
    check_module("model", model)
    check_pairs(pairs)
    check_int("seed", seed, low=0)
    if check_flag("augmented", augmented) and reference is None:
        raise ValueError(
            "augmented: got True without references, want reference=... to put the corruption on"
        )
    with eval_mode(copied(model), "pairs") as module:
        problem = pose_problem(
            module, pairs, pairs.clean if reference is None else reference,
            seed=seed,
        )  # fmt: skip
        labelled = None
        if validation is not None:
            labelled = check_validation(problem.model, validation, problem.pairs.clean)
    if reference is None:  # the pairs stand in, and training takes them once
        own = problem.pairs
        problem = replace(
            problem, references=own.clean, carriers=own.corrupted, origins=own.clean,
            answers=problem.labels, given=False,
        )  # fmt: skip
    known = _augmented(problem) if augmented else problem.pairs
    return Task(problem, known, labelled, seed)


def _augmented(problem: Problem) -> SamplePairs:
    """The pairs and the references that the corruption changes, where it can be put onto them."""
    if problem.corruption is None:
        return problem.pairs
    clean, corrupted = problem.references, problem.carriers
    changed = (clean != corrupted).flatten(1).any(dim=1)
    return SamplePairs(
        torch.cat([problem.pairs.corrupted, corrupted[changed]]),
        torch.cat([problem.pairs.clean, clean[changed]]),
        torch.cat([problem.labels, problem.answers[changed]]),
    )
