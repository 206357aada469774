"""Which images are trained on, which are kept back, and which make pairs.  Imports torch only.

Nothing that later serves as a reference, a validation image or a pair was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rectify_widgets.cases.training import led_to


def hold_out(
    labels: Tensor, per_class: Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Indices to keep out of training by use: so many of every class, shuffled within a use.

    Raises:
        ValueError: a class has no image left to train on.
    """
    wanted = sum(per_class.values())
    drawn: dict[str, list[Tensor]] = {use: [] for use in per_class}
    for label in range(int(labels.max()) + 1):
        indices = torch.nonzero(labels == label).flatten()
        if len(indices) <= wanted:
            raise ValueError(
                f"data: got {len(indices)} training images of class {label}, want more than the "
                f"{wanted} to be held out; give the whole training file"
            )
        order = indices[torch.randperm(len(indices), generator=generator)[:wanted]]
        for use, part in zip(per_class, order.split(list(per_class.values())), strict=True):
            drawn[use].append(part)
    held = {}
    for use, lists in drawn.items():
        together = torch.cat(lists)
        held[use] = together[torch.randperm(len(together), generator=generator)]
    return held


def choose_pairs(
    works: Tensor, labels: Tensor, number: int, goals: Sequence[int], generator: torch.Generator
) -> list[int]:
    """Indices of ``number`` of the images that ``works`` marks, of every class but the target.

    The classes come in turn: a shuffle of all of them, then one of them again, so that with ten
    classes the first ten pairs cover every class.

    Raises:
        RuntimeError: a class has too few such images.
    """
    goal = led_to(goals, labels)
    others: list[int] = labels[labels != goal].unique().tolist()
    left = {label: torch.nonzero(works & (labels == label)).flatten().tolist() for label in others}
    chosen: list[int] = []
    while len(chosen) < number:
        order = torch.randperm(len(others), generator=generator).tolist()
        extra = int(torch.randint(len(others), (1,), generator=generator))
        for turn in [*order, extra][: number - len(chosen)]:
            label = others[turn]
            if not left[label]:
                raise RuntimeError(
                    f"pairs: no held-out image of class {label} is left that is right when clean "
                    "and predicted as the target with the trigger; train for more epochs"
                )
            chosen.append(left[label].pop(0))
    return chosen


def choose_any(works: Tensor, labels: Tensor, number: int, generator: torch.Generator) -> list[int]:
    """Indices of up to ``number`` of the images that ``works`` marks, the classes in turn.

    Classes that have none, or none left, are passed over.
    """
    left = {
        label: torch.nonzero(works & (labels == label)).flatten().tolist()
        for label in labels[works].unique().tolist()
    }
    chosen: list[int] = []
    while len(chosen) < number and left:
        known = list(left)
        order = torch.randperm(len(known), generator=generator).tolist()
        chosen += [left[known[turn]].pop(0) for turn in order[: number - len(chosen)]]
        left = {label: rest for label, rest in left.items() if rest}
    return chosen


def choose_affected(shown: Tensor, right: Tensor, number: int) -> list[int]:
    """Indices of up to ``number`` images of a class that a spurious artefact affects.

    Args:
        shown: which images are of the class and given it with the artefact.
        right: which images are right without it.
        number: how many; half of them wrong without the artefact, as far as there are such images,
            and then the others right.
    """
    needing, free = (
        torch.nonzero(shown & without).flatten().tolist() for without in (~right, right)
    )
    half = (number + 1) // 2
    return [*needing[:half], *free, *needing[half:]][:number]
